"""current_statistics and current_operations, and using a stream outside of its run.

Rules: counts are compared with what the test did, not with themselves.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import (
    TINY,
    clog,
    closing,
    count_of,
    drain,
    on_ring,
    unix_sockets,
    unix_streams,
    until_blocked,
)

import trio_uring
from trio_uring import SocketStream, current_operations, current_statistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MESSAGES = 500


async def test_counts_add_up() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        for _ in range(MESSAGES):
            await left.send_all(b"12345")
            assert await right.receive_exactly(5) == b"12345"
        await left.send_all([b"ab", b"cd"])
        statistics = current_statistics()
        assert statistics.operations["SEND"] == trio_uring.OperationCounts(
            MESSAGES, MESSAGES, 0, 0, 0
        )
        assert statistics.operations["SENDMSG"] == trio_uring.OperationCounts(1, 1, 0, 0, 0)
        assert statistics.operations["RECV"] == trio_uring.OperationCounts(
            MESSAGES, MESSAGES, 0, 0, 0
        )
        assert (statistics.bytes_sent, statistics.bytes_received) == (
            5 * MESSAGES + 4,
            5 * MESSAGES,
        )
        assert statistics.completions + statistics.direct == 2 * MESSAGES + 1
        assert statistics.enters <= statistics.passes
        assert statistics.completions_per_enter == statistics.completions / max(
            statistics.enters, 1
        )
        assert (statistics.short_writes, statistics.cq_overflows) == (0, 0)
        assert statistics.backend == trio_uring.backend_info().backend
        assert bool(statistics.setup_flags) == (statistics.backend == "uring")


async def test_what_is_blocked_cancelled_and_failed_is_counted() -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some)
                await until_blocked(left.fileno())
                assert count_of("RECV").in_flight == current_statistics().in_flight == 1
                nursery.cancel_scope.cancel()
        peer.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")
        assert count_of("RECV") == trio_uring.OperationCounts(3, 0, 3, 0, 0)
        assert count_of("SEND") == trio_uring.OperationCounts(1, 0, 0, 1, 0)
        assert count_of("ASYNC_CANCEL").submitted == (3 if on_ring() else 0)


async def test_short_writes_are_counted() -> None:
    left, peer = unix_sockets(TINY)
    stream, got = SocketStream(left), 0
    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(100_000))
        while got < 100_000:
            got += len(drain(peer))
            await trio.lowlevel.checkpoint()
        assert current_statistics().short_writes == count_of("SEND").completed - 1 > 0


async def test_snapshots_are_frozen() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        await left.send_all(b"x")
        before = current_statistics()
        copy = dataclasses.asdict(before)
        await left.send_all([b"x", b"y"])
        assert dataclasses.asdict(before) == copy
        assert current_statistics() != before
        for snapshot, name in ((before, "enters"), (before.operations["SEND"], "submitted")):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(snapshot, name, 5)


async def test_operations_tell_who_waits_for_what() -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    clog(left.fileno())
    sends, state = ("POLL_ADD", "SUBMITTED") if on_ring() else ("SENDMSG", "WAITING")
    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_into, bytearray(1), name="the reader")
        nursery.start_soon(stream.send_all, [b"a", b"b"], name="the writer")
        await until_blocked(left.fileno(), 2)
        found = {one.opcode: one for one in current_operations()}
        assert set(found) == {"RECV", sends}
        assert (found["RECV"].task_name, found[sends].task_name) == ("the reader", "the writer")
        assert {one.fd for one in found.values()} == {left.fileno()}
        assert all(one.age >= 0 and one.state == state for one in found.values())
        # The reader's; a send holds nothing while it waits for room.
        assert current_statistics().pinned == on_ring()
        later = {one.opcode: one for one in current_operations()}
        assert later["RECV"].age >= found["RECV"].age
        with pytest.raises(dataclasses.FrozenInstanceError):
            found["RECV"].fd = 3  # type: ignore[misc]
        nursery.cancel_scope.cancel()
    assert current_operations() == []
    assert current_statistics().pinned == 0


# -- other runs, threads, and none


@pytest.mark.parametrize("look", [current_statistics, current_operations])
def test_outside_of_trio(look: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"run context|trio"):
        look()


def calls(stream: SocketStream) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: stream.send_all(b"x"),
        stream.receive_some,
        lambda: stream.send_all([b"x", b"y"]),
        lambda: stream.receive_into(bytearray(1)),
        stream.wait_send_all_might_not_block,
    ]


def test_a_stream_used_without_trio() -> None:
    left, right = unix_sockets()
    stream = SocketStream(left)
    with left, right:
        for call in calls(stream):
            with pytest.raises(RuntimeError, match=r"run context|trio"):
                call().__await__().send(None)
        assert drain(right) == b""


async def refusals(stream: SocketStream, words: str) -> list[int]:
    """Which of `calls` raised a RuntimeError that says `words`."""
    found = []
    for index, call in enumerate(calls(stream)):
        try:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
        except RuntimeError as exc:
            if words in str(exc):
                found.append(index)
    return found


async def test_a_stream_used_in_another_threads_run() -> None:
    """The run that first used it owns it, for every operation: two rings may not work on one
    stream."""
    left, right = unix_streams()
    async with closing(left, right):
        await left.send_all(b"mine")
        assert await right.receive_some() == b"mine"
        await right.send_all(b"reply")
        assert await left.receive_some() == b"reply"
        found = await trio.to_thread.run_sync(trio.run, refusals, left, "another thread")
        await left.send_all(b"still mine")
        assert await right.receive_some() == b"still mine"
        assert found == list(range(len(calls(left))))


def test_two_runs_in_two_threads_at_once() -> None:
    results: list[bytes] = []

    async def ping_pong() -> None:
        left, right = unix_streams()
        async with closing(left, right):
            for _ in range(300):
                await left.send_all(b"x")
                results.append(await right.receive_some())

    threads = [threading.Thread(target=trio.run, args=(ping_pong,)) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == [b"x"] * 600


def test_a_stream_moves_to_the_next_run() -> None:
    left, right = unix_sockets()

    async def use(stream: SocketStream, last: bool) -> None:
        await stream.send_all(b"x")
        await stream.send_all([b"y", b"z"])
        assert drain(right) == b"xyz"
        right.send(b"12")
        assert await stream.receive_exactly(1) == b"1"
        assert await stream.receive_into(bytearray(5)) == 1
        if last:
            await stream.aclose()

    stream = SocketStream(left)
    for last in (False, False, True):
        trio.run(use, stream, last)
    assert left.fileno() == -1
    right.close()


def test_a_stream_made_in_one_run_and_first_used_in_the_next() -> None:
    left, right = unix_sockets()

    async def make() -> SocketStream:
        return SocketStream(left)

    async def use(stream: SocketStream) -> None:
        async with closing(stream):
            await stream.send_all(b"fine")

    trio.run(use, trio.run(make))
    assert drain(right) == b"fine"
    right.close()
