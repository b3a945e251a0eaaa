"""The two ends of a copying loop, over any kind of stream: they move and count bytes, and keep
other tasks out.

A pump holds both directions from its first byte to its last. A loop makes many calls, and also
holds a stream's direction between them (`Hold`), if the stream allows that.

Rules of this file: what may have been sent is never called unsent. What was received and not sent
is given back.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import checkpoint_if_cancelled, current_task, in_trio_run, in_trio_task

from .._bytes.abilities import abilities, put_back, receiving_end, sending_end, unwrapped
from .._descriptors.direction import Direction
from .._messages.vectored import counting, send_one
from .._network.network import BufferedNetworkStream
from .._streams.endpoint import lease_under
from .._streams.receive import ReceiveSide
from .._streams.send import SendSide
from .pump import begin, call, give

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Hold:
    """A direction that one task holds from `begin` to `end`, also between its calls.

    Other tasks get trio.BusyResourceError. The task makes its own calls with the hold as a context
    manager, which frees the direction for the call to take, and takes it back when the call is
    over; no other task runs in between.

    Args:
        below: the stream that has the direction. If that cannot be held, the stream is left as it
            is.
        flag: the attribute by which that stream says that the direction is taken.
        begin, end: functions that take and free the direction, if it can be held.
    """

    __slots__ = ("_begin", "_end", "_flag", "below")

    def __init__(
        self,
        below: Any,
        flag: str,
        begin: Callable[[], object] | None = None,
        end: Callable[[], object] | None = None,
    ) -> None:
        self.below, self._flag, self._begin, self._end = below, flag, begin, end

    def begin(self) -> None:
        if self._begin is not None:
            self._begin()

    def end(self) -> None:
        if self._end is not None:
            self._end()

    def __enter__(self) -> None:
        if self._begin is not None:
            setattr(self.below, self._flag, False)

    def __exit__(self, *_: object) -> None:
        if self._begin is not None:
            setattr(self.below, self._flag, True)


def _receiving_hold(stream: Any) -> Hold:
    below = unwrapped(stream, receiving_end)
    if isinstance(below, ReceiveSide):
        way = lease_under(below).receiving
        return Hold(way, "held", lambda: begin(way), lambda: give(way))
    if not abilities(below).keeps_receives:
        return Hold(below, "_receiving")
    return Hold(below, "_receiving", below._begin_receive, below._end_receive)


def _sending_hold(stream: Any) -> Hold:
    below: Any = unwrapped(stream, sending_end)
    if isinstance(below, BufferedNetworkStream):
        below = unwrapped(below.transport, sending_end)
    if isinstance(below, SendSide):
        way = lease_under(below).sending
        return Hold(way, "held", lambda: begin(way), lambda: give(way))
    if not abilities(below).keeps_sends:
        return Hold(below, "_sending")
    return Hold(below, "_sending", below._begin_send, lambda: setattr(below, "_sending", False))


class UntilClosed:
    """Interrupts a loop when its sink is closed; see LoopSink.until_closed.

    A pump is told by its driver, but a loop may be waiting in the receive of any stream.
    """

    def __init__(self, way: Direction) -> None:
        self._way = way
        self._scope = trio.CancelScope()
        self._task = current_task()

    def __enter__(self) -> None:
        self._scope.__enter__()
        # Weak: a stream that outlives a run that crashed must not keep its tasks.
        self._way.told = functools.partial(_tell, weakref.ref(self))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit and not (in_trio_task() and current_task() is self._task):
            return  # the coroutine was destroyed in a task that is not in this scope
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise trio.ClosedResourceError("another task closed this copy's sink")

    def closed(self) -> None:
        if in_trio_run():  # the copy's run may be over
            self._scope.cancel()


def _tell(until_closed: weakref.ref[UntilClosed]) -> None:
    told = until_closed()
    if told is not None:
        told.closed()


class LoopSource:
    """A stream to receive from, for the duration of a `with` block.

    Args:
        stream: a stream in front of which bytes can be put back.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        can = abilities(stream)
        self._is_ours = can.native_receives
        self._untimed = can.untimed
        self._hold = _receiving_hold(stream)

    def __enter__(self) -> LoopSource:
        self._hold.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._hold.end()

    async def receive(self, max_bytes: int) -> bytes:
        try:
            with self._hold:
                return bytes(await self._stream.receive_some(max_bytes, **self._untimed))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._is_ours:
                raise _named(exc, "source") from exc.__cause__
            raise

    def put_back(self, rest: bytes) -> None:
        if rest:
            put_back(self._stream, [rest])


class LoopSink:
    """A stream to send to, for the duration of a `with` block.

    Its `bytes_sent`, if it has one, counts the whole block.

    Attributes:
        total: bytes that the stream has taken.
        unsent: how many bytes at the end of the last chunk the stream has certainly not taken.
    """

    def __init__(
        self, stream: trio.abc.SendStream, progress: Callable[[int], object] | None
    ) -> None:
        self._out: Any = counting(stream)
        self._hold = _sending_hold(self._out)
        can = abilities(self._out)
        self._is_ours = can.native_sends
        # Another package's NetworkStream may wrap a stream that does not count.
        self._counts = can.counts and hasattr(self._out, "bytes_sent")
        self._progress = progress
        self.total = 0
        self.unsent = 0

    def __enter__(self) -> LoopSink:
        self._hold.begin()
        self._count(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hold.end()

    def until_closed(self) -> contextlib.AbstractContextManager[object]:
        """A block that ends with trio.ClosedResourceError if the stream is closed while the block
        waits for something else."""
        below = self._hold.below
        return UntilClosed(below) if isinstance(below, Direction) else contextlib.nullcontext()

    async def send(self, chunk: bytes) -> None:
        """Sends the whole chunk, and reports progress."""
        size = self.unsent = len(chunk)
        await checkpoint_if_cancelled()  # so that only a send that blocked can be interrupted
        self._count(0)  # because a closed stream does not reset it
        try:
            with self._hold:
                await send_one(self._out, chunk, math.inf)
        except trio.BusyResourceError:
            self._count(self.total)
            raise
        except BaseException as exc:
            self._took(self._out.bytes_sent if self._counts else 0)
            self.unsent = self.unsent if self._counts else 0
            if self._is_ours and isinstance(
                exc, (trio.BrokenResourceError, trio.ClosedResourceError)
            ):
                raise _named(exc, "sink") from exc.__cause__
            raise
        self._took(size)

    def _took(self, count: int) -> None:
        self.unsent -= count
        self.total += count
        self._count(self.total)
        if self._progress is not None and count:
            call(self._progress, self.total)

    def _count(self, total: int) -> None:
        if self._counts:
            # Another package's NetworkStream may not allow it.
            with contextlib.suppress(AttributeError):
                self._out.bytes_sent = total


def _named(error: Exception, what: str) -> Exception:
    """The same error, naming the stream in its message as a pump does."""
    if isinstance(error, trio.BrokenResourceError):
        return trio.BrokenResourceError(f"this copy's {what} is broken: {error.__cause__}")
    return trio.ClosedResourceError(f"this copy's {what} was closed: {error}")
