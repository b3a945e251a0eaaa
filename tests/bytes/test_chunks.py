"""ChunkQueue against plain bytes: whatever is done to it, it holds the same bytes in order.

Rules: no I/O. The model is one bytes object, and each of its operations is one slice.
"""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.long_cases import examples

from trio_uring._bytes.chunks import MERGE_BELOW, MERGED_MAX, ChunkQueue

pytestmark = pytest.mark.no_ring

# Sizes around those at which a chunk is merged; two letters, so that delimiters match across
# chunks.
counts = st.one_of(
    st.integers(0, 3),
    st.integers(0, 40),
    st.sampled_from(
        [MERGE_BELOW - 1, MERGE_BELOW, MERGE_BELOW + 1, MERGED_MAX - 1, MERGED_MAX, MERGED_MAX + 1]
    ),
)
words = st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=5).map(b"".join)


class ChunkQueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = ChunkQueue()
        self.model = b""
        self.count = 0
        self.given: list[tuple[bytes, bytes]] = []  # what was appended or prepended, and a copy

    def fresh(self, size: int) -> bytes:
        """`size` bytes that are not like those before, mostly."""
        self.count += 1
        return (b"%04d" % self.count * (size // 4 + 1))[:size]

    def add(self, chunk: bytes) -> None:
        self.given.append((chunk, bytes(bytearray(chunk))))

    @rule(chunk=words, times=st.integers(1, 4))
    def append_words(self, chunk: bytes, times: int) -> None:
        for _ in range(times):
            self.add(chunk)
            self.queue.append(chunk)
            self.model += chunk

    @rule(size=counts)
    def append(self, size: int) -> None:
        chunk = self.fresh(size)
        self.add(chunk)
        self.queue.append(chunk)
        self.model += chunk

    @rule(size=counts)
    def prepend(self, size: int) -> None:
        chunk = self.fresh(size)
        self.add(chunk)
        self.queue.prepend(chunk)
        self.model = chunk + self.model

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def put_back_what_was_taken(self, data: st.DataObject) -> None:
        taken = self.queue.take(data.draw(st.integers(1, len(self.model))))
        self.queue.prepend(taken)

    @rule(data=st.data(), most=counts)
    def take(self, data: st.DataObject, most: int) -> None:
        count = (
            data.draw(st.integers(0, len(self.model))) if most < 3 else min(most, len(self.model))
        )
        part = self.queue.take(count)
        assert part == self.model[:count]
        assert type(part) is bytes
        self.model = self.model[count:]

    @rule()
    def take_all(self) -> None:
        part = self.queue.take_all()
        assert part == self.model
        assert type(part) is bytes
        self.model = b""

    @rule(count=counts)
    def peek(self, count: int) -> None:
        part = self.queue.peek(count)
        assert part == self.model[:count]
        assert type(part) is bytes

    @rule(data=st.data(), delimiter=words.filter(bool), end=counts)
    def find(self, data: st.DataObject, delimiter: bytes, end: int) -> None:
        start = data.draw(st.integers(0, end))
        assert self.queue.find(delimiter, start, end) == self.model.find(delimiter, start, end)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def find_what_is_there(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.model) - 1))
        delimiter = self.model[at : at + data.draw(st.integers(1, 6))]
        found = self.queue.find(delimiter, 0, len(self.model))
        assert found == self.model.find(delimiter)
        assert 0 <= found <= at
        assert self.queue.find(delimiter, at, at + len(delimiter)) == at
        assert self.queue.find(delimiter, at, at + len(delimiter) - 1) == -1

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.model = b""

    @invariant()
    def size_is_right(self) -> None:
        assert self.queue.size == len(self.model)

    def teardown(self) -> None:
        assert self.queue.take_all() == self.model
        assert self.queue.size == 0
        assert self.queue.peek(10) == b""
        assert self.queue.find(b"a", 0, 10) == -1
        for chunk, copy in self.given:
            assert chunk == copy  # it never changes what it was given


TestChunkQueue = ChunkQueueMachine.TestCase
TestChunkQueue.settings = settings(max_examples=examples(300), stateful_step_count=40)


def test_a_whole_chunk_is_taken_without_a_copy() -> None:
    queue = ChunkQueue()
    first, second = b"x" * 1000, b"y" * 1000
    queue.append(first)
    queue.append(second)
    assert queue.peek(1000) is first
    assert queue.take(1000) is first
    queue.prepend(first)
    assert queue.take(1000) is first
    assert queue.take_all() is second


def test_chunks_that_were_taken_are_let_go() -> None:
    size = 2**20
    tracemalloc.start()
    try:
        queue = ChunkQueue()
        for _ in range(4):
            queue.append(bytes(size))
        for left in (3, 2, 1, 0):
            assert len(queue.take(size // 2)) == len(queue.take(size // 2)) == size // 2
            assert tracemalloc.get_traced_memory()[0] < left * size + 2**14
        for _ in range(size // 64):
            queue.append(bytes(64))
        assert tracemalloc.get_traced_memory()[0] < 1.25 * size
        for _ in range(size // 64 - 1):
            queue.take(64)
        assert tracemalloc.get_traced_memory()[0] < 2 * MERGED_MAX
        queue.clear()
        assert tracemalloc.get_traced_memory()[0] < 2**14
    finally:
        tracemalloc.stop()


def test_a_queue_that_is_nearly_empty_all_the_time_holds_little() -> None:
    queue = ChunkQueue()
    tracemalloc.start()
    try:
        queue.append(b"abc")
        for _ in range(5000):
            queue.append(b"0123456789")
            queue.take(10)
        assert queue.size == 3
        assert tracemalloc.get_traced_memory()[0] < 8 * MERGE_BELOW
    finally:
        tracemalloc.stop()
