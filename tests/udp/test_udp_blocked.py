"""Sends that the kernel cannot take at once: order, counting, cancellation, closing.

UDP over loopback never blocks, so these are Unix datagram sockets under a UDPSocket.

Rules of this file: the peer is a plain socket that the test reads; what it gets is compared with
`datagrams_sent`.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket

import pytest
import trio
from support.streams import passes, until_blocked

import trio_uring
from trio_uring._udp import udp_socket as _udp

SEED = int(os.environ.get("TRIO_URING_SEED", "20261126"))


@pytest.fixture(autouse=True)
def unix_is_allowed(monkeypatch):
    monkeypatch.setattr(_udp, "_FAMILIES", (socket.AF_UNIX,))


@contextlib.asynccontextmanager
async def clogged_pair():
    """A socket whose peer takes no more, and the peer."""
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    peer.setblocking(False)
    async with trio_uring.UDPSocket(ours) as sock:
        clog(ours)
        with peer:
            yield sock, peer


def clog(sock):
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"clog")


def read(peer, most=10**9):
    """What the peer has got, without what clogged it."""
    got = []
    with contextlib.suppress(BlockingIOError):
        while most > 0:
            got.append(peer.recv(100))
            most -= 1
    return [payload for payload in got if payload != b"clog"]


def numbers(count):
    return [b"%d" % number for number in range(count)]


async def test_they_go_in_order_as_there_is_room():
    async with clogged_pair() as (sock, peer):
        got = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.send_many, numbers(200))
            await until_blocked(sock.socket.fileno())
            while len(got) < 200:
                got += read(peer, 3)
                await trio.lowlevel.checkpoint()
        assert got == numbers(200)
        assert sock.datagrams_sent == 200


@pytest.mark.parametrize("room", [0, 1, 7])
async def test_after_a_cancellation_it_says_how_many_went(room):
    async with clogged_pair() as (sock, peer):
        got = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.send_many, numbers(50))
            await until_blocked(sock.socket.fileno())
            got += read(peer, room)
            await passes(5)
            nursery.cancel_scope.cancel()
        sent = sock.datagrams_sent
        got += read(peer)
        assert sent < 50
        assert got == numbers(sent)
        await sock.send_many(numbers(3))
        assert read(peer) == numbers(3)


async def test_timeout_and_default(autojump_clock):
    async with clogged_pair() as (sock, peer):
        with pytest.raises(trio.TooSlowError):
            await sock.send_to(b"late", timeout=1)
        sock.send_timeout = 2
        with pytest.raises(trio.TooSlowError):
            await sock.send_many([b"late", b"later"])
        assert sock.datagrams_sent == 0
        assert read(peer) == []


async def test_two_senders_are_one_too_many():
    async with clogged_pair() as (sock, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.send_many, numbers(3))
            await until_blocked(sock.socket.fileno())
            for again in (sock.send_to(b"y"), sock.send_many([b"y"])):
                with pytest.raises(trio.BusyResourceError):
                    await again
            got = read(peer)
        assert got + read(peer) == numbers(3)


@pytest.mark.parametrize("many", [False, True])
async def test_closing_wakes_the_sender(many):
    async with clogged_pair() as (sock, _):
        async with trio.open_nursery() as nursery:

            async def send():
                with pytest.raises(trio.ClosedResourceError):
                    await (sock.send_many(numbers(50)) if many else sock.send_to(b"x"))

            nursery.start_soon(send)
            await until_blocked(sock.socket.fileno())
            await sock.aclose()


async def test_a_peer_that_goes_away():
    async with clogged_pair() as (sock, peer):
        async with trio.open_nursery() as nursery:

            async def send():
                with pytest.raises(OSError, match=r"refused|reset|not connected"):
                    await sock.send_many(numbers(50))

            nursery.start_soon(send)
            await until_blocked(sock.socket.fileno())
            peer.close()


async def test_many_cancellations_lose_and_double_nothing():
    """What was counted as sent is what arrives, always a prefix of what was given."""
    rng = random.Random(SEED)
    expected, got, cancelled, whole = [], [], 0, 0
    async with clogged_pair() as (sock, peer):
        while cancelled < 300 or whole < 30:
            batch = [
                b"%d" % (len(expected) + number) for number in range(rng.choice((1, 2, 40, 70)))
            ]
            scope = trio.CancelScope()

            async def send(scope=scope, batch=batch):
                with scope:
                    await sock.send_many(batch)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                for _ in range(rng.randrange(4)):
                    await passes(rng.randrange(3))
                    got += read(peer, rng.choice((1, 5, 50)))
                scope.cancel()
            expected += batch[: sock.datagrams_sent]
            cancelled += scope.cancelled_caught
            whole += sock.datagrams_sent == len(batch)
        got += read(peer)
    assert got == expected
