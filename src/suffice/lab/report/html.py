"""Renders HTML pages that need no other file, and writes a report's folder atomically."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from suffice.errors import UsageError
from suffice.lab.report import formats


def require_folder(out: Path) -> None:
    """Raise UsageError if `out` is a file. Call it before the work of drawing."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: there is a file of that name.", remedy="Give a folder.")


def write_atomically(contents: Mapping[str, bytes], out: Path) -> list[Path]:
    """Write files into the folder `out`, all of them or none.

    Args:
        contents: File name -> content.
        out: The folder; created if it does not exist.

    Returns:
        The paths.

    Raises:
        UsageError: If the folder cannot be written.
    """
    require_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Written next to the targets and moved: a full disk leaves no half of a report.
        staging = Path(tempfile.mkdtemp(prefix=".suffice-", dir=out))
        try:
            for name, data in contents.items():
                (staging / name).write_bytes(data)
            for name in contents:
                (staging / name).replace(out / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"--out {out}: it cannot be written: {error.strerror}.") from None
    return [out / name for name in contents]


def render_page(
    template: str, filters: Mapping[str, Callable[..., object]], **context: object
) -> str:
    """Return a template of `report/templates` rendered with every text escaped.

    Args:
        template: File name of the template.
        filters: Filters beyond those for numbers, amounts and times.
        **context: Variables of the template.

    Raises:
        UsageError: If Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise UsageError(
            "--out: rendering the page needs Jinja2.", remedy="pip install 'suffice[lab]'"
        ) from None
    environment = Environment(
        loader=PackageLoader("suffice.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "duration": formats.format_duration,
        "number": formats.format_number,
        "percent": formats.format_percent,
        "thousands": formats.format_thousands,
        "time": formats.format_time,
        "usd": formats.format_usd,
        "usd_interval": formats.format_usd_interval,
        **filters,
    }
    return environment.get_template(template).render(context)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
