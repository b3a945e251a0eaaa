"""systemd's conventions: sockets that it opens for a service, and telling it how that is.

They are described in sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3); other supervisors
follow them, too.

Rules of this file: only the documented environment variables, and no library. What is wrong with
the environment is an error with its names in it.
"""

from __future__ import annotations

import logging
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING

import trio

from .._descriptors.direction import AF_UNIX
from .._streams.listeners import SocketListener

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("trio_uring")

FIRST_FD = 3
_UNNAMED = "unknown"  # as in sd_listen_fds_with_names(3)
_NOTIFY_SECONDS = 1.0  # that a supervisor which does not read may hold up this thread


def listeners_from_environment() -> dict[str, list[SocketListener]]:
    """Takes the listening sockets that systemd, or whoever started this process, has opened for it.

    They are told of by LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3)), which are
    removed from the environment. So this works once, and children do not take the sockets for
    theirs; nor do they inherit them.

    Returns:
        Listeners by name: FileDescriptorName= of the socket unit, whose default is the unit's name,
        such as "web.socket"; "unknown" if nobody has named them. Empty if there are none, or if
        they are meant for another process, which is logged.

    Raises:
        ValueError: the variables contradict each other, or a descriptor is not a listening stream
            socket (ListenStream= and Accept=no).
    """
    # The last is systemd's newest, and says the same as the first.
    variables = "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"
    pid, count, names, _ = (os.environ.pop(name, None) for name in variables)
    if count is None:
        return {}
    if pid is not None and _number("LISTEN_PID", pid) != os.getpid():
        _log.warning(
            "LISTEN_PID is %s, and this process is %d: its sockets are not taken", pid, os.getpid()
        )
        return {}
    given = _number("LISTEN_FDS", count)
    named = None if names is None else names.split(":") if names else []
    if named is not None and len(named) != given:
        raise ValueError(
            f"LISTEN_FDNAMES has {len(named)} names for {given} descriptors: {names!r}"
        )
    fds = range(FIRST_FD, FIRST_FD + given)
    for fd in fds:
        _check_listening(fd, named[fd - FIRST_FD] if named else _UNNAMED)
    found: dict[str, list[SocketListener]] = {}
    for fd, name in zip(fds, named or [_UNNAMED] * len(fds)):
        os.set_inheritable(fd, False)
        found.setdefault(name, []).append(SocketListener(stdlib_socket.socket(fileno=fd)))
    return found


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{name} is not a number: {value!r}")
    return int(value)


def _check_listening(fd: int, name: str) -> None:
    what = f"descriptor {fd} ({name!r}) of LISTEN_FDS"
    try:
        sock = stdlib_socket.socket(fileno=fd)
    except OSError as exc:
        raise ValueError(f"{what} is not a socket: {exc.strerror}") from None
    try:
        listens = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
        if not listens or sock.type != stdlib_socket.SOCK_STREAM:
            raise ValueError(
                f"{what} is not a listening stream socket: its unit needs ListenStream= and "
                "Accept=no"
            )
    finally:
        sock.detach()  # nothing is taken before all are suitable


def notify(state: str) -> bool:
    """Tells systemd, or another supervisor, how this service is: sd_notify(3).

    Args:
        state: lines such as "READY=1", "STOPPING=1", "STATUS=...", "WATCHDOG=1", or
            "RELOADING=1\\nMONOTONIC_USEC=..."; they are sent as they are.

    Returns:
        True: it was sent. False: nobody wants to know (NOTIFY_SOCKET is not set).

    Raises:
        OSError: it could not be sent, for instance because nobody reads it (TimeoutError, after a
            second in which this thread waits).
        ValueError: NOTIFY_SOCKET is not the name of a Unix socket.
    """
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return False
    if AF_UNIX is None or name[0] not in "/@":
        raise ValueError(f"NOTIFY_SOCKET is not the name of a Unix socket: {name!r}")
    address = os.fsencode(name)
    with stdlib_socket.socket(AF_UNIX, stdlib_socket.SOCK_DGRAM) as sock:
        sock.settimeout(_NOTIFY_SECONDS)
        sock.connect(b"\0" + address[1:] if address.startswith(b"@") else address)
        sock.sendall(state.encode())
    return True


def try_notify(state: str) -> bool:
    """Does what `notify` does, but that a supervisor does not listen is only logged: it is no
    reason to end."""
    try:
        return notify(state)
    except (OSError, ValueError) as exc:
        _log.warning("systemd could not be told %r: %s", state, exc)
        return True


async def notify_watchdog(healthy: Callable[[], bool] | None = None) -> None:
    """Tells systemd's watchdog (WatchdogSec=) that this service is alive, until cancelled.

    Start it in a task beside the servers. It sends WATCHDOG=1 at half of the interval that systemd
    asks for, so systemd ends the service when this run stops: its thread hangs, or the kernel has
    stopped the process. That the servers answer is not shown by it: `healthy` may look.

    It returns at once if nobody asks this process: NOTIFY_SOCKET or WATCHDOG_USEC is not set, or
    WATCHDOG_PID is another process, which is logged.

    Args:
        healthy: called each time; nothing is sent while it returns False, and it is then called
            more often. None: as if it always returned True.

    Raises:
        ValueError: WATCHDOG_USEC or WATCHDOG_PID is not a number.

    Cancellation: systemd is not told any more.
    """
    await trio.lowlevel.checkpoint()
    seconds = watchdog_seconds()
    if seconds is not None:
        await keep_watchdog(seconds, healthy or _always)


def watchdog_seconds() -> float | None:
    """The interval of the watchdog; None: it does not watch this process.

    Raises:
        ValueError: a variable is not a number.
    """
    interval, pid = (os.environ.get(name) for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
    if interval is None:
        return None
    if pid is not None and _number("WATCHDOG_PID", pid) != os.getpid():
        _log.warning(
            "WATCHDOG_PID is %s, and this process is %d: the watchdog is not told", pid, os.getpid()
        )
        return None
    return _number("WATCHDOG_USEC", interval) / 1e6 or None


async def keep_watchdog(seconds: float, healthy: Callable[[], bool]) -> None:
    """Tells a watchdog with this interval; returns if nobody listens."""
    while True:
        well = healthy()
        if well and not try_notify("WATCHDOG=1"):
            return
        # What is over soon is not to end the service: half the interval is left.
        await trio.sleep(seconds / 2 if well else seconds / 16)


def _always() -> bool:
    return True
