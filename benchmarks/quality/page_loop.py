"""The feedback loop's sections of docs/benchmarks/quality.md."""

from __future__ import annotations

from page_bars import Results, ci
from page_tables import Lines, table


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
        out += [f"**{title}**:", ""]
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
