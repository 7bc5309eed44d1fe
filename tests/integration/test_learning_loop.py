"""The whole loop, small: requests through the real gateway, feedback, and the right model more often.

The full proof, with its figures, is benchmarks/quality/end_to_end/run.py; the world is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

QUALITY = Path(__file__).parents[2] / "benchmarks" / "quality"
TOPICS, LATE, N = (0, 1), 280, 400


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    monkeypatch.syspath_prepend(str(QUALITY / "end_to_end"))
    import simulation
    import traffic

    yield simulation, traffic
    for name in ("simulation", "traffic"):
        sys.modules.pop(name)


def test_feedback_raises_the_share_of_the_right_model_and_replay_agrees(
    loop: tuple[Any, Any], tmp_path: Path
) -> None:
    made, driver = loop
    # Two topics, one cheap model good at each; both are said to be good at everything.
    chance = np.full((len(made.TOPICS), len(made.MODELS)), 0.25)
    chance[0, 0] = chance[1, 1] = 0.95
    world = made.World(chance, (0.85, 0.85, 0.5))
    stream = [r for r in made.requests(5, 4 * N, missing=0.0) if r.topic in TOPICS][:N]
    # The last ones are scored when all is over: until then one policy serves.
    stream = [r._replace(delay=0 if i < LATE else 1000, doubt=False) for i, r in enumerate(stream)]
    _, right = made.values(world, stream)
    with driver.upstream() as fake:
        config = driver.config(tmp_path, world, fake.base_url, "on")
        sent = driver.drive(config, world, stream, at_once=1, per_s=60.0)

    before, after = (sent.model == right)[:60].mean(), (sent.model == right)[LATE:].mean()
    assert before < 0.7
    assert after > 0.8, (before, after)
    assert sent.good[LATE:].mean() > sent.good[:60].mean() + 0.1

    log = driver.recorded(config, sent.ids)
    last = log[-1]["snapshot"]
    assert last is not None
    first = next(i for i, d in enumerate(log) if d["snapshot"] == last)
    assert N - first >= 80
    assert all(d["snapshot"] == last for d in log[first:])
    served = next(s for s in driver.snapshots(config) if s["version"] == last)
    artifact = tmp_path / "last.npz"
    artifact.write_bytes(served["content"])
    found = driver.replay(config, str(artifact), since_s=log[first]["created_s"] - 5e-4)
    assert found["decisions"] == found["labelled"] == N - first
    assert found["agreement"] > 0.95  # but for what was explored
    e = found["estimates"]["doubly_robust"]
    assert e["low"] <= found["happened"]["score"] <= e["high"]
    assert e["value"] == pytest.approx(sent.good[first:].mean(), abs=0.05)
    assert found["cost"]["low"] <= found["cost"]["paid"] <= found["cost"]["high"]
