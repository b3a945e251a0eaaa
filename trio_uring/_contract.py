"""The Ring protocol: what the driver needs of a ring, and the sizes and counters that every ring shares.

UringRing, PollRing and testing.FakeRing are rings. tests/ring/test_contract.py is the contract, run over every ring.

Rules of this file: no ring, no task, no address.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ._op import Operation

SQ_ENTRIES = 256  # 64 bytes each; a full queue is flushed in the middle of a pass, so more buys little

SMALL_SIZE, SMALL_COUNT = 4096, 512  # bytes, buffers
LARGE_SIZE, LARGE_COUNT = 131072, 16  # bytes, buffers; 64 KiB measured 0.6 of 128 KiB in bulk, see docs/design.md

# A datagram of 65,535 bytes with what the kernel puts before it, in whole pages; 64 because one enter makes 33 shots at most.
DATAGRAM_SIZE, DATAGRAM_COUNT = 69632, 64  # bytes, buffers

OPCODES_MAX: Final = 64  # the kernel's opcodes are below this number


def _zeros() -> list[int]:
    return [0] * OPCODES_MAX


@dataclass
class RingCounters:
    """What a ring counts. The lists are indexed by opcode."""

    submitted: list[int] = field(default_factory=_zeros)
    cancelled: list[int] = field(default_factory=_zeros)
    failed: list[int] = field(default_factory=_zeros)
    moved: list[int] = field(default_factory=_zeros)  # sum of the results > 0: bytes, for operations that move bytes
    direct: int = 0
    enters: int = 0
    completions: int = 0
    sq_full: int = 0
    cq_overflows: int = 0
    buffers_exhausted: int = 0

    def count_result(self, op: Operation, res: int) -> None:
        """Counts an operation that is done. UringRing has it inlined, for its completions."""
        if res > 0:
            self.moved[op.opcode] += res
        elif res < 0:
            self.count_failure(op, res)

    def count_failure(self, op: Operation, res: int) -> None:
        """Counts an operation that is done with a result < 0."""
        if op.shots is not None and res == -errno.EAGAIN:  # how a multishot receive ends when there is nothing left
            return
        if res == -errno.ECANCELED:
            self.cancelled[op.opcode] += 1
        else:
            self.failed[op.opcode] += 1
            if res == -errno.ENOBUFS and op.group >= 0:
                self.buffers_exhausted += 1


@dataclass(frozen=True)
class RingInfo:
    """What a ring is: fixed at setup."""

    backend: str
    setup_flags: tuple[str, ...]
    features: int
    sq_entries: int
    cq_entries: int
    opcodes: tuple[str, ...]
    provided_buffers: bool
    multishot: bool = False  # RECVMSG may have `shots`, as far as the ring knows: a kernel before 6.0 answers EINVAL


class Ring(Protocol):
    """What the driver needs of a ring."""

    counters: RingCounters
    info: RingInfo
    table: dict[int, Operation]  # what is in flight, by token
    now: float  # seconds; the driver sets it once a pass, and it stamps Operation.born

    def fileno(self) -> int:
        """The descriptor that becomes readable when drain() has something to do."""
        ...

    def submit(self, op: Operation) -> bool:
        """Pins and queues the operation. False: no room now, nothing changed; flush and try again."""
        ...

    def attempt(self, op: Operation) -> bool:
        """Does the operation now, by the system call that it stands for, if that need not wait. False: nothing changed."""
        ...

    def cancel(self, op: Operation) -> None:
        """Asks for the operation to be stopped. Its own completion is the answer. Never refused, never dropped."""
        ...

    def flush(self) -> bool:
        """Enters the kernel with everything queued. False: the kernel would not take it all now; drain and try again."""
        ...

    def drain(self, done: list[Operation]) -> None:
        """Takes every completion and appends the operations that are done to `done`, unpinned and forgotten by the ring.

        The list is the caller's so that none is lost if this raises.
        """
        ...

    def received(self, op: Operation) -> None:
        """Reads into op.message what the kernel said of the message that this operation, now done, has received or accepted."""
        ...

    def buffers_in_use(self) -> int:
        """Provided buffers that hold data not yet copied out: 0 outside of drain()."""
        ...

    def ready(self) -> bool:
        """Whether there are completions to drain for which the descriptor must have become readable."""
        ...

    def wait(self, timeout: float) -> None:
        """Blocks the thread until a completion, at most `timeout` seconds: for teardown only."""
        ...

    def close(self) -> bool:
        """Closes the ring. False: something was in flight, and the ring and its buffers have been leaked on purpose."""
        ...
