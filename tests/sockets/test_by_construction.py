"""What must be trio's and the socket module's own: audit events, addresses, errors, and how sockets
are made.

Rules: an audit hook cannot be removed, so programs with one have their own process.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.child import in_child
from support.sockets import Sockets, on_both

import trio_uring
import trio_uring.socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from types import ModuleType

LOCAL = "127.0.0.1"


# -- PEP 578


class Hook:
    """Sees the socket module's events, and refuses those of a name."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.forbidden: str | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, _: object) -> None:
        if event.startswith("socket.") and event != "socket.__new__":
            self.seen.append(event)
            if event == self.forbidden:
                raise PermissionError(f"{event} is forbidden")

    async def watch(self, event: str, call: Callable[[], Awaitable[Any]]) -> None:
        """Whether it sees `call`; then, whether it stops it."""
        self.seen.clear()
        made = await call()
        assert event in self.seen, (event, self.seen)
        if hasattr(made, "aclose"):
            await made.aclose()
        self.forbidden = event
        with pytest.raises((PermissionError, OSError)) as caught:
            await call()
        self.forbidden = None
        exc: Any = caught.value
        reasons = [exc, *getattr(exc.__cause__, "exceptions", ())]
        assert any(str(reason) == f"{event} is forbidden" for reason in reasons)


async def _watch_all(library: Any, open_tcp: Any, open_unix: Any, path: str) -> None:
    hook = Hook()
    with (
        Sockets(library) as sockets,
        socket.create_server((LOCAL, 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(path)
        unix.listen()

        async def connect() -> None:
            await sockets.new("tcp").connect(tcp.getsockname())

        async def connect_unix() -> None:
            await sockets.new("unix").connect(path)

        await hook.watch("socket.connect", connect)
        await hook.watch("socket.connect", connect_unix)
        await hook.watch("socket.connect", lambda: open_tcp(LOCAL, tcp.getsockname()[1]))
        await hook.watch("socket.connect", lambda: open_unix(path))
        there = await sockets.bound("udp")
        udp, address = sockets.new("udp"), there.getsockname()
        await hook.watch("socket.sendto", lambda: udp.sendto(b"seen", address))
        await hook.watch("socket.sendmsg", lambda: udp.sendmsg([b"seen"], [], 0, address))
        assert [await there.recv(9), await there.recv(9)] == [b"seen", b"seen"]
        assert not there.is_readable()  # what was forbidden was not sent


@pytest.mark.cpython_only("audit events of PyPy's sockets differ")
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_audit_hooks(enabled: bool, ours: bool, tmp_path: Path) -> None:
    _audit_hooks(enabled=enabled, ours=ours, path=str(tmp_path / "socket"))


@in_child()
def _audit_hooks(enabled: bool, ours: bool, path: str) -> None:
    package: Any = trio_uring if ours else trio
    run: Any = trio_uring.run if enabled else trio.run
    run(_watch_all, package.socket, package.open_tcp_stream, package.open_unix_socket, path)


# -- factories


class Factory(trio.abc.SocketFactory):
    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def socket(self, family: int = 0, type: int = 0, proto: int = 0) -> Any:
        self.asked.append((int(family), int(type)))
        return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_custom_factory_is_asked(enabled: bool, ours: bool, tmp_path: Path) -> None:
    """By every way to a socket that asks it in trio. What it makes of trio's class is ours where
    the maker is."""
    package: Any = trio_uring if ours else trio

    async def main() -> None:
        factory = Factory()
        package.socket.set_custom_socket_factory(factory)
        path = str(tmp_path / "socket")
        with package.socket.socket(socket.AF_UNIX) as server:
            assert factory.asked == [(socket.AF_UNIX, socket.SOCK_STREAM)]
            assert isinstance(server, trio_uring.UringSocket) is (ours or enabled)
            await server.bind(path)
            server.listen()
            async with await package.open_unix_socket(path) as stream:
                assert factory.asked[1:] == [(socket.AF_UNIX, socket.SOCK_STREAM)]
                assert isinstance(stream.socket, trio_uring.UringSocket) is (ours or enabled)
        factory.asked.clear()
        (listener,) = await package.open_tcp_listeners(0, host=LOCAL)
        async with listener:
            assert factory.asked == [(socket.AF_INET, socket.SOCK_STREAM)]
            port = listener.socket.getsockname()[1]
            async with (
                await package.open_tcp_stream(LOCAL, port) as stream,
                await listener.accept(),
            ):
                assert factory.asked[1:] == [(socket.AF_INET, socket.SOCK_STREAM)]
                assert isinstance(stream.socket, trio_uring.UringSocket) is (ours or enabled)
        # Those that do not ask it in trio, either.
        for sock in (
            *package.socket.socketpair(),
            package.socket.from_stdlib_socket(socket.socket()),
        ):
            sock.close()
        assert len(factory.asked) == 2

    (trio_uring.run if enabled else trio.run)(main)


async def test_sockets_of_a_class_of_the_factory_s_own() -> None:
    class Named(trio.socket.SocketType):
        def __init__(self) -> None:
            self.name = "mine"

    class Makes(trio.abc.SocketFactory):
        def socket(self, *_: object, **__: object) -> Any:
            return Named()

    trio.socket.set_custom_socket_factory(Makes())
    made: Any = trio_uring.socket.socket()
    assert type(made) is Named


class Lent(trio.socket.SocketType):
    """A socket of a class of its own, around one of trio's."""

    def __init__(self, sock: Any) -> None:
        self._lent = sock

    def __getattribute__(self, name: str) -> Any:
        return (
            object.__getattribute__(self, name)
            if name in ("_lent", "__class__")
            else getattr(self._lent, name)
        )


@pytest.mark.parametrize("kind", ["one buffer", "a list", "much"])
async def test_streams_over_sockets_of_another_class(kind: str) -> None:
    """Their descriptor is what is used, whatever their methods are, and they are who closes it."""
    data: Any = {"one buffer": b"abc", "a list": [b"abc", b"def"], "much": bytes(2**22)}[kind]
    length = 6 if kind == "a list" else len(data)
    lent, plain = Lent(trio.socket.from_stdlib_socket((pair := socket.socketpair())[0])), pair[1]
    async with trio_uring.SocketStream(lent) as left, trio_uring.SocketStream(plain) as right:
        received: list[bytes] = []

        async def receive(stream: trio_uring.SocketStream) -> None:
            received.append(await stream.receive_exactly(length))

        for sender, receiver in ((left, right), (right, left)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, receiver)
                await trio.testing.wait_all_tasks_blocked()
                await sender.send_all(data)
        whole = b"".join(data) if kind == "a list" else data
        assert received == [whole, whole]
        assert left.socket is lent
    assert lent.fileno() == -1


@pytest.mark.parametrize("ended", [False, True])
async def test_a_socket_of_another_class_that_was_closed_behind_its_stream(ended: bool) -> None:
    """Its number may be another's by now."""
    ours, peer = socket.socketpair()
    lent = Lent(trio.socket.from_stdlib_socket(ours))
    stream = trio_uring.SocketStream(lent)
    await stream.send_all(b"x")
    if ended:
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError, match="EOF"):
            await stream.send_all(b"x")
        await stream.wait_send_all_might_not_block()
    lent.close()
    for call in (
        stream.send_all(b"x"),
        stream.receive_some(),
        stream.wait_send_all_might_not_block(),
        stream.send_eof(),
    ):
        with pytest.raises(trio.ClosedResourceError, match="already closed"):
            await call
    await stream.aclose()
    peer.close()


async def test_a_descriptor_is_asked_what_it_is() -> None:
    """No factory is asked for what there is already."""
    trio.socket.set_custom_socket_factory(Factory())
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with trio_uring.socket.fromfd(plain.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert (type(sock), sock.family, sock.type) == (
            trio_uring.UringSocket,
            socket.AF_UNIX,
            socket.SOCK_DGRAM,
        )
    with trio_uring.socket.socket(fileno=plain.detach()) as sock:
        assert (type(sock), sock.family, sock.type) == (
            trio_uring.UringSocket,
            socket.AF_UNIX,
            socket.SOCK_DGRAM,
        )


def test_sockets_can_be_made_before_there_is_a_run() -> None:
    with trio_uring.socket.socket() as sock:
        assert type(sock) is trio_uring.UringSocket


# -- addresses and errors


@pytest.mark.cpython_only("PyPy takes the port 9.0")
@on_both
async def test_a_port_that_is_none(library: ModuleType) -> None:
    """Also after it was used as the integer that it equals."""
    with Sockets(library) as sockets:
        udp = sockets.new("udp")
        await udp.sendto(b"x", (LOCAL, 9))
        for call in (udp.connect, lambda address: udp.sendto(b"x", address)):
            with pytest.raises(OSError, match="Int or String expected"):
                await call((LOCAL, 9.0))


@on_both
@pytest.mark.parametrize("scope", ["lo", 1.5, None])
async def test_a_scope_that_is_none(library: ModuleType, scope: Any) -> None:
    with Sockets(library) as sockets:
        udp = sockets.new("udp6")
        for call in (udp.connect, lambda address: udp.sendto(b"x", address)):
            with pytest.raises(TypeError):
                await call(("::1", 9, 0, scope))


@contextlib.contextmanager
def lone_group() -> Iterator[int]:
    """A group of netlink's that no other process of tests sends to: all of them hear the same."""
    for number in range(32):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0group {number} is for a test of trio_uring")
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            else:
                yield 1 << number
                return
    raise AssertionError("every group is some test's")


@on_both
async def test_events_of_netlink_that_were_lost(library: ModuleType) -> None:
    """ENOBUFS is the socket's own answer, once; what did not fit is gone, and the socket goes
    on."""
    if not hasattr(socket, "AF_NETLINK"):
        pytest.skip("no such family here")
    with (
        Sockets(library) as sockets,
        lone_group() as group,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2) as sender,
    ):
        plain = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)  # NETLINK_USERSOCK
        sock = sockets.take(plain)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4608)
        try:
            plain.bind((0, group))
        except PermissionError as exc:
            pytest.skip(str(exc))
        for receive in ("recv", "recvfrom", "recvmsg"):
            for _ in range(100):
                # The kernel itself does not listen.
                with contextlib.suppress(ConnectionRefusedError):
                    sender.sendto(bytes(1000), (0, group))
            with pytest.raises(OSError, match="No buffer space") as caught:
                await getattr(sock, receive)(2000)
            assert caught.value.errno == errno.ENOBUFS
            while sock.is_readable():
                got = await getattr(sock, receive)(2000)
                assert bytes(1000) in (got, got[0])


@pytest.mark.parametrize("cls", [trio.SocketStream, trio_uring.SocketStream])
async def test_the_words_of_a_broken_connection(cls: Any) -> None:
    """That others match on."""
    left, right = socket.socketpair()
    stream = cls(trio.socket.from_stdlib_socket(left))
    right.close()
    with pytest.raises(
        trio.BrokenResourceError, match=r"^socket connection broken: \[Errno 32\] Broken pipe$"
    ) as caught:
        await stream.send_all(b"x")
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    await stream.aclose()


@on_both
@pytest.mark.parametrize("call", ["recv", "recvmsg", "accept"])
async def test_the_words_of_conflicts_and_of_closing(library: ModuleType, call: str) -> None:
    with Sockets(library) as sockets:
        sock, _ = sockets.pair("unix")
        if call == "accept":
            sock = await sockets.bound("tcp")
            sock.listen()
        arguments = () if call == "accept" else (1,)

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError, match=r"^another task closed this fd$"):
                await getattr(sock, call)(*arguments)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(
                trio.BusyResourceError, match=r"^another task is already reading / writing this fd$"
            ):
                await getattr(sock, call)(*arguments)
            sock.close()


@on_both
async def test_several_tasks_may_take_what_is_there(library: ModuleType) -> None:
    """A call is tried before it is refused: only two that wait are one too many."""
    with Sockets(library) as sockets:
        server = await sockets.bound("tcp")
        server.listen()
        accepted: list[Any] = []

        async def accept() -> None:
            accepted.append(sockets.take((await server.accept())[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            clients = [
                sockets.take(socket.create_connection(server.getsockname())) for _ in range(2)
            ]
            await accept()
        assert {sock.getpeername() for sock in accepted} == {sock.getsockname() for sock in clients}
