"""Opening connections and listeners, with trio's signatures.

Rules of this file: what trio does well is left to trio (name resolution); the race of connects is
ours. Sockets are made by trio.socket.socket, so that a custom socket factory is
used, and become ours before they wait. Listening sockets are opened as trio does it, by a copy of
its code, since trio's has no room for options that must be set before bind(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import sys
from typing import TYPE_CHECKING, Any

import trio

from .._descriptors.direction import AF_UNIX
from .._options import SocketOptions, fold_options
from .endpoint import adopt_socket, make_over
from .listeners import SocketListener, listener_over
from .streams import SocketStream
from .unix import NO_UNIX_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info < (3, 11):
    # a dependency of trio's
    from exceptiongroup import ExceptionGroup  # pyright: ignore[reportMissingImports]

DEFAULT_DELAY = 0.250  # seconds; trio's happy eyeballs delay


async def open_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = DEFAULT_DELAY,
    local_address: str | None = None,
    options: SocketOptions | None = None,
) -> SocketStream:
    """Connects to a host and port over TCP, trying its addresses as trio.open_tcp_stream does (RFC
    6555).

    Args:
        host: an IPv4 address, an IPv6 address or a hostname.
        port: the port.
        happy_eyeballs_delay: seconds to wait for one attempt before the next is started as well;
            None: 0.25.
        local_address: the local address to connect from; None: the system's choice.
        options: the socket's options; None: the defaults of SocketOptions.

    Raises:
        OSError: no attempt succeeded, and the cause is an exception group with the error of each;
            or an option is not available, see SocketOptions.apply.
        TypeError, ValueError: an argument has a wrong type.
        RingUnavailableError: there is no ring: see trio_uring.backend_info().

    Cancellation: all sockets opened so far are closed.
    """
    options = fold_options(options)
    sock = await connect_tcp(
        host,
        port,
        lambda made: adopt_socket(made, "open_tcp_stream"),
        options,
        happy_eyeballs_delay,
        local_address,
    )
    try:
        options.apply(sock, "connected")
        return make_over(SocketStream, sock, options=False)
    except BaseException:
        sock.close()
        raise


async def connect_tcp(
    host: str | bytes,
    port: int,
    adopt: Callable[[trio.socket.SocketType], trio.socket.SocketType],
    options: SocketOptions,
    happy_eyeballs_delay: float | None = DEFAULT_DELAY,
    local_address: str | None = None,
) -> trio.socket.SocketType:
    """Returns a connected socket; open_tcp_stream documents the rest.

    Args:
        adopt: called with each new socket; returns the socket to use.
        options: the socket's options. Those of the role "connected" are left to the caller.
    """
    if not isinstance(host, (str, bytes)):
        raise ValueError(f"host must be str or bytes, not {host!r}")
    if not isinstance(port, int):
        raise TypeError(f"port must be int, not {port!r}")
    targets = await trio.socket.getaddrinfo(host, port, type=stdlib_socket.SOCK_STREAM)
    where = _format_host_port(host, port)
    if not targets:
        raise OSError(f"no results found for hostname lookup: {where}")
    _alternate_families(targets)
    race = _Race(adopt, options, local_address)
    delay = DEFAULT_DELAY if happy_eyeballs_delay is None else happy_eyeballs_delay
    try:
        await race.run(targets, delay)
        if race.refused is not None:
            raise race.refused
        if race.winner is None:
            message = f"all attempts to connect to {where} failed"
            raise OSError(message) from ExceptionGroup(message, race.errors)
        return race.winner
    except BaseException:
        if race.winner is not None:
            race.winner.close()
        raise


class _Race:
    """The attempts of one open_tcp_stream: the first to connect wins, the others are cancelled."""

    def __init__(
        self,
        adopt: Callable[[trio.socket.SocketType], trio.socket.SocketType],
        options: SocketOptions,
        local_address: str | None,
    ) -> None:
        self._adopt = adopt
        self._options = options
        self._local_address = local_address
        self.errors: list[OSError] = []
        # The error of an option that is not available. No other address helps, so the race ends.
        self.refused: OSError | None = None
        self.winner: trio.socket.SocketType | None = None

    async def run(self, targets: list[Any], delay: float) -> None:
        async with trio.open_nursery() as nursery:
            for family, kind, proto, _, address in targets:
                failed = trio.Event()
                nursery.start_soon(
                    self._attempt, (family, kind, proto), address, failed, nursery.cancel_scope
                )
                with trio.move_on_after(delay):
                    await failed.wait()

    async def _attempt(
        self, kind: tuple[int, int, int], address: Any, failed: trio.Event, race: trio.CancelScope
    ) -> None:
        try:
            sock = self._adopt(trio.socket.socket(*kind))
            try:
                self._set_options(sock, race)
                await self._bind(sock, address)
                await sock.connect(address)
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            self.errors.append(exc)
            failed.set()
            return
        if self.winner is None:
            self.winner = sock
            race.cancel()
        else:
            sock.close()

    def _set_options(self, sock: trio.socket.SocketType, race: trio.CancelScope) -> None:
        try:
            self._options.apply(sock, "connecting")
        except OSError as exc:
            self.refused = exc
            race.cancel()
            raise

    async def _bind(self, sock: trio.socket.SocketType, address: Any) -> None:
        if self._local_address is None:
            return
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                sock.setsockopt(stdlib_socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        try:
            await sock.bind((self._local_address, 0))
        except OSError:
            raise OSError(
                f"local_address={self._local_address!r} is incompatible with remote address "
                f"{address!r}"
            ) from None


def _alternate_families(targets: list[Any]) -> None:
    """Puts an address of another family second, if there is one (RFC 6555, section 5.4)."""
    for index, target in enumerate(targets):
        if target[0] != targets[0][0]:
            targets.insert(1, targets.pop(index))
            break


def _format_host_port(host: str | bytes, port: int | str) -> str:
    host = host.decode("ascii") if isinstance(host, bytes) else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_unix_socket(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    options: SocketOptions | None = None,
) -> SocketStream:
    """Connects to a Unix socket (trio.open_unix_socket).

    Args:
        filename: the path of the socket.
        options: the socket's options; None: the defaults of SocketOptions.

    Raises:
        OSError: the connection failed.
        RuntimeError: this platform has no Unix sockets (Windows).

    Cancellation: the socket is closed.
    """
    if AF_UNIX is None:
        raise RuntimeError(NO_UNIX_SOCKETS)
    options = fold_options(options)
    path = os.fspath(filename)
    made = trio.socket.socket(AF_UNIX, stdlib_socket.SOCK_STREAM)
    sock = adopt_socket(made, "open_unix_socket")
    try:
        options.apply(sock, "connecting")
        await sock.connect(path)
        _check_connected(sock)
        return make_over(SocketStream, sock, options=False)
    except BaseException:
        sock.close()
        raise


def _check_connected(sock: trio.socket.SocketType) -> None:
    """Raises BlockingIOError where trio's connect returns although the server's backlog is full."""
    try:
        sock.getpeername()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None


async def open_tcp_listeners(
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    reuse_port: bool = False,
    options: SocketOptions | None = None,
) -> list[SocketListener]:
    """Opens listeners for TCP connections, with trio.open_tcp_listeners's arguments and errors.

    Args:
        port: the port; 0: the kernel chooses one for each address.
        host: the local interface; None: the wildcard addresses of IPv4 and IPv6.
        backlog, reuse_port: shorthands for these fields of `options`.
        options: options of the listeners, and so of their connections; None: the defaults of
            SocketOptions.

    Raises:
        OSError: an option is not available, see SocketOptions.apply; otherwise as in trio.
        ValueError: `backlog` contradicts the options.

    Cancellation: the listeners opened so far are closed.
    """
    if not isinstance(port, int):
        raise TypeError(f"port must be an int not {port!r}")
    options = fold_options(options, backlog=backlog, reuse_port=reuse_port)
    kind, flags = stdlib_socket.SOCK_STREAM, stdlib_socket.AI_PASSIVE
    listeners: list[SocketListener] = []
    unsupported: list[OSError] = []
    try:
        for family, type_, proto, _, address in await trio.socket.getaddrinfo(
            host, port, type=kind, flags=flags
        ):
            try:
                sock = trio.socket.socket(family, type_, proto)
            except OSError as exc:
                if exc.errno != errno.EAFNOSUPPORT:
                    raise
                # A system with only IPv4 may still resolve to IPv6, or the other way round.
                unsupported.append(exc)
            else:
                listeners.append(await _listen(sock, address, options))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    if unsupported and not listeners:
        message = (
            "This system doesn't support any of the kinds of socket that that address could use"
        )
        raise OSError(errno.EAFNOSUPPORT, message) from ExceptionGroup(message, unsupported)
    return listeners


async def _listen(
    sock: trio.socket.SocketType, address: Any, options: SocketOptions
) -> SocketListener:
    try:
        options.apply(sock, "listening")
        await sock.bind(address)
        sock.listen(options.backlog_length)
        return listener_over(sock, options)
    except BaseException:
        sock.close()
        raise
