"""A savings report in sentences: the result, and how each figure was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suffice.lab.report.formats import format_percent, format_time, format_usd

if TYPE_CHECKING:
    from suffice.lab.savings.counterfactual_cost import SingleModelCost
    from suffice.lab.savings.records import RouteReport, SavingsReport

METHOD = (
    "spent: what the calls cost by their tokens and the prices of the time, failed calls included; "
    "a request whose price or tokens are unknown is counted as unknown, never as zero",
    "a single model's cost: what the router predicted for it on each request when it decided, by "
    "predicted tokens, times paid / predicted of the model that answered, times how much longer its "
    "answers are than those of that model at equal difficulty as far as the traffic shows it; "
    "requests for which it was not a candidate are left out on both sides",
    "amounts in brackets: 95 % intervals of a bootstrap over sessions, recalibrated in each sample, "
    "with an allowance for answers whose length no traffic shows; about as many requests of similar "
    "traffic. The cost of a model that writes several times as much as others (a reasoning model) "
    "and gets only requests of one difficulty may still be outside",
    "quality kept: the mean score over what the reference alone would have scored, by a doubly "
    "robust off-policy estimate from explicit feedback and recorded propensities (SNIPS next to "
    "it); no estimate is stated below an effective sample size of 100 labels, below 20 sessions, "
    "or if fewer than 95 % of decisions could have gone to the reference",
    "mean scores of models are of the requests that each of them answered; a router gives them "
    "different requests, so they do not compare the models",
    "implicit signals are counted and enter no estimate here",
)


def headline(r: SavingsReport) -> tuple[str, ...]:
    """Return the result: one sentence on spend, then two per route."""
    spent = f"{format_usd(r.spent_usd)} spent on {r.requests:,} requests"
    if r.cost_unknown:
        spent += f", not counting {r.cost_unknown:,} of them of unknown cost"
    if r.audits:
        spent += f", and {format_usd(r.audits_usd)} on {r.audits:,} calls that audited some of them"
    sentences = [f"{spent}, {format_time(r.first_s)} to {format_time(r.last_s)} UTC."]
    for name, route in r.routes.items():
        prefix = "" if len(r.routes) == 1 else f"{name}: "
        sentences += [prefix + saving_sentence(route), prefix + route.quality.summary]
    return tuple(sentences)


def saving_sentence(route: RouteReport) -> str:
    """Compare the route's spend with its reference model alone."""
    single = route.singles.get(route.reference)
    if single is not None and single.usd is not None and single.saved is None:
        return f"{route.reference} alone is free, and {format_usd(single.spent_usd)} was spent."
    if single is None or single.usd is None or single.saved is None:
        return f"The cost of {route.reference} alone is unknown: no cost of it was predicted."
    requests = (
        "the same requests"
        if single.covers_all
        else f"the {format_percent(single.coverage)} of requests it could take"
    )
    text = (
        f"{route.reference} alone would have cost about {format_usd(single.usd)} on {requests}; "
        f"{format_usd(single.spent_usd)} was spent, "
    )
    interval = single.saved_ci
    if single.saved >= 0:
        text += f"{format_percent(single.saved)}{_interval(interval)} less."
    else:
        more = None if interval is None else (-interval[1], -interval[0])
        text += f"{format_percent(-single.saved)}{_interval(more)} more."
    if interval is not None and interval[0] <= 0.0 <= interval[1]:
        text += " The interval includes zero, so no saving is shown."
    if single.calibrated_on == 0:
        text += " It was never chosen, so its predictions are uncalibrated."
    return text


def _interval(shares: tuple[float, float] | None) -> str:
    if shares is None:
        return ""
    return f" (95 %: {format_percent(shares[0])} to {format_percent(shares[1])})"


def format_saved(s: SingleModelCost) -> str:
    """Return what routing saved against one model alone: a share of its cost, or why none."""
    if s.usd is None:
        return "unknown"
    if s.saved is None or s.spent_over_cost is None:
        return "nothing: it is free"
    if s.saved >= 0:
        return format_percent(s.saved)
    return f"nothing: spent {s.spent_over_cost:.1f} x its cost"
