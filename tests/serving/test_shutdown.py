"""Shutdown: what it cancels, and when; signals; other threads.

Rules of this file: no clock but trio's MockClock decides anything. Signals are real.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.child import in_child

from trio_uring import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.no_ring


async def test_waiting_and_scopes_end_when_it_is_started() -> None:
    shutdown = Shutdown()
    ended: list[str] = []

    async def wait() -> None:
        await shutdown.wait()
        ended.append("wait")

    async def scope() -> None:
        with shutdown.cancel_on_start() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        ended.append("scope")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(scope)
        await trio.testing.wait_all_tasks_blocked()
        assert (shutdown.started, ended) == (False, [])
        shutdown.start()
        shutdown.start()
        assert shutdown.started
    assert sorted(ended) == ["scope", "wait"]
    await shutdown.wait()
    with shutdown.cancel_on_start() as late:
        await trio.sleep_forever()
    assert late.cancelled_caught


async def test_a_waiting_task_is_cancelled_by_its_own_scope() -> None:
    shutdown = Shutdown()
    with trio.CancelScope() as outer:
        outer.cancel()
        await shutdown.wait()
    assert outer.cancelled_caught
    assert not shutdown.started
    shutdown.start()
    with trio.CancelScope() as outer:
        outer.cancel()
        await shutdown.wait()
    assert outer.cancelled_caught  # wait is a checkpoint, also when it was started


async def test_the_time_of_grace(autojump_clock: trio.testing.MockClock) -> None:
    shutdown = Shutdown(grace=7)
    times: list[float] = []

    async def work() -> None:
        with shutdown.cancel_after_grace():
            await trio.sleep_forever()
        times.append(trio.current_time() - begin)

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.sleep(3)
        shutdown.start()
        await trio.sleep(2)
        shutdown.start()  # changes nothing
        nursery.start_soon(work)  # came late: the same deadline
    assert times == [10, 10]
    await work()
    assert times == [10, 10, 10]


async def test_a_deadline_of_ones_own_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    shutdown = Shutdown(grace=7)
    begin = trio.current_time()
    with shutdown.cancel_after_grace() as scope:
        scope.deadline = begin + 2
        shutdown.start()
        await trio.sleep_forever()
    assert trio.current_time() - begin == 2


async def test_no_limit_until_it_is_cut_short(autojump_clock: trio.testing.MockClock) -> None:
    shutdown = Shutdown(grace=math.inf)
    shutdown.start()
    with shutdown.cancel_after_grace() as scope:
        await trio.sleep(80_000)
        shutdown.cut_short()
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 80_000


async def test_cutting_short_starts_it() -> None:
    shutdown = Shutdown(grace=math.inf)
    with shutdown.cancel_after_grace():
        shutdown.cut_short()
        await shutdown.wait()
        await trio.sleep_forever()
    assert shutdown.started


async def test_the_time_of_grace_that_is_over_is_not_begun_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shutdown = Shutdown(grace=1)
    shutdown.start()
    await trio.sleep(5)
    shutdown.cut_short()
    with shutdown.cancel_after_grace():
        await trio.sleep_forever()
    assert trio.current_time() == 5


def test_it_may_be_started_before_there_is_a_run() -> None:
    shutdown = Shutdown(grace=3)
    shutdown.start()

    async def main() -> None:
        await shutdown.wait()
        with shutdown.cancel_after_grace():
            await trio.sleep_forever()
        assert trio.current_time() == 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    shutdown.start()  # and after it
    shutdown.cut_short()


async def test_another_thread_starts_it() -> None:
    shutdown = Shutdown()
    thread = threading.Thread(target=shutdown.start)
    with shutdown.cancel_on_start() as scope:
        thread.start()
        await trio.sleep_forever()
    thread.join()
    assert scope.cancelled_caught


@pytest.mark.parametrize("arguments", [{"grace": -1}, {"quiet": -0.1}, {"grace": math.nan}])
def test_wrong_seconds(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        Shutdown(**arguments)


def test_repr() -> None:
    shutdown = Shutdown(grace=5)
    assert repr(shutdown) == "<Shutdown grace=5 quiet=0.2, not started>"
    shutdown.start()
    assert repr(shutdown) == "<Shutdown grace=5 quiet=0.2, started>"


# -- signals


async def test_the_first_signal_starts_it_and_the_second_cuts_it_short() -> None:
    shutdown = Shutdown(grace=math.inf)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with shutdown.on_signals(signal.SIGTERM, signal.SIGINT):
        with shutdown.cancel_after_grace() as scope:
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()
            assert not scope.cancel_called
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_a_signal_wakes_a_run_in_which_nothing_else_happens() -> None:
    shutdown = Shutdown()
    blocked = threading.Event()

    def kill() -> None:
        blocked.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=kill)
    thread.start()
    with shutdown.on_signals(signal.SIGTERM):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shutdown.wait)
            await trio.testing.wait_all_tasks_blocked()
            blocked.set()
    thread.join()


async def test_a_start_by_other_means_is_not_the_first_signal() -> None:
    """A supervisor that asks twice, in two ways, is not in a hurry."""
    shutdown = Shutdown(grace=math.inf)
    with shutdown.on_signals(signal.SIGTERM):
        with shutdown.cancel_after_grace() as scope:
            shutdown.start()
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            assert not scope.cancel_called
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()


def test_the_second_control_c_is_a_keyboard_interrupt() -> None:
    shutdown = Shutdown(grace=math.inf)

    async def main() -> None:
        with shutdown.on_signals(signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            await shutdown.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_control_c_ends_a_program_that_hangs() -> None:
    shutdown = Shutdown()

    async def main() -> None:
        with shutdown.on_signals(signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_wrong_signals() -> None:
    shutdown = Shutdown()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="out of range"):
        with shutdown.on_signals(signal.SIGTERM, 10_000):  # type: ignore[arg-type]
            pass
    assert signal.getsignal(signal.SIGTERM) is before

    async def elsewhere() -> None:
        with shutdown.on_signals(signal.SIGTERM):
            pass

    def thread() -> None:
        with pytest.raises(ValueError, match="main thread"):
            trio.run(elsewhere)

    await trio.to_thread.run_sync(thread)


def test_signals_need_a_run() -> None:
    with pytest.raises(RuntimeError), Shutdown().on_signals(signal.SIGTERM):
        pass


# -- forked children


def forked(child: Callable[[], object], *signals: signal.Signals) -> int:
    """Forks, and sends the child these signals, each when the one before has been handled.

    Returns:
        Its exit status, or -signal; 0: `child` returned.
    """
    here, there = os.pipe()
    if (pid := os.fork()) == 0:
        # Also by an exception that is no Exception, the copy of the test must not go on.
        status = 99
        try:
            os.write(there, b"up")  # Python drops signals that come before the child is up
            child()
            status = 0
        except KeyboardInterrupt:
            status = 98
        finally:
            os._exit(status)
    os.read(here, 2)
    for each in signals:
        os.kill(pid, each)
    _, status = os.waitpid(pid, 0)
    os.close(here)
    os.close(there)
    return os.waitstatus_to_exitcode(status)


def sleep() -> None:
    for _ in range(6000):  # Python runs a handler only between calls
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_a_forked_child_is_ended_by_a_signal_as_ever() -> None:
    async def main() -> None:
        shutdown = Shutdown()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with shutdown.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            assert forked(sleep, signal.SIGTERM) == -signal.SIGTERM
            assert forked(sleep, signal.SIGHUP, signal.SIGTERM) == -signal.SIGTERM
            assert forked(sleep, signal.SIGINT) == 98  # KeyboardInterrupt, by trio's rules
            await trio.testing.wait_all_tasks_blocked()
            assert not shutdown.started
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()

    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("at_once", [True, False])
@in_child()
def test_multiprocessing_ends_what_it_has_forked(at_once: bool) -> None:
    async def main() -> None:
        with Shutdown().on_signals(signal.SIGTERM):
            context: Any = multiprocessing.get_context("fork")
            for _ in range(20):
                up = context.Event()
                child = context.Process(target=lambda up=up: (up.set(), sleep()))
                child.start()
                assert at_once or up.wait(30)
                child.terminate()
                child.join(30)
                assert child.exitcode == -signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)  # no longer held, and not given back, here
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_the_kernel_knows_what_signals_do_in_a_forked_child() -> None:
    """Python would run a handler only after the blocking call that had just begun."""

    def mine(number: int, frame: object) -> None:
        pass

    signal.signal(signal.SIGHUP, mine)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]

    def child() -> None:
        found = [signal.getsignal(number) for number in numbers]
        assert found == [signal.SIG_DFL, mine, mine, signal.SIG_IGN], found
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

    async def main() -> None:
        shutdown = Shutdown()
        with shutdown.on_signals(*numbers), Shutdown().on_signals(*numbers):
            signal.signal(signal.SIGUSR1, mine)  # over ours: it stays
            assert forked(child) == 0
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            assert not shutdown.started

    trio.run(main)
    found = [signal.getsignal(number) for number in numbers]
    assert found == [signal.SIG_DFL, mine, signal.SIG_DFL, signal.SIG_IGN]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_a_forked_child_may_have_a_shutdown_of_its_own() -> None:
    """Its second signal cuts it short, and does not go on to the handler that it inherited."""

    def child() -> None:
        trio.run(serve)

    async def serve() -> None:
        shutdown = Shutdown(grace=math.inf)
        with shutdown.on_signals(signal.SIGTERM), shutdown.cancel_after_grace():
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()

    async def main() -> None:
        block.enter_context(Shutdown().on_signals(signal.SIGTERM))

    # The child cannot begin a run within its parent's, so it is forked when that is over.
    with contextlib.ExitStack() as block:
        trio.run(main)
        assert forked(child) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_a_handler_over_ours_that_passes_on_reaches_the_one_before_in_a_forked_child() -> None:
    def over(number: int, frame: object) -> None:
        earlier[number](number, frame)

    def mine(number: int, frame: object) -> None:
        os._exit(42)

    async def main() -> None:
        signal.signal(signal.SIGUSR1, mine)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        shutdown = Shutdown()
        with shutdown.on_signals(*numbers):
            for number in numbers:
                earlier[number] = signal.signal(number, over)
            assert forked(sleep, signal.SIGUSR2, signal.SIGUSR1) == 42
            assert forked(sleep, signal.SIGTERM) == -signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()

    numbers = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2
    earlier: dict[int, Any] = {}
    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_a_forked_child_that_leaves_the_block_keeps_handlers_of_its_own() -> None:
    def mine(number: int, frame: object) -> None:
        pass

    def leave(block: contextlib.ExitStack) -> None:
        with block:
            signal.signal(signal.SIGTERM, mine)
        assert signal.getsignal(signal.SIGTERM) is mine

    async def main() -> None:
        with contextlib.ExitStack() as block:
            block.enter_context(Shutdown().on_signals(signal.SIGTERM))
            assert forked(functools.partial(leave, block)) == 0

    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("at", ["_hold", "_give_all_back"])
@in_child()
def test_a_handler_that_raises_around_a_fork_leaves_no_signal_held(at: str) -> None:
    """Python ignores what functions around a fork raise, and says so."""

    class Sudden(Exception):
        pass

    def alarm(number: int, frame: Any) -> None:
        raise Sudden

    def profile(frame: Any, event: str, arg: object) -> None:
        # At the function's first call, which is one of the kernel's, or of signal.getsignal.
        if event == "c_call" and frame.f_code.co_name == at:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGALRM)

    def held() -> set[int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    async def main() -> None:
        signal.signal(signal.SIGALRM, alarm)
        ignored: list[Any] = []
        sys.unraisablehook = lambda info: ignored.append(info.exc_type)
        with Shutdown().on_signals(signal.SIGTERM):
            # A mask that was noted for an earlier fork is not for the next.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            assert forked(check_nothing_is_held_but_usr1) == 0
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            sys.setprofile(profile)
            status = forked(check_nothing_is_held)
            sys.setprofile(None)
            assert status == 0
            assert held() == set()
        assert set(ignored) <= {Sudden}

    def check_nothing_is_held() -> None:
        assert held() == set()

    def check_nothing_is_held_but_usr1() -> None:
        assert held() == {signal.SIGUSR1}

    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@in_child()
def test_a_child_that_another_thread_forks() -> None:
    def child() -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

    async def main() -> None:
        with Shutdown().on_signals(signal.SIGTERM):
            assert await trio.to_thread.run_sync(forked, child) == 0
            assert await trio.to_thread.run_sync(forked, sleep, signal.SIGTERM) == -signal.SIGTERM
            assert callable(signal.getsignal(signal.SIGTERM))

    trio.run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("when", ["taken", "given back"])
@in_child()
def test_a_fork_at_the_moment_in_which_a_handler_changes(when: str) -> None:
    """As another thread may do it."""
    statuses: list[int] = []
    install = signal.signal

    def signals(number: int, handler: Any) -> Any:
        before = install(number, handler)
        ours = number == signal.SIGTERM and callable(handler)
        if os.getpid() == process and ours is (when == "taken"):
            statuses.append(forked(child))
        return before

    def child() -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    async def main() -> None:
        signal.signal = signals
        try:
            with Shutdown().on_signals(signal.SIGTERM):
                pass
        finally:
            signal.signal = install

    process = os.getpid()
    trio.run(main)
    assert statuses == [0]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# -- several at a time


async def test_blocks_may_end_in_any_order() -> None:
    """Those of two tasks, for instance."""
    before = signal.getsignal(signal.SIGTERM)
    first, second, third = shutdowns = Shutdown(), Shutdown(), Shutdown()
    blocks = [each.on_signals(signal.SIGTERM) for each in shutdowns]
    for block in blocks:
        block.__enter__()
    blocks[0].__exit__(None, None, None)
    blocks[1].__exit__(None, None, None)
    os.kill(os.getpid(), signal.SIGTERM)
    await third.wait()
    blocks[2].__exit__(None, None, None)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not first.started
    assert not second.started


@pytest.mark.parametrize("when", ["taken", "given back"])
def test_a_control_c_while_handlers_change_leaves_none_behind(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = signal.signal
    numbers = [signal.SIGTERM, signal.SIGABRT]

    def signals(number: int, handler: Any) -> Any:
        before = install(number, handler)
        if number == signal.SIGTERM and isinstance(handler, int) is (when == "given back"):
            signal.raise_signal(signal.SIGINT)
        return before

    async def main() -> None:
        monkeypatch.setattr(signal, "signal", signals)
        try:
            with Shutdown().on_signals(*numbers):
                pass
        finally:
            monkeypatch.undo()
        await trio.lowlevel.checkpoint()

    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert [signal.getsignal(number) for number in numbers] == before
