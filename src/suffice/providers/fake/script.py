"""What a fake upstream does, as data that a test, a demo or a file can state.

    {"seed": 1, "models": {"m-small": {"reply": "Hi.", "first_chunk_s": 0.05,
                                       "actions": ["ok", {"status": 500}, "stall"]}}}

`actions` are used up one per request and model, in order. After the last one every request is
answered, or the last one is repeated if it is {"repeat": true, ...}.
"""

from __future__ import annotations

from hashlib import blake2b
from math import exp
from pathlib import Path
from typing import Literal

import msgspec

from suffice.errors import UsageError

Kind = Literal[
    "ok",
    "status",  # answer with `status`, `body`, `headers`
    "stall",  # accept, then never answer
    "stall_mid",  # stop in the middle of the reply and keep the connection open
    "cut",  # close in the middle of the reply
    "reset",  # close before a byte is answered
    "malformed",  # 200 with JSON that is not a chat completion
    "not_json",  # 200 with HTML
    "empty",  # 200 without a body
    "error_event",  # in a stream: an error event after the first content
    "stream_as_json",  # ignore `stream` and answer whole
]


class Action(msgspec.Struct, frozen=True):
    """What to do with one request."""

    kind: Kind = "ok"
    status: int = 200
    body: object = None
    headers: dict[str, str] = {}
    after_chunks: int = 2  # of stall_mid, cut and error_event
    repeat: bool = False


class FakeModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a fake upstream."""

    reply: str = "This is a simulated reply."
    first_chunk_s: float = 0.0
    tokens_per_s: float = 0.0  # 0: as fast as possible
    output_tokens: int | None = None  # None: counted from the reply
    usage: bool = True
    skill: float = 1.0  # see `is_sufficient`
    actions: tuple[object, ...] = ()
    cached_tokens: int = 0


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole fake upstream. A model that is not in `models` gets a 404, unless `any_model`."""

    models: dict[str, FakeModel] = {}
    any_model: bool = False
    seed: int = 0
    api_key: str | None = None  # if set, other keys get a 401


def parse_action(value: object) -> Action:
    """`"stall"`, `{"status": 503}` or a full Action. Raises UsageError."""
    try:
        if isinstance(value, str):
            return msgspec.convert({"kind": value}, Action)
        if isinstance(value, dict) and "status" in value and "kind" not in value:
            value = {"kind": "status", **value}
        return value if isinstance(value, Action) else msgspec.convert(value, Action)
    except msgspec.ValidationError as error:
        raise UsageError(f"actions: {value!r}: {error}.") from None


def load_script(path: str | Path) -> Script:
    """A Script from a JSON or TOML file. Raises UsageError that names what is wrong."""
    try:
        data = Path(path).read_bytes()
        decoder = msgspec.toml if str(path).endswith(".toml") else msgspec.json
        script: Script = decoder.decode(data, type=Script)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}.", remedy="See `suffice.providers.fake`.") from None
    for model in script.models.values():
        for action in model.actions:
            parse_action(action)
    return script


def is_sufficient(seed: int, model: str, query_id: str, skill: float, difficulty: float) -> bool:
    """Decide by a hash whether a simulated model answers a simulated query well.

    Returns:
        True with the probability 1 / (1 + exp(-9 (skill - difficulty))); the same on every run.
    """
    probability = 1.0 / (1.0 + exp(-9.0 * (skill - difficulty)))
    digest = blake2b(f"{seed}/{model}/{query_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < probability
