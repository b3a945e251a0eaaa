"""What the tests of BufferPool share."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import TYPE_CHECKING

import pytest

from trio_uring._bytes.pool import BufferPool

if TYPE_CHECKING:
    from collections.abc import Iterator

no_ring = pytest.mark.no_ring


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """What happens within is done by reference counts alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def one_buffer(size: int = 4096) -> BufferPool:
    return BufferPool(min_size=size, max_size=size, max_bytes_per_class=size)


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def in_use(pool: BufferPool) -> int:
    return sum(each.in_use for each in pool.statistics())


def in_use_by_size(pool: BufferPool) -> dict[int, int]:
    return {each.size: each.in_use for each in pool.statistics() if each.in_use}


class Holder:
    """Holds a view in a reference cycle: only the garbage collector ends it."""

    def __init__(self, view: memoryview | None) -> None:
        self.view = view
        self.me = self
