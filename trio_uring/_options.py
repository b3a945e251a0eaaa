"""Socket options: one frozen value, and the one place that sets them.

Rules of this file: each field of SocketOptions that is an option of the kernel has a row in _ROWS,
which says on which sockets and when it is set, and which values it takes. A field that has its
default says nothing: equal values have to do the same, so an explicit default is not a request.
This file knows no ring, no stream and no trio.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import operator
import socket as stdlib_socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

Role = Literal["listening", "connecting", "connected", "datagram"]
"""What a socket is about to be used for: see SocketOptions.apply."""

BACKLOG_MAX = 65535  # some systems silently keep only 16 bits of the number
_SECONDS_MAX = 65535  # the most that Windows takes for SO_LINGER
_INT_MAX = 2**31 - 1
_NOTHING: tuple[int | bytes | None, ...] = ()  # what to set, for each row; None: leave it alone
_DEVICE_MAX = 15  # bytes; IFNAMSIZ has one more, for the zero byte

_INTERNET = (stdlib_socket.AF_INET, stdlib_socket.AF_INET6)
_TCP = (0, stdlib_socket.IPPROTO_TCP, 262)  # 0: the socket module's default; 262: IPPROTO_MPTCP


class _Socket(Protocol):
    """What we use of a socket: the socket module's, trio's, or one of some other class."""

    @property
    def family(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def proto(self) -> int: ...
    def getpeername(self) -> Any: ...
    def setsockopt(self, level: int, optname: int, value: int | bytes, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class KeepAlive:
    """When TCP asks an idle peer whether it is still there, and when it gives up.

    Raises:
        TypeError, ValueError: a value that the kernel could not use.
    """

    idle: int | None = None
    """Seconds of silence before the first probe (TCP_KEEPIDLE), 1 to 32,767; None: the system's
    (Linux: two hours)."""
    interval: int | None = None
    """Seconds between probes (TCP_KEEPINTVL), 1 to 32,767; None: the system's (Linux: 75)."""
    count: int | None = None
    """Unanswered probes after which the connection is broken (TCP_KEEPCNT), 1 to 127; None: the
    system's (Linux: 9)."""

    def __post_init__(self) -> None:
        for name, high in (("idle", 32767), ("interval", 32767), ("count", 127)):
            _whole(1, high)(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SocketOptions:
    """Socket options as one value, for everything that opens a stream, listener, network or socket.

    A field is set only where it means something: TCP's not on Unix sockets, those of listeners not
    on connections. Elsewhere it is ignored, so that one value can serve a whole program.
    Connections have the options of their listener.

    Raises:
        TypeError, ValueError: a value that no socket could have.
    """

    nodelay: bool = True
    """TCP: small sends leave at once (TCP_NODELAY)."""
    notsent_lowat: int | None = 2**20
    """TCP: bytes that may wait unsent in the socket before a send waits (TCP_NOTSENT_LOWAT), at
    least 1. None: the system's choice, which is no limit but the buffer. trio sets 16 KiB, which
    wakes a bulk sender for every few packets."""
    keepalive: bool | KeepAlive = False
    """TCP: an idle peer is asked whether it is still there (SO_KEEPALIVE). True: with the
    system's timings; a KeepAlive has its own."""
    user_timeout: float | None = None
    """TCP: seconds, 0.001 to 2,147,483, after which the connection is broken if the peer does not
    acknowledge what was sent (TCP_USER_TIMEOUT; Linux only); None: the system's choice (about
    15 minutes). With `keepalive`, it replaces the count."""
    linger: float | None = None
    """TCP: seconds, 0 to 65,535. None: a close returns at once, and the system goes on delivering.
    0: a close resets the connection (RST), and drops what was not sent.

    Above 0: on a network's stream, aclose waits at most this long until the peer has everything (a
    SimulatedNetwork delivers without waiting). Everywhere else it is the kernel's option
    (SO_LINGER), in whole seconds, rounded up: close(2) blocks the thread meanwhile, and with it
    every task of the run."""
    reuse_address: bool = True
    """TCP listeners: a port can be listened on again while connections of an earlier server linger
    (SO_REUSEADDR). Never set on Windows, where it lets two servers share a port."""
    reuse_port: bool = False
    """TCP listeners and UDP: several sockets of one user may have the same port, if all of them ask
    for it, and the kernel spreads the connections or datagrams over them (SO_REUSEPORT). When a
    listener is closed, the connections in its backlog are reset."""
    ipv6_only: bool = True
    """TCP listeners on IPv6: they take no connections over IPv4 (IPV6_V6ONLY). False: a listener on
    "::" takes both, and nothing else can listen on that port over IPv4."""
    backlog: int | None = None
    """Listeners: connections that may wait to be accepted, 0 to 65,535; None: as many as the system
    allows."""
    bind_to_device: str | None = None
    """TCP and UDP: the name of the network interface that everything goes through, such as "eth0",
    at most 15 bytes (SO_BINDTODEVICE; Linux only, and before 5.7 only with CAP_NET_RAW)."""
    receive_buffer: int | None = None
    """Bytes of the socket's receive buffer (SO_RCVBUF), at least 1; None: the system's choice,
    which for TCP grows as needed. Linux silently cuts the number to net.core.rmem_max, and doubles
    it for its own bookkeeping."""
    send_buffer: int | None = None
    """Bytes of the socket's send buffer (SO_SNDBUF), like `receive_buffer`; the limit is
    net.core.wmem_max."""
    broadcast: bool = False
    """UDP: sending to broadcast addresses is allowed (SO_BROADCAST)."""
    _told = _NOTHING  # what to set, for each of _ROWS; not a field

    def __post_init__(self) -> None:
        told = tuple(row.encode(row.field, getattr(self, row.field)) for row in _ROWS)
        _whole(0, BACKLOG_MAX)("backlog", self.backlog)
        object.__setattr__(self, "_told", told)

    def apply(self, sock: _Socket, role: Role) -> None:
        """Sets the options that make sense for a socket.

        Args:
            sock: a stream or datagram socket, of the standard library or trio.
            role: what it is about to be used for.
                "listening": to be set before bind(2). `backlog` is for listen(2), which the caller
                calls.
                "connecting": what has to be set before bind(2) and connect(2).
                "connected": everything else, after connect(2); also after accept(2), if the
                listener's options are not inherited (on Linux all but the buffers of Unix sockets
                are).
                "datagram": to be set before bind(2).

        Raises:
            OSError: an option that differs from the default cannot be set; the message names it.
                ENOPROTOOPT: this platform does not have it; EPERM: it needs a privilege; ENODEV:
                there is no such device; others as for setsockopt(2). On a connection that is
                already gone, failures are ignored: the first receive reports it.
            ValueError: there is no such role.
        """
        if role not in _ROWS_OF:
            raise ValueError(f"role must be one of {', '.join(_ROWS_OF)}, not {role!r}")
        kinds = _kinds_of(sock)
        for index in _ROWS_OF[role]:
            value = self._told[index]
            if value is not None and _ROWS[index].kind in kinds:
                self._set(sock, role, _ROWS[index], value)

    def _set(self, sock: _Socket, role: Role, row: _Row, value: int | bytes) -> None:
        option = _number_of(row.names)
        try:
            if option is None:
                raise OSError(errno.ENOPROTOOPT, "this platform does not have it")
            sock.setsockopt(row.level, option, value)
        except OSError as exc:
            wish = getattr(self, row.field)
            if row.optional and wish == _DEFAULTS[row.field]:
                return
            # macOS and Windows refuse options once the peer has hung up
            if role == "connected" and _is_gone(sock):
                return
            what = f"cannot set {row.field}={wish!r} ({row.names[0]})"
            raise OSError(exc.errno, f"{what}: {exc.strerror or exc}") from exc

    @property
    def backlog_length(self) -> int:
        """The backlog to pass to listen(2)."""
        return BACKLOG_MAX if self.backlog is None else self.backlog


def fold_options(options: SocketOptions | None, **shorthands: Any) -> SocketOptions:
    """The options of a call that also has keyword arguments for some of them.

    Args:
        options: the call's argument; None: the defaults.
        shorthands: fields by name. A value that is the field's default says nothing; `backlog` is
            converted as trio does it.

    Raises:
        ValueError: a shorthand and the options contradict each other.
        TypeError: `options` is something else, or the backlog is not an int.
    """
    if options is None:
        options = DEFAULT_OPTIONS
    elif not isinstance(options, SocketOptions):
        raise TypeError(f"options must be SocketOptions or None, not {options!r}")
    said = {}
    for name, value in shorthands.items():
        default, ours = _DEFAULTS[name], getattr(options, name)
        if name == "backlog":
            value = _trios_backlog(value)
        elif isinstance(default, bool):
            value = bool(value)
        if value != default:
            if ours not in (default, value):
                raise ValueError(f"{name}={value!r} contradicts {name}={ours!r} of the options")
            said[name] = value
    return dataclasses.replace(options, **said) if said else options


def _trios_backlog(backlog: Any) -> int | None:
    """The field for a backlog as trio takes it: any int, as listen(2) does."""
    if not isinstance(backlog, int) and backlog is not None:
        raise TypeError(f"backlog must be an int or None, not {backlog!r}")
    return None if backlog is None else max(0, min(int(backlog), BACKLOG_MAX))


# -- from values to what setsockopt(2) takes: None leaves the option alone


def _flag(name: str, value: object) -> int:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return int(value)


def _if_on(name: str, value: object) -> int | None:
    return _flag(name, value) or None


def _address_reuse(name: str, value: object) -> int | None:
    on = _if_on(name, value)
    return None if sys.platform == "win32" else on


def _whole(low: int, high: int) -> Callable[[str, Any], int | None]:
    def encode(name: str, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an int or None, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, or None, not {value!r}")
        return operator.index(value)

    return encode


def _seconds(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high} seconds, or None, not {value!r}")


def _milliseconds(name: str, value: Any) -> int | None:
    if value is None:
        return None
    _seconds(name, value, 0.001, _INT_MAX // 1000)
    return round(1000 * float(value))


def _linger(name: str, value: Any) -> bytes | None:
    if value is None:
        return None
    _seconds(name, value, 0, _SECONDS_MAX)
    # rounded up, since 0 means something else
    return struct.pack("HH" if sys.platform == "win32" else "ii", 1, math.ceil(value))


def _keepalive(name: str, value: object) -> int | None:
    if not isinstance(value, (bool, KeepAlive)):
        raise TypeError(f"{name} must be True, False or a KeepAlive, not {value!r}")
    return 1 if value else None


def _part(part: str) -> Callable[[str, Any], int | None]:
    """One number of a KeepAlive."""

    def encode(name: str, value: object) -> int | None:
        return getattr(value, part) if isinstance(value, KeepAlive) else None

    return encode


def _device(name: str, value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name of an interface or None, not {value!r}")
    encoded = value.encode()
    if not 1 <= len(encoded) <= _DEVICE_MAX or b"\0" in encoded:
        raise ValueError(f"{name} must have 1 to {_DEVICE_MAX} bytes and no zero, not {value!r}")
    return encoded + b"\0"


# -- where and when they are set


class _Row(NamedTuple):
    """An option of the kernel."""

    field: str  # of SocketOptions
    level: int
    names: tuple[str, ...]  # in the socket module; the first that this platform has
    kind: str  # of sockets: see _kinds_of
    roles: tuple[Role, ...]
    encode: Callable[[str, Any], int | bytes | None]
    optional: bool = False  # if the default cannot be set, that is no error


_SOCKET, _TCP_LEVEL = stdlib_socket.SOL_SOCKET, stdlib_socket.IPPROTO_TCP
_STREAMS: tuple[Role, ...] = ("listening", "connected")
_BEFORE: tuple[Role, ...] = ("listening", "connecting", "datagram")
# After accept(2), too: those of a Unix listener are not inherited.
_ALWAYS: tuple[Role, ...] = (*_BEFORE, "connected")
_SIZE = _whole(1, _INT_MAX)  # bytes
_KEEPIDLE = ("TCP_KEEPIDLE", "TCP_KEEPALIVE")  # the latter on macOS

# In the order in which they are set on a socket.
_ROWS = (
    _Row("reuse_address", _SOCKET, ("SO_REUSEADDR",), "tcp", ("listening",), _address_reuse),
    _Row("reuse_port", _SOCKET, ("SO_REUSEPORT",), "internet", ("listening", "datagram"), _if_on),
    _Row("broadcast", _SOCKET, ("SO_BROADCAST",), "internet", ("datagram",), _if_on),
    _Row("ipv6_only", stdlib_socket.IPPROTO_IPV6, ("IPV6_V6ONLY",), "ipv6", ("listening",), _flag),
    _Row("bind_to_device", _SOCKET, ("SO_BINDTODEVICE",), "internet", _BEFORE, _device),
    _Row("receive_buffer", _SOCKET, ("SO_RCVBUF",), "any", _ALWAYS, _SIZE),
    _Row("send_buffer", _SOCKET, ("SO_SNDBUF",), "any", _ALWAYS, _SIZE),
    _Row("nodelay", _TCP_LEVEL, ("TCP_NODELAY",), "tcp", _STREAMS, _flag, True),
    _Row("notsent_lowat", _TCP_LEVEL, ("TCP_NOTSENT_LOWAT",), "tcp", _STREAMS, _SIZE, True),
    _Row("keepalive", _SOCKET, ("SO_KEEPALIVE",), "tcp", _STREAMS, _keepalive),
    _Row("keepalive", _TCP_LEVEL, _KEEPIDLE, "tcp", _STREAMS, _part("idle")),
    _Row("keepalive", _TCP_LEVEL, ("TCP_KEEPINTVL",), "tcp", _STREAMS, _part("interval")),
    _Row("keepalive", _TCP_LEVEL, ("TCP_KEEPCNT",), "tcp", _STREAMS, _part("count")),
    _Row("user_timeout", _TCP_LEVEL, ("TCP_USER_TIMEOUT",), "tcp", _STREAMS, _milliseconds),
    _Row("linger", _SOCKET, ("SO_LINGER",), "tcp", _STREAMS, _linger),
)
_ROWS_OF = {
    role: [index for index, row in enumerate(_ROWS) if role in row.roles]
    for role in ("listening", "connecting", "connected", "datagram")
}
_DEFAULTS: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(SocketOptions)}

DEFAULT_OPTIONS = SocketOptions()


def _kinds_of(sock: _Socket) -> tuple[str, ...]:
    family = sock.family
    if family not in _INTERNET:
        return ("any",)
    kinds = ("any", "internet", "ipv6") if family == _INTERNET[1] else ("any", "internet")
    is_tcp = sock.proto in _TCP and sock.type == stdlib_socket.SOCK_STREAM
    return (*kinds, "tcp") if is_tcp else kinds


def _number_of(names: tuple[str, ...]) -> int | None:
    for name in names:
        if (option := getattr(stdlib_socket, name, None)) is not None:
            return int(option)
    return None


def _is_gone(sock: _Socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return True
    return False
