"""`suffice demo`: the whole product on this machine, with no keys.

A real gateway on a real port, three simulated providers behind it (the screen says so), a workload
of realistic queries, one provider that fails half-way, feedback, and the total cost.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from suffice.cli.demo_workload import Query, last_user_text, load
from suffice.errors import JobError, UpstreamError

if TYPE_CHECKING:
    from suffice.providers.fake import FakeUpstream
    from suffice.transport import Response, Transport
    from suffice.types import Model

SEED = 7
# Name, USD per million tokens in and out, quality prior, skill, seconds to first chunk, tokens/s.
# The skill drives the simulation. The router gets only the prior, as an operator would estimate it.
_MODELS = (
    ("swift/light-8b", 0.10, 0.40, 0.72, 0.60, 0.02, 6000.0),
    ("harbor/medium-70b", 0.60, 2.40, 0.88, 0.88, 0.04, 4000.0),
    ("summit/large-pro", 3.00, 12.00, 0.97, 1.22, 0.07, 3000.0),
)
_CONCURRENCY = 8  # queries in flight
_PACE_S = 0.15  # between arrivals
_JSON = (("content-type", "application/json"),)
to_json = msgspec.json.encode


class Outcome(msgspec.Struct, kw_only=True):
    """The result of one query."""

    id: str
    kind: str
    query: str
    model: str = ""
    decision_id: str = ""
    reason: str = ""
    predicted_quality: float | None = None
    cost_usd: float | None = None
    latency_s: float = 0.0
    overhead_ms: float = 0.0
    attempts: int = 0
    difficulty: float = 0.5
    sufficient: bool | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


def command(
    queries: Path = typer.Option(
        None, "--queries", help="File with your own queries, one JSON object per line."
    ),
    json: bool = typer.Option(False, "--json", help="Print the summary as one JSON object."),
) -> None:
    """Run the whole product on this machine, with simulated providers.

    Needs no keys and no network, and ends within a minute.
    """
    from suffice.cli.output import print_json

    workload = load(queries)
    directory = Path(tempfile.mkdtemp(prefix="suffice-demo-"))
    if json:
        print_json(run(workload, directory, None))
        return
    from suffice.cli.demo_view import View

    view = View(len(workload))
    with view:
        summary = run(workload, directory, view)
    view.summary(summary)


def _config(fakes: list[FakeUpstream], directory: Path) -> Path:
    lines = ["[store]", f'url = "sqlite:///{(directory / "demo.db").as_posix()}"']
    for fake, (name, i, o, quality, _, first_s, rate) in zip(fakes, _MODELS, strict=True):
        provider = name.split("/")[0]
        lines += [
            f"[providers.{provider}]  # simulated",
            'dialect = "openai"',
            f'base_url = "{fake.base_url}"',
            f'[models."{name}"]',
            f"input_usd_per_mtok = {i}",
            f"output_usd_per_mtok = {o}",
            "context_tokens = 128000",
            'capabilities = ["tools", "vision", "json_schema"]',
            f"quality = {quality}",
            f"first_chunk_s = {first_s}",
            f"output_tokens_per_s = {rate}",
        ]
    names = ", ".join(f'"{m[0]}"' for m in _MODELS)
    lines += ["[routes.auto]", f"models = [{names}]", "objective = { keep_quality = 0.95 }"]
    path = directory / "suffice.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(workload: list[Query], directory: Path, view: Any) -> dict[str, Any]:
    """Run the demo from start to end.

    Args:
        workload: The queries.
        directory: Where the config and the store are written.
        view: The terminal view; None shows nothing.

    Returns:
        The summary.

    Raises:
        JobError: If a request was lost.
    """
    from suffice.gateway import BackgroundServer
    from suffice.providers.fake import FakeModel, FakeUpstream, Script

    started = time.monotonic()
    fakes: list[FakeUpstream] = []
    try:
        for name, _, _, _, skill, first_s, rate in _MODELS:
            model = FakeModel(
                reply="This reply is simulated.",
                skill=skill,
                first_chunk_s=first_s,
                tokens_per_s=rate,
            )
            script = Script(models={name.split("/", 1)[1]: model}, seed=SEED)
            fakes.append(FakeUpstream(script).start())
        config = _config(fakes, directory)
        with BackgroundServer(config, cwd=directory) as server:
            if view is not None:
                view.start(server.base_url, [m[0] for m in _MODELS])
            outcomes = asyncio.run(_drive(server.base_url, workload, fakes[0], view))
    finally:
        for fake in fakes:
            fake.stop()
    return _summary(workload, outcomes, config, time.monotonic() - started)


async def _drive(
    base_url: str, workload: list[Query], failing: FakeUpstream, view: Any
) -> list[Outcome]:
    """Send the workload, take one provider down half-way for a while, and post feedback."""
    from suffice.providers.transport import HTTPTransport

    down_at, up_at = len(workload) // 2, len(workload) * 3 // 5
    gate = asyncio.Semaphore(_CONCURRENCY)
    outcomes: list[Outcome | None] = [None] * len(workload)
    transport = HTTPTransport(proxies={})

    async def one(i: int) -> None:
        try:
            outcome = outcomes[i] = await _ask(transport, base_url, workload[i])
        finally:
            gate.release()
        if view is not None:
            view.add(outcome)

    tasks = []
    try:
        for i in range(len(workload)):
            await gate.acquire()
            if len(workload) >= 4 and i in (down_at, up_at):
                failing.set_down(i == down_at)
                if view is not None:
                    view.outage(_MODELS[0][0].split("/")[0], i == down_at)
            tasks.append(asyncio.create_task(one(i)))
            # Queries arrive one after another, so that the outage, the 5 s of the circuit breaker and
            # the recovery are visible.
            await asyncio.sleep(_PACE_S)
        await asyncio.gather(*tasks)
    finally:
        failing.set_down(False)
        await transport.aclose()
    return [o for o in outcomes if o is not None]


async def _ask(transport: Transport, base_url: str, query: Query) -> Outcome:
    """Send one query through the gateway, then its feedback. A failure is an outcome, too."""
    from suffice.types import Timeouts

    timeouts = Timeouts()
    outcome = Outcome(id=query.id, kind=query.kind, query=last_user_text(query))
    started = time.perf_counter()
    try:
        response = await transport.send(
            base_url + "/v1/chat/completions",
            _JSON,
            to_json(_request_body(query)),
            stream=False,
            timeouts=timeouts,
        )
        reply = msgspec.json.decode(await response.read())
        outcome.latency_s = time.perf_counter() - started
        if response.status != 200:
            outcome.error = f"{response.status}: {reply['error']['message']}"
            return outcome
        _read_reply(outcome, response, reply)
        if outcome.sufficient is not None:
            feedback = {
                "decision_id": outcome.decision_id,
                "score": float(outcome.sufficient),
                "source": "test",
            }
            stored = await transport.send(
                base_url + "/v1/feedback", _JSON, to_json(feedback), stream=False, timeouts=timeouts
            )
            if stored.status != 200:
                outcome.error = f"feedback: {stored.status}: {(await stored.read()).decode()}"
    except UpstreamError as error:
        outcome.error = str(error)
    return outcome


def _request_body(query: Query) -> dict[str, Any]:
    # Only the simulation reads the metadata: how hard the query is, and how long its answer.
    metadata: dict[str, str] = {"id": query.id}
    if query.difficulty is not None:
        metadata["difficulty"] = str(query.difficulty)
    if query.output_tokens is not None:
        metadata["output_tokens"] = str(query.output_tokens)
    body: dict[str, Any] = {
        "model": "auto",
        "messages": query.messages,
        "suffice": {"explain": True},
        "metadata": metadata,
    }
    if query.tools:
        body["tools"] = query.tools
    if query.response_format:
        body["response_format"] = query.response_format
    return body


def _read_reply(outcome: Outcome, response: Response, reply: dict[str, Any]) -> None:
    def header(name: str) -> str:
        return response.header(name) or ""

    outcome.model = header("x-suffice-model")
    outcome.decision_id = header("x-suffice-decision-id")
    outcome.reason = header("x-suffice-reason")
    outcome.attempts = int(header("x-suffice-attempts"))
    outcome.overhead_ms = float(header("x-suffice-overhead-ms"))
    cost = header("x-suffice-cost-usd")
    outcome.cost_usd = None if cost == "unknown" else float(cost)
    decision = reply["suffice"]
    outcome.difficulty = decision["difficulty"]
    for prediction in decision["predictions"]:
        if prediction["model"] == outcome.model:
            outcome.predicted_quality = prediction["quality"]
    usage = reply["usage"]
    outcome.input_tokens = usage["prompt_tokens"]
    outcome.output_tokens = usage["completion_tokens"]
    verdict = reply.get("simulated")
    if verdict is not None:
        outcome.sufficient = verdict["sufficient"]


def _model(row: tuple[Any, ...]) -> Model:
    from suffice.types import Model, Price

    provider, upstream = row[0].split("/", 1)
    return Model(name=row[0], provider=provider, upstream=upstream, price=Price(row[1], row[2]))


def _single_models(
    workload: list[Query], answered: list[Outcome], graded: list[Outcome]
) -> dict[str, dict[str, float | None]]:
    """Returns cost and quality of each model alone.

    The cost is priced on the same tokens; the quality follows the simulation's own rule on the same
    queries.
    """
    from suffice.catalog import price_usd
    from suffice.providers.fake import is_sufficient
    from suffice.types import Usage

    difficulties = {q.id: q.difficulty for q in workload}
    usages = [Usage(input_tokens=o.input_tokens, output_tokens=o.output_tokens) for o in answered]
    singles: dict[str, dict[str, float | None]] = {}
    for row in _MODELS:
        model = _model(row)
        good = [
            is_sufficient(SEED, model.upstream, o.id, row[4], float(difficulties[o.id] or 0))
            for o in graded
        ]
        singles[model.name] = {
            "cost_usd": sum(price_usd(model, u) or 0.0 for u in usages),
            "quality_of_the_simulation": sum(good) / len(good) if good else None,
        }
    return singles


def _summary(
    workload: list[Query], outcomes: list[Outcome], config: Path, seconds: float
) -> dict[str, Any]:
    """The summary that the demo prints."""
    lost = [o for o in outcomes if o.error is not None]
    answered = [o for o in outcomes if o.error is None]
    if lost:
        raise JobError(
            f"{len(lost)} of {len(outcomes)} requests were lost; the first: {lost[0].id}: {lost[0].error}"
        )
    graded = [o for o in answered if o.sufficient is not None]
    singles = _single_models(workload, answered, graded)
    cost = sum(o.cost_usd or 0.0 for o in answered)
    names = [m[0] for m in _MODELS]
    overhead = sorted(o.overhead_ms for o in answered)
    quality = sum(bool(o.sufficient) for o in graded) / len(graded) if graded else None
    best_usd = singles[names[-1]]["cost_usd"] or 0.0
    return {
        "simulated": True,
        "queries": len(outcomes),
        "answered": len(answered),
        "lost": len(lost),
        "seconds": round(seconds, 2),
        "cost_usd": cost,
        "quality_of_the_simulation": quality,
        "always_cheapest": {"model": names[0], **singles[names[0]]},
        "always_best": {"model": names[-1], **singles[names[-1]]},
        "cheaper_than_always_best": 1 - cost / best_usd if best_usd else None,
        "share": {n: sum(o.model == n for o in answered) / len(answered) for n in names},
        "attempts": sum(o.attempts for o in answered),
        "failovers": sum(o.attempts > 1 for o in answered),
        "feedback_posted": len(graded),
        "overhead_ms": {
            "median": statistics.median(overhead),
            "p95": overhead[min(len(overhead) - 1, int(len(overhead) * 0.95))],
        },
        "records": str(config.with_name("demo.db")),
        "config": str(config),
        "example_decision": answered[0].decision_id,
        "decisions": outcomes,
    }
