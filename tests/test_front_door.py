import subprocess
import sys

import suffice


def test_the_names_are_few_and_all_there() -> None:
    assert len(suffice.__all__) <= 15
    for name in suffice.__all__:
        assert getattr(suffice, name) is not None
    assert dir(suffice) == suffice.__all__


def test_import_pulls_in_nothing_heavy() -> None:
    heavy = "sqlalchemy pydantic starlette granian rich openai genai_prices alembic".split()
    code = f"import sys, suffice; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_package_under_test_is_the_installed_one() -> None:
    assert "site-packages" in suffice.__file__ or suffice.__file__.endswith(
        "src/suffice/__init__.py"
    )
