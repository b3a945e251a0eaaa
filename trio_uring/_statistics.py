"""The frozen snapshots that users get of what the ring and the driver count.

Rules of this file: it reads, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ._contract import OPCODES_MAX
from ._op import RECEIVING, SENDING, Opcode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._contract import Ring


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
    """A snapshot of what the ring and the driver of this run have done. All counts are since the run's first operation."""

    operations: Mapping[str, OperationCounts]
    """By the kernel's name of the opcode; those that were used."""
    in_flight: int
    """Operations that the kernel holds now."""
    queued: int
    """Operations that wait for the end of this scheduler pass."""
    pinned: int
    """Operations that hold a caller's buffers now."""
    direct: int
    """Operations that were done by a system call of their own, because the run was quiet; they are in `operations`, too."""
    enters: int
    """Calls of io_uring_enter; on epoll, flushes of at least one operation."""
    passes: int
    """Passes of trio's scheduler."""
    completions: int
    completions_per_enter: float
    sq_full: int
    """Times that the submission queue was flushed in the middle of a pass because it was full."""
    cq_overflows: int
    """Times that the kernel held completions back because the completion queue was full. None is lost."""
    short_writes: int
    """Sends that the kernel did only in part; the stream sent the rest."""
    bytes_sent: int
    bytes_received: int
    buffers_in_use: int
    """Provided buffers that hold data not yet copied out."""
    buffers_exhausted: int
    """Receives that found no provided buffer free, and were made again."""
    rescued: int
    """Times that the watchdog found a wake-up lost. Please report it if this is not 0."""
    backend: str
    """"uring" or "epoll"; see backend_info()."""
    setup_flags: tuple[str, ...]
    features: int
    """IORING_FEAT_* bits."""
    sq_entries: int
    cq_entries: int


@dataclass(frozen=True)
class OperationInFlight:
    """One operation that waits, in the queue or in the kernel."""

    opcode: str
    fd: int
    age: float
    """Seconds since it was submitted; 0.0 while it is queued."""
    task_name: str | None
    state: str

    @classmethod
    def of(cls, op: Any, now: float) -> OperationInFlight:
        return cls(
            opcode=Opcode(op.opcode).name,
            fd=op.fd,
            age=max(0.0, now - op.born) if op.state.in_kernel else 0.0,
            task_name=None if op.task is None else op.task.name,
            state=op.state.name,
        )


class _DriverCounters(Protocol):
    passes: int
    short_writes: int
    rescued: int


def snapshot(ring: Ring, queued: int, driver: _DriverCounters) -> Statistics:
    """Puts the counters of a ring and its driver into one frozen object."""
    counters, info, in_flight = ring.counters, ring.info, ring.table.values()
    flying = [0] * OPCODES_MAX
    for op in in_flight:
        flying[op.opcode] += 1
    operations = {}
    for opcode in Opcode:
        submitted, cancelled, failed = counters.submitted[opcode], counters.cancelled[opcode], counters.failed[opcode]
        if submitted:
            completed = submitted - cancelled - failed - flying[opcode]
            operations[opcode.name] = OperationCounts(submitted, completed, cancelled, failed, flying[opcode])
    return Statistics(
        operations=operations,
        in_flight=len(in_flight),
        queued=queued,
        pinned=sum(op.pin is not None for op in in_flight),
        direct=counters.direct,
        enters=counters.enters,
        passes=driver.passes,
        completions=counters.completions,
        completions_per_enter=counters.completions / counters.enters if counters.enters else 0.0,
        sq_full=counters.sq_full,
        cq_overflows=counters.cq_overflows,
        short_writes=driver.short_writes,
        bytes_sent=sum(counters.moved[opcode] for opcode in SENDING),
        bytes_received=sum(counters.moved[opcode] for opcode in RECEIVING),
        buffers_in_use=ring.buffers_in_use(),
        buffers_exhausted=counters.buffers_exhausted,
        rescued=driver.rescued,
        backend=info.backend,
        setup_flags=info.setup_flags,
        features=info.features,
        sq_entries=info.sq_entries,
        cq_entries=info.cq_entries,
    )
