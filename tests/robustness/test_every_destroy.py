"""Receives of every kind, on a stream, its socket and by a copy, that are cancelled and destroyed
(coro.close()) at any step: every byte comes once, and in order.

Rules of this file: the seed is an argument.
"""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Any

import pytest
import trio
from support.child import FLAGS, in_child, use_ring
from support.destroy import CHECKPOINTS, Call, interrupted
from support.streams import tcp_sockets, unix_sockets

import trio_uring

pytestmark = pytest.mark.uring_only(
    "trio's own wait for a descriptor does not survive that its coroutine is destroyed"
)

CALLS = 400


class Side:
    """A stream with its socket, whose peer sends; and another one, to copy to."""

    def __init__(self, kind: str, rnd: random.Random) -> None:
        make = tcp_sockets if kind == "tcp" else unix_sockets
        (ours, self.near), (sink, self.far) = make(), make()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.socket = trio_uring.UringSocket(ours)
        self.stream, self.sink = trio_uring.SocketStream(self.socket), trio_uring.SocketStream(sink)
        self.sent, self.got = bytearray(), bytearray()
        self.rnd = rnd

    def send(self) -> None:
        data = self.rnd.randbytes(self.rnd.choice((0, 0, 1, 3, 100, 4096, 5000, 70000)))
        with contextlib.suppress(BlockingIOError):
            self.sent += data[: self.near.send(data)]

    async def copy(self, count: int) -> None:
        await trio_uring.copy_stream(self.stream, self.sink, max_bytes=count)

    async def receive(self, how: str) -> None:
        """One call."""
        choose, stream, sock = self.rnd.choice, self.stream, self.socket
        count = choose((1, 10, 5000, 100_000))
        buffer = bytearray(count)
        calls: dict[str, Any] = {
            "receive_some": lambda: stream.receive_some(choose((None, count))),
            "receive_into": lambda: stream.receive_into(buffer),
            "receive_exactly": lambda: stream.receive_exactly(count),
            "recv": lambda: sock.recv(count),
            "recv_into": lambda: sock.recv_into(buffer),
            "recvmsg": lambda: sock.recvmsg(count),
            "copy": lambda: self.copy(count),
        }
        name = choose(list(calls))
        call = Call(calls[name]())
        late = choose((False, True))
        if not late:
            self.send()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupted, call, how, self.rnd)
            for _ in range(choose(CHECKPOINTS)):
                await trio.lowlevel.checkpoint()
            if late:
                self.send()
        if name == "copy":
            await self.until_copied()
        elif call.result is not None:
            result = call.result[0] if name == "recvmsg" else call.result
            self.got += buffer[:result] if isinstance(result, int) else result
        assert self.sent.startswith(self.got), f"{name}, {how}"

    async def until_copied(self) -> None:
        """A copy that was destroyed goes on for a moment."""
        while self.stream._receiving.held:
            await trio.lowlevel.checkpoint()
        with contextlib.suppress(BlockingIOError):
            while part := self.far.recv(2**20):
                self.got += part

    async def close(self) -> None:
        self.near.shutdown(socket.SHUT_WR)
        async for data in self.stream:
            self.got += data
        assert self.got == self.sent
        for way in (self.stream._receiving, self.sink._sending):
            assert (way.held, way.left, way.kept, way.told) == (False, None, None, None)
            for op in way.operations.values():
                assert (op.owed, op.then, op.chunk, op.memory) == (False, None, None, None)
        await self.stream.aclose()
        await self.sink.aclose()
        self.near.close()
        self.far.close()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("provided", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_every_byte_comes_once(flags: str, kind: str, provided: bool, seed: int) -> None:
    use_ring(flags=flags, provide_buffers=provided)
    rnd = random.Random(seed)
    side = Side(kind, rnd)
    for _ in range(CALLS):
        await side.receive(rnd.choice(("cancelled", "destroyed", "both")))
    await side.close()
