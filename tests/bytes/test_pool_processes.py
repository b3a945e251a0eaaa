"""BufferPool in threads, in forked children, and at the end of the interpreter.

Rules of this file: "in use" is compared with what the test itself holds, never with an earlier
answer of the pool.
"""

from __future__ import annotations

import mmap
import queue
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.pool import address, in_use, no_ring
from support.streams import pattern

from trio_uring._bytes import pool as _pool
from trio_uring._bytes.pool import BufferClassStatistics, BufferPool

if TYPE_CHECKING:
    from collections.abc import Iterator

# -- processes


def run_python(code: str) -> None:
    """Runs `code` in an interpreter of its own. It must end well, and say nothing."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@no_ring
def test_the_end_of_the_interpreter_with_buffers_everywhere() -> None:
    run_python(
        """
import atexit, builtins, sys, threading, time
from trio_uring._bytes.pool import BufferPool
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
from trio_uring._bytes import pool as _pool
# goes after every module, but before sys.stderr
sys._keep = _pool, [_pool.BufferPool().alloc(10) for _ in range(3)]
"""
    )


@no_ring
def test_a_forked_child_has_a_copy_of_its_own() -> None:
    run_python(
        """
import os
from trio_uring._bytes.pool import BufferPool
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
    assert pool.statistics() == (
        BufferClassStatistics(size=64, capacity=2, in_use=2, allocations=2, exhausted=0),
    )
    assert pool.try_alloc(1) is None
    del views[:]
    assert in_use(pool) == 0
