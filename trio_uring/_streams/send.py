"""The sending half of a stream: one buffer or a list of them, in order, past short writes, without
a copy.

Rules of this file: at most one send of a stream is in the kernel. Every byte that the kernel took
is counted in `bytes_sent` before anything else can happen. No MSG_WAITALL: the kernel would block a
worker thread for each slow reader.
"""

from __future__ import annotations

import math
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection, wait_task_rescheduled

from .._bytes.abilities import Abilities
from .._bytes.outgoing import SEND_MAX, Outgoing, plain_length
from .._errors import AGAIN_ERRNOS
from .._ring.op import POSITION, Opcode
from .endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from .._bytes.cork import Cork
    from .._driver.engine import TaskOperation

# Not to wait in the kernel: its polls are over as soon as the peer has half-closed, and then it
# tries and tries, and gives the send to a worker thread, which waits for a peer that may never
# read.
SEND_FLAGS = stdlib_socket.MSG_NOSIGNAL | stdlib_socket.MSG_DONTWAIT


class SendSide(Endpoint):
    """Mixed into the streams that send."""

    _abilities = Abilities(
        lists_by="send_all", times_sends=True, counts=True, native_sends=True, keeps_sends=True
    )

    _one: TaskOperation | None = None  # sends one buffer
    _many: TaskOperation | None = None  # sends a list
    _sending = False
    _orphan_send: TaskOperation | None = (
        None  # of a call whose coroutine was destroyed; not over yet
    )
    _cork: Cork | None = None  # holds back the records of a TLS stream that is sending a list

    send_timeout: float | None = None
    """Seconds that one send_all may take; None: no limit."""

    bytes_sent: int = 0
    """Bytes of the current or last send_all that the kernel has taken; every send resets it.

    After a cancelled or timed-out send it says exactly where to go on.
    """

    @enable_ki_protection
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        """Sends one buffer, or a sequence of buffers in order, as one operation and without joining
        or copying them.

        Args:
            data: anything with the buffer protocol that is C-contiguous, of any item size (bytes,
                bytearray, memoryview, array, mmap, a NumPy array), or a sequence of such. Empty
                ones are skipped; there is no limit on their number or size. They are borrowed until
                the call returns: an exported bytearray cannot be resized, but a buffer that is
                changed meanwhile goes out changed.
            timeout: seconds for the whole call; None: the stream's `send_timeout`; math.inf: no
                limit.

        Raises:
            trio.TooSlowError: the time was up. `bytes_sent` says how much went.
            trio.BusyResourceError: another task is sending on this stream.
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: this stream was closed, or its sending half was.
            TypeError: `data` is not a buffer or a sequence of buffers. Nothing was sent.

        Cancellation: what the kernel had taken has been sent and is counted in `bytes_sent`; a
        later send works, and whether the protocol can go on is the caller's to decide.
        """
        if timeout is None:
            timeout = self.send_timeout
        if timeout is not None and timeout != math.inf:
            with trio.fail_after(timeout):
                await self.send_all(data, timeout=math.inf)
            return
        cork = self._cork
        if cork is not None:
            if cork.holds(data):
                # without a checkpoint: it is the TLS stream that calls, and it has made its own
                return
            data = cork.take()
            if cork.task is None:
                self._cork = None
        length = len(data) if type(data) is bytes else plain_length(data)
        if not 0 < length <= SEND_MAX:
            await self._send(data)
            return
        # What most sends are: one coroutine, no views, and nothing of the general case.
        op = self._begin_send(type(data) is not bytes)
        try:
            if self._orphan_send is not None:
                await self._settle_send(self._orphan_send)
            if type(data) is bytes:
                op.buffer = data
            else:
                # The caller's list may change while the operation waits.
                op.buffers = data = tuple(data)  # type: ignore[arg-type]
            op.start, op.length = 0, length
            if op.driver.begin(op):
                res = await wait_task_rescheduled(op.abort)
            else:
                res = await op.driver.perform_by_call(op)
            if res > 0:
                self.bytes_sent = res
            if res != length:
                await self._send_rest(data, res)
        finally:
            self._sending = False
            if op.task is not None or op.state.in_kernel:
                self._orphan_send = self._left_behind(op)

    async def _send_rest(self, data: Buffer | Sequence[Buffer], res: int) -> None:
        """After a first operation on `data` that was not all: short, refused for now, or failed."""
        with Outgoing(data) as out:
            try:
                await self._send_outgoing(out, res)
            finally:
                self._orphan_send = self._left_behind(self._one, self._many)

    async def _settle_send(self, orphan: TaskOperation) -> None:
        await orphan.driver.settle(orphan)
        self._orphan_send = None
        self._check_can_send()

    def _begin_send(self, many: bool = False) -> TaskOperation:
        """Takes the sending direction, if it may be taken, and returns the operation that sends one
        buffer, or many."""
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending data on this stream")
        if (
            self._closed
            or self._fileno() != self._fd
            or (self._socket is not None and self._socket.did_shutdown_SHUT_WR)
        ):
            self._check_can_send()
        if self._lease.writing is not None:
            self._lease.check_socket(False)
        op = (self._many or self._make_many()) if many else (self._one or self._make_one())
        self._sending = True
        self.bytes_sent = 0
        return op

    async def _send(self, data: Buffer | Sequence[Buffer]) -> None:
        with Outgoing(data) as out:
            self._begin_send()
            try:
                if self._orphan_send is not None:
                    await self._settle_send(self._orphan_send)
                if out.done:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._send_outgoing(out, None)
            finally:
                self._sending = False
                self._orphan_send = self._orphan_send or self._left_behind(self._one, self._many)

    async def _send_outgoing(self, out: Outgoing, res: int | None) -> None:
        """Sends what is left of `out`. `res` is the result of an operation on its beginning that
        was already made."""
        op = self._one or self._make_one()
        while True:
            if res is not None:
                if res >= 0:
                    out.advance(res)
                    if out.done:
                        return
                    op.driver.short_writes += 1
                elif -res in AGAIN_ERRNOS and not self._closed:
                    await self._poll(select.POLLOUT)
                else:
                    raise self._error(res)
                self._check_can_send()
            many = out.vectored
            op = (self._many or self._make_many()) if many else (self._one or self._make_one())
            out.load(op)
            res = sent = await op.driver.perform(op)
            if sent > 0:
                self.bytes_sent += sent

    def _make_one(self) -> TaskOperation:
        op = self._one = self._sending_operation(Opcode.SEND if self._is_socket else Opcode.WRITE)
        return op

    def _make_many(self) -> TaskOperation:
        op = self._many = self._sending_operation(
            Opcode.SENDMSG if self._is_socket else Opcode.WRITEV
        )
        return op

    def _sending_operation(self, opcode: Opcode) -> TaskOperation:
        op = self._operation(opcode)
        if self._is_socket:
            op.flags = SEND_FLAGS
        else:
            op.offset = POSITION
        return op

    def _check_can_send(self) -> None:
        self._check_open()
        if self._socket is not None and self._socket.did_shutdown_SHUT_WR:
            raise trio.ClosedResourceError("can't send data after sending EOF")

    async def wait_send_all_might_not_block(self) -> None:
        """Waits until sending might be possible without blocking (trio.abc.SendStream).

        Raises:
            trio.BusyResourceError: another task is sending on this stream.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the descriptor cannot be polled.

        Cancellation: it stops waiting.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending data on this stream")
        self._check_open()
        self._lease.check_socket(False)
        self._sending = True
        try:
            await self._poll(select.POLLOUT)
        finally:
            self._sending = False
