"""Which ring a trio.run gets: the kernel's, or where that cannot be had the one over epoll, and why.

Rules of this file: importing looks at nothing. io_uring is trusted only after it has received a byte and woken an epoll for it
(containers and emulations answer in many ways); whatever goes wrong with it is a reason to use epoll, never a crash.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from ._contract import SMALL_SIZE
from ._errors import RingBrokenError, RingUnavailableError
from ._op import NO_GROUP, SMALL_GROUP, Opcode, Operation
from ._poll_ring import PollRing
from ._ring import SQ_ENTRIES_MIN, UringRing

if TYPE_CHECKING:
    from ._contract import Ring

_log = logging.getLogger("trio_uring")

BACKENDS = ("uring", "epoll", "auto")
VARIABLE = "TRIO_URING_BACKEND"
SELF_TEST_SECONDS = 1.0
RETRY_SECONDS = 10.0  # after which "auto" asks again for memory that was refused: asking takes a while, see _ring._open


@dataclass(frozen=True)
class BackendInfo:
    """What drives the streams of a trio.run."""

    backend: str
    """"uring" or "epoll"; the name of a test's ring."""
    reason: str | None
    """Why it is not io_uring; None: it is."""
    requested: str
    """What was asked for: "uring", "epoll" or "auto"."""
    setup_flags: tuple[str, ...]
    """IORING_SETUP_* that the kernel took; none on epoll."""


class _Memory:
    """What this process has found out."""

    tested = False
    unfit: RingUnavailableError | None = None  # what the self-test found
    refused_memory: tuple[float, RingUnavailableError] | None = None  # when, and with what
    logged: set[str] = set()  # noqa: RUF012  (one per process)


@enable_ki_protection
def open_ring(backend: str | None = None) -> tuple[Ring, BackendInfo]:
    """Opens the ring that is asked for, and logs once for each reason that "auto" means epoll.

    Args:
        backend: "uring", "epoll" or "auto"; None: what the environment variable TRIO_URING_BACKEND says, or "auto".

    Raises:
        ValueError: it is none of these.
        RingUnavailableError: io_uring is asked for and cannot be had; or there is no ring at all.
    """
    ring, info = _open(backend)
    if info.requested == "auto" and info.reason is not None and info.reason not in _Memory.logged:
        _Memory.logged.add(info.reason)
        _log.info("trio_uring runs on epoll: %s", info.reason)
    return ring, info


@enable_ki_protection
def probe(backend: str | None = None) -> BackendInfo:
    """What open_ring would open now. It opens it, and closes it again; it raises what open_ring raises."""
    ring, info = _open(backend)
    ring.close()
    return info


def _open(backend: str | None) -> tuple[Ring, BackendInfo]:
    requested, asked_by = _requested(backend)
    reason = f"epoll is asked for by {asked_by}"
    if requested != "epoll":
        try:
            ring = _open_uring(patient=requested == "uring")
            return ring, BackendInfo("uring", None, requested, ring.info.setup_flags)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if requested == "uring":
                raise RingUnavailableError(
                    exc.errno or errno.EIO, f"{reason}. io_uring is asked for by {asked_by}; 'auto' means epoll here"
                ) from exc
    return PollRing(), BackendInfo("epoll", reason, requested, ())


def _requested(backend: str | None) -> tuple[str, str]:
    """What is asked for, and by whom."""
    asked_by = "this run's argument"
    if backend is None:
        asked_by = f"the environment variable {VARIABLE}"
        backend = os.environ.get(VARIABLE) or "auto"
    check_backend(backend, asked_by)
    return backend, asked_by


def check_backend(backend: str, asked_by: str = "the backend") -> None:
    """Raises ValueError if there is no such backend."""
    if backend not in BACKENDS:
        raise ValueError(f"{asked_by} is {backend!r}: a backend is one of {', '.join(map(repr, BACKENDS))}")


def _open_uring(patient: bool) -> UringRing:
    """A ring of the kernel's that works. `patient`: asks for memory though it was refused a moment ago."""
    if not patient and _Memory.refused_memory is not None:
        when, refusal = _Memory.refused_memory
        if time.monotonic() - when < RETRY_SECONDS:
            raise RingUnavailableError(refusal.errno, refusal.strerror)
    try:
        _test_once()
        return UringRing()
    except RingUnavailableError as exc:
        if exc.errno == errno.ENOMEM:
            _Memory.refused_memory = time.monotonic(), exc
        raise


def _test_once() -> None:
    """Makes the self-test, or raises with its result. What it wants for itself and does not get (EMFILE) is not a result."""
    if not _Memory.tested:
        ring = UringRing(sq_entries=SQ_ENTRIES_MIN)
        try:
            if not self_test(ring):
                what = f"a byte that was sent woke nobody within {SELF_TEST_SECONDS:g} s, or came as another"
                _Memory.unfit = RingUnavailableError(errno.EIO, f"io_uring's self-test failed: {what}")
        except RingBrokenError as exc:
            _Memory.unfit = RingUnavailableError(exc.errno, f"io_uring's self-test failed: {exc.strerror}")
        finally:
            _empty(ring)
        _Memory.tested = True
    if _Memory.unfit is not None:
        raise RingUnavailableError(_Memory.unfit.errno, _Memory.unfit.strerror)


def self_test(ring: Ring) -> bool:
    """Whether a receive that waits is done, and its ring's descriptor wakes an epoll, when another thread sends a byte."""
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as poller:
        poller.register(ring.fileno(), select.EPOLLIN)
        op = Operation(Opcode.RECV, ours.fileno(), ours)
        op.group, op.length = SMALL_GROUP if ring.info.provided_buffers else NO_GROUP, SMALL_SIZE
        own = bytearray(SMALL_SIZE)
        if op.group == NO_GROUP:
            op.buffer = own
        ring.submit(op)
        try:
            ring.flush()
        except RingBrokenError:
            ring.table.clear()  # the kernel has never seen it
            raise
        ring.drain([])
        sender = threading.Thread(target=theirs.send, args=[b"?"], name="trio_uring self-test", daemon=True)
        sender.start()
        deadline = time.monotonic() + SELF_TEST_SECONDS
        while op.state.in_kernel and (left := deadline - time.monotonic()) > 0:
            if poller.poll(left):
                ring.drain([])
        sender.join()
        return not op.state.in_kernel and op.res == 1 and (op.chunk if op.group != NO_GROUP else own[:1]) == b"?"


def _empty(ring: UringRing) -> None:
    """Closes the ring of a self-test, which may have failed; if it gives nothing back, it is leaked as any other would be."""
    deadline = time.monotonic() + SELF_TEST_SECONDS
    with contextlib.suppress(RingBrokenError):
        for op in list(ring.table.values()):
            ring.cancel(op)
        while ring.table and time.monotonic() < deadline:
            ring.flush()
            ring.wait(0.05)
            ring.drain([])
    ring.close()
