"""What calls of each model cost for one query: expected, at most, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan

from suffice.budgets.cost_bounds import CostBound, RequestSize, cost_bound, format_usd
from suffice.policies.priors import cost_usd, output_tokens
from suffice.types import Decision, Features, Model, Prediction

# An answer may be this many times as long as predicted before a limit per query cuts it.
_LENGTH_MARGIN = 2.0


class QueryCosts:
    """The costs of one query by model, under the limits that apply to it.

    Args:
        size: The size of the request.
        features: The features of the query.
        model_of: Looks a model up by its name.
        usd_per_query: The limit per query.
        usd_per_day: The daily budget.
        remaining_usd: What is left of the daily budget.
    """

    def __init__(
        self,
        size: RequestSize,
        features: Features,
        model_of: Callable[[str], Model],
        *,
        usd_per_query: float | None,
        usd_per_day: float | None,
        remaining_usd: float = inf,
    ) -> None:
        self._size = size
        self._input_tokens = features.input_tokens
        self._model_of = model_of
        self._usd_per_query = usd_per_query
        self._usd_per_day = usd_per_day
        self._remaining_usd = remaining_usd
        self._bounds: dict[str, CostBound] = {}
        self._expected: dict[str, float] = {}
        self._output_tokens = 0  # expected, for models whose cost no policy predicts

    def set_predictions(self, decision: Decision) -> None:
        """Use the costs that the policy predicted."""
        difficulty = 0.5 if decision.difficulty is None else decision.difficulty
        self._output_tokens = output_tokens(difficulty, None)
        self._expected = {
            p.model: p.cost_usd for p in decision.predictions if p.cost_usd is not None
        }

    def expected_usd(self, model: str) -> float:
        """The expected cost of a call; NaN if unknown. Fallbacks are estimated from their price."""
        usd = self._expected.get(model)
        if usd is None:
            estimate = cost_usd(self._model_of(model), self._input_tokens, self._output_tokens)
            usd = self._expected[model] = nan if estimate is None else estimate
        return usd

    def bound(self, model: str) -> CostBound:
        """What a call of this model may cost, and with which output limit it must be sent."""
        bound = self._bounds.get(model)
        if bound is None:
            bound = self._bounds[model] = cost_bound(
                self._model_of(model),
                self._size,
                usd_per_query=self._usd_per_query,
                usd_per_day=self._usd_per_day,
                remaining_usd=self._remaining_usd,
            )
        return bound

    def max_usd(self, model: str) -> float:
        """The most that a call of this model can cost."""
        return self.bound(model).max_cost_usd

    def max_costs(self, predictions: Sequence[Prediction], failed: frozenset[str]) -> list[float]:
        """(k,) the most that each candidate can cost; NaN for those that must not be called first.

        Args:
            predictions: Of the candidates.
            failed: Models that failed in this conversation; they come last if another is left.

        Returns:
            USD, in the order of the predictions.
        """
        bounds = [self.bound(p.model) for p in predictions]
        costs = [nan if b.refusal else b.max_cost_usd for b in bounds]
        usable = [
            isfinite(cost) and p.model not in failed
            for p, cost in zip(predictions, costs, strict=True)
        ]
        if not any(usable):
            return costs
        return [cost if ok else nan for cost, ok in zip(costs, usable, strict=True)]

    def refusal(self, model: str) -> str | None:
        """Why this model must not be called at all."""
        bound = self.bound(model)
        limit = self._usd_per_query
        if bound.refusal is not None or limit is None or self._size.output_limit is not None:
            return bound.refusal
        # Only our own limit bounds the answer. It should seldom cut one.
        input_price = (self._model_of(model).price.input_usd_per_mtok or 0.0) / 1e6
        answer_usd = max(0.0, self.expected_usd(model) - self._input_tokens * input_price)
        long_usd = (
            self._size.likely_input * input_price + _LENGTH_MARGIN * self._size.choices * answer_usd
        )
        if long_usd > limit:
            return (
                f"a long answer would cost {format_usd(long_usd)}, above {format_usd(limit)} "
                "per query"
            )
        return None

    def prediction(self, model: str) -> Prediction:
        """A prediction for a fallback, of which the policy predicts nothing."""
        usd = self.expected_usd(model)
        quality = self._model_of(model).quality
        return Prediction(model, quality, usd if isfinite(usd) else None, None, 1.0)
