"""`suffice feedback`: store scores of decisions."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.router import Router

_BATCH = 1000


def command(
    decision_id: str = typer.Argument(
        None, help="Decision id, from the header x-suffice-decision-id."
    ),
    score: str = typer.Argument(
        None, help="A number from 0 (useless) to 1 (sufficient), or good (1), or bad (0)."
    ),
    file: Path = typer.Option(
        None, "--file", help="File of JSON lines with the fields of POST /v1/feedback."
    ),
    source: str = typer.Option(
        "user", "--source", help="Who gives the score: user, test, judge, ..."
    ),
    comment: str = typer.Option(None, "--comment", help="Comment to store with the score."),
    key: str = typer.Option(
        None, "--key", help="Idempotency key: the same key again replaces the score."
    ),
    config: Path = typer.Option(None, "--config", help="Path of a suffice.toml."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Score a recorded decision, or all decisions of a file."""
    from suffice.errors import UsageError
    from suffice.router import Router

    if file is not None:
        if decision_id is not None:
            raise UsageError(
                "DECISION_ID and --file exclude each other.", remedy="Give one of them."
            )
    elif decision_id is None or score is None:
        raise UsageError(
            "A DECISION_ID and a SCORE are needed.", remedy="Or give --file FILE.jsonl."
        )
    common = {"source": source, "comment": comment, "key": key}
    router = Router.for_dry_run(config)
    try:
        if file is not None:
            result = _store_file(router, file, common)
        else:
            stored = router.feedback(decision_id, **_parse_score(score), **common)
            result = {"decision_id": decision_id, "score": stored.score, "source": stored.source}
    finally:
        router.close()
    _show(result, file, source, as_json)
    if file is not None and not result["stored"]:
        from suffice.errors import JobError

        raise JobError(f"{file}: no score was stored.")


def _show(result: dict[str, Any], file: Path | None, source: str, as_json: bool) -> None:
    if as_json:
        from suffice.cli.output import print_json

        print_json(result)
    elif file is None:
        typer.echo(f"{result['decision_id']}: {result['score']:g} from {source}")
    else:
        typer.echo(
            f"{result['stored']} stored, {result['not_found']} of unknown decisions,"
            f" {result['invalid']} invalid lines skipped"
        )


def _parse_score(score: str) -> dict[str, Any]:
    if score in ("good", "bad"):
        return {"verdict": score}
    try:
        return {"score": float(score)}
    except ValueError:
        from suffice.errors import UsageError

        raise UsageError(
            f"SCORE: {score!r} is not a valid number.",
            remedy="Give a number from 0 to 1, or good, or bad.",
        ) from None


def _store_file(router: Router, file: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Store the scores of a file. A line that cannot be stored is named, skipped and counted."""
    counts: Counter[str] = Counter()
    batch: list[dict[str, Any]] = []
    lines: list[int] = []

    def send() -> None:
        for n, result in zip(lines, router.feedback_batch(batch) if batch else (), strict=True):
            counts[result["status"]] += 1
            if result["status"] != "stored":
                print(f"{file}:{n}: {result['message']}", file=sys.stderr)
        batch.clear()
        lines.clear()

    for n, item in _items(file):
        if isinstance(item, str):
            counts["invalid"] += 1
            print(f"{file}:{n}: {item}", file=sys.stderr)
            continue
        batch.append({**{k: v for k, v in common.items() if v is not None}, **item})
        lines.append(n)
        if len(batch) == _BATCH:
            send()
    send()
    totals = {status: counts[status] for status in ("stored", "not_found", "invalid")}
    return {"file": str(file), **totals}


def _items(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (line number, the item or an error message); blank lines are skipped."""
    import msgspec

    from suffice.errors import UsageError

    try:
        handle = file.open("rb")
    except OSError as error:
        raise UsageError(
            f"--file: {file} cannot be read: {error.strerror}.", remedy="Check the path."
        ) from None
    with handle:
        for n, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                item = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield n, f"not valid JSON: {error}."
                continue
            yield n, item if isinstance(item, dict) else "Expected an object."
