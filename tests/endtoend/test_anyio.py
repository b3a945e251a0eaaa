"""anyio on trio, enabled by `backend_options`: its TCP and Unix listeners and streams, datagrams,
TLS and descriptors.

Rules: tests are plain functions, because anyio.run is what is tested; `enabled` runs their
coroutine with it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener
from support.endtoend import (
    LARGE,
    MIB,
    accepts,
    check,
    connects,
    digest,
    enabled_anyio_run,
    payload,
    stock_calls,
)

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from support.endtoend import Certificates

CLIENTS = 50


def enabled(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def call(**fixtures: Any) -> None:
        enabled_anyio_run(functools.partial(test, **fixtures))

    return call


def assert_ours(owner: Any) -> None:
    assert isinstance(owner._trio_socket, trio_uring.UringSocket)


async def echo(stream: anyio.abc.ByteStream) -> None:
    async with stream:
        with contextlib.suppress(anyio.BrokenResourceError):
            async for chunk in stream:
                await stream.send(chunk)


@contextlib.asynccontextmanager
async def serving(listener: Any, handler: Any = echo) -> AsyncIterator[int]:
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handler)
        plain = listener.listener if isinstance(listener, TLSListener) else listener
        yield plain.extra(SocketAttribute.local_address)[1]
        tasks.cancel_scope.cancel()


async def exchange(stream: Any, data: bytes) -> bytes:
    """Sends `data`, and receives as much meanwhile."""
    got = bytearray()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send, data)
        while len(got) < len(data):
            got += await stream.receive()
    return bytes(got)


@enabled
async def test_tcp() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    for one in listener.listeners:
        assert_ours(one)
    async with serving(listener) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        assert_ours(stream)
        assert await exchange(stream, b"hello") == b"hello"
        assert digest(await exchange(stream, payload(LARGE))) == digest(payload(LARGE))
        await stream.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert (accepts(), connects()) == (1, 1)


@enabled
async def test_tcp_by_name_on_every_interface() -> None:
    listener = await anyio.create_tcp_listener()
    async with serving(listener) as port, await anyio.connect_tcp("localhost", port) as stream:
        assert await exchange(stream, b"hello") == b"hello"


@enabled
async def test_tls(certificates: Certificates) -> None:
    listener = TLSListener(
        await anyio.create_tcp_listener(local_host="127.0.0.1"), certificates.server()
    )
    async with (
        serving(listener) as port,
        await anyio.connect_tcp("127.0.0.1", port, ssl_context=certificates.client()) as stream,
    ):
        assert_ours(stream.transport_stream)
        assert digest(await exchange(stream, payload(LARGE))) == digest(payload(LARGE))


@enabled
async def test_many_clients() -> None:
    echoed = []

    async def client(port: int, number: int) -> None:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for size in (1, 1000 + number, 100_000):
                assert await exchange(stream, payload(size)) == payload(size)
            echoed.append(number)

    async with serving(await anyio.create_tcp_listener(local_host="127.0.0.1")) as port:
        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS):
                tasks.start_soon(client, port, number)
    assert sorted(echoed) == list(range(CLIENTS))
    assert accepts() == CLIENTS


@enabled
async def test_unix(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = await anyio.create_unix_listener(path)
    assert_ours(listener)
    async with serving(listener), await anyio.connect_unix(path) as stream:
        assert_ours(stream)
        assert digest(await exchange(stream, payload(LARGE))) == digest(payload(LARGE))


@enabled
async def test_descriptors_over_a_unix_socket(tmp_path: Path) -> None:
    async def handler(stream: Any) -> None:
        async with stream:
            message, [received] = await stream.receive_fds(100, 1)
            os.write(received, b"written by " + message)
            os.close(received)

    path = tmp_path / "socket"
    read, write = os.pipe()
    async with (
        serving(await anyio.create_unix_listener(path), handler),
        await anyio.connect_unix(path) as stream,
    ):
        await stream.send_fds(b"the server", [write])
        os.close(write)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert os.read(read, 100) == b"written by the server"
    os.close(read)


@enabled
async def test_sequenced_packets(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = await anyio.create_unix_listener(path, kind=socket.SOCK_SEQPACKET)
    async with (
        serving(listener),
        await anyio.connect_unix(path, kind=socket.SOCK_SEQPACKET) as stream,
    ):
        assert_ours(stream)
        for size in (1, 1000, 60_000):
            await stream.send(payload(size))
            assert await stream.receive() == payload(size)


@enabled
async def test_udp() -> None:
    async with (
        await anyio.create_udp_socket(local_host="127.0.0.1") as server,
        await anyio.create_udp_socket(local_host="127.0.0.1") as client,
        await anyio.create_connected_udp_socket(
            "127.0.0.1", server.extra(SocketAttribute.local_port)
        ) as connected,
    ):
        for one in (server, client, connected):
            assert_ours(one)
        for size in (0, 1, 1472, 60_000):
            await client.sendto(
                payload(size), "127.0.0.1", server.extra(SocketAttribute.local_port)
            )
            packet, address = await server.receive()
            assert (packet, address) == (payload(size), client.extra(SocketAttribute.local_address))
            await server.sendto(packet, *address)
            assert await client.receive() == (packet, server.extra(SocketAttribute.local_address))
            await connected.send(payload(size))
            packet, address = await server.receive()
            await server.sendto(packet, *address)
            assert await connected.receive() == payload(size)


@enabled
async def test_unix_datagrams(tmp_path: Path) -> None:
    async with (
        await anyio.create_unix_datagram_socket(local_path=tmp_path / "server") as server,
        await anyio.create_connected_unix_datagram_socket(
            tmp_path / "server", local_path=tmp_path / "client"
        ) as client,
    ):
        assert_ours(server)
        await client.send(payload(1000))
        packet, path = await server.receive()
        assert (packet, path) == (payload(1000), str(tmp_path / "client"))
        await server.sendto(b"answer", path)
        assert await client.receive() == b"answer"


@enabled
async def test_a_cancelled_receive_loses_nothing() -> None:
    async def handler(stream: Any) -> None:
        async with stream:
            for start in range(0, MIB, 1024):
                await stream.send(payload(MIB)[start : start + 1024])

    got = bytearray()
    async with (
        serving(await anyio.create_tcp_listener(local_host="127.0.0.1"), handler) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                with anyio.move_on_after(0.0005):
                    got += await stream.receive(10_000)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    got += await stream.receive(10_000)
    assert digest(got) == digest(payload(MIB))


@enabled
async def test_a_line_at_a_time() -> None:
    async with (
        serving(await anyio.create_tcp_listener(local_host="127.0.0.1")) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        lines = BufferedByteReceiveStream(stream)
        for number in range(100):
            await stream.send(f"line {number}\n".encode())
            assert await lines.receive_until(b"\n", 100) == f"line {number}".encode()


@enabled
async def test_two_receivers_and_a_close() -> None:
    errors = []

    async def receive(stream: Any) -> None:
        with pytest.raises(anyio.ClosedResourceError) as caught:
            await stream.receive()
        errors.append(caught.value)

    async with (
        serving(await anyio.create_tcp_listener(local_host="127.0.0.1")) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(receive, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        await stream.aclose()
    assert len(errors) == 1


@enabled
async def test_a_peer_that_resets() -> None:
    async with serving(await anyio.create_tcp_listener(local_host="127.0.0.1")) as port:
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with await anyio.connect_tcp("127.0.0.1", server.getsockname()[1]) as stream:
                peer = server.accept()[0]
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
        async with await anyio.connect_tcp("127.0.0.1", port) as other:
            assert await exchange(other, b"still there") == b"still there"


@enabled
async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="All connection attempts failed"):
            await anyio.connect_tcp("127.0.0.1", unused.getsockname()[1])
    async with (
        serving(await anyio.create_tcp_listener(local_host="127.0.0.1")) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        assert await exchange(stream, b"hello") == b"hello"


def test_in_the_thread_of_a_blocking_portal() -> None:
    async def visit(port: int) -> tuple[bytes, int]:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            assert_ours(stream)
            return await exchange(stream, payload(MIB)), connects()

    options = {"instruments": [trio_uring.Enable()]}
    with stock_calls() as calls:
        with (
            start_blocking_portal("trio", options) as server,
            start_blocking_portal("trio", options) as client,
        ):
            listener = server.call(
                functools.partial(anyio.create_tcp_listener, local_host="127.0.0.1")
            )
            with server.wrap_async_context_manager(serving(listener)) as port:
                got, made = client.call(visit, port)
    assert digest(got) == digest(payload(MIB))
    assert made == 1
    check(calls)
