"""BufferPool: what it hands out, when it comes back, and that nobody gets memory that somebody else
can still reach.

Rules of this file: "in use" is compared with what the test itself holds, never with an earlier
answer of the pool. A test that needs the garbage collector calls it, and the others run without it:
what they expect happens at once. Addresses are read through ctypes, and only to compare them.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import mmap
import pickle
import re
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from support.pool import Holder, address, in_use, in_use_by_size, no_collector, no_ring, one_buffer
from support.streams import pattern

from trio_uring._bytes import pool as _pool
from trio_uring._bytes.pool import BufferClassStatistics, BufferPool

if TYPE_CHECKING:
    pass

# -- what is handed out


@no_ring
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 64),
        (63, 64),
        (64, 64),
        (65, 128),
        (128, 128),
        (129, 256),
        (4095, 4096),
        (4096, 4096),
        (4097, 8192),
        (65535, 65536),
        (65536, 65536),
    ],
)
def test_the_smallest_class_that_holds_it(size: int, expected: int) -> None:
    pool = BufferPool(min_size=64, max_size=65536)
    for allocate in (pool.try_alloc, pool.alloc):
        view = allocate(size)
        assert in_use_by_size(pool) == {expected: 1}
        view.release()
        assert in_use_by_size(pool) == {}


@no_ring
@pytest.mark.parametrize("size", [1, 100, 4096, 5000])
@pytest.mark.parametrize("exhausted", [False, True])
def test_a_writable_view_of_exactly_the_bytes_asked_for(size: int, exhausted: bool) -> None:
    pool = BufferPool(max_bytes_per_class=1)
    taken = [pool.try_alloc(size)] if exhausted else []
    view = pool.alloc(size)
    assert (view.format, view.itemsize, view.shape, view.nbytes) == ("B", 1, (size,), size)
    assert view.c_contiguous
    assert not view.readonly
    view[:] = pattern(size)
    assert view.tobytes() == pattern(size)
    assert view[-1] == pattern(size)[-1]
    assert pool.heap_allocations == len(taken)


@no_ring
@pytest.mark.parametrize("allocate", ["try_alloc", "alloc"])
def test_sizes_are_integers_of_at_least_1(allocate: str) -> None:
    class Five:
        def __index__(self) -> int:
            return 5

    pool = BufferPool()
    assert len(getattr(pool, allocate)(Five())) == 5
    for size in (0, -1, -(2**70)):
        with pytest.raises(ValueError, match=f"^size must be >= 1, not {size}$"):
            getattr(pool, allocate)(size)
    for wrong in (4096.0, "4096", None, b"x"):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            getattr(pool, allocate)(wrong)
    assert [each.allocations for each in pool.statistics() if each.allocations] == [1]
    assert (pool.oversized, pool.heap_allocations) == (0, 0)


@no_ring
def test_every_buffer_is_aligned_and_apart_from_the_others() -> None:
    pool = BufferPool(min_size=64, max_size=2**16, max_bytes_per_class=2**17)
    for each in pool.statistics():
        views = [pool.try_alloc(each.size) for _ in range(each.capacity)]
        addresses = sorted(address(view) for view in views)
        assert {found % min(each.size, mmap.PAGESIZE) for found in addresses} == {0}
        assert [b - a for a, b in itertools.pairwise(addresses)] == [each.size] * (
            each.capacity - 1
        )
        assert pool.try_alloc(each.size) is None


# -- bounds


@no_ring
def test_the_classes_of_a_pool_by_default() -> None:
    statistics = BufferPool().statistics()
    assert [each.size for each in statistics] == [4096 << n for n in range(9)]
    assert [each.capacity for each in statistics] == [4096 >> n for n in range(9)]
    assert statistics[0] == BufferClassStatistics(
        size=4096, capacity=4096, in_use=0, allocations=0, exhausted=0
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics[0].in_use = 1


@no_ring
@pytest.mark.parametrize(
    ("limit", "capacities"), [(1, [1, 1, 1]), (64, [1, 1, 1]), (300, [4, 2, 1]), (1000, [15, 7, 3])]
)
def test_a_class_has_what_fits_into_its_bytes_and_at_least_one(
    limit: int, capacities: list[int]
) -> None:
    pool = BufferPool(min_size=64, max_size=256, max_bytes_per_class=limit)
    assert [each.capacity for each in pool.statistics()] == capacities
    for each in pool.statistics():
        views = [pool.try_alloc(each.size) for _ in range(each.capacity + 2)]
        assert [view is None for view in views] == [False] * each.capacity + [True, True]


@no_ring
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_size": 5000}, "min_size must be a power of two >= 64, not 5000"),
        ({"min_size": 32}, "min_size must be a power of two >= 64, not 32"),
        ({"min_size": 0}, "min_size must be a power of two >= 64, not 0"),
        ({"min_size": -4096}, "min_size must be a power of two >= 64, not -4096"),
        ({"max_size": 2**20 - 1}, "max_size must be a power of two >= 64, not 1048575"),
        ({"min_size": 64, "max_size": 1}, "max_size must be a power of two >= 64, not 1"),
        ({"min_size": 128, "max_size": 64}, "max_size must be >= min_size, not 64 < 128"),
        ({"max_bytes_per_class": 0}, "max_bytes_per_class must be >= 1, not 0"),
    ],
)
def test_bounds_that_will_not_do(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BufferPool(**arguments)


@no_ring
@pytest.mark.parametrize("name", ["min_size", "max_size", "max_bytes_per_class"])
def test_bounds_are_integers(name: str) -> None:
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        BufferPool(**{name: 65536.0})


@no_ring
def test_an_exhausted_class_refuses_and_recovers_and_no_other_helps_out() -> None:
    pool = BufferPool(min_size=64, max_size=256, max_bytes_per_class=256)
    views = [pool.try_alloc(64) for _ in range(4)]
    for _ in range(3):
        assert pool.try_alloc(10) is None
    assert pool.statistics() == (
        BufferClassStatistics(size=64, capacity=4, in_use=4, allocations=4, exhausted=3),
        BufferClassStatistics(size=128, capacity=2, in_use=0, allocations=0, exhausted=0),
        BufferClassStatistics(size=256, capacity=1, in_use=0, allocations=0, exhausted=0),
    )
    views.pop().release()
    assert pool.statistics()[0].in_use == 3
    views.append(pool.try_alloc(64))
    assert None not in views
    assert pool.try_alloc(64) is None
    assert pool.statistics()[0] == BufferClassStatistics(
        size=64, capacity=4, in_use=4, allocations=5, exhausted=4
    )


@no_ring
def test_what_the_pool_has_not_comes_from_the_heap() -> None:
    pool = BufferPool(min_size=64, max_size=128, max_bytes_per_class=128)
    assert pool.try_alloc(129) is None
    assert (pool.oversized, pool.heap_allocations) == (1, 0)
    large = pool.alloc(129)
    assert len(large) == 129
    assert (pool.oversized, pool.heap_allocations) == (2, 1)
    first, second = pool.alloc(128), pool.alloc(128)
    assert len(first) == len(second) == 128
    assert (pool.oversized, pool.heap_allocations) == (2, 2)
    small, full = pool.statistics()
    assert (small.allocations, small.exhausted) == (0, 0)
    assert (full.in_use, full.allocations, full.exhausted) == (1, 1, 1)
    second.release()
    assert in_use(pool) == 1, "a buffer of the heap is not one of the pool's"
    with pytest.raises((OverflowError, MemoryError)):
        pool.alloc(2**70)
    assert (pool.oversized, pool.heap_allocations) == (3, 2)


# -- memory


@no_ring
def test_a_class_takes_its_memory_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    make = mmap.mmap

    def counted(fileno: int, length: int, **options: Any) -> mmap.mmap:
        lengths.append(length)
        return make(fileno, length, **options)

    monkeypatch.setattr(_pool.mmap, "mmap", counted)
    pool = BufferPool(min_size=4096, max_size=8192, max_bytes_per_class=20_000)
    pool.statistics()
    assert lengths == []
    for _ in range(3):
        views = [pool.try_alloc(8000) for _ in range(3)]
        assert [view is None for view in views] == [False, False, True]
        views.clear()
    assert lengths == [16384]
    pool.alloc(1)
    assert lengths == [16384, 16384]


@no_ring
def test_a_refusal_of_the_system_is_told_and_can_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    pool = one_buffer()
    with monkeypatch.context() as patched:
        patched.setattr(_pool.mmap, "mmap", refuse)
        for allocate in (pool.try_alloc, pool.alloc):
            with pytest.raises(OSError, match="Cannot allocate memory"):
                allocate(1)
    assert pool.statistics() == (
        BufferClassStatistics(size=4096, capacity=1, in_use=0, allocations=0, exhausted=0),
    )
    assert pool.try_alloc(1) is not None


@no_ring
def test_pages_that_were_never_written_cost_nothing() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    pool = BufferPool(min_size=2**20, max_size=2**20, max_bytes_per_class=2**30)
    before = resident()
    views = [pool.try_alloc(2**20) for _ in range(1024)]
    assert None not in views
    views[0][:] = bytes(2**20)
    assert resident() - before < 2**26


@no_ring
def test_the_last_buffer_back_is_the_first_out_and_is_not_cleared() -> None:
    pool = BufferPool(min_size=4096, max_size=4096, max_bytes_per_class=5 * 4096)
    views = [pool.try_alloc(4096) for _ in range(5)]
    places = [address(view) for view in views]
    for index in (3, 0, 4):
        views[index][:] = bytes([index]) * 4096
        views[index].release()
    again = [pool.try_alloc(4000) for _ in range(3)]
    assert [address(view) for view in again] == [places[4], places[0], places[3]]
    assert [bytes(view) for view in again] == [bytes([index]) * 4000 for index in (4, 0, 3)]


@no_ring
def test_buffers_outlive_their_pool_and_then_the_memory_goes() -> None:
    with no_collector():
        pool = BufferPool()
        whole, part = pool.alloc(5000), pool.alloc(8192)[100:200]
        slab = weakref.ref(pool._classes[1].memory["slab"].slab)
        gone = weakref.ref(pool)
        del pool
        assert gone() is None
        whole[:], part[:] = pattern(5000), pattern(100)
        assert (whole.tobytes(), part.tobytes()) == (pattern(5000), pattern(100))
        whole.release()
        assert slab() is not None
        assert part.tobytes() == pattern(100)
        del part
        assert slab() is None


@no_ring
def test_a_pool_without_buffers_goes_at_once_with_its_memory() -> None:
    with no_collector():
        pool = BufferPool()
        pool.alloc(1)
        gone, slab = weakref.ref(pool), weakref.ref(pool._classes[0].memory["slab"].slab)
        del pool
        assert gone() is None
        assert slab() is None


# -- when a buffer comes back


@no_ring
def test_the_end_of_the_block_gives_it_back() -> None:
    with no_collector():
        pool = one_buffer()
        for _ in range(10):
            with pool.try_alloc(4096) as view:
                assert in_use(pool) == 1
                assert pool.try_alloc(1) is None
            assert in_use(pool) == 0
        with pytest.raises(ValueError, match="released"):
            view[0]
        with pytest.raises(KeyError), pool.try_alloc(1):
            raise KeyError
        assert in_use(pool) == 0


@no_ring
def test_any_view_of_it_keeps_it() -> None:
    pool = one_buffer()
    derivations = [
        lambda view: view[10:20],
        lambda view: view[4095:],
        lambda view: view[5:5],
        memoryview,
        lambda view: view.cast("I"),
        lambda view: view[::-2],
        lambda view: view.toreadonly(),
        lambda view: view[8:16].cast("Q")[:1],
        lambda view: view.obj,
        lambda view: iter(view[:3]),
    ]
    with no_collector():
        for derive in derivations:
            with pool.try_alloc(4096) as view:
                derived = derive(view)
            assert in_use(pool) == 1
            assert pool.try_alloc(1) is None
            del derived
            assert in_use(pool) == 0


@no_ring
def test_what_is_not_a_memoryview_keeps_it_and_the_end_of_the_block_says_so() -> None:
    with no_collector():
        pool = one_buffer()
        view = pool.try_alloc(4096)
        foreign = pickle.PickleBuffer(view)
        with pytest.raises(BufferError), view:
            pass
        del view
        assert in_use(pool) == 1
        memoryview(foreign)[0] = 1
        assert pool.try_alloc(1) is None
        del foreign
        assert in_use(pool) == 0


@no_ring
def test_a_forgotten_buffer_comes_back() -> None:
    pool = BufferPool(min_size=64, max_size=64, max_bytes_per_class=64 * 10)
    with no_collector():
        views = [pool.try_alloc(1) for _ in range(6)]
        del views[:2]
        assert in_use(pool) == 4
        holders = [Holder(views.pop()) for _ in range(3)]
        del holders
        assert in_use(pool) == 4, "a cycle needs the collector"
        gc.collect()
        assert in_use(pool) == 1
        views.append(views)  # the view is in a cycle that is only a list
        del views
        gc.collect()
        assert in_use(pool) == 0


class Reviver:
    """Dies in a cycle with its view, and its finaliser uses the view and keeps it."""

    saved: list[memoryview | None]

    def __init__(self, pool: BufferPool, saved: list[memoryview | None]) -> None:
        self.me = self
        self.pool = pool
        self.saved = saved
        self.view = pool.try_alloc(4096)

    def __del__(self) -> None:
        # Of a pool with one buffer, which this object still has.
        self.saved.append(self.pool.try_alloc(4096))
        self.view[:3] = b"abc"
        self.saved.append(self.view)


@no_ring
def test_a_finaliser_in_a_dead_cycle_can_use_and_revive_a_view() -> None:
    """The collector calls finalisers while the dead objects still reach each other: the memory must
    not be free before."""
    pool = one_buffer()
    for _ in range(20):  # in which order it calls them is its own affair
        saved: list[memoryview | None] = []
        reviver = Reviver(pool, saved)
        del reviver
        gc.collect()
        refused, view = saved
        assert refused is None
        assert in_use(pool) == 1
        assert pool.try_alloc(1) is None
        assert bytes(view[:3]) == b"abc"
        view.release()
        assert in_use(pool) == 0
        with pool.try_alloc(1):
            pass
        gc.collect()
        assert in_use(pool) == 0, "given back twice"


@no_ring
def test_collections_in_the_middle_of_everything() -> None:
    pool = BufferPool(min_size=64, max_size=128, max_bytes_per_class=64 * 64)
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for turn in range(2000):
            Holder(pool.try_alloc(1 + turn % 128))
            with pool.alloc(60) as view:
                view[:] = bytes([turn % 256]) * 60
                assert bytes(view) == bytes([turn % 256]) * 60
            for each in pool.statistics():
                assert 0 <= each.in_use <= each.capacity
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert in_use(pool) == 0
    assert sum(each.allocations for each in pool.statistics()) + pool.heap_allocations >= 2000
