"""How an engine ends: its ring fails, or its run is over.

Rules of this file: everybody who waits is told, whatever happens. What the kernel may still write
to stays pinned by the ring.
"""

from __future__ import annotations

import errno
import logging
import time
from typing import TYPE_CHECKING, Any

import trio

from .._errors import RingBrokenError
from .._ring.protocol import SHORT_PAUSE
from .phases import FAILED

if TYPE_CHECKING:
    from typing import NoReturn

    from .engine import Engine
    from .operation import TaskOperation

_log = logging.getLogger("trio_uring")

_ECANCELED = -errno.ECANCELED
_TEARDOWN_WAIT = 0.05  # seconds of one wait in the kernel


def refuse(engine: Engine, op: TaskOperation, exc: BaseException) -> None:
    """Tells whoever waits for an operation that it will not be done."""

    def raise_it() -> NoReturn:
        raise exc

    if not op.state.in_kernel:
        op.let_go()
    if op.task is not None or op.then is not None:
        op.res, op.raise_cancel = _ECANCELED, raise_it
        engine.finish(op)
    if engine.hooks is not None:
        # In before_io_wait, trio has made up its mind how long to wait.
        engine.come_back()


def failed(engine: Engine) -> trio.BrokenResourceError:
    return trio.BrokenResourceError(f"{FAILED.refusal}: {engine.failure}")


def fail(engine: Engine, exc: BaseException) -> None:
    """The ring is gone."""
    engine.failure = exc
    engine.enter(FAILED)
    _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)
    for op in engine.done:  # these were done before it happened
        engine.finish(op)
    engine.done.clear()
    stranded: list[Any] = [*engine.ring.table.values(), *engine.queue]
    for op in engine.queue:
        if not op.state.in_kernel:  # an earlier flush of this pass may have handed it over
            op.let_go()
    engine.queue.clear()
    for op in stranded:
        error = failed(engine)
        error.__cause__ = exc
        refuse(engine, op, error)
    engine.dirty = False
    engine.close_deferred()
    if engine.hooks is not None:
        engine.hooks.idle()


def empty(engine: Engine, seconds: float) -> None:
    """At the end of the run: cancels what is left, and waits for the kernel to give it back.

    Raises:
        Exception: it cannot be emptied.
    """
    ring, deadline = engine.ring, time.monotonic() + seconds
    while engine.errands:
        engine.errands.pop()()
    queue, engine.queue = engine.queue, {}
    for op in queue:
        op.task, op.res = None, _ECANCELED
        op.finish()
    if isinstance(engine.failure, RingBrokenError):
        # Entries that it did not take may name descriptors that are closed by now.
        raise engine.failure
    left: Any
    for left in list(ring.table.values()):
        left.task = None  # it cannot be woken any more
        ring.cancel(left)
    ring.flush()
    engine.reap_ring()
    while ring.table and time.monotonic() < deadline:
        ring.turn(_TEARDOWN_WAIT, engine.done)
        engine.finish_done()
        if ring.short:
            time.sleep(SHORT_PAUSE)
