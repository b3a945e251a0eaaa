"""Reads of an exact size, up to a delimiter, and small ones served from one receive, over any trio.abc.ReceiveStream.

Rules of this file: a byte that the wrapped stream gave is either in the queue or returned by the call that took it; an
interrupted call (cancelled, timed out, ended, failed) puts back what it had, in order. One task receives at a time. Nothing is
received ahead of need when `buffer_size` is 0.
"""

from __future__ import annotations

import io
import math
import operator
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._chunks import ChunkQueue
from ._errors import DelimiterNotFound, IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

BUFFER_SIZE = 65536  # bytes: one receive then serves many small reads, and a connection's memory stays small

_T = TypeVar("_T")


class BufferedReceiveStream(trio.abc.ReceiveStream):
    """Wraps a stream that receives, for protocols that read headers, lines and records.

    Small reads are served from one receive of `buffer_size` bytes. A read that is at least as large as the buffer, while
    nothing is buffered, goes straight to the wrapped stream: into the caller's memory (receive_into) or without a copy of
    what it returned (receive_some).

    Args:
        stream: the stream, owned from now on: receive only through this one.
        buffer_size: bytes to receive at once for smaller reads. 0: unbuffered, never a byte more is received than was asked
            for; `peek` is always empty.
        receive_timeout: seconds that one call may take, if it says nothing else; None: no limit.

    It holds at most `buffer_size` bytes, and what an interrupted exact read had.
    """

    def __init__(
        self, stream: trio.abc.ReceiveStream, buffer_size: int = BUFFER_SIZE, *, receive_timeout: float | None = None
    ) -> None:
        if not isinstance(stream, trio.abc.ReceiveStream):
            raise TypeError(f"BufferedReceiveStream wraps a trio.abc.ReceiveStream, not {stream!r}")
        if operator.index(buffer_size) < 0:
            raise ValueError("buffer_size must be >= 0 (0: unbuffered)")
        self.stream = stream
        self.receive_timeout = receive_timeout
        self._buffer_size = buffer_size
        self._queue = ChunkQueue()
        self._receiving = False
        self._closed = False

    def peek(self, max_bytes: int | None = None) -> bytes:
        """Buffered bytes, which stay buffered: no I/O, and no waiting.

        Args:
            max_bytes: the most to return; None: all of them.

        Returns:
            b"" when nothing is buffered, and always when unbuffered.

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
    async def receive_some(self, max_bytes: int | None = None, *, timeout: float | None = None) -> bytes:
        """Returns some bytes: buffered ones if there are any, or the next that come (trio.abc.ReceiveStream).

        Args:
            max_bytes: the most bytes to return, at least 1; None: as the stream likes.
            timeout: seconds; None: `receive_timeout`; math.inf: no limit.

        Returns:
            1 byte or more; b"" at the end of the stream.

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this stream.
            trio.ClosedResourceError: this stream was closed.
            Whatever the wrapped stream raises, trio.BrokenResourceError first of all.
            TypeError, ValueError: `max_bytes` is not an integer, or less than 1.

        Cancellation: no byte is lost that the wrapped stream does not lose.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        return await self._receive(timeout, self._some, max_bytes)

    @enable_ki_protection
    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        """As receive_some, into `buffer`: on a stream of this package without a copy in between, if `buffer` is large.

        Args:
            buffer: writable, C-contiguous, of any item size, not empty. Borrowed until the call returns.
            timeout: as of receive_some.

        Returns:
            How many bytes were put there; 0 at the end of the stream.

        Raises:
            As receive_some; TypeError or ValueError for a buffer that will not do.

        Cancellation: as of receive_some.
        """
        with memoryview(buffer) as view:
            if view.readonly or not view.c_contiguous:
                raise TypeError("receive_into takes a writable, C-contiguous buffer")
            if not view.nbytes:
                raise ValueError("receive_into takes a buffer that is not empty")
            return await self._receive(timeout, self._into, view)

    @enable_ki_protection
    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Receives exactly `count` bytes.

        Args:
            count: bytes, at least 0. Memory is taken as the bytes come, never ahead of them.
            timeout: seconds for the whole call; None: `receive_timeout`; math.inf: no limit.

        Raises:
            IncompleteReadError: the stream ended before. What came is in it, and stays in the stream for the next call.
            As receive_some.

        Cancellation: no byte is lost: what came is kept, and the next call begins with it.
        """
        if operator.index(count) < 0:
            raise ValueError("count must be >= 0")
        return await self._receive(timeout, self._exactly, count)

    @enable_ki_protection
    async def receive_until(self, delimiter: bytes, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Receives up to and including the next `delimiter`.

        Args:
            delimiter: one byte or more.
            max_bytes: the most bytes to return, with the delimiter: a peer's line is no longer than you allow.
            timeout: seconds for the whole call; None: `receive_timeout`; math.inf: no limit.

        Returns:
            The bytes, the delimiter at their end. An unbuffered stream receives a few bytes at a time for it.

        Raises:
            DelimiterNotFound: it is not in the first `max_bytes` bytes, which stay in the stream.
            IncompleteReadError: the stream ended before it. What came is in it, and stays in the stream.
            As receive_some.

        Cancellation: no byte is lost: what came is kept, and the next call begins with it.
        """
        delimiter = bytes(delimiter)
        if not delimiter:
            raise ValueError("the delimiter must be 1 byte or more")
        if operator.index(max_bytes) < len(delimiter):
            raise ValueError("max_bytes must be at least the length of the delimiter")
        return await self._receive(timeout, self._until, delimiter, max_bytes)

    async def aclose(self) -> None:
        """Closes the wrapped stream, and drops what was buffered.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self._closed = True
        self._queue.clear()
        await self.stream.aclose()

    # -- one call at a time, in time

    async def _receive(self, timeout: float | None, receive: Callable[..., Awaitable[_T]], *args: object) -> _T:
        if timeout is None:
            timeout = self.receive_timeout
        if timeout is not None and timeout != math.inf:
            with trio.fail_after(timeout):
                return await self._receive(math.inf, receive, *args)
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this stream")
        self._receiving = True
        try:
            return await receive(*args)
        finally:
            self._receiving = False
            if self._closed:  # what an interrupted call put back has no reader any more
                self._queue.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")

    def _put_back(self, chunks: list[bytes]) -> None:
        """Keeps what an interrupted reader of frames had, in order, before what is kept already."""
        for chunk in reversed(chunks):
            self._queue.prepend(chunk)

    # -- the reads

    async def _some(self, max_bytes: int | None) -> bytes:
        queue = self._queue
        if queue.size:
            await trio.lowlevel.checkpoint()
        elif max_bytes is None or max_bytes >= self._buffer_size:
            return bytes(await self.stream.receive_some(max_bytes))
        else:
            queue.append(bytes(await self.stream.receive_some(self._buffer_size)))
        return queue.take(queue.size if max_bytes is None else min(max_bytes, queue.size))

    async def _into(self, view: memoryview) -> int:
        straight = getattr(self.stream, "receive_into", None)
        if straight is not None and not self._queue.size and view.nbytes >= self._buffer_size:
            count: int = await straight(view)
            return count
        chunk = await self._some(view.nbytes)
        return io.BytesIO(chunk).readinto(view)  # into any format, where a slice would want bytes

    async def _exactly(self, count: int) -> bytes:
        queue = self._queue
        if count <= queue.size:
            await trio.lowlevel.checkpoint()
            return queue.take(count)
        while queue.size < count:
            # Large ones bring no byte that belongs to the next read: they can then go straight there.
            chunk = await self.stream.receive_some(max(count - queue.size, self._buffer_size))
            if not chunk:
                raise IncompleteReadError(queue.peek(queue.size), count)
            queue.append(bytes(chunk))
        return queue.take(count)

    async def _until(self, delimiter: bytes, max_bytes: int) -> bytes:
        queue = self._queue
        searched = 0
        received = False
        while (found := queue.find(delimiter, searched, max_bytes)) < 0 and queue.size < max_bytes:
            searched = max(0, queue.size - len(delimiter) + 1)
            size = self._buffer_size or _missing(queue, delimiter)
            chunk = await self.stream.receive_some(size)
            if not chunk:
                raise IncompleteReadError(queue.peek(queue.size))
            queue.append(bytes(chunk))
            received = True
        if not received:
            await trio.lowlevel.checkpoint()
        if found < 0:
            raise DelimiterNotFound(delimiter, max_bytes)
        return queue.take(found + len(delimiter))


def _missing(queue: ChunkQueue, delimiter: bytes) -> int:
    """The most bytes that can be received without passing the end of the delimiter."""
    for matched in range(min(len(delimiter) - 1, queue.size), 0, -1):
        if queue.find(delimiter[:matched], queue.size - matched, queue.size) >= 0:
            return len(delimiter) - matched
    return len(delimiter)
