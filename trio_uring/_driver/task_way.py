"""The public way to wait for the ring, by nothing private of trio's: a system task, and an
instrument.

    tasks run            they queue operations and park
    before_io_wait       flush: the queue goes to the ring, ONE io_uring_enter for all of it
    epoll_wait           trio's own; the system task waits there for the ring's descriptor
    after_io_wait        reap: completions are drained and their tasks rescheduled; they run in this
                         same pass

For guest runs, where trio waits in another thread; for a trio whose runner has another shape; and
for whoever asks for it.

Rules of this file:

- The system task is enough to reap, and the hooks save a pass. The hooks flush: whoever queues an
  operation puts them back.
- The system task stays, shielded, until nothing is queued or in flight: a task that waits for a
  completion can be cancelled only by that completion. Called upon later (a system task's cleanup,
  an async generator), it comes back.
- Nothing here is due at a certain time: an idle run stays idle.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import trio

from .._ring.protocol import SHORT_PAUSE

if TYPE_CHECKING:
    from .engine import TaskOperation
    from .run import Driver

# seconds that one pass may block when no task can wait for the ring any more; see _flush_late
_LATE_WAIT = 0.05


class TaskWay(trio.abc.Instrument):
    """Waits for the ring of one driver. As an instrument, nothing in it may raise: trio would
    switch it off."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._idle_scope: trio.CancelScope | None = (
            None  # cancelled as soon as nothing is queued or in flight
        )
        self._reaped = False  # by the hooks, in this pass
        self._late = False

    def start(self) -> None:
        self._spawn()
        self.rehook()

    def disown(self) -> None:
        self._idle_scope = None
        with contextlib.suppress(RuntimeError):  # the child has none of the parent's tasks
            # Ours ends. A ring of the child's own may get the number of the parent's, which is
            # closed by now.
            trio.lowlevel.notify_closing(self._driver.ring.fileno())

    def rehook(self) -> None:
        trio.lowlevel.add_instrument(self)  # trio does nothing if it is there

    def idle(self) -> None:
        """Nothing is queued or in flight."""
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    # -- the system task

    def _spawn(self) -> None:
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
        except RuntimeError:  # async generators are being finalised: system tasks are over
            self._late = True

    async def _run(self) -> None:
        """Cancelled at the end of the run: stays until all is done."""
        driver = self._driver
        try:
            while self._working():
                await self._wait()
                if not self._reaped:
                    self.rehook()
                    driver.reap()
                self._reaped = False
        except trio.Cancelled:
            self.rehook()
            # Asked again after each scope: a task that was woken last may have queued the next
            # before we ran.
            while self._working() and (driver.ring.table or driver.queue):
                with trio.CancelScope(shield=True) as self._idle_scope:
                    await self._wait()
                    driver.reap()
            self._idle_scope = None
            if self._working():  # in a forked child it is the parent's
                driver.attention = self._restart
            raise

    async def _wait(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._driver.ring.fileno())
        except (OSError, trio.ClosedResourceError) as exc:  # somebody closed the ring's descriptor
            if self._working():
                self._driver.fail(exc)

    def _working(self) -> bool:
        return self._driver.failure is None and not self._driver.closed

    def _restart(self, _: TaskOperation) -> None:
        """The run is ending and a task (a system task, an async generator) still wants something
        done."""
        self._driver.attention = None
        self._spawn()

    # -- hooks

    def before_io_wait(self, timeout: float) -> None:
        driver = self._driver
        driver.flush()
        if timeout > 0 and driver.ring.short:
            time.sleep(SHORT_PAUSE)
        if self._late and self._working() and driver.ring.table:
            # No task can wait for the ring any more: wait in the kernel, briefly, and make trio
            # come back.
            driver.wait_in_kernel(_LATE_WAIT)
            driver.come_back()

    def after_io_wait(self, timeout: float) -> None:
        self._reaped = True
        self._driver.reap()

    def after_run(self) -> None:
        self._driver.close()
