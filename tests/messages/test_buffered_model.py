"""BufferedReceiveStream in lockstep with plain bytes: any calls, any interruptions, data in any
pieces.

The model is what arrived and was not returned yet, and how much of it the wrapped stream gave.
After every rule all tasks are blocked (wait_all_tasks_blocked), and the one call under way must
have ended exactly when the model says so, with the result that it says.

Rules: time is a MockClock that only a rule moves. The run has its own thread, because a rule is not
a coroutine; the two never run at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.long_cases import examples
from support.scripted import HiccupError, Lockstep, ScriptedIntoReceiver, ScriptedReceiver

from trio_uring import BufferedReceiveStream, DelimiterNotFound, IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.no_ring

BUFFER_SIZES = [0, 1, 7, 64, 65536]
PIECE = 2**16  # bytes that a large exact read asks for at once, at least
TIMEOUT = 10  # seconds of the MockClock


@dataclass
class Call:
    """A call in progress, and how it ended."""

    kind: str
    size: int | None = None
    delimiter: bytes = b""
    timeout_at: float | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: bool = False
    result: bytes | None = None
    error: BaseException | None = None

    async def run(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        try:
            with self.scope:
                self.result = await receive()
        except Exception as exc:
            self.error = exc
        self.ended = True


async def into(stream: BufferedReceiveStream, size: int, **options: Any) -> bytes:
    buffer = bytearray(b"\xee" * size)
    count = await stream.receive_into(buffer, **options)
    assert buffer[count:] == b"\xee" * (size - count)
    return bytes(buffer[:count])


sizes = st.one_of(
    st.integers(1, 10), st.integers(1, 150), st.sampled_from([6, 7, 8, 63, 64, 65, 70_000])
)
delimiters = st.sampled_from([b"a", b"ab", b"aab", b"abab", b"aaaa", b"bba"])
letters = st.lists(st.sampled_from([b"a", b"b", b"ab", b"aab", b"c"]), min_size=1, max_size=12).map(
    b"".join
)
pieces = st.lists(
    st.one_of(
        letters,
        letters,
        st.integers(50, 200).map(lambda size: b"0123456789" * (size // 10)),
        st.just(70_000).map(bytes),
    ),
    min_size=1,
    max_size=4,
)
idle = precondition(lambda self: self.call is None)
waiting = precondition(lambda self: self.call is not None)
still_open = precondition(lambda self: not self.closed)


class BufferedMachine(RuleBasedStateMachine):
    @initialize(
        buffer_size=st.sampled_from(BUFFER_SIZES),
        straight=st.booleans(),
        first=st.lists(letters, max_size=2),
        timeouts=st.booleans(),
    )
    def begin(self, buffer_size: int, straight: bool, first: list[bytes], timeouts: bool) -> None:
        self.lockstep = Lockstep()
        self.peer = ScriptedIntoReceiver(first) if straight else ScriptedReceiver(first)
        self.stream = BufferedReceiveStream(
            self.peer, buffer_size, receive_timeout=TIMEOUT if timeouts else None
        )
        self.buffer_size = buffer_size
        self.unread = b"".join(first)  # the model
        self.returned = 0
        self.ended = self.closed = False
        self.call: Call | None = None

    @property
    def held(self) -> int:
        """Bytes that the wrapped stream gave and no call returned."""
        return self.peer.given - self.returned

    # -- the world

    @still_open
    @rule(pieces=pieces)
    def arrive(self, pieces: list[bytes]) -> None:
        if not self.ended:
            self.unread += b"".join(pieces)
            self.lockstep.do(lambda: self.peer.arrive(*pieces))
            self.settle()

    @still_open
    @rule()
    def end(self) -> None:
        self.ended = True
        self.lockstep.do(self.peer.end)
        self.settle()

    @waiting
    @rule()
    def fail(self) -> None:
        """A receive of the wrapped stream fails: what was held is still there for the next call."""
        error = HiccupError("scripted")
        self.lockstep.do(lambda: self.peer.fail(error))
        self.ends(error)

    # -- calls

    @idle
    @rule(kind=st.sampled_from(["some", "into", "exactly"]), size=sizes, timed=st.booleans())
    def start(self, kind: str, size: int, timed: bool) -> None:
        call = {
            "some": self.stream.receive_some,
            "into": partial(into, self.stream),
            "exactly": self.stream.receive_exactly,
        }
        self.begin_call(Call(kind, size), partial(call[kind], size), timed)

    @idle
    @rule(timed=st.booleans())
    def start_some_of_any_size(self, timed: bool) -> None:
        self.begin_call(Call("some"), self.stream.receive_some, timed)

    @idle
    @rule()
    def start_exactly_nothing(self) -> None:
        self.begin_call(Call("exactly", 0), partial(self.stream.receive_exactly, 0), False)

    @idle
    @rule(delimiter=delimiters, size=sizes, timed=st.booleans())
    def start_until(self, delimiter: bytes, size: int, timed: bool) -> None:
        size = max(size, len(delimiter))
        self.begin_call(
            Call("until", size, delimiter),
            partial(self.stream.receive_until, delimiter, size),
            timed,
        )

    def begin_call(self, call: Call, receive: Callable[..., Awaitable[bytes]], timed: bool) -> None:
        self.call = call
        self.held_before = self.held
        if timed or self.stream.receive_timeout is not None:
            call.timeout_at = self.lockstep.clock.current_time() + TIMEOUT
        options = {"timeout": TIMEOUT} if timed else {}
        requests = len(self.peer.requests)
        self.lockstep.do(
            lambda: self.lockstep.nursery.start_soon(call.run, partial(receive, **options))
        )
        self.first_requests = self.peer.requests[requests:]
        self.settle()

    @waiting
    @rule()
    def cancel(self) -> None:
        assert self.call
        self.lockstep.do(self.call.scope.cancel)
        assert self.call.scope.cancelled_caught
        self.ends(None)

    @waiting
    @rule(pieces=pieces, data_first=st.booleans())
    def arrive_and_cancel_at_once(self, pieces: list[bytes], data_first: bool) -> None:
        """Either may be first: the call may have ended with data, or not; no byte is lost."""
        if self.ended:
            return
        call = self.call
        assert call

        def step() -> None:
            steps = [partial(self.peer.arrive, *pieces), call.scope.cancel]
            for each in steps if data_first else steps[::-1]:
                each()

        self.unread += b"".join(pieces)
        self.lockstep.do(step)
        if call.scope.cancelled_caught:
            self.ends(None)
        else:
            self.settle()

    @waiting
    @rule(seconds=st.sampled_from([TIMEOUT / 3, TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        assert self.call
        self.lockstep.do(lambda: self.lockstep.clock.jump(seconds))
        if (
            self.call.timeout_at is not None
            and self.lockstep.clock.current_time() >= self.call.timeout_at
        ):
            assert isinstance(self.call.error, trio.TooSlowError)
            self.ends(self.call.error)
        else:
            assert not self.call.ended

    @waiting
    @rule()
    def another_call_is_busy(self) -> None:
        for receive in (
            self.stream.receive_some,
            partial(into, self.stream, 5),
            partial(self.stream.receive_exactly, 0),
        ):
            other = Call("busy")
            self.lockstep.do(lambda: self.lockstep.nursery.start_soon(other.run, receive))  # noqa: B023  (it runs at once)
            assert isinstance(other.error, trio.BusyResourceError)

    @still_open
    @rule(count=st.one_of(st.none(), st.integers(0, 100)))
    def peek(self, count: int | None) -> None:
        held = self.held if self.buffer_size else 0
        assert self.stream.peek(count) == self.unread[: held if count is None else min(count, held)]

    @precondition(lambda self: self.returned > 20)
    @rule()
    def close(self) -> None:
        """The rest of the life of a stream."""

        def step() -> None:
            self.lockstep.nursery.start_soon(self.stream.aclose)

        self.lockstep.do(step)
        self.closed, self.unread = True, b""
        if self.call:
            assert isinstance(self.call.error, trio.ClosedResourceError)
            self.call = None
        with pytest.raises(trio.ClosedResourceError):
            self.stream.peek()

    # -- the model

    def settle(self) -> None:
        """Everything ran that can. Has the call ended as it must?"""
        call = self.call
        if call is None:
            return
        if self.closed:
            assert isinstance(call.error, trio.ClosedResourceError)
            self.call = None
            return
        expected = self.expected(call)
        assert call.ended == (expected is not None), call
        if isinstance(expected, Exception):
            assert type(call.error) is type(expected), call
            assert vars(call.error) == vars(expected)
            self.call = None
        elif expected is not None:
            assert call.error is None
            self.returns(call, expected)

    def expected(self, call: Call) -> bytes | Exception | None:
        """What the call must return at most, or raise; None: it must be waiting."""
        unread, size = self.unread, call.size
        if call.kind in ("some", "into"):
            return unread[:size] if unread or self.ended else None
        assert size is not None
        if call.kind == "exactly":
            if len(unread) >= size:
                return unread[:size]
            return IncompleteReadError(unread, size) if self.ended else None
        found = unread[:size].find(call.delimiter)
        if found >= 0:
            return unread[: found + len(call.delimiter)]
        if len(unread) >= size:
            return DelimiterNotFound(call.delimiter, size)
        return IncompleteReadError(unread) if self.ended else None

    def returns(self, call: Call, expected: bytes) -> None:
        result = call.result
        assert type(result) is bytes
        if call.kind in ("some", "into"):
            assert expected.startswith(result)
            assert bool(result) == bool(expected)
        else:
            assert result == expected
        self.unread = self.unread[len(result) :]
        self.returned += len(result)
        self.call = None
        if self.held_before >= len(result) and result:
            assert self.first_requests == []  # it was here already
        # What is left: nothing that was not there before, or less than one receive for the buffer.
        assert self.held <= max(self.held_before - len(result), self.buffer_size - 1, 0)

    def ends(self, error: BaseException | None) -> None:
        """The call was cut short, by cancellation if there is no error: nothing was lost, and the
        stream goes on."""
        assert self.call
        assert self.call.ended
        assert self.call.error is error
        assert self.call.result is None
        self.call = None

    @invariant()
    def nothing_is_held_that_was_not_asked_for(self) -> None:
        if (
            self.call is None
            or self.call.kind != "exactly"
            or self.call.size is None
            or self.closed
        ):
            return
        # A read of an exact size waits: its last receive asked for what is missing, or for a buffer
        # if that is more.
        missing, asked = max(self.call.size - self.held, self.buffer_size), self.peer.requests[-1]
        assert asked is not None
        assert min(missing, PIECE) <= asked <= missing

    def teardown(self) -> None:
        if not hasattr(self, "lockstep"):
            return
        try:
            if self.call:
                self.lockstep.do(self.call.scope.cancel)
                self.call = None
            if not self.closed:
                self.end()
                self.begin_call(
                    Call("exactly", len(self.unread)),
                    partial(self.stream.receive_exactly, len(self.unread)),
                    False,
                )
                assert self.unread == b""
                assert self.held == 0
        finally:
            self.lockstep.finish()


TestBufferedReceiveStream = BufferedMachine.TestCase
TestBufferedReceiveStream.settings = settings(max_examples=examples(500), stateful_step_count=40)
