"""The modes `hypercorn` and `websockets` of trio's family: whole programs, which know only trio.

Rules of this file: nothing in it differs between the libraries; `trio_server` starts it with
`trio.run` or with `trio_uring.run`.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

import trio

HEADERS = [(b"content-type", b"application/octet-stream")]
DEADLINE_SECONDS = 3600.0  # beyond any benchmark: no connection is closed because it is idle


def application(body: bytes) -> Any:
    """The smallest ASGI application that hypercorn serves."""
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


async def serve_hypercorn(nursery: trio.Nursery, size: int) -> int:
    config: Any = importlib.import_module("hypercorn.config").Config()
    config.bind, config.accesslog, config.errorlog = ["127.0.0.1:0"], None, None
    config.keep_alive_max_requests = sys.maxsize  # the load keeps its connections
    config.keep_alive_timeout = DEADLINE_SECONDS
    serve_application = importlib.import_module("hypercorn.trio").serve
    [url] = await nursery.start(partial(serve_application, application(bytes(size)), config))
    return int(url.rpartition(":")[2])


async def echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


async def serve_websockets(nursery: trio.Nursery, size: int) -> int:
    serve_echo = importlib.import_module("websockets.trio.server").serve
    options = {"host": "127.0.0.1", "compression": None}
    server = await nursery.start(partial(serve_echo, echo, 0, **options))
    port: int = server.listeners[0].socket.getsockname()[1]
    return port


async def serve(nursery: trio.Nursery, library: str, mode: str, count: int, size: int) -> int:
    """Returns the port."""
    way = serve_hypercorn if mode == "hypercorn" else serve_websockets
    return await way(nursery, size)
