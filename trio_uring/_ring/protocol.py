"""The Ring protocol: what the driver needs of a ring.

UringRing and testing.FakeRing are rings; what they have in common is in `base.py`. The contract is
tests/ring/test_contract.py, which runs on every kind of ring.

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
    enters: int  # since it was opened, as the next
    completions: int
    now: float  # seconds; set by the driver once in each pass, and copied to Operation.born
    watching: bool  # a descriptor is being watched
    watched: bool  # it has become readable; whoever handles that sets it to False
    short: bool  # the last enter did not do everything: the kernel is short of resources

    def fileno(self) -> int:
        """The descriptor that becomes readable when drain() has something to do.

        That of a ring with DEFER_TASKRUN does not.
        """
        ...

    def submit(self, op: Operation) -> bool:
        """Pins and queues the operation. False: no room, nothing changed; flush and try again."""
        ...

    def cancel(self, op: Operation) -> None:
        """Asks for the operation to be stopped. Never refused, never dropped.

        The operation's own completion is the answer.
        """
        ...

    def watch(self, fd: int) -> bool:
        """Queues a watch on a descriptor. False: as for submit.

        The watch ends when the descriptor is readable; `watched` is then true.
        """
        ...

    def flush(self) -> bool:
        """Enters the kernel with everything queued.

        False: the kernel did not take all of it; drain and try again.
        """
        ...

    def ready(self) -> bool:
        """Whether turn(0) would find anything to do."""
        ...

    def turn(self, timeout: float, done: list[Operation]) -> bool:
        """Enters the kernel with everything queued, waits there for a completion, and then drains.

        It takes one system call, unless there are more cancels than slots.

        Args:
            timeout: seconds to wait, at most. 0: it enters only if there is something to do there.
            done: as for drain, and so is the result.
        """
        ...

    def drain(self, done: list[Operation]) -> bool:
        """Takes every completion and appends the finished operations to `done`.

        They are unpinned and no longer in the table. The list is the caller's, so that none is lost
        if this raises. True: there is something to flush again.
        """
        ...

    def close(self) -> bool:
        """Closes the ring.

        False: something was in flight, so the ring and its buffers were leaked on purpose.
        """
        ...
