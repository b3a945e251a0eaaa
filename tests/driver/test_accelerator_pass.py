"""The accelerator's pass and its ring, where the kernel or the program does something odd."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
import weakref
from typing import Any

import cffi
import pytest
import trio
import trio.testing
from support.streams import unix_streams

from trio_uring import _accelerator
from trio_uring._driver.loop import Loop
from trio_uring._driver.run import RingDriver, current_driver
from trio_uring._ring.op import Opcode, Operation
from trio_uring._ring.uring import UringRing

pytestmark = [
    pytest.mark.skipif(_accelerator.hot is None, reason=f"no accelerator: {_accelerator.why_not}"),
    pytest.mark.uring_only("the kernel's ring itself"),
]

ffi = cffi.FFI()
TURN = "int(void *, unsigned, unsigned, double, int64_t *, unsigned)"


async def test_a_pass_on_a_short_kernel_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written and not submitted does not count as blocked."""
    left, right = unix_streams()
    sent = []
    async with left, right:
        await left.send_all(b"x")
        await right.receive_some()
        driver = current_driver()
        if not isinstance(driver, RingDriver) or not isinstance(driver.way, Loop):
            pytest.skip("the ring is not the loop")
        ring, shortages = driver.engine.ring, 1
        real = ffi.cast(
            "int(*)(void *, unsigned, unsigned, double, int64_t *, unsigned)", ring._turn_at
        )

        @ffi.callback(TURN)
        def turn(c: Any, least: int, flags: int, seconds: float, out: Any, most: int) -> int:
            nonlocal shortages
            if not shortages:
                return int(real(c, least, flags, seconds, out, most))
            shortages -= 1
            out[0], out[1] = 0, -errno.EAGAIN
            return 0

        async def send() -> None:
            await left.send_all(b"data")
            sent.append(True)

        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(ring, "_turn_at", int(ffi.cast("uintptr_t", turn)))
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert sent
            monkeypatch.undo()
        assert not shortages


class Buffer(bytearray):
    """One that can have a finalizer."""


def test_a_destructor_drains_the_ring_while_it_is_drained() -> None:
    ring, pairs = UringRing(), [socket.socketpair() for _ in range(4)]
    done: list[Operation] = []
    inner: list[Operation] = []

    def receive(index: int, buffer: bytearray) -> Operation:
        op = Operation(Opcode.RECV, pairs[index][1].fileno())
        op.buffer, op.length = memoryview(buffer), len(buffer)
        assert ring.submit(op)
        return op

    def send(*indices: int) -> None:
        for index in indices:
            pairs[index][0].send(b"x")

    def finalize() -> None:
        send(2, 3)
        ring.flush()
        ring.drain(inner)

    buffer = Buffer(10)
    weakref.finalize(buffer, finalize)
    ops = [receive(0, buffer)]
    del buffer
    ops += [receive(index, bytearray(10)) for index in (1, 2, 3)]
    ring.flush()
    send(0, 1)
    deadline = time.monotonic() + 5
    while len(done) + len(inner) < 4 and time.monotonic() < deadline:
        ring.turn(0.05, done)
    assert [op.res for op in ops] == [1] * 4
    assert not ring.table
    ring.close()
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_an_exit_by_a_signal_is_not_swallowed() -> None:
    """Only what is an operation's own fault is left to Python to find out."""
    ring = UringRing()

    def leave(op: Operation) -> None:
        raise SystemExit

    ring._make_entry = leave
    op = Operation(Opcode.POLL_ADD, 0)
    queue = {op: None}
    with pytest.raises(SystemExit):
        _accelerator.hot.write_queue(ring, queue)
    assert op in queue
    assert not op.state.in_kernel
    ring.close()


def test_a_ring_of_another_class_is_left_to_python() -> None:
    assert not _accelerator.hot.write_queue(object(), {})

    class Inner:
        def get_events(self, timeout: float) -> list[str]:
            return ["trio's"]

    class Working:
        class phase:
            works = False

    loop = _accelerator.hot.Loop()
    with pytest.raises(AttributeError):  # it has no engine
        loop.get_events(1)
    made = Loop.__new__(Loop)
    made._engine, made._ring, made.inner = Working(), object(), Inner()
    assert made.get_events(1) == ["trio's"]


RELOADS = """
import importlib, socket, trio, trio_uring
from trio_uring._streams import streams

async def main():
    importlib.reload(streams)
    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right:
        try:
            await right.receive_some(0)
        except ValueError as exc:
            print(exc)

trio.run(main)
"""


def test_a_reloaded_module_keeps_the_functions_in_python() -> None:
    done = subprocess.run([sys.executable, "-c", RELOADS], capture_output=True, text=True)
    assert done.stdout.strip() == "max_bytes must be >= 1", done.stderr[-500:]


INTERPRETERS = """
import sys, trio_uring
from trio_uring._accelerator import hot
assert hot is not None
import _xxsubinterpreters as interpreters
code = "import sys; sys.path[:] = %r; from trio_uring._accelerator import why_not; print(why_not)"
interpreters.run_string(interpreters.create(isolated=False), code % sys.path)
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the import is refused by Python itself")
def test_another_interpreter_does_without() -> None:
    done = subprocess.run([sys.executable, "-c", INTERPRETERS], capture_output=True, text=True)
    assert done.stdout.strip() == "another interpreter of this process uses it", done.stderr
