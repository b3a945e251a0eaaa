"""The trio module of websockets: client and server, unmodified, on the ring."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.apps import APPS, Watch, hypercorn
from support.endtoend import LARGE, MIB, SECONDS_MAX, accepts, connects, payload

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.endtoend import Certificates

if sys.version_info < (3, 11):
    pytest.skip("websockets has a trio module for Python 3.11 and newer", allow_module_level=True)

from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidStatus,
)
from websockets.trio.client import ClientConnection, connect
from websockets.trio.server import ServerConnection, serve

CLIENTS = 50
# No limits of the library's own: the other end may get no processor for a while.
PATIENT = {"open_timeout": None, "ping_timeout": None, "close_timeout": SECONDS_MAX}


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[ServerConnection], Awaitable[None]] = echo,
    tls: Certificates | None = None,
    **settings: Any,
) -> AsyncIterator[str]:
    context = tls.server() if tls else None
    settings = {"max_size": None, "ssl": context, **PATIENT, **settings}
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, 0, host="127.0.0.1", **settings))
        async with server:
            assert all(isinstance(listener, trio.SocketListener) for listener in server.listeners)
            port = server.listeners[0].socket.getsockname()[1]
            yield f"{'wss' if tls else 'ws'}://127.0.0.1:{port}"


def connected(url: str, **settings: Any) -> connect:
    return connect(url, **{"max_size": None, "proxy": None, **PATIENT, **settings})


def stream_of(websocket: ClientConnection | ServerConnection) -> Any:
    stream = websocket.stream
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


async def test_both_ends_are_ours() -> None:
    streams = []

    async def handler(websocket: ServerConnection) -> None:
        streams.append(websocket.stream)
        await echo(websocket)

    async with serving(handler) as url, connected(url) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        streams.append(websocket.stream)
    assert [type(stream) for stream in streams] == [trio_uring.SocketStream] * 2
    assert (accepts(), connects()) == (1, 1)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_messages_small_and_large(
    certificates: Certificates, compression: str | None, tls: bool
) -> None:
    large = payload(LARGE) if compression is None else payload(MIB) * 10
    messages = [
        "",
        "text",
        "ünïcödé" * 1000,
        b"",
        b"\0",
        payload(125),
        payload(126),
        payload(65535),
        payload(65536),
        large,
    ]
    settings: dict[str, Any] = {"ssl": certificates.client()} if tls else {}
    async with (
        serving(tls=certificates if tls else None, compression=compression) as url,
        connected(url, compression=compression, **settings) as websocket,
    ):
        assert isinstance(stream_of(websocket), trio_uring.SocketStream)
        for message in messages:
            await websocket.send(message)
            assert await websocket.recv() == message


async def test_messages_in_fragments() -> None:
    async def handler(websocket: ServerConnection) -> None:
        async with contextlib.aclosing(websocket.recv_streaming()) as fragments:
            await websocket.send([fragment async for fragment in fragments])

    parts = [payload(size) for size in (0, 1, 70_000, MIB, 3)]
    async with serving(handler) as url, connected(url) as websocket:
        await websocket.send(parts)
        assert await websocket.recv() == b"".join(parts)


async def test_both_directions_at_once() -> None:
    count = 2000

    async def send(websocket: ClientConnection) -> None:
        for number in range(count):
            await websocket.send(f"message {number}")

    async with serving() as url, connected(url) as websocket, trio.open_nursery() as nursery:
        nursery.start_soon(send, websocket)
        for number in range(count):
            assert await websocket.recv() == f"message {number}"


async def test_many_clients() -> None:
    echoed = []

    async def client(url: str, number: int) -> None:
        async with connected(url) as websocket:
            for size in (1, 1000 + number, 100_000):
                await websocket.send(payload(size))
                assert await websocket.recv() == payload(size)
            echoed.append(number)

    async with serving() as url, trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(client, url, number)
    assert sorted(echoed) == list(range(CLIENTS))
    assert accepts() == CLIENTS


async def test_pings() -> None:
    async with serving() as url, connected(url) as websocket:
        pong = await websocket.ping(b"payload", ack_on_close=False)
        if isinstance(pong, trio.Event):
            await pong.wait()
        await websocket.send("after")
        assert await websocket.recv() == "after"


async def test_a_cancelled_receive_loses_no_message() -> None:
    go = trio.Event()

    async def handler(websocket: ServerConnection) -> None:
        await go.wait()
        for number in range(10):
            await websocket.send(str(number))
            await websocket.recv()

    async with serving(handler) as url, connected(url) as websocket:
        with trio.move_on_after(0.01) as scope:
            await websocket.recv()
        assert scope.cancelled_caught
        go.set()
        for number in range(10):
            with trio.move_on_after(0):
                raise AssertionError(await websocket.recv())
            assert await websocket.recv() == str(number)
            await websocket.send("next")


async def test_the_server_ends_the_connection() -> None:
    async def handler(websocket: ServerConnection) -> None:
        await websocket.aclose(4000, "enough")

    async with serving(handler) as url, connected(url) as websocket:
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "enough")


async def test_the_server_is_shut_down_under_its_clients() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, echo, 0, host="127.0.0.1", **PATIENT))
        async with connected(
            f"ws://127.0.0.1:{server.listeners[0].socket.getsockname()[1]}"
        ) as websocket:
            nursery.start_soon(server.aclose)
            with pytest.raises(ConnectionClosedOK) as caught:
                await websocket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001


async def test_a_client_that_is_gone_without_a_word() -> None:
    ended: list[ConnectionClosed] = []
    over = trio.Event()

    async def handler(websocket: ServerConnection) -> None:
        try:
            while True:
                await websocket.send(payload(65536))
        except ConnectionClosed as exc:
            ended.append(exc)
            over.set()

    async with serving(handler) as url:
        async with connected(url) as websocket:
            await websocket.recv()
            await trio.aclose_forcefully(websocket.stream)
        await over.wait()
    assert isinstance(ended[0], ConnectionClosedError)


async def test_a_refused_handshake() -> None:
    async with serving(
        process_request=lambda websocket, request: websocket.respond(403, "no")
    ) as url:
        with pytest.raises(InvalidStatus) as caught:
            async with connected(url):
                pass
        assert caught.value.response.status_code == 403


@pytest.mark.parametrize("name", sorted(APPS))
async def test_against_an_asgi_application(name: str) -> None:
    async with (
        hypercorn(APPS[name](Watch())) as url,
        connected(url.replace("http", "ws") + "/echo") as websocket,
    ):
        for message in ("hello", payload(10), payload(MIB), "x" * MIB):
            await websocket.send(message)
            assert await websocket.recv() == message
