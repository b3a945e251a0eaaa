"""An echo server on loopback, in several implementations: the program that benchmarks/echo.py
measures.

    python benchmarks/echo_server.py --impl trio|uring|uvloop|null

It binds 127.0.0.1 on a free port, prints the port as its first line, and serves until its standard
input closes, so that it never outlives the program that started it.

Rules of this file:

- trio and uring run the same handler through the same call: only the module that `serve_tcp` comes
  from differs.
- Nothing but the sockets is different between the implementations: no statistics, no logging, no
  second thread (a process with threads pays more for every system call that names a file
  descriptor, so standard input is watched by the event loop itself).
- trio_uring and uvloop are imported only when they are asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import select
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

HOST = "127.0.0.1"
STDIN = 0

# What asyncio and the null server ask the kernel for at a time: trio's own default for
# receive_some().
RECEIVE_BYTES = 65536

# Every connection of the load is opened at once, before the server has run: room for all of them,
# or SYNs are dropped and the first second measures TCP's retransmission. (trio asks for as much as
# the kernel allows.)
BACKLOG = 4096


def announce(port: int) -> None:
    print(port, flush=True)


def stdin_ended() -> bool:
    """Whether the readable standard input is at its end; anything written to it is thrown away."""
    return os.read(STDIN, 4096) == b""


async def echo(stream: trio.abc.Stream) -> None:
    try:
        while True:
            data = await stream.receive_some()
            if not data:
                return
            await stream.send_all(data)
    except trio.BrokenResourceError:
        return  # the load ended in the middle of a message


async def serve_with(serve_tcp: Callable[..., Any]) -> None:
    """Serve with trio's `serve_tcp`, or with anything that has its signature and its kind of
    listeners."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve_tcp, echo, 0, host=HOST))
        announce(listeners[0].socket.getsockname()[1])
        while True:
            await trio.lowlevel.wait_readable(STDIN)
            if stdin_ended():
                break
        nursery.cancel_scope.cancel()


def run_trio() -> None:
    trio.run(serve_with, trio.serve_tcp)


def run_uring() -> None:
    trio.run(serve_with, importlib.import_module("trio_uring").serve_tcp)


async def asyncio_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(RECEIVE_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the load ended in the middle of a message
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()  # asyncio complains about an error that nobody collects here


async def serve_asyncio() -> None:
    closed = asyncio.Event()

    def on_stdin() -> None:
        if stdin_ended():
            asyncio.get_running_loop().remove_reader(STDIN)
            closed.set()

    server = await asyncio.start_server(asyncio_echo, HOST, 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname()[1])
    asyncio.get_running_loop().add_reader(STDIN, on_stdin)
    await closed.wait()
    server.close()


def run_uvloop() -> None:
    importlib.import_module("uvloop").run(serve_asyncio())


class NullServer:
    """The floor: what Python pays for epoll, recv and send when there is no framework at all."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._listener = socket.create_server((HOST, 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._connections: dict[int, socket.socket] = {}
        self._unsent: dict[int, memoryview] = {}

    def serve(self) -> None:
        self._epoll.register(STDIN, select.EPOLLIN)
        self._epoll.register(self._listener, select.EPOLLIN)
        announce(self._listener.getsockname()[1])
        listener = self._listener.fileno()
        while True:
            for fd, _ in self._epoll.poll():
                if fd in self._connections:
                    self._echo(fd)
                elif fd == listener:
                    self._accept()
                elif stdin_ended():
                    return

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)

    def _echo(self, fd: int) -> None:
        """Either finish what could not be sent, or echo one read: never both, so what is unsent
        stays bounded."""
        connection = self._connections[fd]
        unsent = self._unsent.pop(fd, None)
        try:
            data = unsent or connection.recv(RECEIVE_BYTES)
            rest = send_some(connection, data)
        except ConnectionError:
            data = rest = b""
        if not data:
            del self._connections[fd]
            connection.close()
        elif rest:
            self._unsent[fd] = memoryview(rest)
            self._epoll.modify(fd, select.EPOLLOUT)
        elif unsent:
            self._epoll.modify(fd, select.EPOLLIN)


def send_some(connection: socket.socket, data: bytes | memoryview) -> bytes | memoryview:
    """Send what the socket takes now, and return the rest."""
    try:
        sent = connection.send(data)
    except BlockingIOError:
        sent = 0
    return b"" if sent == len(data) else memoryview(data)[sent:]


IMPLEMENTATIONS: dict[str, Callable[[], None]] = {
    "trio": run_trio,
    "uring": run_uring,
    "uvloop": run_uvloop,
    "null": lambda: NullServer().serve(),
}

# What has to be importable for an implementation, where that is not a matter of course.
REQUIRED_MODULES = {"uring": "trio_uring", "uvloop": "uvloop"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, required=True)
    IMPLEMENTATIONS[parser.parse_args().impl]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
