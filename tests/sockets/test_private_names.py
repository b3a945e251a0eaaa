"""A trio that lacks one of the private names: nothing fails, and what is lost is reported.

Rules: the installed trio is given another shape, in a separate process, before the package is
imported.
"""

from __future__ import annotations

import socket as stdlib_socket
import subprocess
import sys
from typing import Any

import pytest
import trio

import trio_uring
from trio_uring._driver.loop import Loop
from trio_uring._trio import NAMES, trios_own

# Each makes trio's sockets do without a name, and work.
_WITHOUT = {
    "trio._socket._SocketType": """
del theirs._SocketType
theirs.from_stdlib_socket = trio.socket.from_stdlib_socket = cls
""",
    "trio._socket._SocketType._nonblocking_helper": """
def without(fn, wait):
    async def call(self, *args):
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return fn(self._sock, *args)
            except BlockingIOError:
                await wait(self._sock)
    return call

for name in ("_accept", "recv", "recv_into", "recvfrom", "recvmsg", "send", "sendto", "sendmsg"):
    reading = "recv" in name or "accept" in name
    wait = trio.lowlevel.wait_readable if reading else trio.lowlevel.wait_writable
    setattr(cls, name, without(getattr(socket.socket, name.strip("_")), wait))
del cls._nonblocking_helper
""",
    "trio._socket._SocketType._resolve_address_nocp": """
async def connect(self, address):
    try:
        self._sock.connect(address)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(self._sock)

async def bind(self, address):
    self._sock.bind(address)

cls.connect, cls.bind = connect, bind
del cls._resolve_address_nocp
""",
    "the metaclass of trio.SocketStream and trio.SocketListener, abc.ABCMeta": """
class Other(type(trio.SocketStream)):
    pass

trio.SocketStream.__class__ = trio.SocketListener.__class__ = Other
""",
}

_PROGRAM = """
import socket, sys
import trio, trio.testing
import trio._socket as theirs
cls = theirs._SocketType
{without}
import trio_uring
from trio_uring._trio import NAMES

async def main():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    assert type(listener.socket) is trio_uring.UringSocket
    async with listener:
        async with trio.open_nursery() as nursery:
            async def serve():
                async with await listener.accept() as stream:
                    await stream.send_all(await stream.receive_some(10))
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            port = listener.socket.getsockname()[1]
            async with await trio_uring.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"data")
                assert await stream.receive_exactly(4) == b"data"
    left, right = trio.socket.socketpair()
    for receive in ("recv", "recvmsg"):
        async with trio.open_nursery() as nursery:
            async def get():
                got = await getattr(left, receive)(10)
                assert (got if receive == "recv" else got[0]) == b"data"
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            await right.send(b"data")
    left.close()
    right.close()

trio_uring.run(main)
print([name.name for name in NAMES if not name.found])
"""


def _missing(without: str) -> str:
    code = _PROGRAM.format(without=without)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_this_trio_has_them_all() -> None:
    assert [name for name in NAMES if not name.found] == []
    assert _missing("") == "[]"


class Foreign:
    """Somebody else's I/O manager, in the place of trio's, which it asks for everything."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name) if name != "_epoll" else None


async def test_somebody_elses_manager_is_left_alone() -> None:
    async def main() -> None:
        runner = trio.lowlevel.current_task()._runner
        manager = runner.io_manager = Foreign(runner.io_manager)  # type: ignore[assignment]
        left, right = map(trio_uring.SocketStream, stdlib_socket.socketpair())
        async with left, right:
            await left.send_all(b"x")
            assert await right.receive_some() == b"x"
        assert trios_own(runner.io_manager) is manager
        assert not isinstance(runner.io_manager, Loop)

    await trio.to_thread.run_sync(trio.run, main)


@pytest.mark.parametrize("name", _WITHOUT)
def test_without(name: str) -> None:
    assert name in {known.name for known in NAMES}
    assert _missing(_WITHOUT[name]) == str([name])
