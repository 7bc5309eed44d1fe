"""Totals of the savings report, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.html_page import HtmlPage
from tests.support.logged_traffic import (
    EVEN,
    NOW_S,
    PREDICTED_USD,
    STRONG,
    WEAK,
    Workspace,
    attempt,
    record,
    report,
)

from suffice.errors import JobError, StoreError, UsageError
from suffice.lab.report import savings as page
from suffice.lab.report.formats import format_percent, format_usd
from suffice.types import Feedback


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_failures_failovers_and_latency_are_counted(workspace: Workspace) -> None:
    over = (attempt(WEAK, "server"), attempt(STRONG, usd=0.002, number=2))
    records = [record(i, WEAK, EVEN, latency_s=0.01 * (i + 1)) for i in range(100)]
    records += [record(100, WEAK, EVEN, model=STRONG, cost_usd=0.002, attempts=over)]
    records += [record(101, WEAK, EVEN, model=None, status=502, cost_usd=None,
                        attempts=(attempt(WEAK, "server"),), error="x")]  # fmt: skip
    records += [record(102, WEAK, EVEN, model=None, status=499, cost_usd=None,
                        attempts=(attempt(WEAK, "cancelled"),))]  # fmt: skip
    records += [record(103, STRONG, {STRONG: 1.0}, basis="bypass", route=STRONG, cost_usd=0.01)]
    records += [record(104 + i, STRONG, {STRONG: 1.0}, basis="bypass", route="audit:auto",
                        cost_usd=0.02, latency_s=9.0) for i in range(3)]  # fmt: skip
    workspace.fill(records, [])
    r = report(workspace)
    assert (r.requests, r.audits, r.audits_usd) == (104, 3, pytest.approx(0.06))
    assert "$0.0600 on 3 calls that audited some of them" in r.headline[0]
    assert report(workspace, route="auto").audits == 3
    assert (r.failed, r.client_disconnects, r.failovers, r.retried, r.bypass) == (1, 1, 1, 1, 1)
    assert r.bypass_usd == pytest.approx(0.01)
    named = r.bypass_models[STRONG]
    assert (named.requests, named.spent_usd, named.cost_unknown) == (1, pytest.approx(0.01), 0)
    assert "named a model, so no policy decided them" in page.render_html(r, {})
    assert set(r.routes) == {"auto"}
    assert r.calls[WEAK].outcomes == {"ok": 100, "server": 2, "cancelled": 1}
    assert (r.calls[WEAK].failed, r.calls[WEAK].wasted_usd) == (2, None)
    assert r.latency_s[WEAK].p50 == pytest.approx(0.505, abs=0.01)
    assert r.latency_s[WEAK].p99 == pytest.approx(0.99, abs=0.02)
    assert r.overhead_ms.p50 == pytest.approx(0.2)
    assert r.statuses == {"200": 102, "499": 1, "502": 1}


def test_since_and_route_filter_every_figure(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, '[routes.other]\nmodels = ["p/weak", "p/strong"]\n')
    records = [record(i, WEAK, EVEN, route="other" if i % 3 == 0 else "auto") for i in range(90)]
    workspace.fill(records, [Feedback(decision_id=r.decision.id, score=1.0) for r in records])
    assert set(report(workspace).routes) == {"auto", "other"}
    other = report(workspace, route="other")
    assert (set(other.routes), other.requests) == ({"other"}, 30)
    assert other.feedback["user"].decisions == 30
    assert other.calls[WEAK].calls == 30
    late = report(workspace, since_s=NOW_S + 60 * 80)
    assert (late.requests, late.feedback["user"].decisions) == (10, 10)
    workspace.execute("UPDATE feedback SET score = 7 WHERE decision_id = ?", f"dec_{1:011x}")
    assert report(workspace).skipped == 1
    assert report(workspace, route="other").skipped == 0, "the invalid score is of another route"
    with pytest.raises(JobError, match=r"no request on route 'other' in that time"):
        report(workspace, route="other", since_s=NOW_S + 1e7)


def test_unreadable_rows_are_named_and_their_cost_still_counts(workspace: Workspace) -> None:
    workspace.fill([record(i, WEAK, EVEN) for i in range(30)], [])
    workspace.execute("UPDATE decisions SET detail = '{' WHERE id = ?", f"dec_{7:011x}")
    workspace.execute("UPDATE decisions SET detail = X'FF' WHERE id = ?", f"dec_{8:011x}")
    workspace.execute("UPDATE decisions SET cost_usd = -1 WHERE id = ?", f"dec_{9:011x}")
    workspace.execute(
        "INSERT INTO feedback (seq, decision_id, source, key, score, weight, kind, created_s)"
        " VALUES (1, ?, 'user', '', 7.0, 1.0, 'explicit', 0)", f"dec_{3:011x}",
    )  # fmt: skip
    r = report(workspace)
    assert r.skipped == 4
    assert {i for i, _ in r.skipped_rows} == {f"dec_{i:011x}" for i in (3, 7, 8, 9)}
    assert r.spent_usd == pytest.approx(29 * PREDICTED_USD[WEAK])
    assert r.routes["auto"].compared == 27


def test_an_empty_store_is_an_error_and_no_store_is_created(workspace: Workspace) -> None:
    with pytest.raises(StoreError, match="nothing has been recorded"):
        report(workspace)
    assert not workspace.file.exists()
    workspace.fill([], [])
    with pytest.raises(JobError, match="holds no request"):
        report(workspace)


def test_spooled_records_cause_a_warning(workspace: Workspace) -> None:
    workspace.fill([record(0, WEAK, {WEAK: 1.0})], [])
    (workspace.folder / "s.db.999.spool.jsonl").write_text("{}\n")
    assert any("s.db.999.spool.jsonl" in w for w in report(workspace).warnings)


NASTY = "p/<script>alert('x')</script>&co"


def test_the_page_is_self_contained_and_escapes_text(workspace: Workspace) -> None:
    even = {WEAK: 0.4, STRONG: 0.4, NASTY: 0.2}
    predicted = {**PREDICTED_USD, NASTY: 0.001}
    records = [
        record(i, (WEAK, STRONG, NASTY)[i % 3], even, predicted=predicted) for i in range(120)
    ]
    workspace.fill(
        records, [Feedback(decision_id=records[0].decision.id, score=1.0, source="<b>me")]
    )
    r = report(workspace)
    paths = page.write_report(r, workspace.folder / "out")
    names = {"savings.json", "report.html", "mix.png", "latency.png", "costs-auto.png"}
    assert {p.name for p in paths} == names
    assert {p.name for p in (workspace.folder / "out").iterdir()} == names
    html = HtmlPage((workspace.folder / "out" / "report.html").read_text())
    html.assert_self_contained(charts=3)
    for text in (
        NASTY,
        "<b>me",
        *r.headline[1:],
        "Requests over time",
        "Failures",
        "How this was made",
    ):
        assert text in html.text
    saved = json.loads((workspace.folder / "out" / "savings.json").read_text())
    assert saved["routes"]["auto"]["singles"][STRONG]["usd"] == pytest.approx(
        r.routes["auto"].singles[STRONG].usd
    )


def test_costlier_routing_is_not_shown_as_a_saving(workspace: Workspace) -> None:
    workspace.fill([record(i, STRONG, EVEN) for i in range(40)], [])
    r = report(workspace)
    text = HtmlPage(page.render_html(r, {})).text
    assert "nothing: spent 20.0 x its cost" in text, "against the weak model"
    assert "0%" in text, "against the strong model"


def test_a_failed_write_leaves_no_files(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.fill([record(i, WEAK, {WEAK: 1.0}) for i in range(3)], [])
    r = report(workspace)
    (workspace.folder / "mine").write_text("mine")
    with pytest.raises(UsageError, match="there is a file of that name"):
        page.write_report(r, workspace.folder / "mine")
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        page.write_report(r, workspace.folder / "out")
    assert list((workspace.folder / "out").iterdir()) == []


def test_amounts_and_shares_are_formatted() -> None:
    assert [format_usd(v) for v in (None, 0.0, 0.00012345, 0.5, 1234.5, -0.25)] == [
        "unknown", "$0.00", "$0.000123", "$0.5000", "$1,234.50", "-$0.2500",
    ]  # fmt: skip
    assert [format_percent(v) for v in (None, 0.0, 0.034, 0.5, -0.021)] == [
        "unknown", "0%", "3.4%", "50%", "-2.1%",
    ]  # fmt: skip
