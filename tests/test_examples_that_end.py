"""The examples that show one thing and end: each by the command of its docstring.

Rules: a test runs the example as a reader would, in its own process, and reads what it prints.
Where what an example needs is not installed, it is skipped.
"""

from __future__ import annotations

import ast
import contextlib
import http.client
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.command import group_ends

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS_MAX = 100
LINES_MAX = 125  # of an example: it shows one thing

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")


def run(*command: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return done.returncode, re.sub(r":\d{4,5}\b", ":PORT", done.stdout), done.stderr


def prints(name: str, *expected: str, stderr: str = "") -> None:
    status, out, err = run(EXAMPLES / name)
    assert (status, err) == (0, stderr)
    assert out.splitlines() == list(expected)


def module_of(name: str) -> Any:
    """An example, imported."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tls_echo() -> None:
    pytest.importorskip("trustme")
    prints(
        "tls_echo.py",
        "listening on 127.0.0.1:PORT",
        "a client without TLS: the server hung up",
        "a client that does not trust the certificate: it did not say a word",
        "a good client: 150,000 bytes came back, True",
    )


def test_reverse_proxy() -> None:
    status, out, err = run(EXAMPLES / "reverse_proxy.py")
    assert status == 0
    assert out.splitlines() == [
        "listening on 127.0.0.1:PORT",
        "a large request: right",
        "with nobody behind: the proxy hung up",
    ]
    said = err.splitlines()
    assert said[0] == "proxy: 3,500,000 bytes to the server, 64 back"
    assert said[-1].startswith("proxy: nobody behind the proxy: ")
    assert all(line.startswith("proxy: ") for line in said)


@needs_linux
def test_udp_wildcard() -> None:
    prints(
        "udp_wildcard.py",
        "listening on 0.0.0.0:PORT",
        "127.0.0.1 answered 100 of 100 datagrams",
        "127.0.0.2 answered 100 of 100 datagrams",
    )


def test_unix_descriptors() -> None:
    prints(
        "unix_descriptors.py",
        "greeting: hello from a file that has no name for you",
        "../secret: refused",
    )


def test_http_files() -> None:
    pytest.importorskip("h11")
    size = (EXAMPLES / "http_files.py").stat().st_size
    prints(
        "http_files.py",
        "listening on 127.0.0.1:PORT",
        f"GET /http_files.py: 200, {size:,} bytes",
        "GET /nothing: 404, 0 bytes",
        "GET /../README.md: 404, 0 bytes",
    )


def test_hypercorn_workers() -> None:
    pytest.importorskip("hypercorn")
    backend = trio_uring.backend_info().backend
    prints(
        "hypercorn_workers.py",
        "listening on 127.0.0.1:PORT",
        f"2 workers have answered, on {backend}",
        "the server has ended with exit status 0",
    )


def test_a_test_file() -> None:
    status, out, err = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "test_line_protocol.py"
    )
    assert (status, err) == (0, ""), out
    assert "5 passed" in out


ENDING = sorted(
    {
        "tls_echo", "reverse_proxy", "udp_wildcard", "unix_descriptors", "http_files",
        "hypercorn_workers", "test_line_protocol",
    }
)  # fmt: skip


@pytest.mark.no_ring
@pytest.mark.parametrize("name", ENDING)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.count("\n") <= LINES_MAX
    assert re.search(
        rf"^    (python|pytest) examples/{name}\.py", ast.get_docstring(ast.parse(text)) or "", re.M
    )


# -- what the HTTP server does with other clients


@contextlib.contextmanager
def serving_files(folder: Path) -> Iterator[int]:
    """The handler of http_files.py, in a thread."""
    pytest.importorskip("h11")
    module = module_of("http_files")
    found: list[int] = []
    ready, ended = threading.Event(), threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")

            async def handler(stream: trio_uring.SocketStream) -> None:
                await module.serve_client(folder, stream)

            nursery.start_soon(trio.serve_listeners, handler, [listener])
            found.append(listener.socket.getsockname()[1])
            ready.set()
            await trio.to_thread.run_sync(ended.wait)
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(SECONDS_MAX)
        yield found[0]
    finally:
        ended.set()
        thread.join(SECONDS_MAX)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    (root / "a b").write_bytes(b"content")
    (root / "empty").touch()
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.parametrize(
    ("method", "target", "status", "length", "body"),
    [
        ("GET", "/a%20b", 200, "7", b"content"),
        ("GET", "/a%20b?query", 200, "7", b"content"),
        ("HEAD", "/a%20b", 200, "7", b""),
        ("GET", "/empty", 200, "0", b""),
        ("GET", "/link", 404, "0", b""),
        ("GET", "/loop", 404, "0", b""),
        ("GET", "/fifo", 404, "0", b""),
        ("GET", "/", 404, "0", b""),
        ("GET", "/%2e%2e/secret", 404, "0", b""),
        ("GET", "//etc/passwd", 404, "0", b""),
        ("GET", "/%00", 404, "0", b""),
        ("DELETE", "/empty", 405, "0", b""),
    ],
)
def test_http_requests(
    folder: Path, method: str, target: str, status: int, length: str, body: bytes
) -> None:
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    with serving_files(folder) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
        for _ in range(2):  # on one connection
            connection.request(method, target)
            response = connection.getresponse()
            assert (response.status, response.getheader("Content-Length")) == (status, length)
            assert response.read() == body
        connection.close()
    if sys.platform == "linux":
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # of the listing itself


@pytest.mark.parametrize(
    "said",
    [b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b""],
)
def test_http_clients_that_are_dropped(folder: Path, said: bytes) -> None:
    with serving_files(folder) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as sock:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
        connection.request("GET", "/empty")
        assert connection.getresponse().status == 200
        connection.close()


# -- what happens on Ctrl-C


def test_hypercorn_workers_leaves_nothing_behind() -> None:
    pytest.importorskip("hypercorn")
    # Unbuffered, or the line would come only when all of it has ended.
    command = [sys.executable, "-u", EXAMPLES / "hypercorn_workers.py"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on ")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=SECONDS_MAX)
        assert group_ends(process.pid)
