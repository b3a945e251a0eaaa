"""Chooses what drives a trio.run, the kernel's ring or readiness, and says why.

Rules of this file: importing checks nothing. io_uring is trusted only after it has received a byte
and woken a thread for it (containers and emulations answer in many ways); whatever goes wrong in
that test is a reason to use readiness, never a crash.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from dataclasses import dataclass
from typing import TypeAlias

from trio.lowlevel import enable_ki_protection

from .._errors import RingBrokenError, RingUnavailableError, why_unavailable
from .._ring.setup import SQ_ENTRIES_MIN
from .._ring.uring import UringRing
from .trial import TRIAL_SECONDS, seccomp_filters, self_test, try_system_calls, waits

_log = logging.getLogger("trio_uring")

BACKENDS = ("uring", "readiness", "auto", "off")
_ALIASES = {"epoll": "readiness"}
VARIABLE = "TRIO_URING_BACKEND"
RESTRICT = "TRIO_URING_RESTRICT"
# After this time, "auto" tries again to get memory that was refused. Trying takes a while: see
# _ring/setup.py.
RETRY_SECONDS = 10.0
_EMPTY_SECONDS = 0.05  # of each wait for the ring of a self-test
_ADVICE = (
    "Nobody asked for that: change what this names to have io_uring, or set "
    f"{VARIABLE}=readiness to keep it so without this message"
)


@dataclass(frozen=True)
class BackendInfo:
    """What drives the streams of a trio.run."""

    backend: str
    """"uring" or "readiness"; in tests, the name of the test's ring."""
    reason: str | None
    """Why it is not io_uring; None: it is."""
    requested: str
    """What was asked for: "uring", "readiness", "auto" or "off"."""
    setup_flags: tuple[str, ...]
    """The IORING_SETUP_* flags that the kernel accepted; none without a ring."""
    untested: str | None = None
    """A sentence about what could not be tested before the ring was used; None: all was tested."""
    restricted: bool = False
    """Whether the kernel refuses whatever else is asked of the ring: it takes only the opcodes that
    this package uses, and nothing can be registered with it. Always false without a ring."""

    @property
    def fell_back(self) -> bool:
        """Whether it is readiness though nobody asked for that."""
        return (self.backend, self.requested) == ("readiness", "auto")


_Filters: TypeAlias = tuple[bytes, ...]
_Found: TypeAlias = RingUnavailableError | str | None  # what self_test returns


class _Memory:
    """What this process has found out, by the seccomp filters in force: more may be added later."""

    calls: dict[_Filters, RingUnavailableError | None] = {}  # noqa: RUF012  (one per process)
    rings: dict[tuple[_Filters, str, bool], _Found] = {}  # noqa: RUF012  (and by how it is opened)
    refused_memory: tuple[float, RingUnavailableError] | None = None  # when, and the error
    logged: set[str] = set()  # noqa: RUF012  (reasons)
    warned = False

    @classmethod
    def forget(cls) -> None:
        """Forgets everything. For tests."""
        cls.calls.clear()
        cls.rings.clear()
        cls.logged.clear()
        cls.warned = False
        cls.refused_memory = None


@enable_ki_protection
def open_ring(
    backend: str | None = None,
    flags: str = "defer",
    restrict: bool = False,
) -> tuple[UringRing | None, BackendInfo]:
    """Opens the ring that is asked for.

    Args:
        backend: "uring", "readiness", "auto" or "off"; None: the environment variable
            TRIO_URING_BACKEND, or "auto" if it is not set.
        flags: as for UringRing.
        restrict: as for UringRing; also if the environment variable TRIO_URING_RESTRICT says so.

    Returns:
        The ring, or None for readiness; and its description.

    Raises:
        ValueError: there is no such backend, or the variable is neither 0 nor 1.
        RingUnavailableError: io_uring is asked for and not available.
    """
    return _open(backend, flags, restrict)


def log_fallback(info: BackendInfo, enabled: bool) -> None:
    """If a run fell back, logs why.

    Args:
        info: what drives the run.
        enabled: the run was enabled, so somebody wants io_uring: logs one WARNING in this process.
            Otherwise each reason is logged once, at INFO.
    """
    if not info.fell_back or info.reason is None:
        return
    if enabled and not _Memory.warned:
        _Memory.warned = True
        _log.warning("trio_uring waits by readiness: %s. %s", info.reason, _ADVICE)
    elif info.reason not in _Memory.logged:
        _log.info("trio_uring waits by readiness: %s", info.reason)
    _Memory.logged.add(info.reason)


@enable_ki_protection
def probe(backend: str | None = None, restrict: bool = False) -> BackendInfo:
    """What open_ring would open now, found by opening and closing it. Raises what that raises."""
    ring, info = _open(backend, "defer", restrict)
    if ring is not None:
        ring.close()
    return info


def _open(backend: str | None, flags: str, restrict: bool) -> tuple[UringRing | None, BackendInfo]:
    requested, asked_by = _requested(backend)
    restrict = variable_restricts() or restrict
    if requested in ("readiness", "off"):
        reason = f"{requested} is asked for by {asked_by}"
        return None, BackendInfo("readiness", reason, requested, ())
    try:
        ring, untested = open_uring(flags, requested == "uring", restrict)
    except Exception as exc:  # there are as many ways to fail as there are sandboxes
        refusal = _refusal(exc)
        if requested == "uring":
            asked = f"io_uring is asked for by {asked_by}; 'auto' means readiness here"
            raise RingUnavailableError(refusal.errno, f"{refusal.strerror}. {asked}") from exc
        return None, BackendInfo("readiness", refusal.strerror, requested, ())
    made = ring.info
    return ring, BackendInfo("uring", None, requested, made.setup_flags, untested, made.restricted)


def _refusal(exc: Exception) -> RingUnavailableError:
    """Turns what prevented a ring into an error with a sentence for a person."""
    if isinstance(exc, RingUnavailableError):
        return exc
    what = "the test whether io_uring works"
    if isinstance(exc, MemoryError):
        exc = OSError(errno.ENOMEM, "")
    if isinstance(exc, OSError) and exc.errno is not None:
        return RingUnavailableError(exc.errno, why_unavailable(exc.errno, what))
    return RingUnavailableError(errno.EIO, f"{what} failed with {type(exc).__name__}: {exc}")


def _requested(backend: str | None) -> tuple[str, str]:
    """What is asked for, and what asks for it."""
    asked_by = "this run's argument"
    if backend is None:
        asked_by = f"the environment variable {VARIABLE}"
        backend = os.environ.get(VARIABLE) or "auto"
    return check_backend(backend, asked_by), asked_by


def check_variable() -> None:
    """Raises ValueError if an environment variable that says which ring to open is wrong."""
    check_backend_variable()
    variable_restricts()


def check_backend_variable() -> None:
    """Raises ValueError if the environment variable TRIO_URING_BACKEND is wrong."""
    _requested(None)


def variable_restricts() -> bool:
    """Whether the environment variable TRIO_URING_RESTRICT asks for a restricted ring.

    Raises:
        ValueError: it is neither 0 nor 1. Taking a misspelt value for 0 would open what is to be
            closed.
    """
    value = os.environ.get(RESTRICT) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"the environment variable {RESTRICT} is {value!r}: it is 0 or 1")
    return value == "1"


def asks_for(name: str, backend: str | None) -> bool:
    """Whether `backend`, or else the environment variable, says `name`; never raises."""
    return (backend or os.environ.get(VARIABLE)) == name


def check_backend(backend: str, asked_by: str = "the backend") -> str:
    """The backend's name in BACKENDS. Raises ValueError if there is no such backend."""
    name = _ALIASES.get(backend, backend)
    if name not in BACKENDS:
        raise ValueError(
            f"{asked_by} is {backend!r}: a backend is one of {', '.join(map(repr, BACKENDS))}"
        )
    return name


def open_uring(
    flags: str = "defer", patient: bool = True, restrict: bool = False
) -> tuple[UringRing, str | None]:
    """Opens a ring that works. Also returns a sentence about what could not be tested, or None.

    Args:
        flags: as for UringRing.
        patient: tries to get memory even if it was refused a moment ago.
        restrict: as for UringRing.

    Raises:
        RingUnavailableError: there is no usable ring.
        Exception: something that its test needs is not available.
    """
    if not patient and _Memory.refused_memory is not None:
        when, refusal = _Memory.refused_memory
        if time.monotonic() - when < RETRY_SECONDS:
            raise RingUnavailableError(refusal.errno, refusal.strerror)
    try:
        untested = _test_once(flags, restrict)
        return UringRing(flags, restrict=restrict), untested
    except RingUnavailableError as exc:
        if exc.errno == errno.ENOMEM:
            _Memory.refused_memory = time.monotonic(), exc
        raise


def _test_once(flags: str, restrict: bool) -> str | None:
    """Makes the trials that have not been made yet; raises, now and later, if they failed."""
    filters = seccomp_filters()
    if filters:
        if filters not in _Memory.calls:
            _Memory.calls[filters] = try_system_calls()
        _raise_again(_Memory.calls[filters])
    key = filters, flags, restrict
    if key not in _Memory.rings:
        ring = UringRing(flags, SQ_ENTRIES_MIN, restrict=restrict)
        try:
            _Memory.rings[key] = self_test(ring)
        finally:
            _empty(ring)
    return _raise_again(_Memory.rings[key])


def _raise_again(found: _Found) -> str | None:
    if isinstance(found, RingUnavailableError):
        raise RingUnavailableError(found.errno, found.strerror)
    return found


def _empty(ring: UringRing) -> None:
    """Closes the ring of a self-test, which may have failed.

    If the kernel does not give its operations back, the ring is leaked, like any other.
    """
    with contextlib.suppress(RingBrokenError):
        for op in list(ring.table.values()):
            ring.cancel(op)
        for _ in waits(TRIAL_SECONDS, _EMPTY_SECONDS):
            if not ring.table:
                break
            ring.turn(_EMPTY_SECONDS, [])
    ring.close()
