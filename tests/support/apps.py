"""Two ASGI applications with the same routes (Starlette and Quart-Trio), and hypercorn to serve
them.

    GET  /              b"hello"
    GET  /peer          the client's host and port
    POST /digest        size and SHA-256 of the body, as JSON
    GET  /bytes/{count} `count` bytes of `payload`, streamed
    GET  /endless       bytes, until the client is gone
    GET  /hang          no answer, until the client is gone
    WS   /echo          every message comes back

Rules: an application tells its test what only a server can see, through the events of its Watch.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response as QuartResponse
from quart import request as quart_request
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from .endtoend import SECONDS_MAX, payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from .endtoend import Certificates

CHUNK = 65536


class Watch:
    """What an application has seen."""

    def __init__(self) -> None:
        self.started = trio.Event()  # a call for /endless or /hang has come so far
        self.ended = trio.Event()  # and this is the end of it


async def chunks(count: int) -> AsyncIterator[bytes]:
    data = payload(count)
    for start in range(0, count, CHUNK):
        yield data[start : start + CHUNK]


class Endless:
    """No generator: Starlette leaves one to the garbage collector when the client is gone, which
    trio warns of."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        self._watch.started.set()
        await trio.lowlevel.checkpoint()
        return bytes(CHUNK)


def watched(app: Any, watch: Watch) -> Any:
    """`app`; the end of a call that serves /endless or /hang is noted, however it came."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if scope.get("path") in ("/endless", "/hang"):
                watch.ended.set()

    return call


def starlette_app(watch: Watch) -> Any:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def peer(request: Request) -> JSONResponse:
        return JSONResponse(request.client)

    async def digest_of_body(request: Request) -> JSONResponse:
        seen, size = hashlib.sha256(), 0
        async for chunk in request.stream():
            seen.update(chunk)
            size += len(chunk)
        return JSONResponse({"size": size, "sha256": seen.hexdigest()})

    async def some_bytes(request: Request) -> StreamingResponse:
        return StreamingResponse(chunks(request.path_params["count"]))

    async def endless_bytes(request: Request) -> StreamingResponse:
        return StreamingResponse(Endless(watch))

    async def hang(request: Request) -> PlainTextResponse:
        watch.started.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return PlainTextResponse("to nobody")

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if message.get("bytes") is not None:
                await websocket.send_bytes(message["bytes"])
            else:
                await websocket.send_text(message["text"])

    app = Starlette(
        routes=[
            Route("/", hello),
            Route("/peer", peer),
            Route("/digest", digest_of_body, methods=["POST"]),
            Route("/bytes/{count:int}", some_bytes),
            Route("/endless", endless_bytes),
            Route("/hang", hang),
            WebSocketRoute("/echo", echo),
        ]
    )
    return watched(app, watch)


def quart_app(watch: Watch) -> Any:
    app = QuartTrio("endtoend")
    app.config["MAX_CONTENT_LENGTH"] = None

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.get("/peer")
    async def peer() -> list[Any]:
        return list(quart_request.scope["client"])

    @app.post("/digest")
    async def digest_of_body() -> dict[str, Any]:
        seen, size = hashlib.sha256(), 0
        async for chunk in quart_request.body:
            seen.update(chunk)
            size += len(chunk)
        return {"size": size, "sha256": seen.hexdigest()}

    @app.get("/bytes/<int:count>")
    async def some_bytes(count: int) -> QuartResponse:
        return QuartResponse(chunks(count))

    @app.get("/endless")
    async def endless_bytes() -> QuartResponse:
        response = QuartResponse(Endless(watch))
        response.timeout = None
        return response

    @app.get("/hang")
    async def hang() -> str:
        watch.started.set()
        await trio.sleep_forever()
        return "to nobody"

    @app.websocket("/echo")
    async def echo() -> None:
        while True:
            await quart_websocket.send(await quart_websocket.receive())

    return watched(app, watch)


APPS = {"starlette": starlette_app, "quart": quart_app}


@contextlib.asynccontextmanager
async def hypercorn(
    app: Any, bind: str = "127.0.0.1:0", tls: Certificates | None = None
) -> AsyncIterator[str]:
    """Serves `app`; gives its URL. At the end hypercorn's own graceful shutdown is waited for."""
    config = Config()
    config.bind = [bind]
    config.errorlog = logging.getLogger("endtoend.hypercorn")
    config.accesslog = None
    config.websocket_max_message_size = 2**26
    config.keep_alive_timeout = SECONDS_MAX
    if tls is not None:
        config.certfile, config.keyfile = str(tls.chain), str(tls.key)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        try:
            yield urls[0]
        finally:
            stop.set()
