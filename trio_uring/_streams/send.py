"""The sending half of a stream: one buffer or a list, in order, past short writes, without a copy.

Rules of this file: at most one send of a stream is in the kernel. Every byte that the kernel has
taken is counted in `bytes_sent` before anything else can happen. No MSG_WAITALL: the kernel would
block a worker thread for each slow reader.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities
from .._bytes.outgoing import SEND_MAX, Outgoing, plain_length
from .._bytes.timed import within
from .._bytes.views import release_pinned
from .._descriptors.direction import SEND, SEND_MANY, Direction
from .endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from .._bytes.cork import Cork
    from .._driver.operation import TaskOperation


class SendSide(Endpoint):
    """Mixed into the streams that send."""

    _abilities = Abilities(
        lists_by="send_all", times_sends=True, counts=True, native_sends=True, keeps_sends=True
    )
    _sending: Direction
    _cork: Cork | None = None  # holds back the records of a TLS stream that is sending a list

    send_timeout: float | None = None
    """Seconds that one send_all may take; None: no limit."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of the current or last send_all that the kernel has taken; every send resets it.

        After a cancelled or timed-out send it says exactly where to go on.
        """
        return self._sending.sent

    @bytes_sent.setter
    def bytes_sent(self, count: int) -> None:  # for a copy, which counts as one call
        self._sending.sent = count

    @enable_ki_protection
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        """Sends one buffer, or a sequence of buffers in order, without joining or copying them.

        Args:
            data: anything with the buffer protocol that is C-contiguous, of any item size (bytes,
                bytearray, memoryview, array, mmap, a NumPy array), or a sequence of such buffers,
                which is sent as one operation. Empty ones are skipped; there is no limit on their
                number or size. They are borrowed until the call returns: an exported bytearray
                cannot be resized, but what is written into a buffer meanwhile may be sent.
            timeout: seconds for the whole call; None: the stream's `send_timeout`; math.inf: no
                limit.

        Raises:
            trio.TooSlowError: the time was up. `bytes_sent` says how much was sent.
            trio.BusyResourceError: another task is sending on this stream.
            trio.BrokenResourceError: the connection is broken.
            trio.ClosedResourceError: this stream, or its sending half, was closed.
            TypeError: `data` is not a buffer or a sequence of buffers. Nothing was sent.

        Cancellation: what the kernel has taken counts as sent, in `bytes_sent`. A later send works;
        whether the protocol can go on is for the caller to decide.
        """
        limit = self.send_timeout if timeout is None else timeout
        if limit is not None and limit != math.inf:
            with within(limit, self, "send_all"):
                await SendSide.send_all(self, data, timeout=math.inf)
            return
        if self._cork is not None:
            held = self._corked(self._cork, data)
            if held is None:  # no checkpoint: the caller is the TLS stream, which has executed one
                return
            data = held
        length = len(data) if type(data) is bytes else plain_length(data)
        if not 0 < length <= SEND_MAX:
            await self._send(data)
            return
        # The fast path, which most sends take: one coroutine and no views.
        way = self._sending
        if not way.held:  # otherwise it counts what another task is sending
            way.sent = 0
        op = way.take(SEND if type(data) is bytes else SEND_MANY)
        try:
            if way.left is not None:
                await self._settle(way)
            if type(data) is bytes:
                op.buffer = data
            else:
                # The caller's list may change while the operation waits.
                op.buffers = data = tuple(data)  # type: ignore[arg-type]
            op.start, op.length = 0, length
            res = await op.engine.perform(op)
            way.sent = res if res > 0 else 0
            if res != length:
                with Outgoing(data) as out:
                    await self._send_outgoing(out, op)
        finally:
            way.held = False
            if op.owed:
                way.leave(op)

    @enable_ki_protection
    async def _send_rest(self, op: TaskOperation, data: Buffer | Sequence[Buffer]) -> None:
        """Goes on with a send that the accelerator has begun, and that has not sent everything.

        The direction is held, and `data` is exported: bytes, a view, or a tuple of these.
        """
        way = self._sending
        try:
            with Outgoing(data) as out:
                await self._send_outgoing(out, op)
        finally:
            way.held = False
            release_pinned(data)

    def _corked(self, cork: Cork, data: Any) -> list[Any] | None:
        """What to send now: None, or everything that was held back."""
        if cork.holds(data):
            return None
        if cork.task is None:
            self._cork = None
        return cork.take()

    async def _send(self, data: Buffer | Sequence[Buffer]) -> None:
        way = self._sending
        if not way.held:
            way.sent = 0
        with Outgoing(data) as out:
            way.hold()
            try:
                if way.left is not None:
                    await self._settle(way)
                if out.done:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._send_outgoing(out)
            finally:
                way.held = False

    async def _send_outgoing(self, out: Outgoing, op: TaskOperation | None = None) -> None:
        """Sends the rest of `out` through the direction that the caller holds.

        Args:
            op: an operation that has sent the beginning of `out`, or has failed, and whose result
                has not been looked at yet.
        """
        way = self._sending
        while True:
            if op is not None:
                if op.res < 0:
                    await self._again(way, op, op.res)
                else:
                    out.advance(op.res)
                    if out.done:
                        return
                    op.engine.short_writes += 1
                    way.check_open()
            op = way.get(SEND_MANY if out.vectored else SEND)
            out.load(op)
            try:
                res = await op.engine.perform(op)
            finally:
                if op.owed:
                    way.leave(op)
            if res > 0:
                way.sent += res

    async def wait_send_all_might_not_block(self) -> None:
        """Waits until sending might be possible without blocking (trio.abc.SendStream).

        Raises:
            trio.BusyResourceError: another task is sending on this stream.
            trio.ClosedResourceError: this stream was closed.
            trio.BrokenResourceError: the descriptor cannot be polled.

        Cancellation: it stops waiting.
        """
        way = self._sending
        way.hold(also_ended=True)
        try:
            await self._wait_ready(way)
        finally:
            way.held = False
