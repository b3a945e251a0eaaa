"""Socket options reach every socket: each field, through each entry point, read back from the
kernel.

Rules: getsockopt on real sockets says what was set, not the code. A socket that a field is not
meant for keeps what it has without options.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.networks import connect, socket_of
from support.streams import closing, open_descriptors
from support.tls import client_context, server_context

import trio_uring
from trio_uring import KeepAlive, NetworkConfig, SocketOptions, TrioNetwork, UringNetwork
from trio_uring._trio import SocketType_
from trio_uring._udp.messages import UDP_GRO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TCP, SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET
LISTENING = {"listener", "accepted"}  # Linux lets connections inherit all of these
ALL_TCP = {*LISTENING, "client"}
EVERYTHING = {*ALL_TCP, "unix listener", "unix accepted", "unix client", "udp"}

Sockets = dict[str, Any]  # by what each is


@dataclass
class Row:
    """A value of a field, and how it reads where the field is meant to be set."""

    field: str
    value: Any
    level: int
    option: int
    reads: int | bytes
    on: set[str]
    host: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"{self.field}={self.value} {self.option}"

    def read(self, sock: Any) -> Any:
        """The option's value, or why this socket has none."""
        try:
            if isinstance(self.reads, bytes):
                return sock.getsockopt(self.level, self.option, 16)
            return sock.getsockopt(self.level, self.option)
        except OSError as exc:
            return exc.errno, "error"


TIMES = KeepAlive(idle=61, interval=7, count=3)
ROWS = [
    Row("nodelay", False, TCP, socket.TCP_NODELAY, 0, ALL_TCP),
    Row("notsent_lowat", 54321, TCP, socket.TCP_NOTSENT_LOWAT, 54321, ALL_TCP),
    Row("keepalive", True, SOL, socket.SO_KEEPALIVE, 1, ALL_TCP),
    Row("keepalive", TIMES, SOL, socket.SO_KEEPALIVE, 1, ALL_TCP),
    Row("keepalive", TIMES, TCP, socket.TCP_KEEPIDLE, 61, ALL_TCP),
    Row("keepalive", TIMES, TCP, socket.TCP_KEEPINTVL, 7, ALL_TCP),
    Row("keepalive", TIMES, TCP, socket.TCP_KEEPCNT, 3, ALL_TCP),
    Row("user_timeout", 1.5, TCP, socket.TCP_USER_TIMEOUT, 1500, ALL_TCP),
    Row("linger", 0, SOL, socket.SO_LINGER, struct.pack("ii", 1, 0), ALL_TCP),
    Row("reuse_address", False, SOL, socket.SO_REUSEADDR, 0, LISTENING),
    Row("reuse_port", True, SOL, socket.SO_REUSEPORT, 1, {*LISTENING, "udp"}),
    # any other address than the wildcard makes it True
    Row("ipv6_only", False, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0, LISTENING, "::"),
    Row("bind_to_device", "lo", SOL, socket.SO_BINDTODEVICE, b"lo\0", {*ALL_TCP, "udp"}),
    # Linux doubles what it is told
    Row("receive_buffer", 20480, SOL, socket.SO_RCVBUF, 40960, EVERYTHING),
    Row("send_buffer", 20480, SOL, socket.SO_SNDBUF, 40960, EVERYTHING),
    Row("broadcast", True, SOL, socket.SO_BROADCAST, 1, {"udp"}),
]


# -- the entry points


@contextlib.asynccontextmanager
async def serving(
    serve: Callable[..., Awaitable[None]], *args: Any, **named: Any
) -> AsyncIterator[tuple[Any, Callable[[], Awaitable[Any]]]]:
    """The listener of a serve_* function, and what gives the next connection."""
    send, receive = trio.open_memory_channel[Any](1)

    async def handler(stream: Any) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(serve, **named), handler, *args)
        yield listener, receive.receive
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def tcp(host: str, options: Any) -> AsyncIterator[Sockets]:
    [listener] = await trio_uring.open_tcp_listeners(0, host=host, options=options)
    port = listener.socket.getsockname()[1]
    client = await trio_uring.open_tcp_stream(host, port, options=options)
    async with closing(listener, client, accepted := await listener.accept()):
        yield {
            "listener": listener.socket,
            "client": client.socket,
            "accepted": accepted.socket,
        }


@contextlib.asynccontextmanager
async def tcp_served(host: str, options: Any) -> AsyncIterator[Sockets]:
    async with serving(trio_uring.serve_tcp, 0, host=host, options=options) as (listener, accept):
        with socket.create_connection(listener.socket.getsockname()[:2]):
            accepted = await accept()
            yield {"listener": listener.socket, "accepted": accepted.socket}


@contextlib.asynccontextmanager
async def tls(host: str, options: Any) -> AsyncIterator[Sockets]:
    [listener] = await trio_uring.open_ssl_over_tcp_listeners(
        0, server_context(), host=host, options=options
    )
    below = listener.transport_listener.socket
    client = await trio_uring.open_ssl_over_tcp_stream(
        host, below.getsockname()[1], ssl_context=client_context(), options=options
    )
    accepted = await listener.accept()
    try:
        yield {
            "listener": below,
            "client": client.transport_stream.socket,
            "accepted": accepted.transport_stream.socket,
        }
    finally:
        for each in (listener, client, accepted):
            await trio.aclose_forcefully(each)


@contextlib.asynccontextmanager
async def tls_served(host: str, options: Any) -> AsyncIterator[Sockets]:
    serve = trio_uring.serve_ssl_over_tcp
    async with serving(serve, 0, server_context(), host=host, options=options) as (tls, accept):
        below = tls.transport_listener.socket
        with socket.create_connection(below.getsockname()[:2]):
            yield {"listener": below, "accepted": (await accept()).transport_stream.socket}


@contextlib.asynccontextmanager
async def unix(host: str, options: Any, abstract: bool = False) -> AsyncIterator[Sockets]:
    with tempfile.TemporaryDirectory() as directory:
        path = "\0" * abstract + f"{directory}/sock"
        [listener] = await trio_uring.open_unix_listeners(path, options=options)
        client = await trio_uring.open_unix_socket(path, options=options)
        async with closing(listener, client, accepted := await listener.accept()):
            yield {
                "unix listener": listener.socket,
                "unix client": client.socket,
                "unix accepted": accepted.socket,
            }


@contextlib.asynccontextmanager
async def unix_served(host: str, options: Any) -> AsyncIterator[Sockets]:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as client:
        path = f"{directory}/sock"
        async with serving(trio_uring.serve_unix, path, options=options) as (listener, accept):
            client.connect(path)
            accepted = await accept()
            yield {"unix listener": listener.socket, "unix accepted": accepted.socket}


@contextlib.asynccontextmanager
async def network(kind: Any, host: str, options: Any) -> AsyncIterator[Sockets]:
    made = kind(NetworkConfig(options=options))
    listener = await made.bind((host, 0))
    client, accepted = await connect(made, listener)
    async with closing(listener, client, accepted):
        yield {
            "listener": listener._listener.socket,
            "client": socket_of(client),
            "accepted": socket_of(accepted),
        }


@contextlib.asynccontextmanager
async def udp(host: str, options: Any) -> AsyncIterator[Sockets]:
    opened = await trio_uring.open_udp_socket(local_address=(host, 0), options=options)
    async with opened:
        yield {"udp": opened.socket}


ENTRIES: dict[str, Callable[..., Any]] = {
    "tcp": tcp,
    "serve_tcp": tcp_served,
    "tls": tls,
    "serve_ssl_over_tcp": tls_served,
    "unix": unix,
    "abstract unix": partial(unix, abstract=True),
    "serve_unix": unix_served,
    "UringNetwork": partial(network, UringNetwork),
    "TrioNetwork": partial(network, TrioNetwork),
    "udp": udp,
}


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("entry", ENTRIES)
async def test_a_field_reaches_what_it_is_meant_for(entry: str, row: Row) -> None:
    async with ENTRIES[entry](row.host, None) as sockets:
        before = {what: row.read(sock) for what, sock in sockets.items()}
    try:
        async with ENTRIES[entry](row.host, SocketOptions(**{row.field: row.value})) as sockets:
            after = {what: row.read(sock) for what, sock in sockets.items()}
    except PermissionError as exc:
        pytest.skip(f"not allowed here: {exc}")
    assert after == {what: row.reads if what in row.on else before[what] for what in before}
    assert all(before[what] != row.reads for what in before.keys() & row.on)


def test_every_field_has_its_row() -> None:
    """And `backlog`, which is no option, a test of its own."""
    assert {row.field for row in ROWS} | {"backlog"} == set(SocketOptions.__dataclass_fields__)


@pytest.mark.parametrize("entry", ["tcp", "unix", "udp"])
async def test_without_options_nothing_more_is_set_than_ever(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accept sets nothing, and a stream not again what it was opened with."""
    told: list[int] = []

    def setsockopt(self: Any, level: int, option: int, *value: Any) -> None:
        told.append(option)

    monkeypatch.setattr(SocketType_, "setsockopt", setsockopt)
    async with ENTRIES[entry]("127.0.0.1", None):
        tcp = [socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT]
        expected = {"tcp": [socket.SO_REUSEADDR, *tcp, *tcp], "unix": [], "udp": [UDP_GRO]}
        assert told == expected[entry]


# -- what cannot be had


@pytest.mark.parametrize("entry", [name for name in ENTRIES if "unix" not in name])
async def test_a_device_that_is_not_there(entry: str) -> None:
    """The error names the option, and nothing is left open."""
    before = open_descriptors()
    try:
        async with ENTRIES[entry]("127.0.0.1", SocketOptions(bind_to_device="nowhere")):
            pytest.fail("there is such a device")
    except (OSError, ExceptionGroup) as exc:
        (error,) = getattr(exc, "exceptions", [exc])
    assert "bind_to_device='nowhere' (SO_BINDTODEVICE)" in str(error)
    assert error.errno in (errno.ENODEV, errno.EPERM)
    left = set(open_descriptors().values()) - set(before.values())
    assert not [name for name in left if name.startswith("socket:")]
