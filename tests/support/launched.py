"""Programs that `python -m trio_uring run` starts; an ASGI application that says what serves it.

    GET /        {"pid", "socket", "stream", "backend", "operations"} of the run that answers
    GET /block   "begun", and then the whole process waits without trio for a Blocker
    GET /slow    "begun", and "ended" after SLOW_SECONDS

Rules of this file: servers are started by their own command lines, without a change, and stopped as
their users stop them. Standard library and trio only, because the servers import it as well.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RUN = (sys.executable, "-m", "trio_uring", "run")
APP = "support.launched:app"
TESTS = Path(__file__).parents[1]
SECONDS_MAX = 100  # for what takes a few, on a machine that is busy
SLOW_SECONDS = 1.0
BLOCKER = "LAUNCHED_BLOCKER"  # the variable that has a Blocker's path


# -- in the server


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    body = json.dumps(await seen()).encode() if scope["path"] == "/" else b"begun"
    more = scope["path"] != "/"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": more})
    if scope["path"] == "/block":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.environ[BLOCKER])
            sock.recv(1)
    elif scope["path"] == "/slow":
        await trio.sleep(SLOW_SECONDS)
    if more:
        await send({"type": "http.response.body", "body": b" ended", "more_body": False})


async def _lifespan(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def seen() -> dict[str, Any]:
    """What this run is: the classes that trio's names give in it, and what drives it."""
    left, right = trio.socket.socketpair()
    async with trio.SocketStream(left) as one, trio.SocketStream(right) as other:
        await one.send_all(b"x")
        assert await other.receive_some() == b"x"
        found = {"socket": type(left).__name__, "stream": type(one).__module__}
    ours: Any = sys.modules.get("trio_uring")
    if ours is None:
        return {"pid": os.getpid(), **found, "backend": None, "operations": 0}
    counts = ours.current_statistics().operations
    return {
        "pid": os.getpid(),
        **found,
        "backend": ours.backend_info().backend,
        "operations": sum(each.completed for each in counts.values()),
    }


def say() -> None:
    """A program: its own trio.run says what it is."""
    print(json.dumps(trio.run(seen)))


# -- around it


def environment(**variables: str) -> dict[str, str]:
    package = Path(sys.modules["trio_uring"].__file__ or "").parents[1]
    path = os.pathsep.join([str(package), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}


class Server:
    """A server that was started by its command line, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self.port = 0
        self._heard = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait(self) -> None:
        """Until it listens."""
        assert self._heard.wait(SECONDS_MAX), self.said
        assert self.port, "".join(self.said)

    def _listen(self) -> None:
        assert self.process.stderr
        with self.process.stderr as said:
            for line in said:
                self.said.append(line)
                found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", line)
                if found and not self.port:
                    self.port = int(found[1])
                    self._heard.set()
        self._heard.set()

    def kill(self) -> None:
        """Ends it and its workers, whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS_MAX)
        self._listener.join(SECONDS_MAX)

    def get(self, path: str = "/") -> bytes:
        """The answer to one request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_MAX)

    def seen(self) -> dict[str, Any]:
        return dict(json.loads(self.get()))

    def until_at_rest(self) -> None:
        """Until no client is connected any more, and its process sleeps.

        An interrupt then finds trio's own code; in the midst of a connection it may find that of a
        server or of anyio, and become another exit status, or be lost.
        """
        end = time.monotonic() + SECONDS_MAX
        while connected(self.port) or self._state() != "S":
            assert time.monotonic() < end, self.said
            time.sleep(0.001)

    def _state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        return self.process.wait(SECONDS_MAX)


def connected(port: int) -> bool:
    """Whether a client that has not hung up is connected to this port."""
    established = "01"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if int(local.partition(":")[2], 16) == port and state == established:
            return True
    return False


class Blocker(contextlib.AbstractContextManager["Blocker"]):
    """Blocks the worker that serves /block, and knows when it does.

    Args:
        path: of its Unix socket.
    """

    def __init__(self, path: Path) -> None:
        self.variables = {BLOCKER: str(path)}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(SECONDS_MAX)

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """From the moment when a worker runs nothing more until the end of the block."""
        with self._listener.accept()[0]:
            yield


@contextlib.contextmanager
def serving(command: Sequence[str], **variables: str) -> Iterator[Server]:
    """Starts a server; at the end it and its workers are gone, whatever happened."""
    process = subprocess.Popen(
        command,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    server = Server(process)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def under_load(server: Server, clients: int, enough: Callable[[list[dict[str, Any]]], bool]) -> Any:
    """What the server says to many clients at the same time, until that is enough.

    Raises AssertionError: it never is, or a request failed.
    """
    answers: list[dict[str, Any]] = []
    failures: list[BaseException] = []
    end = time.monotonic() + SECONDS_MAX / 2

    def client() -> None:
        try:
            while not enough(answers) and time.monotonic() < end:
                answers.append(server.seen())
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures, (failures, server.said)
    assert enough(answers), answers[-5:]
    return answers


if __name__ == "__main__":
    say()
