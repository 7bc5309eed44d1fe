"""Splits keep each question and each session on one side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support.tables import table

from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.types import Message


def test_a_shared_prompt_or_group_connects_queries_directly_or_through_others() -> None:
    t = table(6)
    prompts = ["one", "Question: ONE", "two", "three", "four", "three!"]
    groups = ("a", "b", "b", "c", "d", "e")
    t = replace(t, messages=tuple((Message("user", p),) for p in prompts), group=groups)
    assert connected_groups(t).tolist() == [0, 0, 0, 1, 2, 1]
    assert connected_groups(replace(t, group=None)).tolist() == [0, 0, 1, 2, 3, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_hold_whole_groups_and_have_equal_sizes(seed: int) -> None:
    groups = np.repeat(np.arange(30), np.random.default_rng(seed).integers(1, 9, 30))
    fold = group_kfold(groups, 5, seed)
    assert all(len(set(fold[groups == g])) == 1 for g in range(30))
    sizes = np.bincount(fold)
    assert len(sizes) == 5
    assert np.ptp(sizes) <= 8
    assert np.array_equal(fold, group_kfold(groups, 5, seed))
    assert not np.array_equal(fold, group_kfold(groups, 5, seed + 10))


def test_fewer_groups_than_folds_make_fewer_folds() -> None:
    assert sorted(set(group_kfold(np.array([0, 0, 1]), 5, 0))) == [0, 1]
    assert group_kfold(np.zeros(4, np.intp), 5, 0).tolist() == [0, 0, 0, 0]
