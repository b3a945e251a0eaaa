"""A pump from one stream to another.

There are two ways. Messages: when a receive completes, the send of its bytes and the next receive
are chained. Bulk: when a poll completes, splice(2) moves what is there through a pipe, without a
copy; it is called directly, because the kernel gives IORING_OP_SPLICE to a worker thread. A copy
begins with messages, changes to bulk when it fills small buffers, and changes back.

Rules of this file:

- At most CHUNKS_MAX chunks are held (one that is being sent, and one that has been or is being
  received), or one pipe. A sink that takes nothing stops the receives, and so the source's peer.
- Nothing is held while the source is idle: the kernel takes a provided buffer only when there is
  data.
- Bytes that were received and not sent go back in front of the source. No more is received than may
  be sent.
- What came before an error of the source is sent before the error is raised, as a loop of receive
  and send would do.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from .._descriptors.direction import RECEIVE, SEND, Verdict
from .._descriptors.provided import BULK_STREAK, adapt, use
from .._ring.figures import SMALL_SIZE
from .._ring.op import LARGE_GROUP, NO_GROUP, SMALL_GROUP, Opcode
from .._streams.endpoint import lease_under
from .pipes import PIPE_SIZE, Pipe, pipes, takes_splices
from .pump import Pump, give

if TYPE_CHECKING:
    from .._streams.receive import ReceiveSide
    from .._streams.send import SendSide

CHUNKS_MAX = 2  # of at most LARGE_SIZE bytes (512 KiB) each


class StreamPump(Pump):
    """Copies `source` to `sink`, up to the end of the source or to `max_bytes`."""

    def __init__(self, source: ReceiveSide, sink: SendSide, max_bytes: int | None) -> None:
        super().__init__(sink)
        self._in = lease_under(source).receiving
        self._left = max_bytes  # bytes that may still be received; None: no limit
        self._ended = max_bytes == 0
        self._source_error: BaseException | None = None
        # Chunks: bytes, or the memory that a receive brought itself, cut to what came.
        self._held: list[Any] = []
        self._start = 0  # bytes of the first chunk that are sent
        # Held while there are bytes in it to be sent, which came before every chunk: it is filled
        # only while there is none.
        self._pipe: Pipe | None = None
        ring = self.engine.ring
        self._splices = takes_splices(ring, self._in) and takes_splices(ring, self.out)
        self._bulk = not self._in.is_socket  # a pipe always goes this way: see can_pump
        self._pipes = pipes(self.engine)
        self._receive = self._operation(self._in, RECEIVE, self._received)
        self._send = self._operation(self.out, SEND, self._passed_on)
        self._readable = self._poll_operation(self._in, self._fill)
        self._writable = self._poll_operation(self.out, self._empty)
        self._operations[self._receive] = self._message_came
        self._operations[self._send] = self._message_went

    def _is_complete(self) -> bool:
        return self._ended and not self._held and self._pipe is None

    def _advance(self) -> None:
        held, op = self._held, self._send
        if self._receive.then is None and self._readable.then is None:
            self._advance_source()
        if held and op.then is None and self._writable.then is None:
            start = self._start
            op.buffer, op.start, op.length = held[0], start, len(held[0]) - start
            self._chain(self.out, op)
        elif self._source_error is not None and not held and self._pipe is None:
            raise self._source_error

    # -- messages: what `_finished` does for a small chunk that comes and goes whole, in one
    # function each. In a relay of messages that is most of our own Python. Whatever else it is, is
    # left to `_finished`. While a receive is in flight, at most one chunk is held, and the source
    # keeps none: see _advance_source.

    def _message_came(self) -> None:
        op, send, out = self._receive, self._send, self.out
        try:
            if (
                not 0 < op.res < SMALL_SIZE
                or op.group != SMALL_GROUP
                or self._held
                or self._pipe is not None
                or self._left is not None
                or self._stopping
                or not (self._in.is_open() and out.is_open())
            ):
                self._finished(op, self._received)
                return
            chunk, op.chunk = op.chunk, None
            self._held.append(chunk)
            send.buffer, send.start, send.length = chunk, 0, op.res
            chain, functions = self.engine.chain, self._operations
            chain(op, functions[op])
            chain(send, functions[send])
        except BaseException as exc:
            self._fail(exc)
            self._after()

    def _message_went(self) -> None:
        op, held = self._send, self._held
        try:
            if self._receive.then is None or op.res != len(held[0]) or self._told is not None:
                self._finished(op, self._passed_on)
                return
            del held[0]
            self._sent(op.res)
        except BaseException as exc:
            self._fail(exc)
            self._after()

    # -- receiving

    def _advance_source(self) -> None:
        way, op = self._in, self._receive
        while not self._ended and len(self._held) < CHUNKS_MAX:
            if not way.is_open():
                self._fail_source(-errno.EBADF)
                return
            size = way.size if self._left is None or way.size < self._left else self._left
            if way.kept is not None:
                self._take(way.take_kept(size))
                continue
            if not self._bulk:
                op.length = size
                if op.group == NO_GROUP:
                    op.buffer = op.memory = memoryview(bytearray(size))
                self.engine.chain(op, self._operations[op])
            elif self._pipe is None and not self._held:
                self._chain(way, self._readable)
            return

    def _received(self, res: int) -> None:
        op, way = self._receive, self._in
        chunk: Any = op.chunk
        memory, op.chunk, op.memory = op.memory, None, None
        if res > 0:
            self._held.append(chunk if memory is None else memory[:res])
            if self._left is not None:
                self._count(res)
            if not self._splices:
                adapt(way, op, res)
            elif res >= SMALL_SIZE:
                self._bulk = True
        elif res == 0:
            self._ended = True
        elif not self._stopping:
            verdict = way.verdict(op, res)
            if verdict is Verdict.WAIT:
                self._chain(way, self._readable)
            elif verdict is not Verdict.AGAIN:
                self._fail_source(res)

    def _fail_source(self, res: int) -> None:
        self._ended, self._source_error = True, self._way_error(self._in, res)

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
        elif self._send_failed(self.out, self._send, res):
            self._chain(self.out, self._writable)

    # -- bulk

    def _fill(self) -> None:
        """The source is readable: fills the pipe from it."""
        if not self._bulk or not self._in.is_open():
            return
        pipe = self._pipes.take()
        if pipe is None:
            self._no_bulk()
            return
        try:
            count = pipe.fill(self._in.fd, PIPE_SIZE if self._left is None else self._left)
        except OSError as exc:
            self._pipes.give(pipe)
            if exc.errno == errno.EINVAL:  # not possible with this kind of descriptor
                self._no_bulk()
            elif not self._in.would_block(exc):
                self._fail_source(-(exc.errno or 0))
            return
        if not count:
            self._pipes.give(pipe)
            self._ended = True
            return
        self._pipe = pipe
        self.engine.ring.counters.moved[Opcode.RECV] += count
        self._count(count)
        way = self._in
        way.streak = 0 if count > SMALL_SIZE else way.streak + 1
        if way.streak >= BULK_STREAK and way.is_socket:
            self._bulk, way.streak = False, 0
        self._empty()

    def _empty(self) -> None:
        """The sink is writable, or may be: empties the pipe into it."""
        pipe = self._pipe
        if pipe is None:
            return
        out = self.out
        if not out.is_open():
            raise self._way_error(out, -errno.EBADF)
        try:
            self._moved(pipe.empty(out.fd))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                self._held.insert(0, pipe.read())
                self._no_bulk()
            elif not out.would_block(exc):
                raise self._way_error(out, -(exc.errno or 0)) from exc
        if pipe.held:
            self._chain(out, self._writable)
        else:
            self._pipe = None
            self._pipes.give(pipe)

    def _no_bulk(self) -> None:
        self._bulk = self._splices = False
        if self._receive.group == SMALL_GROUP:
            use(self._in, self._receive, LARGE_GROUP)

    def _settle(self) -> None:
        """Gives back what was received and not sent.

        That excludes what a failed driver left in the kernel, since it may have been sent.
        """
        self._receive.memory = None
        held, self._held = self._held, []
        pipe, self._pipe = self._pipe, None
        try:
            if held and self._send.state.in_kernel:
                del held[0]
            elif self._start:
                held[0] = held[0][self._start :]
            if pipe is not None:
                held.insert(0, pipe.read())
                self._pipes.give(pipe)
            if held:
                self._in.put_back([bytes(chunk) for chunk in held])
        finally:
            self._source_error = None  # its traceback refers to this pump
            give(self._in)
            give(self.out)
