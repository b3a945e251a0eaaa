"""Seccomp filters that do not refuse io_uring, but end the process that tries it or never answer.

Rules of this file: the filter is the kernel's own, in a child process, which must live and say why
it waits by readiness.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support import seccomp
from support.child import expect_log, in_child
from support.fallback import asked_for, auto, check_sentence, falls_back, works

import trio_uring
from trio_uring._cli import info as _info
from trio_uring._driver import backend as _backend
from trio_uring._driver import trial as _trial

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = {
    "io_uring_setup": seccomp.IO_URING_SETUP,
    "io_uring_register": seccomp.IO_URING_REGISTER,
    "io_uring_enter": seccomp.IO_URING_ENTER,
}
ACTIONS = {name: getattr(seccomp, name) for name in ("KILL_PROCESS", "KILL_THREAD", "TRAP")}


def count_trials() -> list[int]:
    """A list that grows with each child process that tries io_uring."""
    pids: list[int] = []
    start = _trial.lib.tu_try_calls

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def tu_try_calls(self, stage: Any) -> int:
            pids.append(start(stage))
            return pids[-1]

    lib, _trial.lib = _trial.lib, Counting()
    return pids


def refused(call: str, *says: str) -> None:
    """In "auto" it falls back each time; asked for, io_uring is refused for the same reason."""
    told, trials = auto(), count_trials()
    for _ in range(3):
        trio.run(falls_back, f"{call} is forbidden here by a seccomp filter")
    assert len(told.messages) == 1
    check_sentence(told.messages[0], "trio_uring waits by readiness", *says)
    says_so = f"{call} is forbidden.*asked for by this run"
    with pytest.raises(trio_uring.RingUnavailableError, match=says_so) as caught:
        trio.run(asked_for)
    assert caught.value.errno == errno.EPERM
    lines = "\n".join(_info.describe())
    assert "backend                     readiness: " + call in lines
    assert "io_uring                    not available: " + call in lines
    assert len(trials) == 1, "the result holds for the process"
    for pid in trials:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, _trial._WAIT_ALL)


@pytest.mark.parametrize("action", list(ACTIONS))
@pytest.mark.parametrize("call", list(CALLS))
@in_child()
def test_a_filter_kills(call: str, action: str) -> None:
    seccomp.answer(CALLS[call], ACTIONS[action])
    allow = "has to allow io_uring_setup, io_uring_enter and io_uring_register"
    refused(call, "was killed by SIGSYS", allow)


def once_started(do: Callable[[Any], None]) -> None:
    """Has `do(stage)` called when the child has been started, before anybody waits for it."""
    start = _trial.lib.tu_try_calls

    class Lib:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def tu_try_calls(self, stage: Any) -> int:
            pid: int = start(stage)
            do(stage)
            return pid

    lib, _trial.lib = _trial.lib, Lib()


def until_child_tries(call: int) -> None:
    """The trials last no longer than they have to, but not shorter than until the child has begun
    that call."""

    def until_it_tries(stage: Any) -> None:
        while stage[0] != call:
            time.sleep(0.001)

    once_started(until_it_tries)
    _trial.TRIAL_SECONDS = 0.05  # type: ignore[misc]


@in_child()
def test_a_filter_asks_a_process_that_does_not_answer() -> None:
    listener = seccomp.ask_nobody(seccomp.IO_URING_REGISTER)
    until_child_tries(_trial.lib.TU_TRIES_REGISTER)
    refused("io_uring_register", "did not return from it within 0.05 s")
    os.close(listener)


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS"])
@in_child()
def test_a_filter_forbids_the_child_too(name: str) -> None:
    auto()
    seccomp.answer(seccomp.IO_URING_SETUP, seccomp.KILL_PROCESS)
    seccomp.deny(seccomp.CLONE, getattr(errno, name))
    says = f"clone failed with {name}: the filter forbids that, too"
    trio.run(falls_back, says)
    with pytest.raises(trio_uring.RingUnavailableError, match=says):
        trio.run(asked_for)


@in_child()
def test_a_filter_does_not_let_us_wait_for_the_child() -> None:
    auto()
    seccomp.deny(seccomp.WAIT4, errno.EPERM)
    assert _trial.try_system_calls() is None
    seccomp.answer(seccomp.IO_URING_ENTER, seccomp.KILL_PROCESS)
    until_child_tries(_trial.lib.TU_TRIES_ENTER)
    trio.run(falls_back, "io_uring_enter is forbidden here by a seccomp filter")


class Paused:
    """The module `time` of a process that gets no processor for five seconds whenever it sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 5


@in_child()
def test_a_pause_of_the_machine_is_no_answer_of_the_child() -> None:
    """Nor did the child get a processor."""
    looks, waitpid = [], os.waitpid

    def late(pid: int, flags: int) -> tuple[int, int]:
        looks.append(pid)
        return (0, 0) if len(looks) < 4 else waitpid(pid, flags & ~os.WNOHANG)

    _trial.time, os.waitpid = Paused(), late  # type: ignore[assignment]
    assert _trial.try_system_calls() is None
    assert len(looks) == 4


@pytest.mark.uring_only("io_uring is used until then")
@in_child()
def test_a_filter_that_comes_later_is_seen_by_the_next_run() -> None:
    auto()
    assert trio_uring.run(backend_of_a_run) == "uring"
    seccomp.answer(seccomp.IO_URING_SETUP, seccomp.KILL_PROCESS)
    assert trio_uring.run(backend_of_a_run) == "readiness"
    expect_log("trio_uring waits by readiness")  # an enabled run warns


@pytest.mark.uring_only("io_uring is used")
@pytest.mark.parametrize("readable", [True, False])
@in_child()
def test_a_filter_that_lets_io_uring_be_used(readable: bool) -> None:
    told, trials = auto(), count_trials()
    if not readable:  # as without /proc: there might be a filter
        _trial._STATUS = "/nowhere"
    else:
        assert _trial.seccomp_filters() == ()
        seccomp.deny(seccomp.SWAPON, errno.EPERM)
        assert _trial.seccomp_filters()
    for _ in range(3):
        assert trio_uring.run(backend_of_a_run) == "uring"
    assert len(trials) == 1
    assert not told.messages


@pytest.mark.uring_only("io_uring is used")
@in_child()
def test_without_a_filter_there_is_no_child() -> None:
    auto()
    trials = count_trials()
    assert trio_uring.run(backend_of_a_run) == "uring"
    assert not trials


async def backend_of_a_run() -> str:
    await works()
    return trio_uring.backend_info().backend


# -- what the program sees of it


@pytest.mark.parametrize("action", ["KILL_PROCESS", "TRAP"])
@pytest.mark.parametrize("children", ["handled", "ignored", "reaped"])
@in_child()
def test_the_program_sees_nothing_of_the_child(children: str, action: str) -> None:
    """No SIGCHLD, no SIGSYS, no byte in the wake-up descriptor, no atfork function; and it may reap
    whatever it likes."""
    seen: list[object] = []
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    signal.signal(signal.SIGSYS, lambda *_: seen.append("SIGSYS"))
    on_end = signal.SIG_IGN if children == "ignored" else lambda *_: seen.append("SIGCHLD")
    signal.signal(signal.SIGCHLD, on_end)
    os.register_at_fork(
        before=lambda: seen.append("before"),
        after_in_parent=lambda: seen.append("parent"),
        after_in_child=lambda: seen.append("child"),
    )
    auto()
    seccomp.answer(seccomp.IO_URING_SETUP, ACTIONS[action])
    if children == "reaped":
        race_for_the_child()
    info = _backend.probe()
    assert info.backend == "readiness"
    check_sentence(info.reason, "io_uring_setup is forbidden")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, _trial._WAIT_ALL)
    assert seen == []
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    signal.set_wakeup_fd(-1)
    ours.close()
    theirs.close()


def race_for_the_child() -> None:
    """Another thread waits for whatever ends, and is first."""

    def reap(stage: Any) -> None:
        reaper = threading.Thread(target=os.waitpid, args=[-1, _trial._WAIT_ALL])
        reaper.start()
        reaper.join()

    once_started(reap)


@in_child()
def test_the_signal_mask_is_as_before() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})
    assert _trial.try_system_calls() is None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}
