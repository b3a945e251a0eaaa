"""The other end, in another process: plain blocking sockets of the standard library.

    python peer.py echo PORT CONNECTIONS [int|stop PID EVERY TIMES]
        echoes until the connections end
    python peer.py flood PORT BYTES
        prints "clogged" once the socket is full, then sends on
    python peer.py storm PORT COUNT
        COUNT connects at once, one byte there and back on each

Rules of this file: standard library only, and no import of trio: a wake-up must come from a process
that shares nothing with the one that sleeps. A peer exits with an error if it saw anything
unexpected.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"
FLOOD_BLOCK = bytes(range(256)) * 256  # 64 KiB


@contextlib.contextmanager
def peer(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Runs this file with `arguments`; it must end by itself, and well."""
    command = [sys.executable, "-S", __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        process.communicate()
    assert process.returncode == 0, f"peer {arguments} ended with {process.returncode}"


@contextlib.contextmanager
def echo_peer(connections: int, *signals: object) -> Iterator[list[socket.socket]]:
    """An echoing process at the other end of `connections` sockets, which the caller owns."""
    with socket.create_server((HOST, 0), backlog=connections) as listener:
        with peer("echo", listener.getsockname()[1], connections, *signals):
            yield [listener.accept()[0] for _ in range(connections)]


# ---- in the other process


class Signals:
    """Sends a signal to a process after every so many messages, so many times."""

    def __init__(self, kind: str = "", pid: str = "0", every: str = "0", times: str = "0") -> None:
        self._kind, self._pid, self._every, self._times = kind, int(pid), int(every), int(times)
        self._messages = 0

    def message(self) -> None:
        self._messages += 1
        if self._times and self._messages % self._every == 0:
            self._times -= 1
            if self._kind == "int":
                os.kill(self._pid, signal.SIGINT)
            else:
                self._stop()

    def _stop(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        while Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            os.sched_yield()
        os.kill(self._pid, signal.SIGCONT)


def echo(port: str, connections: str, *signals: str) -> None:
    after = Signals(*signals)
    socks = {}
    for _ in range(int(connections)):
        sock = socket.create_connection((HOST, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
    poll = select.poll()
    for fd in socks:
        poll.register(fd, select.POLLIN)
    while socks:
        # One connection: no poll, the process sleeps in recv.
        for fd, _ in poll.poll() if len(socks) > 1 else [(next(iter(socks)), 0)]:
            try:
                data = socks[fd].recv(65536)
                socks[fd].sendall(data)
            except ConnectionError:
                data = b""
            if not data:
                poll.unregister(fd)
                socks.pop(fd).close()
            else:
                after.message()


def flood(port: str, count: str) -> None:
    missing, told = int(count), False
    digest = hashlib.blake2b()
    with socket.create_connection((HOST, int(port))) as sock:
        sock.setblocking(False)
        while missing:
            block = FLOOD_BLOCK[:missing]
            try:
                sent = sock.send(block)
            except BlockingIOError:
                if not told and not select.select([], [sock], [], 0.5)[1]:
                    told = True
                    print("clogged", flush=True)
                select.select([], [sock], [])
                continue
            digest.update(block[:sent])
            missing -= sent
    print(digest.hexdigest(), flush=True)


def storm(port: str, count: str) -> None:
    poll = select.epoll()
    socks = {}
    for _ in range(int(count)):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((HOST, int(port)))
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLOUT)
    served = 0
    while socks:
        for fd, _ in poll.poll():
            sock = socks[fd]
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                sys.exit("a connection was refused")
            with contextlib.suppress(BlockingIOError):
                if sock.recv(1) == b"x":
                    served += 1
                poll.unregister(fd)
                socks.pop(fd).close()
                continue
            sock.send(b"x")
            poll.modify(fd, select.EPOLLIN)
    print(served, flush=True)


if __name__ == "__main__":
    {"echo": echo, "flood": flood, "storm": storm}[sys.argv[1]](*sys.argv[2:])
