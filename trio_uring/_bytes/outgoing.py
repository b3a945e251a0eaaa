"""Buffers that go out: what a caller gave to be sent, and how far it has gone.

Rules of this file: no I/O, no task, and no opcode. A caller's buffer is exported once and never
copied or joined; a wrong one is found before the first byte goes. Empty buffers are left out.
Lengths are in bytes, whatever the items of a buffer are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .views import byte_view, release_view, release_views

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

IOV_MAX = 1024  # buffers that the kernel takes in one operation (UIO_MAXIOV)
# Bytes after which one operation takes no further buffer: a socket rarely takes more at once.
VECTOR_BYTES_MAX = 2**22
SEND_MAX = 2**30  # bytes of one buffer asked for in one operation: its length has 32 bits


class Load(Protocol):
    """What an operation says of the buffers that it sends: one, or several; how many bytes of the
    first to leave out; and how many bytes come then."""

    buffer: Any
    buffers: Any
    start: int
    length: int


class Outgoing:
    """What was given to one call to be sent, and has not gone yet.

    Used as a context manager, it lets the buffers go at the end of the block.

    Args:
        data: a buffer or a sequence of buffers, as of send_all; borrowed until `release`.

    Attributes:
        done: everything has gone.

    Raises:
        TypeError: something in it is not a buffer.
        BufferError: something is not C-contiguous.
    """

    __slots__ = ("_index", "_start", "_views", "done")

    def __init__(self, data: Buffer | Sequence[Buffer]) -> None:
        self._views = buffer_views(data)
        self._index = 0  # of the buffer that goes on
        self._start = 0  # bytes of it that have gone
        self.done = not self._views

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def count(self) -> int:
        """Buffers of which something is left."""
        return len(self._views) - self._index

    @property
    def vectored(self) -> bool:
        """Whether the next operation takes several buffers."""
        views, index = self._views, self._index
        return index + 1 < len(views) and views[index].nbytes - self._start < VECTOR_BYTES_MAX

    def load(self, op: Load) -> None:
        """Sets the next operation's worth: one buffer, or several if `vectored` says so. Not when
        all has gone."""
        end, length = self._end()
        if end - self._index == 1:
            op.buffer = self._views[self._index]
        else:
            op.buffers = self._views[self._index : end]
        op.start, op.length = self._start, min(length, SEND_MAX)

    def cut(self) -> list[memoryview]:
        """The next operation's worth for a call that takes no `start`: the first without what has
        gone. Still ours: not to be released."""
        return [self.first(), *self._views[self._index + 1 : self._end()[0]]]

    def first(self) -> memoryview:
        """What is left of the first buffer, as memory of bytes. Still ours: not to be released."""
        view = self._views[self._index]
        if self._start or view.format != "B" or view.ndim != 1:
            plain = byte_view(view)
            self._views[self._index] = plain[self._start :]
            self._start = 0
            release_view(plain)
            release_view(view)
        return self._views[self._index]

    def take(self, count: int) -> bytes:
        """A copy of the next `count` bytes of the first buffer, which have gone then."""
        part = self.first()[:count]
        data = bytes(part)
        part.release()
        self.advance(len(data))
        return data

    def advance(self, count: int) -> None:
        """Moves past `count` bytes that have gone, and lets go of the buffers that end there."""
        views, index, start = self._views, self._index, self._start + count
        end = len(views)
        while index < end and start >= views[index].nbytes:
            start -= views[index].nbytes
            release_view(views[index])  # what has gone need not be held
            index += 1
        self._index, self._start, self.done = index, start, index == end

    def release(self) -> None:
        """Lets go of all buffers, gone or not. Doing it twice is allowed.

        One that the kernel has still, because its call's coroutine was destroyed, is let go with
        the last reference to it.
        """
        release_views(self._views)

    def _end(self) -> tuple[int, int]:
        """Past the last buffer that the next operation takes, and the bytes that it takes."""
        views, index = self._views, self._index
        length, end = views[index].nbytes - self._start, index + 1
        while end < len(views) and end - index < IOV_MAX and length < VECTOR_BYTES_MAX:
            length += views[end].nbytes
            end += 1
        return end, length


def plain_length(data: object) -> int:
    """Bytes of a short list of bytes objects, which the ring can pin as they are; 0: it is
    something else."""
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
    """The buffers of `data` that are not empty, exported: from now on none of them can be
    resized."""
    views: list[memoryview] = []
    try:
        for item in buffer_list(data):
            view = buffer_view(item)
            if view.nbytes:
                views.append(view)
    except BaseException:
        release_views(views)  # the traceback has them
        raise
    return views


def buffer_list(data: Any) -> Sequence[Any]:
    """What send_all was given, one buffer or a sequence of them, as a sequence."""
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
    """One buffer, exported.

    Raises:
        TypeError: it is not one.
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
