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

import abc
import errno
import os
import select
import signal
import stat
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import (
    Abort,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    wait_task_rescheduled,
)

from .._descriptors.direction import POLL, Verdict
from .._driver.engine import Engine
from .._driver.operation import TaskOperation
from .._driver.readiness import ALWAYS
from .._driver.run import current_driver
from .._errors import stream_error
from .._ring.op import Opcode
from .._streams.endpoint import lease_under

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .._descriptors.direction import Direction
    from .._ring.protocol import Ring
    from .._streams.send import SendSide


class Pump(abc.ABC):
    """What all pumps are: operations, a task that waits, an end. A subclass says what is done next.

    Args:
        sink: the stream that the bytes go to.

    Attributes:
        total: bytes that the sink has taken.
    """

    def __init__(self, sink: SendSide) -> None:
        self.sink = sink
        self.out = lease_under(sink).sending
        self.total = 0
        engine = current_driver().engine
        assert isinstance(engine, Engine)  # by readiness, there are no chains
        self.engine: Engine = engine
        self._error: BaseException | None = None
        self._stopping = False
        self._over = self._complete = self._given_up = False
        # What each completion calls, in the reap.
        self._operations: dict[TaskOperation, Callable[[], object]] = {}
        # Where else closing a direction finds them.
        self._extra: list[tuple[Direction, object]] = []
        self._task: trio.lowlevel.Task | None = None
        self._raise_cancel: Callable[[], NoReturn] | None = None
        self._epoll: select.epoll | None = None
        # The total that the progress callback knows; None: there is no callback.
        self._told: int | None = None
        self.out.told = self._sink_closed

    # -- for the subclass

    @abc.abstractmethod
    def _advance(self) -> None:
        """Chains what can be done next. With nothing in flight afterwards, the pump is at its
        end."""

    @abc.abstractmethod
    def _settle(self) -> None:
        """Nothing is in flight any more, or never will be told of: gives back what is held, and
        frees the streams."""

    def _operation(
        self, way: Direction, kind: int, handle: Callable[[int], object]
    ) -> TaskOperation:
        """The operation of a direction's that the pump has for as long as it has the direction; its
        results go to `handle`."""
        return self._add(way.get(kind), handle)

    def _poll_operation(self, way: Direction, ready: Callable[[], object]) -> TaskOperation:
        op = way.get(POLL)
        return self._add(op, lambda res: self._polled(way, op, ready, res))

    def _own_operation(
        self, way: Direction, opcode: int, fd: int, owner: object, handle: Callable[[int], object]
    ) -> TaskOperation:
        """One on another descriptor, which closing the direction ends as well."""
        op = way.operations[self] = TaskOperation(self.engine, opcode, fd, owner)
        self._extra.append((way, self))
        return self._add(op, handle)

    def _add(self, op: TaskOperation, handle: Callable[[int], object]) -> TaskOperation:
        self._operations[op] = lambda: self._finished(op, handle)
        return op

    def _chain(self, way: Direction, op: TaskOperation) -> None:
        if not way.is_open():
            raise self._way_error(way, -errno.EBADF)
        self.engine.chain(op, self._operations[op])

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

    def _way_error(self, way: Direction, res: int) -> BaseException:
        """The exception for a negative result, with the side in its message."""
        name = "sink" if way is self.out else "source"
        if way.closed or res == -errno.ECANCELED:
            return trio.ClosedResourceError(f"another task closed this copy's {name}")
        error = stream_error(-res)
        if isinstance(error, trio.ClosedResourceError):
            return trio.ClosedResourceError(
                f"the descriptor of this copy's {name} was already closed"
            )
        named = trio.BrokenResourceError(f"this copy's {name} is broken: {error.__cause__}")
        named.__cause__ = error.__cause__
        return named

    def _send_failed(self, way: Direction, op: TaskOperation, res: int) -> bool:
        """After a negative result of a send. True: it is to be made again when the sink is ready;
        False: the pump is stopping."""
        if self._stopping and res == -errno.ECANCELED:
            return False
        if way.verdict(op, res) is not Verdict.WAIT:
            raise self._way_error(way, res)
        return not self._stopping

    # -- in the reap

    def _finished(self, op: TaskOperation, handle: Callable[[int], object]) -> None:
        try:
            handle(op.unwrap())
            if not self._stopping:
                self._advance()
        except BaseException as exc:
            self._fail(exc)
        self._after()

    def _polled(
        self, way: Direction, op: TaskOperation, ready: Callable[[], object], res: int
    ) -> None:
        if self._stopping:
            return
        if res < 0 and way.verdict(op, res) is not Verdict.WAIT:
            raise self._way_error(way, res)
        if res >= 0 and not res & (op.flags | ALWAYS):
            self._poll_by_epoll(way, op)
        else:
            ready()

    def _poll_by_epoll(self, way: Direction, op: TaskOperation) -> None:
        """io_uring's polls are over when the peer has half-closed (POLLRDHUP), whatever was asked
        for. epoll's are not."""
        self._epoll = poller = select.epoll()
        poller.register(way.fd, op.flags)
        op.fd, op.owner = poller.fileno(), (way.owner, poller)
        op.flags, op.entry = select.POLLIN, None
        del way.operations[POLL]  # it is not what the next one expects any more
        way.operations[poller] = op
        self._extra.append((way, poller))
        self._chain(way, op)

    def _sink_closed(self) -> None:
        """Nobody else tells it while the source is idle."""
        if not self._stopping:
            self._fail(self._way_error(self.out, -errno.ECANCELED))
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
        # Asked after every completion, where a generator is felt.
        for op in self._operations:  # noqa: SIM110
            if op.then is not None:
                return False
        return True

    def _stop(self) -> None:
        self._stopping = True
        for op in self._operations:
            self.engine.unchain(op)

    def _finish(self) -> None:
        self._over, self._complete = True, self._is_complete()
        try:
            self._settle()
        except BaseException as exc:  # MemoryError
            self._error = self._error or exc
        for way, key in self._extra:
            way.operations.pop(key, None)
        for op in self._operations:
            op.memory = None
        # Or each would keep the pump, and the pump its streams, until a garbage collection.
        self._operations.clear()
        self._extra.clear()
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
        if self.engine.phase.over:  # in a forked child: it is all the parent's
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

    @abc.abstractmethod
    def _is_complete(self) -> bool:
        """Whether all was done that was asked for: then a cancellation comes too late."""


@disable_ki_protection
def call(progress: Callable[[int], object], total: int) -> None:
    progress(total)


async def take(way: Direction) -> None:
    """Takes a direction for a pump, which gives it back when it settles."""
    begin(way)
    try:
        await way.settle()
        way.check_open()
    except BaseException:
        give(way)
        raise


def begin(way: Direction) -> None:
    """Takes a direction that can be used in this run."""
    way.move()
    way.hold()


def give(way: Direction) -> None:
    """What `take` has taken."""
    way.held, way.told = False, None


def can_pump(source: Direction, sink: Direction) -> bool:
    """Whether this run's engine moves bytes from one to the other without a task. Not by a
    completion, out of a pipe that may have other readers."""
    engine = current_driver().engine
    if not isinstance(engine, Engine) or not engine.pumps:
        return False
    ring = engine.ring
    return source.is_socket or (takes_splices(ring, source) and takes_splices(ring, sink))


def takes_splices(ring: Ring, way: Direction) -> bool:
    """Whether splice(2) and sendfile(2) on this descriptor cannot block the thread, or kill the
    process.

    They have no MSG_NOSIGNAL; Python ignores SIGPIPE unless the program wants it otherwise. Sockets
    must be non-blocking, as trio's are; for pipes splice has a flag of its own; devices may block
    in it all the same.
    """
    if ring.info.backend == "fake" or not hasattr(os, "splice"):
        return False
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_IGN:
        return False
    if way.is_socket:
        return not os.get_blocking(way.fd)
    return stat.S_ISFIFO(os.fstat(way.fd).st_mode)
