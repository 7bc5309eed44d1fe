"""A report in sentences: what it comes to, and how each figure was made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.lab.savings import Report, RouteReport
    from suffice.lab.savings.counterfactual_cost import SingleModelCost

METHOD = (
    "spent: what the calls cost by their tokens and the prices of the time, failed calls included; "
    "a request whose price or tokens are unknown is counted as unknown, never as zero",
    "a single model's cost: what the router predicted for it on each request when it decided, by "
    "predicted tokens, times what was paid over what was predicted for the model that answered, times "
    "how much longer its answers are than that one's at equal difficulty as far as the traffic shows "
    "it; requests for which it was no candidate are left out on both sides",
    "amounts in brackets: 95 % intervals of a bootstrap over sessions, the calibration made anew in "
    "each draw, with an allowance for answers whose length no traffic shows; about as many requests "
    "of traffic like this. A model that writes several times as much as others (a reasoning model) "
    "and gets only requests of one difficulty may still lie outside",
    "quality kept: what was scored over what the reference alone would have been scored, by a doubly "
    "robust off-policy estimate from explicit feedback and recorded propensities (SNIPS beside it); "
    "nothing is claimed below an effective size of 100 labels, 20 sessions, or where under 95 % of "
    "decisions could have gone to the reference",
    "mean scores of models are of the requests each of them answered; a router gives them different "
    "requests, so they do not compare the models",
    "implicit signals are counted and enter no estimate here",
)


def format_usd(value: float | None) -> str:
    """An amount as it is read: at least three digits that mean something."""
    if value is None:
        return "unknown"
    size = abs(value)
    digits = 2 if size >= 1 or size == 0 else 4 if size >= 0.01 else 6
    return f"{'-' if value < 0 else ''}${size:,.{digits}f}"


def format_interval(span: tuple[float, float] | None) -> str:
    """An interval of amounts in brackets; nothing where there is none."""
    return "" if span is None else f" [{format_usd(span[0])}, {format_usd(span[1])}]"


def format_percent(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "unknown"
    digits = 0 if abs(value) >= 0.1 or value == 0 else 1
    return f"{value:{'+' if sign else ''}.{digits}%}"


def format_time(at_s: float) -> str:
    """UTC, to the minute."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")


def headline(r: Report) -> tuple[str, ...]:
    """What the report comes to, a sentence or two a route."""
    spent = f"{format_usd(r.spent_usd)} spent on {r.requests:,} requests"
    if r.cost_unknown:
        spent += f", {r.cost_unknown:,} of them of unknown cost and not in it"
    if r.audits:
        spent += f", and {format_usd(r.audits_usd)} on {r.audits:,} calls that audited some of them"
    out = [f"{spent}, {format_time(r.first_s)} to {format_time(r.last_s)} UTC."]
    for name, one in r.routes.items():
        prefix = "" if len(r.routes) == 1 else f"{name}: "
        out.append(prefix + saving_sentence(one))
        out.append(prefix + one.quality.why)
    return tuple(out)


def saving_sentence(one: RouteReport) -> str:
    """The route against its reference model alone."""
    single = one.singles.get(one.reference)
    if single is not None and single.usd is not None and single.saved is None:
        return f"{one.reference} alone is free, and {format_usd(single.spent_usd)} was spent."
    if single is None or single.usd is None or single.saved is None:
        return (
            f"What {one.reference} alone would have cost is unknown: no cost of it was predicted."
        )
    span = ""
    if single.saved_ci is not None:
        low, high = single.saved_ci
        span = f" (95 %: {format_percent(low)} to {format_percent(high)})"
    on = (
        "the same requests"
        if single.coverage > 0.9995
        else f"the {format_percent(single.coverage)} of requests it could take"
    )
    text = (
        f"{one.reference} alone would have cost about {format_usd(single.usd)} on {on}, where "
        f"{format_usd(single.spent_usd)} was spent: "
    )
    text += (
        f"{format_percent(single.saved)}{span} less."
        if single.saved >= 0
        else f"{format_percent(-single.saved)}{_flipped(single.saved_ci)} more."
    )
    if single.saved_ci is not None and single.saved_ci[0] <= 0.0 <= single.saved_ci[1]:
        text += " The interval holds zero, so no saving is shown."
    if single.calibrated_on == 0:
        text += " It was never taken, so its predictions are uncalibrated."
    return text


def _flipped(span: tuple[float, float] | None) -> str:
    return (
        "" if span is None else f" (95 %: {format_percent(-span[1])} to {format_percent(-span[0])})"
    )


def format_saved(s: SingleModelCost) -> str:
    """Against one model alone, as it is read: a share of its cost, or how many times it."""
    if s.usd is None:
        return "unknown"
    if s.saved is None or s.spent_usd is None:
        return "it is free"
    if s.saved >= 0:
        return format_percent(s.saved)
    return f"{s.spent_usd / s.usd:.1f} x its cost was spent"
