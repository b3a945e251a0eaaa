"""Programs that use trio's own sockets and ours side by side.

Rules: the tests start these runs themselves, as a program would, and `stock_calls` says who did the
I/O.
"""

from __future__ import annotations

import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from anyio._backends._trio import SocketStream as AnyioStream
from support.apps import Watch, hypercorn, starlette_app
from support.endtoend import (
    LARGE,
    MIB,
    SECONDS_MAX,
    accepts,
    completed,
    connects,
    digest,
    http_client,
    payload,
    stock_calls,
)
from support.streams import checked_run

import trio_uring

if TYPE_CHECKING:
    from support.endtoend import Certificates


def stock_listener() -> trio.SocketListener:
    """Made outside of any run: trio's own, with a socket that is."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=100)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def stock_streams() -> tuple[trio.SocketStream, socket.socket]:
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


async def echo(stream: trio.abc.Stream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def exchange(stream: Any, data: bytes) -> bytes:
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(got) < len(data):
            got += await stream.receive_some()
    return bytes(got)


def test_a_stock_server_and_clients_of_ours() -> None:
    listener = stock_listener()
    port = listener.socket.getsockname()[1]
    served: list[type] = []
    kinds: list[type] = []

    async def handler(stream: trio.SocketStream) -> None:
        served.append(type(stream.socket))
        await echo(stream)

    async def client(number: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            kinds.append(type(stream))
            assert await exchange(stream, payload(10_000 + number)) == payload(10_000 + number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, [listener])
            async with trio.open_nursery() as clients:
                for number in range(20):
                    clients.start_soon(client, number)
            nursery.cancel_scope.cancel()
        assert connects() == 20

    with stock_calls() as calls:
        trio.run(main, instruments=[trio_uring.Enable()])
    assert kinds == [trio_uring.SocketStream] * 20
    # The listener stays trio's; the sockets that it makes in this run are ours.
    assert "accept" in calls
    assert served == [trio_uring.UringSocket] * 20
    assert "recv" not in calls


def test_enabled_in_the_middle_of_a_run() -> None:
    async def main() -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        early = await trio.open_tcp_stream("127.0.0.1", port)
        early_server = await listener.accept()
        trio_uring.enable()
        late = await trio.open_tcp_stream("127.0.0.1", port)
        late_server = await listener.accept()
        assert [type(stream) for stream in (early, early_server)] == [trio.SocketStream] * 2
        assert type(late) is trio_uring.SocketStream
        async with early, early_server, late, late_server, listener, trio.open_nursery() as nursery:
            nursery.start_soon(echo, early_server)
            nursery.start_soon(echo, late_server)
            async with trio.open_nursery() as clients:
                for stream in (early, late):
                    clients.start_soon(exchange, stream, payload(LARGE))
            assert await exchange(early, b"the end") == b"the end"
            assert await exchange(late, b"the end") == b"the end"
            nursery.cancel_scope.cancel()
        assert completed("SEND", "RECV") > 0

    with stock_calls() as calls:
        checked_run(main)
    assert {"send", "recv", "accept"} <= set(calls)


def test_a_relay_between_a_stock_stream_and_ours() -> None:
    """Backpressure and the end of data pass from one to the other, both ways."""

    async def pump(source: Any, sink: Any) -> None:
        async for chunk in source:
            await sink.send_all(chunk)
        await sink.send_eof()

    async def main(stock: trio.SocketStream, far: trio.SocketStream) -> None:
        ours, near = (trio.SocketStream(sock) for sock in trio.socket.socketpair())
        assert [type(stream) for stream in (stock, far, ours, near)] == [trio.SocketStream] * 2 + [
            trio_uring.SocketStream
        ] * 2
        got: dict[str, bytes] = {}

        async def send(stream: Any, data: bytes) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def receive(name: str, stream: Any) -> None:
            got[name] = b"".join([chunk async for chunk in stream])

        async with stock, far, ours, near:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, stock, ours)
                nursery.start_soon(pump, ours, stock)
                nursery.start_soon(send, far, payload(LARGE))
                nursery.start_soon(send, near, payload(LARGE)[::-1])
                nursery.start_soon(receive, "near", near)
                nursery.start_soon(receive, "far", far)
        assert digest(got["near"]) == digest(payload(LARGE))
        assert digest(got["far"]) == digest(payload(LARGE)[::-1])
        assert completed("RECV") > 0

    left, right = (
        trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in socket.socketpair()
    )
    with stock_calls() as calls:
        trio.run(main, left, right, instruments=[trio_uring.Enable()])
    assert {"send", "recv"} <= set(calls)


def test_tls_over_each_of_them(certificates: Certificates) -> None:
    async def main(stock: trio.SocketStream, peer: socket.socket) -> None:
        server = trio.SSLStream(stock, certificates.server(), server_side=True)
        client = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(peer)),
            certificates.client(),
            server_hostname="localhost",
        )
        assert type(client.transport_stream) is trio_uring.SocketStream
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            assert digest(await exchange(client, payload(MIB))) == digest(payload(MIB))
            nursery.start_soon(client.aclose)
        await server.aclose()

    with stock_calls() as calls:
        trio.run(main, *stock_streams(), instruments=[trio_uring.Enable()])
    assert {"send", "recv"} <= set(calls)


def test_closing_and_cancelling_either_kind() -> None:
    async def main(stock: trio.SocketStream, peer: socket.socket) -> None:
        ours, other = (trio.SocketStream(sock) for sock in trio.socket.socketpair())
        with peer:
            for stream in (stock, ours):
                with trio.move_on_after(0.01) as scope:
                    await stream.receive_some(1)
                assert scope.cancelled_caught
            peer.sendall(b"x")
            await other.send_all(b"x")
            for stream in (stock, ours):
                assert await stream.receive_some(1) == b"x"
            async with trio.open_nursery() as nursery:
                for stream in (stock, ours):
                    nursery.start_soon(expect_closed, stream)
                await trio.testing.wait_all_tasks_blocked()
                for stream in (stock, ours):
                    with pytest.raises(trio.BusyResourceError):
                        await stream.receive_some(1)
                    await stream.aclose()
            await other.aclose()

    async def expect_closed(stream: trio.abc.ReceiveStream) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)

    with stock_calls():
        trio.run(main, *stock_streams(), instruments=[trio_uring.Enable()])


def test_a_run_that_is_enabled_and_one_that_is_not_at_the_same_time() -> None:
    """A server in one thread, a client in another, each as its own run says; and after them all is
    as it was."""
    ports: list[int] = []
    ready, kinds = threading.Event(), {}

    async def serve() -> None:
        async def handler(stream: trio.SocketStream) -> None:
            kinds["server"] = type(stream)
            await echo(stream)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
            ports.append(listener.socket.getsockname()[1])
            ready.set()

    async def visit() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
            kinds["client"] = type(stream)
            assert digest(await exchange(stream, payload(MIB))) == digest(payload(MIB))

    for run_server, run_client in ((trio_uring.run, trio.run), (trio.run, trio_uring.run)):
        ready.clear()
        ports.clear()
        thread = threading.Thread(target=run_server, args=(serve,))
        thread.start()
        ready.wait(SECONDS_MAX)
        run_client(visit)
        thread.join(SECONDS_MAX)
        ours, theirs = trio_uring.SocketStream, trio.SocketStream
        assert kinds == {"server": ours if run_server is trio_uring.run else theirs,
                         "client": ours if run_client is trio_uring.run else theirs}  # fmt: skip
    stream, peer = stock_streams()
    assert type(stream) is trio.SocketStream
    trio.run(stream.aclose)
    peer.close()


def test_libraries_on_each_of_them() -> None:
    """hypercorn and httpx on the ring, an anyio stream over a stock socket beside them."""

    async def main(left: trio.socket.SocketType, right: trio.socket.SocketType) -> None:
        async with AnyioStream(left) as one, AnyioStream(right) as other:
            async with (
                hypercorn(starlette_app(Watch())) as url,
                http_client(url) as client,
            ):
                await one.send((await client.get("/bytes/1000")).content)
                assert await other.receive() == payload(1000)
        assert accepts() == 1

    pair = [trio.socket.from_stdlib_socket(sock) for sock in socket.socketpair()]
    with stock_calls() as calls:
        trio.run(main, *pair, instruments=[trio_uring.Enable()])
    if trio_uring.backend_info().backend == "uring":  # else those of ours are trio's own, too
        assert set(calls) == {"send", "recv"}
