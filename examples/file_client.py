"""The client of file_server.py: fetches files, resumes where it was interrupted, and verifies every
checksum.

    python examples/file_client.py 127.0.0.1:7001 os.py json/decoder.py --output /tmp/files

A file grows under the name NAME.part and gets its own name when its checksum is right. Stop the
client at any moment (Ctrl-C, --timeout, a broken connection) and start it again: it asks for the
bytes that it does not have yet.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import trio
from file_protocol import ANSWER, FILE_MAX, OK, REQUEST

import trio_uring

STALL_MAX = 30.0  # seconds without a byte, after which a connection is given up


class FetchError(Exception):
    """A file cannot be fetched; the message says why."""


async def fetch(host: str, port: int, name: str, target: Path) -> None:
    """Fetches one file. Reconnects for as long as every connection brings something.

    Cancellation: what came stays in TARGET.part, and the next fetch goes on from there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            async with await trio_uring.open_tcp_stream(host, port) as stream:
                stream.receive_timeout = STALL_MAX
                size = await receive_file(stream, name, part)
            break
        except (trio_uring.IncompleteReadError, trio.BrokenResourceError, trio.TooSlowError) as exc:
            if not part.exists() or part.stat().st_size == before:
                raise FetchError(f"{name}: {exc or 'the server is too slow'}") from exc
    part.replace(target)
    print(
        f"{name}: {size} bytes, checksum right" + (f", resumed at {before}" if before else ""),
        flush=True,
    )


async def receive_file(stream: trio_uring.SocketStream, name: str, part: Path) -> int:
    """Asks for the rest of the file, appends it to `part`, and verifies the whole. Returns the
    size."""
    with part.open("a+b") as file:
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
        offset = file.tell()

        path = os.fsencode(name)
        await stream.send_all([REQUEST.pack(offset, len(path)), path])
        status, missing, size, expected = ANSWER.unpack(await stream.receive_exactly(ANSWER.size))
        if status != OK:
            await trio.Path(
                part
            ).unlink()  # there is no such file, or it is shorter now than what we have of it
            raise FetchError(f"{name}: the server refused")
        if size > FILE_MAX or offset + missing != size:
            raise FetchError(
                f"{name}: the server's answer makes no sense "
                f"({missing} of {size} bytes, from byte {offset})"
            )

        while missing:
            chunk = await stream.receive_some(missing)
            if not chunk:
                raise trio_uring.IncompleteReadError(b"", missing)
            file.write(chunk)
            digest.update(chunk)
            missing -= len(chunk)
    if digest.digest() != expected:
        await trio.Path(part).unlink()
        raise FetchError(f"{name}: the checksum is wrong; what came was deleted")
    return int(size)


async def main(host: str, port: int, names: list[str], output: Path, timeout: float) -> int:
    """Fetches all files at once, each on a connection of its own. Returns how many could not be
    had."""
    failed = set(names)

    async def fetch_one(name: str) -> None:
        try:
            await fetch(host, port, name, output / name.lstrip("/"))
            failed.discard(name)
        except (FetchError, OSError) as exc:
            print(exc, file=sys.stderr)

    with trio.move_on_after(timeout) as scope:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(fetch_one, name)
    if scope.cancelled_caught:
        print("The time is up. Run it again: it goes on where it was.", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetches files from file_server.py.")
    parser.add_argument("server", help="HOST:PORT")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        help="directory to write to (default: the current one)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=float("inf"),
        help="seconds for the whole command (default: no limit)",
    )
    arguments = parser.parse_args()
    server_host, _, server_port = arguments.server.rpartition(":")
    failures = trio.run(
        main, server_host, int(server_port), arguments.names, arguments.output, arguments.timeout
    )
    sys.exit(1 if failures else 0)
