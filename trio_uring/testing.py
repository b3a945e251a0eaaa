"""For tests: FakeRing, SimulatedNetwork and run_deterministically.

They are a ring without a kernel, a network in memory, and a trio.run that can be repeated exactly.

FakeRing implements the Ring protocol over descriptors that are connected in memory, scripted or
random from a seed. It also checks its caller: one operation for each direction, only in a state
that allows it, buffers held to the end, cancels only of its own operations, one thread.

Rules of this file: everything random comes from the one seed; nothing waits; no address anywhere.
Operations make progress only in `drain`.
"""

from __future__ import annotations

import errno
import math
import random
import select
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from ._driver.run import install
from ._network.deterministic import run_deterministically
from ._network.simulated import SimulatedNetwork
from ._ring.base import RingBase
from ._ring.figures import LARGE_SIZE, SMALL_SIZE, RingInfo
from ._ring.op import LARGE_GROUP, NO_GROUP, SUBMITTED, Operation
from ._ring.opcodes import POLLIN, POLLOUT, RECEIVING, SENDING, Opcode

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


class _Memory:
    """What an entry points at: buffers, from byte `start` on."""

    def __init__(self, *buffers: Any, start: int = 0) -> None:
        self.buffers = [memoryview(buffer) for buffer in buffers]
        self.start = start

    def __add__(self, count: int) -> _Memory:
        return _Memory(*self.buffers, start=self.start + count)

    def read(self, count: int) -> bytes:
        return b"".join(map(bytes, self.buffers))[self.start :][:count]

    def write(self, data: bytes) -> None:
        for view in self.buffers:
            part, data = data[: view.nbytes], data[view.nbytes :]
            view.cast("B")[: len(part)] = part


class _Entry:
    """An operation, as the kernel knows it."""

    def __init__(self, token: int, at: _Memory, length: int) -> None:
        self.token = token
        self.at = at
        self.length = length


def _no_entry(op: Operation) -> None:
    """Nothing to prepare: a queued _Entry has all of it."""


def _export_list(op: Operation) -> tuple[_Memory, int]:
    op.pin = at = _Memory(*op.buffers or (), start=op.start)
    return at, op.length


class FakeRing(RingBase):
    """A ring in memory.

    Args:
        seed: for everything random.
        short: probability that a send takes, or a receive returns, only a part.
        slow: probability that an operation that could complete does not, this time.
        refuse: probability that submit finds no room, and that flush finds the kernel short of
            resources.
        faults: for each errno (EINTR, EAGAIN, ECONNRESET, ...), the probability that an operation
            fails with it. ENOBUFS affects only receives that take a provided buffer.
        sq_entries: slots of the submission queue.
        provided_buffers: False: receives bring their own memory.
    """

    # pyright --verifytypes wants what is inherited and assigned here to be declared here.
    enters: int
    short: bool
    watching: bool
    watched: bool

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
        self.random: random.Random = random.Random(seed)
        self._short, self._slow, self._refuse, self._faults = short, slow, refuse, faults or {}
        self._queue: list[_Entry] = []
        self._active: list[_Entry] = []
        self._cancels: set[int] = set()
        self._script: dict[int, deque[int]] = {}
        self._ends: dict[int, _End] = {}
        self._signalled = False
        self._watched_fd = -1
        self._c = self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._make_entry, self._write = _no_entry, self._queue_entry
        self._export, self._export_list, self._nothing = _Memory, _export_list, _Memory()
        self._provided, self._starts = b"", ()  # received bytes go to the operation at once
        info = RingInfo(
            backend="fake",
            setup_flags=(),
            features=0,
            sq_entries=sq_entries,
            cq_entries=16 * sq_entries,
            opcodes=tuple(opcode.name for opcode in Opcode),
            provided_buffers=provided_buffers,
        )
        super().__init__(info, sq_entries)

    # -- the world

    def connect(self, first: int, second: int, capacity: int = _CAPACITY) -> None:
        """Connects two descriptors: what one sends, the other receives.

        They need not really be connected. Each end holds up to `capacity` bytes.
        """
        self._ends[first], self._ends[second] = _End(capacity), _End(capacity)
        self._ends[first].peer, self._ends[second].peer = self._ends[second], self._ends[first]

    def shutdown(self, fd: int) -> None:
        """Ends what `fd` sends."""
        self._ends[fd].peer.ended = True
        self._signal()

    def script(self, opcode: Opcode, results: Iterable[int]) -> None:
        """Makes the next operations of this opcode complete at once with these results.

        They move no data.
        """
        self._script.setdefault(opcode, deque()).extend(results)

    # -- the Ring protocol

    def fileno(self) -> int:
        return self._bell.fileno()

    def submit(self, op: Operation) -> bool:
        if self._chance(self._refuse):
            self.counters.sq_full += 1
            return False
        self._check_direction(op)
        return super().submit(op)

    def _check_direction(self, op: Operation) -> None:
        for family in (SENDING, RECEIVING):
            if op.opcode in family:
                for other in self.table.values():
                    if other is not op and other.fd == op.fd and other.opcode in family:
                        raise Misuse(
                            f"two operations of one direction on one descriptor: {op} and {other}"
                        )

    def cancel(self, op: Operation) -> None:
        if op.state is SUBMITTED and self.table.get(op.token) is not op:
            raise Misuse(f"cancel of an operation that this ring does not hold: {op}")
        super().cancel(op)

    def watch(self, fd: int) -> bool:
        self.watching, self._watched_fd = True, fd
        return True

    def flush(self) -> bool:
        self._check_owner()
        self.enters += 1
        self.short = bool(self._queue) and self._chance(self._refuse)
        if self.short:
            return False
        if self._queue:
            self._signal()
        self._active.extend(self._queue)
        self._queue.clear()
        self._unsubmitted = 0
        return True

    def ready(self) -> bool:
        return True

    def turn(self, timeout: float, done: list[Operation]) -> bool:
        self.flush()
        if self.watching:
            if sys.platform == "win32":  # there it is nobody's loop
                raise AssertionError
            poller = select.poll()
            poller.register(self._watched_fd, POLLIN)
            able = self._signalled or self.short
            milliseconds = min(math.ceil(max(timeout, 0) * 1000), _WAIT_MAX)  # below 0: for ever
            if poller.poll(0 if able else milliseconds):
                self.watching, self.watched = False, True
        return self.drain(done)

    def drain(self, done: list[Operation]) -> bool:
        self._check_owner()
        if self._signalled:
            self._bell.recv(1)
            self._signalled = False
        before = len(done)
        self.random.shuffle(self._active)
        for entry in list(self._active):
            res = self._answer(entry)
            if res is not None:
                self._complete(entry, res, done)
        if len(done) > before or self._active:
            self._signal_if_able(len(done) > before)
        return False

    # -- the hooks of a ring

    def _queue_entry(self, _c: object, _own: None, at: _Memory, length: int, token: int) -> None:
        self._queue.append(_Entry(token, at, length))

    def _write_cancels(self) -> None:
        while self._late_cancels:
            self._cancels.add(self._late_cancels.popleft())
            self.counters.submitted[Opcode.ASYNC_CANCEL] += 1

    def _free(self, c: tuple[socket.socket, socket.socket]) -> None:
        for sock in c:
            sock.close()

    _free_in_child = _free

    # -- inside

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def _signal(self) -> None:
        if not self._signalled and self._c is not None:
            self._ringer.send(b"!")
            self._signalled = True

    def _signal_if_able(self, progressed: bool) -> None:
        if progressed or self._slow or self._cancels:
            self._signal()

    def _answer(self, entry: _Entry) -> int | None:
        """The operation's result now; None: it has to wait."""
        op, cancelled = self.table[entry.token], entry.token in self._cancels
        if cancelled and self._chance(0.5):  # before or after the data, as in the kernel's race
            return -errno.ECANCELED
        if self._chance(self._slow):
            return None
        res = self._attempt(op, entry)
        return -errno.ECANCELED if res is None and cancelled else res

    def _complete(self, entry: _Entry, res: int, done: list[Operation]) -> None:
        op = self.table[entry.token]
        if op.pin is None and entry.at is not self._nothing:
            raise Misuse(f"the buffers of {op} were released before it was done")
        self._active.remove(entry)
        self._cancels.discard(entry.token)
        self._collect((entry.token, res, 0), done)

    def _attempt(self, op: Operation, entry: _Entry) -> int | None:
        if self._script.get(op.opcode):
            return self._script[op.opcode].popleft()
        for code, probability in self._faults.items():
            if self._chance(probability) and (code != errno.ENOBUFS or op.group != NO_GROUP):
                return -code
        end = self._ends.get(op.fd)
        if end is None:
            return -errno.EBADF
        if op.opcode in SENDING:
            return self._send(entry, end)
        if op.opcode in RECEIVING:
            return self._receive(op, entry, end)
        if op.opcode == Opcode.POLL_ADD:
            return self._poll(op, end)
        return -errno.EOPNOTSUPP

    def _poll(self, op: Operation, end: _End) -> int | None:
        ready = POLLIN if end.arrived or end.ended else 0
        if len(end.peer.arrived) < end.peer.capacity:
            ready |= POLLOUT
        return (ready & op.flags) or None

    def _part(self, count: int) -> int:
        return self.random.randint(1, count) if count > 1 and self._chance(self._short) else count

    def _send(self, entry: _Entry, end: _End) -> int | None:
        if end.peer.ended:
            return -errno.EPIPE
        room = end.peer.capacity - len(end.peer.arrived)
        if room <= 0:
            return None
        data = entry.at.read(entry.length)
        count = self._part(min(room, len(data)))
        end.peer.arrived += data[:count]
        self._signal()
        return count

    def _receive(self, op: Operation, entry: _Entry, end: _End) -> int | None:
        if not end.arrived:
            return 0 if end.ended else None
        most = min(entry.length, len(end.arrived))
        if op.group != NO_GROUP:
            most = min(most, LARGE_SIZE if op.group == LARGE_GROUP else SMALL_SIZE)
        count = self._part(most)
        data = bytes(end.arrived[:count])
        del end.arrived[:count]
        if op.group != NO_GROUP:
            op.chunk = data
        else:
            entry.at.write(data)
        self._signal()
        return count


def use_ring(ring: Any) -> None:
    """Makes `ring` the ring of this trio.run. Call it before anything else of trio_uring is used.

    Raises:
        RuntimeError: outside of trio, or this run has a ring already.
    """
    install(ring)


__all__ = ["FakeRing", "Misuse", "SimulatedNetwork", "run_deterministically", "use_ring"]
