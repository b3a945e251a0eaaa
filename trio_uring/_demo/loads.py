"""The loads of the acts: clients in a process of their own.

    python -m trio_uring._demo.loads ACT SIZES

SIZES is the act's, as JSON. The first line of its standard input has the port of each server, by
stack, and is answered with {} when the clients are there. Each further line, {"stack": ...,
"seconds": ...}, is a round, and its answer what was done: {"operations": ..., "counts": ...}, or
{"error": ...} if what came back was wrong. It ends when its standard input does.

Rules of this file: everything that comes back is compared, and a round ends with nothing on its
way. A round of no time at all makes every client do its work once. There are no timeouts for what
cannot get lost: who asked for the round has one.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import trio

from .children import prepare
from .files import STACKS, Download, ProtocolError, Tally, run_client
from .servers import LOOPBACK, PORT, library
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
ACCEPT_SECONDS_MAX = 10.0
SERIAL = struct.Struct("!Q")  # the first bytes of a datagram


class WrongAnswerError(Exception):
    """What came back is not what was sent."""


def _text(size: int) -> bytes:
    """Bytes of which no two words are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


class Echo:
    """Clients that have one message on its way, each."""

    def __init__(self, stack: str, port: int, *, connections: int, size: int) -> None:
        self._message = _text(size)
        self._selector = selectors.DefaultSelector()
        self._socks = [socket.create_connection((LOOPBACK, port)) for _ in range(connections)]
        for sock in self._socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, bytearray())

    def run(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        for sock in self._socks:
            sock.sendall(self._message)
        operations, waiting = 0, len(self._socks)
        while waiting:
            ready = self._selector.select()
            going_on = time.monotonic() < end
            for key, _ in ready:
                if not self._receive(key):
                    continue
                operations += 1
                if going_on:
                    key.fileobj.sendall(self._message)  # type: ignore[union-attr]
                else:
                    waiting -= 1
        return {"operations": operations, "counts": {}}

    def close(self) -> None:
        self._selector.close()
        for sock in self._socks:
            sock.close()

    def _receive(self, key: selectors.SelectorKey) -> bool:
        """Whether the answer is complete."""
        sock: Any = key.fileobj
        chunk = sock.recv(len(self._message) + 1)
        if not key.data and chunk == self._message:
            return True
        key.data.extend(chunk)
        if not chunk or len(key.data) > len(self._message):
            raise WrongAnswerError("the server hung up" if not chunk else "too much came back")
        if len(key.data) < len(self._message):
            return False
        if key.data != self._message:
            raise WrongAnswerError("a message came back with wrong bytes")
        key.data.clear()
        return True


class Files:
    """Clients that fetch files, check them, and are cancelled in the middle of some."""

    def __init__(self, stack: str, port: int, *, clients: int, least: int) -> None:
        self._stack, self._port, self._least = STACKS[stack], port, least
        self._directory, self._files = library()
        self._clients, self._seeds = clients, itertools.count()
        self._error: Exception | None = None

    def run(self, seconds: float) -> dict[str, Any]:
        tally = Tally()
        trio.run(self._fetch, self._downloads(time.monotonic() + seconds), tally)
        if self._error is not None:
            raise WrongAnswerError(str(self._error)) from self._error
        if tally.bad:
            raise WrongAnswerError(f"{tally.bad[0]} came with a wrong checksum")
        return {"operations": tally.files, "counts": {"cancelled": tally.cancelled}}

    def close(self) -> None:
        """Nothing: every round has its own connections."""

    def _downloads(self, end: float) -> Iterator[Download]:
        """In random order, until the time is up; but at least so many bytes."""
        for number in itertools.count():
            work = Work(self._directory, self._files, self._clients, seed=next(self._seeds))
            for download in work.downloads(self._least):
                if number and time.monotonic() >= end:
                    return
                yield download

    async def _fetch(self, downloads: Iterator[Download], tally: Tally) -> None:
        async def client() -> None:
            try:
                await run_client(self._stack, self._port, downloads, tally)
            except (OSError, ProtocolError, trio.BrokenResourceError) as exc:
                self._error = self._error or exc
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(self._clients):
                nursery.start_soon(client)


class Relay:
    """Clients who send as much as they can through a proxy, end their direction, and are then told
    what arrived."""

    REPORT = struct.Struct("!QI")  # bytes, and their checksum

    def __init__(self, stack: str, port: int, *, connections: int, chunk: int) -> None:
        self._port, self._connections, self._chunk = port, connections, _text(chunk)

    def run(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(2 * self._connections) as pool:
            with socket.create_server((LOOPBACK, 0)) as behind:
                behind.settimeout(ACCEPT_SECONDS_MAX)
                where = behind.getsockname()[1]
                clients = [pool.submit(self._send, where, end) for _ in range(self._connections)]
                servers = [pool.submit(self._take, _accept(behind)) for _ in clients]
            sent = sum(client.result() for client in clients)
            for server in servers:
                server.result()
        return {"operations": sent / MIB, "counts": {"answers": len(clients)}}

    def close(self) -> None:
        """Nothing: every round has its own connections."""

    def _send(self, where: int, end: float) -> int:
        """One client; returns the bytes that it has sent."""
        count = checksum = 0
        with socket.create_connection((LOOPBACK, self._port)) as sock:
            sock.sendall(PORT.pack(where))
            while not count or time.monotonic() < end:
                sock.sendall(self._chunk)
                count += len(self._chunk)
                checksum = zlib.crc32(self._chunk, checksum)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := sock.recv(self.REPORT.size):
                answer += chunk
        if answer != self.REPORT.pack(count, checksum):
            raise WrongAnswerError("what arrived is not what was sent")
        return count

    def _take(self, sock: socket.socket) -> None:
        """Who is behind the proxy."""
        count = checksum = 0
        memory = memoryview(bytearray(len(self._chunk)))
        with sock:
            sock.setblocking(True)
            while size := sock.recv_into(memory):
                count += size
                checksum = zlib.crc32(memory[:size], checksum)
            sock.sendall(self.REPORT.pack(count, checksum))


def _accept(behind: socket.socket) -> socket.socket:
    try:
        return behind.accept()[0]
    except TimeoutError:
        raise WrongAnswerError("the proxy has not connected to where it was to") from None


class Udp:
    """Clients that send a burst each, and wait for all of it. The rest of one is lost after
    `patience` seconds without a datagram."""

    def __init__(
        self, stack: str, port: int, *, sockets: int, burst: int, size: int, patience: int
    ) -> None:
        self._burst, self._text = burst, _text(size - SERIAL.size)
        self._serials = itertools.count()
        self._socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(sockets)]
        for sock in self._socks:
            sock.connect((LOOPBACK, port))
            sock.settimeout(patience)

    def run(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        arrived = lost = 0
        while not arrived + lost or time.monotonic() < end:
            bursts = []
            for sock in self._socks:
                burst = [SERIAL.pack(next(self._serials)) + self._text for _ in range(self._burst)]
                for datagram in burst:
                    sock.send(datagram)
                bursts.append((sock, burst))
            for sock, burst in bursts:
                came = self._receive(sock, burst)
                arrived, lost = arrived + came, lost + len(burst) - came
        if not arrived:
            raise WrongAnswerError("not one datagram came back")
        return {"operations": arrived, "counts": {"lost": lost}}

    def close(self) -> None:
        for sock in self._socks:
            sock.close()

    def _receive(self, sock: socket.socket, burst: list[bytes]) -> int:
        """How many of a burst came back. What was given up earlier may come as well."""
        waiting = set(burst)
        while waiting:
            try:
                datagram = sock.recv(MIB)
            except TimeoutError:
                break
            if datagram in waiting:
                waiting.remove(datagram)
            elif datagram[SERIAL.size :] != self._text or datagram > burst[-1]:
                raise WrongAnswerError("a datagram came back with wrong bytes")
        return len(burst) - len(waiting)


LOADS: dict[str, Any] = {"echo": Echo, "files": Files, "relay": Relay, "udp": Udp}


# -- the process


def main(act: str, sizes: dict[str, int]) -> None:
    loads: dict[str, Any] = {}
    for line in sys.stdin:
        question, answer = json.loads(line), {}
        try:
            if loads:
                answer = loads[question["stack"]].run(question["seconds"])
            else:
                loads = {
                    stack: LOADS[act](stack, port, **sizes) for stack, port in question.items()
                }
        except (OSError, WrongAnswerError) as exc:
            answer = {"error": str(exc)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    prepare()
    main(sys.argv[1], json.loads(sys.argv[2]))
