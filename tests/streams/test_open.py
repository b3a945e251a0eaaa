"""open_tcp_stream and open_unix_socket: the order of attempts, the winner, what is closed, the
errors.

Rules: names are resolved by the test's own resolver, and time is trio's MockClock. An attempt that
must hang connects to a listener whose backlog is full, and a delay passes when the test says so.
Descriptors are counted after each test.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.ports import lone_port
from support.streams import closing, drain, passes, until

import trio_uring
from trio_uring import open_tcp_stream, open_unix_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


class Resolver(trio.abc.HostnameResolver):
    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        # Trio asks for the local address, too, when it is of another family than the socket.
        if host != b"name":
            raise socket.gaierror(socket.EAI_NONAME, "not a name of this test")
        found = []
        for name, number in self.addresses:
            kind, address = (
                (socket.AF_INET6, (name, number, 0, 0))
                if ":" in name
                else (socket.AF_INET, (name, number))
            )
            found.append((kind, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address))
        return found

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


def resolve_to(*addresses: tuple[str, int]) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(*addresses))


class Factory(trio.abc.SocketFactory):
    """Keeps the sockets that it makes: the attempts to connect."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    @classmethod
    def set(cls) -> Factory:
        factory = cls()
        trio.socket.set_custom_socket_factory(factory)
        return factory

    def socket(self, family: Any = 0, type: Any = 0, proto: int = 0) -> Any:
        self.made.append(trio.socket.from_stdlib_socket(socket.socket(family, type, proto)))
        return self.made[-1]

    def open(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.made)


@contextlib.contextmanager
def server(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        yield sock


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """An address at which a connect neither succeeds nor fails: one connection fills the backlog,
    and then SYNs are dropped."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind((host, 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        yield listener.getsockname()


def refused(host: str = "127.0.0.1") -> tuple[str, int]:
    """An address where nobody listens."""
    return host, lone_port(host)


def address_of(sock: socket.socket) -> tuple[str, int]:
    return sock.getsockname()[:2]


@pytest.mark.parametrize("host", ["127.0.0.1", b"127.0.0.1", "::1", "localhost"])
async def test_connects(host: Any) -> None:
    with server("::1" if host == "::1" else "127.0.0.1") as listener:
        stream = await open_tcp_stream(host, listener.getsockname()[1])
        peer, _ = listener.accept()
        async with closing(stream, peer):
            assert isinstance(stream, trio_uring.SocketStream)
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not os.get_inheritable(stream.socket.fileno())
            await stream.send_all(b"hello")
            assert await until(lambda: drain(peer), "hello") == b"hello"


async def test_a_failed_attempt_starts_the_next_at_once(mock_clock: MockClock) -> None:
    with server() as good:
        resolve_to(refused(), refused(), address_of(good))
        # No time passes in this test.
        stream = await open_tcp_stream("name", 1, happy_eyeballs_delay=1000)
        async with closing(stream):
            assert stream.socket.getpeername() == address_of(good)


@pytest.mark.cpython_only("PyPy's listen(0) takes one connection more")
async def test_a_slow_attempt_is_overtaken_after_the_delay(mock_clock: MockClock) -> None:
    opened: list[Any] = []
    attempts = Factory.set()

    async def connect() -> None:
        opened.append(await open_tcp_stream("name", 1, happy_eyeballs_delay=10))

    with black_hole() as slow, server() as good:
        resolve_to(slow, slow, address_of(good))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            for number in (1, 2):
                await until(lambda n=number: len(attempts.made) == n, f"{number} attempts")
                mock_clock.jump(9.9)
                await passes(20)
                assert attempts.open() == number
                mock_clock.jump(0.2)
        async with closing(*opened):
            assert opened[0].socket.getpeername() == address_of(good)
            assert (len(attempts.made), attempts.open()) == (3, 1)


async def test_the_first_attempt_may_still_win(mock_clock: MockClock) -> None:
    with server() as good, black_hole() as slow:
        resolve_to(address_of(good), slow)
        async with closing(stream := await open_tcp_stream("name", 1, happy_eyeballs_delay=0)) as _:
            assert stream.socket.getpeername() == address_of(good)


@pytest.mark.parametrize("delay", [0, 0.1, None])
async def test_cancelled_while_connecting(delay: float | None, mock_clock: MockClock) -> None:
    attempts = Factory.set()
    with black_hole() as slow:
        resolve_to(slow, slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: open_tcp_stream("name", 1, happy_eyeballs_delay=delay))
            await until(lambda: attempts.open() == (2 if delay == 0 else 1), "the attempts")
            nursery.cancel_scope.cancel()
    assert attempts.open() == 0


@pytest.mark.cpython_only("PyPy's listen(0) takes one connection more")
async def test_the_default_delay_is_trios(mock_clock: MockClock) -> None:
    attempts = Factory.set()
    with black_hole() as slow:
        resolve_to(slow, slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_tcp_stream, "name", 1)
            await until(lambda: attempts.open() == 1, "the first attempt")
            mock_clock.jump(0.24)
            await passes(20)
            assert attempts.open() == 1
            mock_clock.jump(0.02)
            await until(lambda: attempts.open() == 2, "the second attempt")
            nursery.cancel_scope.cancel()


async def errors_of(
    open_it: Any, *args: Any, **options: Any
) -> tuple[str, list[tuple[type, int | None]], type]:
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the message is compared below)
        await open_it(*args, **options)
    cause = caught.value.__cause__
    errors = [(type(one), getattr(one, "errno", None)) for one in getattr(cause, "exceptions", [])]
    return str(caught.value), errors, type(cause)


@pytest.mark.parametrize("local_address", [None, "::1", "192.0.2.99", "127.0.0.1"])
async def test_errors_are_as_trios(local_address: str | None) -> None:
    options = {"local_address": local_address}
    resolve_to(refused(), refused("::1"), refused())
    ours = await errors_of(open_tcp_stream, "name", 80, **options)
    assert ours == await errors_of(trio.open_tcp_stream, "name", 80, **options)
    assert len(ours[1]) == 3


async def test_families_are_tried_by_turns() -> None:
    resolve_to(refused(), refused(), refused("::1"))
    with pytest.raises(OSError, match="all attempts") as caught:
        await open_tcp_stream("name", 80)
    cause: Any = caught.value.__cause__
    assert ["::1" in str(one) for one in cause.exceptions] == [False, True, False]


async def test_nothing_found() -> None:
    resolve_to()
    assert await errors_of(open_tcp_stream, "name", 80) == await errors_of(
        trio.open_tcp_stream, "name", 80
    )


@pytest.mark.parametrize(
    ("host", "port"), [(None, 80), (5, 80), ("127.0.0.1", "80"), ("127.0.0.1", None)]
)
async def test_wrong_types_are_refused_as_by_trio(host: Any, port: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as trios:
        await trio.open_tcp_stream(host, port)
    with pytest.raises(trios.type):
        await open_tcp_stream(host, port)


async def test_local_address() -> None:
    with server() as listener:
        stream = await open_tcp_stream(
            "127.0.0.1", listener.getsockname()[1], local_address="127.0.0.9"
        )
        peer, address = listener.accept()
        async with closing(stream, peer):
            assert address[0] == "127.0.0.9"


# -- Unix sockets


def unix_server(name: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(name)
    sock.listen(1)
    return sock


ABSTRACT = f"\0trio_uring test {os.getpid()}"


@pytest.mark.parametrize(
    "form",
    ["str", "bytes", "path", "abstract str", "abstract bytes", "longest path", "longest abstract"],
)
async def test_open_unix_socket(form: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    names: dict[str, Any] = {
        "str": path,
        "bytes": os.fsencode(path),
        "path": Path(path),
        "abstract str": ABSTRACT,
        "abstract bytes": ABSTRACT.encode(),
        "longest path": path.ljust(107, "p"),
        "longest abstract": ABSTRACT.ljust(108, "a"),
    }
    name = names[form]
    with unix_server(os.fspath(name)) as listener:
        stream = await open_unix_socket(name)
        peer, _ = listener.accept()
        async with closing(stream, peer):
            await stream.send_all(b"hello")
            assert drain(peer) == b"hello"
            assert not os.get_inheritable(stream.socket.fileno())


@pytest.mark.parametrize(
    "case", ["missing", "not a socket", "nobody listens", "too long", "abstract too long", "empty"]
)
async def test_unix_errors_are_as_trios(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dead = str(tmp_path / "dead")
    unix_server(dead).close()
    name = {
        "missing": str(tmp_path / "missing"),
        "not a socket": str(tmp_path / "file"),
        "nobody listens": dead,
        "too long": str(tmp_path / ("x" * 200)),
        "abstract too long": "\0" + "x" * 200,
        "empty": "",
    }[case]
    with pytest.raises(OSError) as trios:  # noqa: PT011
        await trio.open_unix_socket(name)
    with pytest.raises(OSError) as ours:  # noqa: PT011
        await open_unix_socket(name)
    assert (type(ours.value), ours.value.errno) == (type(trios.value), trios.value.errno)


@pytest.mark.parametrize("name", [None, 3, 1.5])
async def test_unix_wrong_types(name: Any) -> None:
    with pytest.raises(TypeError):
        await open_unix_socket(name)


@pytest.mark.uring_only("trio's own connect returns then as if it were connected")
async def test_a_unix_connect_to_a_full_backlog_can_be_cancelled(tmp_path: Path) -> None:
    """It waits or fails with EAGAIN, as the kernel likes, and leaves nothing behind."""
    fillers = []
    with unix_server(str(tmp_path / "s")):
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                fillers.append(socket.socket(socket.AF_UNIX))
                fillers[-1].setblocking(False)
                fillers[-1].connect(str(tmp_path / "s"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_connect_or_again, str(tmp_path / "s"))
            await passes(20)
            nursery.cancel_scope.cancel()
        for one in fillers:
            one.close()


async def _connect_or_again(path: str) -> None:
    with pytest.raises((BlockingIOError, trio.Cancelled)) as caught:
        await open_unix_socket(path)
    if isinstance(caught.value, trio.Cancelled):
        raise caught.value
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EAGAIN
