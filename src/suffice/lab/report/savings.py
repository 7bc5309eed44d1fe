"""A report as files: savings.json, the plots, and one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from suffice.lab.report.html import figure, require_folder, table, write_atomically
from suffice.lab.report.savings_charts import costs_file, figures, span
from suffice.lab.savings.headline import (
    METHOD,
    format_interval,
    format_percent,
    format_saved,
    format_time,
    format_usd,
)

if TYPE_CHECKING:
    from suffice.lab.savings import Report, RouteReport

_CSS = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1c1c1c;
background:#fafaf8;margin:0}
main{max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
.facts{color:#555;margin:.3rem 0}.said{background:#eef4f1;border-left:4px solid #3a7d44;
padding:.6rem 1rem;margin:.8rem 0}.unsaid{background:#f1f1ee;border-left:4px solid #8a8a86;
padding:.6rem 1rem;margin:.8rem 0}.warn{background:#fff6e5;border-left:4px solid #d98e04;
padding:.6rem 1rem;margin:.8rem 0}.warn ul,.notes{margin:0;padding-left:1.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;
margin:1.2rem 0}.card{background:#fff;border:1px solid #e4e4e0;padding:.7rem .9rem}
.card b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.card b.none{color:#777;font-size:1.15rem;line-height:1.55}
.card span{color:#555;font-size:.85rem;display:block}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;
font-size:.88rem;background:#fff}th,td{padding:.34rem .75rem;text-align:right;
border-bottom:1px solid #e4e4e0;white-space:nowrap}
th{white-space:normal;max-width:10rem;border-bottom:2px solid #bbb;vertical-align:bottom}
th:first-child,td:first-child,td.words,th.words{text-align:left}
td.words{white-space:normal}figure{margin:1rem 0;background:#fff;border:1px solid #e4e4e0;
padding:.5rem}figure img{width:100%;height:auto;display:block}
figcaption{color:#555;font-size:.85rem;padding:.4rem .5rem 0}.ci{color:#777;font-size:.92em}
.notes li{margin:.25rem 0}
"""


def write(r: Report, out: Path) -> list[Path]:
    """savings.json, the plots and report.html in `out`, all of them or none. Returns the paths.

    Raises UsageError where `out` cannot be written.
    """
    require_folder(out)
    pictures = figures(r)
    contents = {
        "savings.json": msgspec.json.format(msgspec.json.encode(r), indent=2) + b"\n",
        **pictures,
        "report.html": html(r, pictures).encode(),
    }
    return write_atomically(contents, out)


def html(r: Report, pictures: dict[str, bytes]) -> str:
    """The page: style and pictures inside, no request to anywhere."""
    of = "all routes" if r.route is None else f"route {r.route}"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>suffice report</title><style>{_CSS}</style></head><body><main>",
        "<h1>Savings and quality</h1>",
        f"<p class=facts>{escape(of)}, {format_time(r.first_s)} to {format_time(r.last_s)} UTC. Made "
        f"{format_time(r.made_s)} UTC by suffice {version('suffice')}.</p>",
        _cards(r),
        _warnings(r),
    ]
    for name, one in r.routes.items():
        parts += _route(r, name, one, pictures)
    parts += [
        "<h2>Who answered, over time</h2>",
        _figure(
            "mix.png", pictures,
            f"Requests by the model that answered, and USD spent, in {span(r.mix.bucket_s)}."
            + (" Upright lines: promotions, dotted where rolled back." if r.events else ""),
        ),
        "<h2>Latency</h2>",
        _latency(r, pictures),
        "<h2>Failures and failovers</h2>",
        *_failures(r),
        "<h2>Learning</h2>",
        *_learning(r),
        "<h2>How this was made</h2><ul class=notes>",
        "".join(f"<li>{escape(m)}.</li>" for m in METHOD),
        "</ul></main></body></html>",
    ]  # fmt: skip
    return "\n".join(p for p in parts if p)


def _cards(r: Report) -> str:
    cards = [
        _card(
            format_usd(r.spent_usd),
            f"spent on {r.requests:,} requests"
            + (f"; cost of {r.cost_unknown:,} unknown" if r.cost_unknown else "")
            + (f"; {format_usd(r.audits_usd)} more on audits" if r.audits else ""),
        )
    ]
    for name, one in r.routes.items():
        of = "" if len(r.routes) == 1 else f" ({name})"
        s, q = one.singles.get(one.reference), one.quality
        told = None if s is None or s.saved is None else s
        words = f"less than {one.reference} alone{of}"
        if told is not None and told.saved is not None and told.saved < 0:
            words = f"what {one.reference} alone would have cost{of}"
        cards.append(_card(None if told is None else format_saved(told), words))
        cards.append(
            _card(
                format_percent(q.kept) if q.kept is not None else None,
                f"of {one.reference}'s quality kept{of}"
                + (
                    ""
                    if q.kept_ci is None
                    else f" ({format_percent(q.kept_ci[0])} to {format_percent(q.kept_ci[1])})"
                )
                + f"; {q.labelled:,} labels, {format_percent(q.labelled_share)} of decisions",
                "not known" if q.labelled else "no labels",
            )
        )
    cards.append(_card(f"{r.failed:,}", f"failed; {r.failovers:,} answered after failing over"))
    cards.append(_card(f"{r.overhead_ms.p50:.2f} ms", "router overhead, median"))
    return f"<div class=cards>{''.join(cards)}</div>"


def _card(value: str | None, words: str, otherwise: str = "unknown") -> str:
    shown = f"<b>{escape(value)}</b>" if value is not None else f"<b class=none>{otherwise}</b>"
    return f"<div class=card>{shown}<span>{escape(words)}</span></div>"


def _warnings(r: Report) -> str:
    told = list(r.warnings)
    if r.skipped:
        named = "; ".join(f"{i}: {why}" for i, why in r.skipped_rows)
        told.append(f"{r.skipped:,} rows cannot be read and are left out: {named}")
    if not told:
        return ""
    return f"<div class=warn><ul>{''.join(f'<li>{escape(w)}</li>' for w in told)}</ul></div>"


def _figure(name: str, pictures: dict[str, bytes], caption: str) -> str:
    data = pictures.get(name)
    return "" if data is None else figure(data, caption)


def _ci(text: str) -> str:
    return f" <span class=ci>{escape(text.strip())}</span>" if text else ""


# ── the parts of a route ─────────────────────────────────────────────────────────────────────────


def _route(r: Report, name: str, one: RouteReport, pictures: dict[str, bytes]) -> list[str]:
    from suffice.lab.savings.headline import saving_sentence

    plain = one.singles.get(one.reference)
    known = plain is not None and plain.saved is not None
    partial = any(0 < s.coverage <= 0.9995 for s in one.singles.values())
    caption = "What each model alone would have cost for the same requests. Dashed: what was spent."
    if partial:
        caption += " * Drawn as if it could have taken all: scaled up from those it could take."
    return [
        f"<h2>Route {escape(name)}: savings</h2>",
        f"<p class={'said' if known else 'unsaid'}>{escape(saving_sentence(one))}</p>",
        f"<p class=facts>{one.decisions:,} decisions, {one.answered:,} answered, {one.compared:,} "
        f"of known cost and compared. Reference: {escape(one.reference)}, "
        f"{escape(one.reference_why)}.</p>",
        _figure(costs_file(r, name), pictures, caption),
        _costs(one),
        f"<h2>Route {escape(name)}: quality</h2>",
        f"<p class={'said' if one.quality.said else 'unsaid'}>{escape(one.quality.why)}</p>",
        *_quality(one),
    ]


def _costs(one: RouteReport) -> str:
    rows = []
    for s in one.singles.values():
        span_ = "" if s.saved_ci is None or (s.saved or 0) < 0 else (
            f"[{format_percent(s.saved_ci[0])}, {format_percent(s.saved_ci[1])}]"
        )  # fmt: skip
        scaled = "never taken" if s.calibrated_on == 0 else f"{s.calibrated_on:,} answers"
        if s.paid_over_predicted is not None:
            scaled = f"{s.paid_over_predicted:.2f} on {scaled}"
        rows.append(
            [
                escape(s.model) + (" <b>reference</b>" if s.model == one.reference else ""),
                format_percent(s.coverage),
                format_usd(s.usd) + _ci(format_interval(s.usd_ci)),
                format_usd(s.spent_usd),
                escape(format_saved(s)) + _ci(span_),
                scaled,
            ]
        )
    head = ["one model alone", "requests it could take", "would have cost", "spent on those",
            "saved against it", "paid over predicted"]  # fmt: skip
    return table(head, rows)


def _quality(one: RouteReport) -> list[str]:
    q = one.quality
    facts = (
        f"{q.labelled:,} labelled decisions ({format_percent(q.labelled_share)}); worth "
        f"{q.effective:.0f} labels of {q.reference} alone; {format_percent(q.support)} of them could have "
        f"gone to it; {format_percent(q.explored)} of free choices were drawn."
    )
    out = [f"<p class=facts>{escape(facts)}</p>"]
    if q.said:
        rows = [
            ["what happened", _score(q.happened, None)],
            [f"always {escape(q.reference)}, doubly robust",
             _score(q.always_reference, q.always_reference_ci)],
            [f"always {escape(q.reference)}, SNIPS", _score(q.snips, q.snips_ci)],
            ["lost against it", _score(q.lost, q.lost_ci, sign=True)],
        ]  # fmt: skip
        out.append(table(["mean score", "estimate and 95 % interval"], rows))
    if q.predicted_kept is not None:
        resting = ", ".join(f"{b} on {n:,}" for b, n in q.basis.items())
        out.append(
            f"<p class=facts>The policy's own predictions put it at {format_percent(q.predicted_kept)} of "
            f"{escape(q.reference)}'s quality (basis: {escape(resting)} decisions). That is what "
            "was aimed at, and measures nothing.</p>"
        )
    rows = [
        [
            escape(m), f"{s.requests:,}", f"{s.labelled:,}",
            f"too few to say; about {s.needed} needed" if s.mean is None
            else _score(s.mean, s.mean_ci),
        ]
        for m, s in q.models.items()
    ]  # fmt: skip
    out.append("<h3>Scores of what each model answered</h3>")
    out.append(table(["model", "answered", "labels", "mean score"], rows))
    out.append("<p class=facts>They answered different requests, so this compares no models.</p>")
    return out


def _score(value: float | None, ci: tuple[float, float] | None, sign: bool = False) -> str:
    if value is None:
        return "unknown"
    form = "+.3f" if sign else ".3f"
    return f"{value:{form}}" + ("" if ci is None else _ci(f"[{ci[0]:{form}}, {ci[1]:{form}}]"))


# ── the parts of all ─────────────────────────────────────────────────────────────────────────────


def _latency(r: Report, pictures: dict[str, bytes]) -> str:
    if not r.latency_s:
        return "<p class=facts>Nothing was answered.</p>"
    rows = []
    for m, p in r.latency_s.items():
        first = r.first_chunk_s.get(m)
        chunk = "no streams" if first is None else f"{first.p50:.2f} ({first.p95:.2f})"
        rows.append(
            [escape(m), f"{p.n:,}", *(f"{v:.2f}" for v in (p.p50, p.p90, p.p95, p.p99)), chunk]
        )
    head = ["seconds to the whole answer", "answers", "median", "90 %", "95 %", "99 %",
            "first chunk, median (95 %)"]  # fmt: skip
    o = r.overhead_ms
    return (
        _figure("latency.png", pictures, "Time to the whole answer by model.")
        + table(head, rows)
        + f"<p class=facts>Router overhead before the first byte went upstream: median {o.p50:.2f} "
        f"ms, 95 % under {o.p95:.2f} ms, 99 % under {o.p99:.2f} ms.</p>"
    )


def _failures(r: Report) -> list[str]:
    rows = [
        [escape(m), f"{c.calls:,}", f"{c.failed:,}", format_percent(c.failed / max(1, c.calls)),
         format_usd(c.wasted_usd) if c.failed else "",
         escape(", ".join(f"{o} {n:,}" for o, n in c.outcomes.items() if o != "ok")) or "none"]
        for m, c in r.calls.items()
    ]  # fmt: skip
    statuses = ", ".join(f"{s}: {n:,}" for s, n in r.statuses.items())
    out = [
        f"<p>{r.failed:,} of {r.requests:,} requests failed. {r.failovers:,} were answered by "
        f"another model than the chosen one, {r.retried:,} took more than one attempt, "
        f"{r.client_left:,} clients left. Status codes: {escape(statuses)}.</p>"
    ]
    if r.bypass:
        out.append(
            f"<p class=facts>{r.bypass:,} requests ({format_usd(r.bypass_usd)}) asked for a model by name: "
            "no policy decided them.</p>"
        )
    if rows:
        head = ["calls of", "calls", "failed", "share", "paid for failed", "what went wrong"]
        out.append(table(head, rows, words=(5,)))
    return out


def _learning(r: Report) -> list[str]:
    out = []
    if r.events:
        rows = [
            [format_time(e.at_s), escape(e.route), e.kind + (" (forced)" if e.forced else ""),
             escape(e.version or "the configured policy"),
             escape(e.previous or "the configured policy"), escape(e.by)]
            for e in r.events
        ]  # fmt: skip
        head = ["UTC", "route", "what", "current from then on", "before", "by"]
        out.append(table(head, rows, words=(1, 2, 3, 4, 5)))
    else:
        out.append("<p class=facts>No policy was promoted or rolled back in this time.</p>")
    if r.feedback:
        rows = [
            [escape(s), f.kind, f"{f.decisions:,}", f"{f.mean:.3f}"] for s, f in r.feedback.items()
        ]
        out.append("<h3>Feedback</h3>")
        out.append(table(["source", "kind", "decisions", "mean score"], rows, words=(1,)))
    else:
        out.append("<p class=facts>No feedback was given.</p>")
    rows = [
        [escape(name), escape(p), f"{n:,}"]
        for name, one in r.routes.items()
        for p, n in list(one.policies.items())[:10]
    ]
    out.append("<h3>Who decided</h3>")
    out.append(table(["route", "policy and version", "decisions"], rows, words=(1,)))
    return out
