"""Listeners: what accept returns, and that no cancel or close loses a connection or a descriptor.

Rules: plain sockets make the connections without waiting (loopback completes them at once), so that
their number is known. Races are seeded, and the seed is printed.
"""

from __future__ import annotations

import array
import errno
import os
import random
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.ports import lone_port
from support.streams import closing, count_of, operations_on, passes

from trio_uring import SocketListener, SocketStream, open_tcp_listeners

if TYPE_CHECKING:
    from pathlib import Path

SEED = int(os.environ.get("TRIO_URING_SEED", "20261123"))
RACES = 3000


def listen(backlog: int = 1000, port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=backlog)


def connect(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family)
    client.connect(listener.getsockname())
    return client


@pytest.mark.parametrize(
    "wrap", [lambda sock: sock, trio.socket.from_stdlib_socket], ids=["stdlib", "trio"]
)
async def test_accept(wrap: Any) -> None:
    sock = listen()
    listener = SocketListener(wrap(sock))
    client = connect(sock)
    async with closing(listener, client):
        stream = await listener.accept()
        async with closing(stream):
            assert type(stream) is SocketStream
            assert stream.socket.family == socket.AF_INET
            assert stream.socket.getpeername() == client.getsockname()
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not os.get_inheritable(stream.socket.fileno())
            await stream.send_all(b"welcome")
            assert client.recv(100) == b"welcome"


async def test_accept_on_a_unix_socket(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    listener = SocketListener(sock)
    client = connect(sock)
    async with closing(listener, client, await listener.accept()) as _:
        assert listener.socket.family == socket.AF_UNIX


async def test_blocked_accept_takes_what_comes() -> None:
    sock = listen()
    listener, accepted = SocketListener(sock), []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with closing(listener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            client = connect(sock)
        async with closing(client, *accepted):
            assert accepted[0].socket.getpeername() == client.getsockname()


async def test_accept_is_armed_only_for_somebody() -> None:
    sock = listen()
    listener = SocketListener(sock)
    clients = [connect(sock) for _ in range(3)]
    async with closing(listener, *clients):
        stream = await listener.accept()
        await passes(10)
        assert operations_on(sock.fileno()) == []
        assert not count_of("POLL_ADD").submitted
        await stream.aclose()


async def test_one_task_at_a_time_and_closing_wakes_it() -> None:
    sock = listen(port=lone_port())
    listener = SocketListener(sock)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with closing(listener), trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.accept()
        address = sock.getsockname()
        await listener.aclose()
        with socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect(address)
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    await listener.aclose()


@pytest.mark.parametrize("pending", [False, True])
async def test_accept_in_a_cancelled_scope(pending: bool) -> None:
    sock = listen()
    listener = SocketListener(sock)
    clients = [connect(sock)] if pending else []
    async with closing(listener, *clients):
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        clients += [] if pending else [connect(sock)]
        async with closing(*clients, await listener.accept()):
            pass


async def test_races_of_cancel_and_connection_lose_nothing() -> None:
    """As many connections come out as went in, and `checked_run` counts the descriptors."""
    print(f"TRIO_URING_SEED={SEED}")
    rng = random.Random(SEED)
    sock = listen()
    listener = SocketListener(sock)
    made = accepted = cancelled = won = 0
    with trio.fail_after(30):  # nothing in here waits, unless for a connection that was lost
        for _ in range(RACES):
            scope, stream = trio.CancelScope(), None
            steps = (
                ["cancel"] * rng.randint(0, 1)
                + ["connect"] * rng.randint(0, 1)
                + ["pass"] * rng.randint(0, 3)
            )
            rng.shuffle(steps)
            made += "connect" in steps
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_perform, steps, sock, scope)
                with scope:
                    if made > accepted or "cancel" in steps:
                        stream = await listener.accept()
            cancelled += scope.cancelled_caught
            if stream is not None:
                accepted += 1
                won += scope.cancel_called
                await trio.aclose_forcefully(stream)
        for _ in range(made - accepted):
            await trio.aclose_forcefully(await listener.accept())
        with trio.move_on_after(0) as nothing_left:
            await listener.accept()
        assert nothing_left.cancelled_caught
    await listener.aclose()
    print(
        f"{made} made, {accepted} accepted at once, {cancelled} cancelled, "
        f"{won} accepted though cancelled"
    )
    assert cancelled > RACES / 10
    assert won > 0


async def _perform(steps: list[str], sock: socket.socket, scope: trio.CancelScope) -> None:
    for step in steps:
        if step == "cancel":
            scope.cancel()
        elif step == "connect":
            connect(sock).close()
        else:
            await trio.lowlevel.checkpoint()


async def test_races_of_close_and_connection_leak_nothing() -> None:
    print(f"TRIO_URING_SEED={SEED}")
    rng = random.Random(SEED)
    taken = 0
    for _ in range(300):
        sock = listen()
        listener, streams = SocketListener(sock), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept_until_closed, listener, streams)
            await passes(rng.randint(0, 3))
            clients = [connect(sock) for _ in range(rng.randint(0, 2))]
            await passes(rng.randint(0, 2))
            await listener.aclose()
        taken += len(streams)
        async with closing(*streams, *clients):
            pass
    assert taken > 10


async def _accept_until_closed(listener: SocketListener, streams: list[SocketStream]) -> None:
    while True:
        try:
            streams.append(await listener.accept())
        except trio.ClosedResourceError:
            return


@pytest.mark.parametrize("part", ["listener", "socket"])
async def test_accept_on_a_closed_listener_is_a_checkpoint(part: str) -> None:
    listener = SocketListener(listen())
    if part == "listener":
        await listener.aclose()
    else:
        listener.socket.close()
    with trio.testing.assert_checkpoints():
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_connections_that_died_in_the_backlog() -> None:
    sock = listen()
    listener = SocketListener(sock)
    for _ in range(3):
        client = connect(sock)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array.array("i", [1, 0]).tobytes())
        client.close()
    alive = connect(sock)
    async with closing(listener, alive):
        for _ in range(4):
            stream = await listener.accept()
            async with closing(stream):
                if stream.socket._sock.fileno() >= 0 and _is_connected(stream):
                    await stream.send_all(b"x")
                    assert alive.recv(1) == b"x"
                    return
        pytest.fail("the connection that lives was not accepted")


def _is_connected(stream: SocketStream) -> bool:
    try:
        stream.socket.getpeername()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise
        return False
    return True


# -- open_tcp_listeners


async def test_open_tcp_listeners_on_one_interface() -> None:
    (listener,) = await open_tcp_listeners(0, host="127.0.0.1")
    async with closing(listener):
        assert type(listener) is SocketListener
        assert listener.socket.getsockname()[0] == "127.0.0.1"
        assert not os.get_inheritable(listener.socket.fileno())
        async with closing(connect(listener.socket._sock), await listener.accept()):  # type: ignore[attr-defined]
            pass


async def test_open_tcp_listeners_on_all_interfaces_as_trio() -> None:
    ours, trios = await open_tcp_listeners(0), await trio.open_tcp_listeners(0)
    async with closing(*ours, *trios):
        assert [one.socket.family for one in ours] == [one.socket.family for one in trios]


@pytest.mark.parametrize("case", ["port in use", "backlog is text", "port is text", "bad host"])
async def test_open_tcp_listeners_fails_as_trio(case: str) -> None:
    with listen() as busy:
        port: Any = {"port in use": busy.getsockname()[1], "port is text": "80"}.get(case, 0)
        options: Any = {"host": "192.0.2.77" if case == "bad host" else "127.0.0.1"}
        options |= {"backlog": "5"} if case == "backlog is text" else {}
        errors = []
        for function in (trio.open_tcp_listeners, open_tcp_listeners):
            with pytest.raises((OSError, TypeError, ValueError)) as caught:
                await partial(function, port, **options)()
            errors.append((caught.type, getattr(caught.value, "errno", None), str(caught.value)))
        assert errors[0] == errors[1]


@pytest.mark.cpython_only("PyPy's listen(0) takes one connection more")
async def test_backlog_is_the_kernels() -> None:
    (listener,) = await open_tcp_listeners(0, host="127.0.0.1", backlog=0)
    sock = listener.socket._sock  # type: ignore[attr-defined]
    async with closing(listener, connect(sock)), closing(second := socket.socket()):
        second.setblocking(False)
        assert second.connect_ex(sock.getsockname()) == errno.EINPROGRESS
        await passes(20)
        with pytest.raises(OSError, match="not connected"):
            second.getpeername()
