"""The receiving half of a stream: into a provided buffer, or into the caller's.

Rules of this file: at most one receive of a stream is in the kernel, and only while a task waits
for it. So a stream that nobody reads holds nothing in this process; its peer's bytes stay in the
sockets, and that is the backpressure. A byte that the kernel has handed over belongs to the stream
until a call returns it.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities
from .._bytes.chunks import ChunkQueue
from .._bytes.timed import within
from .._bytes.views import check_writable, copy_into, release_view
from .._descriptors.direction import INTO, RECEIVE, Direction
from .._descriptors.provided import take_chunk
from .._errors import IncompleteReadError
from .._ring.figures import SMALL_SIZE
from .._ring.op import NO_GROUP, SMALL_GROUP
from .endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from .._driver.operation import TaskOperation

RECEIVE_MAX = 2**30  # most bytes asked for in one operation, whose length has 32 bits

_T = TypeVar("_T")


class ReceiveSide(Endpoint):
    """Mixed into the streams that receive."""

    _abilities = Abilities(
        times_receives=True, takes_back=True, native_receives=True, keeps_receives=True
    )
    _receiving: Direction

    receive_timeout: float | None = None
    """Seconds that one receive may take; None: no limit."""

    @enable_ki_protection
    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        """Waits until there is data, and returns some of it (trio.abc.ReceiveStream).

        Args:
            max_bytes: the most bytes to return, at least 1. None: the stream chooses, at most
                LARGE_SIZE (512 KiB).
            timeout: seconds; None: the stream's `receive_timeout`; math.inf: no limit.

        Returns:
            1 byte or more; b"" at the end of the stream.

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this stream.
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: this stream was closed.
            TypeError, ValueError: `max_bytes` is not an integer, or less than 1.

        Cancellation: no byte is lost. Bytes that arrive during the cancellation are returned, or
        kept for the next receive.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_MAX
        elif operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        limit = self.receive_timeout if timeout is None else timeout
        if limit is not None and limit != math.inf:
            with within(limit, self, "receive_some"):
                return await ReceiveSide.receive_some(self, max_bytes, timeout=math.inf)
        way = self._receiving
        op = way.take(RECEIVE)
        try:
            if way.left is not None:
                await self._settle(way)
            if way.kept is not None:
                await trio.lowlevel.checkpoint()
                return way.take_kept(max_bytes)
            while True:
                size = way.size
                op.length = size if size < max_bytes else max_bytes
                if op.group == NO_GROUP:  # no provided buffers: bring one
                    op.buffer = op.memory = memoryview(bytearray(op.length))
                res = await op.engine.perform(op)
                if res >= 0:
                    chunk = op.chunk
                    if chunk is None or op.group != SMALL_GROUP or res == SMALL_SIZE:
                        return take_chunk(way, op, res)
                    op.chunk = None
                    return chunk
                await self._again(way, op, res)
        finally:
            way.held = False
            if op.owed:
                way.leave(op)
            elif op.memory is not None:
                op.memory = None

    @enable_ki_protection
    async def _receive_rest(self, op: TaskOperation, max_bytes: int) -> bytes:
        """Goes on with a receive that the accelerator has begun, whose result is negative.

        The direction is held.
        """
        way = self._receiving
        try:
            await self._again(way, op, op.res)
        finally:
            way.held = False
        # No other task gets to run before this one has the direction again.
        return await ReceiveSide.receive_some(self, max_bytes, timeout=math.inf)

    @enable_ki_protection
    async def _into_rest(self, op: TaskOperation, view: memoryview) -> int:
        """The same for receive_into. `view` exports the caller's buffer."""
        way = self._receiving
        try:
            try:
                await self._again(way, op, op.res)
            finally:
                way.held = False
            return await ReceiveSide.receive_into(self, view, timeout=math.inf)
        finally:
            release_view(view)

    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        """Waits until there is data, and puts some of it into `buffer`, without a copy in between.

        Args:
            buffer: writable, C-contiguous, of any item size, not empty. It is borrowed until the
                call returns.
            timeout: as in receive_some.

        Returns:
            How many bytes were written to `buffer`; 0 at the end of the stream.

        Raises:
            TypeError, ValueError: the buffer is not suitable.
            Others: the same as receive_some.

        Cancellation: as in receive_some, no byte is lost.
        """
        view = memoryview(buffer)
        try:
            check_writable(view)
            return await self._within(timeout, "receive_into", self._receive_into, view)
        finally:
            release_view(view)

    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Receives exactly `count` bytes.

        Args:
            count: bytes, at least 0. Memory is allocated as the bytes arrive, never ahead of them.
            timeout: seconds for the whole call; None: the stream's `receive_timeout`; math.inf: no
                limit.

        Raises:
            IncompleteReadError: the stream ended too early. The error holds the bytes that came,
                and they also stay in the stream.
            Others: the same as receive_some.

        Cancellation: no byte is lost. The bytes that came, fewer than `count`, are kept, and the
        next receive begins with them. This is the only data that a stream ever holds while nobody
        reads.
        """
        if operator.index(count) < 0:
            raise ValueError("count must be >= 0")
        return await self._within(timeout, "receive_exactly", self._receive_exactly, count)

    async def _within(
        self,
        timeout: float | None,
        name: str,
        receive: Callable[..., Awaitable[_T]],
        argument: object,
    ) -> _T:
        if timeout is None:
            timeout = self.receive_timeout
        with within(timeout, self, name):
            return await receive(argument)

    def _put_back(self, chunks: list[bytes]) -> None:
        """Keeps what an interrupted frame reader had, in order, in front of what is already
        kept."""
        self._receiving.put_back(chunks)

    @enable_ki_protection
    async def _receive_into(self, view: memoryview) -> int:
        way = self._receiving
        if way.kept is not None or way.left is not None:
            chunk = await self.receive_some(view.nbytes, timeout=math.inf)
            return copy_into(view, chunk)
        op = way.take(INTO)
        try:
            while True:
                op.buffer = op.memory = view
                op.length = min(view.nbytes, RECEIVE_MAX)
                res: int = await op.engine.perform(op)
                if res >= 0:
                    return res
                await self._again(way, op, res)
        finally:
            way.held = False
            if op.owed:
                way.leave(op)
            else:
                op.memory = None

    @enable_ki_protection
    async def _receive_exactly(self, count: int) -> bytes:
        way = self._receiving
        got, way.kept = way.kept or ChunkQueue(), None
        try:
            if got.size >= count:
                await self._nothing_to_receive()
            while got.size < count:
                # The direction is free between two receives, but no other task gets to run then.
                chunk = await self.receive_some(count - got.size, timeout=math.inf)
                if not chunk:
                    raise IncompleteReadError(got.peek(got.size), count)
                got.append(chunk)
            return got.take(count)
        finally:
            if got.size:
                if way.kept is not None:
                    got.append(way.kept.take_all())
                way.kept = got

    async def _nothing_to_receive(self) -> None:
        way = self._receiving
        way.hold()
        try:
            await trio.lowlevel.checkpoint()
        finally:
            way.held = False
