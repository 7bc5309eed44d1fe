"""One section of docs/benchmarks/quality.md per runner, as lines of Markdown; none where its results
are not there."""

from __future__ import annotations

from typing import Any

from page_bars import LABELLED, Results, ci, over_seeds, percent
from page_loop import loop, offpolicy, online, pacing, savings, watch
from page_tables import Lines, table

_SHORT = {"trained": "**trained**"}


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
        "Read RouteLLM's figures with care. Its well-known savings of 85% are those of MT-Bench; it "
        "reports 45% on MMLU and 35% on GSM8K. On MT-Bench's judgements the weak model alone reaches "
        "89.9% of GPT-4, so 95% of GPT-4's quality is only half of the gap. MT-Bench has "
        "72 questions here: its intervals are wider than most differences. The published best figures "
        "on MMLU and GSM8K come from routers trained with labels of these very benchmarks. Share of "
        "strong calls is not money.",
        "",
        "With labels of one's own traffic, APGR: mean over draws of the labels with its 95% interval, "
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
                f"{gain}, seed by seed {each or 'nothing to compare'}; it chose {chosen}.",
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
        "chosen model changes under any of them. Wilson intervals, 95%.",
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
    less = [s["trained_minus_length"]["ci"] for s in told["left_out"]]
    out += [
        f"On a source that nothing was learned from, the trained head is better than length beyond "
        f"chance on {sum(low > 0 for low, _ in less)} of {len(less)} of these, worse on "
        f"{sum(high < 0 for _, high in less)}; elsewhere the interval holds zero. Labels of one's own "
        "traffic are what pays.",
        "",
    ]
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


ALL = (
    routellm, pool, certificates, robustness, cost, loop, online, offpolicy, pacing, watch, savings,
)  # fmt: skip


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
    head = ["results", "date", "machine", "versions", "commit", "seeds", "command"]
    out += table(head, rows, left=True)
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
