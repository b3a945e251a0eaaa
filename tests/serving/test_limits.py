"""serve_listeners: at most so many connections, none that say nothing, none that fall silent.

Rules of this file: what time decides is decided by a MockClock. Attackers are this process's own.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.served import Door, ask, echo, reset, serving
from support.streams import closing, receive_all
from trio.testing import wait_all_tasks_blocked

from trio_uring import (
    BufferedReceiveStream,
    Metered,
    Shutdown,
    SocketListener,
    SocketStream,
    TrioNetwork,
    UringNetwork,
    open_tcp_listeners,
    open_tcp_stream,
    serve_listeners,
    serve_ssl_over_tcp,
    serve_tcp,
    serve_unix,
)
from trio_uring.testing import SimulatedNetwork, run_deterministically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

MANY = 1000


class Counter:
    """A handler that echoes, and counts who is there."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0

    async def __call__(self, stream: SocketStream) -> None:
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)
        try:
            await echo(stream)
        finally:
            self.now -= 1


# -- max_connections


async def test_further_connections_wait_in_the_backlog() -> None:
    door, counter = Door(), Counter()
    async with serving(counter, door, max_connections=2):
        first, second, third = clients = [door.knock() for _ in range(3)]
        async with closing(*clients):
            await ask(first)
            await ask(second)
            await wait_all_tasks_blocked()
            assert (door.waiting, counter.now) == (1, 2)
            await first.aclose()
            await ask(third)
            await ask(second)
    assert (counter.most, counter.total) == (2, 3)


async def test_the_limit_is_for_all_listeners_and_no_listener_keeps_it_from_another() -> None:
    quiet, busy, counter = Door(), Door(), Counter()
    async with serving(counter, quiet, busy, max_connections=1):
        for door in (busy, busy, quiet, busy, quiet, quiet):
            async with door.knock() as client:
                await ask(client)
                await wait_all_tasks_blocked()
                assert not quiet.accepting
                assert not busy.accepting
    assert (counter.most, counter.total) == (1, 6)


async def test_listeners_that_accept_in_the_same_moment_do_not_exceed_it() -> None:
    doors, counter = [Door() for _ in range(5)], Counter()
    async with serving(counter, *doors, max_connections=2):
        await wait_all_tasks_blocked()
        clients = [door.knock() for door in doors]  # all are woken before any takes a slot
        async with closing(*clients):
            while clients:
                for client in clients:
                    await client.send_all(b"?")
                await wait_all_tasks_blocked()
                assert counter.now == min(2, len(clients))
                assert any(door.accepting for door in doors) == (len(clients) < 2)
                for client in [each for each in clients if each.socket.is_readable()]:
                    clients.remove(client)
                    await client.receive_some()
                    await client.aclose()
    assert (counter.most, counter.total) == (2, 5)


async def test_a_connection_that_waits_for_a_slot_is_closed_with_the_server() -> None:
    doors = [Door() for _ in range(3)]
    async with serving(echo, *doors, max_connections=1) as server:
        await wait_all_tasks_blocked()
        clients = [door.knock() for door in doors]
        await wait_all_tasks_blocked()
        server.scope.cancel()
        async with closing(*clients):
            for client in clients:
                assert await receive_all(client) == b""


async def test_an_error_of_accept_takes_no_slot(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    door, counter = Door(), Counter()
    for _ in range(3):
        door.give(OSError(errno.EMFILE, "Too many open files"))
    async with serving(counter, door, max_connections=1):
        async with door.knock() as client:
            await ask(client)
    assert trio.current_time() == pytest.approx(0.3)
    assert [record.name for record in caplog.records] == ["trio.serve_listeners"] * 3
    assert "retrying in 0.1 seconds" in caplog.text


async def test_other_errors_of_accept_end_the_server() -> None:
    door, other = Door(), Door()
    door.give(OSError(errno.EINVAL, "Invalid argument"))
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Invalid")):
        await serve_listeners(echo, [door, other], max_connections=3)
    assert door.closed
    assert other.closed


async def test_a_slot_is_free_again_however_a_handler_ends(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        question = await stream.receive_some()
        if question == b"slow":
            await stream.receive_some()
        await stream.send_all(question)

    door = Door()
    async with serving(handler, door, max_connections=1, idle_timeout=5):
        for question, answer in [(b"quick", b"quick"), (b"slow", b""), (b"quick", b"quick")]:
            async with door.knock() as client:
                await client.send_all(question)
                assert await receive_all(client) == answer


@pytest.mark.parametrize("most", [0, -1])
async def test_no_connections_at_all_is_a_mistake(most: int) -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1"):
        await serve_listeners(echo, [Door()], max_connections=most)


@pytest.mark.filterwarnings("error")  # a listener that nobody has closed
@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")
@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"shutdown": 5}, TypeError, "shutdown must be a Shutdown or None, not 5"),
        ({"shutdown": Shutdown}, TypeError, "shutdown must be a Shutdown or None, not <class"),
        ({"max_connections": 0}, ValueError, "max_connections must be at least 1"),
        ({"idle_timeout": -1}, ValueError, "timeout must be"),
    ],
)
async def test_mistakes_are_told_before_anything_is_opened(
    limits: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "sock"
    path.touch()  # opening it would be another error
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for serve in (
            functools.partial(serve_tcp, echo, port, host="127.0.0.1"),
            functools.partial(serve_ssl_over_tcp, echo, port, context, host="127.0.0.1"),
            functools.partial(serve_unix, echo, path),
            functools.partial(serve_listeners, echo, [Door()]),
        ):
            with pytest.raises(error, match=message):
                await serve(**limits)


@pytest.mark.parametrize("name", ["first_byte_timeout", "idle_timeout"])
async def test_wrong_seconds(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match="timeout must be"):
        await serve_listeners(echo, [Door()], **options)


# -- first_byte_timeout


async def test_whoever_says_nothing_is_closed_and_no_handler_is_called(
    autojump_clock: MockClock,
) -> None:
    door, counter = Door(), Counter()
    async with serving(counter, door, first_byte_timeout=5):
        async with door.knock() as client:
            assert await receive_all(client) == b""
            assert trio.current_time() == 5
        async with door.knock() as client:
            await trio.sleep(4.9)
            await ask(client, b"just in time")
            await trio.sleep(60)
            await ask(client, b"no hurry any more")
    assert counter.total == 1


async def test_many_that_say_nothing_do_not_keep_others_out(autojump_clock: MockClock) -> None:
    door, counter = Door(), Counter()
    async with serving(counter, door, first_byte_timeout=5, max_connections=MANY + 1):
        silent = [door.knock() for _ in range(MANY)]
        async with closing(*silent), door.knock() as good:
            await ask(good)
            assert (trio.current_time(), counter.total) == (0, 1)
            for client in silent:
                assert await client.receive_some() == b""
            assert trio.current_time() == 5
            await ask(good)


async def test_whoever_hangs_up_at_once_is_nobody() -> None:
    door, counter = Door(), Counter()
    async with serving(counter, door, first_byte_timeout=5, max_connections=1):
        for _ in range(3):
            async with door.knock():
                pass
        async with door.knock() as client:
            await ask(client)
    assert counter.total == 1


@pytest.mark.parametrize("options", [{"first_byte_timeout": 5}, {}], ids=["first byte", "none"])
async def test_resets_in_the_queue_of_a_listener(options: dict[str, Any]) -> None:
    """Connections that are gone before they are accepted."""
    [listener] = await open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    for _ in range(20):
        reset(socket.create_connection(("127.0.0.1", port)))
    ends: list[str] = []

    async def handler(stream: SocketStream) -> None:
        try:
            await echo(stream)
            ends.append("end")
        except trio.BrokenResourceError:
            ends.append("reset")

    async with serving(handler, listener, max_connections=2, **options):
        async with await open_tcp_stream("127.0.0.1", port) as client:
            await ask(client)
            await client.send_eof()
            assert await receive_all(client) == b""
    assert ends.count("end") == 1
    if options:
        assert ends == ["end"]


class Stranger(trio.abc.Stream):
    """A stream of another library's."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return b""

    async def send_all(self, data: Any) -> None: ...

    async def wait_send_all_might_not_block(self) -> None: ...

    async def aclose(self) -> None: ...


class Strangers(trio.abc.Listener[Stranger]):
    accepted = 0

    async def accept(self) -> Stranger:
        self.accepted += 1
        if self.accepted > 1:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return Stranger()

    async def aclose(self) -> None: ...


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("option", "why"),
    [("first_byte_timeout", "take bytes back"), ("idle_timeout", "with time limits")],
)
async def test_streams_that_cannot_be_limited(option: str, why: str) -> None:
    options: dict[str, Any] = {option: 5}
    with pytest.RaisesGroup(pytest.RaisesExc(TypeError, match=why), flatten_subgroups=True):
        await serve_listeners(echo, [Strangers()], **options)


class Buffering(trio.abc.Listener[Any]):
    """Wraps what a door accepts."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def accept(self) -> Any:
        stream = await self._door.accept()
        return trio.StapledStream(stream, BufferedReceiveStream(stream))

    async def aclose(self) -> None:
        await self._door.aclose()


async def test_the_socket_is_found_below_buffers(autojump_clock: MockClock) -> None:
    door, counter = Door(), Counter()
    async with serving(counter, Buffering(door), first_byte_timeout=5, idle_timeout=10):
        async with door.knock() as silent, door.knock() as client:
            await ask(client)
            assert await receive_all(silent) == b""
            assert trio.current_time() == 5
            assert await receive_all(client) == b""
            assert trio.current_time() == 10
    assert counter.total == 1


@pytest.mark.parametrize("make", [UringNetwork, TrioNetwork, lambda: Metered(UringNetwork())])
async def test_networks(make: Callable[[], Any]) -> None:
    network, counter = make(), Counter()
    listener = await network.bind(("127.0.0.1", 0))
    async with serving(
        counter, listener, first_byte_timeout=60, idle_timeout=60, max_connections=1
    ):
        for _ in range(2):
            async with await network.dial(listener.local_address):
                pass
            async with await network.dial(listener.local_address) as client:
                await ask(client)
    assert counter.total == 2


@pytest.mark.no_ring
def test_a_simulated_network() -> None:
    async def main() -> None:
        network, counter = SimulatedNetwork(3, latency=(0.001, 0.02)), Counter()
        listener = await network.bind(("server", 80))
        async with serving(counter, listener, first_byte_timeout=5, idle_timeout=20):
            silent = await network.dial(("server", 80))
            client = await network.dial(("server", 80))
            async with silent, client:
                await ask(client, b"x" * 10_000)
                assert await receive_all(silent) == b""
                assert 5 < trio.current_time() < 5.1
                assert await receive_all(client) == b""
                assert 20 < trio.current_time() < 20.5
        assert counter.total == 1

    run_deterministically(main)


# -- idle_timeout


async def test_whoever_falls_silent_is_closed_and_nobody_else(autojump_clock: MockClock) -> None:
    door = Door()
    async with serving(echo, door, idle_timeout=10):
        async with door.knock() as silent, door.knock() as good:
            await ask(silent)
            await trio.sleep(9)
            await ask(good)
            assert await receive_all(silent) == b""
            assert trio.current_time() == 10
            await ask(good)
            assert await receive_all(good) == b""
            assert trio.current_time() == 20


async def test_whoever_does_not_read_is_closed(autojump_clock: MockClock) -> None:
    sent: list[int] = []

    async def handler(stream: SocketStream) -> None:
        try:
            await stream.send_all(bytes(2**24))
        finally:
            sent.append(stream.bytes_sent)

    door = Door()
    async with serving(handler, door, idle_timeout=10), door.knock() as client:
        await trio.sleep(9)
        assert not sent
        await trio.sleep(2)
        assert 0 < sent[0] < 2**24
        assert len(await receive_all(client)) == sent[0]


async def test_one_byte_a_second_is_too_slow_for_a_call_with_a_limit(
    autojump_clock: MockClock,
) -> None:
    async def handler(stream: SocketStream) -> None:
        await stream.send_all(await stream.receive_exactly(100))

    door = Door()
    async with serving(handler, door, first_byte_timeout=5, idle_timeout=10, max_connections=MANY):
        clients = [door.knock() for _ in range(MANY)]
        async with closing(*clients):
            for second in range(10):
                for client in clients:
                    await client.send_all(b"x")
                if not second:
                    assert door.waiting == 0
                await trio.sleep(1)
            async with door.knock() as good:
                await good.send_all(bytes(100))
                assert await receive_all(good) == bytes(100)
            assert trio.current_time() == 10


async def test_a_handler_may_have_limits_of_its_own(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        assert (stream.receive_timeout, stream.send_timeout) == (10, 10)
        stream.receive_timeout = 100
        await echo(stream)

    door = Door()
    async with serving(handler, door, idle_timeout=10), door.knock() as client:
        assert await receive_all(client) == b""
        assert trio.current_time() == 100


async def test_too_slow_within_a_nursery_of_the_handler(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.sleep_forever()

    caplog.set_level(logging.DEBUG, "trio_uring")
    door = Door()
    async with serving(handler, door, idle_timeout=10):
        for _ in range(2):
            async with door.knock() as client:
                assert await receive_all(client) == b""
    assert caplog.text.count("a connection was closed: ") == 2


async def test_what_else_a_handler_raises_ends_the_server(autojump_clock: MockClock) -> None:
    async def handler(stream: SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await stream.receive_some()

    async def fail() -> None:
        try:
            await trio.sleep(10)
        finally:
            raise KeyError("fail")

    door = Door()
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving(handler, door, idle_timeout=10), door.knock():
            await trio.sleep_forever()
    assert door.closed


async def test_too_slow_without_a_limit_ends_the_server() -> None:
    async def handler(stream: SocketStream) -> None:
        await stream.receive_some(timeout=0)

    door = Door()
    with pytest.RaisesGroup(trio.TooSlowError, flatten_subgroups=True):
        async with serving(handler, door), door.knock():
            await trio.sleep_forever()


# -- as before


async def test_without_limits_it_is_trios(autojump_clock: MockClock) -> None:
    listeners: list[list[SocketListener]] = []
    door = Door()
    async with trio.open_nursery() as nursery:
        listeners.append(await nursery.start(serve_listeners, echo, [door]))
        async with door.knock() as client:
            await trio.sleep(1000)
            await ask(client)
        nursery.cancel_scope.cancel()
    assert listeners == [[door]]
    assert door.closed
