"""The Ring protocol: what the driver needs of a ring.

UringRing and testing.FakeRing are rings; what they do in the same way is `base.py`.
tests/ring/test_contract.py is the contract, run over every ring.

Rules of this file: no ring, no task, no address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .figures import RingCounters, RingInfo
    from .op import Operation


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
