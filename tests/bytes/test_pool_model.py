"""BufferPool against a model: no two live buffers overlap.

Rules of this file: "in use" is compared with what the test itself holds, never with an earlier
answer of the pool.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.long_cases import examples
from support.pool import Holder, address, in_use, no_ring

from trio_uring._bytes.pool import BufferPool

if TYPE_CHECKING:
    pass

# -- a model


class Model(RuleBasedStateMachine):
    """Buffers are dictionaries here: what was written into each, and the views that are left of it,
    by their place in it."""

    @initialize(
        sizes=st.sampled_from([(64, 64), (64, 256), (128, 512), (4096, 8192)]),
        limit=st.sampled_from([1, 256, 1024, 16384]),
    )
    def make(self, sizes: tuple[int, int], limit: int) -> None:
        self.pool = BufferPool(min_size=sizes[0], max_size=sizes[1], max_bytes_per_class=limit)
        self.capacity = {
            size: max(1, limit // size)
            for size in (sizes[0] << n for n in range(8))
            if size <= sizes[1]
        }
        self.live: list[dict[str, Any]] = []
        self.garbage: list[int] = []  # classes of the buffers that wait for the collector
        self.made = self.refused = self.oversized = self.heap = 0
        gc.disable()
        # so that the collections here do not go through all of pytest's and hypothesis's objects
        gc.freeze()

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
        size=st.one_of(
            st.integers(1, 9000),
            st.integers(1, 300),
            st.sampled_from([64, 65, 128, 256, 512, 4096, 8192]),
        ),
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
            assert [each.in_use for each in statistics] == [
                self.used(size) for size in self.capacity
            ]
            assert sum(each.allocations for each in statistics) == self.made
            assert sum(each.exhausted for each in statistics) == self.refused
            assert (self.pool.oversized, self.pool.heap_allocations) == (self.oversized, self.heap)


TestModel = no_ring(Model.TestCase)
TestModel.settings = settings(max_examples=examples(150), stateful_step_count=60)
