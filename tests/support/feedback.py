"""A route of two models, each good at one topic, and what happened on it: decisions as they are
recorded once a model has answered, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from suffice import Router, features
from suffice.config import parse_settings
from suffice.types import Attempt, Decision, RequestRecord, Usage

CODE = "write a python function that parses the {} file and returns a list"
PROSE = "tell me a story about the {} that went to the market"
CODER, WRITER = "p/coder", "p/writer"
MODEL = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0, "quality": 0.7}


def settings(
    folder: Path, models: tuple[str, ...] = (CODER, WRITER), **route: Any
) -> dict[str, Any]:
    """route: settings of `auto` beside or in place of objective best and learning on."""
    return {
        "store": {"url": f"sqlite:///{(folder / 's.db').as_posix()}"},
        "providers": {
            p: {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"} for p in ("p", "q")
        },
        "models": dict.fromkeys(models, MODEL),
        "routes": {
            "auto": {"models": list(models), "objective": "best", "learning": "on", **route}
        },
    }


def router(
    folder: Path,
    models: tuple[str, ...] = (CODER, WRITER),
    env: dict[str, str] | None = None,
    **route: Any,
) -> Router:
    return Router(parse_settings(settings(folder, models, **route)), env=env or {}, seed=1)


def record(
    r: Router,
    d: Decision,
    text: str,
    *,
    key: str | None = None,
    tokens: int = 30,
    at_s: float = 1000.0,
) -> None:
    """The decision as it is recorded once its model has answered with so many tokens."""
    x = features.extract_text(text)
    usage = Usage(x.input_tokens - 1, tokens)
    r.store.append(
        RequestRecord(
            decision=d,
            attempts=(Attempt(d.model, 1, "ok", 1.0, 0.1, usage=usage),),
            created_s=at_s,
            request_id="r",
            status=200,
            model=d.model,
            usage=usage,
            cost_usd=((x.input_tokens - 1) * 1.0 + tokens * 4.0) / 1e6,
            features=x,
            key_id=key,
        )
    )


def decided(r: Router, text: str, model: str | None = None, **recorded: Any) -> Decision:
    """A decision, recorded. model: the one that answered, as if it was explored."""
    d = r.route(text)
    if model is not None:
        d = msgspec.structs.replace(d, model=model)
    record(r, d, text, **recorded)
    return d


def teach(r: Router, n: int, start: int = 0, *, source: str = "user{}", **recorded: Any) -> None:
    """n labels: each model is good at one topic and bad at the other."""
    for i in range(start, start + n):
        topic, good = ((CODE, "coder"), (PROSE, "writer"))[i % 2]
        text = topic.format(f"thing{i}")
        d = r.route(text)
        d = msgspec.structs.replace(d, model=d.predictions[(i // 2) % 2].model)
        record(r, d, text, **recorded)
        r.feedback(d.id, float(d.model.endswith(good)), source=source.format(i % 40))
