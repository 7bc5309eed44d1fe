"""`suffice route`: evaluate a query and select a model without calling it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.router import Router
    from suffice.types import Decision


def command(
    prompt: str = typer.Argument(None, help="The prompt, or - to read it from standard input."),
    config: Path = typer.Option(None, "--config", help="Path of a suffice.toml."),
    route: str = typer.Option("auto", "--route", help="The route that decides."),
    messages: Path = typer.Option(
        None, "--messages", help="JSON file with a list of messages, or a whole chat request body."
    ),
    objective: str = typer.Option(
        None, "--objective", help="For example cheapest, or keep_quality=0.9."
    ),
    json: bool = typer.Option(False, "--json", help="Print the whole decision as one JSON object."),
) -> None:
    """Evaluate a query and select a model without calling it. Needs no keys."""
    from suffice.cli.output import print_json
    from suffice.router import Router

    body = _body(prompt, messages)
    router = Router.for_dry_run(config)
    decision = router.route(
        body.pop("messages"),
        route=route,
        objective=objective,
        tools=body.get("tools"),
        response_format=body.get("response_format"),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
    )
    if json:
        print_json(router.explain(decision))
    else:
        show(router, decision)


def _body(prompt: str | None, messages: Path | None) -> dict[str, Any]:
    import msgspec

    from suffice.errors import UsageError

    if (prompt is None) == (messages is None):
        raise UsageError("Give either a PROMPT (or -) or --messages FILE.")
    if messages is None:
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text or not text.strip():
            raise UsageError("The prompt is empty.", remedy="Give some text.")
        return {"messages": text}
    try:
        parsed = msgspec.json.decode(messages.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UsageError(f"--messages {messages}: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--messages {messages}: not valid JSON: {error}.") from None
    body = parsed if isinstance(parsed, dict) else {"messages": parsed}
    if not isinstance(body.get("messages"), list):
        raise UsageError(
            f"--messages {messages}: expected a list of messages, or an object with `messages`."
        )
    return body


def show(router: Router, decision: Decision) -> None:
    """Print a decision."""
    from rich.console import Console
    from rich.table import Table

    from suffice.cli.output import number, usd
    from suffice.policies import describe

    console = Console()
    source = router.source
    if source != "suffice.toml":
        console.print(f"[dim]models from {source}[/dim]")
    reason = decision.reason.removeprefix(f"{decision.model}: ")
    console.print(f"[bold green]{decision.model}[/bold green]: {reason}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("candidate", "quality", "cost", "latency", "propensity"):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for p in sorted(
        decision.predictions, key=lambda p: [s.model for s in decision.plan].index(p.model)
    ):
        mark = "→ " if p.model == decision.model else "  "
        table.add_row(
            mark + p.model,
            number(p.quality),
            usd(p.cost_usd),
            number(p.latency_s, 1, " s"),
            number(p.propensity),
        )
    console.print(table)
    for e in decision.excluded:
        console.print(f"  [dim]{e.model}: excluded, {e.reason}[/dim]")
    signals = ", ".join(f"{name} {value:.2f}" for name, value in decision.features)
    console.print(f"strongest features: {signals}")
    console.print(
        f"[dim]route {decision.route}, objective {describe(decision.objective)}, policy "
        f"{decision.policy_version}; quality is a {decision.basis}"
        f"{', which promises nothing' if decision.basis == 'prior' else ''}.[/dim]"
    )
