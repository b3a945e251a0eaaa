"""Metered and MeteredStream: what they count. What holds for every observer is in test_observed.py.

Rules of this file: tests without a ring run under run_deterministically, on a clock that jumps. No
test sleeps and hopes.
"""

from __future__ import annotations

import array
import builtins
import collections
import errno
import socket
import ssl
import sys
import types
from typing import Any

import pytest
import trio
import trio.testing
from support.fakes import Fake, every_call, without_ring
from support.streams import receive_all

import trio_uring
from trio_uring._network.network import NetworkConfig, NetworkStream
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically
from trio_uring._network.sockets import TrioNetwork, UringNetwork
from trio_uring._observe.networks import Audited, Metered
from trio_uring._observe.streams import MeteredStream
from trio_uring.metrics import OPERATIONS, Metrics, error_kind

ANYWHERE = ("127.0.0.1", 0)


# -- what is counted


@without_ring
async def test_bytes_of_every_kind_of_buffer_and_call():
    left, right = trio.testing.memory_stream_pair()
    sender, receiver = MeteredStream(left), MeteredStream(right)
    numbers = array.array("I", [1, 2, 3])
    await sender.send_all(b"12345")
    await sender.send_all(bytearray(7))
    await sender.send_all([b"ab", memoryview(b"cd"), numbers])
    await sender.send_all_vectored(iter([b"ab", b"", b"c"]))
    await sender.send_all(b"")
    data = await receiver.receive_some(6)
    data += await receiver.receive_some()
    await sender.aclose()
    data += await receive_all(receiver)
    assert data == b"12345" + bytes(7) + b"abcd" + numbers.tobytes() + b"abc"
    counted = sender.metrics.snapshot()
    assert (counted.bytes_out, counted.bytes_in) == (sent := 19 + 3 * numbers.itemsize, 0)
    assert (counted.operations["send"], counted.successes["send"]) == (5, 5)
    counted = receiver.metrics.snapshot()
    assert (counted.bytes_out, counted.bytes_in) == (0, sent)
    assert counted.operations["receive"] == counted.successes["receive"] == 3  # the last is the end
    assert (counted.errors, counted.connections_in, counted.open_in, counted.open_out) == (
        {},
        0,
        0,
        0,
    )


@without_ring
async def test_a_sequence_that_is_no_list_and_an_array():
    stream = MeteredStream(Fake())
    await stream.send_all(collections.deque([b"ab", b"c"]))
    await stream.send_all(array.array("H", [1, 2]))
    assert stream.metrics.snapshot().bytes_out == 7


@without_ring
async def test_bytes_of_every_receive():
    stream = MeteredStream(Fake())
    expected = 0
    for call, size in [
        (stream.receive_some(), 4),
        (stream.receive_exactly(7), 7),
        (stream.receive_until(b"x", 9), 5),
        (stream.receive_into(bytearray(10)), 2),
        (stream.receive_into(array.array("I", [0, 0])), 2),
    ]:
        await call
        expected += size
        assert stream.metrics.snapshot().bytes_in == expected
    stream.peek(3)
    assert stream.metrics.snapshot().bytes_in == expected
    assert stream.metrics.snapshot().operations["receive"] == 5


@without_ring
async def test_received_bytes_count_once_though_an_exact_read_met_them_before():
    network = Metered(SimulatedNetwork(short=0.0))
    async with await network.bind(ANYWHERE) as listener:
        client = await network.dial(listener.local_address)
        server = await listener.accept()
    async with client, server:
        await client.send_all(b"0123")
        await client.send_eof()
        with pytest.raises(trio_uring.IncompleteReadError):
            await server.receive_exactly(9)
        assert network.metrics.snapshot().bytes_in == 0
        assert await server.receive_some() == b"0123"
    counted = network.metrics.snapshot()
    assert (counted.bytes_in, counted.bytes_out) == (4, 4)
    assert counted.errors == {("receive", "IncompleteReadError"): 1}


class Odd(Exception):
    pass


def broken(code: int) -> trio.BrokenResourceError:
    error = trio.BrokenResourceError("broken")
    error.__cause__ = OSError(code, "why")
    return error


def grouped(*codes: int) -> OSError:
    error = OSError("all attempts to connect failed")
    group = Odd("several")
    group.exceptions = tuple(OSError(code, "why") for code in codes)
    error.__cause__ = group
    return error


def circular() -> Exception:
    first, second = Odd(), Odd()
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "ECONNRESET"),
        (broken(errno.EPIPE), "EPIPE"),
        (trio.BrokenResourceError("by a memory stream"), "BrokenResourceError"),
        (trio.ClosedResourceError("closed"), "ClosedResourceError"),
        (grouped(errno.ECONNREFUSED, errno.ECONNREFUSED), "ECONNREFUSED"),
        (grouped(errno.ECONNREFUSED, errno.ENETUNREACH), "OSError"),
        (socket.gaierror(8, "unknown on macOS, and ENOEXEC"), "gaierror"),
        (ssl.SSLError(1, "not EPERM"), "SSLError"),
        (OSError("no number"), "OSError"),
        (OSError(123456, "no such number"), "OSError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (circular(), "Odd"),
    ],
)
def test_kinds_of_errors(error, kind):
    assert error_kind(error) == kind


@without_ring
async def test_how_operations_end_and_that_errors_are_the_same_objects():
    async def too_slow():
        with trio.fail_after(1):
            await trio.sleep_forever()

    for outcome, error in [
        ("timeouts", trio.TooSlowError()),
        ("errors", broken(errno.ECONNRESET)),
        ("errors", Odd()),
    ]:

        async def fail(error=error):
            raise error

        for number in range(9):
            stream = MeteredStream(Fake(fail))
            operation, call = every_call(stream)[number]
            with pytest.raises(type(error)) as caught:
                await call()
            assert caught.value is error
            counted = stream.metrics.snapshot()
            expected: Any = {"send": 0, "receive": 0, "close": 0, "bind": 0, "dial": 0, "accept": 0}
            assert counted.operations == {**expected, operation: 1}
            assert counted.successes == expected
            assert (counted.bytes_in, counted.bytes_out) == (0, 0)
            if outcome == "timeouts":
                assert counted.timeouts == {**expected, operation: 1}
                assert counted.errors == {}
            else:
                assert counted.errors == {(operation, error_kind(error)): 1}
            assert counted.cancelled == expected
    stream = MeteredStream(Fake(too_slow))
    with pytest.raises(trio.TooSlowError):
        await stream.receive_some()
    assert stream.metrics.snapshot().timeouts["receive"] == 1


@without_ring
async def test_the_operation_is_in_progress_until_it_is_cancelled():
    for number in range(9):
        stream = MeteredStream(Fake(trio.sleep_forever))
        operation, call = every_call(stream)[number]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            counted = stream.metrics.snapshot()
            assert (counted.operations[operation], counted.cancelled[operation]) == (1, 0)
            nursery.cancel_scope.cancel()
        counted = stream.metrics.snapshot()
        assert (counted.cancelled[operation], counted.successes[operation], counted.errors) == (
            1,
            0,
            {},
        )


@without_ring
async def test_a_group_of_cancellations_is_a_cancellation():
    async def in_a_nursery():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    stream = MeteredStream(Fake(in_a_nursery))
    with trio.move_on_after(1):
        await stream.receive_some()
    assert stream.metrics.snapshot().cancelled["receive"] == 1

    group_type: Any = getattr(builtins, "BaseExceptionGroup", None)
    if group_type is not None:  # Python 3.11

        async def mixed():
            try:
                await trio.sleep_forever()
            except trio.Cancelled as exc:
                raise group_type("both", [exc, OSError(errno.EPIPE, "pipe")]) from None

        stream = MeteredStream(Fake(mixed))
        with pytest.raises(group_type), trio.move_on_after(1):
            await stream.receive_some()
        assert stream.metrics.snapshot().cancelled["receive"] == 0


@pytest.mark.no_ring
def test_a_destroyed_coroutine_was_cancelled():
    @types.coroutine
    def park():
        yield

    async def parked():
        await park()

    stream = MeteredStream(Fake(parked))
    call = stream.receive_some()
    call.send(None)
    call.close()
    counted = stream.metrics.snapshot()
    assert (counted.operations["receive"], counted.cancelled["receive"]) == (1, 1)


class Interrupted(dict[str, Any]):
    """The counters of a Metrics, as a thread that runs at the worst moments would have it."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics._rows)
        self.metrics, self.seen, self.busy = metrics, [], False

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if not self.busy:
            self.seen.append(self.metrics.snapshot())

    def __getitem__(self, key: str) -> Any:
        value, self.busy = super().__getitem__(key), True
        if sys._getframe(1).f_code.co_name in ("snapshot", "<dictcomp>"):
            use(self.metrics)
        self.busy = False
        return value


def use(metrics: Metrics) -> None:
    for operation in ("send", "receive", "accept"):
        metrics.attempt(operation)
        metrics.success(operation, None, (b"1234567",))
        metrics.attempt(operation)
        metrics.failure(operation, None, ValueError())
    metrics.connection_closed("in")


@pytest.mark.no_ring
def test_a_snapshot_is_of_one_moment():
    metrics = Metrics()
    rows = metrics._rows = Interrupted(metrics)
    for _ in range(5):
        use(metrics)
    assert len(rows.seen) == 5 * 13
    for counted in rows.seen:
        assert counted.bytes_out == 7 * counted.successes["send"]
        assert counted.bytes_in == 7 * counted.successes["receive"]
        assert counted.open_in in (0, 1)
        failed = {operation: count for (operation, _), count in counted.errors.items()}
        for operation, attempts in counted.operations.items():
            assert attempts - counted.successes[operation] - failed.get(operation, 0) in (0, 1)


@pytest.mark.no_ring
def test_a_snapshot_does_not_change():
    metrics = Metrics()
    metrics.failure("send", None, OSError(errno.EPIPE, "pipe"))
    before = metrics.snapshot()
    same = metrics.snapshot()
    for operation in OPERATIONS:
        metrics.attempt(operation)
        metrics.success(operation, None, (b"x",))
        metrics.failure(operation, None, OSError(errno.EPIPE, "pipe"))
    assert before == same
    assert metrics.snapshot() != before


# -- networks


async def echo(stream):
    async for data in stream:
        await stream.send_all(data)


async def converse(network):
    """A server under trio.serve_listeners, three clients, and a dial that is refused."""
    listener = await network.bind(ANYWHERE)
    address = listener.local_address
    assert address[1] > 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        for _ in range(3):
            async with await network.dial(address) as stream:
                assert isinstance(stream, NetworkStream)
                assert stream.remote_address == address
                await stream.send_all(b"hello")
                assert await stream.receive_exactly(5) == b"hello"
                await stream.send_eof()
                assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionRefusedError):
        await network.dial(address)


def check_conversation(counted):
    assert (counted.connections_in, counted.connections_out, counted.open_in, counted.open_out) == (
        3,
        3,
        0,
        0,
    )
    assert (counted.bytes_in, counted.bytes_out) == (30, 30)
    assert (
        counted.operations["bind"],
        counted.operations["dial"],
        counted.operations["accept"],
    ) == (1, 4, 4)
    assert (counted.successes["bind"], counted.successes["dial"], counted.successes["accept"]) == (
        1,
        3,
        3,
    )
    assert counted.cancelled["accept"] == 1
    assert counted.errors == {("dial", "ECONNREFUSED"): 1}
    assert sum(counted.timeouts.values()) == 0


async def test_a_conversation_on_the_ring():
    network = Metered(UringNetwork())
    await converse(network)
    check_conversation(network.metrics.snapshot())


@pytest.mark.parametrize("make", [SimulatedNetwork, TrioNetwork])
@pytest.mark.no_ring
def test_a_conversation(make):
    network = Metered(make())
    (run_deterministically if make is SimulatedNetwork else trio.run)(converse, network)
    check_conversation(network.metrics.snapshot())


@without_ring
async def test_wrappers_nest_and_share():
    metrics = Metrics()
    network = Audited(Metered(Metered(SimulatedNetwork(), metrics), metrics))
    await converse(network)
    counted = metrics.snapshot()
    assert (counted.connections_in, counted.open_in, counted.bytes_in) == (6, 0, 60)
    assert network.metrics is metrics


@without_ring
async def test_timeouts_of_the_config_and_of_calls():
    simulated = SimulatedNetwork(config=NetworkConfig(connect_timeout=1.0, read_timeout=2.0))
    network = Metered(simulated)
    assert network.config is simulated.config
    listener = await network.bind(ANYWHERE)
    client = await network.dial(listener.local_address)
    async with client, listener:
        for timeout in (None, 3.0):
            with pytest.raises(trio.TooSlowError):
                await client.receive_exactly(1, timeout=timeout)
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(1):
                await client.receive_some()
        simulated.host("elsewhere")
        simulated.partition("127.0.0.1", "elsewhere")
        with pytest.raises(trio.TooSlowError):
            await network.dial(("elsewhere", 80))
    counted = network.metrics.snapshot()
    assert (
        counted.timeouts["receive"],
        counted.cancelled["receive"],
        counted.timeouts["dial"],
    ) == (2, 1, 1)
    assert counted.errors == {}


@without_ring
async def test_errors_of_a_bind_that_conflicts_and_a_closed_listener():
    network = Metered(SimulatedNetwork())
    listener = await network.bind(("127.0.0.1", 80))
    with pytest.raises(OSError, match="in use"):
        await network.bind(("127.0.0.1", 80))
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    assert network.metrics.snapshot().errors == {
        ("bind", "EADDRINUSE"): 1,
        ("accept", "ClosedResourceError"): 1,
    }
