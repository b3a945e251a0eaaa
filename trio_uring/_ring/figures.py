"""The sizes that all rings share, what a ring counts, and how it describes itself.

Rules of this file: it looks at no ring.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from .opcodes import OPCODES_MAX

# 64 bytes each. A full queue is flushed in the middle of a pass, so more would gain little.
SQ_ENTRIES = 256

SMALL_SIZE, SMALL_COUNT = 4096, 512  # bytes, buffers
# In bulk, 128 KiB cost 1.8 times the CPU of 512 KiB: see docs/design.md. Only what is used takes
# memory.
LARGE_SIZE, LARGE_COUNT = 524288, 16  # bytes, buffers

# Bytes of all provided buffers of a ring.
POOL_SIZE = SMALL_COUNT * SMALL_SIZE + LARGE_COUNT * LARGE_SIZE

SHORT_PAUSE = 0.001  # seconds until a kernel that is short of resources is asked again


def _zeros() -> list[int]:
    return [0] * OPCODES_MAX


@dataclass
class RingCounters:
    """What a ring counts. The lists are indexed by opcode."""

    submitted: list[int] = field(default_factory=_zeros)
    cancelled: list[int] = field(default_factory=_zeros)
    failed: list[int] = field(default_factory=_zeros)
    # The sum of the results > 0; of opcodes whose results are bytes, the bytes moved.
    moved: list[int] = field(default_factory=_zeros)
    direct: int = 0  # operations done by their own system call, without the ring
    sq_full: int = 0
    cq_overflows: int = 0
    buffers_exhausted: int = 0
    # Sent and received by calls of the socket module, without operations.
    datagrams_sent: int = 0
    datagrams_received: int = 0
    datagram_bytes_sent: int = 0
    datagram_bytes_received: int = 0

    def count_failure(self, op: Any, res: int) -> None:
        """Counts an operation that ended with a result < 0."""
        if res == -errno.ECANCELED:
            self.cancelled[op.opcode] += 1
        else:
            self.failed[op.opcode] += 1
            if res == -errno.ENOBUFS and op.group >= 0:
                self.buffers_exhausted += 1


@dataclass(frozen=True)
class RingInfo:
    """Describes a ring; fixed at setup."""

    backend: str
    setup_flags: tuple[str, ...]
    features: int
    sq_entries: int
    cq_entries: int
    opcodes: tuple[str, ...]  # those that this package uses and the kernel has
    provided_buffers: bool
    lacking: tuple[str, ...] = ()  # those that the kernel lacks; all optional, never submitted
    restricted: bool = False  # it takes these opcodes only, and nothing can be registered any more
