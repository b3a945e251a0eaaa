"""The networks that use sockets: on the ring, and on plain trio.

Rules of this file: both make the same sockets with the same options in the same order; only what
drives them differs. TrioNetwork never touches the ring.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import socket as stdlib_socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import trio

from .._bytes.timed import within
from .._messages.vectored import counting
from .._options import DEFAULT_OPTIONS
from .._streams.listeners import SocketListener, listener_over
from .._streams.tcp import connect_tcp, open_tcp_stream
from .network import (
    Address,
    BufferedNetworkStream,
    Network,
    NetworkConfig,
    NetworkListener,
    NetworkStream,
    check_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._streams.streams import SocketStream

_TCP_CLOSE = 7  # the state of a connection that the peer has reset (linux/tcp_states.h)


class LingeringStream(BufferedNetworkStream):
    """A stream whose aclose waits until the peer has everything, for at most `linger` seconds.

    Those are of its network's options. The socket option itself is no use here, since close(2)
    would block the thread and so every task. Instead the stream closes as always, while a second
    descriptor keeps the socket until the kernel has nothing left to send or the time is up.
    """

    def __init__(
        self, transport: Any, config: NetworkConfig, local_address: Address, remote_address: Address
    ) -> None:
        super().__init__(transport, config, local_address, remote_address)
        self._seconds = config.socket_options.linger or 0

    async def aclose(self) -> None:
        last = self._duplicate()
        try:
            await super().aclose()
            if last is not None:
                with contextlib.suppress(OSError), trio.move_on_after(self._seconds):
                    # The FIN, which closing the first descriptor did not send.
                    last.shutdown(stdlib_socket.SHUT_WR)
                    pause = 0.001
                    while _unsent(last):
                        await trio.sleep(pause)
                        pause = min(2 * pause, 0.05)
        finally:
            if last is not None:
                last.close()

    def _duplicate(self) -> stdlib_socket.socket | None:
        """The socket with a second descriptor; None: it is closed already, or there are no
        descriptors left."""
        transport: Any = self.transport
        sock = transport.socket
        try:
            return stdlib_socket.fromfd(sock.fileno(), sock.family, sock.type, sock.proto)
        except (OSError, ValueError):
            return None


def _unsent(sock: stdlib_socket.socket) -> int:
    """Bytes that the peer has not acknowledged; 0 (so nobody waits) where the system does not
    tell."""
    if sys.platform != "linux":
        return 0
    if sock.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
        return 0
    import fcntl
    import termios

    unsent: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return unsent


class SocketNetworkListener(NetworkListener):
    """Accepts on a socket, and makes each connection a stream of the network."""

    def __init__(
        self, network: SocketNetwork, listener: trio.abc.Listener[Any], local_address: Address
    ) -> None:
        self._network = network
        self._listener = listener
        self._local_address = local_address

    @property
    def local_address(self) -> Address:
        return self._local_address

    async def accept(self) -> NetworkStream:
        return await self._network.stream(await self._listener.accept(), None)

    async def aclose(self) -> None:
        await self._listener.aclose()


class SocketNetwork(Network):
    """What the networks that use sockets have in common.

    Args:
        config: how connections are made; None: the defaults.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        self.config: NetworkConfig = config or NetworkConfig()
        options = self.config.socket_options
        self._lingers = bool(options.linger)  # above 0, aclose does it: see LingeringStream
        self._options = dataclasses.replace(options, linger=None) if self._lingers else options

    async def bind(self, address: Address) -> NetworkListener:
        host, port = check_address(address)
        with _names_checked(host):
            targets = await trio.socket.getaddrinfo(
                host or "0.0.0.0",
                port,
                type=stdlib_socket.SOCK_STREAM,
                flags=stdlib_socket.AI_PASSIVE,
            )
        family, kind, proto, _, where = targets[0]
        sock = stdlib_socket.socket(family, kind, proto)
        try:
            self._options.apply(sock, "listening")
            sock.bind(where)
            sock.listen(self._options.backlog_length)
            return SocketNetworkListener(self, self._listener(sock), _address(sock.getsockname()))
        except OSError as exc:
            sock.close()
            raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise

    async def dial(self, address: Address) -> NetworkStream:
        host, port = check_address(address)
        timeout = self.config.connect_timeout
        with within(timeout, f"{host}:{port}", "dial"), _names_checked(host):
            try:
                transport = await self._connect(host, port)
            except OSError as exc:
                raise _one_error(exc, host, port) from exc.__cause__
        return await self.stream(transport, (host, port))

    async def stream(self, transport: Any, remote_address: Address | None) -> NetworkStream:
        """Makes the stream over a new connection. If that fails, the connection is closed."""
        sock = transport.socket
        try:
            local = _address(sock.getsockname())
            # If the peer is gone already, the first receive will say so.
            with contextlib.suppress(OSError):
                remote_address = _address(sock.getpeername())
            make = LingeringStream if self._lingers else BufferedNetworkStream
            return make(self._transport(transport), self.config, local, remote_address or ("", 0))
        except BaseException:
            await trio.aclose_forcefully(transport)
            raise

    # -- what differs

    @abc.abstractmethod
    def _listener(self, sock: stdlib_socket.socket) -> trio.abc.Listener[Any]:
        """Makes the listener over a listening socket."""

    @abc.abstractmethod
    async def _connect(self, host: str, port: int) -> Any:
        """Connects, and returns the connection's stream."""

    @abc.abstractmethod
    def _transport(self, stream: Any) -> trio.abc.HalfCloseableStream:
        """The transport over a stream from the listener or `_connect`, with its options set."""


class UringNetwork(SocketNetwork):
    """TCP on the ring."""

    def _listener(self, sock: stdlib_socket.socket) -> SocketListener:
        return listener_over(sock, self._options)

    async def _connect(self, host: str, port: int) -> SocketStream:
        return await open_tcp_stream(host, port, options=self._options)

    def _transport(self, stream: SocketStream) -> SocketStream:
        return stream


class TrioNetwork(SocketNetwork):
    """TCP over trio's own sockets and streams, for where there is no io_uring, and for comparing.

    It uses nothing that only Linux has. In an enabled run, trio's sockets and streams are ours, as
    for everybody, so that this network is on the ring, too.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__(config)
        if self._options.notsent_lowat == DEFAULT_OPTIONS.notsent_lowat:
            # trio's streams keep trio's default
            self._options = dataclasses.replace(self._options, notsent_lowat=None)

    def _listener(self, sock: stdlib_socket.socket) -> trio.SocketListener:
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    async def _connect(self, host: str, port: int) -> trio.SocketStream:
        # Not trio.open_tcp_stream, with which no options can be set before connecting.
        sock = await connect_tcp(host, port, lambda made: made, self._options)
        return trio.SocketStream(sock)

    def _transport(self, stream: trio.SocketStream) -> trio.abc.HalfCloseableStream:
        self._options.apply(stream.socket, "connected")  # after trio has set its own
        transport: trio.abc.HalfCloseableStream = counting(stream)
        return transport


@contextlib.contextmanager
def _names_checked(host: str) -> Iterator[None]:
    """Treats a name that cannot even be looked up as unknown, too."""
    try:
        yield
    except UnicodeError as exc:
        raise stdlib_socket.gaierror(
            stdlib_socket.EAI_NONAME, f"{host!r} is not a host name: {exc}"
        ) from None


def _address(name: Any) -> Address:
    """The host and port of a socket's name. A link-local IPv6 address keeps its scope, without
    which it means nothing."""
    host, port = name[:2]
    if len(name) == 4 and name[3] and "%" not in host:
        with contextlib.suppress(OSError):  # the interface may be gone
            host += "%" + stdlib_socket.if_indextoname(name[3])
    return host, port


def _one_error(error: OSError, host: str, port: int) -> OSError:
    """The error of a dial. If every attempt failed with the same errno, it has that errno and its
    class."""
    codes = {exc.errno for exc in getattr(error.__cause__, "exceptions", ())}
    if error.errno is not None or len(codes) != 1:
        return error
    code = codes.pop()
    return OSError(code, f"cannot connect to {host}:{port}: {os.strerror(code)}")
