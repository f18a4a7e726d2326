"""The HTTP interface of the service: OpenAI's API, health and metrics.

GET  /v1/models, /v1/models/NAME        POST /v1/chat/completions, /v1/completions
GET  /health (never needs a key)        GET  /metrics (Prometheus)
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong import strict_json
from wukong.errors import WukongError
from wukong.serve.events import EventStream, event
from wukong.serve.listen import is_loopback
from wukong.serve.protocol import (
    ApiError,
    ChatRequest,
    ChatShape,
    CompletionRequest,
    CompletionShape,
    ModelRequest,
    Shape,
    as_api_error,
    parse,
)
from wukong.serve.service import Answer, Served, Service
from wukong.training.memory import n_parameters


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        api_key: what a request must carry as `Authorization: Bearer KEY`; None lets in everyone on this machine.
        max_body: bytes of a request.
        body_seconds: so long a request may take to arrive.
    """

    api_key: str | None = None
    max_body: int = 1 << 20
    body_seconds: float = 30.0


def create_app(service: Service, access: Access | None = None) -> FastAPI:
    """The application; the service runs from its start to its end."""
    access = access or Access()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(title="Wukong", lifespan=lifespan, openapi_url=None)  # OpenAI's own reference describes it better

    app.add_middleware(_Gate, service=service, access=access)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _error(error)

    @app.exception_handler(WukongError)
    async def troubled(_: Request, error: WukongError) -> Response:
        return _error(as_api_error(error))

    @app.exception_handler(HTTPException)
    async def astray(_: Request, error: HTTPException) -> Response:
        return _error(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # it hung up while it sent its request

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _error(ApiError(500, "the server failed; its log says why"))

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if service.alive else "stopped"}, 200 if service.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served) for served in service.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _model(service.model(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = parse(ChatRequest, await _body(request, access))
        messages = [message.plain() for message in asked.messages]
        answer = await service.chat(asked.model, messages, asked.drawing())
        return await _respond(request, asked, answer, ChatShape(answer), asked.logprobs)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = parse(CompletionRequest, await _body(request, access))
        answer = await service.complete(asked.model, asked.prompts(), asked.drawing())
        return await _respond(request, asked, answer, CompletionShape(answer), asked.logprobs is not None)

    return app


class _Gate:
    """Lets in who may ask, and counts. Plain ASGI: Starlette's wrapper would come between a stream and its client."""

    def __init__(self, app: ASGIApp, service: Service, access: Access) -> None:
        self.app, self.service, self.access = app, service, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                endpoint = getattr(scope.get("route"), "path", "none")
                self.service.metrics.requests.labels(endpoint, str(message["status"])).inc()
            await send(message)

        refusal = _refusal(Request(scope), self.access)
        await (self.app if refusal is None else _error(refusal))(scope, receive, counted)


def _refusal(request: Request, access: Access) -> ApiError | None:
    length = request.headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,12}", length) or int(length) > access.max_body:
        return _too_large(access)
    if request.scope["path"] == "/health":
        return None
    if access.api_key is None:
        # Without a key a web page could reach us by giving its own name our address (DNS rebinding).
        name = request.headers.get("host", "")
        if not is_loopback(name):
            return ApiError(403, f"this server has no API key and answers requests to 127.0.0.1 only, not {name!r}")
        return None
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secrets.compare_digest(key.strip().encode(), access.api_key.encode()):
        return None
    return ApiError(401, "missing or wrong API key; send it as Authorization: Bearer KEY", code="invalid_api_key")


def _error(error: ApiError) -> Response:
    # Of a request that was not read to its end the rest would come as if it were the next one.
    closing = {"Connection": "close"}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 408: closing, 413: closing}
    return JSONResponse(error.body(), error.status, headers.get(error.status))


def _too_large(access: Access) -> ApiError:
    return ApiError(413, f"the request is larger than {access.max_body:,} bytes", code="request_too_large")


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "wukong",
        "context_length": served.context,
        "parameters": n_parameters(served.model.config),  # an inference copy has packed weights beside its parameters
        "sampling": served.sampling.as_dict(),
    }


async def _body(request: Request, access: Access) -> Any:
    """The JSON of a request. Raises ApiError for one that is too large or too slow, is no JSON, or does not say that it
    is."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
    raw = bytearray()
    try:
        async with asyncio.timeout(access.body_seconds):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > access.max_body:
                    raise _too_large(access)
    except TimeoutError:
        raise ApiError(408, "the request did not arrive in time", code="request_timeout") from None
    try:
        return strict_json.loads(bytes(raw))
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None


async def _respond(request: Request, asked: ModelRequest, answer: Answer, shape: Shape, logprobs: bool) -> Response:
    if asked.stream:
        return EventStream(_events(asked, answer, shape, logprobs), answer.cancel)
    whole, gone = asyncio.ensure_future(answer.whole()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)  # not read by anyone; proxies' usual number for a client that left
        return JSONResponse(shape.whole(whole.result(), logprobs))
    finally:
        answer.cancel()
        whole.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(asked: ModelRequest, answer: Answer, shape: Shape, logprobs: bool) -> AsyncIterator[str]:
    """Server-sent events: one a piece, and "[DONE]"."""
    for opening in shape.opening():
        yield event(opening)
    tokens = dict[int, int]()
    try:
        async for pieces in answer.bunches():
            tokens.update((piece.index, piece.n_tokens) for piece in pieces)
            worth = (piece for piece in pieces if piece.text or piece.finish_reason or logprobs)
            if events := "".join(event(shape.piece(piece, logprobs)) for piece in worth):
                yield events
    except WukongError as error:  # the status was sent long ago: the error is an event, which clients know
        yield event(as_api_error(error).body())
        return
    if asked.stream_options.include_usage:
        yield event(shape.closing(sum(tokens.values())))
    yield "data: [DONE]\n\n"
