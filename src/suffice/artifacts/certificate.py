"""A certified threshold as a record: below which score a cheaper model may answer, and for what.

The lab makes it (`suffice calibrate`), serving reads it. It holds for the score of one version of one
policy, for the models it names, at the prices they had, and while traffic resembles the queries it
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
PRICE_TOLERANCE = 0.01  # a smaller relative change of a price counts as rounding
DEFAULT_CONFIDENCE = 0.9
_REMEDY = "Calibrate again: suffice calibrate."

Prices = Mapping[str, tuple[float, float] | None]


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A bound on the loss of quality when a cheaper model answers.

    The cheap model answers if the score is at most `threshold`. Then the gross loss of quality over
    all traffic, E[max(0, score of reference - score served)], is at most `max_loss` with probability
    `confidence`.

    Attributes:
        policy: its name or file.
        policy_version: the version of its score.
        score: "gap" = predicted quality of the reference less that of the alternative, which is the
            argmax over `cheap` of quality - exchange_rate * cost_usd, with the mean costs stored
            here, so that the calibrated rule is the rule that serves. "rank" = the policy's own
            difficulty score, for exactly one cheap model.
        reference: the model that the others are measured against.
        cheap: the alternatives.
        cost_usd: their mean cost.
        exchange_rate: quality per USD.
        threshold: the largest score that the cheap model may answer.
        max_loss: the bound.
        confidence: its probability.
        method: of the bound.
        kind: of the losses.
        unit: what was drawn independently.
        n: how many units.
        losses: their sum.
        upper_bound: of the loss at the threshold.
        cheap_share: estimated share of traffic that the cheap model answers.
        prices: model -> USD per million input and output tokens when it was made; None = unknown.
        made: ISO date.
        table: that it was made on.
        schema: of the file.
        digest: SHA-256 of all other fields.
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
        """Choose the cheap model that may answer.

        Args:
            quality: predicted, in the order (reference, *cheap).

        Returns:
            Its index in `cheap`, and its predicted gap to the reference.
        """
        rate = self.exchange_rate
        best, best_utility = 0, float("-inf")
        for i, cost in enumerate(self.cost_usd):
            utility = quality[i + 1] - rate * cost
            if utility > best_utility:
                best, best_utility = i, utility
        return best, quality[0] - quality[best + 1]

    def accepts(self, score: float) -> bool:
        """Whether the alternative may answer a query of this score."""
        return score <= self.threshold

    def satisfies(self, objective: Objective) -> bool:
        """Whether what is certified is at least what the objective asks for."""
        return self.unmet_reason(objective) is None

    def unmet_reason(self, objective: Objective) -> str | None:
        """Why the certificate does not satisfy the objective, in words; None if it does."""
        if objective.kind != "max_quality_loss":
            return f"it certifies max_quality_loss, not {objective.kind}"
        max_loss = objective.value or 0.0
        confidence = DEFAULT_CONFIDENCE if objective.confidence is None else objective.confidence
        if self.max_loss > max_loss + 1e-12:
            return f"it certifies a loss of at most {self.max_loss:g}; {max_loss:g} is asked for"
        if self.confidence < confidence - 1e-12:
            return f"it holds with confidence {self.confidence:g}; {confidence:g} is asked for"
        return None

    def stale_reason(self, policy_version: str, prices: Prices) -> str | None:
        """Check that nothing has changed since the certificate was made.

        A changed price counts, since a model that is sold at another price is often another model.

        Args:
            policy_version: of the score that serves.
            prices: model as the certificate names it -> USD per million input and output tokens now,
                None = unknown. Models that are gone are left out.

        Returns:
            Why the certificate does not hold any more, in words; None if it does.
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
        """The indices in `names` of (reference, *cheap); None if one of them is missing."""
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
    """Complete the certificate with its digest.

    Returns:
        The certificate as it is stored.

    Raises:
        ValueError: its values contradict each other.
    """
    _validate(certificate)
    return msgspec.structs.replace(certificate, digest=_digest(certificate))


def save(certificate: Certificate, path: str | Path) -> Certificate:
    """Write the file completely or not at all.

    Returns:
        The certificate with its digest.

    Raises:
        ArtifactError: the file cannot be written.
    """
    complete = with_digest(certificate)
    text = msgspec.json.format(msgspec.json.encode(complete), indent=2) + b"\n"
    write_atomically(text, Path(path))
    return complete


def load(path: str | Path) -> Certificate:
    """Load the certificate in a file.

    Returns:
        The certificate.

    Raises:
        ArtifactError: there is no file, it was changed after it was made, or has a schema that this
            version cannot read.
    """
    file = Path(path)
    plain = _read(file)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or schema != SCHEMA:
        raise ArtifactError(
            f"{file}: has schema {schema!r}; this version reads {SCHEMA!r}.", remedy=_REMEDY
        )
    try:
        certificate = msgspec.convert(plain, Certificate)
        changed = set(plain) != set(Certificate.__struct_fields__)
        if changed or _digest(certificate) != certificate.digest:
            raise ArtifactError(
                f"{file}: its content does not match its digest {certificate.digest[:12]!r}: it was "
                "changed after calibration.",
                remedy=_REMEDY,
            )
        _validate(certificate)
    except (msgspec.ValidationError, ValueError) as error:
        raise ArtifactError(f"{file}: {error}.", remedy=_REMEDY) from None
    return certificate


def _read(file: Path) -> object:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{file}: is too large to be a certificate.", remedy=_REMEDY)
        return msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read: {error.strerror}.", remedy=_REMEDY) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: is not a certificate: {error}.", remedy=_REMEDY) from None


def _digest(certificate: Certificate) -> str:
    bare = msgspec.structs.replace(certificate, digest="")
    return sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def _validate(c: Certificate) -> None:
    for name, value, valid in (
        ("threshold", c.threshold, isfinite(c.threshold)),
        ("max_loss", c.max_loss, 0.0 < c.max_loss < 1.0),
        ("confidence", c.confidence, 0.0 < c.confidence < 1.0),
        ("upper_bound", c.upper_bound, 0.0 <= c.upper_bound <= c.max_loss + 1e-6),
        ("cheap_share", c.cheap_share, 0.0 <= c.cheap_share <= 1.0),
        ("n", c.n, c.n > 0),
        ("losses", c.losses, 0.0 <= c.losses <= c.n),
        ("cheap", c.cheap, bool(c.cheap) and c.reference not in c.cheap),
        ("cheap", c.cheap, c.score == "gap" or len(c.cheap) == 1),
        (
            "cost_usd",
            c.cost_usd,
            len(c.cost_usd) == len(c.cheap) and all(map(isfinite, c.cost_usd)),
        ),
        ("exchange_rate", c.exchange_rate, isfinite(c.exchange_rate) and c.exchange_rate >= 0.0),
    ):
        if not valid:
            raise ValueError(f"invalid value for `{name}`: {value!r}")
