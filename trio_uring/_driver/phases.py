"""The phases of one trio.run's engine: what may be done in each, and which can follow.

    phase    may an operation begin               who flushes, and who waits
    RUNNING  yes                                  trio's loop, or a system task and its hooks
    LATE     yes                                  the hooks, in the kernel: no task can wait
    FAILED   no: trio.BrokenResourceError         nobody; all who waited have got an error
    ENDING   no: RuntimeError                     the end of the run, until the ring is empty
    OVER     yes, by the engine of a later run    nobody
    CHILD    no: RuntimeError                     nobody: the ring is the parent process's

Rules of this file: a step between phases that is not listed raises, and changes nothing.
"""

from __future__ import annotations


class PhaseError(RuntimeError):
    """A step between two phases that FOLLOWERS does not list: a defect of this package."""


class Phase:
    """A phase of an engine.

    Attributes:
        name: for messages.
        works: the ring may be entered, and wakes who waits.
        over: no task of the run waits any more, or they are all the parent process's.
        refusal: why no operation may begin; None: it may, here or on another engine.
    """

    __slots__ = ("followers", "name", "over", "refusal", "works")

    def __init__(
        self, name: str, *, works: bool = False, over: bool = False, refusal: str | None = None
    ) -> None:
        self.name: str = name
        self.works: bool = works
        self.over: bool = over
        self.refusal: str | None = refusal
        self.followers: frozenset[Phase] = frozenset()

    def __repr__(self) -> str:
        return self.name

    def to(self, phase: Phase) -> Phase:
        """Returns `phase`, the next one.

        Raises:
            PhaseError: it cannot follow this one.
        """
        if phase not in self.followers:
            raise PhaseError(f"a run's engine that is {self} cannot become {phase}")
        return phase


RUNNING = Phase("RUNNING", works=True)
LATE = Phase("LATE", works=True)
FAILED = Phase("FAILED", refusal="trio_uring's driver has failed")
ENDING = Phase("ENDING", works=True, refusal="this trio.run is over")
OVER = Phase("OVER", over=True)
CHILD = Phase(
    "CHILD",
    over=True,
    refusal="this stream belongs to the process that this one was forked from; open a new one here",
)

FOLLOWERS: dict[Phase, tuple[Phase, ...]] = {
    RUNNING: (LATE, FAILED, ENDING, OVER, CHILD),
    LATE: (FAILED, ENDING, CHILD),
    FAILED: (ENDING, OVER, CHILD),
    ENDING: (FAILED, OVER, CHILD),
    OVER: (),
    CHILD: (),
}
for _phase, _followers in FOLLOWERS.items():
    _phase.followers = frozenset(_followers)
