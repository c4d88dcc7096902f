"""The pool over HTTP, as OpenAI's API speaks; needs the extra `serve` (starlette, uvicorn)."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.records import Answer, Ask, Piece, PoolStatus
from oodatcaa.pool.wire import (
    MAX_BODY,
    Body,
    ChatBody,
    Reply,
    TextBody,
    error_body,
    event,
    read_body,
)

MOST_WAITING = 64
"""Requests at once; the next one is told to come back."""
OPEN_PATHS = frozenset({"/health"})


class Door(Protocol):
    """What is served. Errors are OodatcaaErrors."""

    def models(self) -> list[dict[str, Any]]:
        """Each with `id`, `created` (seconds) and `owned_by`."""

    def stream(self, model: str, ask: Ask) -> Iterator[Piece | Answer]:
        """Pieces, then the whole answer."""

    def status(self) -> PoolStatus: ...


class Gate:
    """Who may come in: with the token where there is one; else only this machine's own clients,
    so that no web page in somebody's browser can ask through a name of its own."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if self.token is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if hmac.compare_digest(given.encode(), self.token.encode()):
                return None
            return _refused(401, "the token is missing or wrong: Authorization: Bearer …")
        name = request.url.hostname or ""
        if is_loopback(name):
            return None
        return _refused(403, f"this server answers to localhost only, not to {name!r}")


def make_app(door: Door, *, token: str | None = None) -> Starlette:
    """The whole API. With a token every path but /health asks for it."""
    server = _Server(door)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.text, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{model:path}", server.model),
        Route("/health", server.health),
        Route("/status", server.status),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        OodatcaaError: _told,
        HTTPException: _http,
        Exception: _broken,
    }
    gate = Middleware(Gate, token=token)
    return Starlette(routes=routes, middleware=[gate], exception_handlers=handlers)


class _Server:
    def __init__(self, door: Door) -> None:
        self.door = door
        self.waiting = 0
        self.threads: anyio.CapacityLimiter | None = None

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatBody)

    async def text(self, request: Request) -> Response:
        return await self._answer(request, TextBody)

    async def models(self, _: Request) -> Response:
        found = await anyio.to_thread.run_sync(self.door.models)
        data = [{"object": "model", **model} for model in found]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["model"]
        for model in await anyio.to_thread.run_sync(self.door.models):
            if model["id"] == wanted:
                return JSONResponse({"object": "model", **model})
        raise OodatcaaError("model.unknown_id", f"there is no model {wanted!r} here")

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def status(self, _: Request) -> Response:
        found = await anyio.to_thread.run_sync(self.door.status)
        return JSONResponse({**found.model_dump(mode="json"), "requests": self.waiting})

    async def _answer(self, request: Request, kind: type[Body]) -> Response:
        body = read_body(kind, await _read(request))
        if self.waiting >= MOST_WAITING:
            raise OodatcaaError("pool.busy", f"{self.waiting} requests are being answered already")
        reply, asks = Reply(body), body.asks()
        if body.stream:
            parts = self._parts(body.model, asks[0])
            # The first piece decides about the status: after it only the stream can tell.
            first = await anext(parts)
            events = _events(reply, first, parts, usage=body.wants_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        answers = []
        for ask in asks:
            async with contextlib.aclosing(self._parts(body.model, ask)) as pieces:
                async for part in pieces:
                    if isinstance(part, Answer):
                        answers.append(part)
                    elif await request.is_disconnected():
                        return Response(status_code=499)
        return JSONResponse(reply.whole(answers))

    async def _parts(self, model: str, ask: Ask) -> AsyncGenerator[Piece | Answer, None]:
        """The pool's pieces, each fetched in a thread; closed also when the client goes away."""
        self.threads = self.threads or anyio.CapacityLimiter(MOST_WAITING)
        source = self.door.stream(model, ask)
        self.waiting += 1
        try:
            while True:
                part = await anyio.to_thread.run_sync(next, source, None, limiter=self.threads)
                if part is None:
                    return
                yield part
        finally:
            self.waiting -= 1
            with anyio.CancelScope(shield=True):
                close = getattr(source, "close", None)
                if close is not None:
                    await anyio.to_thread.run_sync(close, limiter=self.threads)


async def _events(
    reply: Reply,
    first: Piece | Answer,
    parts: AsyncGenerator[Piece | Answer, None],
    *,
    usage: bool,
) -> AsyncIterator[bytes]:
    try:
        yield reply.chunk(None, first=True)
        part: Piece | Answer | None = first
        while part is not None:
            if isinstance(part, Answer):
                yield reply.chunk(None, part.finish_reason)
                if usage:
                    yield reply.last(part)
            elif part.text:
                yield reply.chunk(part.text)
            part = await anext(parts, None)
    except OodatcaaError as error:
        yield event(error_body(error)[1])
    finally:
        await parts.aclose()
    yield b"data: [DONE]\n\n"


async def _read(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A form or text/plain is what a foreign web page may send without asking first.
        raise HTTPException(415, "send JSON: Content-Type: application/json")
    found = b""
    async for block in request.stream():
        found += block
        if len(found) > MAX_BODY:
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    return found


def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, OodatcaaError)
    status, body = error_body(error)
    return JSONResponse(body, status, headers={"Retry-After": "5"} if status == 503 else None)


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refused(error.status_code, error.detail)


def _broken(_: Request, error: Exception) -> Response:
    return _refused(500, f"{type(error).__name__}: this is a mistake in oodatcaa itself")


def _refused(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, status)


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(
    door: Door, *, host: str, port: int, token: str | None, on_ready: Callable[[str], None]
) -> None:
    """Serve until interrupted. Port 0 takes a free one; `on_ready` hears the address.

    Raises OodatcaaError `serve.token` (another address than loopback without a token) and
    `serve.address` (it can not be listened on).
    """
    if token is None and not is_loopback(host):
        raise OodatcaaError(
            "serve.token",
            f"{host} can be reached from other machines, and there is no token",
            hint="set OODATCAA_TOKEN to a long random word, or leave --host away",
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OodatcaaError(
            "serve.address",
            f"{host}:{port} can not be listened on: {error}",
            hint="choose another port: --port 0 takes a free one",
        ) from error
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        make_app(door, token=token),
        log_level="warning",
        timeout_graceful_shutdown=5,
        lifespan="off",
    )
    on_ready(f"http://{shown}:{listening.getsockname()[1]}")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
