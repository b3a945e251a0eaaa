"""The listening sockets, which the supervisor opens and keeps.

A worker inherits them, so a worker that ends takes no connection with it: those that wait to be
accepted are accepted by another worker, or by the one that comes after.

Rules of this file: plain sockets, opened before there is a trio run, as trio.open_tcp_listeners
opens them. Nobody accepts here.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING, Any

from .._options import SocketOptions, fold_options

if TYPE_CHECKING:
    from collections.abc import Sequence

_ADDRESS = re.compile(r"(?:(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>[0-9]{1,5})")


def parse_address(text: str) -> tuple[str | None, int]:
    """The host (None: every interface) and the port of "host:port", ":port" or "port".

    Raises:
        ValueError: it is none of these.
    """
    found = _ADDRESS.fullmatch(text)
    if not found or int(found["port"]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, :PORT or [IPv6]:PORT")
    return found["six"] or found["host"] or None, int(found["port"])


def name_address(address: Any) -> str:
    """What a socket is bound to, as a person reads it."""
    if not isinstance(address, tuple):
        return str(address)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


class Ports:
    """What the workers listen on.

    Args:
        addresses: of each "host:port".
        options: of the sockets; with `reuse_port`, each worker has sockets of its own.
        given: sockets that listen already, which all workers share; `close` closes them.

    Raises:
        ValueError: an address is not one.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        options: SocketOptions | None,
        given: Sequence[socket.socket] = (),
    ) -> None:
        self._options = fold_options(options)
        self._given = given
        self._addresses = [parse_address(each) for each in addresses]
        self._queues: list[list[socket.socket]] = []  # one for all workers, or one for each

    def open(self, workers: int) -> None:
        """Opens them, all or none.

        Raises:
            OSError: an address cannot be had, or an option is not available.
        """
        try:
            first: list[socket.socket] = []
            self._queues.append(first)
            for host, port in self._addresses:
                for place in _resolve(host, port):
                    self._open_one(first, *place)
            for _ in range(1, workers if self._options.reuse_port else 1):
                queue: list[socket.socket] = []
                self._queues.append(queue)
                for each in first:  # by its address: the kernel may have chosen the port
                    self._open_one(queue, each.family, each.getsockname())
        except BaseException:
            self.close()
            raise

    def _open_one(self, queue: list[socket.socket], family: int, address: Any) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        queue.append(sock)
        try:
            self._options.apply(sock, "listening")
            sock.bind(address)
            sock.listen(self._options.backlog_length)
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror}: {name_address(address)}") from exc

    def descriptors(self, number: int) -> list[int]:
        """Those that a worker inherits."""
        own = self._queues[number % len(self._queues)]
        return [each.fileno() for each in (*self._given, *own)]

    def names(self) -> list[str]:
        """What they are bound to."""
        return [name_address(each.getsockname()) for each in (*self._given, *self._queues[0])]

    def close(self) -> None:
        """Closes them here; the workers have theirs."""
        for queue in (self._given, *self._queues):
            for each in queue:
                each.close()


def _resolve(host: str | None, port: int) -> list[tuple[int, Any]]:
    """The families and addresses of a host that this system has.

    Raises:
        OSError: there are none, or the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        raise OSError(exc.errno, f"{exc.strerror}: {host}") from exc
    places: list[tuple[int, Any]] = [
        (family, address) for family, _, _, _, address in found if _has(family)
    ]
    if not places:
        raise OSError(errno.EAFNOSUPPORT, f"{os.strerror(errno.EAFNOSUPPORT)}: {host}")
    return places


def _has(family: int) -> bool:
    """A system with only IPv4 may still resolve to IPv6, or the other way round."""
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as exc:
        if exc.errno != errno.EAFNOSUPPORT:
            raise
        return False
    return True
