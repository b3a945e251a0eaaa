"""The accelerator: it does what the Python does, and is absent without harm.

Most of what it has to do is tested by every other test, which runs over it where it was built;
`.ci/run` runs them without it, too.
"""

from __future__ import annotations

import collections.abc
import gc
import os
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import unix_streams

import trio_uring
from trio_uring import _accelerator

if TYPE_CHECKING:
    from collections.abc import Iterator

accelerated = pytest.mark.skipif(
    _accelerator.hot is None, reason=f"no accelerator: {_accelerator.why_not}"
)

SHOW = """
from trio_uring._accelerator import hot, why_not
print(hot is not None, why_not)
"""


def in_another_python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_it_is_switched_off_by_the_environment() -> None:
    said = in_another_python(SHOW, TRIO_URING_ACCELERATOR="0")
    assert said == "False the environment variable TRIO_URING_ACCELERATOR is 0"


def test_a_package_without_it_says_so_and_works() -> None:
    hidden = "import sys; sys.modules['trio_uring._hot'] = None\n"
    said = in_another_python(hidden + SHOW, TRIO_URING_ACCELERATOR="1")
    assert said.startswith("False it was not built")


def test_a_trio_of_another_shape_is_left_alone() -> None:
    shape = "import trio._core._run as run; run.Task = type('Task', (), {'coro': 1})\n"
    said = in_another_python(
        "import trio\n"
        + shape
        + SHOW.replace("trio_uring._accelerator", "trio_uring._accelerator"),
        TRIO_URING_ACCELERATOR="1",
    )
    assert said.startswith("False ")


def call_and_drop(stream: trio_uring.SocketStream) -> None:
    stream.receive_some()


async def test_a_call_does_nothing_before_it_is_awaited() -> None:
    left, right = unix_streams()
    async with left, right:
        sending, receiving = left.send_all(b"one"), right.receive_some()
        await left.send_all(b"two")
        assert await right.receive_some() == b"two"
        await sending
        assert await receiving == b"one"
        for call in (sending, receiving):
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await call
        with pytest.warns(RuntimeWarning, match="ReceiveSide.receive_some' was never awaited"):
            call_and_drop(right)


async def test_a_call_is_a_coroutine() -> None:
    """To collections.abc, and so to trio: nurseries start it, and refuse a call made by hand."""
    left, right = unix_streams()
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await right.receive_some())

    async with left, right:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(left.send_all, b"x")
        assert got == [b"x"]
        call = right.receive_some()
        assert isinstance(call, collections.abc.Coroutine)
        async with trio.open_nursery() as nursery:
            with pytest.raises(TypeError, match="async function"):
                nursery.start_soon(call)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["send", "throw", "close"])
async def test_a_call_that_runs_is_not_run_again(how: str) -> None:
    """By the code that it calls: here by what it is to send. As with a coroutine of Python."""
    left, right = unix_streams()
    refused: list[str] = []

    class Buffers(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            arguments = {"send": (None,), "throw": (KeyError(),), "close": ()}[how]
            with pytest.raises(ValueError, match="coroutine already executing"):
                getattr(call, how)(*arguments)
            refused.append(how)
            return super().__iter__()

    async with left, right:
        call = left.send_all(Buffers([b"o", b"ne"]))
        await call
        assert await right.receive_some() == b"one"
    assert refused


async def test_no_tracked_object_for_an_operation() -> None:
    left, right = unix_streams()

    async def ping_pong(times: int) -> None:
        for _ in range(times):
            await left.send_all(b"ping")
            await right.receive_some()

    async with left, right:
        await ping_pong(100)
        gc.collect()
        gc.disable()
        try:
            before = gc.get_count()[0]
            await ping_pong(10_000)
            assert gc.get_count()[0] - before < 100
        finally:
            gc.enable()


async def test_a_forgotten_stream_takes_its_operations_along_at_once() -> None:
    left, right = unix_streams()
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"
    direction = right._receiving
    gc.collect()
    gc.disable()
    try:
        dead = weakref.ref(direction)
        socket = right.socket
        del direction, right
        assert dead() is not None  # the socket has it
        socket.close()
        del socket
        assert dead() is None
    finally:
        gc.enable()
    await left.aclose()


class Scheduled(trio.abc.Instrument):
    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def task_scheduled(self, task: Any) -> None:
        self.tasks.append(task)


async def test_instruments_are_told_of_each_wake_up() -> None:
    left, right = unix_streams()
    told = Scheduled()

    async def receive() -> None:
        for _ in range(3):
            assert await right.receive_some() == b"x"

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(receive, name="receiver")
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(told)
        for _ in range(3):
            await left.send_all(b"x")
            await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(told)
    assert [task.name for task in told.tasks].count("receiver") == 3


def test_info_says_which() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "trio_uring", "info"], capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in said.splitlines() if line.startswith("accelerator"))
    assert line.split(maxsplit=1)[1] == (
        "in use" if _accelerator.hot is not None else f"none: {_accelerator.why_not}"
    )
    assert trio_uring.__version__
