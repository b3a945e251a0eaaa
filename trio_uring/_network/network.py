"""A network as a value: programs bind, dial and talk through it, whatever is behind it.

Rules of this file: nothing here opens a socket. All networks give the same stream class,
BufferedNetworkStream, so that reads, timeouts and errors follow the same rules on the ring, on trio
and in a simulation; only the transport differs.
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
    """Checks that an address is a pair of host and port, and returns it."""
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
    """How a network makes its connections. The defaults are those of trio's own functions.

    Raises:
        ValueError, TypeError: a value is one that no network could use, or a shorthand contradicts
            `options`.
    """

    tcp_nodelay: bool = True
    """A shorthand for `nodelay` of the options."""
    so_linger: int | None = None
    """Seconds; a shorthand for `linger` of the options."""
    connect_timeout: float | None = None
    """Seconds for one dial; None: no limit except the system's."""
    read_timeout: float | None = None
    """Seconds for each receive call of a stream, unless the call says otherwise; None: no limit."""
    write_timeout: float | None = None
    """Seconds for each send call of a stream, unless the call says otherwise; None: no limit."""
    read_buffer_size: int = BUFFER_SIZE
    """Bytes to receive at once for smaller reads; 0: unbuffered."""
    backlog: int | None = None
    """A shorthand for `backlog` of the options."""
    options: SocketOptions | None = None
    """Options of the listeners and connections; None: the defaults of SocketOptions (a TrioNetwork
    then leaves notsent_lowat to trio). A SimulatedNetwork uses only `backlog`, and a `linger` of
    0."""

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
            # The range that kernels accept.
            if number is not None and not 0 <= operator.index(number) <= 65535:
                raise ValueError(f"{name} must be from 0 to 65535, or None, not {number!r}")
        if operator.index(self.read_buffer_size) < 0:
            raise ValueError(f"read_buffer_size must be >= 0 bytes, not {self.read_buffer_size!r}")
        _ = self.socket_options  # raises if they contradict each other

    @functools.cached_property
    def socket_options(self) -> SocketOptions:
        """`options`, with the shorthands applied."""
        linger = None if self.so_linger is None else operator.index(self.so_linger)
        return fold_options(
            self.options, nodelay=self.tcp_nodelay, linger=linger, backlog=self.backlog
        )


class NetworkStream(trio.abc.HalfCloseableStream):
    """A connection of a Network: a HalfCloseableStream with lists of buffers, exact reads and
    timeouts.

    Every `timeout` is in seconds, for the whole call. None: the default of the network's config;
    math.inf: no limit. When it is up, trio.TooSlowError is raised.
    """

    _abilities = Abilities(times_sends=True, counts=True, times_receives=True)

    send_timeout: float | None
    """Seconds for each send call, unless the call says otherwise; None: no limit."""
    receive_timeout: float | None
    """Seconds for each receive call, unless the call says otherwise; None: no limit."""

    def _told(self) -> str:
        """What it is called in the note of an error: see _bytes/timed.py."""
        host, port = self.remote_address
        return f"{type(self).__name__}, peer {host}:{port}"

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
        """Bytes of the current or last send that have been sent.

        Raises:
            AttributeError: this is a wrapper, and the stream that it wraps does not count.
        """

    @abc.abstractmethod
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        """Sends one buffer, or several in order, without joining them. See SendStream.send_all."""

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
        """Returns buffered bytes, without I/O. See BufferedReceiveStream.peek."""


class NetworkListener(trio.abc.Listener[NetworkStream]):
    """A listener of a Network; trio.serve_listeners takes it."""

    @property
    @abc.abstractmethod
    def local_address(self) -> Address:
        """The address on which it listens; the port is never 0."""

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
    """Where a program listens and connects: a value that you give to the program, and that tests
    replace.

    Attributes:
        config: the config of every connection that this network makes.
    """

    config: NetworkConfig

    @abc.abstractmethod
    async def bind(self, address: Address) -> NetworkListener:
        """Listens on an address.

        Args:
            address: host and port. With port 0, a port is chosen; see the listener's
                `local_address`. The host "" means all IPv4 interfaces, "::" all IPv6 ones. Of a
                name with several addresses, the first is taken.

        Raises:
            OSError: the address is in use (EADDRINUSE), not one of this machine, or unknown.

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
    """The stream of every network: buffered reads, timed sends and two addresses, over a transport.

    Args:
        transport: the connection, owned from now on.
        config: only its read_buffer_size and timeouts are used.
        local_address: the address of this end.
        remote_address: the address of the other end.

    Attributes:
        transport: for what only some networks have, such as a socket. Do not send or receive on it.
        send_timeout, receive_timeout: seconds for each call, unless it says otherwise; None: no
            limit.
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
    def bytes_sent(self, count: int) -> None:  # for a copy, which counts as one call
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
                with within(timeout, self, "send_all"):
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            # The socket has reported it, and will not again: after what has come, a receive would
            # find an end.
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
