"""An operation: one request to the kernel, and the table of its states.

Rules of this file: standard library only, no task, no address. Facts about opcodes are in the table
of `opcodes.py`. An operation carries what the layers above know (opcode, descriptor, the caller's
buffers) and what the ring fills in (token, pin, result). It is reusable: a stream keeps one
operation for each direction, which also ensures that no two of one direction are in the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._accelerator import hot
from .opcodes import POLL_EVENTS
from .opcodes import Opcode as Opcode  # whoever makes an operation names one

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


# As the offset of READ and WRITE: the current position, or none, as with pipes.
POSITION = 2**64 - 1
NO_GROUP = -1
CLOSED_FD = -1  # no descriptor
SMALL_GROUP = 0  # many provided buffers of one page each, for messages
LARGE_GROUP = 1  # a few large provided buffers, for bulk


class OperationStateError(RuntimeError):
    """A step that the table of states does not list: a defect of this package, not of its user."""


class State:
    """A state of an operation. Its attributes are the steps out of it; a step that is not listed
    raises.

    The table below is the only list of transitions. Taking a step costs one attribute look-up:
    ``op.state = op.state.submitted``.
    """

    submitted: State
    cancelling: State
    done: State

    def __init__(self, name: str, in_kernel: bool) -> None:
        self.name = name
        self.in_kernel = in_kernel

    def __getattr__(self, step: str) -> State:
        if step in ("submitted", "cancelling", "done"):
            raise OperationStateError(
                f"an operation that is {self.name} cannot become {step.upper()}"
            )
        raise AttributeError(step)

    def __repr__(self) -> str:
        return self.name


NEW = State("NEW", in_kernel=False)
SUBMITTED = State("SUBMITTED", in_kernel=True)
CANCELLING = State("CANCELLING", in_kernel=True)  # asked to stop; it still owns its memory
DONE = State("DONE", in_kernel=False)

STEPS: dict[State, tuple[State, ...]] = {
    NEW: (SUBMITTED,),
    SUBMITTED: (CANCELLING, DONE),
    CANCELLING: (DONE,),
    DONE: (SUBMITTED,),  # reused by its stream
}
for _state, _reachable in STEPS.items():
    for _next in _reachable:
        setattr(_state, _next.name.lower(), _next)
if hot is not None:
    hot.use_states(NEW, SUBMITTED, CANCELLING, DONE)


if TYPE_CHECKING or hot is None:

    class _Fields:
        """The fields of an operation that the accelerator has in C."""

        __slots__ = (
            "born", "buffer", "buffers", "chunk", "engine", "entry", "entry_at", "group", "length",
            "memory", "opcode", "owed", "pin", "raise_cancel", "res", "start", "state", "task",
            "then", "token",
        )  # fmt: skip

        # Who performs it and waits for it, and how: see `_driver.operation`.
        engine: Any
        memory: memoryview | None
        task: Any
        then: Callable[[], object] | None
        raise_cancel: Callable[[], NoReturn] | None
        owed: bool

else:
    _Fields = hot.Operation


class Operation(_Fields):
    """One request to the kernel.

    Its fields are in three groups: the request, what the ring keeps, and the result.
    """

    __slots__ = ("fd", "flags", "offset", "owner", "vector")

    def __init__(self, opcode: int, fd: int, owner: object = None) -> None:
        self.opcode: int = int(opcode)  # a plain int: it indexes the counters on the hot path
        self.fd: int = fd
        # Holds the descriptor open for as long as the ring's table holds this operation.
        self.owner: object = owner
        # bytes, or a C-contiguous memoryview of any format; held until the last completion.
        self.buffer: Any = None
        # For SENDMSG and WRITEV: the same, at most IOV_MAX of them.
        self.buffers: Sequence[Any] | None = None
        self.start = 0  # bytes of `buffer`, or of the first of `buffers`, to skip
        self.length = 0  # bytes after `start`; of `buffers`: all together
        self.offset: int = 0  # bytes, in a file; or POSITION
        self.flags: int = 0  # MSG_* or poll bits
        # The group from which the kernel takes a buffer when the data is there.
        self.group = NO_GROUP

        self.state = NEW
        self.token = 0
        self.entry: Any = None  # made by the ring and kept for the next use; None: to be made
        self.entry_at = 0  # its address, for the accelerator
        self.vector: Any = None  # the same, for two buffers
        self.pin: Any = None
        self.born: float = 0.0  # seconds, time.monotonic() of the pass that submitted it

        self.res = 0  # >= 0, or -errno
        self.chunk: bytes | None = None  # what a provided buffer held

    def let_go(self) -> None:
        """Drops the buffers of an operation that the ring does not hold."""
        self.buffer = self.buffers = self.pin = None

    def __repr__(self) -> str:
        return f"<{Opcode(self.opcode).name} fd={self.fd} {self.state} res={self.res}>"


def poll_event(op: Operation) -> int:
    """The poll(2) event to wait for when the operation would block; of a POLL_ADD, its own."""
    return POLL_EVENTS[op.opcode] or op.flags
