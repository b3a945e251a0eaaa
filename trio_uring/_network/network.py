"""A network as a value: what programs bind, dial and talk through without knowing whether it is the
ring, trio or simulated.

Rules of this file: nothing here opens a socket. All networks give the same stream class,
BufferedNetworkStream, so that reads, timeouts and errors follow the same rules on all of them; they
differ in its transport alone.
"""

from __future__ import annotations

import abc
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities, abilities, sending_end
from .._bytes.outgoing import buffer_list
from .._bytes.timed import within
from .._messages.buffered import BUFFER_SIZE, BufferedReceiveStream
from .._messages.vectored import listed, send_all_vectored
from .._options import SocketOptions, fold_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

Address = tuple[str, int]
"""A host (a name, or an IPv4 or IPv6 address) and a port."""


def check_address(address: Address) -> Address:
    """The host and port of what should be a pair of them."""
    try:
        host, port = address
    except (TypeError, ValueError):
        host, port = None, None
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"an address is a pair (host, port) of str and int, not {address!r}")
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise ValueError(f"a port is a number from 0 to 65535, not {port}")
    return host, port


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How a network makes its connections. Every value has the default that trio's own functions
    have.

    Raises:
        ValueError, TypeError: a value that no network could use, or a shorthand that contradicts
            `options`.
    """

    tcp_nodelay: bool = True
    """Short for `nodelay` of the options."""
    so_linger: int | None = None
    """Seconds; short for `linger` of the options."""
    connect_timeout: float | None = None
    """Seconds for one dial; None: no limit but the system's."""
    read_timeout: float | None = None
    """Seconds for each receive call of a stream that says nothing else; None: no limit."""
    write_timeout: float | None = None
    """Seconds for each send call of a stream that says nothing else; None: no limit."""
    read_buffer_size: int = BUFFER_SIZE
    """Bytes to receive at once for smaller reads; 0: unbuffered."""
    backlog: int | None = None
    """Short for the one of the options."""
    options: SocketOptions | None = None
    """Of the listeners and connections; None: the defaults of SocketOptions (a TrioNetwork leaves
    notsent_lowat to trio then). A SimulatedNetwork knows `backlog`, and a `linger` of 0."""

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "read_timeout", "write_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise ValueError(
                    f"{name} must be a number of seconds >= 0, or None for no limit, "
                    f"not {seconds!r}"
                )
        for name in ("so_linger", "backlog"):
            number = getattr(self, name)
            # Which is what kernels take.
            if number is not None and not 0 <= operator.index(number) <= 65535:
                raise ValueError(f"{name} must be from 0 to 65535, or None, not {number!r}")
        if operator.index(self.read_buffer_size) < 0:
            raise ValueError(f"read_buffer_size must be >= 0 bytes, not {self.read_buffer_size!r}")
        _ = self.socket_options  # which finds contradictions

    @functools.cached_property
    def socket_options(self) -> SocketOptions:
        """`options`, with what their shorthands say."""
        linger = None if self.so_linger is None else operator.index(self.so_linger)
        return fold_options(
            self.options, nodelay=self.tcp_nodelay, linger=linger, backlog=self.backlog
        )


class NetworkStream(trio.abc.HalfCloseableStream):
    """A connection of a Network: a trio.abc.HalfCloseableStream with lists of buffers, exact reads
    and timeouts.

    Every `timeout` is in seconds, for the whole call. None: the default of the network's config;
    math.inf: no limit. When it is up, trio.TooSlowError.
    """

    _abilities = Abilities(times_sends=True, counts=True, times_receives=True)

    send_timeout: float | None
    """Seconds for each send call that says nothing else; None: no limit."""
    receive_timeout: float | None
    """Seconds for each receive call that says nothing else; None: no limit."""

    @property
    @abc.abstractmethod
    def local_address(self) -> Address:
        """The address of this end."""

    @property
    @abc.abstractmethod
    def remote_address(self) -> Address:
        """The address of the other end."""

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> int:
        """Bytes of the current or last send that have gone.

        Raises:
            AttributeError: a wrapper's: what it wraps does not say.
        """

    @abc.abstractmethod
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        """Sends one buffer, or a sequence of buffers in order, without joining them. See
        SendStream.send_all."""

    @abc.abstractmethod
    async def send_all_vectored(
        self, buffers: Iterable[Buffer], *, timeout: float | None = None
    ) -> None:
        """Sends buffers in order, without joining them. See send_all_vectored."""

    @abc.abstractmethod
    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        """Returns some bytes. See BufferedReceiveStream.receive_some."""

    @abc.abstractmethod
    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        """Receives into the caller's memory. See BufferedReceiveStream.receive_into."""

    @abc.abstractmethod
    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Receives `count` bytes. See BufferedReceiveStream.receive_exactly."""

    @abc.abstractmethod
    async def receive_until(
        self, delimiter: bytes, max_bytes: int, *, timeout: float | None = None
    ) -> bytes:
        """Receives up to a delimiter. See BufferedReceiveStream.receive_until."""

    @abc.abstractmethod
    def peek(self, max_bytes: int | None = None) -> bytes:
        """Buffered bytes, without I/O. See BufferedReceiveStream.peek."""


class NetworkListener(trio.abc.Listener[NetworkStream]):
    """A listener of a Network; trio.serve_listeners takes it."""

    @property
    @abc.abstractmethod
    def local_address(self) -> Address:
        """Where it listens; the port is never 0."""

    @abc.abstractmethod
    async def accept(self) -> NetworkStream:
        """Waits for a connection.

        Raises:
            trio.BusyResourceError: another task is accepting on this listener.
            trio.ClosedResourceError: this listener was closed.
            OSError: accept failed, for instance with EMFILE.

        Cancellation: no connection is lost.
        """


class Network(abc.ABC):
    """Where a program listens and connects. Give it to a program as a value, and tests give it
    another.

    Attributes:
        config: of every connection that this network makes.
    """

    config: NetworkConfig

    @abc.abstractmethod
    async def bind(self, address: Address) -> NetworkListener:
        """Listens on an address.

        Args:
            address: host and port. Port 0: one is chosen, see the listener's `local_address`. The
                host "" is all IPv4 interfaces, "::" all IPv6 ones; of a name that has several
                addresses, the first is taken.

        Raises:
            OSError: the address is in use (EADDRINUSE), not of this machine, or unknown.

        Cancellation: nothing is left open.
        """

    @abc.abstractmethod
    async def dial(self, address: Address) -> NetworkStream:
        """Connects to an address.

        Args:
            address: host and port.

        Raises:
            OSError: the connection failed: ConnectionRefusedError if nothing listens there.
            trio.TooSlowError: `config.connect_timeout` was up.

        Cancellation: nothing is left open.
        """


class BufferedNetworkStream(BufferedReceiveStream, NetworkStream):
    """The stream of every network: buffered reads, timed sends, and two addresses over a transport.

    Args:
        transport: the connection, owned from now on.
        config: its read_buffer_size and timeouts are used.
        local_address: of this end.
        remote_address: of the other end.

    Attributes:
        transport: for what only some networks have (a socket). Do not send or receive on it.
        send_timeout, receive_timeout: seconds for each call that says nothing else; None: no limit.
    """

    _stays_broken = True

    def __init__(
        self,
        transport: trio.abc.HalfCloseableStream,
        config: NetworkConfig,
        local_address: Address,
        remote_address: Address,
    ) -> None:
        super().__init__(transport, config.read_buffer_size, receive_timeout=config.read_timeout)
        self.transport = transport
        self.send_timeout = config.write_timeout
        self._local_address = local_address
        self._remote_address = remote_address
        self._sink: Any = sending_end(transport)
        self._takes_lists = abilities(transport).lists_by == "send_all"

    @property
    def local_address(self) -> Address:
        return self._local_address

    @property
    def remote_address(self) -> Address:
        return self._remote_address

    @property
    def bytes_sent(self) -> int:
        return self._sink.bytes_sent  # type: ignore[no-any-return]

    @bytes_sent.setter
    def bytes_sent(self, count: int) -> None:  # for a copy, which is one call to many
        self._sink.bytes_sent = count

    @enable_ki_protection
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        if timeout is None:
            timeout = self.send_timeout
        sink = self._sink
        try:
            if self._takes_lists:
                await sink.send_all(data, timeout=timeout)
            elif not isinstance(data, (bytes, bytearray)):
                await send_all_vectored(sink, buffer_list(data), timeout=timeout)
            else:
                with within(timeout):
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            # the socket has told it now: a receive gets what has come, and then would find an end
            self._broken = True
            raise

    async def send_all_vectored(
        self, buffers: Iterable[Buffer], *, timeout: float | None = None
    ) -> None:
        await self.send_all(listed(buffers), timeout=timeout)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.transport.send_eof()
