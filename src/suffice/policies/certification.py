"""Serves `max_quality_loss` under a certificate, or the reference model without a valid one."""

from __future__ import annotations

from hashlib import blake2b

from suffice.artifacts.certificate import Certificate
from suffice.names import match_model
from suffice.policies.prepared_pool import PreparedPool, QueryPredictions, Ranking, T
from suffice.pool import Pool
from suffice.types import Objective

_MAX_CACHED = 256


class Certification:
    """A certificate in use, or none.

    Args:
        certificate: None = the route is not calibrated.
        alarm: why the certificate must not be used now; "" = it may be.
        score_version: the version of the policy's score, which the certificate must name.
    """

    def __init__(
        self, certificate: Certificate | None = None, alarm: str = "", score_version: str = ""
    ) -> None:
        self.certificate = certificate
        self.alarm = alarm
        self.score_version = score_version
        self._resolved: dict[tuple[Pool, Objective], tuple[int, ...] | str] = {}

    def version(self, uncertified: str) -> str:
        """The version of a policy with this certificate, from its version without one."""
        if self.certificate is None:
            return uncertified
        hash_input = f"{uncertified}/{self.certificate.digest}" + ("/alarm" if self.alarm else "")
        base = uncertified.rpartition("-")[0]
        return f"{base}-{blake2b(hash_input.encode(), digest_size=4).hexdigest()}"

    def resolve(self, pool: Pool, objective: Objective) -> tuple[int, ...] | str:
        """Find the certificate's models in a pool.

        Returns:
            The indices of (reference, *cheap), or why the certificate does not hold for this pool
            and objective.
        """
        key = (pool, objective)
        resolved = self._resolved.get(key)
        if resolved is None:
            if len(self._resolved) >= _MAX_CACHED:
                self._resolved.clear()
            resolved = self._resolved[key] = self._resolve(pool, objective)
        return resolved

    def _resolve(self, pool: Pool, objective: Objective) -> tuple[int, ...] | str:
        certificate = self.certificate
        if certificate is None:
            return "not calibrated"
        if self.alarm:
            return self.alarm
        models = (certificate.reference, *certificate.cheap)
        columns = certificate.find_columns(pool.names)
        if columns is None:
            missing = [m for m in models if match_model(m, pool.names) is None]
            return f"certified with {', '.join(missing)}, which is not available now"
        prices: dict[str, tuple[float, float] | None] = {}
        for name, column in zip(models, columns, strict=True):
            price = pool.models[column].price
            usd_in, usd_out = price.input_usd_per_mtok, price.output_usd_per_mtok
            prices[name] = None if usd_in is None or usd_out is None else (usd_in, usd_out)
        reason = certificate.unmet_reason(objective)
        reason = reason or certificate.stale_reason(self.score_version, prices)
        return columns if reason is None else f"the certificate does not hold: {reason}"

    def rank(self, pool: PreparedPool[T], predictions: QueryPredictions) -> Ranking:
        """Rank the certified alternative first if the score is at most the threshold.

        Marks the predictions as certified if the certificate holds.

        Returns:
            The ranking. Otherwise the reference model is first.
        """
        certificate = self.certificate
        columns = self.resolve(pool.pool, pool.objective)
        if isinstance(columns, str) or certificate is None:
            reference = None
            if certificate is not None:
                reference = certificate.find_reference(pool.pool.names)
            top = pool.reference if reference is None else reference
            reason = f"; {columns}, so the reference model serves"
        else:
            index, gap = certificate.choose_alternative([predictions.quality[i] for i in columns])
            score = gap if certificate.score == "gap" else predictions.score
            top = columns[index + 1] if certificate.accepts(score) else columns[0]
            predictions.basis = "certified"
            reason = f"; certified on {certificate.n} {certificate.unit} of {certificate.table}"
        quality = predictions.quality
        order = sorted(range(len(quality)), key=lambda i: (i != top, -quality[i], i))
        return Ranking(order, reason)
