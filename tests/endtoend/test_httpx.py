"""httpx's client on the ring, against servers that are not: the standard library's, in threads.

Rules: httpx with a server on the ring is in test_hypercorn.py.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from support.endtoend import LARGE, SECONDS_MAX, connects, digest, http_client, payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.endtoend import Certificates


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SECONDS_MAX

    def do_GET(self) -> None:
        self._answer(payload(int(self.path[1:])))

    def do_POST(self) -> None:
        self._answer(digest(self.rfile.read(int(self.headers["Content-Length"]))).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that its end waits for the threads, whose sockets a test would find


@contextlib.contextmanager
def serving(tls: Certificates | None = None) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        if tls is not None:
            server.socket = tls.server().wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bodies_both_ways(certificates: Certificates, tls: bool) -> None:
    with serving(certificates if tls else None) as url:
        async with http_client(url, verify=certificates.client()) as client:
            for size in (0, 1, 65536, LARGE):
                assert digest((await client.get(f"/{size}")).content) == digest(payload(size))
                assert (await client.post("/", content=payload(size))).text == digest(payload(size))
    assert connects() == 1


async def test_a_certificate_that_nobody_trusts(certificates: Certificates) -> None:
    with serving(certificates) as url:
        async with http_client(url, verify=ssl.create_default_context()) as client:
            with pytest.raises(httpx.ConnectError) as caught:
                await client.get("/1")
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None


async def test_a_kept_connection_that_the_server_has_closed() -> None:
    """httpx asks `is_readable()` of the idle connection's socket, and makes a new one."""

    async def serve_once(listener: socket.socket) -> None:
        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        await trio.to_thread.run_sync(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with http_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve_once, listener)
                    assert (await client.get("/")).text == "hello"
    assert connects() == 3


async def test_a_response_that_is_cut_off() -> None:
    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with http_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, answer)
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get("/")


# httpx leaves the iterator over the request's body to the garbage collector, and trio warns of it.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_timeouts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # nobody accepts: the kernel does
        async with http_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/", timeout=httpx.Timeout(None, read=0.02))
            with pytest.raises(httpx.WriteTimeout):
                await client.post(
                    "/", content=payload(LARGE), timeout=httpx.Timeout(None, write=0.02)
                )


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with http_client(f"http://127.0.0.1:{unused.getsockname()[1]}") as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/")
    with serving() as url:
        async with http_client() as client:
            assert (await client.get(f"{url}/1")).content == payload(1)
