"""The feedback loop's sections of docs/benchmarks/quality.md."""

from __future__ import annotations

from page_bars import Results, ci
from page_tables import Lines, table


def cell(v: dict[str, float | None], digits: int = 3) -> str:
    """A mean with what stands beside it; nothing where it is not a number."""
    mean, low, high = v["mean"], v["low"], v["high"]
    if mean is None or low is None or high is None:
        return ""
    return f"{mean:.{digits}f} {ci((low, high), digits)}"


def online(r: Results) -> Lines:
    told = r.get("online")
    if told is None:
        return []

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
         "95% interval covers", "without sessions"], rows,
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
        unspent = told[day]["pacer"]["cannot_be_spent"]
        out += [
            f"**{title}** (budgets above what the best model throughout costs, which count as misses "
            f"in this table: {unspent}):", "",
        ]  # fmt: skip
        out += table(
            ["policy", "spend over budget", "within 2%", "runs past the ceiling", "refused",
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
                    f"{d['delay_median']} (90% by {d['delay_90_percent']})"
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


def loop(r: Results) -> Lines:
    told = r.get("loop")
    if told is None:
        return []
    out = [
        "## The whole loop through the real gateway",
        "",
        f"{told['requests']:,} requests to simulated models with feedback; brackets here are the least "
        "and the most of the seeds. `right`: share sent to the model that is right for the query's "
        "topic; `after`: behind the first 1,000 labelled queries.",
        "",
    ]
    for kind, s in told["operators"].items():
        rows = [
            [
                f"learning = {run}", cell(s[run]["right"]["first_block"]),
                cell(s[run]["right"]["after"]), cell(s[run]["value"]["after"]), cell(s[run]["usd"]),
            ]
            for run in ("off", "on")
        ]  # fmt: skip
        rows += [
            ["best single model", "", "", cell(s["oracle"]["best_single_value"]), ""],
            ["oracle", "1", "1", cell(s["oracle"]["value"]), cell(s["oracle"]["usd"])],
        ]
        out += [f"**The operator told it {kind}**, {s['seeds']} seeds:", ""]
        out += table(["", "right, first block", "right, after", "value, after", "USD"], rows)
    p = told["proof"]
    replays = "; ".join(
        f"of `{k}` {x['within']} of {x['of']} intervals hold what happened, largest gap "
        f"{x['largest_gap']:.2g}"
        for k, x in p["replay"].items()
    )
    over = "; ".join(
        f"{k} p50 {cell(x['p50_ms'])} ms, p99 {cell(x['p99_ms'], 1)} ms"
        for k, x in p["overhead_ms"].items()
    )
    other = p["last_snapshot_on_the_log_of_on"]
    return [
        *out,
        f"Shadow: {p['shadow']['differ']} of {p['shadow']['decisions']:,} decisions differ from `off`; "
        f"what it would have done is right for {cell(p['shadow']['would_be_right_first_third'])} in "
        f"the first third and {cell(p['shadow']['would_be_right_last_third'])} in the last.",
        "",
        f"Replay: {replays}. Of the last snapshot on a log that others made: verdicts "
        f"{other['verdicts']}, {other['interval_holds_what_it_earned']} of {other['of']} intervals "
        "hold what it then earned.",
        "",
        f"Overhead of the gateway: {over}. Here `off` decides by the default policy and `on` by what "
        "was learned; `benchmarks/latency/learning.py` measures turn about what learning adds.",
        "",
    ]


def savings(r: Results) -> Lines:
    told = r.get("savings")
    if told is None:
        return []
    rows = [
        [
            f"{name}{' (settled on)' if t['chosen_on'] else ''}, {way}",
            f"{w['rmse']:.3f} {ci(w['rmse_ci'])}", f"{w['bias']:+.3f}", f"{w['median_abs']:.3f}",
            f"{t['covers']:.1%}" if way == "report" else "",
        ]
        for name, t in told["tables"].items()
        for way, w in t["ways"].items()
    ]  # fmt: skip
    return [
        "## What single models would have cost",
        "",
        f"{told['draws']} draws of {told['models_a_draw']} models: error of log(estimated / true "
        "cost) of one model alone on all queries. `report` is what the product says; tables it was "
        "settled on are marked, and no table was held out.",
        "",
        *table(["table, way", "RMSE", "bias", "median error", "95% interval covers"], rows),
    ]
