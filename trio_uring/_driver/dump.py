"""What every trio.run of this process is waiting for, as text, and a signal that asks for it.

A signal handler of Python's runs in the main thread, between two instructions of whatever runs
there: perhaps in the middle of a pass of the loop, or while another thread has the run. It is
answered at once all the same, since a program that hangs does not come to a better moment.

Rules of this file: those of `looking`. Nothing is raised from a signal handler, and nothing goes
through the buffers of sys.stderr, which the handler may have interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
from threading import get_ident
from typing import TYPE_CHECKING, Any

from .looking import runs_at
from .run import going_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from .._ring.statistics import OperationInFlight
    from .run import AnyDriver

_STDERR = 2
_TRIES = 10  # while another thread changes what is looked at
_NO_RUN = "no trio.run of this process has used trio_uring, or all of them are over"


def dump_operations() -> str:
    """What is waiting in every trio.run of this process, as text of several lines.

    For each operation: the opcode, the descriptor, its peer, its age in seconds, its task, and
    where that task waits. It may be called anywhere: in a run or outside, in any thread, and in a
    signal handler. It changes nothing, and takes no lock.
    """
    runs = _tried(going_on) or []
    lines = [line for driver in runs for line in _run(driver)]
    return "\n".join(lines or [_NO_RUN])


def dump_on_signal(signum: int | None = None, *, file: Any = None) -> Any:
    """From now on, a signal writes `dump_operations()`, and where the main thread is, to a file.

    It is written at once, also where a task keeps the run from going on, or the run is in another
    thread. (A main thread that is in a call that signals do not interrupt answers when the call
    returns, and a signal that comes while one is answered is dropped.) Call it in the main thread;
    the signal's earlier handler is replaced.

    Args:
        signum: the signal; None: SIGUSR1.
        file: what to write to: a descriptor, or an object with a `fileno`. It must stay open, and
            somebody must read it: writing to a full pipe waits. None: the standard error output.

    Returns:
        The earlier handler, as signal.signal does.

    Raises:
        ValueError: this is not the main thread, or None was given on a platform without SIGUSR1.
    """
    if signum is None:
        signum = getattr(signal, "SIGUSR1", None)
        if signum is None:
            raise ValueError("this platform has no SIGUSR1: name a signal")
    target: int = _STDERR
    if file is not None:
        target = file if isinstance(file, int) else file.fileno()

    busy = False

    def dump(_: int, frame: FrameType | None) -> None:
        nonlocal busy
        if busy:  # signals that come faster than they are answered would fill the stack
            return
        busy = True
        try:
            _write(target, _answer(frame))
        finally:
            busy = False

    return signal.signal(signum, dump)


def _answer(frame: FrameType | None) -> bytes:
    try:
        text = f"{_heading(frame)}\n{dump_operations()}\n"
    except Exception as exc:
        text = f"trio_uring could not look at its operations: {type(exc).__name__}: {exc}\n"
    return text.encode(errors="backslashreplace")


def _heading(frame: FrameType | None) -> str:
    return f"trio_uring, process {os.getpid()}: the main thread is at {_at(runs_at(frame))}"


def _run(driver: AnyDriver) -> list[str]:
    """The lines of one run."""
    engine = driver.engine
    operations: list[OperationInFlight] | None = _tried(driver.operations)
    thread = "in this thread" if engine.thread == get_ident() else f"in thread {engine.thread}"
    what = f"a run {thread}, on {driver.backend.backend}, {engine.phase}"
    if operations is None:
        return [f"{what}: its operations change faster than they can be read"]
    count = len(operations)
    return [
        f"{what}: {count} operation{'' if count == 1 else 's'} in flight",
        *map(_line, sorted(operations, key=lambda op: -op.age)),
    ]


def _line(op: OperationInFlight) -> str:
    peer = f", peer {op.peer}" if op.peer else ""
    task = f"task {op.task_name!r}" if op.task_name else "no task"
    where = f" at {_at(op.waits_at)}" if op.waits_at else ""
    return f"  {op.opcode} on descriptor {op.fd}{peer}, {op.state}, {op.age:.3f} s, {task}{where}"


def _at(places: tuple[str, ...]) -> str:
    return ", called from ".join(places) or "an unknown place"


def _tried(look: Callable[[], Any]) -> Any:
    """What `look` returns; None: what it looks at has changed in the middle each time."""
    for _ in range(_TRIES):
        try:
            return look()
        except (RuntimeError, LookupError, AttributeError):
            pass
    return None


def _write(file: int, text: bytes) -> None:
    """Writes to a descriptor, as far as that can be done."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(file, text) :]
