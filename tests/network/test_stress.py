"""Many connections at once that carry many messages, all checksummed at both ends.

96 connections carry 4,096 messages of 4 KiB each, 1.5 GiB in all, and the messages come back, as
frames: sent by `send_frame` and `FrameStream`, received by `receive_frame` and `FrameStream`.
io_uring gets this full size in a long run (--long). The other networks and the wrapped ones get a
part of it, or with TRIO_URING_STRESS=full the whole, except for the hostile simulation, which would
take minutes.

Rules: no two messages are alike, and what each end sent and received is hashed in order (blake2b).
Each end's digest is compared with the other end's, over the connection itself.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import trio
from support.long_cases import long_cases
from support.networks import ANY_PORT, BLOCK, KINDS, World, on
from support.streams import closing

from trio_uring import FrameStream, backend_info, receive_frame, send_frame

if TYPE_CHECKING:
    from trio_uring import NetworkStream

STREAMS = 96
MESSAGES = 4096  # of each stream
SIZE = 4096  # bytes
FULL = os.environ.get("TRIO_URING_STRESS") == "full"
# 1 / part of the messages; the wrapped networks get a 64th.
PARTS = {"ring": 1, "trio": 8, "hostile simulated": 512}
LIMIT = 110 * (3 if long_cases() else 1)  # seconds


def message(stream: int, number: int) -> list[memoryview | bytes]:
    """4 KiB that tell which message it is, without a copy."""
    start = (stream * 7919 + number * 613) % (len(BLOCK) - SIZE)
    return [b"%8d%8d" % (stream, number), memoryview(BLOCK)[start : start + SIZE - 16]]


class Client:
    def __init__(self, stream: NetworkStream, number: int, messages: int) -> None:
        self._stream = stream
        self._number, self._messages = number, messages
        self._sent, self._received = hashlib.blake2b(), hashlib.blake2b()

    async def run(self) -> None:
        async with closing(self._stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                for _ in range(self._messages):
                    self._received.update(await receive_frame(self._stream, SIZE))
            assert self._received.digest() == self._sent.digest()
            # What the server has received.
            assert await receive_frame(self._stream, SIZE) == self._sent.digest()
            assert await self._stream.receive_some() == b""

    async def _send(self) -> None:
        for number in range(self._messages):
            parts = message(self._number, number)
            for part in parts:
                self._sent.update(part)
            await send_frame(self._stream, parts, SIZE)
        await self._stream.send_eof()


async def serve(stream: NetworkStream) -> None:
    """Echoes messages, many at once where many are there, and says at the end what it had."""
    received = hashlib.blake2b()
    async with FrameStream(stream, SIZE) as channel:
        while True:
            try:
                messages = await channel.receive_many()
            except trio.EndOfChannel:
                break
            for one in messages:
                received.update(one)
            await channel.send_many(messages)
        await channel.send(received.digest())


async def run_clients(world: World, messages: int) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        streams = [await network.dial(listener.local_address) for _ in range(STREAMS)]
        async with trio.open_nursery() as clients:
            for number, stream in enumerate(streams):
                clients.start_soon(Client(stream, number, messages).run)
        nursery.cancel_scope.cancel()


@on(KINDS, limit=LIMIT)
async def test_96_streams(world: World) -> None:
    name = world.kind.name
    part = PARTS.get(
        "trio" if name == "ring" and backend_info().backend == "readiness" else name, 64
    )
    if FULL and part < 100:
        part = 1
    elif not long_cases():
        part = max(part, 256)
    messages = MESSAGES // part
    await run_clients(world, messages)
