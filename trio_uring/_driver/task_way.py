"""The public way to wait for the ring: a system task and an instrument, no private name of trio's.

    tasks run            they queue operations and park
    before_io_wait       flush: the queue goes to the ring, ONE io_uring_enter for all of it
    epoll_wait           trio's own; the system task waits there for the ring's descriptor
    after_io_wait        reap: completions are drained and their tasks rescheduled; they run in the
                         same pass

It is there for guest runs, where trio waits in another thread; for a version of trio whose runner
has another shape; and for anyone who asks for it.

Rules of this file:

- The system task alone would be enough to reap; the hooks save a pass. Only the hooks flush:
  whoever queues an operation installs them again, in case they were removed.
- The system task stays, shielded, until nothing is queued or in flight: a task that waits for a
  completion can be cancelled only by that completion. If an operation is queued after that (in a
  system task's cleanup, or an async generator), the system task is started again.
- Nothing here has a deadline: an idle run stays idle.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import trio

from .._ring.figures import SHORT_PAUSE
from .phases import LATE, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ring_side import RingSide

# Seconds that one pass may block when no task can wait for the ring any more: see before_io_wait.
_LATE_WAIT = 0.05


class TaskWay(trio.abc.Instrument):
    """Waits for the ring of one engine.

    It is an instrument: if a hook raised, trio would remove it.

    Args:
        engine: the engine that has the ring.
        end: called at the end of the run.
    """

    def __init__(self, engine: RingSide, end: Callable[[], object]) -> None:
        self._engine = engine
        self._end = end
        # Cancelled as soon as nothing is queued or in flight.
        self._idle_scope: trio.CancelScope | None = None
        self._task_is_there = False
        self._reaped = False  # whether the hooks have reaped in this pass
        engine.hooks = self

    def start(self) -> None:
        self._spawn()
        self._rehook()

    def disown(self) -> None:
        """Called in a forked child."""
        self._idle_scope = None
        with contextlib.suppress(RuntimeError):  # the child does not go on in the run
            # Ends our system task. A new ring of the child may get the descriptor number of the
            # parent's, which is closed by now.
            trio.lowlevel.notify_closing(self._engine.ring.fileno())

    def queued(self) -> None:
        """There is something to flush, perhaps late: for a system task or an async generator."""
        self._rehook()
        if not self._task_is_there and self._engine.phase is RUNNING:
            self._spawn()

    def idle(self) -> None:
        """Nothing is queued or in flight."""
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    def _rehook(self) -> None:
        trio.lowlevel.add_instrument(self)  # does nothing if it is installed

    # -- the system task

    def _spawn(self) -> None:
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
            self._task_is_there = True
        except RuntimeError:  # async generators are being finalised: no more system tasks
            self._engine.enter(LATE)

    async def _run(self) -> None:
        """Reaps. When cancelled, at the end of the run, it stays until everything is done."""
        engine = self._engine
        try:
            while engine.phase.works:
                await self._wait()
                if not self._reaped:
                    self._rehook()
                    engine.reap()
                self._reaped = False
        except trio.Cancelled:
            self._rehook()
            # Checked again after each scope: the task that was woken last may have queued another
            # operation before we ran.
            while engine.phase.works and (engine.ring.table or engine.queue):
                with trio.CancelScope(shield=True) as self._idle_scope:
                    await self._wait()
                    engine.reap()
            self._idle_scope = None
            self._task_is_there = False
            raise

    async def _wait(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._engine.ring.fileno())
        except (OSError, trio.ClosedResourceError) as exc:  # somebody closed the ring's descriptor
            if self._engine.phase.works:
                self._engine.fail(exc)

    # -- hooks

    def before_io_wait(self, timeout: float) -> None:
        engine = self._engine
        engine.flush()
        if timeout > 0 and engine.ring.short:
            time.sleep(SHORT_PAUSE)
        if engine.phase is LATE and engine.ring.table:
            # No task can wait for the ring any more: wait in the kernel, briefly, and do not let
            # trio wait.
            engine.wait_in_kernel(_LATE_WAIT)
            engine.come_back()

    def after_io_wait(self, timeout: float) -> None:
        self._reaped = True
        self._engine.reap()

    def after_run(self) -> None:
        self._end()
