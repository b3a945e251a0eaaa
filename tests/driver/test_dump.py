"""The dump of the operations in flight: what it says, and that a signal may ask for it at any time.

Rules of this file: a program that is asked by a signal is a process of its own, which says when it
is where the test wants it. What the dump has to say is known from what the program does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.child import driver, in_child, stream_pair
from support.streams import closing, tcp_sockets, unix_sockets, until_blocked

import trio_uring
from trio_uring import SocketStream
from trio_uring._driver import dump as _dump
from trio_uring._driver import run as _run
from trio_uring._driver.looking import peer_of, waits_at

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).name
NO_RUN = "no trio.run of this process has used trio_uring, or all of them are over"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")


# -- what it says


async def reads(stream: SocketStream) -> None:
    await stream.receive_some()


async def handles(stream: SocketStream) -> None:
    await reads(stream)


async def test_an_operation_of_a_stream() -> None:
    left, right = tcp_sockets()
    stream = SocketStream(left)
    async with closing(stream, right), trio.open_nursery() as nursery:
        nursery.start_soon(handles, stream, name="the reader")
        [found] = await until_blocked(left.fileno())
        host, port = right.getsockname()[:2]
        assert found.peer == f"{host}:{port}"
        inner, outer = found.waits_at
        assert re.fullmatch(rf".*{HERE}:\d+ in reads", inner)
        assert re.fullmatch(rf".*{HERE}:\d+ in handles", outer)
        text = trio_uring.dump_operations()
        heading, line = text.splitlines()
        assert re.fullmatch(
            r"a run in this thread, on \w+, RUNNING: 1 operation in flight", heading
        )
        assert re.fullmatch(
            rf"  RECV on descriptor {left.fileno()}, peer {host}:{port}, (SUBMITTED|WAITING), "
            rf"\d+\.\d+ s, task 'the reader' at {re.escape(inner)}, called from {re.escape(outer)}",
            line,
        )
        nursery.cancel_scope.cancel()


async def test_an_accept_of_trios_own_task() -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, reads, [listener])
        fd = listener.socket.fileno()
        port = listener.socket.getsockname()[1]
        if trio_uring.backend_info().backend == "uring":
            [found] = await until_blocked(fd)
            assert found.peer == f"(bound to 127.0.0.1:{port})"
            # No frame is the program's, so it is the function of the task.
            assert len(found.waits_at) == 1
            assert "_serve_one_listener" in found.waits_at[0]
        nursery.cancel_scope.cancel()


async def test_peers() -> None:
    left, right = unix_sockets()
    with left, right:
        assert peer_of(left) == "an unnamed socket"
    assert peer_of(left) is None
    assert peer_of(object()) is None
    with tempfile.TemporaryDirectory() as folder:
        listeners = await trio_uring.open_unix_listeners(f"{folder}/s")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/s")
            assert peer_of(client) == f"{folder}/s"
        for listener in listeners:
            await listener.aclose()


def test_addresses() -> None:
    from trio_uring._driver.looking import _address

    assert _address(("::1", 80, 0, 0)) == "[::1]:80"
    assert _address(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert _address(b"\0name") == "@name"
    assert _address("/run/x") == "/run/x"
    # What the peer chose goes to somebody's terminal, in one line.
    assert _address("/run/\x1b[2J\n") == "/run/\\x1b[2J\\n"
    assert _address(b"\0\x07\xff") == "@\\x07\ufffd"


@pytest.mark.no_ring
def test_where_there_is_no_run() -> None:
    assert trio_uring.dump_operations() == NO_RUN


def test_where_the_run_is_over() -> None:
    async def main() -> None:
        left, right = stream_pair()
        async with closing(left, right):
            await left.send_all(b"x")
            await right.receive_some()
            assert "0 operations in flight" in trio_uring.dump_operations()

    trio.run(main)
    assert trio_uring.dump_operations() == NO_RUN


async def reads_meanwhile(here: threading.Barrier, there: threading.Event) -> None:
    """A run that waits for a byte when it comes `here`, until somebody is `there`."""
    left, right = stream_pair()
    async with closing(left, right), trio.open_nursery() as nursery:
        nursery.start_soon(reads, left)
        await until_blocked(left.socket.fileno())
        here.wait()
        assert there.wait(20)
        nursery.cancel_scope.cancel()


def test_two_runs_in_two_threads() -> None:
    here, there = threading.Barrier(3, timeout=20), threading.Event()

    threads = [
        threading.Thread(target=trio.run, args=(reads_meanwhile, here, there)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    here.wait()
    text = trio_uring.dump_operations()
    there.set()
    for thread in threads:
        thread.join()
    assert {int(n) for n in re.findall(r"^a run in thread (\d+), ", text, re.MULTILINE)} == {
        thread.ident for thread in threads
    }
    assert text.count("RECV on descriptor") == 2
    assert text.count(" in reads") == 2


def test_a_task_that_is_gone_or_odd() -> None:
    class Odd:
        name = "odd"

        def iter_await_frames(self) -> Iterator[Any]:
            yield sys._getframe(), 7
            raise TypeError("no such coroutine")

    assert waits_at(None) == ()
    [place] = waits_at(Odd())
    assert place.endswith(f"{HERE}:7 in iter_await_frames")


def test_what_changes_meanwhile_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [RuntimeError("dictionary changed size"), KeyError(), []]

    def look() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(_dump, "going_on", look)
    assert trio_uring.dump_operations() == NO_RUN
    assert not answers

    def never() -> Any:
        raise RuntimeError

    class Driver:
        engine = type("Engine", (), {"thread": 1, "phase": "RUNNING"})
        backend = type("Backend", (), {"backend": "uring"})
        operations = staticmethod(never)

    monkeypatch.setattr(_dump, "going_on", lambda: [Driver])
    assert "change faster than they can be read" in trio_uring.dump_operations()


# -- by a signal


PROGRAM = """
import os, signal, sys, threading, time
import trio, trio_uring

async def waits(stream):
    await stream.receive_some()

async def stands_still():
    print("here", flush=True)
    while not told:
        time.sleep(0.001)  # no checkpoint

async def main(*others):
    left, right = trio.socket.socketpair()
    async with trio.SocketStream(left) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(waits, stream, name="the reader")
        await trio.testing.wait_all_tasks_blocked()
        for other in others:
            nursery.start_soon(other)
        if not others:
            print("here", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()

import trio.testing
told = []
"""
# What stands still goes on after it has been told.
TELL = """
dump = signal.getsignal(signal.SIGUSR1)
signal.signal(signal.SIGUSR1, lambda *arguments: (dump(*arguments), told.append(True)))
"""
KINDS = {
    "the loop waits": "trio_uring.run(main)",
    "a task keeps the run from going on": "trio_uring.run(main, stands_still)",
    "the run is in another thread": (
        "thread = threading.Thread(target=trio_uring.run, args=(main,))\n"
        "thread.start()\n"
        "thread.join()"
    ),
}


@contextlib.contextmanager
def program(source: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        yield process
        process.stdin.close()
        assert process.wait(30) == 0


def ask_until(process: subprocess.Popen[str], answered: threading.Event) -> None:
    """Sends the signal, and again each second: Python does not see one that comes when its thread
    has looked for signals and is about to sleep."""
    process.send_signal(signal.SIGUSR1)
    while not answered.wait(1):
        process.send_signal(signal.SIGUSR1)


def lines_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line.rstrip("\n"))
        if last in line:
            return lines
    raise AssertionError(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_is_answered_at_once(kind: str) -> None:
    source = f"{PROGRAM}assert trio_uring.dump_on_signal() == signal.SIG_DFL\n{TELL}{KINDS[kind]}"
    with program(source) as process:
        asking = threading.Event()
        asker = threading.Thread(target=ask_until, args=(process, asking))
        asker.start()
        try:
            lines = lines_until(process, "RECV on descriptor")
        finally:
            asking.set()
            asker.join()
    assert f"trio_uring, process {process.pid}: the main thread is at" in lines[0]
    if kind == "a task keeps the run from going on":
        assert re.search(r"main thread is at <string>:\d+ in stands_still", lines[0])
    thread = "in thread" if kind == "the run is in another thread" else "in this thread"
    assert f"a run {thread}" in lines[1]
    assert "1 operation in flight" in lines[1]
    assert re.search(r"task 'the reader' at <string>:\d+ in waits$", lines[2])


def test_another_signal_and_another_file(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    source = f"""
import os, signal, trio_uring
file = open({str(path)!r}, "w")
for where in (file, file.fileno()):
    trio_uring.dump_on_signal(signal.SIGUSR2, file=where)
    os.kill(os.getpid(), signal.SIGUSR2)
file.close()
os.kill(os.getpid(), signal.SIGUSR2)  # nowhere to write to: that is nobody's error
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == ("alive\n", "")
    assert path.read_text().count(NO_RUN) == 2


def test_only_in_the_main_thread_and_not_without_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            trio_uring.dump_on_signal()
        except ValueError as exc:
            errors.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(errors) == 1
    monkeypatch.delattr(signal, "SIGUSR1")
    with pytest.raises(ValueError, match="name a signal"):
        trio_uring.dump_on_signal()


def test_nothing_is_raised_from_the_handler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> str:
        raise ZeroDivisionError("a defect")

    with open(tmp_path / "dump", "w+") as file:
        before = trio_uring.dump_on_signal(file=file)
        try:
            monkeypatch.setattr(_dump, "dump_operations", fail)
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        file.seek(0)
        assert "could not look at its operations: ZeroDivisionError: a defect" in file.read()


TRAFFIC = 2000


@in_child()
def test_signals_at_any_point_of_a_pass_change_nothing() -> None:
    """A timer interrupts passes everywhere; the engine's invariants are checked throughout."""
    text, ours = "", sys.unraisablehook

    def but_trios(info: sys.UnraisableHookArgs) -> None:
        # At a run's end, trio closes signal's wakeup descriptor before it takes it back.
        error = info.exc_value
        if not (isinstance(error, OSError) and error.errno == errno.EBADF and not info.object):
            ours(info)

    sys.unraisablehook = but_trios
    with tempfile.TemporaryFile("w+") as file:
        trio_uring.dump_on_signal(signal.SIGALRM, file=file)
        while text.count("the main thread is at") <= 20 or "RECV on descriptor" not in text:
            signal.setitimer(signal.ITIMER_REAL, 0.0017, 0.0017)
            try:
                trio.run(_traffic)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            file.seek(0)
            text = file.read()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert "could not" not in text


@in_child()
def test_signals_that_come_faster_than_they_are_answered() -> None:
    """Each of them would interrupt the one before, for ever."""
    depth = deepest = 0

    def slow() -> str:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGUSR1)
        depth -= 1
        return "text"

    with open(os.devnull, "w") as file:
        trio_uring.dump_on_signal(file=file)
        _dump.dump_operations = slow
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert deepest == 1


async def _traffic() -> None:
    async def pingpong() -> None:
        left, right = stream_pair()
        async with closing(left, right), trio.open_nursery() as nursery:
            nursery.start_soon(echo, right)
            for number in range(TRAFFIC // 10):
                message = b"%d" % number
                await left.send_all(message)
                with trio.move_on_after(0 if number % 7 == 0 else 10) as scope:
                    assert await left.receive_exactly(len(message)) == message
                if scope.cancelled_caught:
                    assert await left.receive_exactly(len(message)) == message
            nursery.cancel_scope.cancel()

    async def echo(stream: SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pingpong)
    assert driver().phase.name == "RUNNING"


@in_child()
def test_a_forked_child_does_not_tell_of_its_parents_run() -> None:
    async def main() -> None:
        left, right = stream_pair()
        async with closing(left, right), trio.open_nursery() as nursery:
            nursery.start_soon(reads, left)
            await until_blocked(left.socket.fileno())
            pid = os.fork()
            if not pid:
                text = trio_uring.dump_operations()
                on_ring = "on uring" in text
                os._exit(1 if on_ring else 0)
            assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
            assert "RECV" in trio_uring.dump_operations()
            nursery.cancel_scope.cancel()

    trio.run(main)


@in_child()
def test_a_forked_child_does_not_tell_of_runs_in_its_parents_other_threads() -> None:
    """Their threads are not in the child, whatever the runs waited by."""
    here, there = threading.Barrier(2, timeout=20), threading.Event()

    thread = threading.Thread(target=trio.run, args=(reads_meanwhile, here, there))
    thread.start()
    here.wait()
    pid = os.fork()
    if not pid:
        os._exit(0 if trio_uring.dump_operations() == NO_RUN else 1)
    status = os.waitpid(pid, 0)[1]
    there.set()
    thread.join()
    assert status == 0


@pytest.mark.no_ring
def test_the_drivers_that_are_over_are_not_kept() -> None:
    assert _run.going_on() == []
