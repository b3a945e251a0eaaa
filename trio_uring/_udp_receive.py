"""The receiving half of a UDP socket: one datagram, or all that are there.

One datagram is a RECVMSG that waits, after recvmsg(2) found none. For many, a multishot RECVMSG with MSG_DONTWAIT takes what
the socket has, in one io_uring_enter, and ends; before that a POLL_ADD waits, which has nothing to lose. So nothing is in the
kernel while no task waits, and what is not read stays in the socket's own buffer; when that is full, the kernel drops.

Rules of this file: at most one receive of a socket is in the kernel. A datagram that the kernel gave belongs to the socket
until a call returns it (`_kept`), and nothing is received before that is empty: it holds what one operation had, at most.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket as stdlib_socket
import threading
from collections import deque
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from ._contract import LARGE_SIZE
from ._endpoint import Endpoint
from ._errors import AGAIN_ERRNOS, CLOSED_ERRNOS
from ._op import DATAGRAM_GROUP, LARGE_GROUP, NO_GROUP, Message, Opcode
from ._timed import within
from ._udp_messages import CONTROL_MAX, MSG_TRUNC, Datagram, parse_shots, segment_of, segment_size, split, unpack_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._engine import TaskOperation

DATAGRAM_MAX = 65535  # bytes: no UDP payload is longer, nor what GRO joins
SHOTS_MIN = 32  # a kernel ends a multishot receive after this many at the earliest; with fewer, the socket was empty


class _Scratch(threading.local):
    """Each thread's buffer for one system call."""

    def __init__(self) -> None:
        self.buffer = bytearray(DATAGRAM_MAX)


_scratch = _Scratch()


class UDPReceive(Endpoint):
    """Mixed into UDPSocket."""

    _plain: stdlib_socket.socket

    _receiving = False
    _one: TaskOperation | None = None
    _many: TaskOperation | None = None
    _orphan: TaskOperation | None = None  # of a call whose coroutine was destroyed; not over yet
    _multishot = True
    _empty = False  # it was, when last asked
    _failure: OSError | None = None  # came after datagrams that were to be returned first

    receive_timeout: float | None = None
    """Seconds that one receive may take; None: no limit."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._kept: deque[Datagram] = deque()

    async def receive_from(self, *, timeout: float | None = None) -> Datagram:
        """Waits for a datagram.

        Args:
            timeout: seconds; None: the socket's `receive_timeout`; math.inf: no limit.

        Returns:
            (payload, address) of one datagram: whole, at most 65,535 bytes, and b"" for an empty one. The address is the
            sender's, as socket.socket.recvfrom has it: (host, port), for IPv6 (host, port, flow info, scope id).

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this socket.
            trio.ClosedResourceError: this socket was closed.
            OSError: an earlier send could not be delivered (a connected socket is told, with ConnectionRefusedError for
                instance). The socket goes on working.

        Cancellation: no datagram is lost. One that arrives meanwhile is returned, or kept for the next receive.
        """
        with within(self.receive_timeout if timeout is None else timeout):
            return (await self._receive(self._receive_one, 1))[0]

    async def receive_many(self, max_datagrams: int = 1024, *, timeout: float | None = None) -> list[Datagram]:
        """Waits until there is a datagram, and returns those that are there.

        Args:
            max_datagrams: the most to return, at least 1.
            timeout: seconds to wait for the first; None: the socket's `receive_timeout`; math.inf: no limit.

        Returns:
            1 to `max_datagrams` of what receive_from returns, in order of arrival. It is what one system call had (33 receives
            of the kernel, each of up to 64 datagrams where it joins them), so there may be more in the socket.

        Raises:
            ValueError: `max_datagrams` is less than 1.
            As receive_from.

        Cancellation: as of receive_from. What one system call had and `max_datagrams` left out is kept for the next receive:
        64 times 65,535 bytes at most. Nothing else is held for a socket that nobody reads.
        """
        if max_datagrams < 1:
            raise ValueError("max_datagrams must be >= 1")
        with within(self.receive_timeout if timeout is None else timeout):
            return await self._receive(self._receive_more, max_datagrams)

    @enable_ki_protection
    async def _receive(self, receive: Callable[[], Awaitable[None]], limit: int) -> list[Datagram]:
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving on this socket")
        self._check_open()
        self._receiving = True
        try:
            if self._orphan is not None:
                await self._settle(self._orphan)
            if self._kept or self._failure is not None:
                await trio.lowlevel.checkpoint()
            while not self._kept and self._failure is None:
                await receive()
            kept = self._kept
            if kept:
                return [kept.popleft() for _ in range(min(limit, len(kept)))]
            failure, self._failure = self._failure, None
            assert failure is not None
            raise failure
        finally:
            self._receiving = False

    async def _settle(self, orphan: TaskOperation) -> None:
        """What a destroyed call still got comes before what is received now."""
        await orphan.driver.settle(orphan)
        self._orphan = None
        if orphan.dispose is not None:
            orphan.dispose(orphan.res)
        self._operations.remove(orphan)
        self._check_open()

    # -- one

    async def _receive_one(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._receive_plainly(1)  # what is there costs a third of what an operation does, see docs/design.md
        if self._kept or self._failure is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._wait_for_one()

    async def _wait_for_one(self) -> None:
        op = self._one = self._one or self._make(LARGE_GROUP)
        own = None
        if op.group == NO_GROUP:
            own = bytearray(DATAGRAM_MAX)
            op.buffers = [own]
        op.length, op.message = LARGE_SIZE if own is None else DATAGRAM_MAX, Message(control_max=CONTROL_MAX)
        op.res = -errno.ECANCELED
        try:
            res = await op.driver.perform(op)
        finally:
            if op.state.in_kernel:  # this coroutine was destroyed
                self._one, self._orphan, op.dispose = None, op, functools.partial(self._take_one, op, own)
            else:
                self._take_one(op, own, op.res)
        if res == -errno.ENOBUFS and own is None:  # the group was empty in this pass: bring 64 KiB from now on
            op.group, op.entry = NO_GROUP, None
        elif res < 0:
            await self._fail(res)

    def _make(self, group: int) -> TaskOperation:
        op = self._operation(Opcode.RECVMSG)
        op.group = group if op.driver.ring.info.provided_buffers else NO_GROUP
        return op

    def _take_one(self, op: TaskOperation, own: bytearray | None, res: int) -> None:
        """Keeps what the operation received; once."""
        op.res = -errno.ECANCELED
        if res < 0 or op.message is None:
            return
        op.driver.ring.received(op)
        data, op.chunk = (op.chunk or b"") if own is None else bytes(memoryview(own)[:res]), None
        message = op.message
        self._keep(split(data, 0, segment_size(bytes(message.control)), unpack_name(message.name)), message.flags)

    def _keep(self, datagrams: list[Datagram], flags: int) -> None:
        self._kept.extend(datagrams)
        self._notice(flags)

    def _notice(self, flags: int) -> None:
        if flags & MSG_TRUNC:  # cannot be: there is room for any
            self._failure = OSError(errno.EMSGSIZE, f"a datagram of more than {DATAGRAM_MAX} bytes was cut")

    # -- all that are there

    async def _receive_more(self) -> None:
        if self._empty:
            await self._poll(select.POLLIN)
            self._check_open()
            self._empty = False
        elif not self._multishot:
            await trio.lowlevel.checkpoint()
            self._check_open()
        if not self._multishot:
            self._receive_plainly(SHOTS_MIN)
            return
        op = self._many or self._make_many()
        if op is None:
            return
        shots: list[bytes] = []
        op.shots = shots
        op.res = -errno.ECANCELED
        try:
            res = await op.driver.perform(op, True)
        finally:
            if op.state.in_kernel:  # this coroutine was destroyed
                self._many, self._orphan, op.dispose = None, op, functools.partial(self._take_shots, op)
            else:
                self._take_shots(op)
        if res == -errno.EAGAIN:
            self._empty = len(shots) < SHOTS_MIN
        elif res == -errno.EINVAL and not shots:  # a kernel before 6.0
            self._multishot = False
        elif res == -errno.ENOBUFS:
            if not shots:  # other sockets took all in this pass
                await self._wait_for_one()
        elif res < 0:
            await self._fail(res)

    def _make_many(self) -> TaskOperation | None:
        op = self._make(LARGE_GROUP)
        if not op.driver.ring.info.multishot:
            self._operations.remove(op)
            self._multishot = False
            return None
        op.group, op.flags = DATAGRAM_GROUP, stdlib_socket.MSG_DONTWAIT
        op.message = Message(control_max=CONTROL_MAX)
        self._many = op
        return op

    def _take_shots(self, op: TaskOperation, _: int = 0) -> None:
        shots, op.shots = op.shots or [], []
        self._notice(parse_shots(shots, self._kept))

    def _receive_plainly(self, most: int) -> None:
        """Receives what is there, `most` times at most, with a system call for each."""
        scratch = _scratch.buffer
        for _ in range(most):
            try:
                count, ancillary, flags, address = self._plain.recvmsg_into([scratch], CONTROL_MAX)
            except (BlockingIOError, InterruptedError):
                self._empty = True
                return
            except OSError as exc:
                self._failure = exc
                return
            data = bytes(memoryview(scratch)[:count])
            self._keep(split(data, 0, segment_of(ancillary), address), flags)

    async def _fail(self, res: int) -> None:
        """After a negative result. Returns if the receive is to be made again, or if datagrams are to be returned first."""
        if self._closed or res == -errno.ECANCELED or -res in CLOSED_ERRNOS:
            raise trio.ClosedResourceError("this socket was closed")
        if -res in AGAIN_ERRNOS:
            await self._poll(select.POLLIN)
            self._check_open()
        else:
            self._failure = OSError(-res, os.strerror(-res))
