"""Loads tables from files: our formats, public formats, and stores.

Our formats are a folder with queries.parquet and outcomes.parquet, or one long JSONL, CSV or Parquet
file. Every fault is a `TableError` that names file, column, row and remedy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from suffice.errors import TableError
from suffice.lab.data import public_formats
from suffice.lab.data.builder import TableBuilder, table_from_rows
from suffice.lab.data.readers import missing_column_error, parquet_columns, read_rows
from suffice.lab.data.stored import table_from_store
from suffice.lab.data.table import Table


def load_table(path: str | Path, *, need_scores: bool = True) -> Table:
    """Load a table from a folder, a file or the URL of a store.

    Args:
        path: Where the table is.
        need_scores: Refuse a table without any score. False if unlabelled logs suffice.

    Returns:
        The table.

    Raises:
        TableError: If there is no such table or a value in it is wrong.
    """
    if isinstance(path, str) and "://" in path:
        table = table_from_store(path)
    else:
        table = _load_path(Path(path))
    if not len(table):
        raise TableError("The table holds no query.", path=str(path))
    if need_scores and not (~np.isnan(table.score)).any():
        raise TableError(
            "No outcome has a score.",
            path=str(path),
            column="score",
            remedy="Collect labels first: suffice collect.",
        )
    return table


def _load_path(path: Path) -> Table:
    if not path.exists():
        raise TableError("There is no such file or folder.", path=str(path))
    table = public_formats.detect(path)
    if table is not None:
        return table
    if path.is_dir():
        return _load_folder(path)
    return table_from_rows(path.stem, read_rows(path), str(path))


def _load_folder(folder: Path) -> Table:
    queries, outcomes = folder / "queries.parquet", folder / "outcomes.parquet"
    if not queries.exists():
        raise TableError(
            "Expected queries.parquet and outcomes.parquet in this folder.",
            path=str(folder),
            remedy="`suffice eval --help` lists the supported formats.",
        )
    builder = TableBuilder(folder.name, str(queries))
    for i, row in enumerate(read_rows(queries), 1):
        builder.add_query(row, i)
    if outcomes.exists():
        builder.path = str(outcomes)
        columns = parquet_columns(outcomes)
        for column in ("query_id", "model", "score"):
            if column not in columns:
                raise missing_column_error(str(outcomes), column, columns)
        for i, row in enumerate(read_rows(outcomes), 1):
            builder.add_outcome(row, i)
    return builder.build()
