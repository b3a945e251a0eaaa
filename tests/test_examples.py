"""The examples as a reader would run them: each in its own process, on a port that the kernel
chooses.

Rules: a test waits for what a process prints or for its end, never for some time. A server that
wrote anything to standard error, or did not exit with 0 on SIGINT, fails its test.
"""

from __future__ import annotations

import ast
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from trio_uring._demo.files import STACKS, Download, File, Server, Tally, run_client

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parent.parent / "examples"
SECONDS_MAX = 100  # for a process to end or a socket to answer
# 1 MiB, no two words alike.
CONTENT = b"".join(struct.pack("!I", number) for number in range(2**18))

REQUEST = struct.Struct("!QH")
ANSWER = struct.Struct("!BQQ32s")
REFUSAL = ANSWER.pack(1, 0, 0, bytes(32))


@contextmanager
def running(name: str, *arguments: str | Path, stop: int = signal.SIGINT) -> Iterator[int]:
    """Runs examples/`name`; the value is its port. At the end it is stopped by a signal and must
    have nothing to say."""
    command = [sys.executable, "-W", "error", EXAMPLES / name, *arguments, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:"), process.communicate(
                timeout=SECONDS_MAX
            )
            yield int(line.rpartition(":")[2])
            process.send_signal(stop)
            assert process.communicate(timeout=SECONDS_MAX) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX)


def receive(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer if the stream ends."""
    chunks = b""
    while len(chunks) < count and (chunk := sock.recv(count - len(chunks))):
        chunks += chunk
    return chunks


def request(path: bytes, offset: int = 0) -> bytes:
    return REQUEST.pack(offset, len(path)) + path


def run_file_client(port: int, output: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        file_client(port, output, *names), capture_output=True, text=True, timeout=SECONDS_MAX
    )


def file_client(port: int, output: Path, *names: str) -> list[str | Path]:
    return [
        sys.executable,
        "-W",
        "error",
        EXAMPLES / "file_client.py",
        f"127.0.0.1:{port}",
        *names,
        "--output",
        output,
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory to serve, with something beside it that must not be served."""
    root = tmp_path / "served"
    (root / "sub").mkdir(parents=True)
    (root / "large").write_bytes(CONTENT)
    (root / "sub" / "small").write_bytes(b"small")
    (root / "empty").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    return root


# -- the echo server


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_echo_server(stop: int) -> None:
    with running("echo_server.py", stop=stop) as port:
        with connect(port) as one, connect(port) as two:
            for sock, message in ((one, b"one"), (two, b"two"), (one, CONTENT[:50_000])):
                sock.sendall(message)
                assert receive(sock, len(message)) == message
            one.shutdown(socket.SHUT_WR)
            assert one.recv(1) == b""


def test_echo_server_survives_a_client_that_resets() -> None:
    with running("echo_server.py") as port:
        with connect(port) as rude:
            rude.sendall(b"x" * 100)
            rude.recv(1)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with connect(port) as sock:
            sock.sendall(b"still there")
            assert receive(sock, 11) == b"still there"


# -- the file server and its client


def test_files_arrive(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with running("file_server.py", folder) as port:
        done = run_file_client(port, output, "large", "sub/small", "empty")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("large", "sub/small", "empty"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in output.rglob("*")) == ["empty", "large", "small", "sub"]


def test_the_client_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large.part").write_bytes(CONTENT[:300_001])
    with running("file_server.py", folder) as port:
        done = run_file_client(port, tmp_path, "large")
    assert done.stdout == "large: 1048576 bytes, checksum right, resumed at 300001\n"
    assert (tmp_path / "large").read_bytes() == CONTENT


def test_the_client_finds_a_wrong_byte(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large.part").write_bytes(b"x" + CONTENT[1:1000])
    with running("file_server.py", folder) as port:
        done = run_file_client(port, tmp_path, "large")
    assert done.returncode == 1
    assert "the checksum is wrong" in done.stderr
    assert not (tmp_path / "large").exists()
    assert not (tmp_path / "large.part").exists()


def test_one_refused_file_does_not_stop_the_others(folder: Path, tmp_path: Path) -> None:
    with running("file_server.py", folder) as port:
        done = run_file_client(port, tmp_path / "output", "nothing", "sub/small")
    assert (done.returncode, done.stderr) == (1, "nothing: the server refused\n")
    assert (tmp_path / "output" / "sub" / "small").read_bytes() == b"small"
    assert not (tmp_path / "output" / "nothing.part").exists()


@pytest.mark.parametrize(
    "path",
    [
        b"../secret",
        b"sub/../../secret",
        b"link",
        b"loop",
        b"/etc/passwd",
        b"",
        b"sub",
        b"nothing",
        b"\0",
        b"\xff",
        b"x" * 1024,
    ],
)
def test_the_server_refuses_and_goes_on(folder: Path, path: bytes) -> None:
    with running("file_server.py", folder) as port, connect(port) as sock:
        sock.sendall(request(path))
        assert receive(sock, ANSWER.size) == REFUSAL
        sock.sendall(request(b"sub/small", 2))
        digest = hashlib.sha256(b"small").digest()
        assert receive(sock, ANSWER.size + 3) == ANSWER.pack(0, 3, 5, digest) + b"all"


def test_the_server_bounds_what_a_request_may_ask_for(folder: Path) -> None:
    with running("file_server.py", folder) as port:
        with connect(port) as sock:
            sock.sendall(request(b"large", len(CONTENT) + 1) + request(b"large", 2**64 - 1))
            assert receive(sock, 2 * ANSWER.size) == 2 * REFUSAL
        with connect(port) as sock:
            sock.sendall(REQUEST.pack(0, 1025))  # of which not a byte is read
            assert sock.recv(1) == b""


def test_the_server_survives_a_client_that_leaves_mid_file(folder: Path) -> None:
    (folder / "huge").touch()
    # More than the sockets hold: the send is in the kernel when the client leaves.
    os.truncate(folder / "huge", 2**26)
    with running("file_server.py", folder) as port:
        with connect(port) as rude:
            rude.sendall(request(b"huge"))
            assert receive(rude, ANSWER.size)[0] == 0
        with connect(port) as sock:
            sock.sendall(request(b"large"))
            assert receive(sock, ANSWER.size + len(CONTENT))[ANSWER.size :] == CONTENT


@pytest.mark.parametrize(
    "answer", [ANSWER.pack(0, 2**40, 2**40, bytes(32)), ANSWER.pack(0, 10, 2**20, bytes(32))]
)
def test_the_client_believes_no_nonsense(tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = file_client(listener.getsockname()[1], tmp_path, "a")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            listener.settimeout(SECONDS_MAX)
            with listener.accept()[0] as sock:
                sock.sendall(answer)
                _, stderr = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 1
    assert "the server's answer makes no sense" in stderr


# -- the demo's own server and client speak the same protocol


def test_the_demos_clients_understand_the_examples_server(folder: Path) -> None:
    tally = Tally()
    file = File("large", len(CONTENT), hashlib.sha256(CONTENT).digest())
    with running("file_server.py", folder) as port:
        for stack in STACKS.values():
            trio.run(run_client, stack, port, iter([Download(file)]), tally)
    assert (tally.files, tally.bytes, tally.bad) == (2, 2 * len(CONTENT), [])


@pytest.mark.parametrize("stack", STACKS)
def test_the_examples_client_understands_the_demos_server(
    stack: str, folder: Path, tmp_path: Path
) -> None:
    file = File("large", len(CONTENT), hashlib.sha256(CONTENT).digest())
    server = Server(STACKS[stack], folder, [file])

    async def main() -> subprocess.CompletedProcess[str]:
        async with trio.open_nursery() as nursery:
            listeners = await STACKS[stack].open_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, server.serve_client, listeners)
            port = listeners[0].socket.getsockname()[1]
            done = await trio.to_thread.run_sync(
                run_file_client, port, tmp_path, "large", "../secret"
            )
            nursery.cancel_scope.cancel()
        return done

    done = trio.run(main)
    assert done.stdout == "large: 1048576 bytes, checksum right\n"
    assert done.stderr == "../secret: the server refused\n"


@pytest.mark.no_ring
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_use_nothing_private(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert "._" not in node.module
            assert not any(alias.name.startswith("_") for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any("._" in alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id == "self"
        ):
            assert not node.attr.startswith("_")
