"""The frozen snapshots of the counters of ring and driver, for users.

Rules of this file: it reads, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .opcodes import BYTES_RECEIVED, BYTES_SENT, OPCODES_MAX, Opcode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .figures import RingCounters, RingInfo
    from .op import Operation


@dataclass(frozen=True)
class OperationCounts:
    """How many operations of one opcode there have been in this run."""

    submitted: int
    completed: int
    """With a result >= 0."""
    cancelled: int
    failed: int
    in_flight: int


@dataclass(frozen=True)
class Statistics:
    """A snapshot of what the ring and the driver of this run have done.

    All counts begin with the run's first operation.
    """

    operations: Mapping[str, OperationCounts]
    """By the kernel's name of the opcode; only those that were used."""
    in_flight: int
    """Operations that the kernel holds now."""
    queued: int
    """Operations that wait for the end of this scheduler pass."""
    pinned: int
    """Operations that hold a caller's buffers now."""
    direct: int
    """Operations that were done by a direct system call, as all are without a ring; they are in
    `operations` as well."""
    enters: int
    """Calls of io_uring_enter."""
    passes: int
    """Passes of trio's scheduler."""
    completions: int
    completions_per_enter: float
    sq_full: int
    """How often the submission queue was flushed in the middle of a pass because it was full."""
    cq_overflows: int
    """How often the kernel held completions back because the completion queue was full. None is
    lost."""
    short_writes: int
    """Sends that the kernel did only in part; the stream sent the rest."""
    bytes_sent: int
    bytes_received: int
    datagrams_sent: int
    """Datagrams of UDPSocket. They are not operations, but their bytes are in `bytes_sent`."""
    datagrams_received: int
    """The same; their bytes are in `bytes_received`."""
    buffers_exhausted: int
    """Receives that found no provided buffer free, and were tried again."""
    backend: str
    """"uring" or "readiness"; see backend_info()."""
    setup_flags: tuple[str, ...]
    features: int
    """IORING_FEAT_* bits."""
    sq_entries: int
    cq_entries: int


@dataclass(frozen=True)
class OperationInFlight:
    """One operation that is waiting, in the queue or in the kernel."""

    opcode: str
    fd: int
    age: float
    """Seconds since it was submitted; 0.0 while it is queued."""
    task_name: str | None
    state: str
    peer: str | None = None
    """Who is at the other end: "address:port", a path, or "(bound to ...)"; None: it is no socket,
    or not known."""
    waits_at: tuple[str, ...] = ()
    """Where its task waits: `file:line in function`, the innermost first, without what is trio's
    and trio_uring's own."""

    @classmethod
    def of(
        cls,
        op: Any,
        task: Any,
        state: str,
        age: float,
        peer: str | None,
        waits_at: tuple[str, ...],
    ) -> OperationInFlight:
        return cls(
            opcode=Opcode(op.opcode).name,
            fd=op.fd,
            age=max(0.0, age),
            task_name=None if task is None else task.name,
            state=state,
            peer=peer,
            waits_at=waits_at,
        )


class _DriverCounters(Protocol):
    passes: int
    short_writes: int


def snapshot(
    counters: RingCounters,
    info: RingInfo,
    in_flight: Sequence[Operation],
    queued: int,
    driver: _DriverCounters,
    enters: int = 0,
    completions: int = 0,
) -> Statistics:
    """Puts the counters of a driver and its ring into one frozen object."""
    sent = sum(counters.moved[opcode] for opcode in BYTES_SENT)
    received = sum(counters.moved[opcode] for opcode in BYTES_RECEIVED)
    return Statistics(
        operations=_count_operations(counters, in_flight),
        in_flight=len(in_flight),
        queued=queued,
        pinned=sum(op.pin is not None for op in in_flight),
        direct=counters.direct,
        enters=enters,
        passes=driver.passes,
        completions=completions,
        completions_per_enter=completions / enters if enters else 0.0,
        sq_full=counters.sq_full,
        cq_overflows=counters.cq_overflows,
        short_writes=driver.short_writes,
        bytes_sent=sent + counters.datagram_bytes_sent,
        bytes_received=received + counters.datagram_bytes_received,
        datagrams_sent=counters.datagrams_sent,
        datagrams_received=counters.datagrams_received,
        buffers_exhausted=counters.buffers_exhausted,
        backend=info.backend,
        setup_flags=info.setup_flags,
        features=info.features,
        sq_entries=info.sq_entries,
        cq_entries=info.cq_entries,
    )


def _count_operations(
    counters: RingCounters, in_flight: Sequence[Operation]
) -> dict[str, OperationCounts]:
    """The counts of the opcodes that were used, by name."""
    flying = [0] * OPCODES_MAX
    for op in in_flight:
        flying[op.opcode] += 1
    counts = {}
    for opcode in Opcode:
        submitted = counters.submitted[opcode]
        cancelled, failed = counters.cancelled[opcode], counters.failed[opcode]
        if submitted:
            completed = submitted - cancelled - failed - flying[opcode]
            counts[opcode.name] = OperationCounts(
                submitted, completed, cancelled, failed, flying[opcode]
            )
    return counts
