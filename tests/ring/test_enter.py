"""What io_uring_enter may return: a signal, a shortage, a part, the end. Nothing is lost or spins.

Rules of this file: the answers are injected at the seam to C; everything else is the kernel's. A
test fails if more calls are made than it has answers (`Answers` runs out), so a loop that spins is
found.
"""

from __future__ import annotations

import errno
import select
import socket
import types

import pytest

from trio_uring import RingBrokenError
from trio_uring._ring import uring as _ring
from trio_uring._ring.op import CANCELLING, DONE, Opcode, Operation
from trio_uring._ring.uring import UringRing

pytestmark = pytest.mark.uring_only("the kernel's ring itself")

SHORTAGES = (errno.EAGAIN, errno.EBUSY, errno.ENOMEM)
TASKRUN, OVERFLOW = 2, 4  # bits of what tu_more says


class Answers:
    """Stands in for the enters of the C library, until its answers are used up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[int] = []
        self.more = 0  # what tu_more says, and tu_drain
        self.monkeypatch = monkeypatch
        self.real = types.SimpleNamespace(
            **{name: getattr(_ring.lib, name) for name in dir(_ring.lib)}
        )

    def give(self, *answers: int, more: int = 0) -> None:
        self.left, self.more = list(answers), more
        self.monkeypatch.setattr(
            _ring, "lib", types.SimpleNamespace(**{**vars(self.real), **self._functions()})
        )
        self.monkeypatch.setattr(_ring, "_tu_turn", self._turn)
        if more:
            self.monkeypatch.setattr(_ring, "_tu_more", lambda c: self.real.tu_more(c) | self.more)

    def _functions(self) -> dict[str, object]:
        return {"tu_enter": lambda *_: self.left.pop(0), "tu_drain": self._drain}

    def _drain(self, c: object, out: list[int], most: int) -> int:
        count: int = self.real.tu_drain(c, out, most)
        out[0] |= self.more
        return count

    def _turn(
        self, c: object, least: int, flags: int, seconds: float, out: list[int], most: int
    ) -> int:
        out[1] = self.left.pop(0)
        return self._drain(c, out, most)

    def stop(self) -> None:
        """From now on the kernel answers. All of the answers were used."""
        assert not self.left
        self.monkeypatch.undo()


@pytest.fixture
def answers(monkeypatch):
    return Answers(monkeypatch)


class Rig:
    """A ring, and two connected sockets."""

    def __init__(self, flags: str = "defer") -> None:
        self.ring = UringRing(flags)
        self.a, self.b = socket.socketpair()
        self.done: list[Operation] = []

    def send(self, data: bytes) -> Operation:
        op = Operation(Opcode.SEND, self.a.fileno(), self.a)
        op.buffer, op.length = data, len(data)
        assert self.ring.submit(op)
        return op

    def receive(self) -> Operation:
        op = Operation(Opcode.RECV, self.b.fileno(), self.b)
        op.buffer, op.length = bytearray(8), 8
        assert self.ring.submit(op)
        return op

    def close(self) -> None:
        for op in list(self.ring.table.values()):
            self.ring.cancel(op)
        while self.ring.table:
            self.ring.turn(60, self.done)
        self.a.close()
        self.b.close()
        assert self.ring.close()


@pytest.fixture(params=["defer", "coop", "plain"])
def rig(request):
    rig = Rig(request.param)
    yield rig
    rig.close()


# -- in a turn


@pytest.mark.parametrize("code", SHORTAGES)
def test_a_turn_that_the_kernel_is_too_short_for_says_so_and_the_next_does_it(rig, answers, code):
    op = rig.send(b"x")
    for _ in range(3):
        answers.give(-code)
        rig.ring.turn(60, rig.done)
        answers.stop()
        assert (rig.ring.short, rig.done) == (True, [])
        assert rig.ring.ready(), "or nobody would come back to it"
    rig.ring.turn(60, rig.done)
    assert (rig.ring.short, rig.done, op.res) == (False, [op], 1)


def test_a_turn_that_is_interrupted_or_times_out_is_not_short_of_anything(rig, answers):
    op = rig.send(b"x")
    answers.give(-errno.EINTR, -errno.ETIME)
    for _ in range(2):
        rig.ring.turn(60, rig.done)
        assert (rig.ring.short, rig.done) == (False, [])
    answers.stop()
    rig.ring.turn(60, rig.done)
    assert (rig.done, op.res) == ([op], 1)


@pytest.mark.parametrize("code", SHORTAGES)
def test_a_shortage_with_nothing_queued_is_told_and_forgotten(rig, answers, code):
    answers.give(-code)
    rig.ring.turn(60, rig.done)
    answers.stop()
    assert rig.ring.short
    while rig.ring.ready():
        rig.ring.turn(0, rig.done)
    rig.ring.turn(0, rig.done)
    assert not rig.ring.short


@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.EBADFD, errno.EEXIST, errno.EBADR, errno.ENXIO]
)
def test_what_had_completed_before_the_end_is_not_lost(rig, answers, code):
    op = rig.receive()
    rig.ring.flush()
    rig.a.send(b"x")
    # Task work is done by any enter: here, without a look.
    while not answers.real.tu_more(rig.ring._c) & 1:
        answers.real.tu_enter(rig.ring._c, 0, 1, -1.0)
    answers.give(-code)
    with pytest.raises(RingBrokenError) as caught:
        rig.ring.turn(60, rig.done)
    answers.stop()
    assert caught.value.errno == code
    assert (rig.done, op.res, op.state) == ([op], 1, DONE)


def invalid(rig) -> Operation:
    """The kernel refuses it, and without SUBMIT_ALL it takes no further entry of that enter."""
    op = Operation(Opcode.POLL_ADD, rig.b.fileno(), rig.b)
    op.flags, op.length = select.POLLIN, 8  # of which it knows nothing
    assert rig.ring.submit(op)
    return op


@pytest.mark.parametrize("how", ["turn", "flush"])
def test_a_part_is_taken_and_the_rest_by_the_next_enter(how):
    rig = Rig("plain")
    ops = [rig.send(b"x"), invalid(rig), rig.receive(), invalid(rig), invalid(rig)]
    enters = rig.ring.enters
    if how == "flush":
        assert rig.ring.flush()
        assert rig.ring.enters == enters + 3
    while rig.ring.table:
        rig.ring.turn(60, rig.done)
        assert not rig.ring.short
    assert set(rig.done) == set(ops)
    assert [op.res for op in ops] == [1, -errno.EINVAL, 1, -errno.EINVAL, -errno.EINVAL]
    rig.close()


# -- in a flush, and in a drain


def test_a_flush_is_made_again_after_a_signal_and_given_up_for_now_when_memory_is_short(
    rig, answers
):
    op = rig.send(b"x")
    answers.give(-errno.EINTR, -errno.EINTR, -errno.EAGAIN)
    assert rig.ring.flush() is False
    answers.stop()
    assert rig.ring.flush() is True
    assert not rig.ring.short
    rig.ring.drain(rig.done)
    assert (rig.done, op.res) == ([op], 1)


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("more", [TASKRUN, OVERFLOW])
@pytest.mark.parametrize("code", SHORTAGES)
def test_a_drain_does_not_spin_while_enter_is_short(rig, answers, code, more, queued):
    """The kernel says that there is more, and that it cannot tell: another pass asks again."""
    op = rig.send(b"x") if queued else None
    answers.give(-code, more=more)
    rig.ring.drain(rig.done)
    answers.stop()
    assert rig.ring.short
    if op is not None:
        rig.ring.turn(60, rig.done)
        assert (rig.done, op.res) == ([op], 1)


@pytest.mark.parametrize("code", SHORTAGES)
def test_a_turn_does_not_spin_either(rig, answers, code):
    answers.give(-code, more=TASKRUN)  # one enter, and the next pass asks again
    rig.ring.turn(60, rig.done)
    answers.stop()
    assert rig.ring.short


@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.EBADFD, errno.EEXIST, errno.EBADR, errno.ENXIO]
)
def test_an_enter_that_fails_for_good_says_so(rig, answers, code):
    op = rig.send(b"x")
    answers.give(-code)
    with pytest.raises(RingBrokenError) as caught:
        rig.ring.flush()
    answers.stop()
    assert caught.value.errno == code
    rig.ring.flush()
    rig.ring.drain(rig.done)
    assert op.res == 1


def test_dropped_completions_are_fatal(rig, answers):
    answers.give(more=OVERFLOW)
    _ring.lib.tu_overflowed = lambda _: 1
    with pytest.raises(RingBrokenError, match="dropped"):
        rig.ring.drain(rig.done)
    answers.stop()


MORE = 1 << 1  # IORING_CQE_F_MORE


@pytest.mark.parametrize("how", ["turn", "drain"])
def test_a_completion_that_is_not_the_last_one_breaks_the_ring_and_unpins_nothing(monkeypatch, how):
    """Nothing is asked for that could have several. What came with it is not lost."""
    rig = Rig()
    sending, receiving = rig.send(b"x"), rig.receive()
    real_drain, real_turn, view = _ring.lib.tu_drain, _ring._tu_turn, rig.ring._view

    def promise(count: int) -> int:
        for index in range(count):
            if view[2 + 3 * index] == receiving.token:
                view[2 + 3 * index + 2] |= MORE
        return count

    lib = types.SimpleNamespace(**{name: getattr(_ring.lib, name) for name in dir(_ring.lib)})
    lib.tu_drain = lambda *arguments: promise(real_drain(*arguments))
    monkeypatch.setattr(_ring, "lib", lib)
    monkeypatch.setattr(_ring, "_tu_turn", lambda *arguments: promise(real_turn(*arguments)))

    def go_on() -> None:
        if how == "drain":
            rig.ring.flush()
            rig.ring.drain(rig.done)
        while True:
            rig.ring.turn(60, rig.done)

    with pytest.raises(RingBrokenError, match="announced more completions of <RECV") as caught:
        go_on()
    assert caught.value.errno == errno.EPROTO
    assert (rig.done, sending.res, sending.state) == ([sending], 1, DONE)
    assert list(rig.ring.table.values()) == [receiving]
    assert receiving.state.in_kernel
    assert receiving.pin is not None
    with pytest.warns(ResourceWarning, match="leaked a ring"):
        assert not rig.ring.close()
    rig.ring.table.clear()  # the kernel has not really any more to say
    assert rig.ring.close()
    rig.a.close()
    rig.b.close()


# -- a cancel that does not find its target


class Missing:
    """The kernel, where the first cancels of an operation do not find it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, misses: int) -> None:
        self.misses = misses
        self.asked = 0
        real = types.SimpleNamespace(**{name: getattr(_ring.lib, name) for name in dir(_ring.lib)})

        def tu_cancel(c: object, target: int) -> int:
            self.asked += 1
            return int(
                real.tu_cancel(c, target)
                if self.asked > self.misses
                else self.miss(real, c, target)
            )

        monkeypatch.setattr(
            _ring, "lib", types.SimpleNamespace(**{**vars(real), "tu_cancel": tu_cancel})
        )

    @staticmethod
    def miss(real: types.SimpleNamespace, c: object, target: int) -> int:
        """A cancel of what there is not; its completion has the token that the right one would
        have."""
        entry = _ring.ffi.new(
            "struct tu_entry *", (Opcode.ASYNC_CANCEL | 0xFFFFFFFF << 32, 0, 0, 0)
        )
        return int(real.tu_submit(c, entry, _ring.ffi.cast("void *", 2**61), 0, target | 1 << 63))


@pytest.mark.parametrize("misses", [1, 2, 7])
@pytest.mark.parametrize("flushed", [False, True])
def test_a_cancel_that_misses_its_target_is_made_again(rig, monkeypatch, misses, flushed):
    missing = Missing(monkeypatch, misses)
    op = rig.receive()
    if flushed:
        rig.ring.flush()
    rig.ring.cancel(op)
    while op.state.in_kernel:  # a lost one hangs here
        rig.ring.turn(60, rig.done)
    assert (rig.done, op.res) == ([op], -errno.ECANCELED)
    assert missing.asked == misses + 1


def test_a_cancel_that_is_to_be_made_again_is_something_to_do(rig, monkeypatch):
    Missing(monkeypatch, 1)
    op = rig.receive()
    rig.ring.flush()
    rig.ring.cancel(op)
    while not rig.ring.drain(rig.done):
        rig.ring.flush()
    assert op.state is CANCELLING
    assert rig.ring.ready(), "or a loop that is busy otherwise would not enter for it"


def test_a_cancel_that_misses_because_its_target_is_done_is_not_made_again(rig, monkeypatch):
    missing = Missing(monkeypatch, 1)
    op = rig.receive()
    rig.ring.flush()
    rig.a.send(b"x")
    rig.ring.cancel(op)
    while op.state.in_kernel:
        rig.ring.turn(60, rig.done)
    while rig.ring.ready():
        rig.ring.turn(0, rig.done)
    assert (rig.done, op.res, missing.asked) == ([op], 1, 1)


def test_more_cancels_than_slots_are_something_to_do(rig):
    """Those that found no room wait for the next enter, also where nothing else asks for one."""
    pairs = [socket.socketpair() for _ in range(2 * rig.ring.info.sq_entries)]
    ops = []
    for a, _ in pairs:
        op = Operation(Opcode.RECV, a.fileno(), a)
        op.buffer, op.length = bytearray(8), 8
        while not rig.ring.submit(op):
            rig.ring.flush()
        ops.append(op)
    rig.ring.flush()
    for op in ops:
        rig.ring.cancel(op)
    while rig.ring.ready():
        rig.ring.turn(0, rig.done)
    assert {op.res for op in ops} == {-errno.ECANCELED}
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()
