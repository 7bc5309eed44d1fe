"""Matches the names of one model: as served, and as a table, an artifact or a certificate has it."""

from __future__ import annotations

from collections.abc import Sequence


def match_model(name: str, models: Sequence[str]) -> int | None:
    """Find the model that `name` means.

    The whole name decides. Without an exact match the part after the last "/" decides, in any case,
    if only one of `models` has it.

    Returns:
        The index in `models`, or None if no model or more than one matches.
    """
    if name in models:
        return models.index(name)
    bare = name.rpartition("/")[2].lower()
    matches = [i for i, model in enumerate(models) if model.rpartition("/")[2].lower() == bare]
    return matches[0] if len(matches) == 1 else None
