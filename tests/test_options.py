"""SocketOptions as a value: what it refuses, how shorthands are folded into it, and what apply does
if a platform, a kernel or a peer does not support an option.

Rules: real sockets are in test_options_on_sockets; here a fake one records what it was told.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import socket
import struct
import types
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.networks import connect, socket_of
from support.streams import closing, open_descriptors

import trio_uring
from trio_uring import KeepAlive, NetworkConfig, SocketOptions, TrioNetwork, UringNetwork
from trio_uring._options import fold_options
from trio_uring._streams import listeners
from trio_uring.testing import SimulatedNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

TCP, SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET


class FakeSocket:
    """Says what it was told, and refuses `refused`."""

    def __init__(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = 0,
        refused: dict[int, int] | None = None,
        gone: bool = False,
    ) -> None:
        self.family, self.type, self.proto = family, kind, proto
        self.told: list[tuple[int, int, Any]] = []
        self._refused, self._gone = refused or {}, gone

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option in self._refused:
            code = self._refused[option]
            raise OSError(code, os.strerror(code))
        self.told.append((level, option, value))

    def getpeername(self) -> None:
        if self._gone:
            raise OSError(errno.ENOTCONN, "gone")


NODELAY = (TCP, socket.TCP_NODELAY, 1)
LOWAT = (TCP, socket.TCP_NOTSENT_LOWAT, 2**20)


# -- the value


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("nodelay", 1, TypeError, "True or False"),
        ("reuse_port", "yes", TypeError, "True or False"),
        ("broadcast", None, TypeError, "True or False"),
        ("notsent_lowat", 0, ValueError, "from 1 to 2147483647"),
        ("notsent_lowat", 2**31, ValueError, "from 1 to 2147483647"),
        ("receive_buffer", 1.5, TypeError, "an int"),
        ("send_buffer", True, TypeError, "an int"),
        ("backlog", -1, ValueError, "from 0 to 65535"),
        ("backlog", 65536, ValueError, "from 0 to 65535"),
        ("backlog", "5", TypeError, "an int"),
        ("user_timeout", 0, ValueError, "from 0.001 to 2147483 seconds"),
        ("linger", -0.1, ValueError, "from 0 to 65535 seconds"),
        ("linger", float("nan"), ValueError, "from 0 to 65535 seconds"),
        ("linger", float("inf"), ValueError, "from 0 to 65535 seconds"),
        ("linger", True, TypeError, "a number of seconds"),
        ("linger", "1", TypeError, "a number of seconds"),
        ("keepalive", 60, TypeError, "True, False or a KeepAlive"),
        ("bind_to_device", b"lo", TypeError, "the name of an interface"),
        ("bind_to_device", "", ValueError, "1 to 15 bytes"),
        ("bind_to_device", "x" * 16, ValueError, "1 to 15 bytes"),
        ("bind_to_device", "l\0o", ValueError, "no zero"),
    ],
)
def test_bad_values(field: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{field} must .*{says}"):
        SocketOptions(**{field: value})


@pytest.mark.no_ring
@pytest.mark.parametrize(("field", "most"), [("idle", 32767), ("interval", 32767), ("count", 127)])
def test_bad_times(field: str, most: int) -> None:
    for bad in (0, most + 1):
        with pytest.raises(ValueError, match=f"^{field} must be from 1 to {most}"):
            KeepAlive(**{field: bad})
    with pytest.raises(TypeError, match=f"^{field} must be an int"):
        KeepAlive(**{field: 1.5})  # type: ignore[arg-type]
    for good in (1, most, None):
        assert getattr(KeepAlive(**{field: good}), field) == good


@pytest.mark.no_ring
def test_it_is_a_value() -> None:
    options = SocketOptions(linger=2.5, keepalive=KeepAlive(idle=9), bind_to_device="eth0")
    assert options == dataclasses.replace(SocketOptions(reuse_port=True), **vars_of(options))
    assert hash(options) == hash(pickle.loads(pickle.dumps(options)))
    assert SocketOptions(**vars_of(options)) == options != SocketOptions()
    with pytest.raises(AttributeError):
        options.linger = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        SocketOptions(False)  # type: ignore[misc]


def vars_of(options: SocketOptions) -> dict[str, Any]:
    return {one.name: getattr(options, one.name) for one in dataclasses.fields(options)}


# -- shorthands


@pytest.mark.no_ring
def test_shorthands_are_folded_in() -> None:
    options = SocketOptions(nodelay=False, backlog=5)
    assert fold_options(options, nodelay=True, backlog=None, reuse_port=False) is options
    assert fold_options(options, backlog=5, reuse_port=1) == SocketOptions(
        nodelay=False, backlog=5, reuse_port=True
    )
    assert fold_options(None, linger=0) == SocketOptions(linger=0)
    assert fold_options(None) is fold_options(None)
    # as trio takes it
    assert [fold_options(None, backlog=n).backlog for n in (-1, 0, 70000)] == [0, 0, 65535]
    with pytest.raises(TypeError, match=r"options must be SocketOptions or None, not {}"):
        fold_options({})  # type: ignore[arg-type]


BACKLOG = SocketOptions(backlog=7)
CALLS: list[Callable[[], Any]] = [
    lambda: trio_uring.open_tcp_listeners(0, backlog=5, options=BACKLOG),
    lambda: trio_uring.serve_tcp(trio.sleep, 0, backlog=5, options=BACKLOG),
    lambda: trio_uring.open_ssl_over_tcp_listeners(0, None, backlog=5, options=BACKLOG),  # type: ignore[arg-type]
    lambda: trio_uring.serve_ssl_over_tcp(trio.sleep, 0, None, backlog=5, options=BACKLOG),  # type: ignore[arg-type]
    lambda: trio_uring.open_unix_listeners("x", backlog=5, options=BACKLOG),
    lambda: trio_uring.serve_unix(trio.sleep, "x", backlog=5, options=BACKLOG),
]


@pytest.mark.parametrize("index", range(len(CALLS)))
async def test_a_shorthand_that_contradicts(index: int) -> None:
    with pytest.raises(ValueError, match="backlog=5 contradicts backlog=7 of the options"):
        await CALLS[index]()


@pytest.mark.no_ring
def test_a_networks_shorthands() -> None:
    for name, field in (("so_linger", "linger"), ("backlog", "backlog")):
        with pytest.raises(ValueError, match=f"{field}=5 contradicts {field}=7 of the options"):
            NetworkConfig(**{name: 5}, options=SocketOptions(**{field: 7}))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options must be SocketOptions or None"):
        NetworkConfig(options=7)  # type: ignore[arg-type]
    config = NetworkConfig(tcp_nodelay=False, so_linger=0, options=SocketOptions(reuse_port=True))
    assert config.socket_options == SocketOptions(nodelay=False, linger=0, reuse_port=True)
    # the shorthands are not in `options`, so that they can be replaced
    again = dataclasses.replace(config, tcp_nodelay=True, so_linger=5)
    assert again.socket_options == SocketOptions(linger=5, reuse_port=True)


# -- apply


@pytest.mark.no_ring
def test_what_is_set_without_a_wish() -> None:
    """On a TCP socket what it always was, in that order; on others nothing."""
    default, six = SocketOptions(), socket.AF_INET6
    reuse = (SOL, socket.SO_REUSEADDR, 1)
    only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for sock, role, told in (
        (FakeSocket(), "listening", [reuse, NODELAY, LOWAT]),
        (FakeSocket(six), "listening", [reuse, only, NODELAY, LOWAT]),
        (FakeSocket(), "connecting", []),
        (FakeSocket(), "connected", [NODELAY, LOWAT]),
        (FakeSocket(six, proto=262), "connected", [NODELAY, LOWAT]),  # MPTCP
        (FakeSocket(proto=132), "connected", []),  # SCTP
        (FakeSocket(kind=socket.SOCK_DGRAM), "datagram", []),
        (FakeSocket(socket.AF_UNIX), "listening", []),
        (FakeSocket(socket.AF_UNIX), "connected", []),
    ):
        default.apply(sock, role)  # type: ignore[arg-type]
        assert sock.told == told


@pytest.mark.no_ring
def test_an_unknown_role() -> None:
    with pytest.raises(ValueError, match=r"role must be one of listening, .*, not 'server'"):
        SocketOptions().apply(FakeSocket(), "server")  # type: ignore[arg-type]


@pytest.mark.no_ring
def test_linger_is_rounded_up_and_windows_has_other_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seconds, whole in ((0, 0), (0.001, 1), (2.5, 3)):
        sock = FakeSocket()
        SocketOptions(linger=seconds).apply(sock, "connected")
        assert sock.told[-1] == (SOL, socket.SO_LINGER, struct.pack("ii", 1, whole))
    monkeypatch.setattr("sys.platform", "win32")
    sock = FakeSocket()
    SocketOptions(linger=1).apply(sock, "listening")
    assert sock.told == [NODELAY, LOWAT, (SOL, socket.SO_LINGER, struct.pack("HH", 1, 1))]


WISHES = [
    ("TCP_NODELAY", {"nodelay": False}, "connected"),
    ("TCP_NOTSENT_LOWAT", {"notsent_lowat": 5}, "connected"),
    ("TCP_KEEPIDLE", {"keepalive": KeepAlive(idle=5)}, "connected"),
    ("TCP_KEEPCNT", {"keepalive": KeepAlive(count=5)}, "listening"),
    ("SO_REUSEPORT", {"reuse_port": True}, "listening"),
    ("SO_BINDTODEVICE", {"bind_to_device": "lo"}, "connecting"),
]


@pytest.mark.no_ring
@pytest.mark.parametrize(("name", "wish", "role"), WISHES)
def test_a_platform_without_it(
    monkeypatch: pytest.MonkeyPatch, name: str, wish: dict[str, Any], role: Any
) -> None:
    """A default is not missed, a wish is."""
    monkeypatch.delattr(socket, name)
    SocketOptions().apply(FakeSocket(), role)
    (field,) = wish
    with pytest.raises(OSError, match=rf"set {field}=.* \({name}\): this platform") as caught:
        SocketOptions(**wish).apply(FakeSocket(), role)
    assert caught.value.errno == errno.ENOPROTOOPT


@pytest.mark.no_ring
@pytest.mark.parametrize(("name", "wish", "role"), WISHES)
def test_a_kernel_that_refuses(name: str, wish: dict[str, Any], role: Any) -> None:
    refused = {getattr(socket, name): errno.EPERM}
    SocketOptions().apply(FakeSocket(refused=refused), role)
    with pytest.raises(PermissionError, match=rf"\({name}\): Operation not permitted"):
        SocketOptions(**wish).apply(FakeSocket(refused=refused), role)


@pytest.mark.no_ring
def test_a_kernel_that_refuses_what_trio_does_not_do_without() -> None:
    refused = {socket.SO_REUSEADDR: errno.EINVAL}
    with pytest.raises(OSError, match="reuse_address"):
        SocketOptions().apply(FakeSocket(refused=refused), "listening")


@pytest.mark.no_ring
def test_macos_has_another_name_for_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 0x10, raising=False)
    sock = FakeSocket()
    SocketOptions(keepalive=KeepAlive(idle=5)).apply(sock, "connected")
    assert sock.told[-1] == (TCP, 0x10, 5)


@pytest.mark.no_ring
def test_a_peer_that_has_hung_up() -> None:
    """macOS refuses options of TCP then, and getpeername too; the first receive tells."""
    options = SocketOptions(nodelay=False, keepalive=True)
    refused = {socket.TCP_NODELAY: errno.EINVAL}
    gone = FakeSocket(refused=refused, gone=True)
    options.apply(gone, "connected")
    assert gone.told == [LOWAT, (SOL, socket.SO_KEEPALIVE, 1)]
    for role, peer_is_gone in (("connected", False), ("listening", True)):
        with pytest.raises(OSError, match="nodelay=False"):
            options.apply(FakeSocket(refused=refused, gone=peer_is_gone), role)  # type: ignore[arg-type]


# -- at the entry points


async def test_an_option_that_cannot_be_had_ends_the_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no matter of addresses: the error is not hidden in a group of theirs."""
    real, made = trio.socket.socket, []

    def sock(*args: Any) -> Any:
        made.append(real(*args))
        return made[-1]

    async def two(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 9))] * 2

    monkeypatch.setattr(trio.socket, "socket", sock)
    monkeypatch.setattr(trio.socket, "getaddrinfo", two)
    options = SocketOptions(bind_to_device="nowhere")
    with pytest.raises(OSError, match="bind_to_device='nowhere'"):
        await trio_uring.open_tcp_stream("two.example", 9, options=options)
    assert [one.fileno() for one in made] == [-1]


async def test_where_connections_inherit_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "sys", types.SimpleNamespace(platform="darwin"))
    options = SocketOptions(nodelay=False, linger=3)
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1", options=options)
    async with listener:
        for level, name, value in ((TCP, socket.TCP_NODELAY, 1), (SOL, socket.SO_LINGER, bytes(8))):
            listener.socket.setsockopt(level, name, value)
        with socket.create_connection(listener.socket.getsockname()):
            async with await listener.accept() as stream:
                assert stream.getsockopt(TCP, socket.TCP_NODELAY) == 0
                assert stream.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 3)
                stream.setsockopt(SOL, socket.SO_LINGER, bytes(8))  # or its close would block


async def test_a_connection_that_cannot_have_them_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "sys", types.SimpleNamespace(platform="darwin"))
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        listener._to_accepted = SocketOptions(notsent_lowat=7)
        monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT")
        with socket.create_connection(listener.socket.getsockname()) as peer:
            before = set(open_descriptors().values())
            with pytest.raises(OSError, match="notsent_lowat=7"):
                await listener.accept()
            assert peer.recv(1) == b""
            left = set(open_descriptors().values()) - before
            assert not [name for name in left if name.startswith("socket:")]


@pytest.mark.parametrize("kind", [UringNetwork, TrioNetwork])
async def test_a_networks_aclose_lingers_and_not_its_socket(kind: Any) -> None:
    """More than 0 would block the thread in close(2)."""
    network = kind(NetworkConfig(options=SocketOptions(linger=0.25)))
    listener = await network.bind(("127.0.0.1", 0))
    client, server = await connect(network, listener)
    async with closing(listener, client, server):
        for end in (client, server):
            assert end._seconds == 0.25
            assert socket_of(end).getsockopt(SOL, socket.SO_LINGER, 8) == bytes(8)


async def test_a_trio_network_leaves_the_default_lowat_to_trio() -> None:
    for options, expected in ((None, 2**14), (SocketOptions(notsent_lowat=54321), 54321)):
        network = TrioNetwork(NetworkConfig(options=options))
        listener = await network.bind(("127.0.0.1", 0))
        client, server = await connect(network, listener)
        async with closing(listener, client, server):
            for end in (client, server):
                assert socket_of(end).getsockopt(TCP, socket.TCP_NOTSENT_LOWAT) == expected


@pytest.mark.parametrize("kind", [UringNetwork, TrioNetwork])
async def test_the_backlog(kind: Any) -> None:
    options = SocketOptions(backlog=7)
    listener = await kind(NetworkConfig(options=options)).bind(("127.0.0.1", 0))
    [other] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1", options=options)
    async with closing(listener, other):
        for sock in (listener._listener.socket, other.socket):
            info = sock.getsockopt(TCP, socket.TCP_INFO, 104)
            assert struct.unpack_from("=I", info, 28) == (7,)


async def test_a_simulated_network_knows_linger_and_backlog() -> None:
    network = SimulatedNetwork(config=NetworkConfig(options=SocketOptions(linger=0, backlog=1)))
    listener = await network.bind(("server", 7))
    client = await network.dial(("server", 7))
    assert not listener.has_room  # type: ignore[attr-defined]
    server = await listener.accept()
    await client.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    await server.aclose()
    await listener.aclose()
