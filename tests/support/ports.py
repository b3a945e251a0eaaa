"""Ports that nobody is given who does not ask for them.

A port that the kernel has chosen for a test, and that the test has closed, may be another process's
before the test asks for it again, and a connect to it may even come from there. So who closes a
port and looks at it afterwards takes one of these.

Rules of this file: standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # what the kernel chooses from
_FIRST, _LAST = 20_000, 65_535  # above what services of this machine have, mostly


def _candidates() -> Iterator[int]:
    low, high = 32_768, 60_999
    with contextlib.suppress(OSError):
        low, high = map(int, _RANGE.read_text().split())
    ports = [port for port in range(_FIRST, _LAST + 1) if not low <= port <= high]
    random.SystemRandom().shuffle(ports)  # other processes of tests do the same
    return itertools.cycle(ports or [0])


_ports = _candidates()


def lone_port(host: str = "127.0.0.1") -> int:
    """One that is free on that address, for TCP; another one each time."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            try:
                sock.bind((host, next(_ports)))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            else:
                return int(sock.getsockname()[1])
