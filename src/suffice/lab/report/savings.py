"""A savings report as files: savings.json, charts, and one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from suffice.lab.report.charts import costs_chart, draw_savings
from suffice.lab.report.formats import format_percent, format_usd
from suffice.lab.report.html import render_page, require_folder, write_atomically
from suffice.lab.savings.headline import METHOD, format_saved, saving_sentence

if TYPE_CHECKING:
    from suffice.lab.savings.records import CallTotals, RouteReport, SavingsReport


class _Card(NamedTuple):
    """A figure at the top of the page; `otherwise` is shown if its value is unknown."""

    value: str | None
    text: str
    otherwise: str = "unknown"


def write_report(r: SavingsReport, out: Path) -> list[Path]:
    """Write savings.json, the charts and report.html into `out`, all of them or none.

    Args:
        r: The report.
        out: The folder.

    Returns:
        The paths.

    Raises:
        UsageError: If the folder cannot be written, or matplotlib or Jinja2 is missing.
    """
    require_folder(out)
    charts = draw_savings(r)
    contents = {
        "savings.json": msgspec.json.format(msgspec.json.encode(r), indent=2) + b"\n",
        **charts,
        "report.html": render_html(r, charts).encode(),
    }
    return write_atomically(contents, out)


def render_html(r: SavingsReport, charts: Mapping[str, bytes]) -> str:
    """Return the page, with style and charts inside."""
    warnings = list(r.warnings)
    if r.skipped:
        rows = "; ".join(f"{decision_id}: {reason}" for decision_id, reason in r.skipped_rows)
        warnings.append(f"{r.skipped:,} rows cannot be read and are left out: {rows}")
    return render_page(
        "savings.html",
        {"saving": saving_sentence, "saved": format_saved, "failures": _failures},
        r=r,
        charts=charts,
        chart_names={name: costs_chart(r, name) for name in r.routes},
        cards=_cards(r),
        warning_texts=warnings,
        version=version("suffice"),
        method=[f"{text}." for text in METHOD],
    )


def _cards(r: SavingsReport) -> list[_Card]:
    spent = f"spent on {r.requests:,} requests"
    if r.cost_unknown:
        spent += f"; cost of {r.cost_unknown:,} unknown"
    if r.audits:
        spent += f"; {format_usd(r.audits_usd)} more on audits"
    cards = [_Card(format_usd(r.spent_usd), spent)]
    for name, route in r.routes.items():
        suffix = "" if len(r.routes) == 1 else f" ({name})"
        cards += [_saving_card(route, suffix), _quality_card(route, suffix)]
    cards.append(_Card(f"{r.failed:,}", f"failed; {r.failovers:,} answered after a failover"))
    cards.append(_Card(f"{r.overhead_ms.p50:.2f} ms", "router overhead, median"))
    return cards


def _saving_card(route: RouteReport, suffix: str) -> _Card:
    single = route.singles.get(route.reference)
    if single is None or single.saved is None or single.spent_over_cost is None:
        return _Card(None, f"less than {route.reference} alone{suffix}")
    if single.saved >= 0:
        return _Card(format_percent(single.saved), f"less than {route.reference} alone{suffix}")
    text = f"the cost of {route.reference} alone was spent{suffix}"
    return _Card(f"{single.spent_over_cost:.1f} times", text)


def _quality_card(route: RouteReport, suffix: str) -> _Card:
    q = route.quality
    text = f"of {route.reference}'s quality kept{suffix}"
    if q.kept_ci is not None:
        text += f" ({format_percent(q.kept_ci[0])} to {format_percent(q.kept_ci[1])})"
    text += f"; {q.labelled:,} labels, {format_percent(q.labelled_share)} of decisions"
    value = None if q.kept is None else format_percent(q.kept)
    return _Card(value, text, "not known" if q.labelled else "no labels")


def _failures(c: CallTotals) -> str:
    """Return what went wrong with a model's calls, and how often."""
    return ", ".join(f"{o} {n:,}" for o, n in c.outcomes.items() if o != "ok") or "none"
