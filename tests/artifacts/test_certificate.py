"""Certificates: what they accept and satisfy, when they are stale, and their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.errors import ArtifactError
from suffice.policies import priors
from suffice.types import Objective


def made(**changed: Any) -> Certificate:
    base: dict[str, Any] = {
        "policy": "router.npz", "policy_version": "linear-0011", "score": "gap",
        "reference": "p/strong", "cheap": ("p/weak", "p/middle"), "cost_usd": (0.001, 0.004),
        "exchange_rate": 50.0, "threshold": 0.25, "max_loss": 0.05, "confidence": 0.9,
        "method": "clopper-pearson", "kind": "binary", "unit": "queries", "n": 500, "losses": 16.0,
        "upper_bound": 0.0449, "cheap_share": 0.26,
        "prices": {"p/strong": (2.5, 10.0), "p/weak": (0.15, 0.6), "p/middle": None},
        "made": "2026-01-31", "table": "traffic",
    }  # fmt: skip
    return Certificate(**{**base, **changed})


def loss_objective(value: float, confidence: float | None = None) -> Objective:
    return Objective(kind="max_quality_loss", value=value, confidence=confidence)


def test_a_saved_certificate_is_loaded_unchanged(tmp_path: Path) -> None:
    path = certificates.default_path(tmp_path / "router.npz")
    assert path.name == "router.npz.certificate.json"
    saved = certificates.save(made(), path)
    assert certificates.load(path) == saved
    assert len(saved.digest) == 64
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


@pytest.mark.parametrize(
    ("field", "value"),
    [("threshold", 0.9), ("max_loss", 0.2), ("cheap", ["p/other", "p/middle"]), ("n", 5000),
     ("policy_version", "linear-ffff"), ("prices", {}), ("extra", 1), ("digest", "0" * 64)],
)  # fmt: skip
def test_a_changed_file_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "c.json"
    certificates.save(made(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=r"c\.json.*digest.*suffice calibrate"):
        certificates.load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a certificate"),
        (b"[]", "schema None"),
        (b'{"schema": "certificate-2"}', "schema 'certificate-2'"),
        (b'{"schema": "certificate-1"}', "missing required field"),
        (b"\xff\xfe", "not a certificate"),
        (b" " * 1_000_001, "too large"),
    ],
)
def test_another_file_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason) as error:
        certificates.load(path)
    assert str(path) in str(error.value) and "suffice calibrate" in str(error.value)


def test_a_missing_file_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        certificates.load(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match="cannot be written"):
        certificates.save(made(), tmp_path / "no" / "c.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"upper_bound": 0.06},
        {"threshold": float("inf")},
        {"n": 0},
        {"losses": 501.0},
        {"cheap": ()},
        {"cheap": ("p/strong",), "cost_usd": (1.0,)},
        {"cost_usd": (1.0,)},
        {"score": "rank"},
        {"exchange_rate": -1.0},
    ],
)
def test_contradicting_values_are_never_saved(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cheap" if "score" in changed else next(iter(changed))):
        certificates.save(made(**changed), tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_satisfies_objectives_that_are_not_stricter() -> None:
    c = made()
    assert (
        c.satisfies(loss_objective(0.05, 0.9))
        and c.satisfies(loss_objective(0.1, 0.8))
        and c.satisfies(loss_objective(0.05))
    )
    assert "0.02 is asked for" in (c.unmet_reason(loss_objective(0.02, 0.9)) or "")
    assert "0.95 is asked for" in (c.unmet_reason(loss_objective(0.05, 0.95)) or "")
    assert "keep_quality" in (c.unmet_reason(Objective(kind="keep_quality", value=0.9)) or "")


def test_a_certificate_is_stale_when_policy_model_or_price_changes() -> None:
    c = made()
    now: dict[str, tuple[float, float] | None] = dict(c.prices)
    assert c.stale_reason("linear-0011", now) is None
    assert "linear-0012 serves" in (c.stale_reason("linear-0012", now) or "")
    gone = {k: v for k, v in now.items() if k != "p/weak"}
    assert "p/weak, which is not there" in (c.stale_reason("linear-0011", gone) or "")
    costlier = {**now, "p/strong": (3.0, 10.0)}
    assert "$2.5/$10 per million tokens when it was made, and costs $3/$10 now" in (
        c.stale_reason("linear-0011", costlier) or ""
    )
    unknown = {**now, "p/strong": None, "p/middle": (1.0, 1.0)}
    assert c.stale_reason("linear-0011", unknown) is None, "unknown is not changed"


def test_a_certificate_finds_its_models_among_served_names() -> None:
    c = made(reference="strong", cheap=("weak",), cost_usd=(0.0,), prices={})
    assert c.find_columns(("q/weak", "q/strong")) == (1, 0)
    assert c.find_columns(("q/strong",)) is None
    assert c.find_columns(("q/strong", "a/weak", "b/weak")) is None, "two models match"


@given(st.lists(st.floats(-0.5, 1.5), min_size=3, max_size=3), st.floats(0, 1000))
def test_the_alternative_is_the_best_after_its_cost(quality: list[float], rate: float) -> None:
    c = made(exchange_rate=rate)
    index, gap = c.choose_alternative(quality)
    utility = [quality[1] - rate * 0.001, quality[2] - rate * 0.004]
    assert utility[index] == max(utility)
    assert gap == quality[0] - quality[1 + index]
    assert c.accepts(gap) is (gap <= 0.25)


def test_versions_of_priors_differ_by_name_and_features() -> None:
    one = priors.prior_version("default", "3")
    assert one == priors.prior_version("default", "3")
    assert len({one, priors.prior_version("length", "3"),
                priors.prior_version("default", "4")}) == 3  # fmt: skip


def test_a_certificate_is_frozen() -> None:
    with pytest.raises(AttributeError):
        made().threshold = 1.0  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(made()), type=Certificate) == made()
