"""The recommendation in words. It says no more than the intervals allow."""

from __future__ import annotations

from suffice.lab.assess.pools import NOTICE, measurable
from suffice.lab.assess.results import Estimate, ModelLine, Pool, PoolLine
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS

_NAMED = 4  # models listed by name in a sentence


def listed(names: tuple[str, ...] | list[str], most: int = _NAMED) -> str:
    """ "a, b and c"; "a, b, c and 7 more" where there are too many to read."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def said(e: Estimate, percent: bool = False, sign: bool = False) -> str:
    """A figure with its interval: "0.86 [0.84, 0.88]"."""

    def one(v: float) -> str:
        if percent:
            return f"{100 * v:.0f} %"
        return f"{v:+.3f}" if sign else f"{v:.3f}"

    if e.ci is None:
        return f"{one(e.value)} (too few labels for an interval)"
    return f"{one(e.value)} [{one(e.ci[0])}, {one(e.ci[1])}]"


def without_labels(name: str) -> tuple[str, ...]:
    return (
        "No query has a score, so nothing is said about models. A few hundred labels change that: "
        f"suffice collect {name} --models A,B --judge M --out labels.jsonl, then assess again.",
    )


def advise(
    pool: Pool, models: dict[str, ModelLine], cost_unit: str | None, cost_source: str
) -> tuple[str, ...]:
    if pool.identical:
        named = f": run the cheapest, {pool.recommended[0]}" if cost_unit else ""
        return (
            f"All models score the same on every query{named}.",
            "Ask harder queries, or score them more finely, to tell the models apart.",
        )
    out = [_pick(pool, cost_unit), _best(pool, models)]
    out += _chosen(pool, cost_unit)
    out += _third(pool)
    out += _others(pool, models)
    out += _labels(pool)
    if cost_unit is None:
        out.append(
            f"Cost is {cost_source}: only quality is judged. Give cost_usd in the table, or prices "
            "in a suffice.toml (--config), and the cost-quality hull is too."
        )
    return tuple(out)


def _pick(pool: Pool, cost_unit: str | None) -> str:
    names = pool.recommended
    if len(names) > 1:
        text = f"Run {listed(names)}."
        if pool.basis == "shrunken means":
            text += " Mix them at random or by the default policy: labels are too few for a router."
        return text
    only = names[0]
    if not pool.pairs:
        return (
            f"For quality alone, {only}. Whether a second model would pay: too few labels to say, "
            "and no costs."
        )
    if cost_unit is None:
        return f"For quality alone, run {only}: {_undecided(pool, 'no second model adds to it')}"
    return f"Run {only}: {_undecided(pool, 'no second model measurably improves on it here')}"


def _undecided(pool: Pool, otherwise: str) -> str:
    """What is known of the best pair where a single model is recommended."""
    single, pair = pool.singles[0].value, pool.pairs[0].value
    other = [m for m in pool.pairs[0].models if m not in pool.recommended]
    if pair.value - single.value < NOTICE or not other:
        return f"{otherwise}."
    return f"whether {listed(other)} beside it would pay, too few labels to say."


def _best(pool: Pool, models: dict[str, ModelLine]) -> str:
    text = f"Best single model: {pool.strong}, mean score {said(models[pool.strong].quality)}"
    if not pool.ties:
        return text + ", ahead of every other by more than chance."
    return f"{text}; too few labels to tell it from {listed(pool.ties)}."


def _line(pool: Pool) -> PoolLine | None:
    """The recommended pool's own line."""
    lines = (*pool.singles, *pool.pairs, *pool.triples)
    return next((x for x in lines if x.models == pool.recommended), None)


def _chosen(pool: Pool, cost_unit: str | None) -> list[str]:
    """What the recommended pool saves, what routing on it is worth, and how sure the choice is."""
    line = _line(pool)
    if line is None or len(line.models) < 2:
        return []
    out = []
    for part in ("0.95", "0.9"):
        kept = line.cost_to_keep.get(part)
        if kept is not None and kept.value < 1.0:
            cost = f"{said(kept, percent=True)} of its cost"
            out.append(f"It keeps {100 * float(part):.0f} % of {pool.strong}'s score at {cost}.")
            break
    gain = line.routing_gain
    if gain is not None:
        over = "random mixing at equal cost" if cost_unit else "its best model alone"
        verdict, gained = measurable(gain), said(gain, sign=True)
        if verdict == "adds":
            out.append(f"Routing pays on it: {gained} of score over {over} (cross-validated).")
        elif verdict == "nothing measurable":
            out.append(f"Routing adds nothing measurable on it over {over}: {gained}.")
        else:
            out.append(f"Whether routing beats {over} on it: too few labels to say ({gained}).")
    lead = pool.pair_lead
    if len(line.models) == 2 and lead is not None and (lead.ci is None or lead.ci[0] <= 0):
        out.append(f"{' + '.join(pool.pairs[1].models)} may be as good: too few labels to say.")
    return out


def _third(pool: Pool) -> list[str]:
    if pool.triple_gain is None or len(pool.recommended) != 2 or not pool.triples:
        return []
    third = [m for m in pool.triples[0].models if m not in pool.pairs[0].models]
    names = (
        listed(third) if len(third) == 1 else f"the best triple, {listed(pool.triples[0].models)},"
    )
    gained = said(pool.triple_gain, sign=True)
    verdict = measurable(pool.triple_gain)
    if verdict == "nothing measurable":
        return [f"A third model adds nothing measurable: {names} {gained}."]
    if verdict == "adds":
        return [f"A third model would add {gained} by random mixing: {names}."]
    return [f"Whether a third model adds anything: too few labels to say ({names} {gained})."]


def _others(pool: Pool, models: dict[str, ModelLine]) -> list[str]:
    def those(verdict: str) -> list[str]:
        return [m for m, x in models.items() if x.compared and x.verdict == verdict]

    spoken = bool(_third(pool))  # of the best further model beside a pair
    if spoken and measurable(pool.triple_gain) == "nothing measurable":
        return []
    nothing, unknown, adds = map(those, ("nothing measurable", "too few labels to say", "adds"))
    beside = listed(pool.recommended)
    out = []
    if nothing:
        verb = "adds" if len(nothing) == 1 else "add"
        out.append(f"Beside {beside}, {listed(nothing)} {verb} nothing measurable.")
    if unknown and pool.pairs and not spoken and len(pool.recommended) > 1:
        out.append(f"Whether {listed(unknown)} would add to it: too few labels to say.")
    if adds and len(pool.recommended) >= 3:
        verb = "adds" if len(adds) == 1 else "add"
        out.append(f"{listed(adds)} {verb} a little more to it.")
    return out


def _labels(pool: Pool) -> list[str]:
    if pool.basis == "routed":
        return []
    return [
        f"{pool.n_compared} queries have labels of every model; from about "
        f"{MIN_MULTI_MODEL_LABELS} on a router can be judged too: suffice collect."
    ]
