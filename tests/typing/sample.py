"""A program that uses the public API, for type checkers: beside trio's own types, and beside trio-typing's stubs.

Rules of this file: it is checked, and never run.
"""

from __future__ import annotations

import array
import mmap

import trio

import trio_uring


async def handle(stream: trio_uring.SocketStream) -> None:
    async with stream:
        stream.send_timeout = 10.0
        header: bytes = await stream.receive_exactly(4, timeout=5.0)
        await stream.send_all([header, bytearray(b"body"), memoryview(b"more"), array.array("I", [1, 2])])
        sent: int = stream.bytes_sent
        buffer = bytearray(sent)
        count: int = await stream.receive_into(buffer)
        data: bytes = await stream.receive_some(count)
        await stream.send_all(data)
        await stream.send_eof()
        async for chunk in stream:
            print(len(chunk))


async def send_file(stream: trio_uring.SendStream, mapped: mmap.mmap) -> None:
    await stream.send_all((b"header", mapped), timeout=30)
    await stream.wait_send_all_might_not_block()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio_uring.serve_tcp, handle, 0)
        print(len(listeners))
        client: trio_uring.SocketStream = await trio_uring.open_tcp_stream("localhost", 80, happy_eyeballs_delay=0.1)
        await client.aclose()
        other: trio_uring.SocketStream = await trio_uring.open_unix_socket("/run/socket")
        await other.aclose()
        opened: list[trio_uring.SocketListener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
        stream: trio_uring.SocketStream = await opened[0].accept()
        await stream.aclose()
        source = trio_uring.ReceiveStream(0)
        print(await source.receive_some())
    statistics: trio_uring.Statistics = trio_uring.current_statistics()
    print(statistics.operations["SEND"].submitted, [op.age for op in trio_uring.current_operations()])


trio.run(main)
