"""Mistakes that users of this and of other gateways made: each is understood or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from suffice.config import ResolvedConfig, load_settings, parse_settings, resolve
from suffice.errors import ConfigError

PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}
TOML = """
[providers.p]
base_url = "http://127.0.0.1:9/v1"
[models."p/a"]
input_usd_per_mtok = 1
output_usd_per_mtok = 1
[routes.auto]
models = ["p/a"]
"""


def resolved(
    provider: dict[str, Any] | None = None, env: dict[str, str] | None = None, **tables: Any
) -> ResolvedConfig:
    data = {
        "routes": {"auto": {"models": ["p/a"]}},
        **tables,
        "providers": {
            "p": {"base_url": "http://127.0.0.1:9/v1", **(provider or {})},
            **tables.get("providers", {}),
        },
        "models": {"p/a": PRICES, **tables.get("models", {})},
    }
    return resolve(parse_settings(data), env or {})


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["sk-secret\n", "\tsk-secret ", "sk-secret\r\n"])
def test_white_space_around_a_key_is_stripped(key: str) -> None:
    result = resolved({"api_key_env": "P_KEY"}, {"P_KEY": key})
    assert result.providers["p"].api_key == "sk-secret"


@pytest.mark.parametrize("key", ["sk-se\ncret", "sk-se\x00cret", "sk-sécret", "sk-secret\u200b"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match="P_KEY") as caught:
        resolved({"api_key_env": "P_KEY"}, {"P_KEY": key})
    assert "sk-s" not in str(caught.value)
    assert caught.value.field == "providers.p.api_key_env"


def test_a_key_of_white_space_is_a_missing_key() -> None:
    with pytest.raises(ConfigError, match="Set P_KEY"):
        resolved({"api_key_env": "P_KEY"}, {"P_KEY": "\n"})


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abc123",
        "gsk_AbCdEf0123456789AbCdEf",
        "AIzaSyA0123456789abcdefghijk",
        "0123abcd4567efab8901cdef",
        "c0ffee0123abcd4567efab89",
        "my secret",
    ],
)
@pytest.mark.parametrize("table", ["providers", "server"])
def test_a_key_in_place_of_a_variables_name_is_refused_without_showing_it(
    table: str, key: str
) -> None:
    data: dict[str, Any] = {"routes": {"auto": {"models": ["openai/gpt-5"]}}}
    if table == "providers":
        data["providers"] = {"openai": {"api_key_env": key}}
    else:
        data["server"] = {"api_keys_env": key}
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        parse_settings(data)
    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "openai_key_2", "KEY1", "_k", "GSK_TEAM_KEY_2"])
def test_names_of_variables_are_accepted(name: str) -> None:
    assert resolved({"api_key_env": name}, {name: "k"}).providers["p"].api_key == "k"


def test_a_named_variable_of_client_keys_that_is_not_set_is_a_warning() -> None:
    server = {"api_keys_env": "MY_KEYS"}
    (warning,) = resolved(server=server).warnings
    assert warning.startswith("server.api_keys_env: the environment variable MY_KEYS holds no key")
    keyed = resolved(env={"MY_KEYS": "a, b"}, server=server)
    assert (keyed.api_keys, keyed.warnings) == (("a", "b"), ())
    assert resolved().warnings == ()


def test_a_header_with_a_line_break_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="x-team") as caught:
        resolved({"headers": {"x-team": "secret\nx-other: 1"}})
    assert "secret" not in str(caught.value)


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def test_a_misspelt_table_of_a_model_is_a_warning_with_the_nearest_name() -> None:
    misspelt = {"openai/gpt-5-nanno": PRICES}
    routes = {"auto": {"models": ["p/a", "openai/gpt-5-nano"]}}
    result = resolved(env={"OPENAI_API_KEY": "k"}, models=misspelt, routes=routes)
    (warning,) = result.warnings
    assert warning.startswith("models.openai/gpt-5-nanno: no route uses this model")
    assert "Did you mean 'openai/gpt-5-nano'?" in warning


def test_a_table_of_a_model_that_the_catalog_knows_gives_no_warning() -> None:
    result = resolved(env={"OPENAI_API_KEY": "k"}, models={"openai/gpt-5-nano": {"quality": 0.7}})
    assert result.warnings == ()


def test_a_misspelt_model_of_a_route_is_a_warning_with_the_nearest_name() -> None:
    result = resolved(
        env={"OPENAI_API_KEY": "k"}, routes={"auto": {"models": ["p/a", "openai/gpt-5-nanno"]}}
    )
    assert any(
        "models.openai/gpt-5-nanno" in w and "Did you mean 'openai/gpt-5-nano'?" in w
        for w in result.warnings
    )


def test_a_misspelt_table_of_a_provider_is_a_warning_with_the_nearest_name() -> None:
    result = resolved(
        env={"OPENAI_API_KEY": "k"},
        providers={"opneai": {"base_url": "http://127.0.0.1:9/v1"}},
        routes={"auto": {"models": ["openai/gpt-5-nano"]}},
    )
    assert any(
        w.startswith("providers.opneai: no model uses this provider") and "'openai'" in w
        for w in result.warnings
    )


# ── base URLs ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/chat/completions/", "/messages", "/responses", "/embeddings"]
)
def test_a_base_url_with_the_path_of_an_endpoint_is_trimmed_with_a_warning(path: str) -> None:
    result = resolved({"base_url": f"http://127.0.0.1:9/v1{path}"})
    assert result.providers["p"].base_url == "http://127.0.0.1:9/v1"
    (warning,) = result.warnings
    assert warning.startswith("providers.p.base_url:")
    assert "http://127.0.0.1:9/v1." in warning


def test_a_base_url_with_a_line_break_is_refused() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        resolved({"base_url": "http://127.0.0.1:9/\nv1"})


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "suffice.toml"
    file.write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert load_settings(file, {}).routes["auto"].models == ("p/a",)


@pytest.mark.parametrize("url", ["suffice.db", "data/s.db", "s.db?timeout=5"])
def test_a_relative_database_is_next_to_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "suffice.toml"
    file.write_text(f'{TOML}[store]\nurl = "sqlite:///{url}"\n')
    expected = f"sqlite:///{(tmp_path / 'etc').as_posix()}/{url}"
    monkeypatch.chdir(tmp_path)
    assert load_settings(file, {}).store.url == expected
    assert load_settings("etc/suffice.toml", {}).store.url == expected
    monkeypatch.chdir(tmp_path / "etc")
    for path in (None, "suffice.toml"):
        assert load_settings(path, {}).store.url == f"sqlite:///{url}", "the same file"


@pytest.mark.parametrize(
    "url", ["sqlite:////var/lib/s.db", "sqlite:///:memory:", "sqlite://", "postgresql://h/db"]
)
def test_other_databases_are_used_as_they_are_written(tmp_path: Path, url: str) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(f'{TOML}[store]\nurl = "{url}"\n')
    assert load_settings(file, {}).store.url == url


def test_a_database_that_is_in_the_current_directory_already_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "suffice.toml"
    file.write_text(TOML)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suffice.db").touch()
    settings = load_settings(file, {})
    assert settings.store.url == "sqlite:///suffice.db"
    (warning,) = resolve(settings, {}).warnings
    assert "move the database to" in warning
