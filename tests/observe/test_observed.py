"""What holds for every observer: a wrapped stream behaves exactly like the stream itself.

Rules of this file: tests without a ring run under run_deterministically, on a clock that jumps. No
test sleeps and hopes.
"""

from __future__ import annotations

import array
import math

import pytest
import trio
import trio.testing
from support.fakes import Fake, Plain, every_call, without_ring
from support.streams import count_of, unix_streams

from trio_uring import FrameStream
from trio_uring._messages.buffered import BufferedReceiveStream
from trio_uring._messages.vectored import send_all_vectored
from trio_uring._network.network import NetworkStream
from trio_uring._network.simulated import SimulatedNetwork
from trio_uring._network.sockets import UringNetwork
from trio_uring._observe.networks import Audited, Metered
from trio_uring._observe.streams import AuditedStream, MeteredStream

ANYWHERE = ("127.0.0.1", 0)
WRAPPERS = [MeteredStream, AuditedStream]


@without_ring
async def test_a_result_that_arrives_wins_over_a_cancellation():
    async def late():
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        return b"late"

    stream = MeteredStream(Fake(late))
    with trio.move_on_after(1) as scope:
        assert await stream.receive_some() == b"late"
    assert scope.cancel_called
    assert not scope.cancelled_caught
    counted = stream.metrics.snapshot()
    assert (counted.bytes_in, counted.successes["receive"], counted.cancelled["receive"]) == (
        4,
        1,
        0,
    )


# -- what is forwarded


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_nothing_is_a_checkpoint(wrap):
    stream = wrap(Fake())
    with trio.testing.assert_no_checkpoints():
        for _, call in every_call(stream):
            await call()
        await stream.aclose()
        await stream.wait_send_all_might_not_block()
        await stream.send_eof()


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_arguments_and_results(wrap):
    fake = Fake()
    stream = wrap(fake)
    buffer, data = bytearray(4), [b"1", b"2"]
    assert await stream.receive_some() == b"some"
    assert await stream.receive_some(4, timeout=1.0) == b"some"
    assert await stream.receive_into(buffer) == 2
    assert await stream.receive_into(buffer, timeout=2.0) == 2
    assert await stream.receive_exactly(5, timeout=3.0) == b"exactly"
    assert await stream.receive_until(b"x", 6, timeout=4.0) == b"until"
    assert stream.peek() == b"peek"
    await stream.send_all(b"1")
    await stream.send_all(b"1", timeout=5.0)
    await stream.send_all(data)
    await stream.send_all_vectored(data, timeout=6.0)
    await stream.wait_send_all_might_not_block()
    await stream.send_eof()
    assert fake.calls == [
        ("receive_some", None, {}),
        ("receive_some", 4, {"timeout": 1.0}),
        ("receive_into", buffer, {"timeout": None}),
        ("receive_into", buffer, {"timeout": 2.0}),
        ("receive_exactly", 5, {"timeout": 3.0}),
        ("receive_until", b"x", 6, {"timeout": 4.0}),
        ("peek", None),
        ("send_all", b"1", {}),
        ("send_all", b"1", {"timeout": 5.0}),
        ("send_all_vectored", (b"1", b"2"), {"timeout": None}),
        ("send_all_vectored", (b"1", b"2"), {"timeout": 6.0}),
        ("wait_send_all_might_not_block", {}),
        ("send_eof", {}),
    ]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.no_ring
def test_attributes_are_those_of_the_wrapped_stream(wrap):
    fake = Fake()
    fake.socket = object()
    stream = wrap(wrap(fake))
    assert isinstance(stream, NetworkStream)
    assert (stream.local_address, stream.remote_address, stream.bytes_sent) == (
        ("here", 2),
        ("peer", 1),
        3,
    )
    assert stream.socket is fake.socket
    stream.send_timeout = 5.0
    assert fake.send_timeout == stream.send_timeout == 5.0
    assert stream.receive_timeout is None
    stream.receive_timeout = 6.0
    assert fake.receive_timeout == stream.receive_timeout == 6.0
    assert repr(fake) in repr(stream)
    assert not hasattr(type(stream).__new__(type(stream)), "wrapped")


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_a_plain_stream_does_not_seem_to_be_more(wrap):
    plain = Plain()
    stream = wrap(plain)
    for name in (
        "receive_exactly",
        "receive_until",
        "peek",
        "send_eof",
        "bytes_sent",
        "send_timeout",
        "remote_address",
    ):
        with pytest.raises(AttributeError, match=name):
            getattr(stream, name)
    assert stream.receive_timeout is None
    for name in ("receive_timeout", "send_timeout"):  # nobody would look at them
        with pytest.raises(AttributeError, match=name):
            setattr(stream, name, 5.0)
    assert await stream.receive_some(5) == b"plain"
    await stream.send_all(b"data")
    await stream.send_all([b"", b"data"])  # which the stream alone would not take
    await stream.aclose()


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_on_any_stream_it_is_a_stream_of_this_package(wrap):
    """What asks a class for what it can do (BufferedReceiveStream, FrameStream) is told the
    truth."""
    left, right = map(wrap, trio.testing.memory_stream_pair())
    for timeout in (None, 5.0, math.inf):
        await left.send_all(b"0123456789", timeout=timeout)
        assert await right.receive_some(2, timeout=timeout) == b"01"
        buffer = array.array("H", [0, 0])
        assert await right.receive_into(buffer, timeout=timeout) == 4
        assert buffer.tobytes() == b"2345"
        assert await BufferedReceiveStream(right, 0).receive_exactly(4, timeout=timeout) == b"6789"
    for size in (0, 4):
        buffered = BufferedReceiveStream(right, size)
        await left.send_all_vectored([b"ab", b"cdef"], timeout=math.inf)
        assert await buffered.receive_into(bytearray(5)) == 5
        assert await buffered.receive_exactly(1) == b"f"
    frames = FrameStream(left), FrameStream(right)
    await frames[0].send_many([b"one", b"two"])
    assert [await frames[1].receive(), await frames[1].receive(timeout=1.0)] == [b"one", b"two"]
    for unfit in (b"read-only", bytearray()):
        with pytest.raises((TypeError, ValueError)):
            await right.receive_into(unfit)


@without_ring
async def test_time_limits_on_streams_that_know_none():
    _, right = map(MeteredStream, trio.testing.memory_stream_pair())
    with pytest.raises(trio.TooSlowError):
        await right.receive_some(timeout=1.0)
    with pytest.raises(trio.TooSlowError):
        await right.receive_into(bytearray(5), timeout=1.0)
    counted = right.metrics.snapshot()
    assert (counted.timeouts["receive"], counted.cancelled["receive"]) == (2, 0)
    for data in (b"data", [b"da", b"ta"], bytearray(b"data")):
        left = MeteredStream(trio.testing.lockstep_stream_pair()[0])
        with pytest.raises(trio.TooSlowError):
            await left.send_all(data, timeout=1.0)
        counted = left.metrics.snapshot()
        assert (counted.timeouts["send"], counted.cancelled["send"]) == (1, 0)


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_what_is_no_buffer_is_for_the_stream_to_refuse(wrap):
    stream = wrap(trio.testing.memory_stream_pair()[0])
    for data in ("text", 5, None, {"a": 1}):
        with pytest.raises(TypeError) as expected:
            await stream.wrapped.send_all(data)
        with pytest.raises(TypeError) as caught:
            await stream.send_all(data)
        assert str(caught.value) == str(expected.value)
    with pytest.raises(TypeError):
        await stream.send_all(["text"])
    with pytest.raises(TypeError):
        await stream.send_all_vectored(b"one buffer")


@pytest.mark.parametrize("wrap", WRAPPERS)
@without_ring
async def test_trios_own_checks(wrap):
    async def memory():
        left, right = trio.testing.memory_stream_pair()
        return wrap(left), wrap(right)

    async def lockstep():
        left, right = trio.testing.lockstep_stream_pair()
        return wrap(left), wrap(right)

    await trio.testing.check_half_closeable_stream(memory, None)
    await trio.testing.check_two_way_stream(lockstep, lockstep)


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_trios_own_checks_on_the_ring(wrap):
    async def pair():
        left, right = unix_streams()
        return wrap(left), wrap(right)

    await trio.testing.check_half_closeable_stream(pair, None)


async def test_a_list_is_one_operation_through_all_wrappers():
    network = Audited(Metered(UringNetwork()))
    async with await network.bind(ANYWHERE) as listener:
        client = await network.dial(listener.local_address)
        server = await listener.accept()
    async with client, server:
        before = count_of("SENDMSG").submitted, count_of("SEND").submitted
        await send_all_vectored(client, [b"prefix", b"payload"])
        await client.send_all([b"prefix", b"payload"])
        assert (count_of("SENDMSG").submitted, count_of("SEND").submitted) == (
            before[0] + 2,
            before[1],
        )
        assert await server.receive_exactly(26) == b"prefixpayload" * 2
        assert client.bytes_sent == 13
    assert network.metrics.snapshot().bytes_out == 26


# -- closing


@without_ring
async def test_a_connection_is_open_until_it_is_closed():
    network = Metered(SimulatedNetwork())

    def opened():
        counted = network.metrics.snapshot()
        return counted.open_in, counted.open_out

    listener = await network.bind(ANYWHERE)
    client = await network.dial(listener.local_address)
    assert opened() == (0, 1)
    server = await listener.accept()
    assert opened() == (1, 1)
    await listener.aclose()
    await listener.aclose()
    assert opened() == (1, 1)
    await client.aclose()
    await client.aclose()
    assert opened() == (1, 0)
    await trio.aclose_forcefully(server)  # is cancelled, and closes all the same
    assert opened() == (0, 0)
    counted = network.metrics.snapshot()
    assert (counted.connections_in, counted.connections_out) == (1, 1)
    assert (
        counted.operations["close"],
        counted.successes["close"],
        counted.cancelled["close"],
    ) == (3, 2, 1)


@without_ring
async def test_every_close_reaches_the_wrapped_stream():
    fake = Fake()
    stream = MeteredStream(fake)
    await stream.aclose()
    await stream.aclose()
    assert fake.calls == [("aclose", {})] * 2
    assert stream.metrics.snapshot().operations["close"] == 1
