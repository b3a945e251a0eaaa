"""Streams that override methods: a copy, a relay and a file use those methods, not a pump past
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.shouting import KINDS
from support.streams import TINY, closing, drain, unix_sockets

import trio_uring
from trio_uring import copy_stream, relay, send_file

if TYPE_CHECKING:
    from pathlib import Path

every_kind = pytest.mark.parametrize("kind", KINDS)


def ours(buffer: int | None = None) -> tuple[trio_uring.SocketStream, Any]:
    left, right = unix_sockets(buffer)
    return trio_uring.SocketStream(left), right


@every_kind
async def test_a_copy_to_it(kind: str) -> None:
    left, peer = unix_sockets()
    sink = KINDS[kind](left)
    source, near = ours()
    async with closing(source, near, sink, peer):
        near.send(b"abcdef")
        told: list[int] = []
        assert await copy_stream(source, sink, max_bytes=4, progress=told.append) == 4
        assert told[-1] == 4
        assert drain(peer) == b"ABCD"
        near.close()
        assert await copy_stream(source, sink) == 2
        assert drain(peer) == b"EF"


@every_kind
async def test_a_copy_from_it(kind: str) -> None:
    left, peer = unix_sockets()
    source = KINDS[kind](left)
    sink, far = ours()
    async with closing(source, peer, sink, far):
        peer.send(b"abcdef")
        assert await copy_stream(source, sink, max_bytes=4) == 4
        assert drain(far) == b"ABCD"
        peer.close()
        assert await copy_stream(source, sink) == 2
        assert drain(far) == b"EF"


@every_kind
async def test_a_cancelled_copy_from_it_loses_nothing(kind: str) -> None:
    left, peer = unix_sockets()
    source = KINDS[kind](left)
    sink, far = ours(TINY)
    data = b"abcdefgh" * 2**15
    async with closing(source, sink, far):
        got = b""
        async with trio.open_nursery() as nursery, trio_uring.SocketStream(peer) as feeder:
            nursery.start_soon(feeder.send_all, data)
            for _ in range(5):
                with trio.move_on_after(0.01):
                    await copy_stream(source, sink)
                got += drain(far)
            nursery.start_soon(copy_stream, source, sink)
            while len(got) < len(data):
                got += drain(far)
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert got == data.upper()


@every_kind
async def test_a_relay_with_it(kind: str) -> None:
    left, peer = unix_sockets()
    b = KINDS[kind](left)
    a, near = ours()
    async with closing(a, near, b, peer):
        near.send(b"to it")
        near.shutdown(1)
        peer.send(b"from it")
        peer.shutdown(1)
        assert await relay(a, b) == (5, 7)
        assert drain(peer) == b"TO IT"
        assert drain(near) == b"FROM IT"


@every_kind
async def test_a_file_to_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123 in a file")
    left, peer = unix_sockets()
    sink = KINDS[kind](left)
    async with closing(sink, peer):
        with path.open("rb") as file:
            assert await send_file(sink, file, 5) == 9
        assert drain(peer) == b"IN A FILE"
