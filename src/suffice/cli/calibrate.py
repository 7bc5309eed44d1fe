"""`suffice calibrate`: certifies a threshold, or says why none can be certified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from suffice.cli.calibrate_view import failure, figures, show
from suffice.errors import JobError, UsageError

if TYPE_CHECKING:
    from suffice.lab.calibrate.calibrate import Calibration


_TABLE = typer.Argument(
    help="Labelled outcomes that the policy was not trained on, sampled from the traffic that "
    "the guarantee is for; any format of suffice eval."
)
_POLICY = typer.Option(
    ...,
    "--policy",
    help="Calibrate this policy: an artifact of suffice train, default or length.",
)
_MAX_LOSS = typer.Option(
    ...,
    "--max-loss",
    help="Mean quality that may be lost against the reference, for example 0.05.",
)
_CONFIDENCE = typer.Option(
    0.9, "--confidence", help="Probability that the guarantee holds, for example 0.9."
)
_MODELS = typer.Option(
    None,
    "--models",
    help="Comma-separated models to include: the reference and the cheap ones.",
)
_REFERENCE = typer.Option(
    None,
    "--reference",
    help="Compare quality to this model; by default the artifact's reference, or the most "
    "expensive model.",
)
_PRICES = typer.Option(
    None,
    "--prices",
    help="Read prices, USD per million tokens, from this JSON file, for tables without costs.",
)
_CONFIG = typer.Option(
    None,
    "--config",
    help="Bind the certificate to the prices of this suffice.toml; by default ./suffice.toml, "
    "else the catalog.",
)
_OUT = typer.Option(
    None,
    "--out",
    help="Write the certificate to this file; by default POLICY.certificate.json.",
)


def command(
    table: str = _TABLE,
    policy: str = _POLICY,
    max_loss: float = _MAX_LOSS,
    confidence: float = _CONFIDENCE,
    models: str = _MODELS,
    reference: str = _REFERENCE,
    prices: Path = _PRICES,
    config: Path = _CONFIG,
    out: Path = _OUT,
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Certify how many queries a cheap model may answer without losing more quality than allowed.

    The loss is gross (a query that the cheap model fails and the reference does not, counted over
    all traffic) and is at most --max-loss with probability --confidence, while traffic is like
    the table. Serve it with `objective = { max_quality_loss = 0.05, confidence = 0.9 }`. If
    nothing can be certified, the reason is printed, nothing is written and the exit code is 1.
    """
    import datetime as dt

    from suffice.artifacts import certificate as certificates
    from suffice.cli.output import print_json
    from suffice.lab.calibrate.calibrate import calibrate
    from suffice.lab.data.costs import read_prices
    from suffice.lab.data.load import load_table

    path = certificates.default_path(policy) if out is None else out
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder.", remedy="Give a file.")
    if not path.parent.exists():
        raise UsageError(f"--out {path}: its folder does not exist.", remedy="Make it first.")
    data = load_table(table)
    calibration = calibrate(
        data,
        policy,
        max_loss=max_loss,
        confidence=confidence,
        date=dt.date.today().isoformat(),
        models=None if models is None else [m.strip() for m in models.split(",") if m.strip()],
        reference=reference,
        prices=None if prices is None else read_prices(prices),
        list_prices=_list_prices(config, data.models),
        progress=True,
    )
    if calibration.certificate is None:
        raise _report_failure(calibration, path, json)
    saved = certificates.save(calibration.certificate, path)
    if json:
        result = {"certified": True, "file": str(path), **figures(calibration)}
        print_json({**result, "certificate": saved})
    else:
        show(calibration, path)


def _report_failure(calibration: Calibration, path: Path, json: bool) -> JobError:
    """Print why nothing is certified, and make the error that ends the command."""
    from suffice.cli.output import print_json

    state = f"{path} is unchanged" if path.exists() else "nothing was written"
    if json:
        print_json(failure(calibration, state))
    else:
        show(calibration)
    remedy = "Allow more loss, or train a better policy or choose a better cheap model."
    if calibration.result.labels_needed is not None:
        remedy = "Collect more labels (suffice collect), or allow more loss or less confidence."
    return JobError(f"Cannot certify: {calibration.result.reason}; {state}.", remedy=remedy)


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
    prices: dict[str, tuple[float, float] | None] = {}
    for name in names:
        index = match_model(name, served)
        if index is None:
            continue
        price = models[index].price
        usd_in, usd_out = price.input_usd_per_mtok, price.output_usd_per_mtok
        prices[name] = None if usd_in is None or usd_out is None else (usd_in, usd_out)
    return prices
