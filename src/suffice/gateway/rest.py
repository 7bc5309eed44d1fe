"""Every path but the chat endpoint: models, dry runs, decisions, feedback, health, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

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
from suffice.gateway.render import error_body, error_headers, to_error_response, to_json

if TYPE_CHECKING:
    from suffice.gateway.auth import Auth
    from suffice.router import Router

_log = logging.getLogger("suffice.gateway")
_IDEMPOTENCY_KEY = b"idempotency-key"
_CLIENT_CLOSED_REQUEST = 499


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
_decode_object = msgspec.json.Decoder(dict[str, object]).decode


def create_api(router: Router, auth: Auth, *, max_body_bytes: int) -> Starlette:
    """The Starlette app for all paths but chat. Every error leaves it in the dialect's own shape."""
    return Starlette(
        routes=Api(router, auth, max_body_bytes).routes(),
        exception_handlers={
            HTTPException: _on_http_exception,
            SufficeError: _on_error,
            ClientDisconnect: _on_disconnect,
            500: _on_error,
        },
    )


class Api:
    """The endpoints, over one Router."""

    def __init__(self, router: Router, auth: Auth, max_body_bytes: int) -> None:
        self._router = router
        self._auth = auth
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        """What is served at which path."""
        return [
            Route("/", self.home, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/v1/route", self.route, methods=["POST"]),
            Route("/v1/decisions/{id}", self.decision, methods=["GET"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            # POST never comes here: the app hands it to the chat endpoint before Starlette sees it.
            Route(
                "/v1/chat/completions",
                self.chat_with_another_method,
                methods=["GET", "PUT", "PATCH", "DELETE", "OPTIONS"],
            ),
        ]

    async def home(self, request: Request) -> Response:
        """GET /: the version, and the paths."""
        paths = sorted(route.path for route in self.routes())
        return _json({"service": "suffice", "version": __version__, "paths": paths}, request)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: routes, then models."""
        self._auth.check(_headers(request))
        names = [(name, "suffice") for name in self._router.routes]
        names += [(m.name, m.provider) for m in self._router.models()]
        return _json({"object": "list", "data": [_model(*n) for n in names]}, request)

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}: a route or a model."""
        self._auth.check(_headers(request))
        name = request.path_params["name"]
        route = self._router.resolve(name)
        owner = route.models[0].provider if route.is_pinned else "suffice"
        return _json(_model(name, owner), request)

    async def route(self, request: Request) -> Response:
        """POST /v1/route: the Decision for a chat body; nothing is called."""
        headers = _headers(request)
        self._auth.check(headers)
        body = await read_body(request.receive, headers, self._max_body_bytes)
        query = parse_chat(body, headers, request_id=_request_id(request))
        return _json(self._router.explain(self._router.decide(query)), request)

    async def decision(self, request: Request) -> Response:
        """GET /v1/decisions/{id}: a recorded decision."""
        key_id = self._auth.check(_headers(request))
        decision_id = request.path_params["id"]
        row = await asyncio.to_thread(self._router.decision, decision_id)
        # Another client's decision may hold its prompt: for this client it does not exist.
        if row is None or (key_id is not None and row.get("key_id") != key_id):
            raise NotFoundError(f"There is no decision {decision_id!r}.", param="id")
        return _json(row, request)

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback: one score, or a batch of scores."""
        headers = _headers(request)
        key_id = self._auth.check(headers)
        body = await read_body(request.receive, headers, self._max_body_bytes)
        raw_key = headers.get(_IDEMPOTENCY_KEY)
        key = None if raw_key is None else raw_key.decode("latin-1")
        if "feedback" in decode(_decode_fields, body):
            return await self._feedback_batch(request, body, key, key_id)
        score: _FeedbackBody = decode(_decode_feedback, body)
        stored = await asyncio.to_thread(
            self._router.feedback,
            score.decision_id,
            score.score,
            verdict=score.verdict,
            source="user" if score.source is None else score.source,
            comment=score.comment,
            key=key if score.key is None else score.key,
            created_s=score.created,
            key_id=key_id,
        )
        shown = {
            "decision_id": stored.decision_id,
            "score": stored.score,
            "source": stored.source,
        }
        return _json({"object": "feedback", **shown}, request)

    async def _feedback_batch(
        self, request: Request, body: bytes, key: str | None, key_id: str | None
    ) -> Response:
        items = parse_batch(decode(_decode_object, body), key)
        results = await asyncio.to_thread(self._router.feedback_batch, items, key_id=key_id)
        totals = Counter(r["status"] for r in results)
        counts = {status: totals[status] for status in ("stored", "not_found", "invalid")}
        return _json({"object": "feedback.batch", **counts, "results": results}, request)

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: the process runs."""
        return _json({"status": "ok"}, request)

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: 503 if no model of any route can be called now."""
        state = self._router.ready()
        return _json(state, request, 503 if state["status"] == "unready" else 200)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: Prometheus text."""
        text = await asyncio.to_thread(self._router.metrics)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def chat_with_another_method(self, request: Request) -> Response:
        """Refuse another method than POST at the chat endpoint."""
        raise HTTPException(405, headers={"Allow": "POST"})


def parse_batch(body: Mapping[str, object], key: str | None) -> list[dict[str, object]]:
    """The items of `{"feedback": [...]}`.

    Args:
        body: the request's.
        key: the request's idempotency key, for items without their own.

    Returns:
        The items as they were sent; each is validated later.

    Raises:
        UnprocessableError: `feedback` is not a list, or another field is next to it.
    """
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


def _model(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _json(value: object, request: Request, status: int = 200) -> Response:
    return Response(
        to_json(value),
        status,
        {"x-request-id": _request_id(request)},
        media_type="application/json",
    )


def _headers(request: Request) -> dict[bytes, bytes]:
    return dict(request.scope["headers"])


def _request_id(request: Request) -> str:
    state: dict[str, str] = request.scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = request_id_of(_headers(request))
    return state["request_id"]


def _error(request: Request, error: Exception) -> Response:
    shown = to_error_response(error)
    if shown.status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    response = Response(error_body(shown, request.url.path), shown.status)
    response.raw_headers += error_headers(shown, _request_id(request))
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
        error = MethodNotAllowedError(f"{method} is not allowed on {path}.", remedy=f"Use {allow}.")
        response = _error(request, error)
        response.headers["allow"] = allow
        return response
    response = _error(request, RequestError(exc.detail))
    response.status_code = exc.status_code
    return response


async def _on_error(request: Request, exc: Exception) -> Response:
    return _error(request, exc)


async def _on_disconnect(_request: Request, _exc: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
