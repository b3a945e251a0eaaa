"""The demo's file server and client: the same code for both kinds of streams.

The protocol is that of examples/file_protocol.py. Rules of this file: only `Stack` knows which
streams it runs on. A path that is not in the index does not exist, which rules out path traversal.
Sizes that a peer sends are bounded before memory is allocated for them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

REQUEST = struct.Struct("!QH")  # offset, length of the path
ANSWER = struct.Struct("!BQQ32s")  # status, bytes that follow, size of the file, its SHA-256
OK, REFUSED = 0, 1
REFUSAL = ANSWER.pack(REFUSED, 0, 0, bytes(32))

PATH_MAX = 1024  # bytes of a path; a longer one ends the connection
# Most files in an index: each is a memory map in the server, and the kernel allows 65,530 maps.
FILES_MAX = 20_000
# Bytes of a body up to which a user of trio's streams joins it with its header: two sends cost
# more.
JOIN_MAX = 65536
CHUNKS_MIN = 8  # least receives for a file with a cut, so that the cut is in its middle

NOT_SERVED = {"site-packages", "__pycache__"}


@dataclass(frozen=True)
class File:
    """A file of the index. `name` is its path below the directory, with forward slashes."""

    name: str
    size: int
    digest: bytes


@dataclass(frozen=True)
class Stack:
    """One of the two kinds of streams: how to open them, serve them, and send a header and a
    body."""

    name: str
    connect: Callable[[str, int], Awaitable[Any]]
    open_listeners: Callable[..., Awaitable[list[Any]]]
    send_frame: Callable[[Any, bytes, memoryview], Awaitable[None]]


async def _send_list(stream: trio_uring.SocketStream, header: bytes, body: memoryview) -> None:
    await stream.send_all([header, body])


async def _send_joined(stream: trio.SocketStream, header: bytes, body: memoryview) -> None:
    """The best that a user of trio's streams can do: copy if that is cheaper than a second send."""
    if len(body) <= JOIN_MAX:
        await stream.send_all(b"".join((header, body)))
    else:
        await stream.send_all(header)
        await stream.send_all(body)


STACKS = {
    "trio_uring": Stack(
        "trio_uring", trio_uring.open_tcp_stream, trio_uring.open_tcp_listeners, _send_list
    ),
    "trio": Stack("trio", trio.open_tcp_stream, trio.open_tcp_listeners, _send_joined),
}


def scan(directory: Path, suffixes: tuple[str, ...], bytes_max: int) -> list[File]:
    """The files below `directory` that end with one of `suffixes` (if there are none, all files).

    They are listed directory by directory, sorted by name. Files that are empty or cannot be read
    are left out, and so are those beyond `bytes_max` bytes or FILES_MAX files in all. Links to
    directories are not followed.

    Raises:
        OSError: the directory cannot be listed.
    """
    files: list[File] = []
    left = bytes_max
    for path in _walk(directory):
        if len(files) == FILES_MAX:
            break
        if suffixes and path.suffix not in suffixes:
            continue
        try:
            if path.is_file() and 0 < path.stat().st_size <= left:
                data = path.read_bytes()
                left -= len(data)
                files.append(
                    File(
                        path.relative_to(directory).as_posix(),
                        len(data),
                        hashlib.sha256(data).digest(),
                    )
                )
        except OSError:
            continue
    return files


def _walk(directory: Path) -> Iterator[Path]:
    def give_up(error: OSError) -> None:
        if error.filename == os.fspath(directory):
            raise error

    for folder, folders, names in os.walk(directory, onerror=give_up):
        folders[:] = sorted(set(folders) - NOT_SERVED)
        yield from (Path(folder, name) for name in sorted(names))


# -- the server


class Server:
    """Answers requests for the files of an index, from memory maps that are made once."""

    def __init__(self, stack: Stack, directory: Path, files: list[File]) -> None:
        self._stack = stack
        self._index = {
            os.fsencode(file.name): (file, _map(directory / file.name, file.size)) for file in files
        }
        self.hung_up = 0  # connections that clients left in the middle of a file

    async def serve_client(self, stream: Any) -> None:
        """Serves one connection, until the client hangs up or breaks the protocol."""
        reader = Reader(stream)
        try:
            while (request := await reader.take(REQUEST.size)) is not None:
                offset, path_length = REQUEST.unpack(request)
                path = await reader.take(path_length) if path_length <= PATH_MAX else None
                if path is None:
                    return
                await self._answer(stream, path, offset)
        except trio.BrokenResourceError:
            self.hung_up += 1

    async def _answer(self, stream: Any, path: bytes, offset: int) -> None:
        file, body = self._index.get(path, (None, _NOTHING))
        if file is None or offset > file.size:
            await stream.send_all(REFUSAL)
            return
        rest = body[offset:]
        await self._stack.send_frame(
            stream, ANSWER.pack(OK, len(rest), file.size, file.digest), rest
        )


_NOTHING = memoryview(b"")


def _map(path: Path, size: int) -> memoryview:
    """Maps a file, whose pages stay mapped for as long as the process runs."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


class Reader:
    """Takes exact numbers of bytes from either kind of stream.

    Args:
        stream: the stream.
        most: the most bytes of one receive; None: the stream chooses.
    """

    def __init__(self, stream: Any, most: int | None = None) -> None:
        self._stream = stream
        self._most = most
        self._buffer = bytearray()

    async def take(self, count: int) -> bytes | None:
        """Returns exactly `count` bytes, or None if the stream ended before."""
        buffer = self._buffer
        while len(buffer) < count:
            chunk = await self._stream.receive_some(self._most)
            if not chunk:
                return None
            buffer += chunk
        taken = bytes(buffer[:count])
        del buffer[:count]
        return taken

    def rest(self) -> bytes:
        """Returns what came after the bytes taken."""
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken


# -- the client


@dataclass
class Tally:
    """What the clients have seen. They all share one."""

    files: int = 0
    bytes: int = 0
    cancelled: int = 0
    resumed: int = 0
    bad: list[str] = field(default_factory=list)  # names of files that came with a wrong checksum


class ProtocolError(Exception):
    """The server's answer makes no sense."""


@dataclass
class Download:
    """A file on its way to a client, which remembers its position across connections.

    Attributes:
        cut: bytes after which the attempt is cancelled, once; None: never.
    """

    file: File
    cut: int | None = None
    received: int = 0
    right: bool = False
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def done(self) -> bool:
        return self.received >= self.file.size

    async def run(self, stream: Any, tally: Tally, cancel: Callable[[], None]) -> None:
        """Requests what is missing, and receives it.

        Cancellation: `received` and the checksum reflect exactly the bytes that came.
        """
        path = os.fsencode(self.file.name)
        await stream.send_all(REQUEST.pack(self.received, len(path)) + path)
        most = None if self.cut is None else self.file.size // CHUNKS_MIN
        reader = Reader(stream, most)
        answer = await reader.take(ANSWER.size)
        if answer is None:
            raise ProtocolError(f"{self.file.name}: the server hung up")
        status, missing, size, digest = ANSWER.unpack(answer)
        if (status, missing, size) != (OK, self.file.size - self.received, self.file.size):
            raise ProtocolError(f"{self.file.name}: status {status}, {missing} of {size} bytes")
        chunk = reader.rest()
        while True:
            self._take(chunk, tally)
            if self.done:
                self.right = self._hash.digest() == digest == self.file.digest
                return
            if self.cut is not None and self.received >= self.cut:
                self.cut = None
                # Not now but in the next pass: by then this task is waiting, with its receive in
                # the kernel.
                trio.lowlevel.current_trio_token().run_sync_soon(cancel)
            chunk = await stream.receive_some(most)
            if not chunk:
                raise ProtocolError(f"{self.file.name}: the server hung up at byte {self.received}")

    def _take(self, chunk: bytes, tally: Tally) -> None:
        self._hash.update(chunk)
        self.received += len(chunk)
        tally.bytes += len(chunk)


async def run_client(stack: Stack, port: int, downloads: Iterator[Download], tally: Tally) -> None:
    """One client: fetches downloads that nobody has taken yet, until there are none left.

    A cancelled download loses its connection, and is resumed on a new one.
    """
    stream: Any = None
    try:
        for download in downloads:
            while not download.done:
                if stream is None:
                    stream = await stack.connect("127.0.0.1", port)
                tally.resumed += download.received > 0
                with trio.CancelScope() as scope:
                    await download.run(stream, tally, scope.cancel)
                if scope.cancelled_caught:
                    tally.cancelled += 1
                    await stream.aclose()
                    stream = None
            tally.files += 1
            if not download.right:
                tally.bad.append(download.file.name)
    finally:
        if stream is not None:
            await trio.aclose_forcefully(stream)
