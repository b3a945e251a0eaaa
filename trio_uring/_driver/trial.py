"""Tests io_uring before it is trusted: its system calls, and then a ring.

The system calls are tried in a child process, if there is a seccomp filter that may kill for them.

Rules of this file: it is for Linux, as rings are. What is found out about io_uring is returned, and
holds for this process. If a trial does not get something that it needs itself (a process, memory, a
descriptor), it raises: that says nothing about io_uring.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import mmap
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from .._errors import RingBrokenError, RingUnavailableError, why_unavailable
from .._ring.extension import ffi, lib
from .._ring.figures import SMALL_SIZE
from .._ring.op import CLOSED_FD, NO_GROUP, SMALL_GROUP, Opcode, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from .._ring.protocol import Ring

    _Sleep: TypeAlias = Callable[[Ring, Operation], bool]

TRIAL_SECONDS = 1.0  # for the child to exit, and for each wake-up of the self-test
_TRIES = 3  # of the self-test: a defect fails each time, and a pause of the process once
_POLL_SECONDS = 0.0002  # between two checks of the child, which runs for about as long
_POLL_MAX = 10 * _POLL_SECONDS  # more was a pause of the machine, in which no child runs

_NOP = 0  # IORING_OP_NOP, which nothing here uses

_STATUS = "/proc/thread-self/status"
_WAIT_ALL = 0x40000000  # __WALL: also waits for a child that sends no SIGCHLD


def waits(seconds: float, longest: float) -> Iterator[None]:
    """Yields for each wait, until the caller has waited for `seconds` in all.

    A process may be stopped, or get no processor, for longer than that: which is no sign that the
    other side does not answer.

    Args:
        seconds: how long to wait in all.
        longest: what one wait takes at most; more was a pause of the process, and does not count.
    """
    while seconds > 0:
        before = time.monotonic()
        yield
        seconds -= min(time.monotonic() - before, longest)


# -- the system calls


def seccomp_filters() -> tuple[bytes, ...]:
    """What the kernel says of the seccomp filters on this thread; () if there is none.

    It includes their number (Linux 5.9), and filters are only ever added: if the answer is the
    same, so are the filters.
    """
    try:
        with open(_STATUS, "rb") as status:  # bytes: a codec is a file, and may be out of reach
            lines = tuple(line.strip() for line in status if line.startswith(b"Seccomp"))
    except OSError:  # prctl(PR_GET_SECCOMP) is no help: a filter may kill for that, too
        return (b"unknown",)
    return () if not lines or b"Seccomp:\t0" in lines else lines


def try_system_calls() -> RingUnavailableError | None:
    """Makes io_uring's system calls in a child process.

    A filter that kills for clone(2) ends this process: under such a filter nothing can be tried.

    Returns:
        Why they cannot be made here; None: they can.

    Raises:
        RingUnavailableError: a child process could not be started.
    """
    page = mmap.PAGESIZE
    with mmap.mmap(-1, page) as shared, ffi.from_buffer("uint8_t[]", shared) as stage:
        pid: int = lib.tu_try_calls(stage)
        if pid < 0:
            raise RingUnavailableError(-pid, _why_no_child(-pid))
        ended = _wait_for_child(pid, stage)
        reached = stage[0]
    if reached == lib.TU_TRIED:
        return None
    call = {
        lib.TU_TRIES_SETUP: "io_uring_setup",
        lib.TU_TRIES_REGISTER: "io_uring_register",
        lib.TU_TRIES_ENTER: "io_uring_enter",
    }.get(reached, "prctl")
    return RingUnavailableError(
        errno.EPERM,
        f"{call} is forbidden here by a seccomp filter: a child process that tried it {ended}. "
        "A filter that is to allow io_uring has to allow io_uring_setup, io_uring_enter and "
        "io_uring_register",
    )


def _why_no_child(code: int) -> str:
    what = "a seccomp filter is in force, and no child could be started to test io_uring: clone"
    if code == errno.EAGAIN:
        return why_unavailable(code, what)
    why = "the filter forbids that, too"
    if code == errno.ENOMEM:
        why = "there is no memory for a copy of this process (sysctl vm.overcommit_memory)"
    return f"{what} failed with {errno.errorcode.get(code, code)}: {why}"


def _wait_for_child(pid: int, stage: Any) -> str:
    """Waits for the child to exit and says, in words, how it ended. Kills it if it is too slow."""
    if sys.platform != "linux":
        raise AssertionError
    for _ in waits(TRIAL_SECONDS, _POLL_MAX):
        try:
            ended, status = os.waitpid(pid, _WAIT_ALL | os.WNOHANG)
        except ChildProcessError:  # the program waits for all children, by __WALL, and was faster
            return "ended"
        except OSError:  # a filter forbids waiting
            ended = status = 0
            if stage[0] == lib.TU_TRIED:
                return "ended"
        if ended:
            number = os.WTERMSIG(status)
            return f"was killed by {signal.Signals(number).name}" if number else "ended"
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WAIT_ALL)
    # The filter asks another process (a seccomp notifier), which does not answer.
    return f"did not return from it within {TRIAL_SECONDS:g} s"


# -- a ring


class _Failed(Exception):
    """The self-test has found a defect; the message names it."""


def self_test(ring: Ring) -> RingUnavailableError | str | None:
    """Tests that the ring wakes this thread, in each way in which a driver sleeps.

    Another thread does what must wake it.

    Returns:
        None: it was woken each time. An error: why the ring cannot be used. A sentence: what could
        not be tested.
    """
    threaded = False
    for tries_left in reversed(range(_TRIES)):
        try:
            threaded = _try_to_wake(ring)
            break
        except _Failed as exc:
            if not tries_left:
                return RingUnavailableError(errno.EIO, f"io_uring's self-test failed: {exc}")
        except RingBrokenError as exc:
            why = f"io_uring's self-test failed: {exc.strerror}"
            return RingUnavailableError(exc.errno, why)
    if threaded:
        return None
    return "no thread could be started: that another one wakes a sleeping thread was not tested"


def _try_to_wake(ring: Ring) -> bool:
    """One round of the self-test. False: no other thread could be started."""
    threaded = True
    # With DEFER_TASKRUN, completions wait until we enter: the descriptor wakes no epoll.
    if "DEFER_TASKRUN" not in ring.info.setup_flags:
        threaded &= _receive(ring, "an epoll that watches the ring", _sleep_in_epoll)
    threaded &= _receive(ring, "io_uring_enter", _sleep_in_ring)
    threaded &= _watch_epoll(ring)
    if ring.info.restricted:
        _try_other_opcode(ring)
    return threaded


def _receive(ring: Ring, sleeper: str, sleep: _Sleep) -> bool:
    """Receives a byte that comes while this thread sleeps. False: no thread could send it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        op = Operation(Opcode.RECV, ours.fileno(), ours)
        op.group, op.length = SMALL_GROUP if ring.info.provided_buffers else NO_GROUP, SMALL_SIZE
        own = bytearray(SMALL_SIZE)
        if op.group == NO_GROUP:
            op.buffer = own
        _enter(ring, op)
        with _Sender(theirs) as threaded:
            if not sleep(ring, op):
                within = f"within {TRIAL_SECONDS:g} s"
                raise _Failed(f"a byte that was sent did not wake {sleeper} {within}")
        if op.res != 1 or (op.chunk if op.group != NO_GROUP else own[:1]) != b"?":
            raise _Failed("a byte that was sent came as another")
        return threaded


def _watch_epoll(ring: Ring) -> bool:
    """Watches an epoll instance, as the loop watches trio's. False: no thread could wake it."""
    if sys.platform != "linux":
        raise AssertionError
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as poller:
        poller.register(ours, select.EPOLLIN)
        op = Operation(Opcode.POLL_ADD, poller.fileno(), poller)
        op.flags = select.POLLIN
        _enter(ring, op)
        with _Sender(theirs) as threaded:
            if not _sleep_in_ring(ring, op) or op.res < 0 or not op.res & select.POLLIN:
                within = f"within {TRIAL_SECONDS:g} s"
                raise _Failed(f"an epoll that the ring watches did not wake it {within}")
        return threaded


def _try_other_opcode(ring: Ring) -> None:
    """Submits what a restricted ring has to refuse."""
    op = Operation(Opcode.POLL_ADD, CLOSED_FD)
    op.entry = ffi.new("struct tu_entry *", (_NOP, 0, 0, 0))
    op.entry_at = int(ffi.cast("uintptr_t", op.entry))
    _enter(ring, op)
    if not _sleep_in_ring(ring, op) or op.res != -errno.EACCES:
        raise _Failed("a restricted ring did not refuse an operation that it is not for")


def _enter(ring: Ring, op: Operation) -> None:
    ring.submit(op)
    try:
        ring.flush()
    except RingBrokenError:
        ring.table.clear()  # the kernel never saw the operation
        raise
    ring.drain([])


class _Sender:
    """Sends a byte from another thread; if none can be started, at once, from this one.

    Its value in a `with` block is whether it is another thread that sends.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sent = _thread.allocate_lock()

    def __enter__(self) -> bool:
        self._sent.acquire()
        try:
            # Not threading.Thread: its start() waits forever if the new thread has no memory.
            _thread.start_new_thread(self._send, ())
        except (RuntimeError, MemoryError):
            self._send()
            return False
        return True

    def _send(self) -> None:
        try:
            with contextlib.suppress(OSError):  # the socket is closed: this thread came too late
                self._socket.send(b"?")
        finally:
            self._sent.release()

    def __exit__(self, *_: object) -> None:
        self._sent.acquire(timeout=TRIAL_SECONDS)


def _sleep_in_epoll(ring: Ring, op: Operation) -> bool:
    if sys.platform != "linux":
        raise AssertionError
    with select.epoll() as poller:
        poller.register(ring.fileno(), select.EPOLLIN)
        return _sleep(ring, op, lambda left: bool(poller.poll(left)))


def _sleep_in_ring(ring: Ring, op: Operation) -> bool:
    def sleep(left: float) -> bool:
        before = time.monotonic()
        ring.turn(left, [])
        return time.monotonic() - before < left

    return _sleep(ring, op, sleep)


def _sleep(ring: Ring, op: Operation, sleep: Callable[[float], bool]) -> bool:
    """Sleeps until the operation is done. False: nothing woke us in time."""
    deadline = time.monotonic() + TRIAL_SECONDS
    while op.state.in_kernel:
        left = deadline - time.monotonic()
        if left <= 0 or not sleep(left):
            return False
        ring.drain([])
    return True
