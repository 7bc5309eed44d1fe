"""The stream parser gives the same events however the bytes are split."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from suffice.dialects.openai_chat import OpenAIStream
from suffice.types import Deployment, Model, Provider

TARGET = Deployment(Model("p/m", "p", "m"), Provider("p", "openai", "http://127.0.0.1:1"))


def chunk(text: str | None, **extra: object) -> str:
    choices = (
        [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    )
    return "data: " + json.dumps({"id": "1", "model": "m", "choices": choices, **extra}) + "\n\n"


TEXTS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8)


def run(data: bytes, cuts: list[int]) -> tuple[list[str], OpenAIStream]:
    parser = OpenAIStream(TARGET)
    raw = b""
    places = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    for piece in [*pieces, b"\n\n"]:  # the end of a body ends its last event too
        for event in parser.feed(piece):
            if event.kind in ("content", "preamble"):
                raw += event.raw
    texts = []
    for block in raw.decode().split("\n\n"):
        if block:
            for choice in json.loads(block.removeprefix("data: "))["choices"]:
                texts.append(choice["delta"]["content"])
    return texts, parser


@given(TEXTS, st.lists(st.integers(0, 2000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_stream_may_be_split_anywhere(texts: list[str], cuts: list[int], newline: str) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    body = "".join(chunk(t) for t in texts) + chunk(None, usage=usage) + "data: [DONE]\n\n"
    data = (": a comment\n\n" + body).replace("\n", newline).encode()
    got, parser = run(data, cuts)
    assert got == texts
    assert parser.finished
    assert parser.usage is not None
    assert (parser.usage.input_tokens, parser.usage.output_tokens) == (3, 4)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_no_bytes_crash_the_parser(data: bytes, cuts: list[int]) -> None:
    parser = OpenAIStream(TARGET)
    places = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    for a, b in zip(places, places[1:], strict=False):
        parser.feed(data[a:b])
    parser.feed(b"\n\n")


def test_the_answering_model_is_named_in_every_chunk() -> None:
    parser = OpenAIStream(TARGET)
    raw = b"".join(e.raw for e in parser.feed((chunk("a") + chunk("b") + chunk("c")).encode()))
    assert raw.count(b'"model":"p/m"') == 3


def test_an_error_event_is_an_error() -> None:
    parser = OpenAIStream(TARGET)
    parser.feed(b'data: {"error": {"message": "out of memory", "code": 503}}\n\n')
    assert parser.error is not None
    assert parser.error.kind == "overloaded"
    assert "out of memory" in parser.error.message
