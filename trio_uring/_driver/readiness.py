"""Operations by readiness: system calls are tried, and tasks wait as with trio's own sockets.

The calls are those of the socket module and of os. Where there is no io_uring, this performs
everything: no ring, no epoll instance of ours, no C. It is also used where there is a ring, for
what a completion might take from others (a pipe that several processes read).

Rules of this file: nothing here needs Linux. The thread is never blocked, except by a regular file,
which cannot be waited for. No descriptor's mode is changed: it may be shared with other processes.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    wait_readable,
    wait_writable,
)

from .._accelerator import hot
from .._ring.figures import RingCounters, RingInfo
from .._ring.op import CLOSED_FD, NO_GROUP, poll_event
from .._ring.opcodes import POLLIN, POLLOUT, RECEIVING, Opcode
from .._trio import epoll_manager, stop_waiting
from .phases import OVER, RUNNING, Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .operation import TaskOperation

RECEIVE_MAX = 65536  # bytes that one call makes room for, as trio's own streams do
JOIN_MAX = 65536  # bytes of a list that are joined where no call takes a list
HAS_SENDMSG = hasattr(socket.socket, "sendmsg")
# PyPy's calls copy all of a view or list that they are given, however little the kernel takes.
COPIES = sys.implementation.name == "pypy"
COPY_MAX = 2**18  # bytes of a buffer that one call is given then
_PIPE_BUF = getattr(select, "PIPE_BUF", 512)  # bytes that a pipe with room takes without blocking

NO_RING = RingInfo("readiness", (), 0, 0, 0, (), provided_buffers=False)
_NOT_THIS_WAY = {
    getattr(errno, name, 0) for name in ("EOPNOTSUPP", "ENOTSUP", "EINVAL", "ENOSYS", "ESPIPE")
}


# -- the calls. They return a result >= 0, or raise: BlockingIOError (not now) or another OSError


def _recv(op: Any) -> int:
    if op.group != NO_GROUP:
        op.chunk = op.owner.recv(min(op.length, RECEIVE_MAX), op.flags)
        return len(op.chunk)
    return int(op.owner.recv_into(op.buffer, op.length, op.flags))


def _send(op: Any) -> int:
    if type(op.buffer) is bytes and not op.start and op.length == len(op.buffer):
        return int(op.owner.send(op.buffer, op.flags))
    return int(op.owner.send(_part(op), op.flags))


def _part(op: Any) -> memoryview:
    length = min(op.length, COPY_MAX) if COPIES else op.length
    return _flat(op.buffer)[op.start : op.start + length]


def _flat(buffer: Any) -> memoryview:
    """A view of bytes. What is one already is not cast: PyPy reads a cast view byte by byte."""
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _sendmsg(op: Any) -> int:
    return int(op.owner.sendmsg(_parts(op), (), op.flags))


def _send_joined(op: Any) -> int:
    """A SENDMSG where sockets have no sendmsg (Windows), or it would copy everything (PyPy)."""
    return int(op.owner.send(_joined(_parts(op)), op.flags))


def _joined(buffers: list[Any]) -> Any:
    """The beginning of a list as one buffer, where no call takes a list.

    A large first buffer is not copied, and of those after it no more than JOIN_MAX bytes.
    """
    first = _flat(buffers[0])
    if len(buffers) == 1 or len(first) >= JOIN_MAX:
        return first[:COPY_MAX]
    parts, room = [], JOIN_MAX
    for buffer in buffers:
        size = memoryview(buffer).nbytes
        parts.append(buffer if size <= room else _flat(buffer)[:room])
        room -= size
        if room <= 0:
            break
    return b"".join(parts)


def _parts(op: Any) -> list[Any]:
    first, *others = op.buffers
    return [_flat(first)[op.start :] if op.start else first, *others]


def _read(op: Any) -> int:
    if op.group != NO_GROUP:
        op.chunk = read_now(op.fd, min(op.length, RECEIVE_MAX))
        return len(op.chunk)
    chunk = read_now(op.fd, op.length)
    _flat(op.buffer)[: len(chunk)] = chunk
    return len(chunk)


def _write(op: Any) -> int:
    return write_now(op.fd, [_part(op)])


def _writev(op: Any) -> int:
    return write_now(op.fd, _parts(op))


def read_now(fd: int, length: int) -> bytes:
    """Like os.read, but never waits, even if the descriptor is blocking."""
    if sys.platform == "linux" and hasattr(os, "RWF_NOWAIT") and length:
        memory = bytearray(length)
        try:
            return bytes(memoryview(memory)[: os.preadv(fd, [memory], -1, os.RWF_NOWAIT)])
        except BlockingIOError:
            # A regular file is read even if that means waiting for the disk.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise
        except OSError as exc:
            if exc.errno not in _NOT_THIS_WAY:
                raise
    _check_ready(fd, POLLIN)
    return os.read(fd, length)


def write_now(fd: int, buffers: list[Any]) -> int:
    """Like os.writev, but never waits, even if the descriptor is blocking."""
    if sys.platform == "linux" and hasattr(os, "RWF_NOWAIT"):
        try:
            return os.pwritev(fd, buffers, -1, os.RWF_NOWAIT)
        except BlockingIOError:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise
        except OSError as exc:
            if exc.errno not in _NOT_THIS_WAY:
                raise
    if not _check_ready(fd, POLLOUT):
        if sys.platform == "win32" or not hasattr(os, "writev"):
            return os.write(fd, _joined(buffers))
        return os.writev(fd, buffers)
    first = next(view for view in buffers if memoryview(view).nbytes)
    return os.write(fd, _flat(first)[:_PIPE_BUF])


def _check_ready(fd: int, events: int) -> bool:
    """Raises BlockingIOError if a call would wait now, and OSError, as a call would, for the wrong
    end of a pipe, which is never ready.

    True: it might still, since the descriptor is blocking: with more than PIPE_BUF bytes, or if
    another process is faster.
    """
    if sys.platform == "win32" or not os.get_blocking(fd):  # there it is sockets only
        return False
    poller = select.poll()
    poller.register(fd, events)
    if not poller.poll(0):
        import fcntl

        access = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        wrong = os.O_WRONLY if events == POLLIN else os.O_RDONLY
        code = errno.EBADF if access == wrong else errno.EAGAIN
        raise OSError(code, os.strerror(code))
    return True


# For every opcode that may be tried.
_CALLS: dict[int, Callable[[Any], int]] = {
    int(Opcode.RECV): _recv,
    int(Opcode.SEND): _send,
    int(Opcode.SENDMSG): _send_joined if COPIES or not HAS_SENDMSG else _sendmsg,
    int(Opcode.READ): _read,
    int(Opcode.WRITE): _write,
    int(Opcode.WRITEV): _writev,
}


# -- one operation


def attempt(op: Any) -> bool:
    """Makes the system call of an operation. False: it would wait."""
    try:
        op.res = _CALLS[op.opcode](op)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as exc:
        op.res = -(exc.errno or errno.EIO)
    counters, res = op.engine.counters, op.res
    counters.direct += 1
    counters.submitted[op.opcode] += 1
    if res > 0:
        counters.moved[op.opcode] += res
    elif res < 0:
        counters.count_failure(op, res)
    return True


async def wait_by_trio(fd: int, events: int) -> int:
    """Waits as trio's own sockets do.

    Returns:
        The events, or -errno: the descriptor was closed meanwhile, or cannot be waited for.
    """
    if fd == CLOSED_FD:
        return -errno.EBADF
    try:
        await (wait_writable if events == POLLOUT else wait_readable)(fd)
    except trio.ClosedResourceError:
        return -errno.ECANCELED
    except PermissionError:  # what epoll says of a regular file, which is always ready
        await checkpoint()
    except OSError as exc:
        return -(exc.errno or errno.EBADF)
    return events


@enable_ki_protection
async def perform_by_readiness(
    op: TaskOperation, wait: Callable[[TaskOperation], Awaitable[int]]
) -> int:
    """Performs an operation by its system call. Always a checkpoint.

    Args:
        op: the operation.
        wait: waits until the descriptor may be ready; < 0: it has failed, with that result.

    Returns:
        The result: >= 0, or -errno.

    Cancellation: if Cancelled is raised, nothing was done; what was done is returned.
    """
    op.res, op.owed = 0, True
    try:
        await checkpoint_if_cancelled()
        if attempt(op):
            await cancel_shielded_checkpoint()
        else:
            while (res := await wait(op)) >= 0:
                if attempt(op):
                    break
            else:
                op.res = res
        op.owed = False
        return op.res
    finally:
        op.let_go()


if TYPE_CHECKING or hot is None:

    class _Fields:
        """The fields of an engine that the accelerator has in C."""

        if TYPE_CHECKING:  # the accelerator's alone
            manager: Any

else:
    _Fields = hot.ReadinessEngine


class ReadinessEngine(_Fields):
    """Performs the operations of one trio.run by readiness.

    It has all that directions need of an engine, like the ring's Engine.

    Args:
        move: finds the engine that performs an operation when this one's run is over.
    """

    completes = pumps = False
    provided_buffers = True  # a receive need not bring memory

    def __init__(self, move: Callable[[TaskOperation], Any]) -> None:
        self.counters: RingCounters = RingCounters()
        self.short_writes = self.passes = 0
        self.phase: Phase = RUNNING  # in a forked child too, as with trio's own sockets
        self.waiting: dict[TaskOperation, float] = {}  # since when: time.monotonic()
        # For operations whose descriptor may stay open when their direction is closed.
        self._scopes: dict[TaskOperation, trio.CancelScope] = {}
        self.thread: int = get_ident()
        self._move = move
        if hot is not None:
            self.manager: Any = epoll_manager()

    def perform(self, op: TaskOperation) -> Awaitable[int]:
        """The same as Engine.perform."""
        engine = self.attend(op)
        if engine is not self:
            performed: Awaitable[int] = engine.perform(op)
            return performed
        return perform_by_readiness(op, self._wait)

    def attend(self, op: TaskOperation) -> Any:
        """Finds the engine that performs an operation; raises, with the reason, if none does."""
        if self.phase is OVER:
            return self._move(op)
        if get_ident() != self.thread:
            raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
        return self

    @enable_ki_protection
    async def wait_ready(self, poll: TaskOperation) -> int:
        """Waits as a POLL_ADD would."""
        engine = self.attend(poll)
        return await self._wait(poll) if engine is self else int(await engine.wait_ready(poll))

    async def _wait(self, op: TaskOperation) -> int:
        counters, opcode, res = self.counters, op.opcode, -errno.ECANCELED
        op.task, self.waiting[op] = current_task(), time.monotonic()
        counters.submitted[opcode] += 1
        try:
            res = await self._until_ready(op)
            return res
        finally:
            op.task = None
            self.waiting.pop(op, None)
            if res < 0:
                counters.count_failure(op, res)
            elif opcode != Opcode.POLL_ADD:
                counters.submitted[opcode] -= 1  # its call is counted instead

    async def _until_ready(self, op: TaskOperation) -> int:
        events = poll_event(op)
        way = None if op.way is None else op.way()
        if way is None or not way.closes_alone:
            return await wait_by_trio(op.fd, events)
        with trio.CancelScope() as scope:
            self._scopes[op] = scope
            try:
                events = await wait_by_trio(op.fd, events)
            finally:
                del self._scopes[op]
        return -errno.ECANCELED if scope.cancel_called else events

    @enable_ki_protection  # also when the accelerator calls it, from the caller's own frame
    def withdraw(self, op: TaskOperation) -> bool:
        """Stops waiting in trio's epoll, for a call of the accelerator's that was cancelled."""
        if self.waiting.pop(op, None) is not None:
            stop_waiting(self.manager, op.fd, op.opcode in RECEIVING)
            self.counters.count_failure(op, -errno.ECANCELED)
        op.let_go()
        return True

    def abandon(self, op: TaskOperation) -> None:
        """Called when a coroutine was destroyed: it leaves nothing behind."""

    async def settle(self, op: TaskOperation) -> None:
        """A checkpoint: a destroyed coroutine leaves nothing that has to be waited for."""
        await checkpoint()

    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        """Closes a descriptor, or shuts down one direction of it.

        Tasks that wait in `ops` get -ECANCELED.
        """
        for op in ops:
            if self.waiting.pop(op, None) is not None:
                op.task = None
                if op in self._scopes:
                    self._scopes[op].cancel()
        close()  # if it closes the descriptor, trio's notify_closing wakes all others

    def enter(self, phase: Phase) -> None:
        """Enters the next phase."""
        self.phase = self.phase.to(phase)
        self.manager = None  # it keeps tasks that wait
        for op in self.waiting:  # after a crash: otherwise the streams would keep the tasks alive
            op.task = None
        self.waiting.clear()
