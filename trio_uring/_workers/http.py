"""The supervisor's page of metrics over HTTP, and nothing else over HTTP.

Rules of this file: a client that is slow, or sends too much, is closed; there are never more than a
few. A connection is for one request.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("trio_uring")

CLIENTS_MAX = 16
REQUEST_MAX = 8192  # bytes of the request's head
SECONDS_MAX = 10.0  # for a request and its answer
PATH = b"/metrics"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def serve_page(
    page: Callable[[], Awaitable[bytes]], listeners: list[trio.SocketListener]
) -> None:
    """Serves `await page()` at /metrics, until cancelled."""
    limit = trio.Semaphore(CLIENTS_MAX)
    await trio.serve_listeners(partial(_serve, page, limit), listeners)


async def _serve(
    page: Callable[[], Awaitable[bytes]], limit: trio.Semaphore, stream: trio.SocketStream
) -> None:
    with trio.move_on_after(SECONDS_MAX):
        async with limit:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(await _answer(page, await _request(stream)))
                await stream.send_eof()


async def _request(stream: trio.SocketStream) -> list[bytes]:
    """The words of the request's first line; [] if there is none."""
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        chunk = await stream.receive_some()
        head += chunk
        if not chunk or len(head) > REQUEST_MAX:
            return []
    return head.partition(b"\n")[0].split()


async def _answer(page: Callable[[], Awaitable[bytes]], request: list[bytes]) -> bytes:
    if len(request) != 3 or not request[2].startswith(b"HTTP/1."):
        return _response("400 Bad Request", b"")
    method, target, _ = request
    if target.partition(b"?")[0] != PATH:
        return _response("404 Not Found", b"the metrics are at /metrics\n")
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD\r\n")
    try:
        whole = _response("200 OK", await page())
    except Exception:  # the supervisor must not end by it
        _log.exception("the page of metrics could not be made")
        return _response("500 Internal Server Error", b"")
    return whole if method == b"GET" else whole[: whole.index(b"\r\n\r\n") + 4]


def _response(status: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body
