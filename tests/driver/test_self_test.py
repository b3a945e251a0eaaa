"""The self-test: what it tries on each kind of ring, and what it says it could not try.

Rules of this file: rings with a defect, which must not be used, are in
tests/robustness/test_unavailable.py.
"""

from __future__ import annotations

import _thread
import socket

import pytest

from trio_uring._driver import trial as _trial
from trio_uring._ring.uring import UringRing

pytestmark = pytest.mark.uring_only("the kernel's ring itself")


@pytest.mark.parametrize("provide_buffers", [True, False])
@pytest.mark.parametrize("flags", ["coop", "defer", "plain"])
def test_a_ring_that_works_passes(flags, provide_buffers):
    ring = UringRing(flags, 16, provide_buffers=provide_buffers)
    assert _trial.self_test(ring) is None
    assert not ring.table
    assert ring.close()


class Silent(UringRing):
    """Its descriptor never tells of a completion."""

    silent: socket.socket

    def fileno(self):
        return self.silent.fileno()


@pytest.mark.parametrize(("flags", "fails"), [("coop", True), ("defer", False), ("plain", True)])
def test_the_descriptor_is_not_asked_of_a_ring_that_defers(monkeypatch, flags, fails):
    """It wakes no epoll that sleeps: such a ring is waited for by its enter alone."""
    monkeypatch.setattr(_trial, "TRIAL_SECONDS", 0.05 if fails else 30)
    ring = Silent(flags, 16)
    ring.silent, other = socket.socketpair()
    with ring.silent, other:
        found = _trial.self_test(ring)
        assert ("an epoll that watches the ring" in str(found)) is fails
        if not fails:
            assert found is None
        ring.drain([])
    assert ring.close()


@pytest.mark.parametrize("exception", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("flags", ["coop", "defer", "plain"])
def test_without_a_thread_it_says_what_it_has_not_tried(monkeypatch, flags, exception):
    def refuse(*_):
        raise exception

    ring = UringRing(flags, 16)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    found = _trial.self_test(ring)
    assert "that another one wakes a sleeping thread was not tested" in found
    assert ring.close()


@pytest.mark.parametrize("flags", ["coop", "defer", "plain"])
def test_a_pause_of_the_process_is_no_defect(monkeypatch, flags):
    """The time is up, and the thread that sends has not had its turn."""
    works, slept = _trial._sleep_in_ring, []

    def sleep(ring, op):
        slept.append(op)
        return len(slept) > 2 and works(ring, op)

    monkeypatch.setattr(_trial, "_sleep_in_ring", sleep)
    ring = UringRing(flags, 16)
    assert _trial.self_test(ring) is None
    assert len(slept) == 4
    ring.drain([])
    assert not ring.table
    assert ring.close()
