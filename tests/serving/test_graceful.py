"""The graceful end of serve_listeners and its siblings.

Rules of this file: what time decides is decided by a MockClock, unless the clients are another
process's.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.served import Door, ask, echo, serving
from support.streams import closing, receive_all, unix_sockets
from trio.testing import wait_all_tasks_blocked

from trio_uring import (
    IncompleteReadError,
    Shutdown,
    SocketStream,
    open_tcp_stream,
    open_unix_socket,
    relay,
    serve_tcp,
    serve_unix,
)
from trio_uring._serving.connection import Connection
from trio_uring.testing import SimulatedNetwork, run_deterministically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock


class Handler:
    """Echoes to the end, says goodbye, and notes when (trio's clock)."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    async def __call__(self, stream: SocketStream) -> None:
        await echo(stream)
        await stream.send_all(b"bye")
        self.ended.append(trio.current_time())


# -- what becomes of connections


async def test_idle_connections_see_the_end_and_may_still_send(autojump_clock: MockClock) -> None:
    door, handler, shutdown = Door(), Handler(), Shutdown(grace=10, quiet=0.5)
    async with serving(handler, door, shutdown=shutdown) as server:
        clients = [door.knock() for _ in range(10)]
        async with closing(*clients):
            for client in clients:
                await ask(client)
            await trio.sleep(100)
            shutdown.start()
            await server.ended.wait()
            assert door.closed
            for client in clients:
                assert await receive_all(client) == b"bye"
    assert handler.ended == [100.5] * 10
    assert server.ended_at == 100.5


async def test_what_arrives_in_time_is_answered(autojump_clock: MockClock) -> None:
    door, handler, shutdown = Door(), Handler(), Shutdown(grace=100, quiet=1)
    async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
        await ask(client)
        shutdown.start()
        for _ in range(5):
            await trio.sleep(0.9)
            await ask(client)
        await server.ended.wait()
        assert await receive_all(client) == b"bye"
    # Each look starts it anew if something came since the last one.
    assert 5.5 <= server.ended_at <= 6.5


async def test_a_connection_that_is_accepted_in_the_moment_of_the_start() -> None:
    """Its handler has waited for nothing yet, so it has the time of grace like others."""

    async def handler(stream: SocketStream) -> None:
        await stream.send_all(b"hel")
        await stream.send_all(b"lo")

    for _ in range(50):  # trio chooses at random which task runs first
        door, shutdown = Door(), Shutdown(quiet=0)
        async with serving(handler, door, shutdown=shutdown) as server:
            await wait_all_tasks_blocked()
            async with door.knock() as client:
                shutdown.start()
                assert await receive_all(client) in (b"hello", b"")  # b"": not accepted
                await server.ended.wait()


async def test_the_first_byte_comes_in_the_moment_of_the_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The handler that is called then is not cancelled, and is ended as others are."""

    async def has_first_byte(self: Connection) -> bool:
        await trio.sleep(1)
        self.end()
        return True

    monkeypatch.setattr(Connection, "has_first_byte", has_first_byte)
    door, handler, shutdown = Door(), Handler(), Shutdown(grace=100, quiet=5)
    async with serving(handler, door, shutdown=shutdown, first_byte_timeout=50) as server:
        async with door.knock() as client:
            await wait_all_tasks_blocked()
            shutdown.start()
            await trio.sleep(2)
            await ask(client)
            await server.ended.wait()
            assert await receive_all(client) == b"bye"


async def test_silent_clients_do_not_use_up_the_grace(autojump_clock: MockClock) -> None:
    """Where only handlers know what idle means, nobody else could end what has no handler yet."""

    async def handler(stream: SocketStream) -> None:
        with shutdown.cancel_on_start():
            await echo(stream)
        await stream.send_all(b"bye")

    door, shutdown = Door(), Shutdown(grace=100, quiet=math.inf)
    async with serving(handler, door, shutdown=shutdown, first_byte_timeout=50) as server:
        async with door.knock() as client, door.knock() as silent:
            await ask(client)
            shutdown.start()
            await server.ended.wait()
            assert await receive_all(client) == b"bye"
            assert await receive_all(silent) == b""
    assert server.ended_at < 1


async def test_a_connection_that_is_accepted_after_the_grace(autojump_clock: MockClock) -> None:
    """A cancelled accept may still return one, as the kernel has it."""

    class Late(Door):
        async def accept(self) -> SocketStream:
            await trio.lowlevel.checkpoint_if_cancelled()
            with trio.CancelScope(shield=True):
                return await super().accept()
            raise AssertionError

    door, shutdown = Late(), Shutdown(grace=1)
    async with serving(echo, door, shutdown=shutdown) as server:
        await wait_all_tasks_blocked()
        shutdown.start()
        await trio.sleep(2)
        async with door.knock() as client:
            with trio.fail_after(10):
                await server.ended.wait()
            assert await receive_all(client) == b""


async def test_what_has_arrived_comes_before_the_end(autojump_clock: MockClock) -> None:
    """Also if the handler looks at its stream only long after it was ended."""
    got: list[bytes] = []

    async def handler(stream: SocketStream) -> None:
        with pytest.raises(IncompleteReadError):
            await stream.receive_exactly(10)  # five bytes come
        await trio.sleep(5)
        got.extend([chunk async for chunk in stream])

    door, shutdown = Door(), Shutdown(grace=100, quiet=1)
    async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
        await client.send_all(b"hello")
        await wait_all_tasks_blocked()
        shutdown.start()
        await server.ended.wait()
    assert got == [b"hello"]
    assert server.ended_at == 6  # the end came after a second, and was an error of that call


async def test_whoever_works_or_sends_goes_on(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        question = await stream.receive_some()
        if question == b"work":
            await trio.sleep(5)
            await stream.send_all(b"done")
        else:
            await stream.send_all(bytes(2**22))

    door, shutdown = Door(), Shutdown(grace=10, quiet=0.1)
    async with serving(handler, door, shutdown=shutdown) as server:
        async with door.knock() as working, door.knock() as reading:
            await working.send_all(b"work")
            await reading.send_all(b"send")
            await wait_all_tasks_blocked()
            shutdown.start()
            await trio.sleep(4)
            assert await receive_all(reading) == bytes(2**22)
            assert await receive_all(working) == b"done"
            await server.ended.wait()
    assert server.ended_at == 5


async def test_a_handler_that_also_sends_is_not_idle(autojump_clock: MockClock) -> None:
    """It waits for a byte while another task of it is in the middle of an answer."""
    done: list[str] = []

    async def handler(stream: SocketStream) -> None:
        async def answer() -> None:
            await stream.send_all(bytes(2**22))
            done.append("answer")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert await stream.receive_some() == b""
            done.append("end")

    door, shutdown = Door(), Shutdown(grace=math.inf, quiet=0.1)
    async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
        await wait_all_tasks_blocked()
        shutdown.start()
        await trio.sleep(5)
        assert await receive_all(client) == bytes(2**22)
        await server.ended.wait()
    assert done == ["answer", "end"]


async def test_whoever_ignores_the_end_is_cancelled_after_the_time_of_grace(
    autojump_clock: MockClock,
) -> None:
    async def handler(stream: SocketStream) -> None:
        try:
            while True:
                if not await stream.receive_some():
                    await trio.sleep(1)
        finally:
            cancelled.append(trio.current_time())

    cancelled: list[float] = []
    door, shutdown = Door(), Shutdown(grace=7, quiet=0.1)
    async with serving(handler, door, shutdown=shutdown) as server:
        async with door.knock(), door.knock():
            await trio.sleep(100)
            shutdown.start()
            await server.ended.wait()
    assert cancelled == [107, 107]
    assert server.ended_at == 107


async def test_handlers_may_look_after_the_end_themselves(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        with shutdown.cancel_on_start():
            await echo(stream)
        await trio.sleep(3)
        await stream.send_all(b"bye")

    door, shutdown = Door(), Shutdown(grace=7, quiet=math.inf)
    async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
        await ask(client)
        await trio.sleep(10)
        shutdown.start()
        assert await receive_all(client) == b"bye"
        await server.ended.wait()
    assert server.ended_at == 13


async def test_connections_without_a_first_byte_are_closed(autojump_clock: MockClock) -> None:
    door, handler, shutdown = Door(), Handler(), Shutdown(grace=10, quiet=0.5)
    async with serving(handler, door, shutdown=shutdown, first_byte_timeout=60) as server:
        async with door.knock() as silent, door.knock() as late:
            await wait_all_tasks_blocked()
            shutdown.start()
            await trio.sleep(0.2)
            await ask(late)
            assert await receive_all(silent) == b""
            assert trio.current_time() == 0.5
            assert await receive_all(late) == b"bye"
            await server.ended.wait()
    assert len(handler.ended) == 1


async def test_a_split_stream(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        send, receive = stream.split()
        async with send, receive:
            async for chunk in receive:
                await send.send_all(chunk)
            await send.send_all(b"bye")

    door, shutdown = Door(), Shutdown(quiet=0.5)
    async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
        await ask(client)
        shutdown.start()
        assert await receive_all(client) == b"bye"
        await server.ended.wait()


async def test_a_relay_that_rests(autojump_clock: MockClock) -> None:
    """Its task is parked for the whole relay; what waits for a byte is known all the same."""
    there, back = unix_sockets()  # no segment is on its way when the clock jumps

    async def handler(stream: SocketStream) -> None:
        await relay(stream, upstream)

    door, shutdown = Door(), Shutdown(quiet=0.5)
    async with SocketStream(there) as upstream, SocketStream(back) as server_behind:
        async with serving(handler, door, shutdown=shutdown) as server, door.knock() as client:
            await client.send_all(b"hello")
            assert await server_behind.receive_exactly(5) == b"hello"
            shutdown.start()
            assert await receive_all(server_behind) == b""
            await server_behind.send_all(b"bye")
            await server_behind.send_eof()
            assert await receive_all(client) == b"bye"
            await server.ended.wait()


def test_a_simulated_network() -> None:
    async def main() -> None:
        network, handler = SimulatedNetwork(3, latency=(0.001, 0.02)), Handler()
        listener = await network.bind(("server", 80))
        shutdown = Shutdown(grace=10, quiet=0.5)
        async with serving(handler, listener, shutdown=shutdown) as server:
            idle = await network.dial(("server", 80))
            late = await network.dial(("server", 80))
            async with idle, late:
                await ask(idle)
                await trio.sleep(100)
                shutdown.start()
                begin = trio.current_time()
                for _ in range(3):
                    await trio.sleep(0.4)
                    await ask(late, bytes(100_000))
                assert await receive_all(idle) == b"bye"
                assert await receive_all(late) == b"bye"
                await server.ended.wait()
        assert handler.ended[0] - begin == 0.5
        assert 1.5 < handler.ended[1] - begin < 4

    run_deterministically(main)


async def test_without_the_end_nothing_is_swallowed(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        raise trio.BrokenResourceError

    door, shutdown = Door(), Shutdown()
    with pytest.RaisesGroup(trio.BrokenResourceError, flatten_subgroups=True):
        async with serving(handler, door, shutdown=shutdown), door.knock():
            await trio.sleep_forever()


async def test_what_a_handler_raises_at_the_end_still_ends_the_server(
    autojump_clock: MockClock,
) -> None:
    async def handler(stream: SocketStream) -> None:
        await echo(stream)
        raise KeyError("in the end")

    door, shutdown = Door(), Shutdown()
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving(handler, door, shutdown=shutdown), door.knock() as client:
            await ask(client)
            shutdown.start()
            await trio.sleep_forever()


async def test_looking_for_idle_connections_costs_little(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a look at each of them whenever one ends."""
    looks: list[None] = []
    look = Connection.is_quiet

    def counted(connection: Connection, now: float, quiet: float) -> bool:
        looks.append(None)
        return look(connection, now, quiet)

    monkeypatch.setattr(Connection, "is_quiet", counted)
    count = 300
    order = iter(range(count))

    async def handler(stream: SocketStream) -> None:
        await trio.sleep(1 + next(order) / 1000)

    door, shutdown = Door(), Shutdown(quiet=0.5)
    async with serving(handler, door, shutdown=shutdown) as server:
        clients = [door.knock() for _ in range(count)]
        async with closing(*clients):
            await wait_all_tasks_blocked()
            shutdown.start()
            await server.ended.wait()
    assert server.ended_at == pytest.approx(1.299)
    assert len(looks) <= 4 * count


# -- when it is started


async def test_started_twice_and_cut_short(autojump_clock: MockClock) -> None:
    door, shutdown = Door(), Shutdown(grace=100)

    async def handler(_: SocketStream) -> None:
        await trio.sleep_forever()

    async with serving(handler, door, shutdown=shutdown) as server, door.knock():
        await trio.sleep(1)
        shutdown.start()
        await trio.sleep(1)
        shutdown.start()
        await trio.sleep(1)
        assert not server.ended.is_set()
        shutdown.cut_short()
        await server.ended.wait()
    assert server.ended_at == 3


async def test_started_before_there_is_a_server() -> None:
    door, shutdown = Door(), Shutdown()
    shutdown.start()
    async with door.knock() as client:
        async with serving(echo, door, shutdown=shutdown) as server:
            await server.ended.wait()
        assert door.closed
        assert await receive_all(client) == b""


async def test_started_at_the_limit(autojump_clock: MockClock) -> None:
    doors, handler, shutdown = [Door(), Door()], Handler(), Shutdown(quiet=0.5)
    async with serving(handler, *doors, max_connections=2, shutdown=shutdown) as server:
        clients = [door.knock() for door in doors * 2]
        async with closing(*clients):
            await ask(clients[0])
            await ask(clients[1])
            shutdown.start()
            ends = [await receive_all(client) for client in clients]
            assert ends == [b"bye", b"bye", b"", b""]  # those in the backlog are closed with it
            await server.ended.wait()
    assert server.ended_at == 0.5


async def test_one_for_two_servers(autojump_clock: MockClock) -> None:
    doors, handlers = (Door(), Door()), (Handler(), Handler())
    shutdown = Shutdown(quiet=0.5)
    async with serving(handlers[0], doors[0], shutdown=shutdown) as first:
        async with serving(handlers[1], doors[1], shutdown=shutdown) as second:
            async with doors[0].knock() as one, doors[1].knock() as other:
                await ask(one)
                await ask(other)
                shutdown.start()
                await first.ended.wait()
                await second.ended.wait()
    assert (first.ended_at, second.ended_at) == (0.5, 0.5)


async def test_cancelled_in_the_time_of_grace(autojump_clock: MockClock) -> None:
    door, shutdown = Door(), Shutdown(grace=100)
    cancelled: list[float] = []

    async def handler(_: SocketStream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())

    async with serving(handler, door, shutdown=shutdown) as server, door.knock():
        await wait_all_tasks_blocked()
        shutdown.start()
        await trio.sleep(5)
        server.scope.cancel()
        await server.ended.wait()
    assert cancelled == [5]


async def test_handlers_in_another_nursery(autojump_clock: MockClock) -> None:
    """The call waits for its own connections, and cancels only them."""
    door, handler, shutdown = Door(), Handler(), Shutdown(grace=3, quiet=0.5)

    async def stubborn(stream: SocketStream) -> None:
        if await stream.receive_some() == b"stay":
            await trio.sleep_forever()
        await handler(stream)

    async with trio.open_nursery() as handlers:
        others = trio.CancelScope()

        async def other() -> None:
            with others:
                await trio.sleep_forever()

        handlers.start_soon(other)
        async with serving(stubborn, door, shutdown=shutdown, handler_nursery=handlers) as server:
            async with door.knock() as one, door.knock() as staying:
                await one.send_all(b"x")
                await staying.send_all(b"stay")
                await wait_all_tasks_blocked()
                shutdown.start()
                assert await receive_all(one) == b"bye"
                assert await receive_all(staying) == b""
                await server.ended.wait()
        assert (handler.ended, server.ended_at) == ([0.5], 3)
        assert len(handlers.child_tasks) == 1
        others.cancel()


def test_keyboard_interrupt() -> None:
    closed: list[Door] = []

    async def main() -> None:
        door, shutdown = Door(), Shutdown()
        closed.append(door)
        async with serving(Handler(), door, shutdown=shutdown, max_connections=5):
            async with door.knock() as client:
                await ask(client)
                os.kill(os.getpid(), signal.SIGINT)
                await trio.sleep_forever()

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True, allow_unwrapped=True):
        trio.run(main)
    assert closed[0].closed


# -- the siblings


async def test_tcp_and_unix(tmp_path: Path) -> None:
    shutdown, handler, path = Shutdown(quiet=0.05), Handler(), tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        tcp = partial(serve_tcp, handler, 0, host="127.0.0.1", shutdown=shutdown)
        [listener] = await nursery.start(tcp)
        await nursery.start(partial(serve_unix, handler, path, shutdown=shutdown))
        port = listener.socket.getsockname()[1]
        streams = [await open_tcp_stream("127.0.0.1", port), await open_unix_socket(path)]
        async with closing(*streams):
            for stream in streams:
                await ask(stream)
            shutdown.start()
            for stream in streams:
                assert await receive_all(stream) == b"bye"
    assert not path.exists()
    with pytest.raises(OSError, match="failed"):
        await open_tcp_stream("127.0.0.1", port)


# -- from a signal, in a process of its own

PROGRAM = """
import signal, sys, trio, trio_uring

async def echo(stream):
    async for chunk in stream:
        await stream.send_all(chunk)
        if chunk == b"stay":
            await trio.sleep_forever()
    await stream.send_all(b"bye")

async def main():
    shutdown = trio_uring.Shutdown(grace=60)
    with shutdown.on_signals(signal.SIGTERM, signal.SIGINT):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(serve, shutdown)
            print(listener.socket.getsockname()[1], flush=True)
            await shutdown.wait()
            print("ending", flush=True)

async def serve(shutdown, *, task_status):
    await trio_uring.serve_tcp(
        echo, 0, host="127.0.0.1", shutdown=shutdown, task_status=task_status
    )

trio.run(main)
print("ended", flush=True)
"""


@contextlib.contextmanager
def program() -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal(number: int) -> None:
    with program() as (process, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        process.send_signal(number)
        assert client.recv(100) == b"bye"
        assert client.recv(100) == b""
        assert process.communicate(timeout=60) == ("ending\nended\n", "")
        assert process.returncode == 0


def test_a_second_control_c() -> None:
    with program() as (process, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"stay")
        assert client.recv(100) == b"stay"
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        assert out == ""


def test_a_second_sigterm() -> None:
    with program() as (process, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"stay")
        assert client.recv(100) == b"stay"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("ended\n", "")
        assert client.recv(100) == b""
