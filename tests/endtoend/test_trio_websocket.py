"""trio-websocket: client and server, unmodified, on the ring."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.endtoend import LARGE, MIB, accepts, connects, payload
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    DisconnectionTimeout,
    WebSocketConnection,
    WebSocketRequest,
    open_websocket,
    open_websocket_url,
    serve_websocket,
)

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.endtoend import Certificates

CLIENTS = 50
SIZES = {"max_message_size": 2 * LARGE}


async def echo(request: WebSocketRequest) -> None:
    websocket = await request.accept()
    with contextlib.suppress(ConnectionClosed):
        while True:
            await websocket.send_message(await websocket.get_message())


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[WebSocketRequest], Awaitable[None]] = echo, tls: Certificates | None = None
) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        context = tls.server() if tls else None
        server = await nursery.start(
            partial(serve_websocket, handler, "127.0.0.1", 0, context, **SIZES)
        )
        yield server.port
        nursery.cancel_scope.cancel()


def connected(
    port: int, **settings: Any
) -> contextlib.AbstractAsyncContextManager[WebSocketConnection]:
    return open_websocket_url(f"ws://127.0.0.1:{port}/", **SIZES, **settings)  # type: ignore[no-any-return]


async def test_both_ends_are_ours() -> None:
    streams: list[Any] = []

    async def handler(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        streams.append(websocket._stream)
        await websocket.send_message(await websocket.get_message())

    async with serving(handler) as port, connected(port) as websocket:
        streams.append(websocket._stream)
        await websocket.send_message("hello")
        assert await websocket.get_message() == "hello"
        assert websocket.remote.port == port
    assert [type(stream) for stream in streams] == [trio_uring.SocketStream] * 2
    assert (accepts(), connects()) == (1, 1)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_messages_small_and_large(certificates: Certificates, tls: bool) -> None:
    messages = [
        "text",
        "ünïcödé" * 1000,
        b"\0",
        payload(125),
        payload(126),
        payload(65535),
        payload(65536),
        payload(LARGE),
    ]
    use_ssl: Any = certificates.client() if tls else False
    async with (
        serving(tls=certificates if tls else None) as port,
        open_websocket("127.0.0.1", port, "/", use_ssl=use_ssl, **SIZES) as websocket,
    ):
        for message in messages:
            await websocket.send_message(message)
            assert await websocket.get_message() == message


async def test_many_clients() -> None:
    echoed = []

    async def client(port: int, number: int) -> None:
        async with connected(port) as websocket:
            for size in (1, 1000 + number, 100_000):
                await websocket.send_message(payload(size))
                assert await websocket.get_message() == payload(size)
            echoed.append(number)

    async with serving() as port, trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(client, port, number)
    assert sorted(echoed) == list(range(CLIENTS))
    assert accepts() == CLIENTS


async def test_pings() -> None:
    async with serving() as port, connected(port) as websocket:
        await websocket.ping(b"payload")
        await websocket.send_message("after")
        assert await websocket.get_message() == "after"


async def test_a_cancelled_receive_loses_no_message() -> None:
    go = trio.Event()

    async def handler(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await go.wait()
        for number in range(10):
            await websocket.send_message(str(number))
            await websocket.get_message()

    async with serving(handler) as port, connected(port) as websocket:
        with trio.move_on_after(0.01) as scope:
            await websocket.get_message()
        assert scope.cancelled_caught
        go.set()
        for number in range(10):
            with trio.move_on_after(0):
                raise AssertionError(await websocket.get_message())
            assert await websocket.get_message() == str(number)
            await websocket.send_message("next")


async def test_the_server_ends_the_connection() -> None:
    async def handler(request: WebSocketRequest) -> None:
        await (await request.accept()).aclose(4000, "enough")

    async with serving(handler) as port, connected(port) as websocket:
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
        assert isinstance(caught.value.reason, CloseReason)
        assert (caught.value.reason.code, caught.value.reason.reason) == (4000, "enough")
    # The library leaves it open when the peer was first to close, on trio's sockets too.
    await websocket._stream.aclose()


async def test_a_client_that_is_gone_without_a_word() -> None:
    over = trio.Event()

    async def handler(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        try:
            while True:
                await websocket.send_message(payload(MIB))
        except ConnectionClosed:
            over.set()

    async with serving(handler) as port:
        async with connected(port) as websocket:
            await websocket.get_message()
            await trio.aclose_forcefully(websocket._stream)
        await over.wait()


async def test_a_cancelled_send() -> None:
    """The peer reads nothing: the send blocks and is cancelled. Half a message is gone, so no
    closing handshake is certain."""

    async def handler(request: WebSocketRequest) -> None:
        await request.accept()
        await trio.sleep_forever()

    async with serving(handler) as port:
        with contextlib.suppress(DisconnectionTimeout):
            async with connected(port, disconnect_timeout=0.1) as websocket:
                with trio.move_on_after(0.05) as scope:
                    while True:
                        await websocket.send_message(payload(LARGE))
        assert scope.cancelled_caught
        async with connected(port) as other:
            await other.ping()
