"""Sends a file to a stream: by sendfile(2) from the page cache, or after a read in the ring.

sendfile(2) copies nothing, but blocks the thread while it waits for the disk. So the cache is asked
first (preadv2 with RWF_NOWAIT); what it does not have is read in the ring, which waits in the
kernel, and is sent from the buffer. The file is never mapped: if somebody truncates a mapped file,
SIGBUS ends the process.

There are three ways. To a stream of this package on io_uring, a pump: no task wakes for the bytes.
To one that waits by readiness, a loop in the caller's task: sendfile(2) while the socket takes it,
and what is not in the cache is read in a worker thread. To any other stream, a loop of read and
send_all.

Rules of this file: the file object's position is set once, at the end. A read that may wait is
never made in trio's thread.
"""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from .._bytes.abilities import abilities, sending_end
from .._bytes.outgoing import Outgoing
from .._descriptors.direction import SEND, Verdict
from .._driver.run import current_driver
from .._ring.op import Opcode
from .._streams.endpoint import lease_under
from .._streams.send import SendSide
from .file_part import Part, open_file, pread, synchronous
from .loop_sink import LoopSink
from .pipes import takes_splices
from .pump import Pump, call, give, take

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes of one sendfile(2): the socket rarely takes more, and other tasks wait meanwhile.
DIRECT_SIZE = 2**19
LOOP_SIZE = 2**16  # bytes of one read for a stream that is not ours
# Bytes read and sent at a time where sendfile cannot be used; they are held while they are being
# sent.
READ_SIZE = 2**18


@enable_ki_protection
async def send_file(
    stream: trio.abc.SendStream,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Sends a part of a file, or all of it, as socket.sendfile does.

    On a stream of this package (SocketStream, SendStream), no Python task wakes for the bytes, and
    what is in the page cache is sent without copying (but not from tmpfs or overlayfs, which do not
    tell what is in it); the rest is read without blocking the thread.
    On any other stream, and on a subclass that overrides send_all, a loop reads and sends.

    The pages themselves are sent: if a part of the file is changed before the peer has received it,
    the peer may get the new content.

    Args:
        stream: any trio.abc.SendStream. It is busy meanwhile, and not closed.
        file: a regular file, opened for reading: a descriptor, or a file object in binary mode
            (from open, trio.open_file or tempfile), whose buffer and position are ignored. The
            caller may close it at any time.
        offset: where to begin, in bytes. The default is the beginning of the file, not its
            position, as in socket.sendfile.
        count: bytes to send; None: to the end of the file.
        progress: as in copy_stream.

    Returns:
        How many bytes the stream has taken: fewer than `count` if the file ends earlier (also if it
        is truncated meanwhile). Unless it is 0, a file object's position is then offset plus this
        number, also after an error or a cancellation. A descriptor's position stays as it was.

    Raises:
        trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError: as in the
            stream's send_all.
        OSError: the file cannot be read.
        ValueError: the file is in text mode or not a regular file, or a number is negative.
        TypeError: `file` is not a file, or computes its bytes from those of another file (gzip,
            bz2, lzma).

    The stream's `send_timeout` does not apply: put a cancel scope around the call.

    Cancellation: the stream's `bytes_sent` (on a stream of this package), the file object's
    position and the last number that `progress` got say how far it came. When the call has ended,
    no read of the file is in flight: one that has begun is waited for, as with trio's own files,
    even if it is on a network file system whose server does not answer.
    """
    if operator.index(offset) < 0 or (count is not None and operator.index(count) < 0):
        raise ValueError("offset and count must be >= 0")
    file = synchronous(file)
    part = Part(open_file(file), offset, count)
    sink = sending_end(stream)
    sender: FilePump | FileLoop | LoopSink | None = None
    try:
        if abilities(sink).native_sends:
            way = lease_under(sink).sending
            await take(way)
            sink.bytes_sent = 0  # from now on it counts, whatever happens
            try:
                await checkpoint_if_cancelled()
                sender = (
                    FilePump(sink, part) if current_driver().engine.pumps else FileLoop(sink, part)
                )
            except BaseException:
                give(way)
                raise
            return await sender.run(progress)
        with LoopSink(sink, progress) as sender:
            return await _loop(sender, part)
    finally:
        if not isinstance(sender, FilePump):  # a pump closes it when the kernel is done with it
            part.close()
        if sender is not None and sender.total and hasattr(file, "seek"):
            with contextlib.suppress(OSError, ValueError):  # it may be closed by now
                file.seek(offset + sender.total)


class FilePump(Pump):
    """Sends a file through the ring."""

    def __init__(self, sink: SendSide, part: Part) -> None:
        super().__init__(sink)
        self._part = part
        part.direct = part.direct and takes_splices(self.engine.ring, self.out)
        self._memory: bytearray | None = None  # for what was read
        self._start = self._end = 0  # the part of it still to be sent
        self._read = self._own_operation(self.out, Opcode.READ, part.fd, part.file, self._was_read)
        self._send = self._operation(self.out, SEND, self._was_sent)
        self._writable = self._poll_operation(self.out, self._ready)

    def _is_complete(self) -> bool:
        return self._part.ended and self._start == self._end

    def _settle(self) -> None:
        self._memory = None
        give(self.out)
        self._part.close()

    def _ready(self) -> None:
        pass

    def _advance(self) -> None:
        if not self._idle():
            return
        part = self._part
        if self._start < self._end:
            op = self._send
            op.buffer, op.start, op.length = self._memory, self._start, self._end - self._start
            self._chain(self.out, op)
        elif not part.ended:
            size = part.size(DIRECT_SIZE)
            if not part.direct or not part.in_cache(size) or not self._send_directly(size):
                self._chain_read(size)

    # -- without a copy

    def _send_directly(self, size: int) -> bool:
        """Sends without copying. False: it cannot be done this way."""
        out = self.out
        if not out.is_open():
            raise self._way_error(out, -errno.EBADF)
        try:
            count = self._part.give(out.fd, out.is_socket, size)
        except OSError as exc:
            if not out.would_block(exc):
                raise self._way_error(out, -(exc.errno or 0)) from exc
        else:
            if count is None:
                return False
            self._moved(count)
        if not self._part.ended:
            self._chain(self.out, self._writable)
        return True

    # -- through a buffer

    def _chain_read(self, size: int) -> None:
        op = self._read
        op.length = min(size, READ_SIZE)
        if self._memory is None or len(self._memory) < op.length:
            self._memory = bytearray(op.length)
        op.buffer, op.offset, op.entry = self._memory, self._part.offset, None
        self._chain(self.out, op)

    def _was_read(self, res: int) -> None:
        if res > 0:
            self._start, self._end = 0, res
            self._part.passed(res)
        elif res == 0:
            self._part.ended = True
        elif self.out.closed:
            raise self._way_error(self.out, res)
        elif not self._stopping and self.out.verdict(self._read, res) is Verdict.ERROR:
            raise OSError(-res, os.strerror(-res))

    def _was_sent(self, res: int) -> None:
        if res >= 0:
            self._sent(res)
            self._start += res
            self.engine.short_writes += self._start < self._end
        elif self._send_failed(self.out, self._send, res):
            self._chain(self.out, self._writable)


class FileLoop:
    """Sends a file to a stream that waits by readiness.

    It holds the sending direction from when it is made until it ends.

    Attributes:
        total: bytes that the sink has taken.
    """

    def __init__(self, sink: SendSide, part: Part) -> None:
        self.total = 0
        self._sink = sink
        self._part = part
        self._progress: Callable[[int], object] | None = None
        part.direct = part.direct and _takes_sendfile(sink)

    async def run(self, progress: Callable[[int], object] | None) -> int:
        self._progress = progress
        part, sink = self._part, self._sink
        try:
            await trio.lowlevel.checkpoint()
            while not part.ended:
                size = part.size(DIRECT_SIZE)
                if (
                    not part.direct
                    or not part.in_cache(size)
                    or not await self._send_directly(size)
                ):
                    await self._send_read(min(size, READ_SIZE))
            return self.total
        finally:
            give(lease_under(sink).sending)

    async def _send_directly(self, size: int) -> bool:
        """Sends without copying. False: it cannot be done this way."""
        sink, out = self._sink, lease_under(self._sink).sending
        out.check_open()
        try:
            count = self._part.give(out.fd, out.is_socket, size)
        except OSError as exc:
            if not out.would_block(exc):
                raise sink._error(out, -(exc.errno or 0)) from exc
            count = 0
        if count is None:
            return False
        sink.bytes_sent += count
        current_driver().engine.counters.moved[Opcode.SEND] += count
        self._tell()
        if self._part.ended:
            return True
        if count < size:
            await sink._wait_ready(out)
        else:
            await trio.lowlevel.checkpoint()
        return True

    async def _send_read(self, size: int) -> None:
        chunk = await pread(self._part.fd, size, self._part.offset)
        if not chunk:
            self._part.ended = True
            return
        self._part.passed(len(chunk))
        lease_under(self._sink).sending.check_open()  # the read may have taken long
        try:
            with Outgoing(chunk) as rest:
                await self._sink._send_outgoing(rest)
        finally:
            self._tell()

    def _tell(self) -> None:
        if self.total != self._sink.bytes_sent:
            self.total = self._sink.bytes_sent
            if self._progress is not None:
                call(self._progress, self.total)


def _takes_sendfile(sink: SendSide) -> bool:
    """Whether sendfile(2) to this stream can neither block the thread nor kill the process.

    It has no MSG_NOSIGNAL, and where nothing says what is in the page cache, it could block; a read
    in a worker thread does not.
    """
    out = lease_under(sink).sending
    if sys.platform != "linux" or not hasattr(os, "RWF_NOWAIT") or not out.is_socket:
        return False
    return signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN and not os.get_blocking(out.fd)


async def _loop(out: LoopSink, part: Part) -> int:
    """Sends a file to a stream that is not ours."""
    await trio.lowlevel.checkpoint()
    while not part.ended:
        chunk = await pread(part.fd, part.size(LOOP_SIZE), part.offset)
        if not chunk:
            break
        part.passed(len(chunk))
        await out.send(chunk)
    return out.total
