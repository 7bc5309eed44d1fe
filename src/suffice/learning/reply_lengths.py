"""How many tokens each model's replies have, learned from what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.policies.priors import output_tokens
from suffice.store.records import FeedbackEvent
from suffice.types import Model

_PRIOR_TOKENS = float(output_tokens(0.5, None))  # of a reply, before there are any
_PRIOR_REPLIES = 20.0  # what that counts for
_FORGET = 0.998  # weight of a reply after each further one of the model
_MAX_TOKENS = 1e6

FloatArray = NDArray[np.float64]


class ReplyLengths:
    """A decayed mean of output tokens per model.

    Attributes:
        totals: By model: weight, and weighted sum of tokens.
    """

    def __init__(self, totals: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.totals = dict(totals or {})

    def update(self, event: FeedbackEvent, model: Model, prompt_tokens: float) -> None:
        """Learn from the cost of a reply. A cost that includes retries is skipped.

        Args:
            event: A label of the decision.
            model: The model that answered, with its price.
            prompt_tokens: Of the query.
        """
        usd_in, usd_out = model.price.input_usd_per_mtok, model.price.output_usd_per_mtok
        if event.cost_usd is None or usd_in is None or not usd_out:
            return
        if event.scored_model != event.model or event.status >= 400:
            return
        tokens = (event.cost_usd * 1e6 - prompt_tokens * usd_in) / usd_out
        if not 0.0 < tokens < _MAX_TOKENS:
            return
        weight, total = self.totals.get(model.name, (0.0, 0.0))
        self.totals[model.name] = (weight * _FORGET + 1.0, total * _FORGET + tokens)

    def means(self, names: Sequence[str]) -> FloatArray:
        """(k,) mean tokens per reply; few replies are shrunk to the mean over all models."""
        pairs = np.array([self.totals.get(name, (0.0, 0.0)) for name in names])
        weight, total = pairs[:, 0], pairs[:, 1]
        prior = _PRIOR_REPLIES * _PRIOR_TOKENS
        overall = float((total.sum() + prior) / (weight.sum() + _PRIOR_REPLIES))
        return np.asarray((total + _PRIOR_REPLIES * overall) / (weight + _PRIOR_REPLIES))
