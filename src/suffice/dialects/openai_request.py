"""Request bodies -> Query. Bad input is refused here, never later.

A body is decoded twice by msgspec: once into the typed view below, which holds only what routing
needs, and once into its top-level fields as raw JSON, so that a field we do not know reaches the
upstream byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from suffice.errors import BadRequestError
from suffice.types import NO_OPTIONS, Message, Query, RoutingOptions

# Fields that steer the router. They are read here and never sent upstream.
OWN_FIELDS = ("suffice", "models", "provider", "session_id")

SESSION_HEADERS = (b"x-suffice-session", b"x-session-id", b"x-claude-code-session-id")

_NONE_REQUIRED: frozenset[str] = frozenset()


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None
    refusal: str | None = None


class _Msg(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[msgspec.Raw] | None = None
    tool_call_id: str | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ResponseFormat(msgspec.Struct):
    type: str


class _MaxPrice(msgspec.Struct):
    prompt: float | None = None  # USD per million tokens, OpenRouter's names
    completion: float | None = None


class _ProviderPrefs(msgspec.Struct):
    order: list[str] | None = None
    only: list[str] | None = None
    ignore: list[str] | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    sort: str | dict[str, Any] | None = None
    max_price: _MaxPrice | None = None


class _SufficeOptions(msgspec.Struct, forbid_unknown_fields=True):
    objective: str | dict[str, Any] | None = None
    models: list[str] | None = None
    explain: bool | None = None
    session: str | None = None
    metadata: dict[str, Any] | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Msg]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[msgspec.Raw] | None = None
    response_format: _ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    prompt_cache_key: str | None = None
    suffice: _SufficeOptions | None = None
    models: list[str] | None = None
    provider: _ProviderPrefs | None = None
    session_id: str | None = None


_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")
_UNKNOWN = re.compile(r"contains unknown field `(?P<field>[^`]+)`")


def bad_field(error: msgspec.ValidationError) -> BadRequestError:
    """A msgspec validation error as a 400 that names the field, e.g. `messages[0].role`."""
    match = _AT.match(str(error))
    what = match["what"] if match else str(error)
    path = (match["path"] if match else None) or ""
    for pattern in (_MISSING, _UNKNOWN):
        inner = pattern.search(what)
        if inner:
            path = f"{path}.{inner['field']}" if path else inner["field"]
    shown = f"`{path}`: " if path else "The body: "
    return BadRequestError(f"{shown}{what}.", param=path or None, code="invalid_value")


def decode(decoder: Any, body: bytes) -> Any:
    """`decoder(body)` with every way it can fail turned into a BadRequest."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise bad_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = "the body is empty" if not body.strip() else str(error)
        raise BadRequestError(f"The body is not valid JSON: {said}.", code="invalid_json") from None
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.", code="invalid_json") from None


def _message(m: _Msg) -> Message:
    content = m.content
    is_tool = m.role == "tool" or m.role == "function"
    calls = len(m.tool_calls) if m.tool_calls else 0
    if content is None or isinstance(content, str):
        return Message(m.role, content or "", 0, 0, calls, is_tool)
    texts: list[str] = []
    images = audio = 0
    for part in content:
        if part.text is not None:
            texts.append(part.text)
        elif part.type == "image_url" or part.type == "image":
            images += 1
        elif part.type == "input_audio":
            audio += 1
    return Message(m.role, "\n".join(texts), images, audio, calls, is_tool)


def session_hash(messages: Sequence[Message]) -> str:
    """Key of a conversation that names none: its first system and first user message."""
    h = blake2b(digest_size=12)
    seen_user = False
    for m in messages:
        if m.role == "user":
            h.update(b"u" + m.text[:4096].encode("utf-8", "surrogatepass"))
            seen_user = True
            break
        if m.role == "system" or m.role == "developer":
            h.update(b"s" + m.text[:4096].encode("utf-8", "surrogatepass"))
    if not seen_user and messages:
        h.update(messages[0].text[:4096].encode("utf-8", "surrogatepass"))
    return "h-" + h.hexdigest()


def _options(chat: _Chat, headers: Mapping[bytes, bytes]) -> RoutingOptions:
    ours, prefs = chat.suffice, chat.provider
    objective: Any = ours.objective if ours else None
    if objective is None and b"x-suffice-objective" in headers:
        objective = headers[b"x-suffice-objective"].decode("latin-1")
    models = (ours.models if ours else None) or chat.models
    p = prefs or _ProviderPrefs()
    sort = p.sort.get("by") if isinstance(p.sort, dict) else p.sort
    if sort not in (None, "price", "latency", "throughput"):
        raise BadRequestError(
            f"`provider.sort`: {sort!r} is not one of price, latency, throughput.",
            param="provider.sort",
            code="invalid_value",
        )
    price = p.max_price or _MaxPrice()
    return RoutingOptions(
        objective=objective,
        models=tuple(models) if models else None,
        only=tuple(p.only) if p.only else None,
        ignore=tuple(p.ignore or ()),
        order=tuple(p.order or ()),
        allow_fallbacks=p.allow_fallbacks is not False,
        require_parameters=bool(p.require_parameters),
        sort=sort,
        max_input_usd_per_mtok=price.prompt,
        max_output_usd_per_mtok=price.completion,
        explain=bool(ours and ours.explain),
        metadata=ours.metadata if ours else None,
    )


def parse_chat(
    body: bytes,
    headers: Mapping[bytes, bytes],
    *,
    request_id: str = "",
    key_id: str | None = None,
) -> Query:
    """An OpenAI chat body (`POST /v1/chat/completions`) as a Query.

    headers: lower-case names to values. Raises BadRequest that names the field.
    """
    chat: _Chat = decode(_decode_chat, body)
    fields: dict[str, msgspec.Raw] = decode(_decode_fields, body)
    if not chat.messages:
        raise BadRequestError(
            "`messages`: Expected at least one message, got none.",
            param="messages",
            code="invalid_value",
        )
    if not chat.model.strip():
        raise BadRequestError(
            "`model`: Expected a name, got ''.", param="model", code="invalid_value"
        )
    limit = (
        chat.max_completion_tokens if chat.max_completion_tokens is not None else chat.max_tokens
    )
    if limit is not None and limit < 1:
        name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
        raise BadRequestError(
            f"`{name}`: Expected at least 1, got {limit}.", param=name, code="invalid_value"
        )
    messages = tuple([_message(m) for m in chat.messages])

    steers = (
        chat.suffice is not None
        or chat.models is not None
        or chat.provider is not None
        or b"x-suffice-objective" in headers
    )
    options = _options(chat, headers) if steers else NO_OPTIONS
    for name in OWN_FIELDS:
        fields.pop(name, None)

    session = chat.suffice.session if chat.suffice else None
    if session is None:
        for header in SESSION_HEADERS[:1]:
            if header in headers:
                session = headers[header].decode("latin-1")
    if session is None:
        session = chat.session_id
    if session is None:
        for header in SESSION_HEADERS[1:]:
            if header in headers:
                session = headers[header].decode("latin-1")
                break
    if session is None:
        session = chat.prompt_cache_key or session_hash(messages)

    return Query(
        dialect="openai",
        model=chat.model,
        messages=messages,
        fields=fields,
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        required_capabilities=_required_capabilities(chat, messages),
        max_output_tokens=limit,
        options=options,
        session=session,
        request_id=request_id,
        headers=_forwarded_headers(headers),
        key_id=key_id,
    )


def _required_capabilities(chat: _Chat, messages: tuple[Message, ...]) -> frozenset[str]:
    required: set[str] | None = None
    if chat.tools or chat.functions:
        required = {"tools"}
    if chat.response_format is not None and chat.response_format.type == "json_schema":
        required = (required or set()) | {"json_schema"}
    for m in messages:
        if m.images:
            required = (required or set()) | {"vision"}
        if m.audio:
            required = (required or set()) | {"audio"}
    return frozenset(required) if required else _NONE_REQUIRED


def _forwarded_headers(headers: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    trace = headers.get(b"traceparent")
    if trace is None:
        return ()
    out = [("traceparent", trace.decode("latin-1"))]
    state = headers.get(b"tracestate")
    if state is not None:
        out.append(("tracestate", state.decode("latin-1")))
    return tuple(out)
