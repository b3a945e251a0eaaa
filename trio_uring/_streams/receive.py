"""The receiving half of a stream: into the kernel's choice of buffer, or into the caller's.

Rules of this file: at most one receive of a stream is in the kernel, and only while a task waits
for it: a stream that is not read holds nothing in this process, and its peer's bytes stay in the
sockets, which is the backpressure. A byte that the kernel gave belongs to the stream until a call
returns it.
"""

from __future__ import annotations

import errno
import functools
import math
import operator
import select
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.lowlevel import enable_ki_protection, wait_task_rescheduled

from .._bytes.abilities import Abilities
from .._bytes.chunks import ChunkQueue
from .._bytes.timed import within
from .._bytes.views import check_writable, copy_into, release_view
from .._descriptors.provided import BufferChoice
from .._errors import AGAIN_ERRNOS, IncompleteReadError
from .._ring.op import LARGE_GROUP, NO_GROUP, POSITION, Opcode
from .._ring.protocol import SMALL_SIZE
from .endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from .._driver.engine import TaskOperation

RECEIVE_MAX = 2**30  # bytes asked for in one operation: its length has 32 bits

_T = TypeVar("_T")


class ReceiveSide(BufferChoice, Endpoint):
    """Mixed into the streams that receive."""

    _abilities = Abilities(
        times_receives=True, takes_back=True, native_receives=True, keeps_receives=True
    )

    _receive_operation: TaskOperation | None = None
    _into_operation: TaskOperation | None = None
    _receiving = False
    _orphan: TaskOperation | None = None  # of a call whose coroutine was destroyed; not over yet
    _rest: ChunkQueue | None = None  # what interrupted calls had, for the next one; None: nothing

    receive_timeout: float | None = None
    """Seconds that one receive may take; None: no limit."""

    @enable_ki_protection
    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        """Waits until there is data, and returns some of it (trio.abc.ReceiveStream).

        Args:
            max_bytes: the most bytes to return, at least 1. None: as the stream likes, at most
            LARGE_SIZE (128 KiB).
            timeout: seconds; None: the stream's `receive_timeout`; math.inf: no limit.

        Returns:
            1 byte or more; b"" at the end of the stream.

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this stream.
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: this stream was closed.
            TypeError, ValueError: `max_bytes` is not an integer, or less than 1.

        Cancellation: no byte is lost. Bytes that arrive while it is being cancelled are returned,
        or kept for the next receive.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_MAX
        elif operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        if timeout is None:
            timeout = self.receive_timeout
        if timeout is not None and timeout != math.inf:
            with trio.fail_after(timeout):
                return await self.receive_some(max_bytes, timeout=math.inf)
        op = self._begin_receive()
        own = None
        try:
            if self._orphan is not None:
                await self._settle_receive(self._orphan)
            if self._rest:
                await trio.lowlevel.checkpoint()
                return self._take_rest(max_bytes)
            while True:
                size = self._size
                op.length = size if size < max_bytes else max_bytes
                if op.group == NO_GROUP:  # the kernel provides no buffers: bring one
                    own = op.buffer = memoryview(bytearray(op.length))
                if op.driver.begin(op):
                    res = await wait_task_rescheduled(op.abort)
                else:
                    res = await op.driver.perform_by_call(op)
                if res >= 0:
                    chunk, op.chunk = op.chunk, None
                    if op.group == LARGE_GROUP or res == SMALL_SIZE:
                        self._adapt(op, res)
                    return (chunk or b"") if own is None else _take_own(op, own)
                await self._again(op, res)
        finally:
            self._receiving = False
            if op.task is not None or op.state.in_kernel:
                self._leave_behind(op, own)
            elif op.chunk is not None or (
                own is not None and op.res > 0
            ):  # done, and destroyed before it resumed
                if own is not None:
                    op.chunk = _take_own(op, own)
                self._keep_chunk(op)

    def _begin_receive(self) -> TaskOperation:
        """Takes the receiving direction, if it may be taken, and returns the operation that
        receives."""
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this stream")
        if self._closed or self._fileno() != self._fd:
            self._check_open()
        if self._lease.reading is not None:
            self._look_at_socket()
        op = self._receive_operation or self._make_receive_operation()
        self._receiving = True
        return op

    def _look_at_socket(self) -> None:
        """What `.socket` itself does in this direction, or what a destroyed call of it left."""
        left = self._lease.reading
        if (
            left is not None
            and left.dispose is not None
            and left.task is None
            and left.state.in_kernel
        ):
            self._orphan = left
        else:
            self._lease.check_socket(True)
        if self._lease.kept:
            self._rest = self._rest or ChunkQueue()
            self._rest.append(self._lease.kept)
            self._lease.kept = b""

    async def _settle_receive(self, orphan: TaskOperation) -> None:
        """What the destroyed call still got comes after what it had got before."""
        await orphan.driver.settle(orphan)
        self._orphan = None
        if orphan.dispose is not None:
            orphan.dispose(orphan.res)
        self._keep_chunk(orphan)
        self._look_at_socket()
        self._check_open()

    def _leave_behind(self, op: TaskOperation, view: memoryview | None) -> None:
        orphan = self._left_behind(op)
        if orphan is not None:
            self._orphan = orphan
            if view is not None:
                orphan.dispose = functools.partial(_stash, orphan, view)

    def _keep_chunk(self, op: TaskOperation) -> None:
        chunk, op.chunk = op.chunk, None
        if chunk:
            self._rest = self._rest or ChunkQueue()
            self._rest.append(chunk)

    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        """Waits until there is data, and puts some of it into `buffer`, without a copy in between.

        Args:
            buffer: writable, C-contiguous, of any item size, not empty. Borrowed until the call
            returns.
            timeout: as of receive_some.

        Returns:
            How many bytes were put there; 0 at the end of the stream.

        Raises:
            As receive_some; TypeError or ValueError for a buffer that will not do.

        Cancellation: no byte is lost, as of receive_some.
        """
        view = memoryview(buffer)
        try:
            check_writable(view)
            return await self._within(timeout, self._receive_into, view)
        finally:
            release_view(view)

    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Receives exactly `count` bytes.

        Args:
            count: bytes, at least 0. Memory is taken as the bytes come, never ahead of them.
            timeout: seconds for the whole call; None: the stream's `receive_timeout`; math.inf: no
                limit.

        Raises:
            IncompleteReadError: the stream ended before. The bytes that came are in it, and stay in
            the stream. As receive_some.

        Cancellation: no byte is lost: what came is kept, and the next receive begins with it. It is
        the only data that a stream ever holds while nobody reads, and is less than `count`.
        """
        if operator.index(count) < 0:
            raise ValueError("count must be >= 0")
        return await self._within(timeout, self._receive_exactly, count)

    async def _within(
        self, timeout: float | None, receive: Callable[..., Awaitable[_T]], argument: object
    ) -> _T:
        if timeout is None:
            timeout = self.receive_timeout
        with within(timeout):
            return await receive(argument)

    def _put_back(self, chunks: list[bytes]) -> None:
        """Keeps what an interrupted reader of frames had, in order, before what is kept already."""
        self._rest = self._rest or ChunkQueue()
        for chunk in reversed(chunks):
            self._rest.prepend(chunk)

    def _take_rest(self, max_bytes: int) -> bytes:
        rest = self._rest
        assert rest is not None
        chunk = rest.take(min(max_bytes, rest.size))
        if not rest.size:
            self._rest = None
        return chunk

    async def _again(self, op: TaskOperation, res: int) -> None:
        """After a negative result: returns if the receive is to be made again."""
        if self._closed:
            raise self._error(res)
        if res == -errno.ENOBUFS and op.group != NO_GROUP:
            # All buffers of the group were taken in this pass. They are back by the next one; there
            # are more small ones.
            self._use_first(op)
        elif -res in AGAIN_ERRNOS:
            await self._poll(select.POLLIN)
        else:
            raise self._error(res)
        self._check_open()

    @enable_ki_protection
    async def _receive_into(self, view: memoryview) -> int:
        if self._lease.reading is not None:
            self._look_at_socket()
        if self._rest or self._orphan is not None:
            chunk = await self.receive_some(view.nbytes, timeout=math.inf)
            return copy_into(view, chunk)
        self._begin_receive()
        op = self._into_operation = self._into_operation or self._make_operation()
        try:
            while True:
                op.buffer, op.length, op.res = view, min(view.nbytes, RECEIVE_MAX), -1
                res: int = await op.driver.perform(op)
                if res >= 0:
                    op.res = -1  # taken
                    return res
                await self._again(op, res)
        finally:
            self._receiving = False
            if op.task is not None or op.state.in_kernel:
                self._leave_behind(op, view)
            elif op.res > 0:  # done, and destroyed before it resumed
                op.chunk, op.res = view.tobytes()[: op.res], -1
                self._keep_chunk(op)

    @enable_ki_protection
    async def _receive_exactly(self, count: int) -> bytes:
        got, self._rest = self._rest or ChunkQueue(), None
        try:
            if got.size >= count:
                await self._nothing_to_receive()
            while (
                got.size < count
            ):  # the direction is free between two receives, but no other task runs there
                chunk = await self.receive_some(count - got.size, timeout=math.inf)
                if not chunk:
                    raise IncompleteReadError(got.peek(got.size), count)
                got.append(chunk)
            return got.take(count)
        finally:
            if got.size:
                if self._rest is not None:
                    got.append(self._rest.take_all())
                self._rest = got

    async def _nothing_to_receive(self) -> None:
        self._begin_receive()
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._receiving = False

    def _make_receive_operation(self) -> TaskOperation:
        op = self._receive_operation = self._make_operation()
        self._use_first(op)
        return op

    def _make_operation(self) -> TaskOperation:
        op = self._operation(Opcode.RECV if self._is_socket else Opcode.READ)
        if not self._is_socket:
            op.offset = POSITION
        return op


def _take_own(op: TaskOperation, own: memoryview) -> bytes:
    """What was received into memory that the call brought. Taken once: the result says whether it
    still is to be."""
    count, op.res = op.res, 0
    return bytes(own[:count])


def _stash(op: TaskOperation, view: memoryview, res: int) -> None:
    """Keeps what a destroyed call's receive put into memory of its own, and lets the memory go."""
    op.dispose = None
    if res > 0:
        op.chunk = view.tobytes()[:res]
    release_view(view)
