"""What calls leave behind: nothing, however they end.

Rules of this file: a case is one round, run a few times and then many times. In between, blocks of
memory, objects that the garbage collector knows and, in debug builds of Python, references are
counted, with the collector switched off. So a growth is that of the rounds, and is compared with
far less than one for each of them. All of it holds with the accelerator and without.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.by_hand import park
from support.streams import (
    TINY,
    tcp_sockets,
    unix_sockets,
    unix_streams,
    until,
    until_blocked,
    waits_are_ours,
)

import trio_uring
from trio_uring import _accelerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP, ROUNDS = 100, 2000
GROWTH_MAX = ROUNDS // 4  # of anything: free lists and tables have up to some 200 blocks more


class Ends:
    """Both ends of a connection, and buffers to send from and receive into."""

    def __init__(self) -> None:
        self.left, self.right = unix_streams()
        self.into = bytearray(10)
        self.data = bytearray(b"ping")
        self.view = memoryview(bytearray(b"ping"))

    def close(self) -> None:
        for stream in (self.left, self.right):
            stream.socket.close()


async def echo(ends: Ends, data: Any) -> None:
    await ends.left.send_all(data)
    assert await ends.right.receive_some() == b"ping"


async def bytes_are_sent(ends: Ends) -> None:
    await echo(ends, b"ping")


async def lists_are_sent(ends: Ends) -> None:
    await echo(ends, [b"pi", ends.data[2:]])


async def bytearrays_are_sent(ends: Ends) -> None:
    await echo(ends, ends.data)
    ends.data.append(0)  # BufferError while it is exported
    ends.data.pop()


async def memoryviews_are_sent(ends: Ends) -> None:
    await echo(ends, ends.view)


async def bytearrays_are_received_into(ends: Ends) -> None:
    await ends.left.send_all(b"ping")
    assert await ends.right.receive_into(ends.into) == 4
    ends.into.append(0)
    ends.into.pop()


async def memoryviews_are_received_into(ends: Ends) -> None:
    await ends.left.send_all(b"ping")
    assert await ends.right.receive_into(ends.view) == 4


async def receives_wait(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.right.receive_some)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(ends.left.send_all, b"ping")


async def cancelled_while_queued(ends: Ends) -> None:
    for call in (ends.right.receive_some, lambda: ends.right.receive_into(ends.into)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught


async def cancelled_in_flight(ends: Ends) -> None:
    for call in (ends.right.receive_some, lambda: ends.right.receive_into(ends.into)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until_blocked(ends.right.socket.fileno())
            nursery.cancel_scope.cancel()


async def destroyed_while_queued(ends: Ends) -> None:
    for call in (ends.right.receive_some(), ends.right.receive_into(ends.into)):
        call.send(None)
        call.close()
        await idle()


async def destroyed_in_flight(ends: Ends) -> None:
    for call in (ends.right.receive_some(), ends.right.receive_into(ends.into)):
        await park(call)
        call.close()
        await idle()


async def thrown_into(ends: Ends) -> None:
    call = ends.right.receive_some()
    call.send(None)
    with contextlib.suppress(KeyError):
        call.throw(KeyError())
    await idle()


async def idle() -> None:
    await until(lambda: not trio_uring.current_operations(), "no operation is left")


async def never_awaited(ends: Ends) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends.right.receive_some()
        ends.right.receive_into(ends.into)
        ends.left.send_all(b"x")
        ends.left.send_all([b"x", ends.data])


async def closed_before_they_are_awaited(ends: Ends) -> None:
    ends.right.receive_some().close()
    ends.left.send_all(ends.data).close()


async def busy(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.right.receive_some)
        await until_blocked(ends.right.socket.fileno())
        for call in (ends.right.receive_some, lambda: ends.right.receive_into(ends.into)):
            with contextlib.suppress(trio.BusyResourceError):
                await call()
                pytest.fail("not busy")
        await ends.left.send_all(b"ping")


async def closed(_: Ends) -> None:
    ends = Ends()
    ends.close()
    for call in (
        ends.right.receive_some,
        lambda: ends.right.receive_into(ends.into),
        lambda: ends.left.send_all(b"x"),
        lambda: ends.left.send_all([b"x", ends.data]),
    ):
        with contextlib.suppress(trio.ClosedResourceError):
            await call()
            pytest.fail("not closed")


async def closed_while_waiting(_: Ends) -> None:
    ends = Ends()

    async def receive() -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await ends.right.receive_some()
            pytest.fail("not closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await until_blocked(ends.right.socket.fileno())
        await ends.right.aclose()
    ends.close()


async def broken(_: Ends) -> None:
    ends = Ends()
    ends.right.socket.close()
    for data in (b"x", [b"x", ends.data]):
        with contextlib.suppress(trio.BrokenResourceError):
            await ends.left.send_all(data)
            pytest.fail("not broken")
    ends.close()


async def arguments_are_wrong(ends: Ends) -> None:
    for call in (
        lambda: ends.right.receive_some(0),
        lambda: ends.right.receive_into(b"read-only"),  # type: ignore[arg-type]
        lambda: ends.left.send_all("text"),  # type: ignore[arg-type]
        lambda: ends.left.send_all([b"x", "text"]),  # type: ignore[list-item]
    ):
        with contextlib.suppress(TypeError, ValueError):
            await call()
            pytest.fail("no error")


CASES: list[Any] = [
    bytes_are_sent,
    lists_are_sent,
    bytearrays_are_sent,
    memoryviews_are_sent,
    bytearrays_are_received_into,
    memoryviews_are_received_into,
    receives_wait,
    cancelled_while_queued,
    cancelled_in_flight,
    pytest.param(destroyed_while_queued, marks=waits_are_ours),
    pytest.param(destroyed_in_flight, marks=waits_are_ours),
    pytest.param(thrown_into, marks=waits_are_ours),
    never_awaited,
    closed_before_they_are_awaited,
    busy,
    closed,
    closed_while_waiting,
    broken,
    arguments_are_wrong,
]


def reading() -> dict[str, int]:
    """How much there is, after everything that can be collected is gone."""
    gc.collect()
    found = {"blocks": sys.getallocatedblocks(), "objects": len(gc.get_objects())}
    if hasattr(sys, "gettotalrefcount"):
        found["references"] = sys.gettotalrefcount()
    return found


@contextlib.contextmanager
def nothing_grows(collected_max: int | None = None) -> Iterator[None]:
    """`collected_max`: how many objects may be left to the collector; None: any number."""
    before = reading()
    gc.disable()
    try:
        yield
        collected = gc.collect()
        after = reading()
    finally:
        gc.enable()
    grown = {what: after[what] - before[what] for what in before}
    assert all(growth < GROWTH_MAX for growth in grown.values()), grown
    assert collected_max is None or collected < collected_max, collected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_nothing_is_left(case: Callable[[Ends], Any]) -> None:
    ends = Ends()
    with contextlib.closing(ends):
        for _ in range(WARM_UP):
            await case(ends)
        with nothing_grows():
            for _ in range(ROUNDS):
                await case(ends)


async def test_short_writes_leave_nothing() -> None:
    """A send that the kernel takes in parts, and one that is cancelled in the middle."""
    sockets = unix_sockets(TINY)
    left, right = (trio_uring.SocketStream(sock) for sock in sockets)
    data = bytearray(20_000)

    async def receive() -> None:
        async for _ in right:
            pass

    async def send(times: int) -> None:
        for number in range(times):
            await left.send_all(data if number % 2 else [data, b"x"])
            with trio.CancelScope() as scope:
                scope.cancel()
                await left.send_all(data)
            data.append(0)  # BufferError while it is exported
            data.pop()

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await send(WARM_UP)
        with nothing_grows():
            await send(ROUNDS)
        nursery.cancel_scope.cancel()


async def test_calls_of_sockets_leave_nothing() -> None:
    left, right = (trio_uring.socket.from_stdlib_socket(sock) for sock in tcp_sockets())
    into = bytearray(10)

    async def ping_pong(times: int) -> None:
        for _ in range(times):
            assert await left.send(b"ping") == 4
            assert await right.recv(10) == b"ping"
            assert await left.send(into) == 10
            assert await right.recv_into(into) == 10
            with trio.CancelScope() as scope:
                scope.cancel()
                await right.recv(10)
            assert scope.cancelled_caught

    with left, right:
        await ping_pong(WARM_UP)
        with nothing_grows():
            await ping_pong(ROUNDS)


async def test_the_collector_has_nothing_to_do() -> None:
    """No cycles: with the accelerator each call is freed as soon as it is over."""
    ends = Ends()

    async def ping_pong(times: int) -> None:
        for _ in range(times):
            await bytes_are_sent(ends)
            await cancelled_while_queued(ends)

    with contextlib.closing(ends):
        await ping_pong(WARM_UP)
        with nothing_grows(GROWTH_MAX if _accelerator.hot is not None else None):
            await ping_pong(ROUNDS)
