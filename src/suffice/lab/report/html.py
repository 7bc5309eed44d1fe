"""What the lab's reports share: a folder written whole or not at all, and pieces of HTML pages that
need nothing but themselves."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from suffice.errors import UsageError


def require_folder(out: Path) -> None:
    """Raises UsageError where `out` is a file: asked before anything is drawn."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: there is a file of that name.", remedy="Give a folder.")


def write_atomically(contents: Mapping[str, bytes], out: Path) -> list[Path]:
    """Files by name in the folder `out`, all of them or none. Returns the paths.

    Raises UsageError where `out` cannot be written.
    """
    require_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Written beside and moved: a full disk leaves no half of a report.
        staging = Path(tempfile.mkdtemp(prefix=".suffice-", dir=out))
        try:
            for name, data in contents.items():
                (staging / name).write_bytes(data)
            for name in contents:
                os.replace(staging / name, out / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"--out {out}: it cannot be written: {error.strerror}.") from None
    return [out / name for name in contents]


def figure(data: bytes, caption: str) -> str:
    """A PNG inside the page."""
    source = base64.b64encode(data).decode()
    return (
        f"<figure><img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[int] = (),
    dim: Sequence[bool] | None = None,
) -> str:
    """Cells hold markup made by the caller, who escapes every text from outside where the row is
    made. words: columns of text. dim: rows of the class `base`."""
    mark = [" class=words" if i in words else "" for i in range(len(head))]
    out = ["<div class=scroll><table><thead><tr>"]
    out += [f"<th{m}>{h}</th>" for m, h in zip(mark, head, strict=True)]
    out.append("</tr></thead><tbody>")
    for row, faint in zip(rows, [False] * len(rows) if dim is None else dim, strict=True):
        out.append("<tr class=base>" if faint else "<tr>")
        out += [f"<td{m}>{cell}</td>" for m, cell in zip(mark, row, strict=True)]
        out.append("</tr>")
    return "".join([*out, "</tbody></table></div>"])
