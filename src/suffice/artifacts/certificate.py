"""A certified threshold as a record: below which score a cheap model may serve, and what for.

Made by the lab (`suffice calibrate`), read by serving. It holds for the score of one version of one
policy, for the models it names, at the prices they had, and while traffic stays like the queries it
was made on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec

from suffice.artifacts.npz import write_atomically
from suffice.errors import ArtifactError
from suffice.names import match_model
from suffice.types import Objective

SCHEMA = "certificate-1"
MAX_BYTES = 1_000_000
PRICE_TOLERANCE = 0.01  # relative change of a price that is taken for rounding
_AGAIN = "Calibrate again: suffice calibrate."

Prices = Mapping[str, tuple[float, float] | None]


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """Cheap serves where the score is at most `threshold`; then the gross loss of quality over all
    traffic, E[max(0, score of reference - score served)], is at most `max_loss` with probability
    `confidence`.

    score: "gap" = predicted quality of the reference less that of the alternative, which is the
    argmax over `cheap` of quality - exchange_rate * cost_usd, with the mean costs kept here, so
    that the rule that was calibrated is the rule that serves; "rank" = the policy's own difficulty
    score, for exactly one cheap model. unit: what was drawn independently. n of them lost `losses`
    in sum; upper_bound: of the loss at the threshold; cheap_share: estimated share of traffic that
    cheap serves. prices: model -> USD per million tokens in and out when it was made, None =
    unknown. made: ISO date. digest: SHA-256 over all the rest.
    """

    policy: str
    policy_version: str
    score: Literal["gap", "rank"]
    reference: str
    cheap: tuple[str, ...]
    cost_usd: tuple[float, ...]
    exchange_rate: float
    threshold: float
    max_loss: float
    confidence: float
    method: Literal["clopper-pearson", "betting"]
    kind: Literal["binary", "graded"]
    unit: Literal["queries", "groups"]
    n: int
    losses: float
    upper_bound: float
    cheap_share: float
    prices: Prices
    made: str
    table: str
    schema: str = SCHEMA
    digest: str = ""

    def choose_alternative(self, quality: Sequence[float]) -> tuple[int, float]:
        """(place in `cheap` of the alternative, predicted gap) for predicted qualities in the order
        (reference, *cheap)."""
        rate = self.exchange_rate
        best, most = 0, float("-inf")
        for i, cost in enumerate(self.cost_usd):
            merit = quality[i + 1] - rate * cost
            if merit > most:
                best, most = i, merit
        return best, quality[0] - quality[best + 1]

    def accepts(self, score: float) -> bool:
        """Whether the alternative may serve a query of this score."""
        return score <= self.threshold

    def satisfies(self, objective: Objective) -> bool:
        """Whether what is certified is at least what the objective asks for."""
        return self.unmet_reason(objective) is None

    def unmet_reason(self, objective: Objective) -> str | None:
        """Why it does not cover the objective, in words; None where it does."""
        if objective.kind != "max_quality_loss":
            return f"it certifies max_quality_loss, not {objective.kind}"
        asked = objective.value or 0.0
        sure = 0.9 if objective.confidence is None else objective.confidence
        if self.max_loss > asked + 1e-12:
            return f"it certifies a loss of at most {self.max_loss:g}; {asked:g} is asked for"
        if self.confidence < sure - 1e-12:
            return f"it holds with confidence {self.confidence:g}; {sure:g} is asked for"
        return None

    def stale_reason(self, policy_version: str, prices: Prices) -> str | None:
        """Why it no longer holds, in words; None where nothing has changed.

        prices: model as the certificate names it -> USD per million tokens in and out now, None =
        unknown; a model that is not there is gone. A changed price counts, since a model that is
        sold at another price is often another model.
        """
        if policy_version != self.policy_version:
            return f"it was made for {self.policy_version}, and {policy_version} serves"
        for model in (self.reference, *self.cheap):
            if model not in prices:
                return f"it was made with {model}, which is not there"
            then, now = self.prices.get(model), prices[model]
            if then is None or now is None:
                continue
            if any(
                abs(a - b) > PRICE_TOLERANCE * max(a, b) for a, b in zip(then, now, strict=True)
            ):
                return (
                    f"{model} cost ${then[0]:g}/${then[1]:g} per million tokens when it was made, "
                    f"and costs ${now[0]:g}/${now[1]:g} now"
                )
        return None

    def find_columns(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """The indices in `names` of (reference, *cheap), or None if one of them is missing.

        names: of served models or of an artifact. Without all of them only the reference is safe.
        """
        columns = [match_model(model, names) for model in (self.reference, *self.cheap)]
        present = tuple(column for column in columns if column is not None)
        return present if len(set(present)) == len(columns) else None

    def find_reference(self, names: Sequence[str]) -> int | None:
        """The index in `names` of the reference model, or None if it is missing."""
        return match_model(self.reference, names)


def default_path(policy: str | Path) -> Path:
    """The path of the certificate of an artifact, or of a named policy in the working directory."""
    return Path(f"{policy}.certificate.json")


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def with_digest(certificate: Certificate) -> Certificate:
    """The certificate with its digest. Raises ValueError where its figures contradict each other."""
    _check(certificate)
    return msgspec.structs.replace(certificate, digest=_digest(certificate))


def save(certificate: Certificate, path: str | Path) -> Certificate:
    """Write the file, whole or not at all. Returns the certificate with its digest. Raises
    ArtifactError where it cannot be written."""
    where = Path(path)
    whole = with_digest(certificate)
    text = msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"
    write_atomically(text, where)
    return whole


def load(path: str | Path) -> Certificate:
    """The certificate in a file. Raises ArtifactError: none there, changed since it was made, or of
    a schema that this version cannot read."""
    where = Path(path)
    try:
        if where.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{where}: is larger than any certificate.", remedy=_AGAIN)
        raw = where.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{where}: it cannot be read: {error.strerror}.", remedy=_AGAIN
        ) from None
    try:
        plain = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where}: is no certificate: {error}.", remedy=_AGAIN) from None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            f"{where}: has schema {schema!r}; this version reads {SCHEMA!r}.", remedy=_AGAIN
        )
    try:
        found = msgspec.convert(plain, Certificate)
        changed = set(plain) != set(Certificate.__struct_fields__)
        if changed or _digest(found) != found.digest:
            raise ArtifactError(
                f"{where}: its content does not match its digest {found.digest[:12]!r}: it was "
                "changed after calibration.",
                remedy=_AGAIN,
            )
        _check(found)
    except (msgspec.ValidationError, ValueError) as error:
        raise ArtifactError(f"{where}: {error}.", remedy=_AGAIN) from None
    return found


def _digest(certificate: Certificate) -> str:
    bare = msgspec.structs.replace(certificate, digest="")
    return sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def _check(c: Certificate) -> None:
    for name, ok in (
        ("threshold", isfinite(c.threshold)),
        ("max_loss", 0.0 < c.max_loss < 1.0),
        ("confidence", 0.0 < c.confidence < 1.0),
        ("upper_bound", 0.0 <= c.upper_bound <= c.max_loss + 1e-6),
        ("cheap_share", 0.0 <= c.cheap_share <= 1.0),
        ("n", c.n > 0),
        ("losses", 0.0 <= c.losses <= c.n),
        ("cheap", bool(c.cheap) and c.reference not in c.cheap),
        ("cheap", c.score == "gap" or len(c.cheap) == 1),
        ("cost_usd", len(c.cost_usd) == len(c.cheap) and all(map(isfinite, c.cost_usd))),
        ("exchange_rate", isfinite(c.exchange_rate) and c.exchange_rate >= 0.0),
    ):
        if not ok:
            raise ValueError(f"{name}: {getattr(c, name)!r} makes no sense in a certificate")
