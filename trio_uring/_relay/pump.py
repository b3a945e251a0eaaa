"""A pump: moves bytes into a stream by chained operations, while its task stays parked.

The task parks once. Completions are handled in the engine's reap, by the subclass's `_advance`,
which chains the next operations. The task wakes when the pump is over, or, for a progress callback,
at most once per pass.

Rules of this file:

- The pump is over when none of its operations is in the kernel or in the queue, and not before,
  whoever asked it to stop. Then it settles, at once and in the reap: what it had taken and not
  passed on goes back, and the streams are free again.
- No exception leaves a function that the reap calls: what goes wrong becomes the pump's error, and
  stops it.
- A finished pump wins over a cancel: one that has come to its end, or has an error to raise, does
  not raise Cancelled.
- No user code runs in the reap.
"""

from __future__ import annotations

import abc
import errno
import functools
import select
import sys
from typing import TYPE_CHECKING, Any

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
from .._driver.run import current_driver
from .._errors import stream_error
from .._ring.op import Opcode
from .._ring.opcodes import POLL_ALWAYS, POLLIN
from .._streams.endpoint import lease_under
from .pipes import takes_splices

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .._descriptors.direction import Direction
    from .._streams.send import SendSide


class Pump(abc.ABC):
    """What all pumps have: operations, a task that waits, an end. Subclasses decide what is done
    next.

    Args:
        sink: the stream that the bytes go to.

    Attributes:
        total: bytes that the sink has taken.
    """

    def __init__(self, sink: SendSide) -> None:
        self.out = lease_under(sink).sending
        self.total = 0
        engine = current_driver().engine
        assert isinstance(engine, Engine)  # the readiness backend has no chains
        self.engine: Engine = engine
        self._error: BaseException | None = None
        self._stopping = False
        self._over = self._complete = self._given_up = False
        # The function that each completion calls, in the reap.
        self._operations: dict[TaskOperation, Callable[[], object]] = {}
        # Further places where closing a direction finds operations.
        self._extra: list[tuple[Direction, object]] = []
        self._task: trio.lowlevel.Task | None = None
        self._raise_cancel: Callable[[], NoReturn] | None = None
        self._epoll: Any = None  # Linux's select.epoll
        # The total last given to the progress callback; None: there is no callback.
        self._told: int | None = None
        self.out.told = self._sink_closed

    # -- for the subclass

    @abc.abstractmethod
    def _advance(self) -> None:
        """Chains what can be done next. If nothing is in flight afterwards, the pump is at its
        end."""

    @abc.abstractmethod
    def _settle(self) -> None:
        """Gives back what is held, and frees the streams.

        Called when nothing is in flight any more, or when no completion will ever arrive.
        """

    def _operation(
        self, way: Direction, kind: int, handle: Callable[[int], object]
    ) -> TaskOperation:
        """An operation of a direction, which the pump keeps while it holds the direction. Its
        results go to `handle`."""
        return self._add(way.get(kind), handle)

    def _poll_operation(self, way: Direction, ready: Callable[[], object]) -> TaskOperation:
        op = way.get(POLL)
        return self._add(op, functools.partial(self._polled, way, op, ready))

    def _own_operation(
        self, way: Direction, opcode: int, fd: int, owner: object, handle: Callable[[int], object]
    ) -> TaskOperation:
        """An operation on another descriptor, which closing the direction ends as well."""
        op = way.operations[self] = TaskOperation(self.engine, opcode, fd, owner)
        self._extra.append((way, self))
        return self._add(op, handle)

    def _add(self, op: TaskOperation, handle: Callable[[int], object]) -> TaskOperation:
        self._operations[op] = functools.partial(self._finished, op, handle)
        return op

    def _chain(self, way: Direction, op: TaskOperation) -> None:
        if not way.is_open():
            raise self._way_error(way, -errno.EBADF)
        self.engine.chain(op, self._operations[op])

    def _sent(self, count: int) -> None:
        self.total += count
        self.out.sent = self.total

    def _moved(self, count: int) -> None:
        """Counts bytes that were sent without the ring."""
        self.engine.ring.counters.moved[Opcode.SEND] += count
        self._sent(count)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stop()

    def _way_error(self, way: Direction, res: int) -> BaseException:
        """The exception for a negative result; its message names the source or the sink."""
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
        """After a negative result of a send: whether to repeat it when the sink is ready.

        False: the pump is stopping.
        """
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
        if res >= 0 and not res & (op.flags | POLL_ALWAYS):
            self._poll_by_epoll(way, op)
        else:
            ready()

    def _poll_by_epoll(self, way: Direction, op: TaskOperation) -> None:
        """Polls by way of an epoll instance.

        A poll in io_uring completes once the peer has half-closed (POLLRDHUP), whatever it asked
        for; epoll does not.
        """
        if sys.platform != "linux":  # as wherever there is a ring
            raise AssertionError
        self._epoll = poller = select.epoll()
        poller.register(way.fd, op.flags)
        op.fd, op.owner = poller.fileno(), (way.owner, poller)
        op.flags, op.entry = POLLIN, None
        del way.operations[POLL]  # the next poll of this direction expects another one
        way.operations[poller] = op
        self._extra.append((way, poller))
        self._chain(way, op)

    def _sink_closed(self) -> None:
        """The sink was closed, at any point: so no task is woken here."""
        if not self._stopping:
            self.engine.at_flush(self._end_closed)
            if not self.engine.busy:
                self._stop()

    def _end_closed(self) -> None:
        if not self._over:
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
        # Called after every completion, where the cost of a generator would show.
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
        # Otherwise they would keep the pump, and the pump its streams, until a garbage collection.
        self._operations.clear()
        self._extra.clear()
        if self._epoll is not None:
            self._epoll.close()
        if self._given_up:
            self._error = None  # no task will raise it, and its traceback refers to the pump

    # -- the task

    @enable_ki_protection
    async def run(self, progress: Callable[[int], object] | None) -> int:
        """Pumps to the end, and returns `total`.

        The streams' directions must already be taken; they are free when the pump is over.
        """
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
            if self._task is not None:  # the coroutine was destroyed: there is no task to wake
                self._task = self._told = None
                self.engine.at_flush(self._give_up)

    def _give_up(self) -> None:
        self._given_up = True
        self._stop()
        self._after()

    @enable_ki_protection
    def _abort(self, raise_cancel: Callable[[], NoReturn]) -> Abort:
        if self.engine.phase.over:  # in a forked child everything belongs to the parent
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
        """Called by trio when the task resumes."""
        raise_cancel, self._raise_cancel = self._raise_cancel, None
        if raise_cancel is not None and self._error is None and not self._complete:
            raise_cancel()

    @abc.abstractmethod
    def _is_complete(self) -> bool:
        """Whether everything asked for is done, so that a cancellation comes too late."""


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
    """Takes a direction that is usable in this run."""
    way.move()
    way.hold()


def give(way: Direction) -> None:
    """Gives back a direction that `take` has taken."""
    way.held, way.told = False, None


def can_pump(source: Direction, sink: Direction) -> bool:
    """Whether this run's engine can move bytes from one to the other without a task.

    A pipe, which may have other readers, is never received from by a completion.
    """
    engine = current_driver().engine
    if not isinstance(engine, Engine) or not engine.pumps:
        return False
    ring = engine.ring
    return source.is_socket or (takes_splices(ring, source) and takes_splices(ring, sink))
