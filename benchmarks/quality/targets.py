"""Targets of the project and what was measured: the first table of docs/benchmarks/quality.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from formatting import ci, over_seeds, percent

from suffice.lab.stats import wilson_interval

Results = Mapping[str, Any]  # name of a results file without .json -> what it holds
MISSING = "not measured yet"
LABELLED = {"mmlu": "MMLU", "gsm8k": "GSM8K", "mt_bench": "MT-Bench"}


class Target(NamedTuple):
    """One row. margin: how far the figure is on the good side of the target, in its own unit; None if
    it is only reported, or not measured."""

    measure: str
    target: str
    measured: str
    margin: float | None
    unit: str
    context: str

    @property
    def met(self) -> str:
        if self.margin is None:
            return "" if self.measured == MISSING else "reported"
        amount = f"{abs(self.margin):{'.0f' if self.unit in ('us', 'MB') else '.1f'}} {self.unit}"
        if self.unit in ("", "%"):
            amount = f"{abs(self.margin):.4f}" if self.unit == "" else f"{abs(self.margin):.2%}"
        if self.margin == 0:
            return "yes"
        return f"yes, by {amount}" if self.margin > 0 else f"**no**, by {amount}"


def absent(*rows: tuple[str, str]) -> Iterator[Target]:
    for measure, target in rows:
        yield Target(measure, target, MISSING, None, "", "")


def routellm(r: Results) -> Iterator[Target]:
    result = r.get("routellm")
    if result is None:
        yield from absent(
            ("zero labels, MMLU and GSM8K: APGR", ">= 0.575, >= 0.58"),
            ("MMLU and GSM8K with in-domain labels: APGR", ">= 0.585 to 0.652"),
            ("safety: least difference to length on any seed", ">= -0.005"),
        )
        return
    benchmarks = {b["benchmark"]: b for b in result["benchmarks"]}
    for target in result["targets"]:
        b = benchmarks[target["benchmark"]]
        name, n = LABELLED[target["benchmark"]], target["n"]
        best = b["published"].get("best, in-domain labels", {}).get("apgr")
        if isinstance(n, list):
            context = []
            for policy in ("knn", "cluster", "ridge"):
                least = min(
                    c["least_less_length"]
                    for c in b["curves"]
                    if c["policy"] == policy and c["n"] in n
                )
                context.append(f"{policy} {least:+.3f}")
            labels = ", ".join(f"{m:,}" for m in n)
            yield Target(
                f"safety, {name}: least difference to length, any seed, {labels} labels",
                f">= {target['target']:+.3f}", f"{target['least_less_length']:+.4f}",
                target["least_less_length"] - target["target"], "", ", ".join(context),
            )  # fmt: skip
        elif n == 0:
            zero = {z["policy"]: z for z in b["zero_labels"]}
            without = b["published"]["no in-domain labels"]["apgr"]
            yield Target(
                f"zero labels, {name}: APGR", f">= {target['target']:.3f}",
                f"{target['apgr']:.4f} {ci(zero['default']['apgr_interval'], 4)}",
                target["apgr"] - target["target"], "",
                f"length {zero['length']['apgr']:.3f}, random 0.500, published without in-domain "
                f"labels {without:.3f}",
            )  # fmt: skip
        else:
            at = {c["policy"]: c for c in b["curves"] if c["n"] == n}
            context = ", ".join(f"{p} {at[p]['apgr']:.3f}" for p in ("knn", "cluster", "ridge"))
            wish = result["wish"]
            if (wish["benchmark"], wish["n"]) == (target["benchmark"], n):
                gap = target["apgr"] - wish["apgr"]
                context += f"; stretch target {wish['apgr']:.3f}, {gap:+.4f} from it"
            yield Target(
                f"{name} with {n:,} in-domain labels: APGR", f">= {target['target']:.3f}",
                f"{target['apgr']:.4f} {ci(over_seeds(at['trained']['each']), 4)}",
                target["apgr"] - target["target"], "", f"published best {best:.3f}, {context}",
            )  # fmt: skip
    zero = {z["policy"]: z for z in benchmarks["mt_bench"]["zero_labels"]}
    published = benchmarks["mt_bench"]["published"]
    yield Target(
        f"zero labels, MT-Bench (n = {benchmarks['mt_bench']['queries']}): APGR", "reported",
        f"{zero['default']['apgr']:.3f} {ci(zero['default']['apgr_interval'])}", None, "",
        f"length {zero['length']['apgr']:.3f}, "
        + ", ".join(f"published {k} {v['apgr']:.3f}" for k, v in published.items()),
    )  # fmt: skip


def pool(r: Results) -> Iterator[Target]:
    result = r.get("pool")
    if result is None:
        yield from absent(
            ("ParetoBandit, 3 models: gain over the zero router", ">= +0.0035"),
            ("ParetoBandit, 4 models: gain over the zero router", ">= +0.0030"),
        )
        return
    for case in result["cases"]:
        if case["target"] is None:
            continue
        p = case["policies"]
        gain = p["trained"]["gain"]
        context = ", ".join(f"{n} {v['gain']:+.4f}" for n, v in p.items() if n != "trained")
        yield Target(
            f"{case['name']}: gain over the zero router", f">= {case['target']:+.4f}",
            f"{gain:+.4f} {ci(p['trained']['ci'], 4, True)}", gain - case["target"], "", context,
        )  # fmt: skip


def certificates(r: Results) -> Iterator[Target]:
    result = r.get("certificates")
    if result is None:
        yield from absent(
            ("certificates: mean violation rate", "<= 0.10"),
            ("certificates: worst cell", "<= 0.16"),
            ("certificates: share of MMLU, eps 5%, 500 labels", ">= 25%"),
        )
        return
    measured, limits = result["targets"], result["targets"]["targets"]
    ours, naive = measured["certified"], measured["naive"]
    splits = result["splits"]
    cells = [
        c["violations"]
        for case in result["cases"]
        if case["judged"]
        for c in case["cells"]
        if c["rule"] == "certified"
    ]
    yield Target(
        f"certificates, {splits} splits, delta 0.1: mean violation rate of {ours['cells']} cells",
        f"<= {limits['mean_violation']:.2f}",
        f"{ours['mean_violation']:.3f} (cells from {min(cells):.2f} to {max(cells):.2f})",
        limits["mean_violation"] - ours["mean_violation"], "",
        f"naive tuning {naive['mean_violation']:.3f}",
    )  # fmt: skip
    worst = max(
        (c for case in result["cases"] if case["judged"] for c in case["cells"]
         if c["rule"] == "certified"),
        key=lambda c: c["violations"],
    )  # fmt: skip
    yield Target(
        "certificates: violation rate of the worst cell", f"<= {limits['worst_cell']:.2f}",
        f"{ours['worst_cell']:.2f} {ci(worst['violations_ci'], 2)}",
        limits["worst_cell"] - ours["worst_cell"], "", f"naive tuning {naive['worst_cell']:.2f}",
    )  # fmt: skip
    shares = measured["mmlu_share_500_at_5_percent"]
    mmlu = next(c for c in result["cases"] if c["case"].startswith("MMLU"))
    cell = next(
        c for c in mmlu["cells"]
        if (c["score"], c["rule"], c["n"], c["eps"]) == ("trained", "certified", 500, 0.05)
    )  # fmt: skip
    share = limits["mmlu_share_500_at_5_percent"]
    yield Target(
        "certificates: share of MMLU certified away, eps 5%, 500 labels", f">= {share:.0%}",
        f"{cell['certified_away']:.1%} {percent(cell['certified_away_ci'])}",
        cell["certified_away"] - share, "%",
        ", ".join(f"{k} {v:.1%}" for k, v in shares.items() if k != "trained, certified"),
    )  # fmt: skip


_DECISIONS = (
    ("warm", "trained, ten models, 200 tokens, warm", "median", 100),
    ("never-seen prompts", "trained, ten models, 200 tokens, never seen", "median", 250),
    ("never-seen prompts", "trained, ten models, 200 tokens, never seen", "p99", 600),
    ("20,000 tokens", "trained, ten models, 20,000 tokens", "median", 400),
)


def decision(r: Results) -> Iterator[Target]:
    result = r.get("decision")
    for name, key, statistic, limit in _DECISIONS:
        title = f"one decision, one core, ten models, 200 tokens, {name}: {statistic}"
        if name.startswith("20"):
            title = f"one decision, one core, ten models, {name}: {statistic}"
        if result is None:
            yield Target(title, f"<= {limit} us", MISSING, None, "", "")
            continue
        us = result["microseconds"]
        context = f"load average {result['load_average']:.1f}"
        rival = next((v for k, v in us.items() if k.startswith("LiteLLM")), None)
        if rival is not None and name == "warm":
            context += (
                f", LiteLLM's local scorer {rival['median']:.0f} us, RouteLLM's published "
                "155 requests/s are 6,452 us each"
            )
        yield Target(
            title,
            f"<= {limit} us",
            f"{us[key][statistic]:.0f} us",
            limit - us[key][statistic],
            "us",
            context,
        )


def training_cost(r: Results) -> Iterator[Target]:
    result = r.get("training_cost")
    if result is None:
        yield from absent(
            ("training, 1,500 labels, 10 models", "< 30 s, < 1 GB"),
            ("assess, 100,000 queries", "< 60 s"),
        )
        return
    limits = result["targets"]
    for name, c in result["commands"].items():
        command, _, kind = name.partition(", ")
        load = f"{c['cpu_s']:.1f} s of CPU, load average {c['load_average_before']:.1f}"
        if command == "train":
            title = f"training, {c['queries']:,} labels, {c['models']} models, {kind}"
            limit = limits["train_s"]
            peak = f"{c['peak_mb']:.0f} MB"
            yield Target(f"{title}: memory", f"< {limits['train_mb']:.0f} MB", peak,
                      limits["train_mb"] - c["peak_mb"], "MB", "")  # fmt: skip
        else:
            title = f"assess, {c['queries']:,} queries, {kind}"
            limit = limits["assess_s"]
            load += f", {c['peak_mb']:.0f} MB"
        yield Target(f"{title}: time", f"< {limit:.0f} s", f"{c['wall_s']:.1f} s",
                  limit - c["wall_s"], "s", load)  # fmt: skip


def robustness(r: Results) -> Iterator[Target]:
    result = r.get("robustness")
    if result is None:
        yield from absent(
            ("decisions that white space, wrapping or template noise change", "none"),
            ("flip rate under rewording", "reported"),
        )
        return
    for kind, limit in (("white space", "none"), ("template noise", "none"), ("rewording", "")):
        for name, p in result["policies"].items():
            row = p["changes"][kind]["any"]
            yield Target(
                f"prompts whose decision changes, {kind}, {name} policy", limit or "reported",
                f"{row['changed']:,} of {row['of']:,}, {row['rate']:.2%} {percent(row['ci'])}",
                -row["rate"] if limit else None, "%", "each change: see Robustness",
            )  # fmt: skip


def feedback_loop(r: Results) -> Iterator[Target]:
    """The feedback loop's aims."""
    result = r.get("offpolicy")
    if result is None:
        yield from absent(("off-policy estimates: coverage of the 95% interval", ">= 90%"))
    else:
        for name, low in result["lowest_coverage_where_judged"].items():
            yield Target(
                f"off-policy, {name}: lowest coverage of the 95% interval, {result['runs']} runs",
                f">= {result['target']:.0%}",
                f"{low:.1%} {percent(wilson_interval(low * result['runs'], result['runs']))}",
                low - result["target"], "%", "",
            )  # fmt: skip
    result = r.get("end_to_end")
    if result is None:
        yield from absent(
            ("through the gateway: share to the right model rises with feedback", "rises"),
            ("through the gateway: decisions that `shadow` changes", "none"),
        )
    else:
        for kind, s in result["operators"].items():
            right = s["on"]["right"]
            rise = right["after"]["mean"] - right["first_block"]["mean"]
            yield Target(
                f"through the gateway, operator enters {kind}: share to the right model, first block "
                "and after 1,000 labels", "rises",
                f"{right['first_block']['mean']:.1%} to {right['after']['mean']:.1%}, seeds from "
                f"{right['after']['low']:.1%} to {right['after']['high']:.1%}", rise, "%",
                f"learning off {s['off']['right']['after']['mean']:.1%}",
            )  # fmt: skip
        shadow = result["proof"]["shadow"]
        yield Target(
            "through the gateway: decisions that `shadow` changes", "none",
            f"{shadow['differ']} of {shadow['decisions']:,}",
            -shadow["differ"] / shadow["decisions"], "%", "",
        )  # fmt: skip
    result = r.get("pacing")
    if result is None:
        yield from absent(("budget pacing: days with spend within 2% of the budget", "all"))
    else:
        for day, title in (
            ("day_1_no_profile", "first day"), ("day_2_with_profile", "second day"),
        ):  # fmt: skip
            p, naive = result[day]["pacer"], result[day]["hard stop"]
            # What the best model throughout does not cost cannot be spent.
            able = p["runs"] - p["cannot_be_spent"]
            within = min(1.0, p["within_2_percent"] * p["runs"] / able)
            more = f" ({p['cannot_be_spent']} more cannot be spent)" if able < p["runs"] else ""
            yield Target(
                f"budget pacing, {title}: runs with spend within 2% of the budget",
                "all", f"{within:.1%} of {able}{more}, spend over budget "
                f"{p['ratio_mean']:.3f} [{p['ratio_min']:.3f}, {p['ratio_max']:.3f}] (least, most)",
                within - 1.0, "%",
                f"naive hard stop: refuses {naive['refused_mean']:.1%} of requests, quality "
                f"{naive['quality_mean']:.3f} against {p['quality_mean']:.3f}",
            )  # fmt: skip
        over = max(result[d]["pacer"]["ceiling_passed"] for d in result if d.startswith("day_")
                   and "pacer" in result[d])  # fmt: skip
        yield Target("budget pacing: runs that pass the hard ceiling", "none", f"{over:.1%}",
                  -over, "%", "")  # fmt: skip
    result = r.get("drift_detection")
    if result is None:
        yield from absent(("drift watch: false alarms", "at most the stated rate"))
    else:
        row = max(result["rows"], key=lambda x: x["no_drift"]["watch"]["false_alarms"])
        quiet = row["no_drift"]
        stated = result["stated_false_alarm_probability"]
        yield Target(
            f"drift watch: false alarms in 5,000 quiet labels, worst of {len(result['rows'])} streams",
            f"<= {stated:.2f}",
            f"{quiet['watch']['false_alarms']:.3f} {ci(quiet['watch']['ci'])}",
            stated - quiet["watch"]["false_alarms"], "",
            f"repeated test {quiet['repeated test']['false_alarms']:.3f}",
        )  # fmt: skip


ALL = (routellm, pool, certificates, decision, training_cost, robustness, feedback_loop)


def all_targets(results: Results) -> list[Target]:
    return [target for find in ALL for target in find(results)]
