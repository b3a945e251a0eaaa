"""Frames: messages with a length prefix, in a stream of bytes. Only the codec, without I/O.

There are two prefixes: "u32be", four bytes, big-endian; and "varint", unsigned LEB128 of one to
five bytes. Both hold 0 to 2**32 - 1.

Rules of this file: standard library only; nothing is allocated for a frame before its bytes have
come; a size is checked against the limit as soon as it is known. The limit is inclusive.
"""

from __future__ import annotations

import operator
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ._bytes.chunks import ChunkQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Prefix = Literal["u32be", "varint"]

SIZE_MAX = 2**32 - 1  # bytes of the largest frame: what four bytes can say
PREFIX_MAX = {"u32be": 4, "varint": 5}  # bytes of the longest prefix
# Bytes: the default limit. A peer can make us hold this much for each connection.
MAX_SIZE = 2**20

U32BE = struct.Struct(">I")


class FrameError(ValueError):
    """The bytes are not frames, and what follows in the stream cannot be decoded."""


class FrameTooLarge(FrameError):
    """A frame is larger than the limit. Nothing was sent, or allocated for receiving it.

    Attributes:
        size: bytes of the frame.
        max_size: bytes allowed.
    """

    def __init__(self, size: int, max_size: int) -> None:
        super().__init__(f"a frame of {size} bytes is larger than the limit of {max_size} bytes")
        self.size = size
        self.max_size = max_size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size, self.max_size)


def check_max_size(max_size: int) -> int:
    """Returns the limit if it is valid.

    Raises:
        TypeError, ValueError: it is not an integer from 0 to 2**32 - 1.
    """
    if not 0 <= (max_size if type(max_size) is int else operator.index(max_size)) <= SIZE_MAX:
        raise ValueError(f"max_size must be from 0 to {SIZE_MAX} bytes, not {max_size}")
    return max_size


def encode_prefix(size: int, prefix: Prefix = "u32be") -> bytes:
    """The prefix of a frame of `size` bytes.

    Raises:
        FrameTooLarge: `size` does not fit in a prefix.
        ValueError: `prefix` is unknown, or `size` is negative.
    """
    if size > SIZE_MAX:
        raise FrameTooLarge(size, SIZE_MAX)
    if size < 0:
        raise ValueError("the size of a frame is not negative")
    if prefix == "u32be":
        return U32BE.pack(size)
    check_prefix(prefix)
    encoded = bytearray()
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def decode_prefix(data: bytes, prefix: Prefix = "u32be") -> tuple[int, int] | None:
    """Decodes the prefix at the beginning of `data`.

    Returns:
        The size of the frame, and the length of the prefix, in bytes; None: more bytes are needed.

    Raises:
        FrameError: no prefix begins like this.
        ValueError: `prefix` is unknown.
    """
    if prefix == "u32be":
        return (U32BE.unpack_from(data)[0], 4) if len(data) >= 4 else None
    check_prefix(prefix)
    size = 0
    for index, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << 7 * index
        if index == 4 and byte > 0x0F:
            raise FrameError("a varint prefix is longer than 5 bytes, or larger than 2**32 - 1")
        if byte < 0x80:
            return size, index + 1
    return None


def check_prefix(prefix: str) -> None:
    """Raises ValueError if there is no such prefix."""
    if prefix not in PREFIX_MAX:
        raise ValueError(f"the prefix of a frame is 'u32be' or 'varint', not {prefix!r}")


class FrameDecoder:
    """Finds the frames in a stream of bytes, however it was cut into pieces.

    Args:
        max_size: bytes of the largest frame allowed, inclusive.
        prefix: "u32be" or "varint".

    It holds what was fed and has not been taken as frames. If the caller takes all frames after
    each feed, that is at most one frame of `max_size` bytes, its prefix, and one piece.
    """

    def __init__(self, max_size: int = MAX_SIZE, prefix: Prefix = "u32be") -> None:
        check_prefix(prefix)
        self._max_size = check_max_size(max_size)
        self._prefix: Prefix = prefix
        self._queue = ChunkQueue()
        self._size: int | None = None  # of the frame whose prefix was read
        self._prefix_length = 0
        # Makes the error. If the error itself were kept, so would be its traceback's frames.
        self._error: Callable[[], FrameError] | None = None

    def feed(self, data: bytes) -> None:
        """Adds bytes as they came.

        b"" adds nothing: what the end of the stream means is up to the caller.
        """
        self._queue.append(bytes(data))

    def next_frame(self) -> bytes | None:
        """The next complete frame; None: more bytes are needed.

        Raises:
            FrameTooLarge, FrameError: the stream is wrong; every later call raises this again.
        """
        queue = self._queue
        size = self._size
        if size is None:
            size = self._size = self._take_prefix()
        if size is None or queue.size < size:
            return None
        self._size = None
        return queue.take(size)

    def check(self) -> None:
        """Raises the error that next_frame found, if it found one."""
        if self._error is not None:
            raise self._error()

    def __iter__(self) -> Iterator[bytes]:
        """The complete frames, as next_frame returns them."""
        return iter(self.next_frame, None)

    @property
    def pending(self) -> int:
        """Bytes held of an incomplete frame and its prefix; 0: the stream may end here."""
        return (0 if self._size is None else self._prefix_length) + self._queue.size

    @property
    def partial(self) -> bytes:
        """What has come of the incomplete frame; until its prefix is complete, of the prefix."""
        return self._queue.peek(self._queue.size)

    @property
    def missing(self) -> int:
        """How many more bytes the next frame needs at least."""
        if self._size is None:
            return max(1, 4 - self._queue.size) if self._prefix == "u32be" else 1
        return self._size - self._queue.size

    def _take_prefix(self) -> int | None:
        self.check()
        queue = self._queue
        if self._prefix == "u32be":
            if queue.size < 4:
                return None
            size: int = U32BE.unpack(queue.take(4))[0]
            length = 4
        else:
            try:
                decoded = decode_prefix(queue.peek(5), "varint")
            except FrameError as exc:
                self._error = partial(FrameError, *exc.args)
                raise
            if decoded is None:
                return None
            size, length = decoded
            queue.take(length)
        self._prefix_length = length
        if size > self._max_size:
            self._error = partial(FrameTooLarge, size, self._max_size)
            raise self._error()
        return size
