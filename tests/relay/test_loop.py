"""copy_stream between streams of this package by a loop of receive and send, as it is by readiness.

Rules of this file: the loop is forced, so that it is tested on the ring, too. Tests of pumps that
must hold for the loop as well are run here again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing
from support.relay import line, taken
from support.streams import clog, pattern, receive_all, unix_streams, until

import trio_uring
from trio_uring._relay import copy as _copy

from . import test_conservation, test_copy, test_relay
from .test_copy import Copying, until_rest, write_and_end

# What is true of a pump.
SHARED: dict[ModuleType, list[str]] = {
    test_conservation: [
        "test_on_a_ring_that_does_everything_it_may",
        "test_on_the_kernels_ring",
    ],
    test_copy: [
        "test_a_broken_sink_is_named_and_what_it_did_not_take_is_given_back",
        "test_a_broken_source_is_named_after_what_it_gave_was_sent",
        "test_a_copy_in_a_cancelled_scope_moves_nothing",
        "test_a_copy_of_a_stream_to_itself_is_an_echo",
        "test_a_sink_that_takes_nothing_bounds_what_is_held",
        "test_a_socket_that_was_closed_directly",
        "test_a_source_that_is_closed_while_it_is_idle",
        "test_an_exception_of_progress_stops_the_copy",
        "test_an_idle_copy_holds_nothing",
        "test_both_streams_are_busy_meanwhile",
        "test_cancelled_after_the_end_of_the_source_with_bytes_to_send",
        "test_cancelled_while_idle_nothing_remains",
        "test_everything_arrives_and_is_counted",
        "test_max_bytes_is_checked",
        "test_no_byte_more_is_taken_than_asked_for",
        "test_one_of_them_is_closed_meanwhile",
        "test_progress_is_told_the_last_number_when_the_copy_is_cancelled",
        "test_progress_is_told_up_to_the_end",
        "test_small_messages_are_passed_on_as_they_come",
        "test_what_a_closed_sink_did_not_take_goes_back",
        "test_what_the_source_had_kept_goes_first",
    ],
    test_relay: [
        "test_a_cancelled_relay_leaves_both_streams_usable",
        "test_an_error_in_one_direction_ends_the_other_and_comes_alone",
        "test_both_ways_at_once_to_both_ends",
        "test_cancelled_in_a_send_the_rest_goes_back",
        "test_half_close_is_carried_over_and_the_answer_still_comes",
        "test_max_bytes_of_the_loop_takes_no_byte_more",
        "test_time_limits_of_the_streams_do_not_apply_to_a_copy",
    ],
}
for module, names in SHARED.items():
    globals().update({name: getattr(module, name) for name in names})


@pytest.fixture
def way() -> str:
    return "loop"


@pytest.fixture(autouse=True)
def _no_pumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copy, "can_pump", lambda *_: False)


async def refused(*calls: Any) -> None:
    for call in calls:
        with pytest.raises(trio.BusyResourceError):
            await call()


async def test_both_directions_are_kept_while_the_other_stream_is_waited_for():
    """The source's while the sink is full, the sink's while the source is idle."""
    async with line() as ends, trio.open_nursery() as nursery:
        clog(ends.sink._lease.fd)
        copying = Copying(ends, nursery)
        await ends.write(b"held")
        await until_rest(ends)
        await refused(
            ends.source.receive_some,
            lambda: ends.source.receive_into(bytearray(1)),
            lambda: trio_uring.copy_stream(ends.source, ends.sink),
        )
        await copying.cancel()
        assert await ends.source.receive_some() == b"held"
        ends.read()
        copying = Copying(ends, nursery)
        await until_rest(ends)
        await refused(
            lambda: ends.sink.send_all(b"x"),
            ends.sink.send_eof,
            ends.sink.wait_send_all_might_not_block,
        )
        await copying.cancel()
        await ends.sink.send_all(b"x")


@pytest.mark.parametrize("wrap", [trio_uring.BufferedReceiveStream, trio_uring.MeteredStream])
async def test_of_wrapped_streams_too(wrap):
    near, inner = unix_streams()
    out, far = unix_streams()
    source, sink = wrap(inner), trio_uring.MeteredStream(out)
    async with near, source, sink, far, trio.open_nursery() as nursery:
        clog(out._lease.fd)
        nursery.start_soon(trio_uring.copy_stream, source, sink)
        await near.send_all(b"held")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await refused(source.receive_some, lambda: sink.send_all(b"x"), lambda: out.send_all(b"x"))
        nursery.cancel_scope.cancel()
    assert not taken(inner._receiving)
    assert not taken(out._sending)


async def test_bytes_sent_is_of_the_whole_copy_at_every_moment():
    seen: list[tuple[int, int]] = []
    data = pattern(1_000_000)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(
            ends, nursery, progress=lambda total: seen.append((total, ends.sink.bytes_sent))
        )
        nursery.start_soon(write_and_end, ends, data)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()
    assert len(seen) > 1
    assert all(told == counted for told, counted in seen)


async def test_a_sink_that_was_closed_between_two_sends_is_not_counted_twice():
    """What a closed stream says of its last send is not what it took of this one."""
    near, source = unix_streams()
    out, far = unix_streams()

    def progress(total: int) -> None:
        out._close()

    async with near, source, out, far:
        await near.send_all(b"first")
        async with trio.open_nursery() as nursery:

            async def copy() -> None:
                with pytest.raises(trio.ClosedResourceError, match="sink"):
                    await trio_uring.copy_stream(source, out, progress=progress)

            nursery.start_soon(copy)
            await until(lambda: out._lease.closed, "the first part")
            await near.send_all(b"second")
        assert await source.receive_some() == b"second"


async def test_nothing_is_put_back_where_nothing_is_left():
    """A queue of no bytes in front of the source would read as its end."""
    near, source = unix_streams()
    async with near, source:
        for error in (ZeroDivisionError, None):
            send, _ = trio.testing.memory_stream_one_way_pair()
            await near.send_all(b"all of it")

            def progress(_: int, error: Any = error) -> None:
                if error is not None:
                    raise error
                raise KeyError

            with pytest.raises((ZeroDivisionError, KeyError)):
                await trio_uring.copy_stream(source, send, progress=progress)
            await near.send_all(b"next")
            assert await source.receive_some() == b"next"


async def test_a_destroyed_loop_frees_both_streams():
    near, source = unix_streams()
    out, far = unix_streams()
    async with near, source, out, far:
        coro = trio_uring.copy_stream(source, out)
        coro.send(None)  # it waits: for the checkpoint that comes first
        coro.close()
        assert not taken(source._receiving)
        assert not taken(out._sending)
        await near.send_all(b"stays")
        assert await source.receive_some() == b"stays"
        with trio.fail_after(5):  # and no scope of it is left in this task
            await trio.lowlevel.checkpoint()


async def test_one_that_ends_at_once():
    near, source = unix_streams()
    out, far = unix_streams()
    async with near, source, out, far:
        await near.send_eof()
        assert await trio_uring.copy_stream(source, out) == 0
        await out.send_eof()
        assert await receive_all(far) == b""
