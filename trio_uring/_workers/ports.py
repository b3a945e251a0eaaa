"""The listening sockets, which the supervisor opens and keeps.

A worker inherits them, so a worker that ends takes no connection with it: those that wait to be
accepted are accepted by another worker, or by the one that comes after. The file of a Unix socket
is the supervisor's, too: workers know nothing of it.

Rules of this file: plain sockets, opened as trio.open_tcp_listeners and open_unix_listeners open
them, but at once, and without trio. Nobody accepts here.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING, Any

from .._descriptors.direction import AF_UNIX
from .._options import SocketOptions, fold_options
from .._streams.unix import check_name, listen_unix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._streams.unix import SocketFile

SYSTEMD = "systemd"  # in place of an address
_UNIX = "unix:"  # before a path, or "@" and an abstract name
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


def parse_unix(text: str) -> str | None:
    """The name of the Unix socket of "unix:path" or "unix:@name"; None: it is neither."""
    if not text.startswith(_UNIX):
        return None
    name = text[len(_UNIX) :]
    return f"\0{name[1:]}" if name.startswith("@") else name


def name_address(address: Any) -> str:
    """What a socket is bound to, as a person reads it, and as `bind` takes it."""
    if not isinstance(address, tuple):
        name = os.fsdecode(address)
        return f"{_UNIX}@{name[1:]}" if name.startswith("\0") else f"{_UNIX}{name}"
    if isinstance(address[0], int):  # of virtual machines, by systemd
        return f"vsock:{address[0]}:{address[1]}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


class Ports:
    """What the workers listen on.

    Args:
        addresses: as serve_workers takes them; for "systemd" there are the sockets of `given`.
        options: of the sockets; with `reuse_port`, each worker has sockets of its own on TCP. Unix
            sockets are always shared: the kernel spreads no connections over several.
        given: sockets that listen already, which all workers share, and which may still be added
            until `open`; `close` closes them.
        mode: permissions of the files of Unix sockets; None: what the umask leaves.

    Raises:
        ValueError: an address is not one, or there is nothing that could have this mode.
        RuntimeError: a Unix socket where there are none.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        options: SocketOptions | None,
        given: Sequence[socket.socket] = (),
        mode: int | None = None,
    ) -> None:
        self._options = fold_options(options)
        self._mode = mode
        self._addresses: list[bytes | tuple[str | None, int]] = []
        for each in addresses:
            if each != SYSTEMD:
                name = parse_unix(each)
                found = parse_address(each) if name is None else check_name(name, mode)
                self._addresses.append(found)
        if mode is not None and not any(isinstance(each, bytes) for each in self._addresses):
            raise ValueError("unix_mode is for addresses unix:PATH, and there is none")
        self._given = given
        self._files: list[SocketFile] = []
        self._queues: list[list[socket.socket]] = []  # one for all workers, or one for each

    def open(self, workers: int) -> None:
        """Opens them, all or none.

        Raises:
            OSError: an address cannot be had, or an option is not available.
        """
        try:
            first: list[socket.socket] = []
            self._queues.append(first)
            for address in self._addresses:
                if isinstance(address, bytes):
                    self._open_unix(first, address)
                    continue
                for place in _resolve(*address):
                    self._open_tcp(first, *place)
            for _ in range(1, workers if self._options.reuse_port else 1):
                queue: list[socket.socket] = []
                self._queues.append(queue)
                for each in first:
                    if each.family == AF_UNIX:
                        queue.append(each)
                    else:  # by its address: the kernel may have chosen the port
                        self._open_tcp(queue, each.family, each.getsockname())
        except BaseException:
            self.close()
            raise

    def _open_unix(self, queue: list[socket.socket], name: bytes) -> None:
        sock, file = listen_unix(name, self._mode, self._options)
        queue.append(sock)
        if file is not None:
            self._files.append(file)

    def _open_tcp(self, queue: list[socket.socket], family: int, address: Any) -> None:
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

    def buffers(self) -> dict[str, Any]:
        """The options that connections of Unix sockets do not inherit from them."""
        each = self._options
        return {"receive_buffer": each.receive_buffer, "send_buffer": each.send_buffer}

    def names(self) -> list[str]:
        """What they are bound to."""
        return [name_address(each.getsockname()) for each in (*self._given, *self._queues[0])]

    def close(self) -> None:
        """Closes them here, and removes the files of those that have one; workers go on with theirs
        until they are told to end."""
        for file in self._files:
            file.remove()
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
