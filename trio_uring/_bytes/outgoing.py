"""Outgoing buffers: what a caller gave to one send, and how much of it has been sent.

Rules of this file: no I/O, no task, and no opcode. A caller's buffer is exported once and never
copied or joined; a wrong one is found before the first byte is sent. Empty buffers are left out.
Lengths are in bytes, whatever the items of a buffer are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .views import byte_view, release_view, release_views

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

IOV_MAX = 1024  # buffers that the kernel takes in one operation (UIO_MAXIOV)
# Once an operation has this many bytes, it takes no further buffer: a socket rarely takes more at
# once.
VECTOR_BYTES_MAX = 2**22
SEND_MAX = 2**30  # bytes of a single buffer in one operation, whose length has 32 bits


class Load(Protocol):
    """The fields of an operation that say what it sends.

    That is one buffer or several, how many bytes of the first to skip, and how many bytes to send
    after these.
    """

    buffer: Any
    buffers: Any
    start: int
    length: int


class Outgoing:
    """What one call was given to send, and has not sent yet.

    As a context manager, it releases the buffers at the end of the block.

    Args:
        data: a buffer or a sequence of buffers, as for send_all; exported until `release`.

    Attributes:
        done: everything has been sent.

    Raises:
        TypeError: something in it is not a buffer.
        BufferError: something is not C-contiguous.
    """

    __slots__ = ("_index", "_start", "_views", "done")

    def __init__(self, data: Buffer | Sequence[Buffer]) -> None:
        self._views = buffer_views(data)
        self._index = 0  # of the first buffer that is not sent completely
        self._start = 0  # bytes of it that have been sent
        self.done = not self._views

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def count(self) -> int:
        """Buffers of which something is left to send."""
        return len(self._views) - self._index

    @property
    def vectored(self) -> bool:
        """Whether the next operation takes several buffers."""
        views, index = self._views, self._index
        return index + 1 < len(views) and views[index].nbytes - self._start < VECTOR_BYTES_MAX

    def load(self, op: Load) -> None:
        """Sets what the next operation sends: one buffer, or several if `vectored` is true.

        Not to be called once `done` is true.
        """
        end, length = self._end()
        if end - self._index == 1:
            op.buffer = self._views[self._index]
        else:
            op.buffers = self._views[self._index : end]
        op.start, op.length = self._start, min(length, SEND_MAX)

    def cut(self) -> list[memoryview]:
        """The buffers of the next operation, for a call that cannot skip bytes of the first one.

        The caller must not release them.
        """
        return [self.first(), *self._views[self._index + 1 : self._end()[0]]]

    def first(self) -> memoryview:
        """What is left of the first buffer, as bytes in place. The caller must not release it."""
        view = self._views[self._index]
        if self._start or view.format != "B" or view.ndim != 1:
            plain = byte_view(view)
            self._views[self._index] = plain[self._start :]
            self._start = 0
            release_view(plain)
            release_view(view)
        return self._views[self._index]

    def take(self, count: int) -> bytes:
        """A copy of the next `count` bytes of the first buffer, which then count as sent."""
        part = self.first()[:count]
        data = bytes(part)
        part.release()
        self.advance(len(data))
        return data

    def advance(self, count: int) -> None:
        """Moves past `count` bytes that were sent, and releases the buffers that are finished."""
        views, index, start = self._views, self._index, self._start + count
        end = len(views)
        while index < end and start >= views[index].nbytes:
            start -= views[index].nbytes
            release_view(views[index])  # it has been sent and need not be held
            index += 1
        self._index, self._start, self.done = index, start, index == end

    def release(self) -> None:
        """Releases all buffers, sent or not. It may be called twice.

        A buffer that the kernel still has, because the call's coroutine was destroyed, is released
        with the last reference to it.
        """
        release_views(self._views)

    def _end(self) -> tuple[int, int]:
        """The index after the last buffer of the next operation, and how many bytes that sends."""
        views, index = self._views, self._index
        length, end = views[index].nbytes - self._start, index + 1
        while end < len(views) and end - index < IOV_MAX and length < VECTOR_BYTES_MAX:
            length += views[end].nbytes
            end += 1
        return end, length


def plain_length(data: object) -> int:
    """The length of a short list of bytes objects, which the ring can pin as they are.

    0: `data` is something else.
    """
    length = 0
    if type(data) is list or type(data) is tuple:
        for item in data:
            if type(item) is not bytes:
                return 0
            length += len(item)
        if len(data) > IOV_MAX or length > VECTOR_BYTES_MAX:
            return 0
    return length


def buffer_views(data: object) -> list[memoryview]:
    """The buffers of `data` that are not empty, exported: until released, none can be resized."""
    views: list[memoryview] = []
    try:
        for item in buffer_list(data):
            view = buffer_view(item)
            if view.nbytes:
                views.append(view)
    except BaseException:
        release_views(views)  # the traceback would keep them exported
        raise
    return views


def buffer_list(data: Any) -> Sequence[Any]:
    """What send_all was given, a buffer or a sequence of buffers, as a sequence."""
    if isinstance(data, str):
        raise TypeError("send_all takes bytes, not str: encode the text first")
    if isinstance(data, (list, tuple)) or (isinstance(data, Sequence) and not _is_buffer(data)):
        return data
    return [data]


def _is_buffer(data: object) -> bool:
    try:
        memoryview(data).release()  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def buffer_view(item: object) -> memoryview:
    """Exports one buffer.

    Raises:
        TypeError: `item` is not a buffer.
        BufferError: it is not C-contiguous.
    """
    try:
        view = memoryview(item)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"send_all takes a bytes-like object or a sequence of them, not {type(item).__name__}"
        ) from None
    if not view.c_contiguous:
        raise BufferError(
            "send_all takes C-contiguous buffers: make a contiguous copy of this one first"
        )
    return view
