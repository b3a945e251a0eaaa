"""relay: a connection that is reset after a half-close, while nothing is sent to it.

Rules of this file: the sockets are TCP, where a half-close and a later reset can be told apart.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

import pytest
import trio
import trio.testing
from support.streams import tcp_sockets, unix_sockets, until

import trio_uring
from trio_uring._network.network import BufferedNetworkStream
from trio_uring._relay import copy as _copy

from .test_relay import PAIRS, Between, make


def network_stream(sock: socket.socket) -> Any:
    return BufferedNetworkStream(
        trio_uring.SocketStream(sock), trio_uring.NetworkConfig(), ("", 0), ("", 0)
    )


def stapled(sock: socket.socket) -> Any:
    return trio.StapledStream(*trio_uring.SocketStream(sock).split())


def metered(sock: socket.socket) -> Any:
    return trio_uring.MeteredStream(trio_uring.AuditedStream(stapled(sock)))


KINDS = {
    "ours": trio_uring.SocketStream,
    "trio": lambda sock: make("trio", sock),
    "network": network_stream,
    "stapled": stapled,
    "metered": metered,
}


def reset(stream: Any) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def broken(between: Between) -> trio.BrokenResourceError:
    """A relay of which one client half-closes, and goes away with a reset; the other one is silent
    all the time."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run, trio.BrokenResourceError)
        await between.client.send_all(b"question")
        await between.client.send_eof()
        assert await between.server.receive_some() == b"question"
        assert await between.server.receive_some() == b""
        reset(between.client)
        await between.client.aclose()
        with trio.fail_after(10):
            await between.done.wait()
        nursery.cancel_scope.cancel()
    result = between.result
    await between.aclose()
    assert type(result) is trio.BrokenResourceError
    assert isinstance(result.__cause__, OSError)
    return result


@pytest.mark.parametrize("pumps", [True, False])
@pytest.mark.parametrize("kinds", PAIRS)
async def test_it_is_noticed_though_the_other_side_is_silent(kinds, pumps, monkeypatch):
    if not pumps:
        monkeypatch.setattr(_copy, "can_pump", lambda *_: False)
    await broken(Between(kinds, tcp_sockets))


@pytest.mark.parametrize("order", ["a", "b"])
@pytest.mark.parametrize("kind", KINDS)
async def test_on_every_kind_of_stream_that_has_a_socket(kind, order):
    between = Between("ours-ours", tcp_sockets)
    for name in ("a", "b"):
        stream = getattr(between, name)
        fd = stream.socket.detach()
        setattr(between, name, KINDS[kind](socket.socket(fileno=fd)))
        await stream.aclose()
    if order == "b":
        between.a, between.b = between.b, between.a
    await broken(between)


@pytest.mark.parametrize("kinds", PAIRS)
@pytest.mark.parametrize("sockets", [tcp_sockets, unix_sockets])
async def test_an_end_is_no_reset(kinds, sockets):
    """The client sends its end, or is gone for good; the server answers with its own end: that is
    all in order."""
    for gone in (False, sockets is unix_sockets):
        between = Between(kinds, sockets)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(between.run)
            await between.client.send_all(b"question")
            await between.client.send_eof()
            if gone:
                await between.client.aclose()
            assert await between.server.receive_some() == b"question"
            assert await between.server.receive_some() == b""
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not between.done.is_set()
            await between.server.send_eof()
            await between.done.wait()
        assert between.result == (8, 0)
        await between.aclose()


async def test_the_answer_still_comes_while_it_is_watched():
    between = Between("ours-ours", tcp_sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        await between.client.send_eof()
        assert await between.server.receive_some() == b""
        for _ in range(3):
            await between.server.send_all(b"answer")
            assert await between.client.receive_some() == b"answer"
        await between.server.send_eof()
        await between.done.wait()
    assert between.result == (0, 18)
    await between.aclose()


@pytest.mark.parametrize("missing", ["epoll", "descriptors"])
async def test_where_it_cannot_be_watched_all_else_works(monkeypatch, missing):
    def refuse() -> None:
        raise OSError(24, "no descriptors")

    trio_uring.current_statistics()  # the run's own is open
    if missing == "epoll":
        monkeypatch.delattr(select, "epoll")
    else:
        monkeypatch.setattr(select, "epoll", refuse)
    between = Between("ours-ours", tcp_sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        await between.client.send_eof()
        assert await between.server.receive_some() == b""
        await between.server.send_all(b"answer")
        await between.server.send_eof()
        await between.done.wait()
    assert between.result == (0, 6)
    await between.aclose()


async def test_a_stream_that_is_closed_while_it_is_watched():
    between = Between("ours-ours", tcp_sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run, trio.ClosedResourceError)
        await between.client.send_eof()
        assert await between.server.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked(0.01)
        await between.a.aclose()
        await between.done.wait()
    assert type(between.result) is trio.ClosedResourceError
    await between.aclose()


async def test_a_cancelled_relay_takes_its_watch_with_it():
    """The check after every test counts descriptors."""
    between = Between("ours-ours", tcp_sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        await between.client.send_eof()
        await until(lambda: between.b.socket.did_shutdown_SHUT_WR, "the end")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await between.aclose()
