"""A client of kv_server.py: a class for programs, and a command.

python examples/kv_client.py --port 7002 put colour green
python examples/kv_client.py --port 7002 get colour
python examples/kv_client.py --port 7002 delete colour
"""

from __future__ import annotations

import argparse
import sys

import trio
from kv_protocol import DELETE, FOUND, FRAME_MAX, GET, MISSING, PUT, REQUEST

import trio_uring


class Refused(Exception):
    """The server would not do it: a key or a value that is too long, or a full store."""


class Client(trio.abc.AsyncResource):
    """One connection to a server. One request at a time: open more clients for more.

    A request that was cancelled leaves its answer on the way, where the next request would take it
    for its own: the client is broken then (trio.BrokenResourceError), and a new one has to be made.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._channel = trio_uring.FrameStream(stream, FRAME_MAX)
        self._busy = False
        self._broken = False

    @classmethod
    async def connect(cls, network: trio_uring.Network, address: trio_uring.Address) -> Client:
        return cls(await network.dial(address))

    async def get(self, key: bytes) -> bytes | None:
        """The value; None: there is none."""
        response = await self._ask(GET, key)
        return response[1:] if response[0] == FOUND else None

    async def put(self, key: bytes, value: bytes) -> None:
        await self._ask(PUT, key, value)

    async def delete(self, key: bytes) -> bool:
        """Whether there was such a key."""
        return (await self._ask(DELETE, key))[0] == FOUND

    async def aclose(self) -> None:
        await self._channel.aclose()

    async def _ask(self, operation: int, key: bytes, value: bytes = b"") -> bytes:
        if self._busy:
            raise trio.BusyResourceError("another task is using this client")
        if self._broken:
            raise trio.BrokenResourceError("an earlier request was interrupted")
        # Three buffers, one frame, one operation: the value is not copied.
        request = [REQUEST.pack(operation, len(key)), key, value]
        if len(key) + len(value) + REQUEST.size > FRAME_MAX:
            raise Refused("a key or a value is too long")
        self._busy = self._broken = True
        try:
            await self._channel.send(request)
            response = await self._channel.receive()
            self._broken = False
        finally:
            self._busy = False
        if response[:1] not in (bytes([FOUND]), bytes([MISSING])):
            raise Refused(f"the server refused {key[:32]!r}")
        return response


async def main(host: str, port: int, operation: str, key: str, value: str | None) -> int:
    async with await Client.connect(trio_uring.UringNetwork(), (host, port)) as client:
        if operation == "get":
            found = await client.get(key.encode())
            if found is None:
                return 1
            print(found.decode())
        elif operation == "put":
            await client.put(key.encode(), (value or "").encode())
        elif not await client.delete(key.encode()):
            return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A client of kv_server.py. The exit code is 1 if there is no such key."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7002)
    parser.add_argument("operation", choices=("get", "put", "delete"))
    parser.add_argument("key")
    parser.add_argument("value", nargs="?")
    arguments = parser.parse_args()
    sys.exit(
        trio.run(
            main,
            arguments.host,
            arguments.port,
            arguments.operation,
            arguments.key,
            arguments.value,
        )
    )
