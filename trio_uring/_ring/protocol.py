"""The Ring protocol: what the driver needs of a ring, and the sizes and counters that every ring
shares.

UringRing and testing.FakeRing are rings. tests/ring/test_contract.py is the contract, run over
every ring.

Rules of this file: no ring, no task, no address.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from .op import Operation

# 64 bytes each; a full queue is flushed in the middle of a pass, so more buys little.
SQ_ENTRIES = 256

SMALL_SIZE, SMALL_COUNT = 4096, 512  # bytes, buffers
LARGE_SIZE, LARGE_COUNT = (
    131072,
    16,
)  # bytes, buffers; 64 KiB measured 0.6 of 128 KiB in bulk, see docs/design.md

# Bytes of all provided buffers of a ring.
POOL_SIZE = SMALL_COUNT * SMALL_SIZE + LARGE_COUNT * LARGE_SIZE

SHORT_PAUSE = 0.001  # seconds until a kernel that is short of something is asked again

OPCODES_MAX: Final = 64  # the kernel's opcodes are below this number


def _zeros() -> list[int]:
    return [0] * OPCODES_MAX


@dataclass
class RingCounters:
    """What a ring counts. The lists are indexed by opcode."""

    submitted: list[int] = field(default_factory=_zeros)
    cancelled: list[int] = field(default_factory=_zeros)
    failed: list[int] = field(default_factory=_zeros)
    moved: list[int] = field(
        default_factory=_zeros
    )  # sum of the results > 0: bytes, for operations that move bytes
    direct: int = 0  # operations done by a system call of their own
    enters: int = 0
    completions: int = 0
    sq_full: int = 0
    cq_overflows: int = 0
    buffers_exhausted: int = 0
    # By calls of the socket module's.
    datagrams_sent: int = 0
    datagrams_received: int = 0
    datagram_bytes_sent: int = 0
    datagram_bytes_received: int = 0

    def count_failure(self, op: Operation, res: int) -> None:
        """Counts an operation that is done with a result < 0."""
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
    opcodes: tuple[str, ...]  # of ours, those that the kernel has
    provided_buffers: bool
    lacking: tuple[str, ...] = ()  # those that it has not: optional ones, which nobody may submit


class Ring(Protocol):
    """What the driver needs of a ring."""

    counters: RingCounters
    info: RingInfo
    table: dict[int, Operation]  # what is in flight, by token
    now: float  # seconds; the driver sets it once a pass, and it stamps Operation.born
    watching: bool  # a descriptor is being watched
    watched: bool  # it has become readable; whoever takes note of that sets it to False
    short: bool  # the last enter did not do all that it was asked: the kernel is short of something

    def fileno(self) -> int:
        """The descriptor that becomes readable when drain() has something to do; not of a ring with
        DEFER_TASKRUN."""
        ...

    def submit(self, op: Operation) -> bool:
        """Pins and queues the operation. False: no room now, nothing changed; flush and try
        again."""
        ...

    def cancel(self, op: Operation) -> None:
        """Asks for the operation to be stopped. Its own completion is the answer. Never refused,
        never dropped."""
        ...

    def watch(self, fd: int) -> bool:
        """Queues the watch on a descriptor, which is over when it is readable: `watched`. False: as
        of submit."""
        ...

    def flush(self) -> bool:
        """Enters the kernel with everything queued. False: the kernel would not take it all now;
        drain and try again."""
        ...

    def ready(self) -> bool:
        """Whether turn(0) would find anything to do."""
        ...

    def turn(self, timeout: float, done: list[Operation]) -> bool:
        """Enters the kernel with everything queued, waits there until there is a completion, and
        then drains. All in one call of the kernel, unless there are more cancels than slots.

        Args:
            timeout: seconds to wait, at most. 0: it only enters if there is something to do there.
            done: as of drain, and so is the result.
        """
        ...

    def drain(self, done: list[Operation]) -> bool:
        """Takes every completion and appends the operations that are done to `done`, unpinned and
        forgotten by the ring.

        The list is the caller's so that none is lost if this raises. True: there is something to be
        flushed again.
        """
        ...

    def close(self) -> bool:
        """Closes the ring. False: something was in flight, and the ring and its buffers have been
        leaked on purpose."""
        ...
