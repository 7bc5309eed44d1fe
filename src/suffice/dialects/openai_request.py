"""Request bodies -> Query. Bad input is refused here, never later.

A body is decoded twice by msgspec: once into the typed view below, which holds only what routing
needs, and once into its top-level fields as raw JSON, so that a field we do not know reaches the
upstream byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec

from suffice.errors import BadRequestError
from suffice.types import NO_OPTIONS, Message, Query, RoutingOptions

# Fields that steer the router. They are read here and never sent upstream.
OWN_FIELDS = ("suffice", "models", "provider", "session_id")

T = TypeVar("T")

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
    sort: str | dict[str, object] | None = None
    max_price: _MaxPrice | None = None


class _SufficeOptions(msgspec.Struct, forbid_unknown_fields=True):
    objective: str | dict[str, object] | None = None
    models: list[str] | None = None
    explain: bool | None = None
    session: str | None = None
    metadata: dict[str, object] | None = None


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

_ERROR = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")
_UNKNOWN = re.compile(r"contains unknown field `(?P<field>[^`]+)`")


def bad_field(error: msgspec.ValidationError) -> BadRequestError:
    """A msgspec validation error as a 400 that names the field, e.g. `messages[0].role`."""
    match = _ERROR.match(str(error))
    reason = match["what"] if match else str(error)
    path = (match["path"] if match else None) or ""
    for pattern in (_MISSING, _UNKNOWN):
        field = pattern.search(reason)
        if field:
            path = f"{path}.{field['field']}" if path else field["field"]
    subject = f"`{path}`: " if path else "The body: "
    return BadRequestError(f"{subject}{reason}.", param=path or None, code="invalid_value")


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """Return `decoder(body)`. Raises BadRequestError however it fails."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise bad_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "the body is empty" if not body.strip() else str(error)
        raise BadRequestError(
            f"The body is not valid JSON: {reason}.", code="invalid_json"
        ) from None
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.", code="invalid_json") from None


def _message(message: _Msg) -> Message:
    content, role = message.content, message.role
    is_tool = role in ("tool", "function")
    calls = len(message.tool_calls) if message.tool_calls else 0
    if content is None or isinstance(content, str):
        return Message(role, content or "", 0, 0, calls, is_tool)
    texts: list[str] = []
    images = audio = 0
    for part in content:
        if part.text is not None:
            texts.append(part.text)
        elif part.type in ("image_url", "image"):
            images += 1
        elif part.type == "input_audio":
            audio += 1
    return Message(role, "\n".join(texts), images, audio, calls, is_tool)


def session_hash(messages: Sequence[Message]) -> str:
    """Key of an unnamed conversation: a hash of its first system and first user message."""
    digest = blake2b(digest_size=12)
    seen_user = False
    for m in messages:
        if m.role == "user":
            digest.update(b"u" + m.text[:4096].encode("utf-8", "surrogatepass"))
            seen_user = True
            break
        if m.role in ("system", "developer"):
            digest.update(b"s" + m.text[:4096].encode("utf-8", "surrogatepass"))
    if not seen_user and messages:
        digest.update(messages[0].text[:4096].encode("utf-8", "surrogatepass"))
    return "h-" + digest.hexdigest()


def _options(chat: _Chat, headers: Mapping[bytes, bytes]) -> RoutingOptions:
    suffice_options, preferences = (
        chat.suffice or _SufficeOptions(),
        chat.provider or _ProviderPrefs(),
    )
    objective: object = suffice_options.objective
    if objective is None and b"x-suffice-objective" in headers:
        objective = headers[b"x-suffice-objective"].decode("latin-1")
    models = suffice_options.models or chat.models
    sort = preferences.sort
    if isinstance(sort, dict):
        sort = sort.get("by")  # type: ignore[assignment]  # checked on the next line
    if sort not in (None, "price", "latency", "throughput"):
        raise _invalid("provider.sort", f"{sort!r} is not one of price, latency, throughput.")
    price = preferences.max_price or _MaxPrice()
    return RoutingOptions(
        objective=objective,
        models=tuple(models) if models else None,
        only=tuple(preferences.only) if preferences.only else None,
        ignore=tuple(preferences.ignore or ()),
        order=tuple(preferences.order or ()),
        allow_fallbacks=preferences.allow_fallbacks is not False,
        require_parameters=bool(preferences.require_parameters),
        sort=sort,
        max_input_usd_per_mtok=price.prompt,
        max_output_usd_per_mtok=price.completion,
        explain=bool(suffice_options.explain),
        metadata=suffice_options.metadata,
    )


def _invalid(param: str, reason: str) -> BadRequestError:
    return BadRequestError(f"`{param}`: {reason}", param=param, code="invalid_value")


def parse_chat(
    body: bytes,
    headers: Mapping[bytes, bytes],
    *,
    request_id: str = "",
    key_id: str | None = None,
) -> Query:
    """An OpenAI chat body (`POST /v1/chat/completions`) as a Query.

    Args:
        body: the body as it came.
        headers: values by lower-case name.
        request_id: of the query.
        key_id: of the client.

    Returns:
        The query. Fields that steer the router are taken out of its `fields`.

    Raises:
        _invalid: a BadRequestError that names the field at fault.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    chat = decode(_decode_chat, body)
    fields = decode(_decode_fields, body)
    if not chat.messages:
        raise _invalid("messages", "Expected at least one message, got none.")
    if not chat.model.strip():
        raise _invalid("model", "Expected a name, got ''.")
    messages = tuple([_message(message) for message in chat.messages])
    has_options = (
        chat.suffice is not None
        or chat.models is not None
        or chat.provider is not None
        or b"x-suffice-objective" in headers
    )
    options = _options(chat, headers) if has_options else NO_OPTIONS
    for name in OWN_FIELDS:
        fields.pop(name, None)
    return Query(
        dialect="openai",
        model=chat.model,
        messages=messages,
        fields=fields,
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        required_capabilities=_required_capabilities(chat, messages),
        max_output_tokens=_max_output_tokens(chat),
        options=options,
        session=_session(chat, headers) or session_hash(messages),
        request_id=request_id,
        headers=_forwarded_headers(headers),
        key_id=key_id,
    )


def _max_output_tokens(chat: _Chat) -> int | None:
    param, limit = "max_completion_tokens", chat.max_completion_tokens
    if limit is None:
        param, limit = "max_tokens", chat.max_tokens
    if limit is not None and limit < 1:
        raise _invalid(param, f"Expected at least 1, got {limit}.")
    return limit


def _session(chat: _Chat, headers: Mapping[bytes, bytes]) -> str | None:
    """The conversation that the client names: our suffice_options field and header first, then others'."""
    own_header, *other_headers = SESSION_HEADERS
    if chat.suffice is not None and chat.suffice.session is not None:
        return chat.suffice.session
    if own_header in headers:
        return headers[own_header].decode("latin-1")
    if chat.session_id is not None:
        return chat.session_id
    for header in other_headers:
        if header in headers:
            return headers[header].decode("latin-1")
    return chat.prompt_cache_key


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
    traceparent = ("traceparent", trace.decode("latin-1"))
    state = headers.get(b"tracestate")
    if state is None:
        return (traceparent,)
    return (traceparent, ("tracestate", state.decode("latin-1")))
