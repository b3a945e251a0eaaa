"""A pool of buffers for receives and sends: bounded, in size classes, without locks.

How a buffer comes back: each buffer that is handed out is exported by a small ctypes array, made
for it, which lies over its part of the class's memory. Every view of the buffer, every slice and
the pin of an operation in the kernel keep that array alive, and its finaliser gives the memory
back. So memory is never handed out again while anything can still reach it, and nobody has to
release it.

Rules of this file: the garbage collector never sees an exporter (`_SizeClass.take` says why), and
nothing else gives memory back. A finaliser may run at any moment and in any thread, even in the
middle of a method here: it makes one atomic call of a deque, and the methods take no lock. Standard
library only.
"""

from __future__ import annotations

import ctypes
import mmap
import operator
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

SIZE_MIN = 64  # bytes of the smallest class allowed: a cache line

_addressof = ctypes.addressof


def _find_untrack() -> Any:
    api = getattr(ctypes, "pythonapi", None)
    if api is None:  # PyPy, whose collector finalises nothing that anything else can still reach
        return id
    # Looked up by item, which gives us an object whose types nobody else sets.
    untrack = api["PyObject_GC_UnTrack"]
    untrack.argtypes, untrack.restype = [ctypes.py_object], None
    return untrack


_untrack = _find_untrack()


@dataclass(frozen=True)
class BufferClassStatistics:
    """A snapshot of one size class of a BufferPool. The counts are since the pool was made."""

    size: int
    """Bytes of each buffer of the class."""
    capacity: int
    """Buffers that the class has, in use or not."""
    in_use: int
    """Buffers of which something still holds a view."""
    allocations: int
    """Buffers that were handed out."""
    exhausted: int
    """How often a buffer of the class was asked for and none was free."""


class BufferPool:
    """Memory that is reused, in size classes of powers of two, each with a bound.

    A buffer goes back to the pool when the last view of it is gone, and not before. A memoryview is
    a context manager, so the end of a block can be that moment:

        with pool.alloc(65536) as view:
            count = await stream.receive_into(view)
            await stream.send_all(view[:count])

    A slice of the view that is still held after the block, or an operation that is still in the
    kernel, keeps the buffer for as long as it needs it. As with every memoryview, the end of the
    block raises BufferError if something that is not a memoryview (cffi's `from_buffer`,
    `pickle.PickleBuffer`) still exports the view itself; the buffer goes back when that is gone. A
    view that is simply forgotten gives its buffer back when Python destroys it.

    A new buffer does not contain zeros, but whatever an earlier use left there (of this pool, in
    this process). So send only what you have written: `view[:count]` of a buffer that a receive has
    filled in part. If buffers hold secrets, overwrite them before you drop them.

    A class reserves its address space at the first use. Each page becomes memory when it is first
    written to, and stays until the pool and all its buffers are gone. The buffer returned last is
    handed out first. Nothing needs closing. Threads may share a pool; while several use it,
    `allocations` and the counts of refusals are exact only under the GIL. A forked child has a copy
    of the pool.
    """

    def __init__(
        self, *, min_size: int = 4096, max_size: int = 2**20, max_bytes_per_class: int = 2**24
    ) -> None:
        """Makes an empty pool; no memory is taken yet.

        Args:
            min_size: bytes of the smallest buffers; a power of two, at least 64.
            max_size: bytes of the largest buffers; a power of two, at least `min_size`.
            max_bytes_per_class: the most bytes that all buffers of one class have together, at
                least 1. A class has at least one buffer, whatever its size.

        Raises:
            TypeError, ValueError: a number is not an integer, or not in its range.
        """
        min_size, max_size = (
            _power_of_two("min_size", min_size),
            _power_of_two("max_size", max_size),
        )
        if max_size < min_size:
            raise ValueError(f"max_size must be >= min_size, not {max_size} < {min_size}")
        limit = operator.index(max_bytes_per_class)
        if limit < 1:
            raise ValueError(f"max_bytes_per_class must be >= 1, not {limit}")
        self._first_bits = (min_size - 1).bit_length()
        sizes = [1 << bits for bits in range(self._first_bits, max_size.bit_length())]
        self._classes = [_SizeClass(size, max(1, limit // size)) for size in sizes]
        self._oversized = 0
        self._heap_allocations = 0

    def try_alloc(self, size: int) -> memoryview | None:
        """Hands out a buffer of the smallest class that holds `size` bytes.

        A larger class does not step in when that one is exhausted: otherwise a burst of small
        buffers would take the large ones, and one flood would exhaust every class.

        Args:
            size: bytes, at least 1.

        Returns:
            A writable view of exactly `size` bytes, format "B", aligned to the size of its class or
            to a page, whichever is less. None: all buffers of the class are in use, or `size` is
            larger than the pool's `max_size`.

        Raises:
            TypeError, ValueError: `size` is not an integer, or less than 1.
            OSError: the system refused the memory of a class that is used for the first time.
        """
        size = operator.index(size)
        if size < 1:
            raise ValueError(f"size must be >= 1, not {size}")
        index = (size - 1).bit_length() - self._first_bits
        if index >= len(self._classes):
            self._oversized += 1
            return None
        return self._classes[index if index > 0 else 0].take(size)

    def alloc(self, size: int) -> memoryview:
        """Like try_alloc, but takes the buffer from the heap where the pool has none.

        For callers that need no bound. A buffer from the heap has no guaranteed alignment, and its
        memory is not reused. `heap_allocations` counts them.

        Args:
            size: bytes, at least 1.

        Returns:
            A writable view of exactly `size` bytes, format "B".

        Raises:
            TypeError, ValueError, OSError: as for try_alloc.
            MemoryError, OverflowError: the heap does not have that much either.
        """
        view = self.try_alloc(size)
        if view is None:
            view = memoryview(bytearray(operator.index(size)))
            self._heap_allocations += 1
        return view

    @property
    def oversized(self) -> int:
        """How often more than `max_size` bytes were asked for. No class counts these."""
        return self._oversized

    @property
    def heap_allocations(self) -> int:
        """Buffers that `alloc` took from the heap: too large for the pool, or none was free."""
        return self._heap_allocations

    def statistics(self) -> tuple[BufferClassStatistics, ...]:
        """The state and the counts of each size class, from the smallest to the largest."""
        return tuple(each.statistics() for each in self._classes)


class _SizeClass:
    """The buffers of one size, their memory once it is needed, and the counts."""

    def __init__(self, size: int, capacity: int) -> None:
        self.size = size
        self.capacity = capacity
        self.allocations = 0
        self.exhausted = 0
        # At most one item. It is a dict because `setdefault` is atomic.
        self.memory: dict[str, _Memory] = {}

    def take(self, size: int) -> memoryview | None:
        # Two threads may both find no memory. One of them wins; what the other made goes away
        # before a buffer of it is handed out.
        memory = self.memory.get("slab") or self.memory.setdefault(
            "slab", _Memory(self.size, self.capacity)
        )
        try:
            offset = memory.free.pop()
        except IndexError:
            self.exhausted += 1
            return None
        # A KeyboardInterrupt exactly here loses this buffer for the pool. It cannot free it twice,
        # which would be worse.
        exporter = memory.exporter.from_buffer(memory.slab, offset)
        # The garbage collector calls the finalisers of a dead cycle while its objects can still
        # reach each other. An object in the cycle that has a `__del__` could use a view, or even
        # bring it back to life, after the exporter's finaliser had given the memory away. An
        # exporter that the collector does not see is finalised by its reference count only, when
        # its last view is really gone. It refers only to the slab, so it never closes a cycle.
        _untrack(exporter)
        self.allocations += 1
        return memoryview(exporter).cast("B")[:size]

    def statistics(self) -> BufferClassStatistics:
        memory = self.memory.get("slab")
        in_use = 0 if memory is None else self.capacity - len(memory.free)
        return BufferClassStatistics(
            self.size, self.capacity, in_use, self.allocations, self.exhausted
        )


class _Memory:
    """One slab of memory, cut into buffers of one size, and the offsets of the free ones."""

    def __init__(self, size: int, capacity: int) -> None:
        self.slab = _map(size * capacity)
        # A stack: the lowest pages are touched first.
        self.free = deque(range((capacity - 1) * size, -1, -size))
        self.exporter = _exporter_type(
            size, _addressof(ctypes.c_char.from_buffer(self.slab)), self.free
        )


def _map(length: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, length)
    # Private: Python's default for anonymous maps is shared, and a forked child would write into
    # its parent's buffers.
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _exporter_type(size: int, base: int, free: deque[int]) -> type[ctypes.Array[ctypes.c_char]]:
    """The type of the arrays over the buffers of a slab at `base`.

    They give their offsets back to `free`.
    """
    # No global names in the finaliser: when the interpreter ends they may be gone.
    give_back, addressof = free.append, _addressof

    class Exporter(ctypes.Array[ctypes.c_char]):
        _type_ = ctypes.c_char  # pyright: ignore
        _length_ = size  # pyright: ignore
        __slots__ = ()

        def __del__(self) -> None:
            give_back(addressof(self) - base)

    return Exporter


def _power_of_two(name: str, value: int) -> int:
    value = operator.index(value)
    if value < SIZE_MIN or value & (value - 1):
        raise ValueError(f"{name} must be a power of two >= {SIZE_MIN}, not {value}")
    return value
