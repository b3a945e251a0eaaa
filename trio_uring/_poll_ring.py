"""The Ring protocol over epoll: what runs where io_uring is forbidden.

An operation is attempted when it is flushed, by the system call that it stands for. One that is not ready waits, by its
descriptor, in an epoll instance of this ring's, and is attempted again when that says so.

Rules of this file. S1 to S6 of _ring.py, with the ring in the kernel's place; and for the epoll instance:

E1  Every wait is armed anew, with EPOLLONESHOT: a registration is never trusted to be there, because descriptors are closed and
    their numbers are used again. One that is gone is the news that whoever waited before waits for a closed descriptor.
E2  A descriptor has one registration, whose mask is the union of what its operations wait for.
E3  The interest of an operation that is cancelled ends in `cancel`: the descriptor is closed right afterwards.
E4  The ring's descriptor is the epoll instance. In it is an eventfd that is always readable, and armed while operations are
    done that nobody has drained.
E5  A registration that outlives its number (the descriptor was closed behind our back, its file is open elsewhere) is seen
    by nothing but a poll: from then on every drain polls, or its event would keep trio awake for ever.
E6  An idle connection holds no memory: see _calls.py.
"""

from __future__ import annotations

import errno
import math
import os
import select
import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from ._calls import SystemCalls
from ._contract import SQ_ENTRIES, RingCounters, RingInfo
from ._entries import read_message
from ._errors import RingBrokenError, RingUnavailableError, why_unavailable
from ._op import CANCELLING, RECEIVING, SENDING, SUBMITTED, Opcode, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

EVENTS_MAX = 1024  # descriptors that one drain looks at; the rest keep the ring's descriptor readable

_AGAIN, _MAY_BLOCK = 1, 2  # TU_* of ring.h
_ONESHOT, _ALWAYS = 1 << 30, 0x8 | 0x10  # EPOLLONESHOT; EPOLLERR | EPOLLHUP, which nobody has to ask for
_IN, _OUT = 0x1, 0x4  # EPOLLIN, EPOLLOUT
_EVENTS = {
    **dict.fromkeys((*map(int, RECEIVING), int(Opcode.ACCEPT)), _IN),
    **dict.fromkeys((*map(int, SENDING), int(Opcode.CONNECT)), _OUT),
}

# An operation with what tu_attempt is given for it: entry, address, length.
_Call: TypeAlias = tuple[Operation, Any, Any, int]

_open_rings: set[PollRing] = set()  # S2


class PollRing(SystemCalls):
    """A ring without io_uring, opened by the thread that uses it.

    Args:
        sq_entries: operations that are queued before `submit` asks for a flush.
        provide_buffers: False lets receives bring their own memory, as on a kernel before 5.19.
    """

    def __init__(self, sq_entries: int = SQ_ENTRIES, provide_buffers: bool = True) -> None:
        self.table: dict[int, Operation] = {}
        self.counters = RingCounters()
        self._submitted = self.counters.submitted
        self.now = 0.0
        self._thread = threading.get_ident()
        self._token = 0
        self._queue: deque[_Call] = deque()  # submitted, not flushed
        self._waiting: dict[int, list[_Call]] = {}  # by descriptor
        self._finished: deque[Operation] = deque()  # done, not drained
        self._armed = False  # the eventfd
        self._strays = False  # E5
        self._entries = sq_entries
        self._epoll, self._event = _open_epoll()
        self._modify = self._epoll.modify
        self._fd = self._epoll.fileno()
        self.info = RingInfo(
            backend="epoll",
            setup_flags=(),
            features=0,
            sq_entries=sq_entries,
            cq_entries=0,
            opcodes=tuple(op.name for op in Opcode),
            provided_buffers=provide_buffers,
        )
        _open_rings.add(self)

    def fileno(self) -> int:
        return self._fd

    # -- submission

    def submit(self, op: Operation) -> bool:
        if len(self._queue) >= self._entries:
            self.counters.sq_full += 1
            return False
        state = op.state.submitted
        entry, address, length = self._prepare(op)
        token = self._token = self._token + 1
        self.table[token] = op
        self._queue.append((op, entry, address, length))
        op.token = token
        op.state = state
        op.born = self.now
        self._submitted[op.opcode] += 1
        return True

    def cancel(self, op: Operation) -> None:
        if op.state is not SUBMITTED:
            return
        op.state = op.state.cancelling  # in the queue, that is all
        self._submitted[Opcode.ASYNC_CANCEL] += 1
        calls = self._waiting.get(op.fd, ())
        left = [call for call in calls if call[0] is not op]
        if len(left) == len(calls):
            return
        del self._waiting[op.fd]
        self._finish(op, -errno.ECANCELED)
        if left:
            self._wait_for(op.fd, left)
        else:
            try:
                self._epoll.unregister(op.fd)
            except OSError:  # closed behind our back
                self._strays = True

    def flush(self) -> bool:
        self._check_owner()
        queue = self._queue
        if queue:
            self.counters.enters += 1
        while queue:
            call = queue.popleft()
            op = call[0]
            if op.state is CANCELLING:
                self._finish(op, -errno.ECANCELED)
            elif not self._attempt(call, 0):
                self._wait_for(op.fd, self._waiting.pop(op.fd, ()), call)
        if self._finished and not self._armed:
            try:
                self._modify(self._event, _IN | _ONESHOT)
            except OSError as exc:
                raise RingBrokenError(exc.errno, f"the ring's epoll instance is gone: {exc.strerror}") from exc
            self._armed = True
        return True

    def _attempt(self, call: _Call, flags: int) -> bool:
        """Makes the system call. False: the descriptor is not ready."""
        op, entry, address, length = call
        res = self._call(op, entry, address, length, flags)
        if res is None:
            return False
        self._finish(op, res)
        return True

    def _finish(self, op: Operation, res: int) -> None:
        op.res = res
        self._finished.append(op)

    def _wait_for(self, fd: int, calls: Iterable[_Call], new: _Call | None = None) -> None:
        """Waits for `fd` on behalf of `calls`, which have waited for it before, and of a new one."""
        waiting = [*calls] if new is None else [*calls, new]
        try:
            try:
                self._modify(fd, _mask(waiting))
            except FileNotFoundError:
                for op, *_ in calls:  # E1
                    self._finish(op, -errno.EBADF)
                    self._strays = True
                if new is None:
                    return
                waiting = [new]
                self._epoll.register(fd, _mask(waiting))
        except PermissionError:  # a regular file, or something else that is always ready
            for call in waiting:
                self._attempt(call, _MAY_BLOCK)
        except OSError as exc:
            self._strays = True
            for op, *_ in waiting:
                self._finish(op, -(exc.errno or errno.EIO))
        else:
            self._waiting[fd] = waiting

    def _check_owner(self) -> None:
        if self._fd < 0:
            raise RuntimeError("this ring is closed, or belongs to the process that this one was forked from")
        if self._thread != threading.get_ident():
            raise RuntimeError("this ring belongs to another thread")

    # -- completion

    def drain(self, done: list[Operation]) -> None:
        self._check_owner()
        if self._waiting or self._armed or self._strays:
            try:
                events = self._epoll.poll(0, EVENTS_MAX)
            except OSError as exc:
                raise RingBrokenError(exc.errno, f"the ring's epoll instance is gone: {exc.strerror}") from exc
            for fd, ready in events:
                if fd == self._event:
                    self._armed = False
                else:
                    self._retry(fd, ready)
        finished = self._finished
        while finished:
            self._hand_out(finished.popleft(), done)

    def _retry(self, fd: int, ready: int) -> None:
        """Attempts again what waited for `fd`, of which epoll has said that it is ready."""
        left = []
        for call in self._waiting.pop(fd, ()):  # none: what the registration was for is gone
            if not ready & (_mask_of(call[0]) | _ALWAYS) or not self._attempt(call, _AGAIN):
                left.append(call)
        if left:
            self._wait_for(fd, left)

    def _hand_out(self, op: Operation, done: list[Operation]) -> None:
        del self.table[op.token]
        done.append(op)  # at once: from here on it is the caller's, whatever happens
        op.state = op.state.done
        op.pin = op.buffer = op.buffers = None  # S3
        self.counters.completions += 1
        self.counters.count_result(op, op.res)

    def received(self, op: Operation) -> None:
        read_message(op)

    def ready(self) -> bool:
        return bool(self._finished) or bool(self._poll(0.0))

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        poller = select.poll()  # to ask the epoll instance itself would use up its events
        poller.register(self._fd, select.POLLIN)
        return poller.poll(math.ceil(timeout * 1000))

    def buffers_in_use(self) -> int:
        return 0

    # -- teardown

    def wait(self, timeout: float) -> None:
        self._check_owner()
        self.counters.enters += 1
        if not self._finished:
            self._poll(max(0.0, timeout))

    def close(self) -> bool:
        if self._fd < 0:
            return True
        self._check_owner()
        if self.table:
            warnings.warn(
                f"trio_uring leaked a ring: {len(self.table)} operations are in flight, "
                f"among them {list(self.table.values())[:5]}",
                ResourceWarning,
                stacklevel=2,
            )
            return False
        self._free()
        return True

    def _free(self) -> None:
        self._fd = -1
        self._epoll.close()
        os.close(self._event)
        _open_rings.discard(self)

    def disown(self) -> None:
        """In a forked child: closes its copies of the descriptors. The registrations are the parent's, and not touched."""
        if self._fd >= 0:
            self._free()


def _mask_of(op: Operation) -> int:
    """The EPOLL* bits that the operation waits for; of a POLL_ADD, its own, which have the same values."""
    return _EVENTS.get(op.opcode, op.flags)


def _mask(calls: Iterable[_Call]) -> int:
    mask = _ONESHOT
    for call in calls:
        mask |= _mask_of(call[0])
    return mask


def _open_epoll() -> tuple[select.epoll, int]:
    """The epoll instance and the eventfd in it, E4."""
    try:
        poller = select.epoll()
    except OSError as exc:
        raise RingUnavailableError(exc.errno, why_unavailable(exc.errno or 0, "epoll_create1")) from exc
    try:
        event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as exc:
        poller.close()
        raise RingUnavailableError(exc.errno, why_unavailable(exc.errno or 0, "eventfd")) from exc
    poller.register(event, _ONESHOT)
    return poller, event


def _disown_all() -> None:
    for ring in list(_open_rings):
        ring.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
