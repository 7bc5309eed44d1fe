"""Old names of keys work for one release, with a warning that names the new one."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.config import ResolvedConfig, parse_settings, resolve
from suffice.errors import ConfigError

JUDGE = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}


def resolved(**route: Any) -> ResolvedConfig:
    data = {
        "providers": {n: {"base_url": "http://127.0.0.1:9/v1"} for n in "pj"},
        "models": {"p/a": JUDGE, "j/judge": JUDGE},
        "routes": {"auto": {"models": ["p/a"], **route}},
    }
    return resolve(parse_settings(data), {})


def test_old_keys_mean_what_the_new_ones_mean() -> None:
    old = resolved(
        explore=0.01,
        implicit={"schema": 0.5},
        audit={
            "share": 0.02, "judge": "j/judge", "false_alarm": 0.1, "trust_feedback": ["test"],
        },
        retries={"base_s": 0.5},
    )  # fmt: skip
    new = resolved(
        explore_share=0.01,
        implicit_feedback={"schema": 0.5},
        audit={
            "sample_rate": 0.02, "judge": "j/judge", "false_alarm_rate": 0.1,
            "trusted_sources": ["test"],
        },
        retries={"backoff_base_s": 0.5},
    )  # fmt: skip
    assert old.routes == new.routes
    assert new.warnings == ()
    assert len(old.warnings) == 6
    assert "routes.auto.explore is deprecated" in old.warnings[0]
    assert "write explore_share" in old.warnings[0]
    assert any("routes.auto.retries.base_s is deprecated" in w for w in old.warnings)


def test_an_old_and_a_new_name_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="old name of 'explore_share'") as caught:
        resolved(explore=0.01, explore_share=0.02)
    assert caught.value.field == "routes.auto.explore"


def test_a_wrong_value_under_an_old_name_names_the_new_one() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(explore=0.5)
    assert caught.value.field == "routes.auto.explore_share"


def test_a_route_may_have_the_name_of_an_old_key() -> None:
    data = {
        "providers": {"p": {"base_url": "http://127.0.0.1:9/v1"}},
        "models": {"p/a": JUDGE},
        "routes": {"explore": {"models": ["p/a"]}, "audit": {"models": ["p/a"]}},
    }
    result = resolve(parse_settings(data), {})
    assert set(result.routes) == {"explore", "audit"}
    assert result.warnings == ()


def test_without_an_objective_a_route_keeps_95_percent_of_the_quality() -> None:
    objective = resolved().routes["auto"].objective
    assert (objective.kind, objective.value) == ("keep_quality", 0.95)
