"""Buffered reads over any trio.abc.ReceiveStream: of an exact size, or up to a delimiter.

Rules of this file: a byte that the wrapped stream has handed over is either in the queue or
returned by the call that took it. An interrupted call (cancelled, timed out, ended, failed) puts
back what it had, in order. One task receives at a time. Nothing is received ahead of need when
`buffer_size` is 0.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities, abilities, receiving_end
from .._bytes.chunks import ChunkQueue
from .._bytes.timed import check_timeout, receive_default, within
from .._bytes.views import check_writable, copy_into
from .._errors import DelimiterNotFound, IncompleteReadError
from ..framing import PREFIX_MAX, decode_prefix

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from ..framing import Prefix

# Bytes: enough for one receive to serve many small reads, and little memory per connection.
BUFFER_SIZE = 65536
EXACT_MAX = 2**16  # most bytes that a large exact read asks for at once

_T = TypeVar("_T")


class BufferedReceiveStream(trio.abc.ReceiveStream):
    """Wraps a receiving stream, for protocols that read headers, lines and records.

    Small reads are served from one receive of `buffer_size` bytes. If nothing is buffered, a read
    at least as large as the buffer goes straight to the wrapped stream: into the caller's memory
    (receive_into), or returning its bytes without a copy (receive_some).

    Args:
        stream: the stream to wrap, owned from now on: receive only through this one.
        buffer_size: bytes to receive at once for smaller reads. 0: unbuffered; no more is received
            than was asked for, and `peek` always returns b"".
        receive_timeout: seconds that a call without a `timeout` may take; None: the default of the
            wrapped stream, if it has one.

    It holds at most `buffer_size` bytes, and what an interrupted exact read had. Buffered bytes are
    returned whatever the call's `timeout`, since there is nothing to wait for.
    """

    _abilities = Abilities(times_receives=True, takes_back=True, keeps_receives=True)

    # A socket says only once that its connection is broken, and then seems to have ended. For a
    # stream known to be on a socket, the error is raised each time.
    _stays_broken = False

    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        buffer_size: int = BUFFER_SIZE,
        *,
        receive_timeout: float | None = None,
    ) -> None:
        if not isinstance(stream, trio.abc.ReceiveStream):
            raise TypeError(f"BufferedReceiveStream wraps a trio.abc.ReceiveStream, not {stream!r}")
        if operator.index(buffer_size) < 0:
            raise ValueError("buffer_size must be >= 0 (0: unbuffered)")
        self.stream = stream
        self.receive_timeout = receive_timeout
        self._source = receiving_end(stream)
        can = abilities(self._source)
        self._untimed = can.untimed  # the time limit for a whole call is set here
        self._receives_into = can.receives_into
        self._buffer_size = buffer_size
        self._queue = ChunkQueue()
        self._receiving = False
        self._closed = False
        self._broken = False

    def peek(self, max_bytes: int | None = None) -> bytes:
        """Returns buffered bytes, which stay buffered, without I/O and without waiting.

        Args:
            max_bytes: the most to return; None: all of them.

        Returns:
            The first buffered bytes; b"" if there are none, and always if unbuffered.

        Raises:
            trio.ClosedResourceError: this stream was closed.
            ValueError: `max_bytes` is negative.
        """
        self._check_open()
        if max_bytes is not None and operator.index(max_bytes) < 0:
            raise ValueError("max_bytes must be >= 0")
        if not self._buffer_size:
            return b""
        return self._queue.peek(self._queue.size if max_bytes is None else max_bytes)

    @enable_ki_protection
    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        """Returns some bytes: buffered ones, or else the next that come (trio.abc.ReceiveStream).

        Args:
            max_bytes: the most bytes to return, at least 1; None: the stream chooses.
            timeout: seconds; None: `receive_timeout`; math.inf: no limit.

        Returns:
            1 byte or more; b"" at the end of the stream.

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this stream.
            trio.ClosedResourceError: this stream was closed.
            TypeError, ValueError: `max_bytes` is not an integer, or less than 1.
            Others: what the wrapped stream raises, above all trio.BrokenResourceError.

        Cancellation: no byte is lost, unless the wrapped stream loses it.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        size = self._queue.size
        if size:
            return await self._take(size if max_bytes is None else min(max_bytes, size), timeout)
        return await self._receive(timeout, self._some, max_bytes)

    @enable_ki_protection
    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        """Like receive_some, but receives into `buffer`.

        On a stream of this package, there is no copy in between if `buffer` is large.

        Args:
            buffer: writable, C-contiguous, of any item size, not empty. It is borrowed until the
                call returns.
            timeout: as in receive_some.

        Returns:
            How many bytes were written to `buffer`; 0 at the end of the stream.

        Raises:
            TypeError, ValueError: the buffer is not suitable.
            Others: the same as receive_some.

        Cancellation: as in receive_some.
        """
        with memoryview(buffer) as view:
            check_writable(view)
            size = self._queue.size
            if size:
                return copy_into(view, await self._take(min(view.nbytes, size), timeout))
            return await self._receive(timeout, self._into, view)

    @enable_ki_protection
    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Receives exactly `count` bytes.

        Args:
            count: bytes, at least 0. Memory is allocated as the bytes arrive, never ahead of them.
            timeout: seconds for the whole call; None: `receive_timeout`; math.inf: no limit.

        Raises:
            IncompleteReadError: the stream ended too early. The error holds the bytes that came,
                and they also stay in the stream for the next call.
            Others: the same as receive_some.

        Cancellation: no byte is lost. What came is kept, and the next call begins with it.
        """
        if operator.index(count) < 0:
            raise ValueError("count must be >= 0")
        if count <= self._queue.size:
            return await self._take(count, timeout)
        return await self._receive(timeout, self._exactly, count)

    @enable_ki_protection
    async def receive_until(
        self, delimiter: bytes, max_bytes: int, *, timeout: float | None = None
    ) -> bytes:
        """Receives up to and including the next `delimiter`.

        Args:
            delimiter: one byte or more.
            max_bytes: the most bytes to return, including the delimiter. This bounds what a peer
                can make you hold.
            timeout: seconds for the whole call; None: `receive_timeout`; math.inf: no limit.

        Returns:
            The bytes, ending with the delimiter. If unbuffered, they are received a few at a time.

        Raises:
            DelimiterNotFound: the delimiter is not in the first `max_bytes` bytes, which stay in
                the stream.
            IncompleteReadError: the stream ended before the delimiter. The error holds the bytes
                that came, and they also stay in the stream.
            Others: the same as receive_some.

        Cancellation: no byte is lost. What came is kept, and the next call begins with it.
        """
        delimiter = bytes(memoryview(delimiter))
        if not delimiter:
            raise ValueError("the delimiter must be 1 byte or more")
        if operator.index(max_bytes) < len(delimiter):
            raise ValueError("max_bytes must be at least the length of the delimiter")
        found = self._queue.find(delimiter, 0, max_bytes)
        if found >= 0:
            return await self._take(found + len(delimiter), timeout)
        return await self._receive(timeout, self._until, delimiter, max_bytes)

    async def aclose(self) -> None:
        """Closes the wrapped stream, and drops what was buffered.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self._closed = True
        if not self._receiving:
            self._queue.clear()  # otherwise the call that is receiving does it when it notices
        await self.stream.aclose()

    # -- one call at a time, within its time

    async def _receive(
        self, timeout: float | None, receive: Callable[..., Awaitable[_T]], *args: object
    ) -> _T:
        if timeout is None:
            timeout = self.receive_timeout
            if timeout is None:
                timeout = receive_default(self._source)
        if timeout is not None and timeout != math.inf:
            with within(timeout, self, f"receive{receive.__name__}"):
                return await self._receive(math.inf, receive, *args)
        self._begin_receive()
        try:
            return await receive(*args)
        except trio.BrokenResourceError:
            self._broken = self._stays_broken
            raise
        finally:
            self._end_receive()

    def _begin_receive(self) -> None:
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this stream")
        self._receiving = True

    def _end_receive(self) -> None:
        self._receiving = False
        if self._closed:
            self._queue.clear()

    def _whole_frame(self, max_size: int, prefix: Prefix) -> tuple[int, int] | None:
        """The sizes of a frame's payload and prefix, if the whole frame is buffered."""
        decoded = decode_prefix(self._queue.peek(PREFIX_MAX[prefix]), prefix)
        if decoded is None or decoded[0] > max_size or sum(decoded) > self._queue.size:
            return None
        return decoded

    async def _take(self, count: int, timeout: float | None, prefix: int = 0) -> bytes:
        """Takes `count` buffered bytes, and drops the `prefix` bytes before them.

        They are all buffered, so the timeout does not matter.
        """
        check_timeout(timeout)
        self._begin_receive()
        try:
            await self._checkpoint()
            self._queue.take(prefix)
            return self._queue.take(count)
        finally:
            self._end_receive()

    async def _more(self, max_bytes: int) -> bytes:
        """Receives into the queue. Bytes that come after another task has closed the stream are
        dropped."""
        chunk = bytes(await self._source.receive_some(max_bytes, **self._untimed))
        self._check_open()
        if not chunk:
            self._check_end()
        self._queue.append(chunk)
        return chunk

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")

    def _check_end(self) -> None:
        """At what seems to be the end of the stream."""
        if self._broken:
            raise trio.BrokenResourceError("this connection was broken before")

    def _put_back(self, chunks: list[bytes]) -> None:
        """Keeps what an interrupted frame reader had, in order, in front of what is already
        kept."""
        for chunk in reversed(chunks):
            self._queue.prepend(chunk)

    def _take_back(self) -> bytes:
        """Takes out and returns everything that is held."""
        return self._queue.take_all()

    # -- the reads

    async def _some(self, max_bytes: int | None) -> bytes:
        if max_bytes is None or max_bytes >= self._buffer_size:
            chunk = bytes(await self._source.receive_some(max_bytes, **self._untimed))
            if not chunk:
                self._check_end()
            return chunk
        await self._more(self._buffer_size)
        return self._queue.take(min(max_bytes, self._queue.size))

    async def _into(self, view: memoryview) -> int:
        if view.nbytes >= self._buffer_size and self._receives_into:
            count: int = await self._source.receive_into(view, **self._untimed)
            if not count:
                self._check_end()
            return count
        return copy_into(view, await self._some(view.nbytes))

    async def _exactly(self, count: int) -> bytes:
        queue = self._queue
        while queue.size < count:
            # A large read takes no byte of the next one, which can then go straight to its own
            # memory. It does not ask for everything at once, because trio's streams allocate what
            # they are asked for, however little has come.
            size = max(min(count - queue.size, EXACT_MAX), self._buffer_size)
            if not await self._more(size):
                raise IncompleteReadError(queue.peek(queue.size), count)
        return queue.take(count)

    async def _until(self, delimiter: bytes, max_bytes: int) -> bytes:
        queue = self._queue
        searched = 0
        received = False
        while (found := queue.find(delimiter, searched, max_bytes)) < 0 and queue.size < max_bytes:
            searched = max(0, queue.size - len(delimiter) + 1)
            if not await self._more(
                self._buffer_size or min(_missing(queue, delimiter), max_bytes - queue.size)
            ):
                raise IncompleteReadError(queue.peek(queue.size))
            received = True
        if not received:
            await self._checkpoint()
        if found < 0:
            raise DelimiterNotFound(delimiter, max_bytes)
        return queue.take(found + len(delimiter))


def _missing(queue: ChunkQueue, delimiter: bytes) -> int:
    """The most bytes that can be received without passing the end of the delimiter."""
    for matched in range(min(len(delimiter) - 1, queue.size), 0, -1):
        if queue.find(delimiter[:matched], queue.size - matched, queue.size) >= 0:
            return len(delimiter) - matched
    return len(delimiter)
