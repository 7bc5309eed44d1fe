"""Pools of models, interned: one object per selection, so that caches can use it as a key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from suffice.types import Candidate, Model

_MAX_INTERNED = 4096  # clients can name any number of pools


class Pool:
    """Models in order.

    `Catalog.pool` and `subset` return one object per selection. A pool is compared and hashed by
    identity, so it is a cheap key for caches.

    Attributes:
        models: the models.
        names: their names, in the same order.
    """

    __slots__ = ("_interned", "models", "names")

    def __init__(
        self, models: tuple[Model, ...] = (), interned: dict[tuple[str, ...], Pool] | None = None
    ) -> None:
        self.models = models
        self.names = tuple([m.name for m in models])
        self._interned = {self.names: self} if interned is None else interned

    def __len__(self) -> int:
        return len(self.models)

    def subset(self, models: Iterable[Model]) -> Pool:
        """The pool of some of the catalog's models, in their order: one object per selection."""
        selected = tuple(models)
        names = tuple([m.name for m in selected])
        pool = self._interned.get(names)
        if pool is None:
            if len(self._interned) >= _MAX_INTERNED:
                self._interned.clear()
            pool = self._interned[names] = Pool(selected, self._interned)
        return pool


class Candidates(tuple[Candidate, ...]):
    """The models of a pool with what is known of their speed now.

    Attributes:
        pool: the pool. What depends on models and prices alone is computed once per pool.
    """

    pool: Pool

    @classmethod
    def of(cls, pool: Pool, candidates: Iterable[Candidate]) -> Self:
        """The candidates of a pool, one per model, in its order."""
        new = cls(candidates)
        new.pool = pool
        return new
