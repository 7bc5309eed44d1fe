"""The recommendation in words. It claims no more than the intervals allow."""

from __future__ import annotations

from suffice.lab.assess.pools import MIN_GAIN, significance
from suffice.lab.assess.results import Estimate, ModelSummary, PoolReport, PoolSummary
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS

_NAMED = 4  # models that a sentence names


def join_names(names: tuple[str, ...] | list[str], most: int = _NAMED) -> str:
    """Joins names: "a, b and c", or "a, b, c and 7 more" if there are too many to read."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def format_estimate(e: Estimate, percent: bool = False, sign: bool = False) -> str:
    """A figure with its interval: "0.86 [0.84, 0.88]"."""

    def one(v: float) -> str:
        if percent:
            return f"{100 * v:.0f} %"
        return f"{v:+.3f}" if sign else f"{v:.3f}"

    if e.ci is None:
        return f"{one(e.value)} (too few labels for an interval)"
    return f"{one(e.value)} [{one(e.ci[0])}, {one(e.ci[1])}]"


def without_labels(name: str) -> tuple[str, ...]:
    """The recommendation for a table without scores."""
    return (
        "No query has a score, so models cannot be compared. Collect a few hundred labels: "
        f"suffice collect {name} --models A,B --judge M --out labels.jsonl, then assess again.",
    )


def recommend(
    pool: PoolReport, models: dict[str, ModelSummary], cost_unit: str | None, cost_source: str
) -> tuple[str, ...]:
    """The recommendation for a table with comparable models, as sentences."""
    if pool.identical:
        named = f": run the cheapest, {pool.recommended[0]}" if cost_unit else ""
        return (
            f"All models score the same on every query{named}.",
            "Ask harder queries, or use finer scores, to distinguish the models.",
        )
    sentences = [_pick(pool, cost_unit), _best(pool, models)]
    sentences += _chosen(pool, cost_unit)
    sentences += _third(pool)
    sentences += _others(pool, models)
    sentences += _labels(pool)
    if cost_unit is None:
        sentences.append(
            f"Cost is {cost_source}: only quality is compared. Add cost_usd to the table, or prices "
            "to a suffice.toml (--config), to compare cost and quality."
        )
    return tuple(sentences)


def _pick(pool: PoolReport, cost_unit: str | None) -> str:
    names = pool.recommended
    if len(names) > 1:
        text = f"Run {join_names(names)}."
        if pool.basis == "shrunken means":
            text += " Mix them at random or by the default policy: labels are too few for a router."
        return text
    only = names[0]
    if not pool.pairs:
        return (
            f"For quality alone, {only}. Whether a second model would pay: too few labels to say, "
            "and costs are unknown."
        )
    if cost_unit is None:
        return f"For quality alone, run {only}: {_undecided(pool, 'no second model adds to it')}"
    return f"Run {only}: {_undecided(pool, 'no second model measurably improves on it here')}"


def _undecided(pool: PoolReport, otherwise: str) -> str:
    """What is known of the best pair if a single model is recommended."""
    single, pair = pool.singles[0].value, pool.pairs[0].value
    other = [m for m in pool.pairs[0].models if m not in pool.recommended]
    if pair.value - single.value < MIN_GAIN or not other:
        return f"{otherwise}."
    return f"whether adding {join_names(other)} would pay, too few labels to say."


def _best(pool: PoolReport, models: dict[str, ModelSummary]) -> str:
    text = f"Best single model: {pool.strong}, mean score {format_estimate(models[pool.strong].quality)}"
    if not pool.ties:
        return text + ", ahead of every other by more than chance."
    return f"{text}; too few labels to distinguish it from {join_names(pool.ties)}."


def _line(pool: PoolReport) -> PoolSummary | None:
    """The summary of the recommended pool."""
    lines = (*pool.singles, *pool.pairs, *pool.triples)
    return next((x for x in lines if x.models == pool.recommended), None)


def _chosen(pool: PoolReport, cost_unit: str | None) -> list[str]:
    """What the recommended pool saves, what routing on it gains, and how certain the choice is."""
    line = _line(pool)
    if line is None or len(line.models) < 2:
        return []
    sentences = []
    for part in ("0.95", "0.9"):
        cost_share = line.cost_to_keep.get(part)
        if cost_share is not None and cost_share.value < 1.0:
            cost = f"{format_estimate(cost_share, percent=True)} of its cost"
            sentences.append(
                f"It keeps {100 * float(part):.0f} % of {pool.strong}'s score at {cost}."
            )
            break
    gain = line.routing_gain
    if gain is not None:
        over = "random mixing at equal cost" if cost_unit else "its best model alone"
        verdict, gained = significance(gain), format_estimate(gain, sign=True)
        if verdict == "adds":
            sentences.append(
                f"Routing pays on it: {gained} of score over {over} (cross-validated)."
            )
        elif verdict == "nothing measurable":
            sentences.append(f"Routing adds nothing measurable on it over {over}: {gained}.")
        else:
            sentences.append(
                f"Whether routing beats {over} on it: too few labels to say ({gained})."
            )
    lead = pool.pair_lead
    if len(line.models) == 2 and lead is not None and (lead.ci is None or lead.ci[0] <= 0):
        sentences.append(
            f"{' + '.join(pool.pairs[1].models)} may be as good: too few labels to say."
        )
    return sentences


def _third(pool: PoolReport) -> list[str]:
    if pool.triple_gain is None or len(pool.recommended) != 2 or not pool.triples:
        return []
    third = [m for m in pool.triples[0].models if m not in pool.pairs[0].models]
    names = (
        join_names(third)
        if len(third) == 1
        else f"the best triple, {join_names(pool.triples[0].models)},"
    )
    gained = format_estimate(pool.triple_gain, sign=True)
    verdict = significance(pool.triple_gain)
    if verdict == "nothing measurable":
        return [f"A third model adds nothing measurable: {names} {gained}."]
    if verdict == "adds":
        return [f"A third model would add {gained} by random mixing: {names}."]
    return [f"Whether a third model adds anything: too few labels to say ({names} {gained})."]


def _others(pool: PoolReport, models: dict[str, ModelSummary]) -> list[str]:
    def those(verdict: str) -> list[str]:
        return [m for m, x in models.items() if x.compared and x.verdict == verdict]

    third_named = bool(_third(pool))
    if third_named and significance(pool.triple_gain) == "nothing measurable":
        return []
    nothing, unknown, adds = map(those, ("nothing measurable", "too few labels to say", "adds"))
    recommended = join_names(pool.recommended)
    sentences = []
    if nothing:
        verb = "adds" if len(nothing) == 1 else "add"
        sentences.append(f"{join_names(nothing)} {verb} nothing measurable to {recommended}.")
    if unknown and pool.pairs and not third_named and len(pool.recommended) > 1:
        sentences.append(f"Whether {join_names(unknown)} would add to it: too few labels to say.")
    if adds and len(pool.recommended) >= 3:
        verb = "adds" if len(adds) == 1 else "add"
        sentences.append(f"{join_names(adds)} {verb} a little more to it.")
    return sentences


def _labels(pool: PoolReport) -> list[str]:
    if pool.basis == "routed":
        return []
    return [
        f"{pool.n_compared} queries have labels of every model; from about "
        f"{MIN_MULTI_MODEL_LABELS} on a router can be evaluated too: suffice collect."
    ]
