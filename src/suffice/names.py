"""The same model under two names: as it is served, and as a table, an artifact or a certificate calls
it."""

from __future__ import annotations

from collections.abc import Sequence


def column_of(name: str, models: Sequence[str]) -> int | None:
    """The column of a served model `provider/upstream` in a trained pool: by its whole name, else
    by what stands behind the last slash where that is unique."""
    if name in models:
        return models.index(name)
    bare = name.rpartition("/")[2]
    hits = [i for i, m in enumerate(models) if m.rpartition("/")[2] == bare]
    return hits[0] if len(hits) == 1 else None
