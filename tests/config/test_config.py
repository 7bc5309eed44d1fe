"""A wrong config is a sentence with the field, the file and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.config import (
    EXAMPLE_TOML,
    check_bind,
    discover,
    load_settings,
    parse_settings,
    resolve,
)
from suffice.errors import ConfigError

KEYED = {"OPENAI_API_KEY": "sk-x"}


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[sever]\nport = 1", "sever", "'server'"),
        ("[server]\nprot = 1", "server.prot", "'port'"),
        ("[store]\nkeep_prompt = true", "store.keep_prompt", "'keep_prompts'"),
        ("[providers.x]\nbaseurl = 'y'", "providers.x.baseurl", "'base_url'"),
        ('[models."a/b"]\nqualiti = 1', "models.a/b.qualiti", "'quality'"),
        (
            "[routes.auto]\nmodels = ['a/b']\nobjectiv = 'best'",
            "routes.auto.objectiv",
            "'objective'",
        ),
        (
            "[routes.auto]\nmodels = ['a/b']\ntimeouts = { idle = 3 }",
            "routes.auto.timeouts.idle",
            "'idle_s'",
        ),
        ("[server]\nport = 'x'", "server.port", "integer"),
        ("[server]\nport = 99999", "server.port", "65535"),
        ("[routes.auto]\nmodels = []", "routes.auto.models", "at least 1"),
        ("[routes.auto]\nmodels = ['a/b']\nobjective = 'bst'", "routes.auto.objective", "best"),
        ('[models."a/b"]\nquality = 1.5', "models.a/b.quality", "1"),
        ("a = [", None, "TOML"),
    ],
)
def test_an_error_names_the_field_and_the_remedy(
    tmp_path: Path, text: str, field: str | None, message: str
) -> None:
    path = tmp_path / "suffice.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert caught.value.field == field
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "none.toml", {})
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(bad, {})
    with pytest.raises(ConfigError, match="read"):
        load_settings(tmp_path, {})


def test_the_example_loads(tmp_path: Path) -> None:
    path = tmp_path / "suffice.toml"
    path.write_text(EXAMPLE_TOML)
    resolved = resolve(load_settings(path, KEYED), KEYED)
    assert [m.name for m in resolved.routes["auto"].models] == ["openai/gpt-5-nano", "openai/gpt-5"]
    assert resolved.routes["auto"].models[0].quality == 0.72
    assert resolved.providers["openai"].api_key == "sk-x"


def test_a_missing_key_leaves_a_model_out_or_stops() -> None:
    both = {"routes": {"auto": {"models": ["openai/gpt-5", "groq/openai/gpt-oss-20b"]}}}
    resolved = resolve(parse_settings(both), KEYED)
    assert [m.name for m in resolved.routes["auto"].models] == ["openai/gpt-5"]
    assert any("GROQ_API_KEY" in w for w in resolved.warnings)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        resolve(parse_settings({"routes": {"auto": {"models": ["openai/gpt-5"]}}}), {})


def test_a_key_never_shows() -> None:
    resolved = resolve(parse_settings({"routes": {"auto": {"models": ["openai/gpt-5"]}}}), KEYED)
    assert "sk-x" not in repr(resolved.providers)
    assert "sk-x" not in repr(resolved.settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"routes": {"auto": {"models": ["opnai/gpt-5"]}}}, "'openai'"),
        ({"routes": {"auto": {"models": ["gpt-5"]}}}, "openai/gpt-5"),
        ({"routes": {"auto": {"models": ["azure/gpt-4o"]}}}, "base_url"),
        (
            {"providers": {"x": {"dialect": "opnai", "base_url": "http://h"}}, "routes": {"a": {"models": ["x/y"]}}},
            "openai",
        ),
        ({}, "routes.auto"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(parse_settings(data), {"AZURE_OPENAI_API_KEY": "k"})
    assert message in str(caught.value)


def test_without_a_file_keys_and_local_servers_make_up_auto() -> None:
    settings = discover(KEYED, {"ollama": ["qwen3:8b"]})
    resolved = resolve(settings, KEYED)
    auto = [m.name for m in resolved.routes["auto"].models]
    assert "ollama/qwen3:8b" in auto
    assert any(n.startswith("openai/") for n in auto)
    local = next(m for m in resolved.models if m.provider == "ollama")
    assert local.price.input_usd_per_mtok == 0.0
    with pytest.raises(ConfigError, match="suffice demo"):
        discover({}, {})


def test_an_unknown_price_is_a_warning_not_a_number() -> None:
    data = {
        "providers": {"x": {"base_url": "http://127.0.0.1:1/v1"}},
        "routes": {"auto": {"models": ["x/y"]}},
    }
    resolved = resolve(parse_settings(data), {})
    assert resolved.models[0].price.input_usd_per_mtok is None
    assert any("unknown" in w for w in resolved.warnings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_an_open_host_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="SUFFICE_API_KEYS"):
        check_bind(host, (), "SUFFICE_API_KEYS")
    check_bind(host, ("k",), "SUFFICE_API_KEYS")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_loopback_needs_no_key(host: str) -> None:
    check_bind(host, (), "SUFFICE_API_KEYS")
