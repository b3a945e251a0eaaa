"""The load of an echo over TLS: a program with the arguments and the output of `load/loadgen.c`.

In Python, because OpenSSL's headers are seldom installed. It costs less than a server in Python
does, and more than one in C or Cython would: the report says where its core was full.

Rules of this file: it imports nothing but the standard library. As in C, every byte is compared
with what was sent, a failure ends the program, and at both ends of the window nothing is
outstanding.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from typing import Any

READ_BYTES = 65536
ALARM_MARGIN_SECONDS = 60
TURN_SECONDS = 0.01


@dataclass
class Connection:
    """One connection, with its message; `sent` and `received` are bytes of the one under way."""

    sock: ssl.SSLSocket
    message: bytes
    sent: int
    received: int = 0
    began: float = 0.0
    counted: int = 0

    def send_more(self) -> None:
        try:
            while self.sent < len(self.message):
                # The same bytes until they have gone: OpenSSL insists.
                self.sent += self.sock.send(memoryview(self.message)[self.sent :])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass

    def begin(self, now: float) -> None:
        self.sent = self.received = 0
        self.began = now
        self.send_more()

    def take(self) -> bool:
        """Receives and compares what is there; whether the echo is complete."""
        try:
            while self.received < len(self.message):
                data = self.sock.recv(READ_BYTES)
                end = self.received + len(data)
                if not data or self.message[self.received : end] != data:
                    raise SystemExit("received bytes that are not the echo of what was sent")
                self.received = end
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True


class Load:
    """All connections.

    Attributes:
        latencies: seconds, of every message of the last window.
    """

    def __init__(self, port: int, connections: int, size: int) -> None:
        if sys.platform != "linux":
            raise AssertionError
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._epoll: Any = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        for _ in range(connections):
            plain = socket.create_connection(("127.0.0.1", port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = context.wrap_socket(plain)
            sock.setblocking(False)
            self._by_fd[sock.fileno()] = Connection(sock, os.urandom(size), size)
            self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self.latencies: list[float] = []

    def run(self, seconds: float) -> None:
        """Every connection has a message outstanding for this long; returns when all are back."""
        self.latencies.clear()
        end = time.monotonic() + seconds
        for connection in self._by_fd.values():
            connection.counted = 0
            connection.begin(time.monotonic())
        outstanding = len(self._by_fd)
        while outstanding:
            for fd, _ in self._epoll.poll(TURN_SECONDS):
                outstanding -= self._serve(self._by_fd[fd], end)

    def _serve(self, connection: Connection, end: float) -> bool:
        """Whether this connection has had its last message."""
        connection.send_more()
        if connection.received == len(connection.message) or not connection.take():
            return False
        now = time.monotonic()
        self.latencies.append(now - connection.began)
        connection.counted += 1
        if now >= end:
            return True
        connection.begin(now)
        return False

    def stalled(self) -> int:
        return sum(not connection.counted for connection in self._by_fd.values())


def say_and_wait(line: str) -> None:
    print(line, flush=True)
    if not sys.stdin.readline():
        raise SystemExit(1)  # the program that wanted to know is gone


def main(numbers: dict[str, float]) -> None:
    if sys.platform != "linux":
        raise AssertionError
    size = int(numbers["bytes"])
    signal.alarm(int(numbers["seconds"] + numbers["warmup"]) + ALARM_MARGIN_SECONDS)
    load = Load(int(numbers["port"]), int(numbers["connections"]), size)
    load.run(numbers["warmup"])
    say_and_wait("START")
    cpu, began = time.process_time(), time.monotonic()
    load.run(numbers["seconds"])
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    say_and_wait("END")
    times = sorted(load.latencies)
    figures = {
        "messages": len(times), "seconds": seconds, "bytes": size * len(times), "errors": 0,
        "stalled": load.stalled(), "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[len(times) * 99 // 100] * 1e6, "cpu_seconds": cpu,
    }  # fmt: skip
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main({name: float(value) for name, value in zip(words[::2], words[1::2])})
