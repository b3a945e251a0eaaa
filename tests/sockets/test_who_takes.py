"""What the ring takes, and what it only waits for: connections and messages go to a process that
wants them.

Rules: workers are processes, forked where there is no run, which share a socket that they inherit.
A stopped worker is known to be stopped (waitpid), and a waiting one has said so. No clock decides:
a client that gets no answer hangs its test.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.child import in_child, iou_threads
from support.sockets import Sockets, on_both, stdlib_pair
from support.streams import clog, drain, until

import trio_uring
import trio_uring.socket

if TYPE_CHECKING:
    from types import ModuleType

HOW = ("accept", "listener", "recvfrom", "recv", "recv_into")


class Worker:
    """A process that answers with its name whatever comes to the shared socket, once it has said
    that it waits."""

    def __init__(self, shared: socket.socket, how: str, name: bytes) -> None:
        said, says = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                trio.run(self._answer, shared, how, name, says)
            finally:
                os._exit(1)
        os.close(says)
        assert os.read(said, 1) == b"w"
        os.close(said)

    async def _answer(self, shared: socket.socket, how: str, name: bytes, says: int) -> None:
        sock = trio_uring.socket.from_stdlib_socket(shared)
        listener = trio_uring.SocketListener(sock) if how == "listener" else None

        async def serve() -> None:
            while True:
                if listener is not None:
                    async with await listener.accept() as stream:
                        await stream.send_all(name)
                elif how == "accept":
                    connection, _ = await sock.accept()
                    with connection:
                        await connection.send(name)
                else:  # what is sent is the number of the socket to answer to
                    buffer = bytearray(9)
                    arguments = {"recvfrom": 9, "recv": 9, "recv_into": buffer}
                    got: Any = await getattr(sock, how)(arguments[how])
                    port = int(
                        bytes(buffer).rstrip(b"\0")
                        if how == "recv_into"
                        else got[0]
                        if how == "recvfrom"
                        else got
                    )
                    await sock.sendto(name, ("127.0.0.1", port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            os.write(says, b"w")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextlib.contextmanager
def shared_socket(how: str) -> Any:
    kind = socket.SOCK_STREAM if how in ("accept", "listener") else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen(100)
        yield sock


def asked(shared: socket.socket) -> bytes:
    """Who answers."""
    if shared.type == socket.SOCK_STREAM:
        with socket.create_connection(shared.getsockname()) as client:
            return client.recv(10)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.sendto(b"%d" % client.getsockname()[1], shared.getsockname())
        return client.recv(10)


@pytest.mark.parametrize("how", HOW)
@in_child()
def test_a_worker_that_is_stopped_takes_nothing(how: str) -> None:
    """Whichever began to wait first. When it goes on, it takes again."""
    with shared_socket(how) as shared:
        first, second = Worker(shared, how, b"first"), Worker(shared, how, b"second")
        for stopped, name in ((first, b"second"), (second, b"first")):
            stopped.stop()
            assert [asked(shared) for _ in range(10)] == [name] * 10
            stopped.go_on()
        second.kill()
        assert [asked(shared) for _ in range(10)] == [b"first"] * 10
        first.kill()


@pytest.mark.parametrize("how", HOW)
@in_child()
def test_a_worker_that_is_killed_while_it_waits_takes_nobody_with_it(how: str) -> None:
    with shared_socket(how) as shared:
        first, second = Worker(shared, how, b"first"), Worker(shared, how, b"second")
        first.stop()
        assert asked(shared) == b"second"
        first.kill()
        assert [asked(shared) for _ in range(10)] == [b"second"] * 10
        second.kill()


@pytest.mark.parametrize("how", ["accept", "recvfrom", "recv"])
@in_child()
def test_a_run_whose_thread_is_blocked_takes_nothing(how: str) -> None:
    """Two runs in two threads of one process, on duplicates of one socket."""
    waiting, enough = threading.Event(), threading.Event()
    arguments = () if how == "accept" else (9,)

    async def busy(sock: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(sock, how), *arguments)
            await trio.testing.wait_all_tasks_blocked()
            waiting.set()
            while not enough.wait(0.001):  # the thread: nothing of this run goes on
                pass
            nursery.cancel_scope.cancel()

    async def idle(sock: Any) -> None:
        await trio.to_thread.run_sync(waiting.wait)
        for _ in range(10):
            with socket.socket(sock.family, sock.type) as client:
                client.connect(sock.getsockname())
                if how == "accept":
                    (await sock.accept())[0].close()
                else:
                    client.send(b"data")
                    got = await getattr(sock, how)(9)
                    assert (got[0] if how == "recvfrom" else got) == b"data"

    with shared_socket(how) as shared, trio_uring.socket.from_stdlib_socket(shared.dup()) as one:
        thread = threading.Thread(target=trio.run, args=(busy, one))
        thread.start()
        try:
            with trio_uring.socket.from_stdlib_socket(shared.dup()) as other:
                trio.run(idle, other)
        finally:
            enough.set()
            thread.join()


@on_both
@pytest.mark.parametrize("send", ["send", "sendmsg"])
@pytest.mark.parametrize("kind", ["unix-dgram", "seqpacket"])
async def test_a_message_that_has_to_wait_arrives_whole(
    library: ModuleType, kind: str, send: str
) -> None:
    """In order, once, and the call says how long it was: the reader of a log socket is behind."""
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        if kind == "unix-dgram":  # as a log socket: it has a name
            left, right = sockets.new(kind), await sockets.bound(kind)
            await left.connect(right.getsockname())
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                left._sock.send(b"%03d" % sent)
                sent += 1
        results = []

        async def late() -> None:
            results.append(await getattr(left, send)(b"last" if send == "send" else [b"la", b"st"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            received = [await right.recv(100) for _ in range(sent + 1)]
        assert received == [b"%03d" % number for number in range(sent)] + [b"last"]
        assert results == [4]
        assert not right.is_readable()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@in_child()
async def test_peers_that_have_half_closed_and_do_not_read(kind: str) -> None:
    """A send that waits for them costs nothing, takes no thread, and goes on when they read. Or
    they hang up."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(64):
            left, right = stdlib_pair(kind)
            right.shutdown(socket.SHUT_WR)
            clog(left.fileno())
            sender = stack.enter_context(trio_uring.socket.from_stdlib_socket(left))
            pairs.append((sender, stack.enter_context(right)))
        sent = dict.fromkeys(range(64), 0)

        async def send(number: int) -> None:
            while True:
                sent[number] += await pairs[number][0].send(bytes(1000))

        async with trio.open_nursery() as nursery:
            for number in sent:
                nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
            before = resource.getrusage(resource.RUSAGE_SELF)
            await trio.sleep(1)
            after = resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            assert used < 0.5, f"{used} s of CPU time in a second of waiting"
            assert iou_threads() == []
            for number, (_, peer) in enumerate(pairs):
                taken = sent[number]
                await until(
                    lambda n=number, p=peer, t=taken: drain(p) is None or sent[n] > t, "goes on"
                )
            nursery.cancel_scope.cancel()
