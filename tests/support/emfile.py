"""A program that test_serve runs: a server that runs out of descriptors, under a clock that only it
moves.

Rules: trio's rule is one attempt, one log record and 0.1 s of sleep for each failure of capacity.
This is checked by counting attempts against the clock; then a connection that waited must be served
once there are descriptors again.
"""

from __future__ import annotations

import logging
import os
import resource
import socket

import trio
from trio.testing import MockClock

import trio_uring


class Count(logging.Handler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class Counted(trio_uring.SocketListener):
    failures = 0

    async def accept(self) -> trio_uring.SocketStream:
        try:
            return await super().accept()
        except OSError:
            Counted.failures += 1
            raise


async def until(condition: object) -> None:
    for _ in range(100_000):
        if condition():  # type: ignore[operator]
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it did not happen")


async def handler(stream: trio_uring.SocketStream) -> None:
    await stream.send_all(b"served")


async def main() -> None:
    log = Count()
    logging.getLogger("trio.serve_listeners").addHandler(log)
    client = socket.socket()
    async with trio.open_nursery() as nursery:
        (listener,) = await _start(nursery)
        await trio.testing.wait_all_tasks_blocked()
        hoard = []
        try:
            while True:
                hoard.append(os.dup(0))
        except OSError:
            pass
        client.connect(("127.0.0.1", listener.socket.getsockname()[1]))
        for attempts in range(1, 6):
            await until(lambda n=attempts: Counted.failures == n)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert Counted.failures == attempts == log.count, (
                Counted.failures,
                attempts,
                log.count,
            )
            clock.jump(0.11)
        for fd in hoard:
            os.close(fd)
        for _ in range(3):
            clock.jump(0.11)
            await trio.lowlevel.checkpoint()
        client.setblocking(False)
        await until(lambda: trio_uring.current_statistics().bytes_sent == 6)
        assert client.recv(100) == b"served"
        client.close()
        nursery.cancel_scope.cancel()
    print("recovered")


async def _start(nursery: trio.Nursery) -> list[trio_uring.SocketListener]:
    async def serve(task_status: trio.TaskStatus[list[trio_uring.SocketListener]]) -> None:
        listener = Counted(socket.create_server(("127.0.0.1", 0)))
        await trio.serve_listeners(handler, [listener], task_status=task_status)

    listeners: list[trio_uring.SocketListener] = await nursery.start(serve)
    return listeners


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
    clock = MockClock()
    trio.run(main, clock=clock)
