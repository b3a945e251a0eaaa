"""A UringSocket across runs: one after another, in threads, in a forked child, as a guest,
interrupted, with a failed driver.

Rules: what would end the test's process, or fork it, happens in a child.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from typing import Any

import pytest
import trio
import trio.testing
from support.child import driver, expect_log, in_child
from support.sockets import STREAMS, Sockets, of_kind, stdlib_pair

import trio_uring
import trio_uring.socket


@of_kind
def test_one_run_after_another(kind: str) -> None:
    left, right = map(trio_uring.UringSocket, stdlib_pair(kind))

    async def use() -> None:
        await left.send(b"data")
        assert await right.recv(10) == b"data"
        await left.sendmsg([b"data"])
        assert (await right.recvmsg(10))[0] == b"data"
        with trio.move_on_after(0):
            await right.recv(1)

    with left, right:
        for _ in range(3):
            trio.run(use)


@of_kind
async def test_a_socket_that_nobody_uses_goes_to_another_thread(kind: str) -> None:
    """As trio's do; one that is in use does not."""
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair(kind)

        async def use() -> None:
            await left.send(b"data")
            assert await right.recv(10) == b"data"

        async def refused() -> None:
            with pytest.raises(trio.BusyResourceError):
                await right.recv(1)
            if kind in STREAMS:
                with pytest.raises(RuntimeError, match="another thread"):
                    await right.send(b"x")
            for close in (right.close, right.detach):
                with pytest.raises(RuntimeError):
                    close()

        for _ in range(2):
            await use()
            await trio.to_thread.run_sync(trio.run, use)
        # trio's own sockets do not know of other runs.
        if trio_uring.backend_info().backend != "uring":
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(trio.run, refused)
            await left.send(b"x")


@in_child()
def test_threads_with_runs_of_their_own() -> None:
    def thread(failures: list[BaseException]) -> None:
        try:
            trio.run(chat)
        except BaseException as exc:
            failures.append(exc)

    async def chat() -> None:
        with Sockets(trio_uring.socket) as sockets:
            left, right = sockets.pair("unix")
            for number in range(300):
                await left.send(b"%d" % number)
                assert await right.recv(10) == b"%d" % number

    failures: list[BaseException] = []
    threads = [threading.Thread(target=thread, args=(failures,)) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures


@in_child()
def test_forked_children_have_the_sockets_too() -> None:
    """A server that forks its workers, with the listening socket that the parent has used, and
    waits on still."""

    async def parent() -> None:
        with Sockets(trio_uring.socket) as sockets:
            server, (left, right) = await sockets.bound("tcp"), sockets.pair("unix")
            server.listen()
            await left.send(b"for the parent")
            assert await right.recv(100) == b"for the parent"
            with trio.move_on_after(0):
                await server.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(right.recv, 1)
                await trio.testing.wait_all_tasks_blocked()
                child = await trio.to_thread.run_sync(fork, worker, server, left, right)
                with socket.create_connection(server.getsockname(), timeout=30) as client:
                    assert client.recv(100) == b"from the child"
                assert await trio.to_thread.run_sync(os.waitpid, child, 0) == (child, 0)
                os.write(left.fileno(), b"x")

    trio.run(parent)


def fork(work: Any, *arguments: Any) -> int:
    """In a thread without a run: the child's only thread can then start one."""
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)  # the parent's
        trio.run(work, *arguments)
    except BaseException:
        os._exit(1)
    os._exit(0)


async def worker(server: Any, left: Any, right: Any) -> None:
    accepted, _ = await server.accept()
    await accepted.send(b"from the child")
    accepted.close()
    assert await left.send(b"") == 0
    for sock in (server, left, right):  # the parent's receive goes on
        sock.close()


@in_child()
def test_interrupted_by_the_keyboard() -> None:
    left, right = trio_uring.socket.socketpair()

    async def wait() -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)
        await right.recv(10)

    async def after() -> None:
        await left.send(b"data")
        assert await right.recv(10) == b"data"

    with left, right:
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                trio.run(wait)
        trio.run(after)


@pytest.mark.uring_only("it is the ring that fails")
@in_child()
async def test_a_driver_that_failed() -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")

        async def broken(operation: Any, *arguments: Any) -> None:
            with pytest.raises(trio.BrokenResourceError, match="driver has failed"):
                await operation(*arguments)

        await left.send(b"x")
        assert await right.recv(1) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken, right.recv, 10)
            nursery.start_soon(broken, left.recvmsg, 10)
            await trio.testing.wait_all_tasks_blocked()
            driver().ring.flush = driver().ring.turn = fail
            driver().ring._turn_at = 0  # so that a pass calls it
            nursery.start_soon(broken, right.wait_writable)
        for operation, argument in (
            (left.send, b"x"),
            (left.recv, 1),
            (left.recvmsg, 1),
            (left.recv_into, bytearray(1)),
        ):
            await broken(operation, argument)
        assert await left.sendmsg([b"x"]) == 1  # which need not wait
        del driver().ring.flush, driver().ring.turn
        left.close()
        right.close()
    assert expect_log("driver has failed")


def fail(*_: object) -> bool:
    raise RuntimeError("on purpose")


@in_child()
def test_as_a_guest() -> None:
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def chat() -> str:
        with Sockets(trio_uring.socket) as sockets:
            for kind in ("unix", "udp"):
                left, right = sockets.pair(kind)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(right.recv, 10)
                    await trio.testing.wait_all_tasks_blocked()
                    await left.send(b"x")
        return "done"

    trio.lowlevel.start_guest_run(
        chat,
        run_sync_soon_threadsafe=todo.put,
        done_callback=lambda outcome: todo.put(outcome),
        host_uses_signal_set_wakeup_fd=True,
    )
    while callable(step := todo.get()):
        step()
    assert step.unwrap() == "done"
