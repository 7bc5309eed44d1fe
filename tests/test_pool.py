"""Pools are interned: one object per selection."""

from __future__ import annotations

from suffice.pool import Candidates, Pool
from suffice.types import Candidate, Model

MODELS = tuple(Model(f"p/{n}", "p", n) for n in "abc")


def test_the_same_selection_is_the_same_pool() -> None:
    pool = Pool(MODELS)
    pair = pool.subset(MODELS[:2])
    assert pair.names == ("p/a", "p/b")
    assert pool.subset(m for m in MODELS if m.name != "p/c") is pair
    assert pair.subset(MODELS) is pool
    assert pool.subset(reversed(MODELS)) is not pool, "the order is part of a selection"


def test_an_empty_pool_is_false() -> None:
    assert not Pool()
    assert Pool(MODELS)


def test_more_selections_than_are_interned_still_work() -> None:
    pool = Pool(tuple(Model(f"p/{i}", "p", str(i)) for i in range(120)))
    for i in range(120):
        for j in range(120):
            assert len(pool.subset((pool.models[i], pool.models[j]))) == 2
    pair = pool.subset(pool.models[:2])
    assert pool.subset(pool.models[:2]) is pair


def test_candidates_are_a_tuple_that_knows_its_pool() -> None:
    pool = Pool(MODELS)
    candidates = Candidates.of(pool, [Candidate(m, 0.5, 80.0) for m in MODELS])
    assert candidates.pool is pool
    assert candidates == tuple(Candidate(m, 0.5, 80.0) for m in MODELS)
