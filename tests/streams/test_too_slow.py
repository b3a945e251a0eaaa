"""What the error of a timeout says: what waited, on what, for how long, in which task.

Rules of this file: on Python 3.11 and later that is a note, and before, the error's argument. Time
is trio's MockClock, so the seconds are exact.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import TINY, clog, closing, stream_and_peer, tcp_sockets, unix_sockets

import trio_uring
from trio_uring import BufferedReceiveStream, FrameStream, SocketStream, receive_frame
from trio_uring._bytes.timed import told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock


def note_of(error: BaseException) -> str:
    if hasattr(error, "add_note"):
        assert error.args == ()
        [note] = error.__notes__
    else:
        [note] = error.args
    assert isinstance(note, str)
    return note


async def note(call: Callable[[], Awaitable[object]]) -> str:
    """The note of a call that times out."""
    with pytest.raises(trio.TooSlowError) as caught:
        await call()
    return note_of(caught.value)


def task() -> str:
    return f"in task {trio.lowlevel.current_task().name!r} on "


CALLS: dict[str, tuple[str, Callable[[SocketStream], Awaitable[Any]]]] = {
    "some": ("receive_some", lambda stream: stream.receive_some(timeout=2)),
    "into": ("receive_into", lambda stream: stream.receive_into(bytearray(9), timeout=2)),
    "exactly": ("receive_exactly", lambda stream: stream.receive_exactly(9, timeout=2)),
    "send": ("send_all", lambda stream: stream.send_all(b"late", timeout=2)),
    "list": ("send_all", lambda stream: stream.send_all([b"late", b"r"], timeout=2)),
}


@pytest.mark.parametrize("kind", CALLS)
async def test_streams(kind: str, autojump_clock: MockClock) -> None:
    left, right = unix_sockets(TINY)
    stream = SocketStream(left)
    clog(left.fileno())
    name, call = CALLS[kind]
    async with closing(stream, right):
        assert await note(lambda: call(stream)) == (
            f"{name} waited 2.000 s (its limit: 2 s) {task()}SocketStream, descriptor "
            f"{left.fileno()}, peer an unnamed socket"
        )


async def test_the_peer_of_a_connection_and_the_streams_own_limit(
    autojump_clock: MockClock,
) -> None:
    left, right = tcp_sockets()
    stream = SocketStream(left)
    stream.receive_timeout = 0.25
    async with closing(stream, right):
        host, port = right.getsockname()[:2]
        assert (await note(stream.receive_some)).endswith(
            f"SocketStream, descriptor {left.fileno()}, peer {host}:{port}"
        )
        assert "waited 0.250 s (its limit: 0.25 s)" in await note(stream.receive_some)


async def test_messages_over_a_stream(autojump_clock: MockClock) -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        buffered, frames = BufferedReceiveStream(stream), FrameStream(stream)
        for name, call in {
            "receive_until": lambda: buffered.receive_until(b"\n", max_bytes=9, timeout=1),
            "receive_exactly": lambda: buffered.receive_exactly(9, timeout=1),
            "receive_some": lambda: buffered.receive_some(timeout=1),
        }.items():
            found = await note(call)
            assert found.startswith(f"{name} waited 1.000 s")
            assert f"{task()}BufferedReceiveStream over SocketStream, descriptor" in found
        found = await note(lambda: frames.receive(timeout=1))
        assert "on FrameStream over SocketStream, descriptor" in found
        found = await note(lambda: receive_frame(stream, max_size=9, timeout=1))
        assert found.startswith("receive_frame waited 1.000 s")


async def test_udp(autojump_clock: MockClock) -> None:
    async with await trio_uring.open_udp_socket(local_address=("127.0.0.1", 0)) as socket:
        port = socket.getsockname()[1]
        for name in ("receive_from", "receive_many"):
            call = getattr(socket, name)
            assert await note(lambda: call(timeout=1)) == (  # noqa: B023
                f"{name} waited 1.000 s (its limit: 1 s) {task()}UDPSocket, descriptor "
                f"{socket.socket.fileno()}, peer (bound to 127.0.0.1:{port})"
            )


async def test_a_method_that_takes_no_timeout(autojump_clock: MockClock) -> None:
    left, right = tcp_sockets()
    theirs = trio.SocketStream(trio.socket.from_stdlib_socket(left))
    async with theirs, trio_uring.AuditedStream(theirs, trio_uring.Audit()) as audited:
        found = await note(lambda: audited.receive_some(timeout=1))
        assert found == f"receive_some waited 1.000 s (its limit: 1 s) {task()}SocketStream"
    right.close()


async def test_what_others_wrote(autojump_clock: MockClock) -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        tls = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="x")
        assert told(tls).startswith("SSLStream over SocketStream, descriptor")

        class Forwards:
            def __getattr__(self, name: str) -> Any:
                raise ZeroDivisionError

        timed = pytest.raises(trio.TooSlowError)
        with timed as caught:
            with trio_uring._bytes.timed.within(1, Forwards(), "it"):
                await trio.sleep_forever()
        assert not getattr(caught.value, "__notes__", ())  # and the error is what it was
        assert told(object()) == "object"
        assert told("example.org:80") == "example.org:80"


async def test_it_is_as_fail_after(autojump_clock: MockClock) -> None:
    within = trio_uring._bytes.timed.within
    with within(1, "it", "call"):
        pass
    with pytest.raises(ValueError, match="must be non-negative"), within(-1, "it", "call"):
        pass
    with pytest.raises(ZeroDivisionError), within(1, "it", "call"):
        raise ZeroDivisionError
    # Another scope's cancellation is that scope's.
    with trio.move_on_after(1) as outer:
        with within(5, "it", "call"):
            await trio.sleep_forever()
    assert outer.cancelled_caught
    # A deadline that has passed counts only if the call was interrupted.
    with within(1, "it", "call"):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
    with pytest.raises(trio.TooSlowError):  # Cancelled of several tasks come in a group
        await twice()


async def twice() -> None:
    with trio_uring._bytes.timed.within(1, "it", "call"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
