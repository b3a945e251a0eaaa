"""Stands between the package and the kernel: every io_uring_enter goes through here, and so does
every completion, whether C makes the pass or Python.

Rules of this file: what it injects, a kernel may do. What a provided buffer holds is never kept
back once it was drained, since the next enter gives the buffer back to the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import trio

from trio_uring._ring import uring as _ring
from trio_uring._ring.base import WATCH

from .seccomp import IO_URING_ENTER

PASSING = ("EAGAIN", "EBUSY", "ENOMEM", "EINTR", "ETIME")
FATAL = ("EPERM", "EBADF", "EINVAL", "EFAULT", "ENXIO", "EOPNOTSUPP")

_UNKNOWN_FLAG = 1 << 30  # of io_uring_enter: refused before anything is submitted
_BUFFER = 1  # IORING_CQE_F_BUFFER
_syscall = ctypes.CDLL(None, use_errno=True).syscall

Completion = tuple[int, int, int]  # token, result, flags


class Seam:
    """Takes the place of C's functions, for the rest of the process; passes everything on."""

    def __init__(self) -> None:
        real, turn, more = _ring.lib, _ring._tu_turn, _ring._tu_more
        self._lib, self._tu_turn = real, turn

        class Lib:
            tu_enter = staticmethod(self.enter)
            tu_drain = staticmethod(self.drain)
            tu_more = staticmethod(self.more)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        _ring.lib, _ring._tu_turn, _ring._tu_more = Lib(), self.turn, self.more
        # The accelerator calls them by their addresses.
        self._callbacks = {
            "tu_turn": _callback(
                "int(tu_ring *, unsigned, unsigned, double, int64_t *, unsigned)", self.turn
            ),
            "tu_more": _callback("int(tu_ring *)", self.more),
        }
        address_of = _ring.address_of
        _ring.address_of = lambda name: (
            _ring.address(self._callbacks[name]) if name in self._callbacks else address_of(name)
        )
        assert more is real.tu_more

    def enter(self, c: Any, least: int, flags: int, seconds: float) -> int:
        return int(self._lib.tu_enter(c, least, flags, seconds))

    def drain(self, c: Any, out: Any, most: int) -> int:
        return int(self._lib.tu_drain(c, out, most))

    def turn(self, c: Any, least: int, flags: int, seconds: float, out: Any, most: int) -> int:
        return int(self._tu_turn(c, least, flags, seconds, out, most))

    def more(self, c: Any) -> int:
        return int(self._lib.tu_more(c))


def _callback(signature: str, function: Callable[..., int]) -> Any:
    def call(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except BaseException:  # C could not tell anybody
            traceback.print_exc()
            os._exit(70)

    return _ring.ffi.callback(signature, call)


class Faults(Seam):
    """Injects faults at random.

    Attributes:
        seen: how often each fault was injected.
        operations, cancels: how many completions of either were handed over.
        failed: a fatal answer was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin(random.Random(0), 0.0)

    def begin(self, rnd: random.Random, rate: float, fatal_at: int = -1) -> None:
        """Begins again, with a new ring.

        Args:
            rnd: chooses.
            rate: probability of each kind of fault, in each place where it may be.
            fatal_at: which enter gets a fatal answer, counted from 0; below 0: none does.
        """
        self.rnd, self.rate, self.fatal_at = rnd, rate, fatal_at
        self.fd = -1  # of the ring; `use` sets both
        self._ring: Any = None
        self._refusals: list[str] = []  # the answers of the next enters
        self.seen: dict[str, int] = {}
        self.operations = self.cancels = 0
        self.failed = False
        # Whether the kernel tells that there are completions which come late. Otherwise they are
        # not there yet, and a wait for them goes on.
        self.tells = rnd.random() < 0.5
        self._kept: list[tuple[int, Completion]] = []  # how many looks each is kept for still

    def _chance(self, name: str) -> bool:
        chosen = self.rnd.random() < self.rate
        if chosen:
            self.saw(name)
        return chosen

    def saw(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    # -- entering

    def enter(self, c: Any, least: int, flags: int, seconds: float) -> int:
        if self.fatal_at >= 0:
            self.fatal_at -= 1
            if self.fatal_at < 0:
                self.failed = True
                return -getattr(errno, self.rnd.choice(FATAL))
        if self._ring is not None:
            # No less: what the ring does not know of could be written over.
            assert self._ring._unsubmitted >= self._written(c)
        if not self._refusals and self._chance("refused"):
            # A shortage may last.
            self._refusals = [self.rnd.choice(PASSING)] * self.rnd.choice((1, 1, 1, 4))
        if self._refusals:
            return -getattr(errno, self._refusals.pop())
        if self._chance("nothing"):
            return 0
        if self.fd >= 0 and self._written(c) > 1 and self._chance("part"):
            return self._enter_part(c, flags)
        if self._kept and least:
            # A kernel that has completions does not wait; one that will have them, not for long.
            least, seconds = (0, -1.0) if self.tells else (1, 0.0005)
        return super().enter(c, least, flags, seconds)

    def _written(self, c: Any) -> int:
        return self._entries - int(self._lib.tu_sq_space(c))

    def _enter_part(self, c: Any, flags: int) -> int:
        """As a kernel that takes only some of the entries: it does not wait then."""
        refused = super().enter(c, 0, _UNKNOWN_FLAG, -1.0)  # all are shown to it
        assert refused == -errno.EINVAL, refused
        part = self.rnd.randint(1, self._written(c) - 1)
        taken = _syscall(IO_URING_ENTER, self.fd, part, 0, flags, None, 0)
        return -ctypes.get_errno() if taken < 0 else int(taken)

    def use(self, engine: Any) -> None:
        """Tells it about the engine of this run."""
        self._ring = ring = engine.ring
        self.fd, self._entries = ring.fileno(), ring.info.sq_entries
        if engine.hooks is not None:
            trio.lowlevel.add_instrument(_Waker(self, engine))

    def turn(self, c: Any, least: int, flags: int, seconds: float, out: Any, most: int) -> int:
        out[1] = self.enter(c, least, flags, seconds)
        return self.drain(c, out, most)

    # -- completing

    @property
    def keeps(self) -> bool:
        """Whether there are completions that come late."""
        return bool(self._kept)

    def more(self, c: Any) -> int:
        self._kept = [(looks - 1, completion) for looks, completion in self._kept]
        return super().more(c) | any(self.tells or looks <= 0 for looks, _ in self._kept)

    def drain(self, c: Any, out: Any, most: int) -> int:
        came: list[Completion] = []
        late = self._chance("late")
        if not late:
            room = max(most - len(self._kept), 0)
            if self._chance("few"):
                room = min(room, 2)
            count = super().drain(c, out, room)
            came = [(out[i], out[i + 1], out[i + 2]) for i in range(2, 2 + 3 * count, 3)]
        came = self._keep_back(came)
        if self._chance("reordered"):
            self.rnd.shuffle(came)
        for index, completion in enumerate(came):
            out[2 + 3 * index], out[3 + 3 * index], out[4 + 3 * index] = completion
        self._count(came)
        out[0] = self._flags(c, late)
        return len(came)

    def _keep_back(self, came: list[Completion]) -> list[Completion]:
        kept, now = [], []
        for looks, completion in self._kept:
            if looks > 0:
                kept.append((looks - 1, completion))
            else:
                now.append(completion)
        for completion in came:
            if not completion[2] & _BUFFER and self._chance("kept"):
                kept.append((self.rnd.randint(0, 3), completion))
            else:
                now.append(completion)
        self._kept = kept
        return now

    def _flags(self, c: Any, late: bool) -> int:
        more = 0 if late and not self.tells else self.more(c)
        for name, bit in (("more", 1), ("task work", 2), ("overflow", 4)):
            if self._chance(name):
                more |= bit
        return more

    def _count(self, came: Sequence[Completion]) -> None:
        for token, _, _ in came:
            self.cancels += token < 0
            self.operations += 0 <= token != WATCH


class _Waker(trio.abc.Instrument):
    """Lets no run sleep while completions are kept back: a task that waits for the ring's
    descriptor would not learn that they have come."""

    def __init__(self, faults: Faults, engine: Any) -> None:
        self._faults, self._engine = faults, engine

    def before_io_wait(self, timeout: float) -> None:
        if self._faults.keeps:
            self._engine.come_back()
