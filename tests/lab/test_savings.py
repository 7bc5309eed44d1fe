"""The report's figures against traffic whose truth is known, and what it refuses to say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.logged_traffic import GUESS, NOW_S, STRONG, WEAK, House, X, called, decided

from suffice.errors import JobError, StoreError, UsageError
from suffice.lab import savings
from suffice.lab.ope.logged_choices import Turn
from suffice.lab.report import savings as page
from suffice.lab.report.formats import format_percent, format_usd
from suffice.lab.savings import quality, traffic
from suffice.types import Feedback, RequestRecord

CERTAIN_WEAK = {WEAK: 1.0, STRONG: 0.0}
CERTAIN_STRONG = {WEAK: 0.0, STRONG: 1.0}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def told(house: House, **more: Any) -> savings.SavingsReport:
    from suffice.config import load_settings

    references = savings.reference_models(load_settings(house.config, {}), {})
    return savings.build_report(house.url, now_s=NOW_S + 1e6, references=references, **more)


# ── money ────────────────────────────────────────────────────────────────────────────────────────


def lengths(n: int, seed: int = 0) -> tuple[list[RequestRecord], dict[str, float]]:
    """A router without exploration: easy half to the weak model, hard half to the strong. Answers
    of hard requests are four times as long, which nobody predicted; so a model's own ratio of paid
    to predicted is that of its own requests only. Returns records and the true cost of each alone."""
    rng = np.random.default_rng(seed)
    records, true = [], {WEAK: 0.0, STRONG: 0.0}
    for i in range(n):
        hard = bool(rng.random() < 0.5)
        length = (4.0 if hard else 1.0) * float(rng.lognormal(0.0, 0.3))
        cost = {m: GUESS[m] * length for m in GUESS}
        for m in true:
            true[m] += cost[m]
        chosen = STRONG if hard else WEAK
        shares = CERTAIN_STRONG if hard else CERTAIN_WEAK
        difficulty = 0.5 + 0.4 * rng.random() if hard else 0.4 * rng.random()
        records.append(
            decided(i, chosen, shares, cost_usd=cost[chosen], difficulty=float(difficulty))
        )
    return records, true


def test_single_models_are_priced_for_all_requests_not_for_those_they_took(house: House) -> None:
    records, true = lengths(600)
    house.fill(records, [])
    one = told(house).routes["auto"]
    spent = sum(r.cost_usd or 0.0 for r in records)
    assert one.spent_usd == pytest.approx(spent)
    assert one.compared == 600
    for model, cost in true.items():
        s = one.singles[model]
        assert s.usd == pytest.approx(cost, rel=0.05)
        assert s.usd_ci is not None and s.usd_ci[0] < cost < s.usd_ci[1]
        assert s.saved == pytest.approx(1 - spent / cost, abs=0.1 * spent / cost)
    # By the ratio of the hard half alone it would be 1.6 times the truth.
    assert one.singles[STRONG].usd < 1.1 * true[STRONG]  # type: ignore[operator]
    assert one.reference == STRONG
    assert "less." in told(house).headline[1]


def test_a_wordier_model_is_learned_where_the_traffic_shows_it(house: House) -> None:
    rng = np.random.default_rng(1)
    records = []
    for i in range(1500):  # drawn evenly; the strong model's answers are three times as long
        chosen = STRONG if rng.random() < 0.5 else WEAK
        longer = 3.0 if chosen == STRONG else 1.0
        records.append(
            decided(i, chosen, {WEAK: 0.5, STRONG: 0.5}, cost_usd=GUESS[chosen] * longer)
        )
    house.fill(records, [])
    one = told(house).routes["auto"]
    assert one.singles[STRONG].usd == pytest.approx(1500 * 3 * GUESS[STRONG], rel=0.05)
    assert one.singles[WEAK].usd == pytest.approx(1500 * GUESS[WEAK], rel=0.05)
    assert one.singles[STRONG].paid_over_predicted == pytest.approx(3.0)


def test_what_is_unknown_is_said_and_never_zero(house: House) -> None:
    even = {WEAK: 0.5, STRONG: 0.5}
    records = [decided(i, WEAK, even) for i in range(40)]
    records += [decided(i, WEAK, even, cost_usd=None) for i in range(40, 50)]
    house.fill(records, [])
    r = told(house)
    assert (r.requests, r.cost_unknown) == (50, 10)
    assert r.spent_usd == pytest.approx(40 * GUESS[WEAK])
    assert r.routes["auto"].compared == 40
    assert "not counting 10 of them of unknown cost" in r.headline[0]
    assert any("cost of 10 of 50 requests is unknown" in w for w in r.warnings)


def test_no_predicted_cost_is_no_saving(house: House) -> None:
    only_weak = {WEAK: GUESS[WEAK]}
    even = {WEAK: 0.5, STRONG: 0.5}
    house.fill([decided(i, WEAK, even, guesses=only_weak) for i in range(30)], [])
    r = told(house)
    s = r.routes["auto"].singles[STRONG]
    assert (s.requests, s.usd, s.saved, s.usd_ci) == (0, None, None, None)
    assert "unknown" in r.headline[1]
    assert "unknown" in page.render_html(r, {})


def test_a_model_that_could_not_take_all_is_compared_on_what_it_could(house: House) -> None:
    both, strong = {WEAK: 0.5, STRONG: 0.5}, {STRONG: 1.0}
    records = [decided(i, WEAK, both) for i in range(60)]
    records += [decided(i, STRONG, strong) for i in range(60, 80)]  # too long for the weak one
    house.fill(records, [])
    one = told(house).routes["auto"]
    weak = one.singles[WEAK]
    assert (weak.requests, weak.coverage) == (60, 0.75)
    assert weak.spent_usd == pytest.approx(60 * GUESS[WEAK])
    assert weak.saved == pytest.approx(0.0, abs=0.01)
    assert one.singles[STRONG].coverage == 1.0


def test_free_models_and_free_answers(house: House) -> None:
    """A local model costs nothing; what the paid one would have cost is its prediction."""
    guesses = {WEAK: 0.0, STRONG: 0.002}
    even = {WEAK: 0.5, STRONG: 0.5}
    house.fill([decided(i, WEAK, even, guesses=guesses) for i in range(50)], [])
    one = told(house).routes["auto"]
    assert one.singles[STRONG].usd == pytest.approx(0.1)
    assert one.singles[STRONG].saved == pytest.approx(1.0)
    assert (one.singles[WEAK].usd, one.singles[WEAK].saved) == (0.0, None)


def test_turns_of_a_session_widen_the_interval(tmp_path: Path) -> None:
    def width(turns: int) -> float:
        folder = tmp_path / str(turns)
        folder.mkdir()
        house = House(folder)
        rng = np.random.default_rng(0)
        records = []
        for i in range(400):
            if i % turns == 0:
                long = float(rng.lognormal(0.0, 1.0))
            records.append(
                decided(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, cost_usd=GUESS[WEAK] * long,
                        session=f"s{i // turns}")
            )  # fmt: skip
        house.fill(records, [])
        s = told(house).routes["auto"].singles[WEAK]
        assert s.usd is not None and s.usd_ci is not None
        return (s.usd_ci[1] - s.usd_ci[0]) / s.usd

    assert width(20) > 2 * width(1)


def test_a_model_that_never_answers_is_less_certain_than_one_that_does(house: House) -> None:
    """How long its answers would be, no traffic shows; its prediction is all there is."""
    house.fill([decided(i, WEAK, {WEAK: 0.5, STRONG: 0.5}) for i in range(200)], [])
    r = told(house)
    weak, strong = (r.routes["auto"].singles[m] for m in (WEAK, STRONG))
    assert strong.calibrated_on == 0
    assert "It was never chosen" in r.headline[1]

    def width(s: Any) -> float:
        return float((s.usd_ci[1] - s.usd_ci[0]) / s.usd)

    assert width(weak) == pytest.approx(0.0, abs=1e-6)
    assert width(strong) > 0.5
    assert strong.usd == pytest.approx(200 * GUESS[STRONG], rel=0.01)


def test_more_sessions_than_groups_change_nothing_but_memory(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, _ = lengths(500)
    house.fill(records, [])
    whole = told(house).routes["auto"]
    monkeypatch.setattr(traffic, "MAX_GROUPS", 100)
    few = told(house).routes["auto"]
    assert few.sessions == 100
    for model, s in whole.singles.items():
        other = few.singles[model]
        assert other.usd == pytest.approx(s.usd)
        assert other.usd_ci is not None and s.usd_ci is not None
        wide = s.usd_ci[1] - s.usd_ci[0]
        assert other.usd_ci[1] - other.usd_ci[0] == pytest.approx(wide, rel=0.4)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_sums_are_those_of_the_rows(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the traffic: requests, money and statuses add up, and every share lies in [0, 1]."""
    house = House(tmp_path_factory.mktemp("sums"))
    records = []
    for i in range(data.draw(st.integers(1, 25))):
        chosen = data.draw(st.sampled_from([WEAK, STRONG]))
        p = data.draw(st.floats(0.0, 1.0))
        shares = {chosen: p, WEAK if chosen == STRONG else STRONG: 1 - p}
        status = data.draw(st.sampled_from([200, 200, 499, 502]))
        records.append(
            decided(
                i, chosen, shares, status=status,
                model=chosen if status == 200 else data.draw(st.sampled_from([None, WEAK])),
                cost_usd=data.draw(st.none() | st.floats(0.0, 1.0)),
                session=data.draw(st.sampled_from([None, "a", "b"])),
                difficulty=data.draw(st.none() | st.floats(0.0, 1.0)),
                basis=data.draw(st.sampled_from(["prior", "bypass"])),
                guesses=data.draw(
                    st.dictionaries(st.sampled_from([WEAK, STRONG]), st.floats(0.0, 1.0))
                ),
            )
        )  # fmt: skip
    house.fill(records, [])
    r = told(house)
    assert r.requests == len(records)
    assert r.spent_usd == pytest.approx(sum(x.cost_usd or 0.0 for x in records))
    assert r.cost_unknown == sum(x.cost_usd is None for x in records)
    assert sum(r.statuses.values()) == len(records)
    answered = sum(sum(n) for n in r.mix.models.values())
    assert answered + r.failed + r.client_disconnects == len(records)
    assert r.bypass + sum(one.decisions for one in r.routes.values()) == len(records)
    assert sum(r.mix.spent_usd) == pytest.approx(r.spent_usd)
    for one in r.routes.values():
        for s in one.singles.values():
            assert 0.0 <= s.coverage <= 1.0
            assert s.usd is None or (np.isfinite(s.usd) and s.usd >= 0.0)
    assert json.loads(__import__("msgspec").json.encode(r))["requests"] == len(records)
    page.render_html(r, {})


# ── quality ──────────────────────────────────────────────────────────────────────────────────────


def test_quality_kept_is_estimated_where_labels_carry_it(house: House) -> None:
    house.explore(800, weak=0.5, strong=0.9)
    q = told(house).routes["auto"].quality
    assert q.is_estimated
    assert q.kept is not None and q.kept_ci is not None
    assert q.always_reference == pytest.approx(0.9, abs=0.05)
    assert q.snips == pytest.approx(0.9, abs=0.05)
    assert q.happened == pytest.approx(0.7, abs=0.05)
    given = q.models[STRONG].mean
    assert given is not None and q.happened is not None
    assert q.kept == pytest.approx(q.happened / given, rel=0.01)
    assert q.kept_ci[0] < q.kept < q.kept_ci[1] < 1.0
    assert q.lost is not None and q.lost_ci is not None and q.lost_ci[0] > 0.1
    assert (q.labelled, q.labelled_share, q.support) == (800, 1.0, 1.0)
    assert "was kept" in q.summary
    assert q.models[WEAK].mean == pytest.approx(0.5, abs=0.07)


@pytest.mark.slow
def test_intervals_of_quality_hold_the_truth() -> None:
    """Sixty draws of 300 labels: misses of the 95 % interval beyond 8 would be chance in 1 of 300."""
    missed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        route = traffic.RouteTraffic()
        route.decisions = route.answered = route.labelled = route.weighable = 300
        route.candidates[STRONG] = traffic.CandidateTotals(300, 600.0)
        for i in range(300):
            chosen = STRONG if rng.random() < 0.5 else WEAK
            good = float(rng.random() < (0.8 if chosen == STRONG else 0.6))
            route.turns.append(
                Turn(
                    chosen=chosen,
                    score=good,
                    propensities={WEAK: 0.5, STRONG: 0.5},
                    session=i,
                    episode=i,
                    signals=X.signals,
                    embedding=None,
                )
            )
        q = quality.estimate_quality(route, route.requests.arrays(), STRONG)
        assert q.kept_ci is not None
        missed += not q.kept_ci[0] <= 0.7 / 0.8 <= q.kept_ci[1]
    assert missed <= 8


def test_too_few_labels_are_counted_and_nothing_is_claimed(house: House) -> None:
    house.explore(400, labelled=0.2)
    r = told(house)
    q = r.routes["auto"].quality
    assert not q.is_estimated
    assert (q.kept, q.kept_ci, q.always_reference, q.lost) == (None,) * 4
    assert f"Too few labels: {q.labelled} labels" in q.summary
    assert q.labels_needed == 200, "half of the labels are of the reference; 100 of its own needed"
    assert "about 200 are needed" in q.summary
    assert q.summary in r.headline
    assert "not known" in page.render_html(r, {})


def test_without_exploration_no_number_of_labels_is_promised(house: House) -> None:
    records = [
        decided(i, WEAK if i % 2 else STRONG, CERTAIN_WEAK if i % 2 else CERTAIN_STRONG)
        for i in range(400)
    ]
    house.fill(records, [Feedback(decision_id=r.decision.id, score=1.0) for r in records])
    q = told(house).routes["auto"].quality
    assert not q.is_estimated
    assert q.labels_needed is None
    assert "only 50% of decisions could have gone to p/strong" in q.summary
    assert "does not explore" in q.summary
    assert q.predicted_kept == pytest.approx(0.75 / 0.9), "the policy's own word, as such"


def test_no_labels_at_all(house: House) -> None:
    house.explore(50, labelled=0.0)
    q = told(house).routes["auto"].quality
    assert (q.labelled, q.is_estimated, q.labels_needed) == (0, False, 200)
    assert "0 labels" in q.summary


def test_a_route_that_always_takes_the_reference_keeps_all(house: House) -> None:
    house.fill(
        [decided(i, STRONG, CERTAIN_STRONG) for i in range(200)],
        [Feedback(decision_id=f"dec_{i:011x}", score=float(i % 3 > 0)) for i in range(200)],
    )
    q = told(house).routes["auto"].quality
    assert q.is_estimated
    assert q.kept == pytest.approx(1.0)
    assert q.lost == pytest.approx(0.0, abs=1e-9)


def test_turns_that_keep_to_a_drawn_model_have_its_propensity(house: House) -> None:
    """Conversations of four turns: the first is drawn, the others keep to it and are certain."""
    rng = np.random.default_rng(0)
    records, scores = [], []
    for s in range(250):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        for turn in range(4):
            shares = {WEAK: 0.5, STRONG: 0.5}
            if turn:
                shares = CERTAIN_STRONG if chosen == STRONG else CERTAIN_WEAK
            n = 4 * s + turn
            records.append(decided(n, chosen, shares, session=f"s{s}"))
            good = rng.random() < (0.9 if chosen == STRONG else 0.5)
            scores.append(Feedback(decision_id=records[-1].decision.id, score=float(good)))
    house.fill(records, scores)
    q = told(house).routes["auto"].quality
    assert q.is_estimated
    assert q.support == 1.0
    assert 100 < q.effective < 150, "250 free choices, half of them of the reference"
    assert q.kept_ci is not None and q.kept_ci[0] < 0.7 / 0.9 < q.kept_ci[1]


def test_implicit_signals_are_counted_and_judge_nothing(house: House) -> None:
    records = [decided(i, STRONG, CERTAIN_STRONG) for i in range(150)]
    scores = [
        Feedback(decision_id=r.decision.id, score=0.0, source="implicit:retried", kind="implicit")
        for r in records
    ]
    scores += [Feedback(decision_id=records[0].decision.id, score=1.0, source="judge")]
    house.fill(records, scores)
    r = told(house)
    assert r.feedback["implicit:retried"].decisions == 150
    assert r.feedback["judge"].decisions == 1
    assert r.routes["auto"].quality.labelled == 1


def test_labels_of_one_model_only_are_warned_of(house: House) -> None:
    rng = np.random.default_rng(0)
    records, scores = [], []
    for i in range(400):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        records.append(decided(i, chosen, {WEAK: 0.5, STRONG: 0.5}))
        if chosen == STRONG or rng.random() < 0.2:
            scores.append(Feedback(decision_id=records[-1].decision.id, score=1.0))
    house.fill(records, scores)
    assert any("not a fair sample" in w for w in told(house).warnings)


@given(n=st.integers(2, 400), good=st.floats(0.0, 1.0))
def test_mean_scores_lie_in_their_interval(n: int, good: float) -> None:
    right = round(good * n)
    ones = np.array([1.0] * right + [0.0] * (n - right))
    mean, (low, high) = quality.mean_score(np.ones(n), ones)
    assert 0.0 <= low <= mean <= high <= 1.0
    assert high - low > 0.9 / n, "also where all agree"


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────


def test_failures_failovers_and_latency(house: House) -> None:
    even = {WEAK: 0.5, STRONG: 0.5}
    over = (called(WEAK, "server"), called(STRONG, usd=0.002, number=2))
    records = [decided(i, WEAK, even, latency_s=0.01 * (i + 1)) for i in range(100)]
    records += [decided(100, WEAK, even, model=STRONG, cost_usd=0.002, attempts=over)]
    records += [decided(101, WEAK, even, model=None, status=502, cost_usd=None,
                        attempts=(called(WEAK, "server"),), error="x")]  # fmt: skip
    records += [decided(102, WEAK, even, model=None, status=499, cost_usd=None,
                        attempts=(called(WEAK, "cancelled"),))]  # fmt: skip
    records += [decided(103, STRONG, {STRONG: 1.0}, basis="bypass", route=STRONG, cost_usd=0.01)]
    records += [decided(104 + i, STRONG, {STRONG: 1.0}, basis="bypass", route="audit:auto",
                        cost_usd=0.02, latency_s=9.0) for i in range(3)]  # fmt: skip
    house.fill(records, [])
    r = told(house)
    assert (r.requests, r.audits, r.audits_usd) == (104, 3, pytest.approx(0.06))
    assert "$0.0600 on 3 calls that audited some of them" in r.headline[0]
    assert told(house, route="auto").audits == 3
    assert (r.failed, r.client_disconnects, r.failovers, r.retried, r.bypass) == (1, 1, 1, 1, 1)
    assert r.bypass_usd == pytest.approx(0.01)
    assert set(r.routes) == {"auto"}
    assert r.calls[WEAK].outcomes == {"ok": 100, "server": 2, "cancelled": 1}
    assert (r.calls[WEAK].failed, r.calls[WEAK].wasted_usd) == (2, None)
    assert r.latency_s[WEAK].p50 == pytest.approx(0.505, abs=0.01)
    assert r.latency_s[WEAK].p99 == pytest.approx(0.99, abs=0.02)
    assert r.overhead_ms.p50 == pytest.approx(0.2)
    assert r.statuses == {"200": 102, "499": 1, "502": 1}


def test_since_and_route_limit_everything(tmp_path: Path) -> None:
    house = House(tmp_path, '[routes.other]\nmodels = ["p/weak", "p/strong"]\n')
    even = {WEAK: 0.5, STRONG: 0.5}
    records = [decided(i, WEAK, even, route="other" if i % 3 == 0 else "auto") for i in range(90)]
    house.fill(records, [Feedback(decision_id=r.decision.id, score=1.0) for r in records])
    assert set(told(house).routes) == {"auto", "other"}
    other = told(house, route="other")
    assert (set(other.routes), other.requests) == ({"other"}, 30)
    assert other.feedback["user"].decisions == 30
    assert other.calls[WEAK].calls == 30
    late = told(house, since_s=NOW_S + 60 * 80)
    assert (late.requests, late.feedback["user"].decisions) == (10, 10)
    with pytest.raises(JobError, match=r"no request on route 'other' in that time"):
        told(house, route="other", since_s=NOW_S + 1e7)


def test_rows_that_cannot_be_read_are_named_and_their_money_still_counts(house: House) -> None:
    even = {WEAK: 0.5, STRONG: 0.5}
    house.fill([decided(i, WEAK, even) for i in range(30)], [])
    house.sql("UPDATE decisions SET detail = '{' WHERE id = ?", f"dec_{7:011x}")
    house.sql("UPDATE decisions SET detail = X'FF' WHERE id = ?", f"dec_{8:011x}")
    house.sql("UPDATE decisions SET cost_usd = -1 WHERE id = ?", f"dec_{9:011x}")
    house.sql(
        "INSERT INTO feedback (seq, decision_id, source, key, score, weight, kind, created_s)"
        " VALUES (1, ?, 'user', '', 7.0, 1.0, 'explicit', 0)", f"dec_{3:011x}",
    )  # fmt: skip
    r = told(house)
    assert r.skipped == 4
    assert {i for i, _ in r.skipped_rows} == {f"dec_{i:011x}" for i in (3, 7, 8, 9)}
    assert r.spent_usd == pytest.approx(29 * GUESS[WEAK])
    assert r.routes["auto"].compared == 27


def test_nothing_recorded_is_said_and_no_store_is_made(house: House) -> None:
    with pytest.raises(StoreError, match="nothing has been recorded"):
        told(house)
    assert not house.file.exists()
    house.fill([], [])
    with pytest.raises(JobError, match="holds no request"):
        told(house)


def test_spooled_records_are_not_passed_over_in_silence(house: House) -> None:
    house.fill([decided(0, WEAK, {WEAK: 1.0})], [])
    (house.folder / "s.db.999.spool.jsonl").write_text("{}\n")
    assert any("s.db.999.spool.jsonl" in w for w in told(house).warnings)


# ── files ────────────────────────────────────────────────────────────────────────────────────────

NASTY = "p/<script>alert('x')</script>&co"


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(house: House) -> None:
    even = {WEAK: 0.4, STRONG: 0.4, NASTY: 0.2}
    guesses = {**GUESS, NASTY: 0.001}
    records = [decided(i, (WEAK, STRONG, NASTY)[i % 3], even, guesses=guesses) for i in range(120)]
    house.fill(records, [Feedback(decision_id=records[0].decision.id, score=1.0, source="<b>me")])
    r = told(house)
    paths = page.write_report(r, house.folder / "out")
    names = {"savings.json", "report.html", "mix.png", "latency.png", "costs-auto.png"}
    assert {p.name for p in paths} == names
    assert {p.name for p in (house.folder / "out").iterdir()} == names
    text = (house.folder / "out" / "report.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    tags = [t for t, _ in parsed.seen]
    assert "script" not in tags and "link" not in tags
    pictures = [a for t, a in parsed.seen if t == "img"]
    assert len(pictures) == 3
    assert all((a["src"] or "").startswith("data:image/png;base64,") and a["alt"] for a in pictures)
    for said in (
        NASTY,
        "<b>me",
        *r.headline[1:],
        "Requests over time",
        "Failures",
        "How this was made",
    ):
        assert said in parsed.text
    found = json.loads((house.folder / "out" / "savings.json").read_text())
    assert found["routes"]["auto"]["singles"][STRONG]["usd"] == pytest.approx(
        r.routes["auto"].singles[STRONG].usd
    )


def test_nothing_is_left_half_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.fill([decided(i, WEAK, {WEAK: 1.0}) for i in range(3)], [])
    r = told(house)
    (house.folder / "mine").write_text("mine")
    with pytest.raises(UsageError, match="there is a file of that name"):
        page.write_report(r, house.folder / "mine")
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        page.write_report(r, house.folder / "out")
    assert list((house.folder / "out").iterdir()) == []


def test_words() -> None:
    assert [format_usd(v) for v in (None, 0.0, 0.00012345, 0.5, 1234.5, -0.25)] == [
        "unknown", "$0.00", "$0.000123", "$0.5000", "$1,234.50", "-$0.2500",
    ]  # fmt: skip
    assert [format_percent(v) for v in (None, 0.0, 0.034, 0.5, -0.021)] == [
        "unknown", "0%", "3.4%", "50%", "-2.1%",
    ]  # fmt: skip
