"""The streams: trio's abstract classes over the two halves.

Rules of this file: names, signatures and errors are trio's; what goes beyond trio's is described in
the docstrings of the halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import trio
from trio.lowlevel import enable_ki_protection

from .._accelerator import hot
from .._descriptors.lease import closed_lease
from .._descriptors.provided import adapt
from .._driver.phases import RUNNING
from .._errors import stream_error
from .endpoint import Endpoint, SocketLike, adopt, adopt_socket, lease_under, make_over
from .receive import ReceiveSide
from .send import SendSide

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .._descriptors.direction import Direction


if hot is not None:
    hot.use_methods(RUNNING, adapt, ReceiveSide, SendSide)


class SendStream(SendSide, trio.abc.SendStream):
    """Sends on a stream socket, a pipe or a FIFO.

    Args:
        fd_or_sock: a descriptor, a stdlib socket or a trio socket, which this stream owns from now
            on. O_NONBLOCK is never set on a descriptor that is not a socket, since it would also
            affect the other processes that share a pipe.

    Raises:
        TypeError, ValueError: the argument is something else.
    """

    def __init__(self, fd_or_sock: int | SocketLike) -> None:
        Endpoint.__init__(self, adopt(fd_or_sock, "SendStream"))


class ReceiveStream(ReceiveSide, trio.abc.ReceiveStream):
    """Receives from a stream socket, a pipe or a FIFO.

    Args:
        fd_or_sock: as in SendStream.
    """

    def __init__(self, fd_or_sock: int | SocketLike) -> None:
        Endpoint.__init__(self, adopt(fd_or_sock, "ReceiveStream"))


class SocketStream(SendSide, ReceiveSide, trio.abc.HalfCloseableStream):
    """A connected stream socket: the ring's counterpart of trio.SocketStream.

    TCP_NODELAY is on, and TCP_NOTSENT_LOWAT is 1 MiB (in trio 16 KiB; docs/design.md says why).

    Args:
        sock: a connected stdlib or trio socket of type SOCK_STREAM. The stream owns it from now on.

    Raises:
        TypeError, ValueError: the argument is something else.
    """

    def __init__(self, sock: SocketLike) -> None:
        Endpoint.__init__(self, adopt_socket(sock, "SocketStream"))

    async def send_eof(self) -> None:
        """Shuts down the sending half (trio.abc.HalfCloseableStream). Doing it twice is allowed.

        Raises:
            trio.BusyResourceError: another task is sending on this stream.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the connection is broken.

        Cancellation: a checkpoint comes first; if it is cancelled there, nothing is shut down.
        """
        await _send_eof(self)

    @enable_ki_protection
    def split(self) -> tuple[SendStream, ReceiveStream]:
        """Splits the stream into its two directions, which close independently of each other.

        Closing the first sends the end of the stream, like send_eof. Closing the second stops
        receiving (SHUT_RD): on a Unix socket, a peer that goes on sending gets an error; over TCP,
        it blocks once the sockets' buffers are full, since TCP cannot refuse one direction. The
        socket is closed when both are. `trio.StapledStream` joins them again.

        The halves take over this stream, with its timeouts and what it had kept from interrupted
        receives. Using it afterwards raises trio.ClosedResourceError, and closing it does nothing.

        Returns:
            The sending and the receiving half. Both have the same `.socket`.

        Raises:
            trio.BusyResourceError: a task is sending or receiving on this stream.
            trio.ClosedResourceError: this stream was closed.
        """
        lease = self._lease
        if lease.sending.held or lease.receiving.held:
            raise trio.BusyResourceError("another task is currently using this stream")
        lease.receiving.check_not_closed()
        send = make_over(_SendHalf, self.socket, lease)
        receive = make_over(_ReceiveHalf, self.socket, lease)
        send.send_timeout, send.bytes_sent = self.send_timeout, self.bytes_sent
        receive.receive_timeout = self.receive_timeout
        lease.sending.closes_alone = lease.receiving.closes_alone = True
        self._use(closed_lease(lease))
        return send, receive

    @overload
    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None: ...

    @overload
    def setsockopt(self, level: int, option: int, value: None, length: int) -> None: ...

    def setsockopt(
        self, level: int, option: int, value: int | Buffer | None, length: int | None = None
    ) -> None:
        """Sets a socket option; the arguments are those of socket.socket.setsockopt."""
        if length is None:
            if value is None:
                raise TypeError(
                    "invalid value for argument 'value', must not be None when specifying length"
                )
            self.socket.setsockopt(level, option, value)
        elif value is not None:
            raise TypeError(
                f"invalid value for argument 'value': {value!r}, must be None when specifying "
                "optlen"
            )
        else:
            self.socket.setsockopt(level, option, value, length)

    @overload
    def getsockopt(self, level: int, option: int) -> int: ...

    @overload
    def getsockopt(self, level: int, option: int, buffersize: int) -> bytes: ...

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Reads a socket option; the arguments are those of socket.socket.getsockopt."""
        if buffersize == 0:
            return self.socket.getsockopt(level, option)
        return self.socket.getsockopt(level, option, buffersize)


class _SendHalf(SendStream):
    """The sending half that split() returns.

    It has send_eof, so that a trio.StapledStream of the halves is a full HalfCloseableStream.
    """

    async def send_eof(self) -> None:
        """As in SocketStream."""
        await _send_eof(self)

    def _close(self) -> None:
        _close_half(self, self._sending)


class _ReceiveHalf(ReceiveStream):
    """The receiving half that split() returns."""

    def _close(self) -> None:
        _close_half(self, self._receiving)


def _close_half(half: SendStream | ReceiveStream, way: Direction) -> None:
    if not way.closed:
        lease = lease_under(half)
        lease.check_thread()
        lease.close_direction(way, half.socket.shutdown)


async def _send_eof(stream: SendSide) -> None:
    way = lease_under(stream).sending
    if way.held:
        raise way.busy()
    way.held = True
    try:
        await trio.lowlevel.checkpoint()
        way.check_not_closed()
        if not stream.socket.did_shutdown_SHUT_WR:
            stream.socket.shutdown(trio.socket.SHUT_WR)
    except OSError as exc:
        raise stream_error(exc.errno or 0) from exc
    finally:
        way.held = False
