"""From one stream to another, in the reap.

Two ways. Messages: a receive's completion chains the send of its bytes, and the next receive. Bulk:
a poll's completion has splice(2) move what is there through a pipe, without a copy; done directly,
because the kernel gives IORING_OP_SPLICE to a worker thread. A copy begins with the first, goes to
the second when it fills small buffers, and back.

Rules of this file:

- At most CHUNKS_MAX chunks are held, one that is being sent and one that has been or is being
  received; or one pipe. A sink that takes nothing stops the source's receive, and so the source's
  peer.
- Nothing is held while the source is idle: the kernel takes a provided buffer when there is data.
- Bytes that were received and not sent go back in front of the source. Never more is received than
  may be sent.
- What had come before an error of the source is sent before the error is told, as a loop of receive
  and send would.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Any

from .._descriptors.provided import BULK_STREAK, BufferChoice
from .._driver.pipes import PIPE_SIZE, Pipe
from .._errors import AGAIN_ERRNOS
from .._ring.op import LARGE_GROUP, NO_GROUP, POSITION, SMALL_GROUP, Opcode
from .._ring.protocol import SMALL_SIZE
from .pump import Pump, give_receiving, give_sending, is_open, takes_splices

if TYPE_CHECKING:
    from .._streams.receive import ReceiveSide
    from .._streams.send import SendSide

CHUNKS_MAX = 2  # of at most LARGE_SIZE bytes (128 KiB) each


class StreamPump(BufferChoice, Pump):
    """Copies `source` to `sink`, to the end of the source or to `max_bytes`."""

    def __init__(self, source: ReceiveSide, sink: SendSide, max_bytes: int | None) -> None:
        super().__init__(sink)
        self._source = source
        self._left = max_bytes  # bytes that may still be received; None: no limit
        self._ended = max_bytes == 0
        self._source_error: BaseException | None = None
        self._held: list[
            Any
        ] = []  # bytes; or the memory of a receive that had to bring its own, cut to what came
        self._start = 0  # bytes of the first that are sent
        self._pipe: Pipe | None = None  # with bytes in it that are still to be sent
        self._splices = takes_splices(self.engine.ring, source) and takes_splices(
            self.engine.ring, sink
        )
        self._bulk = not source._is_socket  # always, for a pipe: see can_pump
        self._receive = self._operation(
            source, Opcode.RECV if source._is_socket else Opcode.READ, self._received
        )
        self._send = self._send_operation(self._passed_on)
        self._readable = self._poll_operation(source, select.POLLIN, self._fill)
        self._writable = self._poll_operation(sink, select.POLLOUT, self._empty)
        self._receive.offset = 0 if source._is_socket else POSITION
        self._use_first(self._receive)

    def _is_complete(self) -> bool:
        return self._ended and not self._held and self._pipe is None

    def _advance(self) -> None:
        self._advance_source()
        if self._held and not self._send.waiting and not self._writable.waiting:
            op = self._send
            op.buffer, op.start, op.length = (
                self._held[0],
                self._start,
                len(self._held[0]) - self._start,
            )
            self._chain(self.sink, op)
        elif self._source_error is not None and not self._held and self._pipe is None:
            raise self._source_error

    # -- receiving

    def _advance_source(self) -> None:
        source, op = self._source, self._receive
        while (
            not self._ended
            and len(self._held) < CHUNKS_MAX
            and not op.waiting
            and not self._readable.waiting
        ):
            if not is_open(source):
                self._fail_source(-errno.EBADF)
                return
            if self._bulk and not source._rest:
                if self._pipe is None and not self._held:
                    self.engine.chain(self._readable)
                return
            size = self._size if self._left is None or self._size < self._left else self._left
            if source._rest:
                self._take(source._take_rest(size))
                continue
            op.length = size
            if op.group == NO_GROUP:
                op.buffer = bytearray(size)
            self._own = op.buffer
            self.engine.chain(op)

    def _received(self, res: int) -> None:
        op, own, self._own = self._receive, self._own, None
        chunk, op.chunk = op.chunk, None
        if res > 0:
            if own is not None:
                chunk = memoryview(own)[:res]  # type: ignore[assignment]
            self._take(chunk)
            if not self._splices:
                self._adapt(op, res)
            elif res >= SMALL_SIZE:
                self._bulk = True
        elif res == 0:
            self._ended = True
        elif self._stopping:
            pass
        elif res == -errno.ENOBUFS and op.group != NO_GROUP:
            # All buffers of the group were taken in this reap. They are back by the next; there are
            # more small ones.
            self._use_first(op)
        elif -res in AGAIN_ERRNOS and not self._source._closed:
            self._chain(self._source, self._readable)
        else:
            self._fail_source(res)

    def _fail_source(self, res: int) -> None:
        self._ended, self._source_error = True, self._side_error(self._source, res)

    def _take(self, chunk: Any) -> None:
        self._held.append(chunk)
        self._count(len(chunk))

    def _count(self, received: int) -> None:
        if self._left is not None:
            self._left -= received
            self._ended = not self._left

    # -- sending

    def _passed_on(self, res: int) -> None:
        if res >= 0:
            self._sent(res)
            self._start += res
            if self._start == len(self._held[0]):
                del self._held[0]
                self._start = 0
            else:
                self.engine.short_writes += 1
        elif self._stopping and res == -errno.ECANCELED:
            pass
        elif -res in AGAIN_ERRNOS and not self.sink._closed:
            if not self._stopping:
                self._chain(self.sink, self._writable)
        else:
            raise self._side_error(self.sink, res)

    # -- bulk

    def _fill(self) -> None:
        """The source is readable."""
        if not self._bulk or not is_open(self._source):
            return
        pipe = self.engine.pipes.take()
        if pipe is None:
            self._no_bulk()
            return
        try:
            count = pipe.fill(self._source._fd, PIPE_SIZE if self._left is None else self._left)
        except OSError as exc:
            self.engine.pipes.give(pipe)
            if exc.errno == errno.EINVAL:  # not with this kind of descriptor
                self._no_bulk()
            elif exc.errno not in AGAIN_ERRNOS:
                self._fail_source(-(exc.errno or 0))
            return
        if not count:
            self.engine.pipes.give(pipe)
            self._ended = True
            return
        self._pipe = pipe
        self.engine.ring.counters.moved[Opcode.RECV] += count
        self._count(count)
        self._streak = 0 if count > SMALL_SIZE else self._streak + 1
        if self._streak >= BULK_STREAK and self._source._is_socket:
            self._bulk, self._streak = False, 0
        self._empty()

    def _empty(self) -> None:
        """The sink is writable, or may be."""
        pipe = self._pipe
        if pipe is None:
            return
        if not is_open(self.sink):
            raise self._side_error(self.sink, -errno.EBADF)
        try:
            self._moved(pipe.empty(self.sink._fd))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                self._held.append(pipe.read())
                self._no_bulk()
            elif exc.errno not in AGAIN_ERRNOS:
                raise self._side_error(self.sink, -(exc.errno or 0)) from exc
        if pipe.held:
            self._chain(self.sink, self._writable)
        else:
            self._pipe = None
            self.engine.pipes.give(pipe)

    def _no_bulk(self) -> None:
        self._bulk = self._splices = False
        if self._receive.group == SMALL_GROUP:
            self._use(self._receive, LARGE_GROUP)

    def _settle(self) -> None:
        """Gives back what was received and not sent. What a failed driver left in the kernel may
        have been sent: not that."""
        held, self._held = self._held, []
        pipe, self._pipe = self._pipe, None
        try:
            if pipe is not None:
                held.append(pipe.read())
                self.engine.pipes.give(pipe)
            if held and self._send.state.in_kernel:
                del held[0]
            elif self._start:
                held[0] = held[0][self._start :]
            if held:
                self._source._put_back([bytes(chunk) for chunk in held])
        finally:
            self._source_error = None  # its traceback has this pump
            give_receiving(self._source)
            give_sending(self.sink)
