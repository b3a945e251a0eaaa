"""Static files over HTTP/1.1: h11 for the protocol, send_file for the bytes.

    pip install h11
    python examples/http_files.py           # serves its own folder, asks itself, and ends

h11 reads requests and writes heads. Bodies never pass through Python: h11 is given the file in
place of its bytes, does the accounts, and hands it back; send_file moves it inside the kernel.
"""

import http.client
import os
import stat
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import h11
import trio

import trio_uring

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent
IDLE_SECONDS = 30.0  # for a request, and for each send
BODY_SECONDS = 600.0  # for a client to take a whole file


class Body:
    """An open file in place of its bytes, of which h11 wants to know only how many they are."""

    def __init__(self, path: Path) -> None:
        # A FIFO must not block, and is not served.
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self.file)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            os.close(self.file)
            raise FileNotFoundError(path)

    def __len__(self) -> int:
        return self.size


def open_below(root: Path, target: bytes) -> Body | None:
    """The file of a request's target; None: there is none, or it is not below `root`."""
    try:
        path = (root / unquote(target.decode("ascii").partition("?")[0]).lstrip("/")).resolve()
        return Body(path) if path.is_relative_to(root) else None
    except (OSError, ValueError, RuntimeError):  # the last: a circle of links
        return None


async def serve_client(root: Path, stream: trio_uring.SocketStream) -> None:
    """Answers the requests of one connection. serve_tcp closes it when this returns."""
    stream.receive_timeout = stream.send_timeout = IDLE_SECONDS
    connection = h11.Connection(h11.SERVER)
    try:
        while isinstance(request := await next_event(stream, connection), h11.Request):
            if not isinstance(await next_event(stream, connection), h11.EndOfMessage):
                return  # nobody asks for a file with a body
            await answer(root, stream, connection, request)
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except h11.RemoteProtocolError:
        pass  # that is no HTTP
    except (trio.BrokenResourceError, trio.TooSlowError):
        pass  # the client has gone, or takes too long; others are not affected


async def next_event(stream: trio_uring.SocketStream, connection: h11.Connection) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some())
    return event


async def answer(
    root: Path, stream: trio_uring.SocketStream, connection: h11.Connection, request: h11.Request
) -> None:
    body = None
    status = 405
    if request.method in (b"GET", b"HEAD"):
        body = await trio.to_thread.run_sync(open_below, root, request.target)
        status = 404 if body is None else 200
    try:
        length = 0 if body is None else body.size
        head = h11.Response(status_code=status, headers=[("Content-Length", str(length))])
        await stream.send_all(connection.send(head))
        if body is not None and request.method == b"GET":
            # Its framing is empty: the length is known.
            assert connection.send_with_data_passthrough(h11.Data(data=body)) == [body]
            with trio.fail_after(BODY_SECONDS):
                if await trio_uring.send_file(stream, body.file, 0, length) < length:
                    raise trio.BrokenResourceError("the file has become shorter")
        connection.send(h11.EndOfMessage())
    finally:
        if body is not None:
            os.close(body.file)


def ask(port: int) -> None:
    """A client of the standard library: three requests on one connection."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    for target in (f"/{Path(__file__).name}", "/nothing", "/../README.md"):
        connection.request("GET", target)
        response = connection.getresponse()
        print(f"GET {target}: {response.status}, {len(response.read()):,} bytes")
    connection.close()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(trio_uring.serve_tcp, host=HOST)
        [listener] = await nursery.start(serve, partial(serve_client, ROOT), 0)
        port = listener.socket.getsockname()[1]
        print(f"listening on {HOST}:{port}")
        await trio.to_thread.run_sync(ask, port)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
