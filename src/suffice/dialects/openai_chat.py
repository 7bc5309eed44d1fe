"""The OpenAI chat completions dialect, which most providers and local servers speak.

Inbound and outbound dialect are equal, so the body passes through byte for byte but for `model`
and, on streams, `stream_options.include_usage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from suffice.dialects.base import ParsedReply
from suffice.dialects.openai_errors import BROKEN_JSON, malformed_error, status_error
from suffice.dialects.openai_schema import decode_completion, decode_fields, to_usage
from suffice.dialects.openai_stream import OpenAIStream
from suffice.errors import UpstreamError
from suffice.types import Deployment

# OpenAI's newer models refuse `max_tokens`, which all other servers know.
NEW_LIMIT_PROVIDERS = ("openai", "azure")
_NEW_LIMIT_HOSTS = ("api.openai.com", ".openai.azure.com")
_INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
_TRUE = msgspec.Raw(b"true")

_encode = msgspec.json.encode


class _RequestParts(msgspec.Struct, frozen=True):
    """The part of a request that is the same for all queries to a deployment."""

    target: Deployment
    url: str
    headers: tuple[tuple[str, str], ...]
    model: msgspec.Raw


class OpenAIChat:
    """The dialect. Caches the constant part of each deployment's requests, and nothing else."""

    name = "openai"

    def __init__(self) -> None:
        self._parts: dict[str, _RequestParts] = {}  # by model name: bounded by the deployments

    def build_request(
        self, fields: dict[str, msgspec.Raw], target: Deployment, *, stream: bool
    ) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        """URL, headers and body of the query for `target`."""
        parts = self._parts.get(target.model.name)
        if parts is None or parts.target is not target:
            parts = self._parts[target.model.name] = _request_parts(target)
        body = fields.copy()
        body["model"] = parts.model
        if stream:
            options = body.get("stream_options")
            if options is None or bytes(options) == b"null":
                body["stream_options"] = _INCLUDE_USAGE
            else:
                body["stream_options"] = msgspec.Raw(
                    _encode(decode_fields(options) | {"include_usage": _TRUE})
                )
        return parts.url, parts.headers, _encode(body)

    def with_max_tokens(
        self, fields: dict[str, msgspec.Raw], target: Deployment, output_tokens: int
    ) -> dict[str, msgspec.Raw]:
        """The fields with a limit of output tokens, for a body that has none."""
        provider = target.provider
        is_new = provider.name in NEW_LIMIT_PROVIDERS or any(
            host in provider.base_url for host in _NEW_LIMIT_HOSTS
        )
        field = "max_completion_tokens" if is_new else "max_tokens"
        return {**fields, field: msgspec.Raw(b"%d" % output_tokens)}

    def parse_reply(self, body: bytes, target: Deployment) -> ParsedReply:
        """Read a whole reply, and name the model as the catalog does. Raises UpstreamError."""
        try:
            completion = decode_completion(body)
            fields = decode_fields(body)
        except BROKEN_JSON as error:
            raise malformed_error(target, str(error), body) from None
        if not completion.choices:
            raise malformed_error(target, "it holds no choices", body)
        fields["model"] = msgspec.Raw(_encode(target.model.name))
        return ParsedReply(
            _encode(fields), to_usage(completion.usage), completion.choices[0].finish_reason
        )

    def classify_error(
        self, status: int, header: Callable[[str], str | None], body: bytes, target: Deployment
    ) -> UpstreamError:
        """The error that a status of 300 or more means."""
        return status_error(status, header, body, target)

    def stream_parser(self, target: Deployment) -> OpenAIStream:
        """A parser for one stream of `target`."""
        return OpenAIStream(target)


def _request_parts(target: Deployment) -> _RequestParts:
    provider = target.provider
    headers = [("content-type", "application/json"), *provider.headers]
    if provider.api_key and provider.auth == "bearer":
        headers.append(("authorization", f"Bearer {provider.api_key}"))
    elif provider.api_key and provider.auth in ("x-api-key", "api-key"):
        headers.append((provider.auth, provider.api_key))
    return _RequestParts(
        target,
        provider.base_url.rstrip("/") + "/chat/completions",
        tuple(headers),
        msgspec.Raw(_encode(target.model.upstream)),
    )
