"""Calls that are cancelled and destroyed (coro.close()) at any step.

Rules of this file: a call is destroyed only where it waits for us: what trio itself has of a
destroyed call is trio's.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Generator
from typing import Any

import outcome
import trio

from trio_uring._driver.operation import TaskOperation
from trio_uring._relay.pump import Pump

CHECKPOINTS = (0, 1, 1, 2, 3, 5)  # before what happens to the call


class Call:
    """Runs a coroutine in the task that awaits this, where another may destroy it.

    Attributes:
        result: what the coroutine has returned.
        destroyed: it was destroyed.
    """

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self.result: Any = None
        self._coro = coro
        self._task: trio.lowlevel.Task | None = None
        self._waits_for: object = None
        self.destroyed = False

    def __await__(self) -> Generator[Any, Any, None]:
        self._task, value = trio.lowlevel.current_task(), None
        try:
            while not self.destroyed:
                message = self._coro.send(value)
                abort = getattr(message, "abort_func", None)
                self._waits_for = getattr(abort, "__self__", None)
                value = yield message
                self._waits_for = None
        except StopIteration as exc:
            self.result = exc.value

    def destroy(self) -> bool:
        """False: it does not wait for us."""
        if not isinstance(self._waits_for, (TaskOperation, Pump)):
            return False
        self.destroyed = True
        self._coro.close()
        task = self._task
        assert task is not None
        if task._next_send_fn is None:  # it is not about to resume
            trio.lowlevel.reschedule(task, outcome.Value(None))
        return True


async def interrupted(call: Call, how: str, rnd: random.Random) -> None:
    """Runs it to its end, whatever that is."""
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await call

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(rnd.choice(CHECKPOINTS) if how else 0):
            await trio.lowlevel.checkpoint()
        if how in ("cancelled", "both"):
            scope.cancel()
            for _ in range(rnd.choice((0, 0, 1))):
                await trio.lowlevel.checkpoint()
        if how in ("destroyed", "both") and not call.destroy():
            scope.cancel()
