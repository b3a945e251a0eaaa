"""For tests: FakeRing, a ring without a kernel; SimulatedNetwork, a network in memory;
run_deterministically, a run to repeat.

FakeRing speaks the Ring protocol over descriptors that are connected in memory, scripted or at
random from a seed, and it checks the duties of its caller: one operation a direction, a state that
allows it, buffers held to the end, no cancel of a stranger.

Rules of this file: everything random comes from the one seed; nothing waits; no address anywhere.
Operations make progress in `drain` only.
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from ._driver.run import install
from ._network.deterministic import run_deterministically
from ._network.simulated import SimulatedNetwork
from ._ring.op import LARGE_GROUP, NO_GROUP, SUBMITTED, Operation
from ._ring.opcodes import RECEIVING, SENDING, Opcode
from ._ring.protocol import LARGE_SIZE, SMALL_SIZE, RingCounters, RingInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

_WAIT_MAX = 2**31 - 1  # milliseconds that poll(2) takes
_CAPACITY = 65536  # bytes between two ends, unless connect() says otherwise


class Misuse(AssertionError):
    """The caller of a FakeRing broke a rule that the kernel would not have forgiven."""


class _End:
    """One end of a connection in memory: what was sent to it, and what it may still send."""

    def __init__(self, capacity: int) -> None:
        self.arrived = bytearray()
        self.capacity = capacity
        self.ended = False
        self.peer: _End = self


class FakeRing:
    """A ring in memory.

    Args:
        seed: of everything random.
        short: probability that a send takes only a part, or a receive gives only a part.
        slow: probability that an operation that could complete does not, this time.
        refuse: probability that submit finds no room, and that flush finds the kernel short of
        something.
        faults: errno to probability: an operation fails with it (EINTR, EAGAIN, ECONNRESET, ...).
            ENOBUFS strikes only receives that take a provided buffer.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        short: float = 0.0,
        slow: float = 0.0,
        refuse: float = 0.0,
        faults: dict[int, float] | None = None,
        sq_entries: int = 64,
        provided_buffers: bool = True,
    ) -> None:
        self.table: dict[int, Operation] = {}
        self.counters = RingCounters()
        self.now = 0.0
        self.info = RingInfo(
            backend="fake",
            setup_flags=(),
            features=0,
            sq_entries=sq_entries,
            cq_entries=16 * sq_entries,
            opcodes=tuple(op.name for op in Opcode),
            provided_buffers=provided_buffers,
        )
        self.random = random.Random(seed)
        self._short, self._slow, self._refuse, self._faults = short, slow, refuse, faults or {}
        self._queue: deque[Operation] = deque()
        self._active: list[Operation] = []
        self._cancels: set[int] = set()
        self._script: dict[int, deque[int]] = {}
        self._ends: dict[int, _End] = {}
        self._token = 0
        self._event: int = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signalled = False
        self.watching = self.watched = self.short = False
        self._watched_fd = -1
        self.closed = False

    # -- the world

    def connect(self, first: int, second: int, capacity: int = _CAPACITY) -> None:
        """Connects two descriptors: what one sends, the other receives. They need not be connected
        really."""
        self._ends[first], self._ends[second] = _End(capacity), _End(capacity)
        self._ends[first].peer, self._ends[second].peer = self._ends[second], self._ends[first]

    def shutdown(self, fd: int) -> None:
        """The end of what `fd` sends."""
        self._ends[fd].peer.ended = True
        self._signal()

    def script(self, opcode: Opcode, results: Iterable[int]) -> None:
        """The next operations of this opcode complete at once with these results, and nothing else
        happens."""
        self._script.setdefault(opcode, deque()).extend(results)

    # -- the Ring protocol

    def fileno(self) -> int:
        return self._event

    def submit(self, op: Operation) -> bool:
        if len(self._queue) >= self.info.sq_entries or self._chance(self._refuse):
            self.counters.sq_full += 1
            return False
        state = op.state.submitted
        self._check_direction(op)
        self._pin(op)
        self._token += 1
        op.token, op.state, op.born = self._token, state, self.now
        self.table[op.token] = op
        self._queue.append(op)
        self.counters.submitted[op.opcode] += 1
        return True

    def _check_direction(self, op: Operation) -> None:
        for family in (SENDING, RECEIVING):
            if op.opcode in family:
                for other in self.table.values():
                    if other.fd == op.fd and other.opcode in family:
                        raise Misuse(
                            f"two operations of one direction on one descriptor: {op} and {other}"
                        )

    def cancel(self, op: Operation) -> None:
        if op.state is not SUBMITTED:
            return
        if self.table.get(op.token) is not op:
            raise Misuse(f"cancel of an operation that this ring does not hold: {op}")
        op.state = op.state.cancelling
        self._cancels.add(op.token)
        self.counters.submitted[Opcode.ASYNC_CANCEL] += 1

    def watch(self, fd: int) -> bool:
        self.watching, self._watched_fd = True, fd
        return True

    def flush(self) -> bool:
        self.counters.enters += 1
        self.short = bool(self._queue) and self._chance(self._refuse)
        if self.short:
            return False
        if self._queue:
            self._signal()
        self._active.extend(self._queue)
        self._queue.clear()
        return True

    def ready(self) -> bool:
        return True

    def turn(self, timeout: float, done: list[Operation]) -> bool:
        self.flush()
        if self.watching:
            poller = select.poll()
            poller.register(self._watched_fd, select.POLLIN)
            able = self._signalled or self.short
            if poller.poll(0 if able else min(math.ceil(timeout * 1000), _WAIT_MAX)):
                self.watching, self.watched = False, True
        return self.drain(done)

    def drain(self, done: list[Operation]) -> bool:
        if self._signalled:
            os.eventfd_read(self._event)
            self._signalled = False
        before = len(done)
        self.random.shuffle(self._active)
        for op in list(self._active):
            if op.token in self._cancels and self._chance(0.5):
                res: (
                    int | None
                ) = -errno.ECANCELED  # before or after the data: the race that the kernel has
            elif self._chance(self._slow):
                res = None
            else:
                res = self._attempt(op)
                if res is None and op.token in self._cancels:
                    res = -errno.ECANCELED
            if res is not None:
                self._finish(op, res)
                done.append(op)
        if len(done) > before or self._active:
            self._signal_if_able(len(done) > before)
        return False

    def close(self) -> bool:
        if self.table:
            warnings.warn(
                f"FakeRing closed with {list(self.table.values())} in flight",
                ResourceWarning,
                stacklevel=2,
            )
            return False
        if not self.closed:
            self.closed = True
            os.close(self._event)
        return True

    # -- inside

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def _signal(self) -> None:
        if not self._signalled and not self.closed:
            os.eventfd_write(self._event, 1)
            self._signalled = True

    def _signal_if_able(self, progressed: bool) -> None:
        if progressed or self._slow or self._cancels:
            self._signal()

    def _finish(self, op: Operation, res: int) -> None:
        if op.pin is None:
            raise Misuse(f"the buffers of {op} were let go before it was done")
        self._active.remove(op)
        del self.table[op.token]
        self._cancels.discard(op.token)
        op.pin = op.buffer = op.buffers = None
        op.state = op.state.done
        self.counters.completions += 1
        self._count(op, res)

    @staticmethod
    def _pin(op: Operation) -> None:
        op.pin = [
            memoryview(buffer)
            for buffer in ([op.buffer] if op.buffer is not None else op.buffers or [])
        ]

    def _count(self, op: Operation, res: int) -> None:
        op.res = res
        if res > 0:
            self.counters.moved[op.opcode] += res
        elif res == -errno.ECANCELED:
            self.counters.cancelled[op.opcode] += 1
        elif res < 0:
            self.counters.failed[op.opcode] += 1

    def _attempt(self, op: Operation) -> int | None:
        """The operation's result now, or None: it has to wait."""
        if self._script.get(op.opcode):
            return self._script[op.opcode].popleft()
        for code, probability in self._faults.items():
            if self._chance(probability) and (code != errno.ENOBUFS or op.group != NO_GROUP):
                return -code
        end = self._ends.get(op.fd)
        if end is None:
            return -errno.EBADF
        if op.opcode in SENDING:
            return self._send(op, end)
        if op.opcode in RECEIVING:
            return self._receive(op, end)
        if op.opcode == Opcode.POLL_ADD:
            return self._poll(op, end)
        return -errno.EOPNOTSUPP

    def _poll(self, op: Operation, end: _End) -> int | None:
        ready = select.POLLIN if end.arrived or end.ended else 0
        if len(end.peer.arrived) < end.peer.capacity:
            ready |= select.POLLOUT
        return (ready & op.flags) or None

    def _part(self, count: int) -> int:
        return self.random.randint(1, count) if count > 1 and self._chance(self._short) else count

    def _send(self, op: Operation, end: _End) -> int | None:
        if end.peer.ended:
            return -errno.EPIPE
        room = end.peer.capacity - len(end.peer.arrived)
        if room <= 0:
            return None
        data = b"".join(bytes(view) for view in op.pin)[op.start :][: op.length]
        count = self._part(min(room, len(data)))
        end.peer.arrived += data[:count]
        self._signal()
        return count

    def _receive(self, op: Operation, end: _End) -> int | None:
        if not end.arrived:
            return 0 if end.ended else None
        most = min(op.length, len(end.arrived))
        if op.group != NO_GROUP:
            most = min(most, LARGE_SIZE if op.group == LARGE_GROUP else SMALL_SIZE)
        count = self._part(most)
        data = bytes(end.arrived[:count])
        del end.arrived[:count]
        if op.group != NO_GROUP:
            op.chunk = data
        else:
            for view in op.pin:
                part, data = data[: view.nbytes], data[view.nbytes :]
                view.cast("B")[: len(part)] = part
        self._signal()
        return count


def use_ring(ring: Any) -> None:
    """Makes `ring` the ring of this trio.run. To be called before anything of trio_uring was used
    in it.

    Raises:
        RuntimeError: outside of trio, or this run has a ring already.
    """
    install(ring)


__all__ = ["FakeRing", "Misuse", "SimulatedNetwork", "run_deterministically", "use_ring"]
