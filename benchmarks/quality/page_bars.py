"""Each aim of the project beside what was measured: the first table of docs/benchmarks/quality.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from suffice.lab.stats import wilson_interval

Results = Mapping[str, Any]  # name of a results file without .json -> what it holds
MISSING = "not measured yet"
LABELLED = {"mmlu": "MMLU", "gsm8k": "GSM8K", "mt_bench": "MT-Bench"}


class Bar(NamedTuple):
    """room: how far the figure is on the good side of the bar, in its own unit; None = only
    reported, or not measured."""

    what: str
    bar: str
    measured: str
    room: float | None
    unit: str
    beside: str

    @property
    def met(self) -> str:
        if self.room is None:
            return "" if self.measured == MISSING else "reported"
        how = f"{abs(self.room):{'.0f' if self.unit in ('us', 'MB') else '.1f'}} {self.unit}"
        if self.unit in ("", "%"):
            how = f"{abs(self.room):.4f}" if self.unit == "" else f"{abs(self.room):.2%}"
        if self.room == 0:
            return "yes"
        return f"yes, by {how}" if self.room > 0 else f"**no**, by {how}"


def ci(interval: Sequence[float] | None, digits: int = 3, sign: bool = False) -> str:
    if interval is None:
        return "[unknown]"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    return f"[{form.format(interval[0])}, {form.format(interval[1])}]"


def percent(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"


def over_seeds(each: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, normal."""
    n = len(each)
    mean = sum(each) / n
    spread = (sum((v - mean) ** 2 for v in each) / max(1, n - 1) / n) ** 0.5
    return mean - 1.96 * spread, mean + 1.96 * spread


def absent(*whats: tuple[str, str]) -> Iterator[Bar]:
    for what, bar in whats:
        yield Bar(what, bar, MISSING, None, "", "")


def routellm(r: Results) -> Iterator[Bar]:
    told = r.get("routellm")
    if told is None:
        yield from absent(
            ("zero labels, MMLU and GSM8K: APGR", ">= 0.575, >= 0.58"),
            ("MMLU and GSM8K with in-domain labels: APGR", ">= 0.585 to 0.652"),
            ("safety: least difference to length on any seed", ">= -0.005"),
        )
        return
    found = {b["benchmark"]: b for b in told["benchmarks"]}
    for bar in told["bars"]:
        b = found[bar["benchmark"]]
        name, n = LABELLED[bar["benchmark"]], bar["n"]
        best = b["published"].get("best, in-domain labels", {}).get("apgr")
        if isinstance(n, list):
            beside = []
            for policy in ("knn", "cluster", "ridge"):
                least = min(
                    c["least_less_length"]
                    for c in b["curves"]
                    if c["policy"] == policy and c["n"] in n
                )
                beside.append(f"{policy} {least:+.3f}")
            labels = ", ".join(f"{m:,}" for m in n)
            yield Bar(
                f"safety, {name}: least difference to length, any seed, {labels} labels",
                f">= {bar['bar']:+.3f}", f"{bar['least_less_length']:+.4f}",
                bar["least_less_length"] - bar["bar"], "", ", ".join(beside),
            )  # fmt: skip
        elif n == 0:
            zero = {z["policy"]: z for z in b["zero_labels"]}
            without = b["published"]["no in-domain labels"]["apgr"]
            yield Bar(
                f"zero labels, {name}: APGR", f">= {bar['bar']:.3f}",
                f"{bar['apgr']:.4f} {ci(zero['default']['apgr_interval'], 4)}",
                bar["apgr"] - bar["bar"], "",
                f"length {zero['length']['apgr']:.3f}, random 0.500, published without in-domain "
                f"labels {without:.3f}",
            )  # fmt: skip
        else:
            at = {c["policy"]: c for c in b["curves"] if c["n"] == n}
            beside = ", ".join(f"{p} {at[p]['apgr']:.3f}" for p in ("knn", "cluster", "ridge"))
            wish = told["wish"]
            if (wish["benchmark"], wish["n"]) == (bar["benchmark"], n):
                gap = bar["apgr"] - wish["apgr"]
                beside += f"; wished for {wish['apgr']:.3f}, {gap:+.4f} from it"
            yield Bar(
                f"{name} with {n:,} in-domain labels: APGR", f">= {bar['bar']:.3f}",
                f"{bar['apgr']:.4f} {ci(over_seeds(at['trained']['each']), 4)}",
                bar["apgr"] - bar["bar"], "", f"published best {best:.3f}, {beside}",
            )  # fmt: skip
    zero = {z["policy"]: z for z in found["mt_bench"]["zero_labels"]}
    published = found["mt_bench"]["published"]
    yield Bar(
        f"zero labels, MT-Bench (n = {found['mt_bench']['queries']}): APGR", "reported",
        f"{zero['default']['apgr']:.3f} {ci(zero['default']['apgr_interval'])}", None, "",
        f"length {zero['length']['apgr']:.3f}, "
        + ", ".join(f"published {k} {v['apgr']:.3f}" for k, v in published.items()),
    )  # fmt: skip


def pool(r: Results) -> Iterator[Bar]:
    told = r.get("pool")
    if told is None:
        yield from absent(
            ("ParetoBandit, 3 models: gain over the zero router", ">= +0.0035"),
            ("ParetoBandit, 4 models: gain over the zero router", ">= +0.0030"),
        )
        return
    for case in told["cases"]:
        if case["bar"] is None:
            continue
        p = case["policies"]
        gain = p["trained"]["gain"]
        beside = ", ".join(f"{n} {v['gain']:+.4f}" for n, v in p.items() if n != "trained")
        yield Bar(
            f"{case['name']}: gain over the zero router", f">= {case['bar']:+.4f}",
            f"{gain:+.4f} {ci(p['trained']['ci'], 4, True)}", gain - case["bar"], "", beside,
        )  # fmt: skip


def certificates(r: Results) -> Iterator[Bar]:
    told = r.get("certificates")
    if told is None:
        yield from absent(
            ("certificates: mean violation rate", "<= 0.10"),
            ("certificates: worst cell", "<= 0.16"),
            ("certificates: share of MMLU, eps 5%, 500 labels", ">= 25%"),
        )
        return
    bars, aims = told["bars"], told["bars"]["aims"]
    ours, naive = bars["certified"], bars["naive"]
    splits = told["splits"]
    cells = [
        c["violations"]
        for case in told["cases"]
        if case["judged"]
        for c in case["cells"]
        if c["rule"] == "certified"
    ]
    yield Bar(
        f"certificates, {splits} splits, delta 0.1: mean violation rate of {ours['cells']} cells",
        f"<= {aims['mean_violation']:.2f}",
        f"{ours['mean_violation']:.3f} (cells from {min(cells):.2f} to {max(cells):.2f})",
        aims["mean_violation"] - ours["mean_violation"], "",
        f"naive tuning {naive['mean_violation']:.3f}",
    )  # fmt: skip
    worst = max(
        (c for case in told["cases"] if case["judged"] for c in case["cells"]
         if c["rule"] == "certified"),
        key=lambda c: c["violations"],
    )  # fmt: skip
    yield Bar(
        "certificates: violation rate of the worst cell", f"<= {aims['worst_cell']:.2f}",
        f"{ours['worst_cell']:.2f} {ci(worst['violations_ci'], 2)}",
        aims["worst_cell"] - ours["worst_cell"], "", f"naive tuning {naive['worst_cell']:.2f}",
    )  # fmt: skip
    shares = bars["mmlu_share_500_at_5_percent"]
    mmlu = next(c for c in told["cases"] if c["case"].startswith("MMLU"))
    cell = next(
        c for c in mmlu["cells"]
        if (c["score"], c["rule"], c["n"], c["eps"]) == ("trained", "certified", 500, 0.05)
    )  # fmt: skip
    aim = aims["mmlu_share_500_at_5_percent"]
    yield Bar(
        "certificates: share of MMLU certified away, eps 5%, 500 labels", f">= {aim:.0%}",
        f"{cell['certified_away']:.1%} {percent(cell['certified_away_ci'])}",
        cell["certified_away"] - aim, "%",
        ", ".join(f"{k} {v:.1%}" for k, v in shares.items() if k != "trained, certified"),
    )  # fmt: skip


_DECISIONS = (
    ("warm", "trained, ten models, 200 tokens, warm", "median", 100),
    ("never-seen prompts", "trained, ten models, 200 tokens, never seen", "median", 250),
    ("never-seen prompts", "trained, ten models, 200 tokens, never seen", "p99", 600),
    ("20,000 tokens", "trained, ten models, 20,000 tokens", "median", 400),
)


def decision(r: Results) -> Iterator[Bar]:
    told = r.get("decision")
    for name, key, what, bar in _DECISIONS:
        title = f"one decision, one core, ten models, 200 tokens, {name}: {what}"
        if name.startswith("20"):
            title = f"one decision, one core, ten models, {name}: {what}"
        if told is None:
            yield Bar(title, f"<= {bar} us", MISSING, None, "", "")
            continue
        us = told["microseconds"]
        beside = f"load average {told['load_average']:.1f}"
        rival = next((v for k, v in us.items() if k.startswith("LiteLLM")), None)
        if rival is not None and name == "warm":
            beside += (
                f", LiteLLM's local scorer {rival['median']:.0f} us, RouteLLM's published "
                "155 requests/s are 6,452 us each"
            )
        yield Bar(
            title, f"<= {bar} us", f"{us[key][what]:.0f} us", bar - us[key][what], "us", beside
        )


def cost(r: Results) -> Iterator[Bar]:
    told = r.get("cost")
    if told is None:
        yield from absent(
            ("training, 1,500 labels, 10 models", "< 30 s, < 1 GB"),
            ("assess, 100,000 queries", "< 60 s"),
        )
        return
    bars = told["bars"]
    for name, c in told["commands"].items():
        what, _, kind = name.partition(", ")
        load = f"{c['cpu_s']:.1f} s of CPU, load average {c['load_average_before']:.1f}"
        if what == "train":
            title = f"training, {c['queries']:,} labels, {c['models']} models, {kind}"
            limit = bars["train_s"]
            peak = f"{c['peak_mb']:.0f} MB"
            yield Bar(f"{title}: memory", f"< {bars['train_mb']:.0f} MB", peak,
                      bars["train_mb"] - c["peak_mb"], "MB", "")  # fmt: skip
        else:
            title = f"assess, {c['queries']:,} queries, {kind}"
            limit = bars["assess_s"]
            load += f", {c['peak_mb']:.0f} MB"
        yield Bar(f"{title}: time", f"< {limit:.0f} s", f"{c['wall_s']:.1f} s",
                  limit - c["wall_s"], "s", load)  # fmt: skip


def robustness(r: Results) -> Iterator[Bar]:
    told = r.get("robustness")
    if told is None:
        yield from absent(
            ("decisions that white space, wrapping or template noise change", "none"),
            ("flip rate under rewording", "reported"),
        )
        return
    for kind, bar in (("white space", "none"), ("template noise", "none"), ("rewording", "")):
        for name, p in told["policies"].items():
            row = p["changes"][kind]["any"]
            yield Bar(
                f"prompts whose decision changes, {kind}, {name} policy", bar or "reported",
                f"{row['changed']:,} of {row['of']:,}, {row['rate']:.2%} {percent(row['ci'])}",
                -row["rate"] if bar else None, "%", "each change: see Robustness",
            )  # fmt: skip


def loop(r: Results) -> Iterator[Bar]:
    """The feedback loop's aims."""
    told = r.get("offpolicy")
    if told is None:
        yield from absent(("off-policy estimates: coverage of the 95% interval", ">= 90%"))
    else:
        for name, low in told["lowest_coverage_where_judged"].items():
            yield Bar(
                f"off-policy, {name}: lowest coverage of the 95% interval, {told['runs']} runs",
                f">= {told['bar']:.0%}",
                f"{low:.1%} {percent(wilson_interval(low * told['runs'], told['runs']))}",
                low - told["bar"], "%", "",
            )  # fmt: skip
    told = r.get("loop")
    if told is None:
        yield from absent(
            ("through the gateway: share to the right model rises with feedback", "rises"),
            ("through the gateway: decisions that `shadow` changes", "none"),
        )
    else:
        for kind, s in told["operators"].items():
            right = s["on"]["right"]
            rise = right["after"]["mean"] - right["first_block"]["mean"]
            yield Bar(
                f"through the gateway, told {kind}: share to the right model, first block to after "
                "1,000 labels", "rises",
                f"{right['first_block']['mean']:.1%} to {right['after']['mean']:.1%}, seeds from "
                f"{right['after']['low']:.1%} to {right['after']['high']:.1%}", rise, "%",
                f"learning off {s['off']['right']['after']['mean']:.1%}",
            )  # fmt: skip
        shadow = told["proof"]["shadow"]
        yield Bar(
            "through the gateway: decisions that `shadow` changes", "none",
            f"{shadow['differ']} of {shadow['decisions']:,}",
            -shadow["differ"] / shadow["decisions"], "%", "",
        )  # fmt: skip
    told = r.get("pacing")
    if told is None:
        yield from absent(("budget pacing: days with spend within 2% of the budget", "all"))
    else:
        for day, title in (
            ("day_1_no_profile", "first day"), ("day_2_with_profile", "second day"),
        ):  # fmt: skip
            p, naive = told[day]["pacer"], told[day]["hard stop"]
            # What the best model throughout does not cost cannot be spent.
            able = p["runs"] - p["cannot_be_spent"]
            within = min(1.0, p["within_2_percent"] * p["runs"] / able)
            more = f" ({p['cannot_be_spent']} more cannot be spent)" if able < p["runs"] else ""
            yield Bar(
                f"budget pacing, {title}: runs with spend within 2% of the budget",
                "all", f"{within:.1%} of {able}{more}, spend over budget "
                f"{p['ratio_mean']:.3f} [{p['ratio_min']:.3f}, {p['ratio_max']:.3f}] (least, most)",
                within - 1.0, "%",
                f"naive hard stop: refuses {naive['refused_mean']:.1%} of requests, quality "
                f"{naive['quality_mean']:.3f} against {p['quality_mean']:.3f}",
            )  # fmt: skip
        over = max(told[d]["pacer"]["ceiling_passed"] for d in told if d.startswith("day_")
                   and "pacer" in told[d])  # fmt: skip
        yield Bar("budget pacing: runs that pass the hard ceiling", "none", f"{over:.1%}",
                  -over, "%", "")  # fmt: skip
    told = r.get("watch")
    if told is None:
        yield from absent(("drift watch: false alarms", "at most the stated rate"))
    else:
        row = max(told["rows"], key=lambda x: x["no_drift"]["watch"]["false_alarms"])
        quiet = row["no_drift"]
        stated = told["stated_false_alarm_probability"]
        yield Bar(
            f"drift watch: false alarms in 5,000 quiet labels, worst of {len(told['rows'])} streams",
            f"<= {stated:.2f}",
            f"{quiet['watch']['false_alarms']:.3f} {ci(quiet['watch']['ci'])}",
            stated - quiet["watch"]["false_alarms"], "",
            f"repeated test {quiet['repeated test']['false_alarms']:.3f}",
        )  # fmt: skip


ALL = (routellm, pool, certificates, decision, cost, robustness, loop)


def bars(results: Results) -> list[Bar]:
    return [bar for find in ALL for bar in find(results)]
