"""Peers that flood, drip, storm, stop reading or half-close, and signals that stop us.

Rules of this file: nothing may grow, starve, spin or die. Peers are other processes or plain
sockets. What must stay bounded is read from the kernel (resident memory, processor time, threads),
and each bound has a reason; the clock decides nothing.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import socket
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, expect_log, in_child, iou_threads, rss, stream_pair, use_ring
from support.emfile import Counted
from support.peer import HOST, echo_peer, peer
from support.streams import open_descriptors, until

import trio_uring

FLOOD = 256 * 2**20
# A stream may hold 32 KiB unread, the pool of provided buffers is 10 MiB, the rest is Python's own
# unsteadiness.
RSS_GROWTH_MAX = 22 * 2**20


async def echo(stream: trio_uring.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def echo_messages(stream: trio_uring.SocketStream, count: int) -> None:
    for number in range(count):
        message = number.to_bytes(8, "little")
        await stream.send_all(message)
        assert await stream.receive_exactly(8) == message
    await stream.aclose()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_stopped_and_continued_under_load(flags: str) -> None:
    """SIGSTOP and SIGCONT, 50 times, from the peer: EINTR where it hurts."""
    use_ring(flags=flags)
    with echo_peer(4, "stop", os.getpid(), 100, 50) as socks:
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(echo_messages, trio_uring.SocketStream(sock), 1500)
    assert trio_uring.current_statistics().in_flight == 0


async def until_clogged(process: Any) -> None:
    assert await trio.to_thread.run_sync(process.stdout.readline) == "clogged\n"


@pytest.mark.parametrize("reads_before", [0, 5])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_flood_is_pushed_back_and_then_arrives_whole(flags: str, reads_before: int) -> None:
    """256 MiB from a peer before anyone reads, or after a few reads: the bytes wait in the sockets,
    not in this process."""
    use_ring(flags=flags)
    await warm_up()
    before = rss()
    [listener] = await trio_uring.open_tcp_listeners(0, host=HOST)
    with peer("flood", listener.socket.getsockname()[1], FLOOD) as process:
        stream = await listener.accept()
        digest, count = hashlib.blake2b(), 0
        for _ in range(reads_before):
            data = await stream.receive_some(100)  # small ones: where a receive may stay armed
            digest.update(data)
            count += len(data)
        await until_clogged(process)
        await others_are_served()
        assert rss() - before < RSS_GROWTH_MAX, rss() - before
        async for data in stream:
            digest.update(data)
            count += len(data)
        assert rss() - before < RSS_GROWTH_MAX, rss() - before
        assert count == FLOOD
        assert process.stdout is not None
        assert digest.hexdigest() == process.stdout.readline().strip()
    await stream.aclose()
    await listener.aclose()


async def warm_up() -> None:
    """The pool and the code paths are in memory before it is measured."""
    left, right = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.receive_exactly, 2**23)
        await left.send_all(bytes(2**23))
    await left.aclose()
    await right.aclose()
    gc.collect()


async def others_are_served() -> None:
    """More messages than there are buffers, beside the stream that nobody reads."""
    left, right = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        await echo_messages(left, 2000)
    await right.aclose()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_unread_streams_starve_nobody(flags: str) -> None:
    """200 peers that fill streams which read once or twice and never again; the pool is there for
    the one that reads."""
    use_ring(flags=flags)
    pairs = [socket.socketpair() for _ in range(200)]
    unread = [trio_uring.SocketStream(ours) for ours, _ in pairs]
    for index, (_, theirs) in enumerate(pairs):
        theirs.setblocking(False)
        for _ in range(index % 5):
            theirs.send(b"small")
            assert await unread[index].receive_some() == b"small"
        fill(theirs)
    await others_are_served()
    for stream, (_, theirs) in zip(unread, pairs):
        await stream.aclose()
        theirs.close()


def fill(sock: socket.socket) -> None:
    try:
        while True:
            sock.send(bytes(1000))
    except BlockingIOError:
        pass


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_idle_connections_cost_no_processor_time(flags: str) -> None:
    """1,000 connections blocked in receive_some: under 1 % of 2 seconds."""
    use_ring(flags=flags)
    pairs = [socket.socketpair() for _ in range(1000)]
    async with trio.open_nursery() as nursery:
        for index, (ours, theirs) in enumerate(pairs):
            nursery.start_soon(receive_forever, ours)
            for _ in range(index % 4):
                theirs.send(b"a message before the silence")
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        for _ in range(5):  # what costs, costs each time; a machine may charge for others' time
            before, passes = processor_time(), trio_uring.current_statistics().passes
            await trio.sleep(2)
            used = processor_time() - before
            print(f"{used:.4f} s, {trio_uring.current_statistics().passes - passes} passes")
            assert trio_uring.current_statistics().in_flight == 1000
            if used < 0.02:
                break
        assert used < 0.02
        nursery.cancel_scope.cancel()
    for _, theirs in pairs:
        theirs.close()


async def receive_forever(sock: socket.socket) -> None:
    async with trio_uring.SocketStream(sock) as stream:
        while await stream.receive_some():
            pass


def processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_storm_of_a_thousand_connects_is_served(flags: str) -> None:
    use_ring(flags=flags)
    accepted = 0

    async def counted(stream: trio_uring.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        await echo(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio_uring.serve_tcp, counted, 0, host=HOST))
        port = listener.socket.getsockname()[1]
        with peer("storm", port, 1000) as process:
            served = await trio.to_thread.run_sync(process.stdout.readline)
        assert served == "1000\n"
        nursery.cancel_scope.cancel()
    assert accepted == 1000


@in_child()
async def test_peers_that_drip_bytes_pin_no_kernel_threads() -> None:
    """32 peers send, and 32 read, a few bytes at a time, 200 times: MSG_WAITALL would cost a thread
    each."""
    dripping = [socket.socketpair() for _ in range(32)]
    slow = [socket.socketpair() for _ in range(32)]
    streams = [trio_uring.SocketStream(ours) for ours, _ in (*dripping, *slow)]
    async with trio.open_nursery() as nursery:
        for stream in streams[:32]:
            nursery.start_soon(stream.receive_exactly, 200)
        for stream in streams[32:]:
            nursery.start_soon(stream.send_all, [bytes(2**20)] * 2)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(200):
            for _, theirs in dripping:
                theirs.send(b"x")
            for _, theirs in slow:
                assert theirs.recv(100)
            await trio.lowlevel.checkpoint()
            if number % 20 == 0:
                assert iou_threads() == []
        nursery.cancel_scope.cancel()
    assert iou_threads() == []
    for stream in streams:
        await stream.aclose()
    for _, theirs in (*dripping, *slow):
        theirs.close()


class FrozenClock(trio.abc.Clock):
    """Does not move by itself: what sleeps, sleeps until it is told to wake."""

    now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now) and 1e6


@in_child()
def test_no_descriptors_for_accept() -> None:
    """EMFILE: an attempt, 0.1 s of sleep, an attempt; every connection is served as soon as there
    are descriptors."""
    clock = FrozenClock()
    trio.run(starve_accept, clock, clock=clock)
    assert expect_log("accept returned EMFILE") == 4


async def starve_accept(clock: FrozenClock) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        listener = Counted(socket.create_server((HOST, 0)))
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        address = listener.socket.getsockname()
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
        # The accept that is armed by now has its descriptors promised.
        await trio.testing.wait_all_tasks_blocked()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1, hard))
        for client in clients:
            client.connect_ex(address)
        for attempt in range(1, 5):
            await until(lambda n=attempt: Counted.failures >= n, "an attempt")
            for _ in range(50):
                await trio.testing.wait_all_tasks_blocked()
            assert Counted.failures == attempt
            clock.now += 0.11
            trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        clock.now += 0.11
        for client in clients:
            stream = trio_uring.SocketStream(client)
            await echo_messages(stream, 10)
        nursery.cancel_scope.cancel()


@in_child()
async def test_half_closed_connections_leave_no_descriptor() -> None:
    trio_uring.current_statistics()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(trio_uring.serve_tcp, answer_at_the_end, 0, host=HOST)
        )
        address = listener.socket.getsockname()
        before = len(open_descriptors())
        for _ in range(100):
            async with await trio_uring.open_tcp_stream(*address[:2]) as stream:
                await stream.send_all(b"question")
                await stream.send_eof()
                answer = [data async for data in stream]
                assert b"".join(answer) == b"question answered"
        await trio.testing.wait_all_tasks_blocked()
        assert len(open_descriptors()) == before
        nursery.cancel_scope.cancel()


async def answer_at_the_end(stream: trio_uring.SocketStream) -> None:
    question = [data async for data in stream]
    await stream.send_all([*question, b" answered"])


@in_child()
async def test_tcp_nodelay_is_on_at_both_ends() -> None:
    [listener] = await trio_uring.open_tcp_listeners(0, host=HOST)
    client = await trio_uring.open_tcp_stream(HOST, listener.socket.getsockname()[1])
    server = await listener.accept()
    for stream in (client, server):
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.aclose()
    await listener.aclose()


@in_child()
async def test_a_reset_before_accept_does_not_disturb_the_server() -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(trio_uring.serve_tcp, echo_carefully, 0, host=HOST)
        )
        address = listener.socket.getsockname()
        for _ in range(100):
            sock = socket.create_connection(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        await echo_messages(await trio_uring.open_tcp_stream(*address[:2]), 10)
        nursery.cancel_scope.cancel()


async def echo_carefully(stream: trio_uring.SocketStream) -> None:
    try:
        await echo(stream)
    except trio.BrokenResourceError as exc:
        if not isinstance(exc.__cause__, ConnectionResetError):
            raise


@in_child()
async def test_the_driver_makes_few_passes_for_a_message() -> None:
    """A busy loop would show here as passes without a message."""
    with echo_peer(1) as [sock]:
        stream = trio_uring.SocketStream(sock)
        await echo_messages(stream, 2000)
    statistics = trio_uring.current_statistics()
    print(statistics.passes, statistics.enters)
    assert statistics.passes < 2000 * 5
    assert statistics.enters < 2000 * 5
