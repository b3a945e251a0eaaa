"""The end of a run: its ring is emptied.

Rules of this file: what the kernel may still write to stays pinned by the ring.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

from .._errors import RingBrokenError
from .._ring.figures import SHORT_PAUSE
from .trial import waits

if TYPE_CHECKING:
    from .ring_side import RingSide

_ECANCELED = -errno.ECANCELED
_TEARDOWN_WAIT = 0.05  # seconds of each wait in the kernel


def empty(engine: RingSide, seconds: float) -> None:
    """Cancels the operations left at the end of the run, and waits until the kernel is done.

    Args:
        engine: the run's engine.
        seconds: how long to wait.

    Raises:
        Exception: the ring cannot be emptied.
    """
    engine.run_last_errands()
    engine.busy = True
    try:
        _empty(engine, seconds)
    finally:
        engine.busy = False


def _empty(engine: RingSide, seconds: float) -> None:
    ring = engine.ring
    queue, engine.queue = engine.queue, {}
    for op in queue:
        op.task, op.res = None, _ECANCELED
        op.finish()
    if isinstance(engine.failure, RingBrokenError):
        # Entries that the kernel did not take may name descriptors that are closed by now.
        raise engine.failure
    left: Any
    for left in list(ring.table.values()):
        left.task = None  # it cannot be woken any more
        ring.cancel(left)
    ring.flush()
    engine.reap_ring()
    for _ in waits(seconds, _TEARDOWN_WAIT):
        if not ring.table:
            break
        ring.turn(_TEARDOWN_WAIT, engine.done)
        engine.finish_done()
        if ring.short:
            time.sleep(SHORT_PAUSE)
