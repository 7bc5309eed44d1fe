"""Every path but the chat endpoint: models, dry runs, decisions, feedback, health, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from suffice import __version__
from suffice.dialects.openai_request import decode, parse_chat
from suffice.errors import (
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    SufficeError,
    UnprocessableError,
)
from suffice.gateway.chat import read_body, request_id_of
from suffice.gateway.render import error_body, error_headers, failure, to_json

if TYPE_CHECKING:
    from suffice.gateway.auth import Auth
    from suffice.router import Router

_log = logging.getLogger("suffice.gateway")


class _FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    decision_id: str
    score: float | None = None
    verdict: str | None = None
    source: str | None = None
    comment: str | None = None
    key: str | None = None
    created: float | str | None = None


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_feedback = msgspec.json.Decoder(_FeedbackBody).decode
_decode_any = msgspec.json.Decoder().decode

_KEY = b"idempotency-key"


def _batch_of(body: dict[str, Any], key: str | None) -> list[Any]:
    """The items of {"feedback": [...]}; those without a key of their own get the request's."""
    items = body["feedback"]
    if not isinstance(items, list):
        raise UnprocessableError("`feedback`: Expected a list of scores.", param="feedback")
    others = sorted(body.keys() - {"feedback"})
    if others:
        raise UnprocessableError(
            f"`{others[0]}`: It does not go with `feedback`; each item has its own.",
            param=others[0],
        )
    if key is None:
        return items
    return [{**i, "key": key} if isinstance(i, dict) and i.get("key") is None else i for i in items]


def _json(value: Any, request: Request, status: int = 200) -> Response:
    return Response(
        to_json(value),
        status,
        {"x-request-id": _request_id(request)},
        media_type="application/json",
    )


def _headers(request: Request) -> dict[bytes, bytes]:
    return dict(request.scope["headers"])


def _request_id(request: Request) -> str:
    found = getattr(request.state, "request_id", None)
    if found is None:
        found = request.state.request_id = request_id_of(_headers(request))
    return str(found)


def _error(request: Request, error: Exception) -> Response:
    f = failure(error)
    if f.status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    response = Response(error_body(f, request.url.path), f.status)
    response.raw_headers += error_headers(f, _request_id(request))
    return response


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path, method = request.url.path, request.method
    if exc.status_code == 404:
        return _error(
            request, NotFoundError(f"There is nothing at {method} {path}.", code="unknown_url")
        )
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        response = _error(
            request,
            MethodNotAllowedError(f"{method} is not allowed on {path}.", remedy=f"Use {allow}."),
        )
        response.headers["allow"] = allow
        return response
    error = RequestError(exc.detail)
    response = _error(request, error)
    response.status_code = exc.status_code
    return response


async def _on_error(request: Request, exc: Exception) -> Response:
    return _error(request, exc)


def create_rest(router: Router, auth: Auth, *, max_body_bytes: int) -> Starlette:
    """The Starlette app for all but chat. Every error leaves it in the dialect's own shape."""

    async def body_of(request: Request) -> bytes:
        auth.check(_headers(request))
        return await read_body(request.receive, _headers(request), max_body_bytes)

    async def models(request: Request) -> Response:
        auth.check(_headers(request))
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "suffice"}
            for name in router.routes
        ]
        rows += [
            {"id": m.name, "object": "model", "created": 0, "owned_by": m.provider}
            for m in router.models()
        ]
        return _json({"object": "list", "data": rows}, request)

    async def model(request: Request) -> Response:
        auth.check(_headers(request))
        name = request.path_params["name"]
        target = router.resolve(name)
        owner = target.models[0].provider if target.is_pinned else "suffice"
        row = {"id": name, "object": "model", "created": 0, "owned_by": owner}
        return _json(row, request)

    async def route(request: Request) -> Response:
        body = await body_of(request)
        query = parse_chat(body, _headers(request), request_id=_request_id(request))
        return _json(router.explain(router.decide(query)), request)

    async def decision(request: Request) -> Response:
        key_id = auth.check(_headers(request))
        decision_id = request.path_params["id"]
        found = await asyncio.to_thread(router.decision, decision_id)
        # Another client's decision may hold its prompt: it is not there for this one.
        if found is None or (key_id is not None and found.get("key_id") != key_id):
            raise NotFoundError(f"There is no decision {decision_id!r}.", param="id")
        return _json(found, request)

    async def feedback(request: Request) -> Response:
        headers = _headers(request)
        key_id = auth.check(headers)
        body = await body_of(request)
        key = headers[_KEY].decode("latin-1") if _KEY in headers else None
        if "feedback" in decode(_decode_fields, body):
            items = _batch_of(decode(_decode_any, body), key)
            results = await asyncio.to_thread(router.feedback_batch, items, key_id=key_id)
            told = Counter(r["status"] for r in results)
            counts = {status: told[status] for status in ("stored", "not_found", "invalid")}
            return _json({"object": "feedback.batch", **counts, "results": results}, request)
        f: _FeedbackBody = decode(_decode_feedback, body)
        given = await asyncio.to_thread(
            router.feedback,
            f.decision_id,
            f.score,
            verdict=f.verdict,
            source="user" if f.source is None else f.source,
            comment=f.comment,
            key=key if f.key is None else f.key,
            created_s=f.created,
            key_id=key_id,
        )
        stored = {"decision_id": given.decision_id, "score": given.score, "source": given.source}
        return _json({"object": "feedback", **stored}, request)

    async def healthz(request: Request) -> Response:
        return _json({"status": "ok"}, request)

    async def readyz(request: Request) -> Response:
        state = router.ready()
        return _json(state, request, 503 if state["status"] == "unready" else 200)

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(router.metrics)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def home(request: Request) -> Response:
        paths = sorted(r.path for r in routes)
        return _json({"service": "suffice", "version": __version__, "paths": paths}, request)

    async def chat_other_method(request: Request) -> Response:
        raise HTTPException(405, headers={"Allow": "POST"})

    routes = [
        Route("/", home, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/v1/route", route, methods=["POST"]),
        Route("/v1/decisions/{id}", decision, methods=["GET"]),
        Route("/v1/feedback", feedback, methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        # POST never comes here: the app hands it to the chat endpoint before Starlette sees it.
        Route(
            "/v1/chat/completions",
            chat_other_method,
            methods=["GET", "PUT", "PATCH", "DELETE", "OPTIONS"],
        ),
    ]

    async def on_disconnect(request: Request, exc: Exception) -> Response:
        return Response(status_code=499)

    return Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _on_http_exception,
            SufficeError: _on_error,
            ClientDisconnect: on_disconnect,
            500: _on_error,
        },
    )
