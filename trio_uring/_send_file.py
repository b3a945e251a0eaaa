"""Sending a file to a stream: sendfile(2) for what is in the page cache, a read in the ring for what is not.

sendfile(2) copies nothing, and blocks the thread while it waits for the disk. So the cache is asked first (preadv2 with
RWF_NOWAIT); what it does not have is read in the ring, which waits in the kernel, and sent from the buffer. The file is never
mapped: a mapping of a file that somebody truncates ends the process with SIGBUS.

Rules of this file: the file is used through a descriptor of our own, so that the caller may close his at any time. Every
position is ours and explicit; the file object's is set once, at the end. A read that may wait is never made in trio's thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import operator
import os
import select
import stat
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from ._errors import AGAIN_ERRNOS
from ._loop_sink import LoopSink
from ._op import Opcode
from ._pipes import SPLICE_NOW
from ._pump import Pump, is_open, take_sending, takes_splices
from ._send import SendSide
from ._timed import sending_end

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECT_SIZE = 2**19  # bytes of one sendfile(2): the socket rarely takes more, and other tasks wait for it
LOOP_SIZE = 2**16  # bytes of one read for a stream that is not ours
READ_SIZE = 2**18  # bytes read and sent at a time where sendfile is not to be used; they are held while they are being sent

_NOT_THIS_WAY = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EIO})
_probe = bytearray(1)


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

    On a stream of this package (SocketStream, SendStream) no Python task wakes for the bytes, and none of them is copied as
    long as the file is in the page cache. What is not is read without blocking the thread. On any other stream a loop reads and
    sends.

    The pages themselves are sent: a part of the file that is changed before the peer has received it may go out changed.

    Args:
        stream: any trio.abc.SendStream. It is busy meanwhile, and not closed.
        file: a regular file, opened for reading: a file object in binary mode, whose buffer and position are not looked at, or
            a descriptor. The caller may close it at any time.
        offset: in bytes, where to begin. The default is the beginning of the file, not its position, as in socket.sendfile.
        count: bytes to send; None: to the end of the file.
        progress: as of copy_stream.

    Returns:
        How many bytes the stream has taken: fewer than `count` if the file ends before (also if it is truncated meanwhile). A
        file object's position is then offset + that number, also after an error or a cancellation, unless it is 0; a
        descriptor's position stays as it was.

    Raises:
        trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError: as the stream's send_all.
        OSError: the file cannot be read.
        ValueError: a file in text mode, not a regular file, or a negative number. TypeError: not a file.

    The stream's `send_timeout` does not apply: put a cancel scope around the call.

    Cancellation: `bytes_sent` of the stream (of this package's streams), the file object's position and the last that
    `progress` was told say how far it came. Nothing of the file is in flight when the call has ended.
    """
    if operator.index(offset) < 0 or (count is not None and operator.index(count) < 0):
        raise ValueError("offset and count must be >= 0")
    own = _open(file)
    sink = sending_end(stream)
    sender: FilePump | LoopSink | None = None
    try:
        await checkpoint_if_cancelled()
        if isinstance(sink, SendSide):
            await take_sending(sink)
            try:
                sender = FilePump(sink, own, offset, count)
            except BaseException:
                sink._sending = False
                raise
            return await sender.run(progress)
        with LoopSink(sink, progress) as sender:
            return await _loop(own, sender, offset, count)
    finally:
        if not isinstance(sender, FilePump):  # which closes it when the kernel is done with it
            own.close()
        if sender is not None and sender.total and hasattr(file, "seek"):
            with contextlib.suppress(OSError, ValueError):  # closed by now
                file.seek(offset + sender.total)


def _open(file: Any) -> io.FileIO:
    """The file, through a descriptor of our own."""
    if "b" not in getattr(file, "mode", "b"):
        raise ValueError("send_file takes a file opened in binary mode")
    try:
        fd = file if isinstance(file, int) else file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise TypeError(f"send_file takes a file with a descriptor, or a descriptor, not {type(file).__name__}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ValueError("send_file takes a regular file; copy_stream is for what has no positions")
    return io.FileIO(os.dup(fd), "rb")


class FilePump(Pump):
    """Sends a file from `offset` on."""

    def __init__(self, sink: SendSide, file: io.FileIO, offset: int, count: int | None) -> None:
        super().__init__(sink)
        self._file = file
        self._fd = file.fileno()
        self._offset = offset
        self._left = count
        self._ended = count == 0
        self._direct = takes_splices(self.engine.ring, sink) and os.fstat(self._fd).st_size > 0  # it is 0 in /proc
        self._memory: bytearray | None = None  # what was read
        self._start = self._end = 0  # the part of it that is still to be sent
        self._read = self._operation(sink, Opcode.READ, self._was_read, self._fd, file)
        self._send = self._send_operation(self._was_sent)
        self._writable = self._poll_operation(sink, select.POLLOUT, self._ready)

    def _is_complete(self) -> bool:
        return self._ended and self._start == self._end

    def _settle(self) -> None:
        self._memory = None
        self.sink._sending = False
        self._file.close()

    def _ready(self) -> None:
        pass

    def _advance(self) -> None:
        if self._read.waiting or self._send.waiting or self._writable.waiting:
            return
        if self._start < self._end:
            op = self._send
            op.buffer, op.start, op.length = self._memory, self._start, self._end - self._start
            self._chain(self.sink, op)
        elif not self._ended:
            size = DIRECT_SIZE if self._left is None else min(DIRECT_SIZE, self._left)
            if not self._direct or not self._in_cache(size) or not self._send_directly(size):
                self._chain_read(size)

    def _passed(self, count: int) -> None:
        self._offset += count
        if self._left is not None:
            self._left -= count
            self._ended = not self._left

    # -- without a copy

    def _in_cache(self, size: int) -> bool:
        """Whether both ends of the next `size` bytes are in memory; what lies between was read ahead with them, as a rule."""
        try:
            if os.preadv(self._fd, [_probe], self._offset, os.RWF_NOWAIT):
                os.preadv(self._fd, [_probe], self._offset + size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # this file system cannot tell
            self._direct = False
            return False
        return True

    def _send_directly(self, size: int) -> bool:
        """False: it cannot be done this way."""
        if not is_open(self.sink):
            raise self._side_error(self.sink, -errno.EBADF)
        try:
            if self.sink._is_socket:
                count = os.sendfile(self.sink._fd, self._fd, self._offset, size)
            else:
                count = os.splice(self._fd, self.sink._fd, size, offset_src=self._offset, flags=SPLICE_NOW)
        except OSError as exc:
            if exc.errno in _NOT_THIS_WAY:
                self._direct = False
                return False
            if exc.errno not in AGAIN_ERRNOS:
                raise self._side_error(self.sink, -(exc.errno or 0)) from exc
        else:
            self._moved(count)
            self._passed(count)
            # A short count is a full socket or the file's end.
            self._ended = self._ended or not count or self._offset >= os.fstat(self._fd).st_size
        if not self._ended:
            self._chain(self.sink, self._writable)
        return True

    # -- through a buffer

    def _chain_read(self, size: int) -> None:
        op = self._read
        op.length = min(size, READ_SIZE)
        if self._memory is None or len(self._memory) < op.length:
            self._memory = bytearray(op.length)
        op.buffer, op.offset, op.entry = self._memory, self._offset, None
        self._chain(self.sink, op)

    def _was_read(self, res: int) -> None:
        if res > 0:
            self._start, self._end = 0, res
            self._passed(res)
        elif res == 0:
            self._ended = True
        elif self.sink._closed:
            raise self._side_error(self.sink, res)
        elif not self._stopping and -res not in AGAIN_ERRNOS and res != -errno.ECANCELED:  # with a split stream's other half
            raise OSError(-res, os.strerror(-res))

    def _was_sent(self, res: int) -> None:
        if res >= 0:
            self._sent(res)
            self._start += res
            self.engine.short_writes += self._start < self._end
        elif self._stopping and res == -errno.ECANCELED:
            pass
        elif -res in AGAIN_ERRNOS and not self.sink._closed:
            if not self._stopping:
                self._chain(self.sink, self._writable)
        else:
            raise self._side_error(self.sink, res)


async def _loop(file: io.FileIO, out: LoopSink, offset: int, count: int | None) -> int:
    """On a stream that is not ours."""
    await trio.lowlevel.checkpoint()
    while count is None or out.total < count:
        size = LOOP_SIZE if count is None else min(LOOP_SIZE, count - out.total)
        chunk = await _pread(file.fileno(), size, offset + out.total)
        if not chunk:
            break
        await out.send(chunk)
    return out.total


async def _pread(fd: int, size: int, offset: int) -> bytes:
    """os.pread, in a worker thread if it would have to wait."""
    if hasattr(os, "RWF_NOWAIT"):
        chunk = bytearray(size)
        with contextlib.suppress(OSError):
            return bytes(memoryview(chunk)[: os.preadv(fd, [chunk], offset, os.RWF_NOWAIT)])
    return await trio.to_thread.run_sync(os.pread, fd, size, offset)
