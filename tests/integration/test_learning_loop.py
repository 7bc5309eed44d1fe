"""The learning loop: requests through the gateway's app, feedback, refits, and better decisions.

Learning is driven by steps, so every run serves the same snapshots to the same requests. The full
experiment with its figures is benchmarks/quality/end_to_end.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from suffice import Client, Router
from suffice.config import load_settings
from suffice.providers.fake import FakeUpstream

pytestmark = pytest.mark.slow

CODE = "write a python function that parses the {} file and returns a list"
PROSE = "tell me a story about the {} that went to the market"
CODER, WRITER, STRONG = "p/coder", "p/writer", "p/strong"
REQUESTS, LEARNED = 400, 280  # the scores of later requests are given at the end
STEP_EVERY = 20  # requests between two steps of learning
GOOD, BAD = 0.95, 0.25  # chance of a good reply on the model's own topic, and on the other one


class Request(NamedTuple):
    """A request, and which of the cheap models is good at it."""

    prompt: str
    right: str


class Served(NamedTuple):
    """A response and its score."""

    decision_id: str
    model: str
    score: float


def requests() -> list[Request]:
    chance = random.Random(5)
    kinds = [chance.choice(((CODE, CODER), (PROSE, WRITER))) for _ in range(REQUESTS)]
    return [Request(text.format(f"thing{i}"), right) for i, (text, right) in enumerate(kinds)]


def write_config(folder: Path, base_url: str) -> Path:
    path = folder / "suffice.toml"
    lines = [
        "[store]", f'url = "sqlite:///{(folder / "s.db").as_posix()}"',
        "[providers.p]", 'dialect = "openai"', f'base_url = "{base_url}"',
    ]  # fmt: skip
    for model, quality, usd in ((CODER, 0.85, 0.2), (WRITER, 0.85, 0.2), (STRONG, 0.5, 2.0)):
        lines += [
            f'[models."{model}"]', f"quality = {quality}",
            f"input_usd_per_mtok = {usd}", f"output_usd_per_mtok = {usd}",
        ]  # fmt: skip
    lines += [
        "[routes.auto]", f"models = {json.dumps([CODER, WRITER, STRONG])}",
        'objective = "best"', 'learning = "on"',
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def serve(router: Router, stream: list[Request]) -> list[Served]:
    """Send all requests through the app, one after the other, with feedback and steps."""
    learning = router.start_learning(thread=False)
    chance = random.Random(7)
    served: list[Served] = []
    with Client(router) as client:
        for i, request in enumerate(stream):
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": request.prompt}]
            )
            model = raw.headers["x-suffice-model"]
            good = chance.random() < (GOOD if model == request.right else BAD)
            served.append(Served(raw.headers["x-suffice-decision-id"], model, float(good)))
            if i < LEARNED:
                send_feedback(client, served[-1])
                if i % STEP_EVERY == STEP_EVERY - 1:
                    learning.step(1000.0 + i)
        for late in served[LEARNED:]:
            send_feedback(client, late)
        assert learning.problems == {}
    return served


def send_feedback(client: Client, served: Served) -> None:
    body = {"decision_id": served.decision_id, "score": served.score, "source": "user"}
    client.post("/feedback", body=body, cast_to=object)


def replay(config: Path, artifact: Path, since_s: float) -> dict[str, Any]:
    """What `suffice replay --json` prints. since_s: unix time."""
    since = datetime.fromtimestamp(since_s, UTC).isoformat()
    command = [sys.executable, "-m", "suffice", "replay", "--config", str(config)]
    run = subprocess.run(
        [*command, "--policy", str(artifact), "--since", since, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def share_right(served: list[Served], stream: list[Request]) -> float:
    pairs = zip(served, stream, strict=True)
    return sum(s.model == r.right for s, r in pairs) / len(served)


def test_feedback_raises_the_share_of_the_right_model_and_replay_agrees(tmp_path: Path) -> None:
    stream = requests()
    upstream = {m.removeprefix("p/"): {"reply": "A reply."} for m in (CODER, WRITER, STRONG)}
    with FakeUpstream({"models": upstream}) as fake:
        config = write_config(tmp_path, fake.base_url)
        router = Router(load_settings(config, {}), env={}, seed=1)
        served = serve(router, stream)

    before, after = (
        share_right(served[:60], stream[:60]),
        share_right(served[LEARNED:], stream[LEARNED:]),
    )
    assert before < 0.7
    assert after > 0.8, (before, after)

    decisions = [d for s in served if (d := router.store.decision(s.decision_id)) is not None]
    snapshots = [d["snapshot"] for d in decisions]
    last = snapshots[-1]
    assert last is not None
    first = snapshots.index(last)
    assert first < LEARNED
    assert set(snapshots[first:]) == {last}
    assert router.store.registry.current("auto") == last
    artifact = tmp_path / "last.npz"
    artifact.write_bytes(router.store.registry.get(last).content)
    router.close()

    report = replay(config, artifact, decisions[first]["created_s"] - 5e-4)
    assert report["decisions"] == report["labelled"] == REQUESTS - first
    assert report["agreement"] > 0.95, "all but the explored decisions"
    estimate = report["estimates"]["doubly_robust"]
    assert estimate["low"] <= report["happened"]["score"] <= estimate["high"]
    mean = sum(s.score for s in served[first:]) / (REQUESTS - first)
    assert estimate["value"] == pytest.approx(mean, abs=0.05)
    assert report["cost"]["low"] <= report["cost"]["paid"] <= report["cost"]["high"]
