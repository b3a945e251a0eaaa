"""A pump: moves bytes into a stream by chained operations, while the task that asked for it stays
parked.

The task parks once. What completes is handled in the engine's reap, by `_advance` of the subclass,
which chains the next operations. The task wakes when all is over, or, for a progress callback, at
most once a pass.

Rules of this file:

- The pump is over when none of its operations is in the kernel or in the queue: not before, whoever
  asked it to stop. Then it settles, at once and in the reap: what it had taken and not passed on
  goes back, and the streams are free again.
- Nothing leaves a function that the reap calls: what goes wrong becomes the pump's error, and stops
  it.
- What is done wins over a cancel: a pump that came to its end, or has an error to tell, raises no
  Cancelled.
- No code of the user's runs in the reap.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import weakref
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import (
    Abort,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    wait_task_rescheduled,
)

from .._driver.chains import ChainedOperation, ChainEngine
from .._driver.readiness import ALWAYS
from .._driver.run import Driver, current_driver
from .._errors import AGAIN_ERRNOS, stream_error
from .._ring.op import POSITION, Opcode
from .._streams.send import SEND_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .._ring.protocol import Ring
    from .._streams.receive import ReceiveSide
    from .._streams.send import SendSide

    Side = ReceiveSide | SendSide


class Pump:
    """What all pumps are: operations, a task that waits, an end. A subclass says what is done next.

    Attributes:
        total: bytes that the sink has taken.
    """

    def __init__(self, sink: SendSide) -> None:
        self.sink = sink
        self.total = 0
        driver = current_driver()
        assert isinstance(driver, Driver)  # by readiness, there are no chains
        self.engine: ChainEngine = driver
        self._error: BaseException | None = None
        self._stopping = False
        self._over = self._complete = self._given_up = False
        self._operations: list[tuple[Side, ChainedOperation]] = []
        self._task: trio.lowlevel.Task | None = None
        self._raise_cancel: Callable[[], NoReturn] | None = None
        self._epoll: select.epoll | None = None
        # The total that the progress callback knows; None: there is no callback.
        self._told: int | None = None

    # -- for the subclass

    def _advance(self) -> None:
        """Chains what can be done next. With nothing in flight afterwards, the pump is at its
        end."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Nothing is in flight any more, or never will be told of: gives back what is held, and
        frees the streams."""
        raise NotImplementedError

    def _operation(
        self,
        side: Side,
        opcode: int,
        handle: Callable[[int], object],
        fd: int = -1,
        owner: object = None,
    ) -> ChainedOperation:
        """An operation on a stream, or another descriptor, whose result goes to `handle`; closing
        the stream ends it."""
        if fd < 0:
            fd, owner = side._fd, side._owner
        op = ChainedOperation(self.engine, opcode, fd, owner, lambda: self._finished(op, handle))
        op.lease = weakref.ref(side._lease)
        side._operations.append(op)
        self._operations.append((side, op))
        return op

    def _poll_operation(
        self, side: Side, events: int, ready: Callable[[], object]
    ) -> ChainedOperation:
        op = self._operation(side, Opcode.POLL_ADD, lambda res: self._polled(side, op, ready, res))
        op.flags = events
        return op

    def _chain(self, side: Side, op: ChainedOperation) -> None:
        if not is_open(side):
            raise self._side_error(side, -errno.EBADF)
        self.engine.chain(op)

    def _send_operation(self, handle: Callable[[int], object]) -> ChainedOperation:
        sink = self.sink
        op = self._operation(sink, Opcode.SEND if sink._is_socket else Opcode.WRITE, handle)
        op.flags = SEND_FLAGS if sink._is_socket else 0
        op.offset = 0 if sink._is_socket else POSITION
        op.closed = self._sink_closed
        return op

    def _sent(self, count: int) -> None:
        self.total += count
        self.sink.bytes_sent = self.total

    def _moved(self, count: int) -> None:
        """Sent past the ring."""
        self.engine.ring.counters.moved[Opcode.SEND] += count
        self._sent(count)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stop()

    def _side_error(self, side: Side, res: int) -> BaseException:
        """The exception for a negative result, with the side in its message."""
        name = "sink" if side is self.sink else "source"
        if side._closed or res == -errno.ECANCELED:
            return trio.ClosedResourceError(f"another task closed this copy's {name}")
        error = stream_error(-res)
        if isinstance(error, trio.ClosedResourceError):
            return trio.ClosedResourceError(
                f"the descriptor of this copy's {name} was already closed"
            )
        named = trio.BrokenResourceError(f"this copy's {name} is broken: {error.__cause__}")
        named.__cause__ = error.__cause__
        return named

    # -- in the reap

    def _finished(self, op: ChainedOperation, handle: Callable[[int], object]) -> None:
        try:
            handle(op.unwrap())
            if not self._stopping:
                self._advance()
        except BaseException as exc:
            self._fail(exc)
        self._after()

    def _polled(
        self, side: Side, op: ChainedOperation, ready: Callable[[], object], res: int
    ) -> None:
        if self._stopping:
            return
        if res < 0 and -res not in AGAIN_ERRNOS:
            raise self._side_error(side, res)
        if res >= 0 and not res & (op.flags | ALWAYS):
            self._poll_by_epoll(side, op)
        else:
            ready()

    def _poll_by_epoll(self, side: Side, op: ChainedOperation) -> None:
        """io_uring's polls are over when the peer has half-closed (POLLRDHUP), whatever was asked
        for. epoll's are not."""
        self._epoll = poller = select.epoll()
        poller.register(side._fd, op.flags)
        op.fd, op.owner, op.flags, op.entry = (
            poller.fileno(),
            (side._owner, poller),
            select.POLLIN,
            None,
        )
        self._chain(side, op)

    def _sink_closed(self) -> None:
        """Nobody else tells it while the source is idle."""
        if not self._stopping:
            self._fail(self._side_error(self.sink, -errno.ECANCELED))
            self._after()

    def _after(self) -> None:
        if self._over:
            return
        if self._idle():
            self._finish()
        elif self._told is None or self._told == self.total or self._stopping:
            return
        task, self._task = self._task, None
        if task is not None:
            self.engine.resume(task, self)

    def _idle(self) -> bool:
        # asked after every completion, where a generator is felt
        for _, op in self._operations:  # noqa: SIM110
            if op.waiting:
                return False
        return True

    def _stop(self) -> None:
        self._stopping = True
        for _, op in self._operations:
            self.engine.unchain(op)

    def _finish(self) -> None:
        self._over, self._complete = True, self._is_complete()
        try:
            self._settle()
        except BaseException as exc:  # MemoryError
            self._error = self._error or exc
        for side, op in self._operations:
            side._operations.remove(op)
            # or each would keep the pump, and the pump its streams, until a garbage collection
            op.forget()
        self._operations.clear()
        if self._epoll is not None:
            self._epoll.close()
        if self._given_up:
            self._error = None  # nobody is there to raise it; its traceback has the pump

    # -- the task

    @enable_ki_protection
    async def run(self, progress: Callable[[int], object] | None) -> int:
        """Pumps to the end. The streams' directions must be taken already; they are free when the
        pump is over."""
        self._told = None if progress is None else 0
        try:
            self._advance()
        except BaseException as exc:
            self._fail(exc)
        if self._idle():
            self._finish()
            if self._error is None:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._tell(progress)
        while not self._over:
            try:
                await self._park()
            except BaseException:
                if self._over:
                    self._tell(progress)
                raise
            self._tell(progress)
        error, self._error = self._error, None
        if error is None:
            return self.total
        try:
            raise error
        finally:
            del error

    def _tell(self, progress: Callable[[int], object] | None) -> None:
        if progress is None or self._told == self.total or (self._stopping and not self._over):
            return
        self._told = self.total
        try:
            call(progress, self.total)
        except BaseException as exc:
            if self._over:
                self._error = self._error or exc
            else:
                self._fail(exc)
                self._after()

    async def _park(self) -> None:
        self._task = current_task()
        try:
            await wait_task_rescheduled(self._abort)
        finally:
            if self._task is not None:  # the coroutine was destroyed: nobody is left to wake
                self._task = self._told = None
                self.engine.at_flush(self._give_up)

    def _give_up(self) -> None:
        self._given_up = True
        self._stop()
        self._after()

    @enable_ki_protection
    def _abort(self, raise_cancel: Callable[[], NoReturn]) -> Abort:
        if self.engine.closed:  # in a forked child: it is all the parent's
            self._task = None
            return Abort.SUCCEEDED
        self._stop()
        if not self._idle():
            self._raise_cancel = raise_cancel
            return Abort.FAILED
        self._task = None
        self._finish()
        return Abort.SUCCEEDED

    def unwrap(self) -> None:
        """For trio, when the task resumes."""
        raise_cancel, self._raise_cancel = self._raise_cancel, None
        if raise_cancel is not None and self._error is None and not self._complete:
            raise_cancel()

    def _is_complete(self) -> bool:
        """Whether all was done that was asked for: then a cancellation comes too late."""
        raise NotImplementedError


@disable_ki_protection
def call(progress: Callable[[int], object], total: int) -> None:
    progress(total)


def is_open(side: Side) -> bool:
    """The user may have closed the socket itself: its number may be another's by now."""
    return not side._closed and side._fileno() == side._fd


async def take_receiving(source: ReceiveSide) -> None:
    """Takes a stream's receiving direction for a pump, which gives it back when it settles."""
    begin_receiving(source)
    try:
        if source._orphan is not None:
            await source._settle_receive(source._orphan)
    except BaseException:
        give_receiving(source)
        raise


async def take_sending(sink: SendSide) -> None:
    """Takes a stream's sending direction for a pump, which gives it back when it settles.
    `bytes_sent` begins anew."""
    begin_sending(sink)
    try:
        if sink._orphan_send is not None:
            await sink._settle_send(sink._orphan_send)
    except BaseException:
        give_sending(sink)
        raise


def begin_receiving(source: ReceiveSide) -> None:
    _check_run(source)
    source._begin_receive()
    source._lease.copying[True] = None


def begin_sending(sink: SendSide) -> None:
    _check_run(sink)
    sink._begin_send()
    sink._lease.copying[False] = None


def give_receiving(source: ReceiveSide) -> None:
    source._receiving = False
    source._lease.copying.pop(True, None)


def give_sending(sink: SendSide) -> None:
    sink._sending = False
    sink._lease.copying.pop(False, None)


def _check_run(side: Side) -> None:
    live = side._lease.live_driver()
    if live is not None and live is not current_driver():
        raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
    for op in side._lease.operations:
        if op.driver.closed:
            op.driver._attend(
                op
            )  # moves it to this run, or refuses: in a forked child the stream is the parent's


def can_pump(source: ReceiveSide, sink: SendSide) -> bool:
    """Whether this run's driver moves bytes from one to the other without a task. Not by a
    completion, out of a pipe that may have other readers."""
    driver = current_driver()
    if not isinstance(driver, Driver) or not driver.pumps:
        return False
    return source._is_socket or (
        takes_splices(driver.ring, source) and takes_splices(driver.ring, sink)
    )


def takes_splices(ring: Ring, side: Side) -> bool:
    """Whether splice(2) and sendfile(2) on this stream cannot block the thread, or kill the
    process.

    They have no MSG_NOSIGNAL; Python ignores SIGPIPE unless the program wants it otherwise. Sockets
    must be non-blocking, as trio's are; for pipes splice has a flag of its own; devices may block
    in it all the same.
    """
    if (
        ring.info.backend == "fake"
        or not hasattr(os, "splice")
        or signal.getsignal(signal.SIGPIPE) is not signal.SIG_IGN
    ):
        return False
    if side._is_socket:
        return not os.get_blocking(side._fd)
    return stat.S_ISFIFO(os.fstat(side._fd).st_mode)
