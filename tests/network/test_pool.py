"""BufferPool: what it hands out, when it comes back, and that nobody gets memory that somebody else can still reach.

Rules of this file: "in use" is compared with what the test itself holds, never with an earlier answer of the pool. A test that
wants the garbage collector calls it, and the others run without: what they expect happens at once. Addresses are asked for
through ctypes, and only to compare them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import mmap
import pickle
import queue
import random
import re
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from streams.support import TINY, clog, closing, drain, passes, pattern, unix_sockets, until, until_blocked
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring import SocketStream, _pool
from trio_uring._pool import BufferClassStatistics, BufferPool

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
        assert [b - a for a, b in itertools.pairwise(addresses)] == [each.size] * (each.capacity - 1)
        assert pool.try_alloc(each.size) is None


# -- bounds


@no_ring
def test_the_classes_of_a_pool_by_default() -> None:
    statistics = BufferPool().statistics()
    assert [each.size for each in statistics] == [4096 << n for n in range(9)]
    assert [each.capacity for each in statistics] == [4096 >> n for n in range(9)]
    assert statistics[0] == BufferClassStatistics(size=4096, capacity=4096, in_use=0, allocations=0, exhausted=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics[0].in_use = 1


@no_ring
@pytest.mark.parametrize(("limit", "capacities"), [(1, [1, 1, 1]), (64, [1, 1, 1]), (300, [4, 2, 1]), (1000, [15, 7, 3])])
def test_a_class_has_what_fits_into_its_bytes_and_at_least_one(limit: int, capacities: list[int]) -> None:
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
    assert pool.statistics()[0] == BufferClassStatistics(size=64, capacity=4, in_use=4, allocations=5, exhausted=4)


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
    assert pool.statistics() == (BufferClassStatistics(size=4096, capacity=1, in_use=0, allocations=0, exhausted=0),)
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
        self.saved.append(self.pool.try_alloc(4096))  # of a pool with one buffer, which this object still has
        self.view[:3] = b"abc"
        self.saved.append(self.view)


@no_ring
def test_a_finaliser_in_a_dead_cycle_can_use_and_revive_a_view() -> None:
    """The collector calls finalisers while the dead objects still reach each other: the memory must not be free before."""
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


# -- processes


def run_python(code: str) -> None:
    """Runs `code` in an interpreter of its own. It must end well, and say nothing."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@no_ring
def test_the_end_of_the_interpreter_with_buffers_everywhere() -> None:
    run_python(
        """
import atexit, builtins, sys, threading, time
from trio_uring._pool import BufferPool
pool = BufferPool()
view = pool.alloc(10)
class Cycle: pass
cycle = Cycle()
cycle.me, cycle.view, cycle.pool = cycle, pool.alloc(5000), pool
sys.keep = pool.alloc(10_000)[5:]
builtins.keep = pool.alloc(20_000)
threading.keep = [pool.alloc(20_000)]
atexit.register(lambda view=pool.alloc(30_000): view[:1])
class Late:
    def __init__(self): self.pool, self.view = BufferPool(), pool.alloc(7)
    def __del__(self): self.pool.alloc(9)[:] = self.view.tobytes() + b"12"
builtins.late = Late()
started = threading.Event()
def churn():
    while True:
        with pool.alloc(100) as mine:
            mine[:] = bytes(100)
        started.set()
threading.Thread(target=churn, daemon=True).start()
started.wait()
"""
    )


@no_ring
def test_buffers_that_die_after_the_module_was_cleared() -> None:
    run_python(
        """
import sys
from trio_uring import _pool
sys._keep = _pool, [_pool.BufferPool().alloc(10) for _ in range(3)]  # goes after every module, but before sys.stderr
"""
    )


@no_ring
def test_a_forked_child_has_a_copy_of_its_own() -> None:
    run_python(
        """
import os
from trio_uring._pool import BufferPool
pool = BufferPool()
view = pool.alloc(4096)
view[:6] = b"parent"
child = os.fork()
if not child:
    same = view[:6] == b"parent"
    view[:6] = b"child!"
    with pool.alloc(4096) as other:
        other[:6] = b"child!"
    os._exit(0 if same and pool.statistics()[0].in_use == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bytes(view[:6]) == b"parent"
assert bytes(pool.alloc(6)) == bytes(6)
"""
    )


# -- threads


@pytest.fixture
def often_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_threads(*targets: Any) -> None:
    """Runs each in a thread, and raises what one of them raised."""
    errors: list[BaseException] = []

    def run(target: Any) -> None:
        try:
            target()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=[target]) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exc in errors:
        raise exc


@no_ring
@pytest.mark.usefixtures("often_switching")
def test_threads_that_allocate_and_let_go_all_the_time() -> None:
    pool = BufferPool(min_size=64, max_size=256, max_bytes_per_class=256)
    counts: list[tuple[int, int]] = []

    def hammer(number: int) -> None:
        draw, held, granted, refused = random.Random(number), [], 0, 0
        for turn in range(1500):
            size = draw.randint(1, 256)
            view = pool.try_alloc(size)
            if view is None:
                refused += 1
            else:
                mark = bytes([number, turn % 256]) * 128
                view[:] = mark[:size]
                held.append((view, mark[:size]))
                granted += 1
            while held and (len(held) > 2 or draw.random() < 0.6):
                view, data = held.pop(draw.randrange(len(held)))
                assert view == data, "another thread wrote into this buffer"
                if draw.random() < 0.5:
                    view.release()
            view = None
        for view, data in held:
            assert view == data
        counts.append((granted, refused))

    run_threads(*[lambda number=number: hammer(number) for number in range(6)])
    statistics = pool.statistics()
    assert [each.in_use for each in statistics] == [0, 0, 0]
    assert sum(each.allocations for each in statistics) == sum(granted for granted, _ in counts) > 0
    assert sum(each.exhausted for each in statistics) == sum(refused for _, refused in counts) > 0
    views = [pool.try_alloc(each.size) for each in statistics for _ in range(each.capacity)]
    assert None not in views
    assert len({address(view) for view in views}) == 4 + 2 + 1, "a buffer is free twice"


@no_ring
@pytest.mark.usefixtures("often_switching")
def test_a_buffer_may_be_let_go_by_another_thread() -> None:
    pool, handed = BufferPool(max_bytes_per_class=4 * 4096), queue.Queue(maxsize=2)

    def give() -> None:
        for turn in range(500):
            view = pool.alloc(100)
            view[:] = pattern(100, 8 * turn)
            handed.put(view)
            del view
        handed.put(None)

    def take() -> None:
        for turn in range(500):
            with handed.get() as view:
                assert view == pattern(100, 8 * turn)
        assert handed.get() is None

    run_threads(give, take)
    assert in_use(pool) == 0
    assert pool.statistics()[0].allocations + pool.heap_allocations == 500


@no_ring
def test_threads_that_use_a_class_first_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)
    make = mmap.mmap

    def slowly(*args: Any, **options: Any) -> mmap.mmap:
        both.wait()
        return make(*args, **options)

    monkeypatch.setattr(_pool.mmap, "mmap", slowly)
    pool, views = BufferPool(min_size=64, max_size=64, max_bytes_per_class=128), []
    run_threads(*[lambda: views.append(pool.try_alloc(64))] * 2)
    assert abs(address(views[0]) - address(views[1])) == 64
    assert pool.statistics() == (BufferClassStatistics(size=64, capacity=2, in_use=2, allocations=2, exhausted=0),)
    assert pool.try_alloc(1) is None
    del views[:]
    assert in_use(pool) == 0


# -- a model


class Model(RuleBasedStateMachine):
    """Buffers are dictionaries here: what was written into each, and the views that are left of it, by their place in it."""

    @initialize(
        sizes=st.sampled_from([(64, 64), (64, 256), (128, 512), (4096, 8192)]), limit=st.sampled_from([1, 256, 1024, 16384])
    )
    def make(self, sizes: tuple[int, int], limit: int) -> None:
        self.pool = BufferPool(min_size=sizes[0], max_size=sizes[1], max_bytes_per_class=limit)
        self.capacity = {size: max(1, limit // size) for size in (sizes[0] << n for n in range(8)) if size <= sizes[1]}
        self.live: list[dict[str, Any]] = []
        self.garbage: list[int] = []  # classes of the buffers that wait for the collector
        self.made = self.refused = self.oversized = self.heap = 0
        gc.disable()
        gc.freeze()  # so that the collections here do not go through all of pytest's and hypothesis's objects

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.live.clear()
            gc.collect()
            gc.unfreeze()
            gc.enable()
            assert in_use(self.pool) == 0
            for size, capacity in self.capacity.items():
                views = [self.pool.try_alloc(size) for _ in range(capacity)]
                assert None not in views
                assert len({address(view) for view in views}) == capacity

    def class_of(self, size: int) -> int | None:
        return min((each for each in self.capacity if each >= size), default=None)

    def used(self, size: int) -> int:
        return sum(each["class"] == size for each in self.live) + self.garbage.count(size)

    @rule(
        size=st.one_of(st.integers(1, 9000), st.integers(1, 300), st.sampled_from([64, 65, 128, 256, 512, 4096, 8192])),
        bounded=st.booleans(),
    )
    def allocate(self, size: int, bounded: bool) -> None:
        wanted = self.class_of(size)
        free = wanted is not None and self.used(wanted) < self.capacity[wanted]
        view = self.pool.try_alloc(size) if bounded else self.pool.alloc(size)
        self.oversized += wanted is None
        self.refused += wanted is not None and not free
        self.made += free
        self.heap += not free and not bounded
        if bounded and not free:
            assert view is None
            return
        assert (len(view), view.format, view.readonly) == (size, "B", False)
        number = self.made + self.heap
        data = (b"%07d," % number * (size // 8 + 1))[:size]
        view[:] = data
        self.live.append({"class": wanted if free else None, "data": data, "views": [(0, view)]})

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 999), cut=st.tuples(st.integers(0, 9000), st.integers(0, 9000)))
    def cut(self, which: int, cut: tuple[int, int]) -> None:
        views = self.live[which % len(self.live)]["views"]
        start, view = views[which % len(views)]
        first, last = sorted(place % (len(view) + 1) for place in cut)
        views.append((start + first, view[first:last]))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 999), release=st.booleans())
    def let_go(self, which: int, release: bool) -> None:
        """One view, or the only one: then the buffer is free at once."""
        index = which % len(self.live)
        views = self.live[index]["views"]
        _, view = views.pop(which % len(views))
        if release:
            view.release()
        if not views:
            del self.live[index]

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 999))
    def forget_in_a_cycle(self, which: int) -> None:
        buffer = self.live.pop(which % len(self.live))
        for _, view in buffer["views"]:
            Holder(view)
        if buffer["class"] is not None:
            self.garbage.append(buffer["class"])

    @rule()
    def collect(self) -> None:
        gc.collect()
        self.garbage.clear()

    @invariant()
    def every_view_shows_what_was_written_into_its_buffer(self) -> None:
        for buffer in getattr(self, "live", ()):
            for start, view in buffer["views"]:
                assert view == buffer["data"][start : start + len(view)]

    @invariant()
    def the_counts_are_the_models(self) -> None:
        if hasattr(self, "pool"):
            statistics = self.pool.statistics()
            assert {each.size: each.capacity for each in statistics} == self.capacity
            assert [each.in_use for each in statistics] == [self.used(size) for size in self.capacity]
            assert sum(each.allocations for each in statistics) == self.made
            assert sum(each.exhausted for each in statistics) == self.refused
            assert (self.pool.oversized, self.pool.heap_allocations) == (self.oversized, self.heap)


TestModel = no_ring(Model.TestCase)
TestModel.settings = settings(max_examples=150, stateful_step_count=60)


# -- on a stream


async def test_a_buffer_that_the_kernel_receives_into_is_in_use_until_it_is_done() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, counts = SocketStream(left), []

    async def receive() -> None:
        counts.append(await stream.receive_into(pool.try_alloc(4096)))  # nobody but the call has the view

    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await until_blocked(left.fileno())
        for _ in range(5):
            gc.collect()
            assert in_use(pool) == 1
            assert pool.try_alloc(1) is None
            await trio.lowlevel.checkpoint()
        peer.send(b"hello")
        await until(lambda: counts, "received")
        assert counts == [5]
        assert in_use(pool) == 0
        with pool.try_alloc(5) as view:
            assert view == b"hello", "it was this buffer that the kernel wrote into"


async def test_a_view_that_its_owner_released_while_the_kernel_has_it() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, counts = SocketStream(left), []

    async def receive(view: memoryview) -> None:
        counts.append(await stream.receive_into(view))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        with pool.try_alloc(4096) as view:
            rest = view[3:]
            nursery.start_soon(receive, view)
            await until_blocked(left.fileno())
        del view
        assert in_use(pool) == 1
        peer.send(b"abcdef")
        await until(lambda: counts, "received")
        assert rest[:3] == b"def"
        assert in_use(pool) == 1
        rest.release()
        assert in_use(pool) == 0


@pytest.mark.parametrize("how", ["cancelled", "timeout", "closed", "end of stream"])
async def test_a_receive_that_ends_otherwise_gives_the_buffer_back(how: str) -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, ended = SocketStream(left), []

    async def receive(scope: trio.CancelScope) -> None:
        with scope, pool.try_alloc(4096) as view:
            ended.append(in_use(pool))
            with contextlib.suppress(trio.ClosedResourceError, trio.TooSlowError):
                await stream.receive_into(view, timeout=0.001 if how == "timeout" else None)
        ended.append(in_use(pool))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(receive, scope)
        await until(lambda: ended, "started")
        if how != "timeout":
            await until_blocked(left.fileno())
            assert pool.try_alloc(1) is None
        if how == "cancelled":
            scope.cancel()
        elif how == "closed":
            await stream.aclose()
        elif how == "end of stream":
            peer.close()
    assert ended == [1, 0]


async def park(coro: Any) -> None:
    """Runs a call by hand until it waits for the kernel, and its operation has been submitted."""
    while not isinstance(coro.send(None), WaitTaskRescheduled):
        await trio.lowlevel.checkpoint()
    await until(lambda: not trio_uring.current_statistics().queued, "submitted")


async def test_a_destroyed_receive_keeps_the_buffer_until_the_kernel_has_let_go() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer):
        coro = stream.receive_into(pool.try_alloc(4096))
        await park(coro)
        assert trio_uring.current_statistics().pinned == 1
        coro.close()
        del coro
        gc.collect()
        assert trio_uring.current_statistics().in_flight == 1
        assert in_use(pool) == 1
        assert pool.try_alloc(1) is None
        await until(lambda: in_use(pool) == 0, "the buffer is back")
        assert trio_uring.current_statistics().pinned == 0
        peer.send(b"after")
        with pool.try_alloc(100) as view:
            assert await stream.receive_into(view) == 5
            assert view[:5] == b"after"
        assert in_use(pool) == 0


async def test_buffers_that_are_being_sent_are_in_use_until_the_kernel_has_them_all() -> None:
    left, peer = unix_sockets(TINY)
    stream, done = SocketStream(left), []
    pool = BufferPool(min_size=4096, max_size=2**16, max_bytes_per_class=2**16)

    async def send() -> None:
        with pool.try_alloc(10) as header, pool.try_alloc(60_000) as body:
            header[:], body[:] = b"0123456789", pattern(60_000)
            await stream.send_all([header, body, header[:5]])
        done.append(in_use(pool))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        clogged = clog(left.fileno())
        nursery.start_soon(send)
        await until_blocked(left.fileno())
        assert in_use_by_size(pool) == {4096: 1, 65536: 1}
        assert pool.try_alloc(60_000) is None
        with pool.try_alloc(4096) as other:
            other[:] = b"\xff" * 4096  # not the header's memory
        received = bytearray()
        while not done:
            assert in_use_by_size(pool) == {4096: 1, 65536: 1}
            received += drain(peer)
            await trio.lowlevel.checkpoint()
        assert done == [0]
        received += drain(peer)
    assert received[clogged:] == b"0123456789" + pattern(60_000) + b"01234"


async def test_a_cancelled_send_gives_its_buffers_back() -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    pool = BufferPool(min_size=4096, max_size=4096, max_bytes_per_class=8192)
    async with closing(stream, peer):
        clog(left.fileno())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, [pool.try_alloc(4096), pool.try_alloc(4096)])
                await until_blocked(left.fileno())
                assert in_use(pool) == 2
                assert pool.try_alloc(1) is None
                scope.cancel()
        assert scope.cancelled_caught
        gc.collect()  # the exception's traceback and the frames in it may be a cycle
        assert in_use(pool) == 0


async def relay(source: SocketStream, target: SocketStream, pool: BufferPool, cuts: random.Random) -> None:
    while True:
        with pool.alloc(cuts.randint(1, 3000)) as view:
            with trio.move_on_after(0 if cuts.random() < 0.1 else 1000):
                count = await source.receive_into(view)
                if not count:
                    return await target.send_eof()
                with trio.CancelScope(shield=True):
                    await target.send_all([view[: count // 2], view[count // 2 : count]])


async def test_many_relays_through_one_small_pool_mix_nothing_up() -> None:
    """Each relays a text of its own through buffers of a pool that is often exhausted, and is now and then cancelled."""
    pool = BufferPool(min_size=1024, max_size=4096, max_bytes_per_class=4096)
    texts = [(b"%03d;" % number) * 8000 for number in range(12)]
    results: dict[int, bytes] = {}

    async def one(number: int) -> None:
        (a, b), (c, d) = unix_sockets(), unix_sockets()
        streams = [SocketStream(sock) for sock in (a, b, c, d)]
        async with closing(*streams), trio.open_nursery() as nursery:
            nursery.start_soon(relay, streams[1], streams[2], pool, random.Random(number))
            nursery.start_soon(send, streams[0], texts[number])
            results[number] = b"".join([chunk async for chunk in streams[3]])

    async def send(stream: SocketStream, text: bytes) -> None:
        await stream.send_all(text)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        for number in range(len(texts)):
            nursery.start_soon(one, number)
    assert [results[number] for number in range(len(texts))] == texts
    await passes(2)
    gc.collect()
    assert in_use(pool) == 0
    assert pool.heap_allocations > 0
    assert sum(each.allocations for each in pool.statistics()) > 100
