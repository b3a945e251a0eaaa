"""A queue of bytes: chunks go in at the end, and any number of bytes is taken from the front.

Rules of this file: standard library only, no I/O. Every operation is linear in the bytes that it
moves, even if a peer sends byte by byte: small chunks are merged, so that the overhead of the
objects stays a small part of the memory held.
"""

from __future__ import annotations

from collections import deque

# Bytes. A smaller chunk is copied to the end of the one before it: as an object of its own, most of
# its memory would be overhead.
MERGE_BELOW = 512
# Bytes at which a merged chunk is full. The memory of what was taken from its front is freed only
# with the whole chunk.
MERGED_MAX = 2**16


class ChunkQueue:
    """A queue of bytes.

    Attributes:
        size: how many bytes it holds.
    """

    __slots__ = ("_chunks", "_start", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray] = deque()
        self._start = 0  # bytes of the first chunk that have been taken already
        self.size: int = 0

    def append(self, chunk: bytes) -> None:
        """Adds `chunk`, which must not change, to the end."""
        chunks = self._chunks
        count = len(chunk)
        self.size += count
        if count < MERGE_BELOW and chunks:
            last = chunks[-1]
            if len(last) < (MERGED_MAX if type(last) is bytearray else MERGE_BELOW):
                if type(last) is not bytearray:
                    last = chunks[-1] = bytearray(last)
                # Drop what was taken from its front once that is most of it.
                if len(chunks) == 1 and 2 * self._start > len(last):
                    del last[: self._start]
                    self._start = 0
                last += chunk
                return
        if count:
            chunks.append(chunk)

    def prepend(self, chunk: bytes) -> None:
        """Puts `chunk` back before everything else."""
        if chunk:
            if self._start:
                self._chunks[0] = bytes(self._chunks[0][self._start :])
                self._start = 0
            self._chunks.appendleft(chunk)
            self.size += len(chunk)

    def take(self, count: int) -> bytes:
        """Removes `count` bytes from the front, at most `size`."""
        if not count:
            return b""
        chunk, start = self._chunks[0], self._start
        end = start + count
        if end > len(chunk):
            return self._take_across(count)
        self.size -= count
        if end < len(chunk):
            self._start = end
            part = chunk[start:end]
        else:
            self._chunks.popleft()
            self._start = 0
            part = chunk[start:] if start else chunk
        return part if type(part) is bytes else bytes(part)

    def take_all(self) -> bytes:
        return self.take(self.size)

    def peek(self, count: int) -> bytes:
        """Up to `count` bytes from the front, which stay in the queue."""
        parts, start = [], self._start
        for chunk in self._chunks:
            if count <= 0:
                break
            parts.append(chunk[start : start + count])
            count -= len(chunk) - start
            start = 0
        return parts[0] if len(parts) == 1 and type(parts[0]) is bytes else b"".join(parts)

    def find(self, delimiter: bytes, start: int, end: int) -> int:
        """The index of the first `delimiter` that lies between `start` and `end`; -1: none does."""
        if not self.size:
            return -1
        if len(self._chunks) > 1:
            self._join()
        found = self._chunks[0].find(delimiter, self._start + start, self._start + end)
        return found - self._start if found >= 0 else -1

    def clear(self) -> None:
        self._chunks.clear()
        self._start = self.size = 0

    def _join(self) -> None:
        """Joins all chunks into one.

        It is a bytearray, which grows in place, so that searching a long line repeatedly stays
        linear.
        """
        first = self._chunks.popleft()
        if type(first) is not bytearray:
            first = bytearray(first)
        del first[: self._start]
        self._start = 0
        for chunk in self._chunks:
            first += chunk
        self._chunks = deque([first])

    def _take_across(self, count: int) -> bytes:
        self.size -= count
        parts = []
        while count:
            chunk, start = self._chunks[0], self._start
            part = chunk[start : start + count]
            parts.append(part)
            count -= len(part)
            if start + len(part) == len(chunk):
                self._chunks.popleft()
                self._start = 0
            else:
                self._start = start + len(part)
        return b"".join(parts)
