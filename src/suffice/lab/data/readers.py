"""Reads rows of JSONL, JSON, CSV, TSV and Parquet files, streamed if the format allows."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from suffice.errors import TableError, nearest

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

# A larger text file and its rows would not fit in the memory of a common machine.
MAX_TEXT_BYTES = 2_000_000_000
MAX_PARQUET_BYTES = 8_000_000_000

Row = Mapping[str, object]


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a JSONL, JSON, CSV, TSV or Parquet file.

    Args:
        path: Of the file; its suffix decides the format.

    Returns:
        The rows as mappings.

    Raises:
        TableError: If the file is of another format, empty or too large. A broken row raises it when
            it is read.
    """
    kind = path.suffix.lower()
    reader = _READERS.get(kind)
    if reader is None:
        remedy = "Convert it to Parquet, JSONL or CSV."
        if kind in (".pkl", ".pickle"):
            remedy = "A pickle can run code when it is read. " + remedy
        raise TableError(
            f"Files of type {kind or 'none'!r} are not supported.", path=str(path), remedy=remedy
        )
    size, limit = path.stat().st_size, MAX_PARQUET_BYTES if kind == ".parquet" else MAX_TEXT_BYTES
    if size > limit:
        raise TableError(
            f"The file has {size / 1e9:.1f} GB; the limit is {limit / 1e9:.0f} GB.",
            path=str(path),
            remedy="Give a sample of its rows, or split it by benchmark.",
        )
    if not size:
        raise TableError("The file is empty.", path=str(path))
    return reader(path)


def first_rows(path: Path, n: int = 1) -> list[Row]:
    """The first rows of a file, to detect its format."""
    return list(islice(read_rows(path), n))


def _jsonl(path: Path) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = decode(line)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None
            except msgspec.DecodeError as error:
                raise TableError(f"not valid JSON: {error}.", path=str(path), row=number) from None
            if not isinstance(row, dict):
                raise TableError("expected a JSON object.", path=str(path), row=number)
            yield row


def _json(path: Path) -> Iterator[Row]:
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        rows = msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, None, error) from None
    except msgspec.DecodeError:
        yield from _jsonl(path)  # JSON lines under another name
        return
    if isinstance(rows, dict):
        rows = next((v for v in rows.values() if isinstance(v, list)), [rows])
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise TableError("expected a JSON object.", path=str(path), row=i)
        yield row


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        number = 1
        try:
            for number, row in enumerate(rows, 2):
                if None in row:
                    raise TableError(
                        "more values than columns.",
                        path=str(path),
                        row=number,
                        remedy="Quote values that hold commas or line breaks.",
                    )
                yield row
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number + 1, error) from None
        except csv.Error as error:
            raise TableError(f"not valid CSV: {error}.", path=str(path), row=number + 1) from None


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Row]:
    file = _open_parquet(path)
    import pyarrow as pa

    # Embeddings and responses are the bulk of such files and are not needed.
    columns = [
        f.name
        for f in file.schema_arrow
        if not pa.types.is_nested(f.type) or f.name in ("prompt", "messages", "options", "turns")
    ]
    columns = [c for c in columns if not c.endswith("|model_response")]
    try:
        for batch in file.iter_batches(8192, columns=columns):
            yield from batch.to_pylist()
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise TableError(f"cannot be read: {error}.", path=str(path)) from None


def _open_parquet(path: Path) -> ParquetFile:
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"is not a Parquet file: {error}.", path=str(path)) from None


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a Parquet file."""
    return list(_open_parquet(path).schema_arrow.names)


def require_pyarrow() -> None:
    """Check that Parquet files can be read and written.

    Raises:
        TableError: If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401  (only whether it is there)
    except ModuleNotFoundError:
        raise TableError(
            "Reading and writing Parquet needs pyarrow.",
            remedy="Install the extra: pip install 'suffice[lab]'.",
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _not_utf8(path: Path, row: int | None, error: UnicodeDecodeError) -> TableError:
    return TableError(
        f"is not UTF-8: byte 0x{error.object[error.start]:02x}.",
        path=str(path),
        row=row,
        remedy="Convert it, for example with iconv -t UTF-8.",
    )


def missing_column_error(path: str, column: str, columns: Sequence[str]) -> TableError:
    """The error for a missing column, with the nearest of the columns that exist."""
    close = nearest(column, columns, 1)
    hint = f" Is it {close[0]!r}?" if close else ""
    existing = ", ".join(map(str, columns)) or "none"
    return TableError(
        f"The column {column!r} is missing; there are: {existing}.{hint}",
        path=path,
        remedy="A table has query_id, prompt or messages, model, score (see suffice eval --help).",
    )
