"""`suffice calibrate`: a certified threshold, or plainly why there can be none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.lab.calibrate.calibrate import Calibration


def command(
    table: str = typer.Argument(
        help="Labelled outcomes that the policy was not trained on, drawn from the traffic that "
        "the guarantee is for; any format of suffice eval."
    ),
    policy: str = typer.Option(
        ..., "--policy", help="An artifact of suffice train, or default, or length."
    ),
    max_loss: float = typer.Option(
        ..., "--max-loss", help="Mean quality that may be lost against the reference: 0.05."
    ),
    confidence: float = typer.Option(0.9, "--confidence", help="How sure: 0.9."),
    models: str = typer.Option(
        None, "--models", help="Only these, comma-separated: the reference and the cheap ones."
    ),
    reference: str = typer.Option(
        None,
        "--reference",
        help="The model that quality is held to; without it the artifact's, or the dearest.",
    ),
    prices: Path = typer.Option(
        None, "--prices", help="A JSON file with USD per million tokens, for tables without costs."
    ),
    config: Path = typer.Option(
        None,
        "--config",
        help="A suffice.toml whose prices the certificate is bound to; without it ./suffice.toml, "
        "else the catalog's.",
    ),
    out: Path = typer.Option(
        None, "--out", help="Where the certificate goes; without it POLICY.certificate.json."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Certify how many queries a cheap model may serve without losing more quality than allowed.

    The loss is gross (a query that the cheap model fails and the reference does not, counted over
    all traffic) and is at most --max-loss with probability --confidence, while traffic stays like
    the table. Serve it with `objective = { max_quality_loss = 0.05, confidence = 0.9 }`. Where
    nothing can be certified, the reason is said, nothing is written and the exit code is 1.
    """
    import datetime as dt

    from suffice.artifacts import certificate as certificates
    from suffice.cli.output import print_json
    from suffice.errors import JobError, UsageError
    from suffice.lab.calibrate.calibrate import calibrate
    from suffice.lab.data.costs import read_prices
    from suffice.lab.data.load import load_table

    where = certificates.default_path(policy) if out is None else out
    if where.is_dir():
        raise UsageError(f"--out {where}: is a folder.", remedy="Give a file.")
    if not where.parent.exists():
        raise UsageError(f"--out {where}: its folder does not exist.", remedy="Make it first.")
    found = load_table(table)
    told = calibrate(
        found,
        policy,
        max_loss=max_loss,
        confidence=confidence,
        made=dt.date.today().isoformat(),
        models=None if models is None else [m.strip() for m in models.split(",") if m.strip()],
        reference=reference,
        prices=None if prices is None else read_prices(prices),
        list_prices=_list_prices(config, found.models),
        progress=True,
    )
    if told.certificate is None:
        kept = f"{where} stays as it was" if where.exists() else "nothing was written"
        if json:
            print_json(_failure(told, kept))
        else:
            show(told)
        raise JobError(f"Cannot certify: {told.verdict.reason}; {kept}.", remedy=_remedy(told))
    saved = certificates.save(told.certificate, where)
    if json:
        print_json({"certified": True, "file": str(where), **_figures(told), "certificate": saved})
    else:
        show(told, where)


def _list_prices(
    config: Path | None, names: Sequence[str]
) -> dict[str, tuple[float, float] | None]:
    """USD per million tokens in and out of each model, as serving will see them."""
    from suffice.names import match_model
    from suffice.router import Router

    if config is not None or Path("suffice.toml").exists():
        models = Router.for_dry_run(config).models()
    else:
        from suffice.catalog import builtin_models

        models = tuple(builtin_models())
    served = [m.name for m in models]
    out: dict[str, tuple[float, float] | None] = {}
    for name in names:
        at = match_model(name, served)
        if at is None:
            continue
        price = models[at].price
        usd_in, usd_out = price.input_usd_per_mtok, price.output_usd_per_mtok
        out[name] = None if usd_in is None or usd_out is None else (usd_in, usd_out)
    return out


def _figures(told: Calibration) -> dict[str, Any]:
    v = told.verdict
    return {
        "labels": v.n,
        "cheap_share": v.cheap_share,
        "net_quality_change": told.net,
        "usd_per_query": None
        if told.costs is None
        else {"reference": told.costs[0], "certified": told.costs[1]},
        "notes": list(told.notes),
    }


def _failure(told: Calibration, kept: str) -> dict[str, Any]:
    v = told.verdict
    return {
        "certified": False,
        "reason": v.reason,
        "labels": v.n,
        "labels_needed": v.labels_needed,
        "first_step": {
            "cheap_share": v.cheap_share,
            "loss": v.losses / v.n if v.n else None,
            "upper_bound": v.upper_bound,
        },
        "file": kept,
        "notes": list(told.notes),
    }


def _remedy(told: Calibration) -> str:
    if told.verdict.labels_needed is not None:
        return "Collect more labels (suffice collect), or allow more loss or less confidence."
    return "Allow more loss, or train a better policy or choose a better cheap model."


def show(told: Calibration, where: Path | None = None) -> None:
    """What was found, as a person reads it."""
    from rich.console import Console
    from rich.table import Table

    from suffice.cli.output import usd

    console = Console()
    v, c = told.verdict, told.certificate
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("reference", told.reference),
        ("cheap", ", ".join(told.cheap)),
        ("labels", f"{v.n} {'queries' if c is None else c.unit}, {v.kind}, {v.method}"),
        ("loss seen", f"{v.losses:g} of {v.n}" if v.n else "none"),
        ("loss at most", f"{v.upper_bound:.4f}"),
        ("goes cheap", f"{v.cheap_share:.1%}" + (" at the easiest step" if c is None else "")),
    ]
    if c is not None:
        rows.append(("score at most", f"{c.threshold:.6g}"))
        if told.net is not None:
            rows.append(("net change of quality", f"{told.net:+.4f}"))
        if told.costs is not None:
            before, after = told.costs
            rows.append(
                ("USD a query", f"{usd(before)} → {usd(after)} ({1 - after / before:.0%} less)")
            )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in told.notes:
        console.print(f"[yellow]note[/yellow]: {note}", highlight=False)
    if c is None:
        return
    cheap = c.cheap[0] if len(c.cheap) == 1 else f"one of {len(c.cheap)} cheaper models"
    console.print(
        f"[bold green]certified[/bold green]: {c.cheap_share:.0%} of queries may go to {cheap}; "
        f"with {c.confidence:.0%} confidence the quality lost against {c.reference} is at most "
        f"{c.max_loss:g} on average over all queries, while traffic stays like {c.table}.",
        highlight=False,
    )
    console.print(f"[dim]{where}[/dim]", highlight=False)
