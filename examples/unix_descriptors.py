"""Passing descriptors over a Unix socket: a process opens files for another that may not.

    python examples/unix_descriptors.py

The server listens on a socket file that only its user can connect to, and sends an open, read-only
descriptor for each name that it allows. The client is another process, which gets the descriptors,
reads the files, and never sees their paths. (Not on Windows, which has no such sockets.)
"""

import array
import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

import trio_uring

NAME_MAX = 256  # bytes, with the end of the line
OPENED, REFUSED = b"+", b"-"
IDLE_SECONDS = 60.0
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # where there is none, children inherit it
DESCRIPTOR = array.array("i").itemsize


async def serve_client(folder: Path, stream: trio_uring.SocketStream) -> None:
    """Answers names, a line each. serve_unix closes the stream when this returns."""
    lines = trio_uring.BufferedReceiveStream(stream)
    try:
        while True:
            line = await lines.receive_until(b"\n", NAME_MAX, timeout=IDLE_SECONDS)
            await answer(stream.socket, folder, os.fsdecode(line[:-1]))
    except (trio_uring.IncompleteReadError, trio_uring.DelimiterNotFound):
        pass  # the client is done, or sends what is no name
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        pass  # it has left, or seems to; others are not affected


async def answer(sock: trio.socket.SocketType, folder: Path, wanted: str) -> None:
    """Sends a descriptor, which is then the client's; ours is closed, whatever happens."""
    try:
        if Path(wanted).name != wanted:
            raise PermissionError(wanted)  # a way out of the folder
        file = os.open(folder / wanted, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        await sock.send(REFUSED)
        return
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
        await sock.sendmsg([OPENED], [rights])
    finally:
        os.close(file)


async def ask(sock: trio.socket.SocketType, name: str) -> int | None:
    """Returns a descriptor, which the caller has to close; None: it was refused."""
    await sock.send(os.fsencode(name) + b"\n")
    space = socket.CMSG_SPACE(DESCRIPTOR)
    status, controls, flags, _ = await sock.recvmsg(1, space, CLOSE_ON_EXEC)
    if not status:
        raise EOFError("the server hung up")
    found = array.array("i")
    for level, kind, data in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % DESCRIPTOR])
    if flags & socket.MSG_CTRUNC:  # this process may open no more files
        for file in found:
            os.close(file)
        raise OSError("descriptors were lost")
    return found[0] if found else None


async def client(path: str) -> None:
    async with await trio_uring.open_unix_socket(path) as stream:
        for name in ("greeting", "../secret"):
            descriptor = await ask(stream.socket, name)
            if descriptor is None:
                print(f"{name}: refused")
            else:
                async with await trio.open_file(descriptor) as file:  # which closes it
                    print(f"{name}: {await file.read()}")


async def serve(top: Path) -> None:
    """Serves `top`/files at `top`/socket to a client, until that has ended."""
    async with trio.open_nursery() as nursery:
        start = partial(trio_uring.serve_unix, mode=0o600)
        await nursery.start(start, partial(serve_client, top / "files"), top / "socket")
        await trio.run_process([sys.executable, __file__, str(top / "socket")])
        nursery.cancel_scope.cancel()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "files").mkdir()
        (top / "files" / "greeting").write_text("hello from a file that has no name for you")
        (top / "secret").write_text("nobody may read this")
        trio.run(serve, top)


if __name__ == "__main__":
    trio.run(client, sys.argv[1]) if len(sys.argv) > 1 else main()
