"""One section of docs/benchmarks/quality.md per runner, as lines of Markdown; none where its results
are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from page_bars import LABELLED, Results, ci, over_seeds, percent

Lines = list[str]
_SHORT = {"trained": "**trained**"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A Markdown table, the first column to the left."""
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(r) + " |" for r in (head, marks, *rows)] + [""]


def name(policy: str) -> str:
    return _SHORT.get(policy, policy)


def routellm(r: Results) -> Lines:
    told = r.get("routellm")
    if told is None:
        return []
    out = [
        "## RouteLLM's protocol: GPT-4 or Mixtral",
        "",
        "APGR is the share of the quality gap between the weak and the strong model that is recovered, "
        "averaged over shares of strong calls; random choice has 0.5. CPT50 and CPT80: the share of "
        "strong calls that recovers half and four fifths of the gap, less is better. `default` is the "
        "policy of the base install and has seen no label; the published rows are RouteLLM's own "
        "figures (Ong et al. 2024, arXiv 2406.18665), taken from its paper and not rerun here.",
        "",
    ]
    for b in told["benchmarks"]:
        weak, strong = b["quality"][1], b["quality"][0]
        out += [
            f"**{LABELLED[b['benchmark']]}**, no labels, {b['queries']:,} queries; strong "
            f"{strong:.3f}, weak {weak:.3f}:",
            "",
        ]
        rows = [
            [
                z["policy"],
                *(f"{z[m]:.3f} {ci(z[m + '_interval'])}" for m in ("cpt50", "cpt80", "apgr")),
            ]
            for z in b["zero_labels"]
        ]
        rows += [
            [f"published: {k}", *("" if v[m] is None else f"{v[m]:.3f}"
                                  for m in ("cpt50", "cpt80", "apgr"))]
            for k, v in b["published"].items()
        ]  # fmt: skip
        out += table(["policy", "CPT50", "CPT80", "APGR"], rows)
    out += [
        "Read RouteLLM's figures with care. Its well-known savings of 85 % are those of MT-Bench; it "
        "reports 45 % on MMLU and 35 % on GSM8K. On MT-Bench's judgements the weak model alone reaches "
        "89.9 % of GPT-4, so 95 % of GPT-4's quality is only half of the gap. MT-Bench has "
        "72 questions here: its intervals are wider than most differences. The published best figures "
        "on MMLU and GSM8K come from routers trained with labels of these very benchmarks. Share of "
        "strong calls is not money.",
        "",
        "With labels of one's own traffic, APGR: mean over draws of the labels with its 95 % interval, "
        "and in brackets the worst difference to prompt length on the same test queries in any draw.",
        "",
        "![APGR over the number of labels](img/label-curves.png)",
        "",
    ]
    for b in told["benchmarks"]:
        if "curves" not in b:
            continue
        sizes = list(dict.fromkeys(c["n"] for c in b["curves"]))
        policies = list(dict.fromkeys(c["policy"] for c in b["curves"]))
        at = {(c["policy"], c["n"]): c for c in b["curves"]}
        rows = []
        for n in sizes:
            cells = []
            for p in policies:
                c = at[p, n]
                low, high = over_seeds(c["each"])
                half = (high - low) / 2
                cells.append(f"{c['apgr']:.3f} ± {half:.3f} ({c['least_less_length']:+.3f})")
            rows.append([f"{n:,}", *cells])
        out += [f"**{LABELLED[b['benchmark']]}**, {len(told['seeds'])} draws:", ""]
        out += table(["labels", *(name(p) for p in policies)], rows)
    return out


def pool(r: Results) -> Lines:
    told = r.get("pool")
    if told is None:
        return []
    out = [
        "## Many models: gain over the zero router",
        "",
        "The zero router mixes single models at random along their hull, without looking at a prompt. "
        "Area: mean quality over the range of cost between the cheapest and the dearest model. A hull "
        "is picked on the queries it is judged on, so that `random` gains a little as well: a gain no "
        "larger than its is none. QNC: cost, relative to the best single model's, at which its quality "
        "is reached, mean over seeds.",
        "",
        "![Cost and quality on ParetoBandit](img/pareto.png)",
        "",
    ]
    for case in told["cases"]:
        best = max(case["models"], key=lambda m: case["models"][m]["quality"])
        cheap = min(case["models"], key=lambda m: case["models"][m]["usd_per_query"])
        models = case["models"]
        bar = "" if case["bar"] is None else f" Bar for `trained`: {case['bar']:+.4f}."
        out += [
            f"**{case['name']}**: {case['queries']:,} queries, {len(models)} models from {cheap} "
            f"({models[cheap]['quality']:.3f}, {models[cheap]['usd_per_query']:.2g} USD a query) to "
            f"{best} ({models[best]['quality']:.3f}, {models[best]['usd_per_query']:.2g} USD), "
            f"{len(case['seeds'])} seeds.{bar}",
            "",
        ]
        rows = []
        for p, v in case["policies"].items():
            qnc = "not reached" if v["qnc_reached_on_seeds"] == 0 else "not on every seed"
            if v["qnc"] is not None:
                qnc = f"{v['qnc']:.2f}"
            rows.append(
                [
                    name(p), f"{v['gain']:+.4f} {ci(v['ci'], 4, True)}",
                    f"{v['lowest_seed']:+.4f} to {v['highest_seed']:+.4f}", qnc,
                ]
            )  # fmt: skip
        out += table(["policy", "gain", "seeds, lowest to highest", "QNC"], rows)
        if case.get("nested"):
            n = case["nested"]
            chosen = ", ".join(f"{c} {n['chosen'].count(c)}x" for c in dict.fromkeys(n["chosen"]))
            gain = "nothing" if n["gain"] is None else f"{n['gain']:+.4f}"
            each = "; ".join(
                f"{g:+.4f} {ci(i, 4, True)}"
                for g, i in zip(n["gain_each_seed"], n["ci_each_seed"], strict=True)
            )
            out += [
                f"What `suffice train` reports of itself, choosing by nested cross-validation: "
                f"{gain} on average over {len(n['chosen'])} seeds ({each}); it chose {chosen}.",
                "",
            ]
        if case.get("labels"):
            sizes = list(case["labels"])
            out += [
                "Gain by the number of labels, each fold's fit on that many queries (below 300 labels "
                "more than two models get constants only, by design):",
                "",
            ]
            rows = [
                [name(p), *(f"{case['labels'][n][p]['gain']:+.4f} "
                            f"{ci(case['labels'][n][p]['ci'], 4, True)}" for n in sizes)]
                for p in case["labels"][sizes[0]]
            ]  # fmt: skip
            out += table(["policy", *(f"{int(n):,} labels" for n in sizes)], rows)
        notes = [n for n in case["notes"] if n]
        if notes:
            out += ["Notes: " + "; ".join(notes) + ".", ""]
    return out


def certificates(r: Results) -> Lines:
    told = r.get("certificates")
    if told is None:
        return []
    out = [
        "## Certificates beside naive tuning",
        "",
        f"{told['splits']} splits. A violation: the loss over all traffic is above eps although it was "
        "certified (or tuned) to be at most eps, with confidence "
        f"{told['confidence']:.0%}. Violation rates with Clopper-Pearson intervals; `goes cheap`: mean "
        "share of traffic sent to a cheap model.",
        "",
    ]
    for case in told["cases"]:
        judged = "" if case["judged"] else " (development table, not counted)"
        out += [
            f"**{case['case']}**{judged}: {case['queries']:,} queries, {case['kind']} scores; always "
            f"cheapest would lose {case['loss_if_always_cheapest']:.1%}.",
            "",
        ]
        rules = [x for x in ("certified", "naive") if any(c["rule"] == x for c in case["cells"])]
        at = {(c["score"], c["n"], c["eps"], c["rule"]): c for c in case["cells"]}
        rows = []
        for score, n, eps in dict.fromkeys((c["score"], c["n"], c["eps"]) for c in case["cells"]):
            row = [f"{score}, {n:,} labels, eps {eps:.0%}"]
            for rule in rules:
                c = at[score, n, eps, rule]
                row += [
                    f"{c['violations']:.2f} {ci(c['violations_ci'], 2)}",
                    f"{c['certified_away']:.1%} {percent(c['certified_away_ci'])}",
                ]
            rows.append(row)
        head = ["score, labels, eps"]
        for rule in rules:
            head += [f"{rule}: violations", f"{rule}: goes cheap"]
        out += table(head, rows)
    return out


def robustness(r: Results) -> Lines:
    told = r.get("robustness")
    if told is None:
        return []
    total = sum(told["prompts"].values())
    out = [
        "## Robustness",
        "",
        f"The same {total:,} prompts put otherwise, three objectives each; a prompt counts where the "
        "chosen model changes under any of them. Wilson intervals, 95 %.",
        "",
    ]
    names = list(told["policies"])
    first = told["policies"][names[0]]["changes"]
    for kind in first:
        rows = []
        for change in ("any", *first[kind]["each"]):
            row = ["**any of these**" if change == "any" else change]
            for p in names:
                part = told["policies"][p]["changes"][kind]
                c = part["any"] if change == "any" else part["each"][change]
                row.append(f"{c['changed']:,} ({c['rate']:.2%} {percent(c['ci'])})")
            rows.append(row)
        out += table([kind, *(f"{p} policy: prompts that change" for p in names)], rows)
    out += ["Share of decisions for each model, by objective, before any change:", ""]
    models = list(next(iter(told["policies"][names[0]]["share"].values())))
    rows = [
        [f"{p}, {o}", *(f"{share[m]:.0%}" for m in models)]
        for p in names
        for o, share in told["policies"][p]["share"].items()
    ]
    out += table(["policy, objective", *(m.rsplit("/", 1)[-1] for m in models)], rows)
    out += [
        "**Leave one source out**: policies learn from all other benchmarks of a table and are judged "
        "on the one left out; mean over sources, intervals from redrawing sources. `in source`: the "
        "trained head cross-fitted, having seen other queries of the same source. The zero router has "
        "0.5 APGR and a gain of 0.",
        "",
    ]
    columns = ("trained", "length", "default", "knn", "random", "trained_in_source")
    rows = []
    for s in told["left_out"]:
        pair = s["figure"] == "APGR"
        digits, sign = (3, False) if pair else (4, True)
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        m = s["mean"]
        less = s["trained_minus_length"]
        rows.append(
            [
                f"{s['name']}: {s['figure']}, {len(s['sources'])} sources",
                *(f"{form.format(m[c]['mean'])} {ci(m[c]['ci'], digits, sign)}" for c in columns),
                f"{less['mean']:+.{digits}f} {ci(less['ci'], digits, True)}",
            ]
        )
    out += table(
        ["table", "**trained**", "length", "default", "knn", "random", "trained, in source",
         "trained less length"], rows,
    )  # fmt: skip
    return out


def cost(r: Results) -> Lines:
    decision, told = r.get("decision"), r.get("cost")
    if decision is None and told is None:
        return []
    out = ["## Cost", ""]
    if decision is not None:
        out += [
            f"One decision ({decision['method']}; load average {decision['load_average']}). RouteLLM "
            "publishes 155 requests/s, which is 6,452 microseconds each, on a machine of its own.",
            "",
        ]
        rows = [
            [k, *(f"{v[p]:,.0f}" for p in ("median", "p90", "p99"))]
            for k, v in decision["microseconds"].items()
        ]
        out += table(["microseconds", "median", "p90", "p99"], rows)
    if told is not None:
        rows = [
            [
                k, f"{c['queries']:,} x {c['models']}", f"{c['wall_s']:.1f} s",
                f"{c['cpu_s']:.1f} s", f"{c['peak_mb']:.0f} MB", f"{c['load_average_before']:.1f}",
            ]
            for k, c in told["commands"].items()
        ]  # fmt: skip
        out += [
            f"Whole commands, best of {told['rounds']} rounds by wall time. On a machine shared with "
            "other work, CPU time tells more than wall time.",
            "",
            *table(
                ["command", "queries x models", "wall", "CPU", "peak memory", "load average"], rows
            ),
        ]
    return out


def online(r: Results) -> Lines:
    told = r.get("online")
    if told is None:
        return []

    def cell(v: dict[str, float], digits: int) -> str:
        return f"{v['mean']:.{digits}f} {ci((v['low'], v['high']), digits)}"

    out = [
        "## Learning online",
        "",
        f"Cumulative regret over the stream, seeds {told['seeds'][0]} to {told['seeds'][1]}, less is "
        "better; negative means better than the best single model in hindsight. The package "
        f"paretobandit: {told['paretobandit']}.",
        "",
    ]
    for key, players in told["settled"].items():
        rows = [
            [p, cell(v["regret_best_single"], 1), cell(v["regret_oracle"], 1), cell(v["value"], 4)]
            for p, v in players.items()
        ]
        out += [f"**{key}**:", ""]
        out += table(["policy", "regret to best single", "regret to oracle", "mean value"], rows)
    out += ["What changes mid-stream: mean value below the best single model of that time.", ""]
    for game, players in told["changes"].items():
        whats = list(next(iter(players.values())))
        rows = [[p, *(cell(v[w], 4) for w in whats)] for p, v in players.items()]
        out += [f"**{game}**:", "", *table(["policy", *whats], rows)]
    return out


def offpolicy(r: Results) -> Lines:
    told = r.get("offpolicy")
    if told is None:
        return []
    out = [
        "## Off-policy estimates against the known truth",
        "",
        f"{told['runs']} simulated logs each, {told['table']}. A policy is not judged where the "
        f"effective sample size is below {told['refused_below_ess']}.",
        "",
    ]
    rows = [
        [
            f"{x['logging']} log, {x['target']}, {x['estimator']}", f"{x['ess']:.0f}",
            f"{x['judged']:.0%}", f"{x['bias']:+.4f}", f"{x['rmse']:.4f}",
            f"{x['coverage']:.1%}", f"{x['coverage_without_sessions']:.1%}",
        ]
        for x in told["rows"]
    ]  # fmt: skip
    out += table(
        ["log, policy, estimator", "effective sample", "judged", "bias", "RMSE",
         "95 % interval covers", "without sessions"], rows,
    )  # fmt: skip
    other = told["independent_implementation"]
    if other is not None:
        gaps = ", ".join(f"{k} {v:.1e}" for k, v in other["largest_difference"].items())
        out += [
            f"Against {other['package']} on the same {other['logs']} logs, largest difference: {gaps}.",
            "",
        ]
    return out


def pacing(r: Results) -> Lines:
    told = r.get("pacing")
    if told is None:
        return []
    out = [
        "## Budget pacing",
        "",
        f"Days of about {told['requests_a_mean_day']:,} requests with bursts; spend over budget, mean "
        "with least and most over all runs. Quality counts a refusal as 0; below the optimum: one "
        "multiplier known in hindsight, ± 1.96 standard errors.",
        "",
    ]
    for day, title in (("day_1_no_profile", "First day, nothing known of its traffic"),
                       ("day_2_with_profile", "Second day, with the first day's profile")):  # fmt: skip
        rows = [
            [
                k, f"{v['ratio_mean']:.4f} [{v['ratio_min']:.4f}, {v['ratio_max']:.4f}]",
                f"{v['within_2_percent']:.1%}", f"{v['ceiling_passed']:.1%}",
                f"{v['refused_mean']:.2%}", f"{v['quality_mean']:.4f}",
                f"{v['below_optimum_mean']:+.4f} ± {1.96 * v['below_optimum_se']:.4f}",
            ]
            for k, v in told[day].items()
        ]  # fmt: skip
        out += [f"**{title}**:", ""]
        out += table(
            ["policy", "spend over budget", "within 2 %", "runs past the ceiling", "refused",
             "quality", "below the optimum"], rows,
        )  # fmt: skip
    return out


def watch(r: Results) -> Lines:
    told = r.get("watch")
    if told is None:
        return []
    rows = []
    for x in told["rows"]:
        q = x["no_drift"]
        rows.append(
            [
                x["stream"],
                *(
                    f"{q[k]['false_alarms']:.3f} {ci(q[k]['ci'])}"
                    for k in ("watch", "repeated test")
                ),
                *(
                    f"{d['delay_median']} (90 % by {d['delay_90_percent']})"
                    + ("" if d["paid_median"] is None else f", {d['paid_median']} paid")
                    for d in x["drop"]
                ),
            ]
        )
    return [
        "## The drift watch",
        "",
        f"{told['streams']} streams each; stated false-alarm probability "
        f"{told['stated_false_alarm_probability']:g} over the whole life of a watch, Clopper-Pearson "
        "intervals. Delay: labels from a 5-point drop in quality to the alarm, median.",
        "",
        *table(
            ["stream", "false alarms", "of a repeated test", "delay, drop at the start",
             "delay, drop after 1,000 labels"], rows,
        ),
    ]  # fmt: skip


ALL = (routellm, pool, certificates, robustness, cost, online, offpolicy, pacing, watch)


def where_from(r: Results, commands: dict[str, str]) -> Lines:
    """Machine, versions, seeds, date and command of each results file, and how it was measured."""
    out = ["## Where the figures come from", ""]
    rows, how = [], []
    for key, told in r.items():
        machine = told["machine"]
        if isinstance(machine, dict):
            machine = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"
        packages = told.get("packages") or told.get("versions") or {}
        versions = ", ".join(f"{k} {v}" for k, v in packages.items())
        rows.append(
            [
                f"[{key}](#{key})" if told.get("method") else key, told["date"], machine, versions,
                told.get("commit") or "", seeds(told), f"`{commands[key]}`",
            ]
        )  # fmt: skip
        if told.get("method"):
            how += [f"### {key}", "", told["method"].rstrip(".") + ".", ""]
    out += table(["results", "date", "machine", "versions", "commit", "seeds", "command"], rows)
    return out + how


def seeds(told: dict[str, Any]) -> str:
    if "cases" in told and told["cases"] and "seeds" in told["cases"][0]:
        counts = sorted({len(c["seeds"]) for c in told["cases"]})
        return " or ".join(str(c) for c in counts)
    if isinstance(told.get("seeds"), list):
        given = told["seeds"]
        return f"{given[0]} to {given[-1]}"
    for key in ("splits", "streams", "runs"):
        if key in told:
            first = told.get("first_seed", told.get("seed", 0))
            return f"{first} to {first + told[key] - 1}" if key != "runs" else f"{told[key]} runs"
    return str(told["seed"]) if "seed" in told else ""
