"""Tables from files: our own formats, and through `loaders` the public originals.

A folder with queries.parquet and outcomes.parquet, or one long JSONL / CSV / Parquet file. Whatever
is wrong is a TableError that names file, column, row and remedy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from suffice.errors import TableError
from suffice.lab.data.builder import TableBuilder, table_from_rows
from suffice.lab.data.readers import (
    missing_column_error,
    parquet_columns,
    read_rows,
)
from suffice.lab.data.table import Table


def load_table(path: str | Path, *, need_scores: bool = True) -> Table:
    """A Table from a folder, a file or a store's URL.

    need_scores: a table without one score is refused; False where unlabelled logs will do.
    Raises TableError.
    """
    from suffice.lab.data import public_formats

    if isinstance(path, str) and "://" in path:
        table = public_formats.from_store(path)
    else:
        where = Path(path)
        if not where.exists():
            raise TableError("There is no such file or folder.", path=str(path))
        found = public_formats.detect(where)
        if found is not None:
            table = found
        elif where.is_dir():
            table = _from_folder(where)
        else:
            table = table_from_rows(where.stem, read_rows(where), str(where))
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


def _from_folder(folder: Path) -> Table:
    queries, outcomes = folder / "queries.parquet", folder / "outcomes.parquet"
    if not queries.exists():
        raise TableError(
            "Expected queries.parquet and outcomes.parquet in this folder.",
            path=str(folder),
            remedy="See `suffice eval --help` for the formats that are read.",
        )
    builder = TableBuilder(folder.name, str(queries))
    for i, row in enumerate(read_rows(queries), 1):
        builder.add_query(row, i)
    if outcomes.exists():
        builder.path = str(outcomes)
        columns = parquet_columns(outcomes)
        for need in ("query_id", "model", "score"):
            if need not in columns:
                raise missing_column_error(str(outcomes), need, columns)
        for i, row in enumerate(read_rows(outcomes), 1):
            builder.add_outcome(row, i)
    return builder.build()
