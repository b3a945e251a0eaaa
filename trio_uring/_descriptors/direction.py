"""One direction of a descriptor: who has it, its operations, what was received but not returned.

There are two ways to have the direction. A call of a stream or a UDP socket, or a pump, *holds* it,
from `take` until the call ends. A call of the socket itself *borrows* it (`lend`): only until its
operation is done, whenever its task resumes, as with trio's own sockets.

Rules of this file:

- At most one operation of a direction is in the kernel, or waited for.
- A result that a destroyed call (coro.close()) did not get is handled here, once: `leave`. Bytes
  that it received are kept for the next receive. An operation that is still in the kernel is
  settled before the next use.
- What a negative result means is decided here, and nowhere else: `verdict`.
- Nothing here refers to the socket or stream that uses the direction, so that a forgotten one is
  freed at once.
"""

from __future__ import annotations

import enum
import errno
import functools
import socket as stdlib_socket
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.chunks import ChunkQueue
from .._bytes.views import release_view
from .._driver.operation import TaskOperation
from .._errors import AGAIN_ERRNOS
from .._ring.op import CLOSED_FD, NO_GROUP, POSITION
from .._ring.opcodes import POLLIN, POLLOUT, RECEIVING, SEND_FLAGS, Opcode
from .fields import DirectionFields
from .provided import OWN_SIZE, use_first

if TYPE_CHECKING:
    from collections.abc import Callable

# The kinds of operation that a direction keeps for reuse. Those for calls of the socket itself are
# ~RECEIVE and so on. They are separate because a socket may move from one run to another while
# both go on, and a stream may not.
RECEIVE, INTO, SEND, SEND_MANY, POLL = range(5)

_OF_SOCKET = {
    RECEIVE: Opcode.RECV, INTO: Opcode.RECV, SEND: Opcode.SEND, SEND_MANY: Opcode.SENDMSG,
}  # fmt: skip
_OF_FILE = {
    RECEIVE: Opcode.READ, INTO: Opcode.READ, SEND: Opcode.WRITE, SEND_MANY: Opcode.WRITEV,
}  # fmt: skip

AF_UNIX = getattr(stdlib_socket, "AF_UNIX", None)  # which Windows does not have


class Whole(Protocol):
    """What a direction needs of the lease that it is part of."""

    owner: Any
    fd: int
    noun: str

    def current_engine(self) -> Any:
        """The engine of the current run."""

    def engine(self) -> Any:
        """The engine for a new operation."""

    def engine_of_streams(self) -> Any:
        """The engine of a run that is not over and has streams on the descriptor, if any."""


class Verdict(enum.Enum):
    """What a negative result means."""

    AGAIN = enum.auto()  # make the operation again, at once
    WAIT = enum.auto()  # make it again when the descriptor is ready
    CLOSED = enum.auto()  # the descriptor was closed meanwhile
    ERROR = enum.auto()


class Direction(DirectionFields):
    """One direction of a descriptor.

    Args:
        lease: the lease on the descriptor.
        fileno: returns the descriptor's number, which changes when the descriptor is closed.
        receiving: which direction it is.
        is_socket: whether the descriptor is a socket.

    Attributes:
        held: a call or a pump holds it; others get trio.BusyResourceError.
        waiter: the operation of a call of the socket itself; it has the direction while in use.
        left: an operation of a destroyed call that the kernel still has.
        closed: the direction was closed.
        lends: calls of the socket itself may move bytes by completion.
        closes_alone: closing it leaves the descriptor open, for the other direction.
        ended: nothing more can be sent; always true once it is closed.
        kept: bytes that were received and not returned; None: there are none.
        told: called when the direction is closed while it is held.
        sent: bytes of the current or last send_all that the kernel has taken.
        operations: the operations made so far, by kind; those of a pump by themselves.
        size, streak: see `provided`.
    """

    __slots__ = ("__weakref__", "_lease", "closed", "owner", "receiving", "told")

    def __init__(
        self, lease: Whole, fileno: Callable[[], int], receiving: bool, is_socket: bool
    ) -> None:
        self._lease: weakref.ref[Whole] = weakref.ref(lease)
        self.receiving: bool = receiving
        self.is_socket = is_socket
        self.owner: Any = lease.owner
        self.fd: int = lease.fd
        self.fileno = fileno
        self.held: bool = False
        self.closed: bool = False
        self.ended = self.closes_alone = self.lends = False
        self.waiter: TaskOperation | None = None
        self.left: TaskOperation | None = None
        self.kept: ChunkQueue | None = None
        self.told: Callable[[], object] | None = None
        self.operations: dict[Any, TaskOperation] = {}
        self.size: int = OWN_SIZE
        self.streak: int = 0
        self.sent = 0

    def __del__(self) -> None:
        for op in self.operations.values():
            op.unlink()

    # -- who has it

    def take(self, kind: int) -> TaskOperation:
        """Holds the direction, and returns the operation to be performed.

        The caller must free it afterwards: ``way.held = False``, and ``if op.owed: way.leave(op)``.

        Raises:
            trio.BusyResourceError: somebody else has it.
            trio.ClosedResourceError: it is closed, or was ended.
        """
        if self.held or self.ended or self.waiter is not None or self.fileno() != self.fd:
            self._look()
        op = self.operations.get(kind)
        if op is None or op.owed:
            op = self.operation(kind)
        self.held = True
        return op

    def hold(self, *, also_ended: bool = False) -> None:
        """Like take, but without an operation. `also_ended`: even if it was shut down."""
        self._look(also_ended)
        self.held = True

    def lend(self, kind: int) -> TaskOperation | None:
        """The operation for a call of the socket itself. None: the call has to go trio's way.

        The call has the direction while the operation is in use. Afterwards: ``if op.owed:
        way.leave(op)``.
        """
        waiter = self.waiter
        if not self.lends or self.held or self.ended:
            return None
        if self.left is not None or self.kept is not None:
            return None
        if (waiter is not None and waiter.in_use) or self.fileno() != self.fd:
            return None
        op = self._own(~kind)
        if not op.engine.completes:
            return None
        self.waiter = op
        return op

    def lend_poll(self) -> TaskOperation:
        """The operation by which a call of the socket itself waits; used like that of lend."""
        op = self.waiter = self._own(~POLL)
        return op

    def _own(self, kind: int) -> TaskOperation:
        op = self.operations.get(kind)
        if op is None or op.owed or not is_here(op.engine):
            op = self.operation(kind)
        return op

    def _look(self, also_ended: bool = False) -> None:
        """Raises if the direction may not be taken."""
        if self.held:
            raise self.busy()
        if also_ended:
            self.check_not_closed()
        else:
            self.check_open()
        waiter = self.waiter
        if waiter is not None:
            if waiter.in_use:
                raise busy()
            self.waiter = None

    def check_open(self) -> None:
        """Raises trio.ClosedResourceError if nothing can be sent or received any more."""
        self.check_not_closed()
        if self.ended or self.fileno() == SHUT_DOWN:
            raise trio.ClosedResourceError("can't send data after sending EOF")

    def check_not_closed(self) -> None:
        if not self.is_open():
            raise trio.ClosedResourceError(f"this {self._noun()} was already closed")

    def is_open(self) -> bool:
        """Whether it is open. The user may have closed the socket itself and reused its number."""
        return not self.closed and self.fileno() in (self.fd, SHUT_DOWN)

    def busy(self) -> trio.BusyResourceError:
        does = "receiving" if self.receiving else "sending"
        return trio.BusyResourceError(
            f"another task is currently {does} data on this {self._noun()}"
        )

    def _noun(self) -> str:
        lease = self._lease()
        return "stream" if lease is None else lease.noun

    # -- operations

    @enable_ki_protection  # the accelerator calls it from the caller's own frame
    def operation(self, name: int) -> TaskOperation:
        """Makes an operation for the engine that uses the descriptor, and keeps it under `name`."""
        lease = self._lease()
        assert lease is not None  # whoever uses the direction has the lease
        kind = name if name >= 0 else ~name
        opcode = Opcode.POLL_ADD if kind == POLL else (_OF_FILE, _OF_SOCKET)[self.is_socket][kind]
        op = TaskOperation(lease.engine(), opcode, self.fd, self.owner)
        op.way = weakref.ref(self)
        if kind == POLL:
            op.flags = POLLIN if self.receiving else POLLOUT
        elif not self.is_socket:
            op.offset = POSITION
        elif not self.receiving:
            op.flags = SEND_FLAGS
        if kind == RECEIVE:
            use_first(self, op)
        self.operations[name] = op
        if self.closed:  # in a garbage collection: see Engine.release
            op.fd = CLOSED_FD
        return op

    def get(self, kind: int) -> TaskOperation:
        """An operation of this kind, for whoever holds the direction."""
        op = self.operations.get(kind)
        return self.operation(kind) if op is None or op.owed else op

    async def wait_ready(self, op: TaskOperation | None = None) -> int:
        """Waits until the direction, which the caller has, may be ready. A checkpoint.

        Args:
            op: the operation from lend_poll; None: the direction is held.

        Returns:
            poll(2) events, or -errno.

        Cancellation: it stops waiting; nothing can be lost.
        """
        op = op or self.get(POLL)
        try:
            return int(await op.engine.wait_ready(op))
        finally:
            if op.owed:
                self.leave(op)

    def verdict(self, op: TaskOperation | None, res: int) -> Verdict:
        """What a negative result means. A receive that found no buffer asks for a small one."""
        if self.closed or res == -errno.ECANCELED:
            return Verdict.CLOSED
        if res == -errno.ENOBUFS and op is not None and op.group != NO_GROUP:
            # All buffers of the group were taken in this pass. They are back by the next one. There
            # are more small ones than large ones.
            use_first(self, op)
            return Verdict.AGAIN
        return Verdict.WAIT if -res in AGAIN_ERRNOS else Verdict.ERROR

    def would_block(self, exc: OSError) -> bool:
        """Whether a system call on the descriptor failed only because it would have waited."""
        return self.verdict(None, -(exc.errno or errno.EIO)) is Verdict.WAIT

    # -- destroyed calls

    @enable_ki_protection  # the accelerator calls it from the caller's own frame
    def leave(self, op: TaskOperation) -> None:
        """Ends a call that did not get the result of its operation.

        The call was destroyed, or the operation was never made.
        """
        op.owed = False
        if op.task is None and not op.state.in_kernel:
            op.let_go()  # an operation by readiness has its buffer until its call resumes
            self._collect(op)
            return
        # The next call makes a new operation.
        for kind, other in list(self.operations.items()):
            if other is op:
                del self.operations[kind]
        if self.waiter is op:
            self.waiter = None
        # A poll takes nothing, so nobody needs its result.
        if op.opcode != Opcode.POLL_ADD:
            view = op.memory  # the call releases it, if it can
            if view is not None:
                op.memory = memoryview(view)
            self.left, op.then = op, functools.partial(self._collect, op, view)
        if op.task is not None:
            op.engine.abandon(op)

    def _collect(self, op: TaskOperation, view: memoryview | None = None) -> None:
        """Keeps what the operation of a destroyed call received, for the next receive."""
        if self.left is op:
            self.left = None
        op.raise_cancel = None
        chunk, op.chunk = op.chunk, None
        memory, op.memory = op.memory, None
        if op.res > 0 and op.opcode in RECEIVING:
            self.keep(chunk if memory is None else memory.tobytes()[: op.res])
        for export in (memory, view):
            if export is not None:
                release_view(export)

    async def settle(self) -> None:
        """Waits for what a destroyed call left in the kernel.

        Raises:
            trio.BusyResourceError: another task already waits for it.
        """
        left = self.left
        while left is not None:
            if left.task is not None:
                await trio.lowlevel.checkpoint()
                raise busy()
            await left.engine.settle(left)
            left = self.left

    # -- bytes that were received but not returned

    def keep(self, chunk: bytes | None) -> None:
        """Keeps a chunk for the next receive, after what is kept already."""
        if chunk:
            if self.kept is None:
                self.kept = ChunkQueue()
            self.kept.append(chunk)

    def put_back(self, chunks: list[bytes]) -> None:
        """Keeps chunks for the next receive, in order, before what is kept already."""
        kept = self.kept or ChunkQueue()
        for chunk in reversed(chunks):
            kept.prepend(chunk)
        self.kept = kept if kept.size else None

    def take_kept(self, max_bytes: int) -> bytes:
        """Takes up to `max_bytes` of what is kept. There must be some."""
        kept = self.kept
        assert kept is not None
        chunk = kept.take(min(max_bytes, kept.size))
        if not kept.size:
            self.kept = None
        return chunk

    def move(self) -> None:
        """Moves its operations to the current run, if the run in which they were used is over.

        Raises:
            RuntimeError: the direction cannot be used in this run or process.
        """
        lease = self._lease()
        assert lease is not None  # whoever uses the direction has the lease
        if self.used_elsewhere(lease.current_engine()):
            raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
        for op in list(self.operations.values()):
            if op.engine.phase.over:
                op.engine.attend(op)

    def used_elsewhere(self, engine: object) -> bool:
        """Whether a run other than this engine's is not over and has streams on the descriptor."""
        lease = self._lease()
        return lease is not None and lease.engine_of_streams() not in (None, engine)


SHUT_DOWN = -2  # what `fileno` returns for a descriptor that can send no more


def is_here(engine: Any) -> bool:
    """Whether the engine's trio.run is in this thread and not over."""
    return engine.thread == get_ident() and not engine.phase.over


def busy() -> trio.BusyResourceError:
    """The error of a socket that another task uses, in trio's words."""
    return trio.BusyResourceError("another task is already reading / writing this fd")
