"""What a server has to know of a connection, whatever stream its handler is given.

Rules of this file: nothing is added to what a stream does. Whether a handler waits for a byte is
known from the operations that are waited for, and is asked only while a server ends. Streams are
told apart by their classes, never by what they answer to.
"""

from __future__ import annotations

import socket as stdlib_socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from .._bytes.abilities import Wrapper, abilities, put_back, receiving_end, sending_end
from .._streams.endpoint import lease_under
from .._streams.receive import ReceiveSide

if TYPE_CHECKING:
    from .._descriptors.direction import Direction
    from .._descriptors.lease import Lease


def transport_under(stream: Any) -> Any:
    """The stream that moves the bytes: below TLS, buffers and observers."""
    while True:
        stream = receiving_end(stream)
        if isinstance(stream, ReceiveSide):
            return stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        elif isinstance(stream, Wrapper):
            stream = stream.wrapped
        else:
            # Only here: most servers have no such streams, and need not import them.
            from .._messages.buffered import BufferedReceiveStream

            if not isinstance(stream, BufferedReceiveStream):
                return stream
            stream = stream.stream


def _below_tls(stream: Any) -> Any:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream


class Connection:
    """A connection that is being served.

    Args:
        stream: what the handler is given.

    Attributes:
        before: cancels what is waited for before the handler is called.
        scope: cancels all of it.
        has_header: it begins with a PROXY header.
        begun: its handler was called.
        ended: it was told that the server ends.
    """

    __slots__ = (
        "_lease", "_seen", "_simulated", "_socket", "before", "begun", "ended", "has_header",
        "scope", "stream", "transport",
    )  # fmt: skip

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.transport = transport = transport_under(stream)
        self.before, self.scope = trio.CancelScope(), trio.CancelScope()
        self.begun = self.ended = False
        # The wait in which its handler was when a server that ends looked last, and when it was
        # seen first (trio's clock, in seconds).
        self._seen: tuple[float | None, float] = (None, 0.0)
        # Both are kept, since a handler may split the stream.
        self._lease: Lease | None = None
        self._socket: trio.socket.SocketType | None = None
        if isinstance(transport, ReceiveSide):
            self._lease = lease_under(transport)
            with suppress(AttributeError):  # a pipe
                self._socket = transport.socket
        elif isinstance(transport, trio.SocketStream):
            self._socket = transport.socket
        self.has_header = hasattr(type(transport), "receive_header")
        self._simulated = hasattr(type(transport), "end_receiving")

    # -- before the handler

    async def receive_header(self) -> bool:
        """Receives the header of a ProxyStream. False: there is none.

        Cancellation: no byte is lost.
        """
        try:
            await self.transport.receive_header()
        except trio.BrokenResourceError:
            return False
        return True

    async def has_first_byte(self) -> bool:
        """Waits for the first byte, which stays where it is. False: the connection ended first.

        Raises:
            TypeError: streams of this kind cannot wait without taking bytes.

        Cancellation: no byte is lost.
        """
        lease, sock = self._lease, self._socket
        # A socket of somebody else's class knows nothing of these.
        if lease is not None and lease.receiving.kept is not None:
            await trio.lowlevel.checkpoint()
            return True
        try:
            if sock is not None:
                return bool(await sock.recv(1, stdlib_socket.MSG_PEEK))
            return await self._take_and_put_back()
        except (OSError, trio.BrokenResourceError):
            return False

    async def _take_and_put_back(self) -> bool:
        stream = _below_tls(self.stream)
        can = abilities(stream)
        if not can.takes_back:
            raise TypeError(
                "first_byte_timeout needs streams on sockets, or streams that take bytes back, "
                f"not {stream!r}"
            )
        chunk = await stream.receive_some(**can.untimed)
        if chunk:
            put_back(stream, [chunk])
        return bool(chunk)

    def limit(self, seconds: float) -> None:
        """Sets how long a receive or a send may take, unless the handler says otherwise.

        Raises:
            TypeError: streams of this kind have no time limits.
        """
        stream = _below_tls(self.stream)
        can = abilities(stream)
        if not (can.times_receives and can.times_sends):
            raise TypeError(f"idle_timeout needs streams with time limits, not {stream!r}")
        receiving_end(stream).receive_timeout = seconds
        sending_end(stream).send_timeout = seconds

    def begin(self) -> None:
        """The handler is called."""
        # What was told before concerned only what is over by now.
        self.begun, self.ended = True, False

    # -- while the server ends

    def is_quiet(self, now: float, quiet: float) -> bool:
        """Whether the connection has waited for a byte for `quiet` seconds, as far as was seen.

        Args:
            now: trio's clock, in seconds.
            quiet: seconds.
        """
        since = self._waits_since() if self.begun else 0.0
        if since is None or since != self._seen[0]:
            self._seen = (since, now)
        return since is not None and now - self._seen[1] >= quiet

    def end(self) -> None:
        """Lets the handler see the end of the stream, after what has arrived. It may still send."""
        self.ended = True
        if not self.begun:
            self.before.cancel()
        elif self._simulated:
            self.transport.end_receiving()
        elif self._socket is not None:
            with suppress(OSError):  # it is broken, or closed, which the handler notices by itself
                self._socket.shutdown(stdlib_socket.SHUT_RD)

    def _waits_since(self) -> float | None:
        """When the wait for a byte began in which the handler is; None: it is in none, or sends.

        No two waits of a connection have the same value.
        """
        if self._simulated:
            number: float | None = self.transport.waits_since()
            return number
        lease = self._lease
        if lease is None or lease.closed or _since(lease.sending) is not None:
            return None
        return _since(lease.receiving)


def _since(way: Direction) -> float | None:
    """When the operation for which somebody waits began to wait (time.monotonic()); None: there is
    none."""
    for op in [*way.operations.values(), way.waiter]:
        if op is None:
            continue
        if not op.engine.completes:
            since: float | None = op.engine.waiting.get(op)
        else:
            # Not one that is queued, which still has the time of its last turn.
            since = op.born if op.state.in_kernel or op.by_trio else None
        if since is not None:
            return since
    return None
