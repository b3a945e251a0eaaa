"""The servers of asyncio's family: `python asyncio_server.py LOOP KIND MODE COUNT SIZE`.

LOOP is the module whose event loop is used: asyncio, uvloop, rloop, zuvloop; or aiofastnet, which
puts its transports on asyncio's. KIND is streams or protocol. MODE is what is done for a
connection; COUNT is how many buffers an answer of the mode `list` has, of SIZE bytes each.

Rules of this file: all loops run the same handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import struct
import sys
from typing import Any

STDIN = 0
RECEIVE_BYTES = 65536  # trio's own default for receive_some()
BACKLOG = 8192  # all connections come at once
CHUNK = bytes(65536)  # what the mode `out` sends at a time
PREFIX = struct.Struct(">I")

Buffers = list[bytes]


async def handle(
    mode: str, buffers: Buffers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(ConnectionError):
        while mode == "out":
            writer.write(CHUNK)
            await writer.drain()
        while data := await reader.read(RECEIVE_BYTES):
            if mode == "in":
                continue
            if mode == "list":
                writer.writelines(buffers)
            else:
                writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()  # asyncio complains about an error that nobody collects here


async def handle_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            size = PREFIX.unpack(await reader.readexactly(PREFIX.size))[0]
            payload = await reader.readexactly(size)
            writer.write(PREFIX.pack(len(payload)) + payload)
            await writer.drain()
    writer.close()


class Echo(asyncio.Protocol):
    """Sends back what comes; stops reading while its transport has too much to send."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class TakeIn(Echo):
    def data_received(self, data: bytes) -> None:
        pass


class GiveOut(TakeIn):
    """Sends while its transport takes it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while not self.paused and not self.transport.is_closing():
            self.transport.write(CHUNK)


class AnswerList(Echo):
    buffers: Buffers

    def data_received(self, data: bytes) -> None:
        self.transport.writelines(self.buffers)


class EchoFrames(Echo):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        while len(buffer) >= PREFIX.size:
            end = PREFIX.size + PREFIX.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            payload = bytes(buffer[PREFIX.size : end])
            del buffer[:end]
            self.transport.write(PREFIX.pack(len(payload)) + payload)


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


PROTOCOLS = {
    "echo": Echo,
    "tls": Echo,
    "frames": EchoFrames,
    "in": TakeIn,
    "out": GiveOut,
    "list": AnswerList,
}


async def main(kind: str, mode: str, count: int, size: int) -> None:
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    buffers = [bytes(size)] * count

    def on_stdin() -> None:
        if not os.read(STDIN, 4096):
            loop.remove_reader(STDIN)
            closed.set()

    async def on_connection(reader: Any, writer: Any) -> None:
        if mode == "frames":
            await handle_frames(reader, writer)
        else:
            await handle(mode, buffers, reader, writer)

    server: Any
    options: dict[str, Any] = {"backlog": BACKLOG}
    if mode == "tls":
        options["ssl"] = importlib.import_module("certificate").server_context()
    if mode == "udp":
        server, _ = await loop.create_datagram_endpoint(EchoDatagrams, ("127.0.0.1", 0))
        print(server.get_extra_info("sockname")[1], flush=True)
    elif kind == "protocol":
        AnswerList.buffers = buffers
        server = await loop.create_server(PROTOCOLS[mode], "127.0.0.1", 0, **options)
    else:
        server = await asyncio.start_server(on_connection, "127.0.0.1", 0, **options)
    if mode != "udp":
        print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_reader(STDIN, on_stdin)
    await closed.wait()
    server.close()


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    module: Any = importlib.import_module(name)
    if name == "aiofastnet":
        loop = asyncio.new_event_loop()
        module.patch_loop(loop)
        return loop
    new: asyncio.AbstractEventLoop = module.new_event_loop()
    return new


if __name__ == "__main__":
    event_loop = make_loop(sys.argv[1])
    asyncio.set_event_loop(event_loop)
    event_loop.run_until_complete(
        main(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    )
