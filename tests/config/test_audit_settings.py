"""What may be configured about audits."""

from __future__ import annotations

from typing import Any

import pytest

from suffice import config
from suffice.errors import ConfigError


@pytest.mark.parametrize(
    ("audit_table", "field", "message"),
    [
        ({"sample_rate": 0.06, "judge": "j/judge"}, "sample_rate", "0.05"),
        ({"sample_rate": 0.01}, "judge", "judge"),
        ({"sample_rat": 0.01}, "sample_rat", "sample_rate"),
        ({"sample_rate": 0.01, "judge": "j/judge", "max_usd_per_day": 0}, "max_usd_per_day", "0"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate", "1"),
        ({"trusted_sources": ["implicit:schema"]}, "trusted_sources", "the gateway's own"),
        ({"trusted_sources": ["audit"]}, "trusted_sources", "the gateway's own"),
        ({"sample_rate": 0.01, "judge": "j/unpriced"}, "judge", "price of j/unpriced is unknown"),
        ({"sample_rate": 0.01, "judge": "judge"}, "models", "provider/model"),
    ],
    ids=str,
)
def test_a_wrong_setting_names_the_field(
    audit_table: dict[str, Any], field: str, message: str
) -> None:
    plain = {
        "providers": {n: {"dialect": "openai", "base_url": "http://127.0.0.1:9"} for n in "pj"},
        "models": {"j/judge": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}},
        "routes": {"safe": {"models": ["p/weak", "p/strong"], "audit": audit_table}},
    }
    with pytest.raises(ConfigError, match=message) as error:
        config.resolve(config.parse_settings(plain), {})
    assert field in str(error.value.field)


def test_a_judge_of_the_same_family_or_without_a_key_is_a_warning() -> None:
    plain: dict[str, Any] = {
        "providers": {
            "p": {"dialect": "openai", "base_url": "http://127.0.0.1:9"},
            "j": {"dialect": "openai", "base_url": "http://127.0.0.1:9", "api_key_env": "K"},
        },
        "models": {"j/weak-large": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}},
        "routes": {
            "safe": {
                "models": ["p/weak", "p/strong"],
                "audit": {"sample_rate": 0.01, "judge": "j/weak-large"},
            }
        },
    }
    resolved = config.resolve(config.parse_settings(plain), {"K": "k"})
    assert any("same family as p/weak" in w for w in resolved.warnings)
    resolved = config.resolve(config.parse_settings(plain), {})
    assert any("nothing is audited" in w for w in resolved.warnings)
    assert resolved.routes["safe"].audit is not None
    assert resolved.routes["safe"].audit.judge is None
