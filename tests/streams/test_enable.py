"""Enabling: which objects an enabled run makes, and that no other or later run notices.

Rules: a test that enables does so in its own run. `stock()` checks what trio makes without us, and
ends every test.
"""

from __future__ import annotations

import abc
import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from support.streams import count_of
from trio import SocketListener as imported_listener
from trio import SocketStream as imported_stream
from trio._socket import _SocketType
from trio.socket import from_stdlib_socket as imported_from_stdlib
from trio.socket import socket as imported_socket

import trio_uring

STOCK_INIT = _SocketType.__init__


def stock() -> None:
    """Everything is as trio made it."""
    assert _SocketType.__init__ is STOCK_INIT
    assert type(trio.SocketStream) is type(trio.SocketListener) is abc.ABCMeta
    left, right = socket.socketpair()
    sock = trio.socket.from_stdlib_socket(left)
    assert type(sock) is _SocketType
    assert type(trio.SocketStream(sock)) is trio.SocketStream
    left.close()
    right.close()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    stock()
    yield
    stock()


@contextlib.contextmanager
def closing(*socks: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for sock in socks:
            sock.close()


async def check_sockets(expected: type) -> None:
    """Every way to make a trio socket gives one of this class."""
    left, right = trio.socket.socketpair()
    made = [left, right, trio.socket.socket(), imported_socket(type=socket.SOCK_DGRAM), left.dup()]
    made.append(imported_from_stdlib(socket.socket()))
    made.append(trio.socket.fromfd(left.fileno(), socket.AF_UNIX, socket.SOCK_STREAM))
    made.append(trio.socket.socket(fileno=socket.socket().detach()))
    with closing(*made):
        server = made[2]
        await server.bind(("127.0.0.1", 0))
        server.listen()
        client = made[5]
        await client.connect(server.getsockname())
        made.append((await server.accept())[0])
        assert {type(sock) for sock in made} == {expected}
        made[-1].close()


async def check_streams(stream_class: type, listener_class: type) -> None:
    """Every way to make a stream or listener gives one of these classes, and works."""
    left, right = trio.socket.socketpair()
    one, other = imported_stream(left), trio.SocketStream(socket=right)
    assert type(one) is type(other) is stream_class
    assert isinstance(one, imported_stream)
    await one.send_all(b"x")
    assert await other.receive_some() == b"x"
    await one.aclose()
    await other.aclose()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    assert type(listener) is listener_class
    assert isinstance(listener, imported_listener)
    async with listener:
        async with await trio.open_tcp_stream(
            "127.0.0.1", listener.socket.getsockname()[1]
        ) as client:
            async with await listener.accept() as served:
                assert type(client) is type(served) is stream_class
                await client.send_all(b"x")
                assert await served.receive_some() == b"x"


async def check_ours() -> None:
    await check_sockets(trio_uring.UringSocket)
    await check_streams(trio_uring.SocketStream, trio_uring.SocketListener)
    assert count_of("SEND").completed >= 2


async def check_trios() -> None:
    await check_sockets(_SocketType)
    await check_streams(trio.SocketStream, trio.SocketListener)


def test_run() -> None:
    trio_uring.run(check_ours)
    trio.run(check_trios)
    trio_uring.run(check_ours)


def test_run_passes_everything_on() -> None:
    class Seen(trio.abc.Instrument):
        passes = 0

        def before_io_wait(self, timeout: float) -> None:
            self.passes += 1

    async def main(left: int, right: int) -> int:
        await trio.sleep(1000)
        assert trio.current_time() >= 1000
        return left + right

    seen = Seen()
    clock = trio.testing.MockClock(autojump_threshold=0)
    assert (
        trio_uring.run(
            main,
            1,
            2,
            clock=clock,
            instruments=[seen],
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
        == 3
    )
    assert seen.passes
    with pytest.warns(trio.TrioDeprecationWarning), pytest.raises(ZeroDivisionError):
        trio_uring.run(divide_in_a_nursery, strict_exception_groups=False)


async def divide_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(divide)


async def divide() -> None:
    await trio.lowlevel.checkpoint()
    1 / 0  # noqa: B018


def test_the_instrument() -> None:
    one = trio_uring.Enable()
    for _ in range(2):
        trio.run(check_ours, instruments=[one])
    trio.run(check_ours, instruments=[one, trio_uring.Enable(), one])


def test_sockets_only() -> None:
    async def main() -> None:
        await check_sockets(trio_uring.UringSocket)
        await check_streams(trio.SocketStream, trio.SocketListener)
        if trio_uring.backend_info().backend == "uring":  # else the methods are trio's own
            assert count_of("SEND").completed >= 2

    trio.run(main, instruments=[trio_uring.Enable(streams=False)])


def test_from_within() -> None:
    async def main() -> None:
        before = trio.socket.socket()
        with before:
            trio_uring.enable()
            trio_uring.enable()
            assert type(before) is _SocketType
            assert type(trio.SocketStream(before)) is trio.SocketStream
            await check_ours()

    trio.run(main)
    with pytest.raises(RuntimeError):
        trio_uring.enable()


def test_the_instrument_may_be_taken_out() -> None:
    async def main() -> None:
        trio.lowlevel.remove_instrument(one)
        await check_ours()

    one = trio_uring.Enable()
    trio.run(main, instruments=[one])


@pytest.mark.parametrize("how", ["exception", "cancelled", "internal", "exit"])
def test_a_run_that_ends_badly(how: str) -> None:
    async def main() -> None:
        await check_ours()
        if how == "internal":
            trio.lowlevel.spawn_system_task(divide)
            await trio.sleep_forever()
        if how == "exit":
            raise SystemExit
        trio.lowlevel.current_root_task()
        raise KeyboardInterrupt if how == "cancelled" else ZeroDivisionError

    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, SystemExit, trio.TrioInternalError)):
        trio_uring.run(main)
    trio.run(check_trios)


def test_a_stock_socket_makes_a_stock_stream() -> None:
    left, right = socket.socketpair()
    sock, peer = trio.socket.from_stdlib_socket(left), trio.socket.from_stdlib_socket(right)

    async def main() -> None:
        stream, other = trio.SocketStream(sock), trio.SocketStream(peer)
        assert type(stream) is trio.SocketStream
        await stream.send_all(b"x")
        assert await other.receive_some() == b"x"

    trio_uring.run(main)
    left.close()
    right.close()


def test_our_socket_in_a_stock_run() -> None:
    async def main() -> None:
        left, right = trio_uring.socket.socketpair()
        one, other = trio.SocketStream(left), trio.SocketStream(right)
        assert type(one) is trio.SocketStream
        await one.send_all(b"x" * 100)
        assert await other.receive_some() == b"x" * 100
        await one.send_eof()
        assert await other.receive_some() == b""
        await one.aclose()
        await other.aclose()

    trio.run(main)


def test_wrong_arguments_are_trios_affair() -> None:
    async def main() -> None:
        left, right = trio.socket.socketpair()
        datagrams = trio.socket.socket(type=socket.SOCK_DGRAM)
        with closing(left, right, datagrams):
            for arguments in ((), (left, right), (None,), (5,)):
                with pytest.raises(TypeError):
                    trio.SocketStream(*arguments)
            with pytest.raises(ValueError, match="SOCK_STREAM"):
                trio.SocketStream(datagrams)
            with pytest.raises(ValueError, match="listen"):
                trio.SocketListener(left)

    trio_uring.run(main)


class Plain(trio.abc.SocketFactory):
    def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> Any:
        return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))


class Foreign(trio.abc.SocketFactory):
    class Socket(trio.socket.SocketType):
        type = socket.SOCK_STREAM

    def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> Any:
        return self.Socket()


def test_the_user_s_socket_factory() -> None:
    async def main() -> None:
        assert trio.socket.set_custom_socket_factory(Plain()) is None
        with trio.socket.socket() as sock:
            assert type(sock) is trio_uring.UringSocket
        assert isinstance(trio.socket.set_custom_socket_factory(Foreign()), Plain)
        sock = trio.socket.socket()
        assert type(sock) is Foreign.Socket
        trio_uring.enable()
        assert type(trio.socket.socket()) is Foreign.Socket

    trio_uring.run(main)


def test_fakenet() -> None:
    from trio.testing._fake_net import FakeNet

    async def main() -> None:
        FakeNet().enable()
        one, other = (
            trio.socket.socket(type=socket.SOCK_DGRAM),
            trio.socket.socket(type=socket.SOCK_DGRAM),
        )
        await one.bind(("127.0.0.1", 0))
        await other.sendto(b"x", one.getsockname())
        assert (await one.recvfrom(10))[0] == b"x"
        assert not isinstance(one, trio_uring.UringSocket)
        one.close()
        other.close()

    trio_uring.run(main)


def test_other_runs_at_the_same_time() -> None:
    """Enabled and stock runs in threads, each with what it should have, whatever the others do
    meanwhile."""
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    def thread(index: int) -> None:
        try:
            together.wait()
            for number in range(8):
                if (index + number) % 2:
                    trio_uring.run(check_ours)
                else:
                    trio.run(check_trios)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=thread, args=(index,)) for index in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures


def test_runs_inside_of_runs() -> None:
    async def main() -> None:
        await trio.to_thread.run_sync(trio.run, check_trios)
        await check_ours()
        await trio.to_thread.run_sync(trio_uring.run, check_ours)
        await check_ours()
        await trio.to_thread.run_sync(no_run)

    async def stock_main() -> None:
        await trio.to_thread.run_sync(trio_uring.run, main)
        await check_trios()

    def no_run() -> None:
        with trio.socket.from_stdlib_socket(socket.socket()) as sock:
            assert type(sock) is _SocketType

    trio.run(stock_main)


def test_as_a_guest() -> None:
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trio.lowlevel.start_guest_run(
        check_ours,
        run_sync_soon_threadsafe=todo.put,
        done_callback=lambda outcome: todo.put(outcome),
        host_uses_signal_set_wakeup_fd=True,
        instruments=[trio_uring.Enable()],
    )
    while callable(step := todo.get()):
        step()
    step.unwrap()


def test_classes_stay_what_they_are() -> None:
    """Class identity, isinstance and issubclass, before, in and after an enabled run."""
    classes = (trio.SocketStream, trio.SocketListener, trio.socket.SocketType, _SocketType)

    async def main() -> None:
        assert (
            trio.SocketStream,
            trio.SocketListener,
            trio.socket.SocketType,
            _SocketType,
        ) == classes
        assert issubclass(trio_uring.SocketStream, trio.SocketStream)
        assert issubclass(trio_uring.SocketListener, trio.SocketListener)
        assert not isinstance(trio.testing.memory_stream_pair()[0], trio.SocketStream)
        assert issubclass(trio.SocketStream, trio.abc.HalfCloseableStream)
        with pytest.raises(TypeError):
            type("Sub", (trio.SocketStream,), {})

    trio_uring.run(main)


def test_unix_sockets_and_tls_and_dtls(tmp_path: Any) -> None:
    async def main() -> None:
        with trio.socket.socket(socket.AF_UNIX) as server:
            await server.bind(str(tmp_path / "socket"))
            server.listen()
            async with await trio.open_unix_socket(tmp_path / "socket") as client:
                assert type(client) is trio_uring.SocketStream
        stream = await trio_ssl()
        assert type(stream.transport_stream) is trio_uring.SocketStream
        await trio.aclose_forcefully(stream)
        with trio.socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            with trio.DTLSEndpoint(datagrams) as endpoint:
                assert type(endpoint.socket) is trio_uring.UringSocket

    async def trio_ssl() -> trio.SSLStream[Any]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            port = listener.socket.getsockname()[1]
            return await trio.open_ssl_over_tcp_stream(
                "127.0.0.1", port, ssl_context=ssl.create_default_context()
            )

    pytest.importorskip("OpenSSL")
    trio_uring.run(main)
