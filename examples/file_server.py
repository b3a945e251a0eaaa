"""A file server: sends the files of a directory, each as one [header, body] frame straight from the
page cache.

    python examples/file_server.py DIRECTORY --port 7001

What it shows: `send_all([header, body])` hands the kernel a small header and a memory-mapped file
in one operation. Nothing is joined or copied in this process, whatever the size of the file.
"""

import argparse
import functools
import hashlib
import mmap
import os
import signal
from pathlib import Path

import trio
from file_protocol import ANSWER, OK, PATH_MAX, REFUSED, REQUEST

import trio_uring

IDLE_MAX = 60.0  # seconds that a client may take for its next request
SEND_MAX = 300.0  # seconds that a client may take to receive one file

REFUSAL = ANSWER.pack(REFUSED, 0, 0, bytes(32))


async def serve_client(root: Path, stream: trio_uring.SocketStream) -> None:
    """Answers the requests of one connection until the client hangs up, is too slow, or asks
    nonsense."""
    stream.receive_timeout, stream.send_timeout = IDLE_MAX, SEND_MAX
    try:
        while True:
            offset, path_length = REQUEST.unpack(await stream.receive_exactly(REQUEST.size))
            if path_length > PATH_MAX:
                return
            name = await stream.receive_exactly(path_length)
            # A disk may be slow: not in trio's own thread.
            found = await trio.to_thread.run_sync(find, root, name)
            if found is None:
                await stream.send_all(REFUSAL)
            else:
                await send_file(stream, *found, offset)
    except (trio_uring.IncompleteReadError, trio.BrokenResourceError, trio.TooSlowError):
        pass  # the client has gone, or may as well have


async def send_file(
    stream: trio_uring.SocketStream, digest: bytes, pages: mmap.mmap | None, offset: int
) -> None:
    """Sends a file from byte `offset` on, after its header."""
    size = len(pages) if pages else 0
    if offset > size:
        await stream.send_all(REFUSAL)
    elif pages is None:
        await stream.send_all(ANSWER.pack(OK, 0, 0, digest))
    else:
        with pages, memoryview(pages) as whole, whole[offset:] as body:
            header = ANSWER.pack(OK, len(body), size, digest)
            await stream.send_all([header, body])


def find(root: Path, name: bytes) -> tuple[bytes, mmap.mmap | None] | None:
    """The checksum and the pages (None: it is empty) of the file that `name` means.

    None: there is no such file, or it is not in `root`, be it by "..", by a link or as an absolute
    path.
    """
    try:
        path = (root / name.decode()).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            pages = (
                mmap.mmap(file.fileno(), stat.st_size, access=mmap.ACCESS_READ)
                if stat.st_size
                else None
            )
        return checksum(path, stat.st_mtime_ns, stat.st_size), pages
    except (OSError, ValueError, RuntimeError):
        # Not UTF-8, a zero byte, not ours to read, gone meanwhile, a loop of links.
        return None


@functools.lru_cache(maxsize=10_000)
def checksum(path: Path, _mtime_ns: int, _size: int) -> bytes:
    """The file's SHA-256, kept until the file changes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.digest()


async def main(root: Path, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM."""
    serve = functools.partial(
        trio_uring.serve_tcp, functools.partial(serve_client, root), port, host=host
    )
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(serve)
            print(f"listening on {host}:{listeners[0].socket.getsockname()[1]}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serves the files of a directory on io_uring.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7001,
        help="port to listen on; 0 lets the kernel choose (default: %(default)s)",
    )
    arguments = parser.parse_args()
    trio.run(main, arguments.directory.resolve(strict=True), arguments.host, arguments.port)
