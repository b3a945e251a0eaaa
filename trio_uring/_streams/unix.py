"""Listening Unix sockets, and the files that they own.

A path is taken over only from a dead server, the file has its permissions from the first moment,
and it is removed again.

Who gets a path: bind(2) decides if the path is free. If a socket file is in the way, a datagram
socket finds out whether somebody owns it: connect(2) fails with ECONNREFUSED if no socket is bound
to the file, and with something else (EPROTOTYPE for a stream socket) if one is. This makes no
connection, so a live server is not disturbed, and one that is bound but does not listen yet counts
as alive. It is done only after bind(2) has failed, since that waits for any other bind(2) of the
path, in the middle of which the file looks stale.

One winner: between this test and the removal, another server may have replaced the stale file. So
everything is done under an flock(2) of the directory, which leaves no file behind, and which the
kernel releases when a process is killed. Rejected: a lock file beside the socket (a killed process
leaves it behind, and the next server may not be allowed to open it); renaming the stale file to see
what was renamed (a live server's file may be gone for a moment, and another server takes its
place). Where the directory cannot be locked (it is not readable; NFS; another program holds the
lock for longer than LOCK_SECONDS), bind(2) still decides, and a stale file is taken over as other
programs do it, with a gap between test and removal.

Permissions: on Linux bind(2) creates the file with the mode of the socket's own inode, less the
umask. So fchmod(2) on the socket comes first, and what the umask removed is put back between
bind(2) and listen(2), while every connect is still refused. Rejected: the umask (it is the whole
process's), and a temporary name with rename(2) (getsockname would return that name).

Rules of this file: a file that is not a socket is never removed. Plain sockets, for listeners of a
trio run (`listeners`) and for processes that only hand them on. Opening may block, as a file system
does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import stat
import sys
import time
from typing import TYPE_CHECKING

from .._descriptors.direction import AF_UNIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._options import SocketOptions

    SocketPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

NO_UNIX_SOCKETS = "Unix sockets are not supported on this platform"  # as trio says it
# Linux's, which not every Python names (PyPy); elsewhere a directory is opened for reading.
_O_PATH = getattr(os, "O_PATH", 0o10000000 if sys.platform == "linux" else os.O_RDONLY)
_PATH_MAX = 107 if sys.platform == "linux" else 103  # bytes; macOS and the BSDs have 103
LOCK_SECONDS = 1.0  # how long to wait for a directory that another process has locked


class SocketFile:
    """The file of a listening socket, for whoever has made it."""

    def __init__(self, path: bytes, identity: tuple[int, int]) -> None:
        self._path = path
        self._identity = identity
        self._process = os.getpid()
        self._removed = False

    def remove(self) -> None:
        """Removes it, unless another file has taken its place; call it before the socket is closed.

        While the socket holds the inode, the inode number cannot be another file's, and no other
        server takes the file for a stale one. A forked child does not remove the file that its
        parent listens on.
        """
        if not self._removed and self._process == os.getpid():
            self._removed = True
            with contextlib.suppress(OSError):
                if _identity(self._path) == self._identity:
                    os.unlink(self._path)


def check_name(path: SocketPath, mode: int | None) -> bytes:
    """The name of a Unix socket, for bind(2).

    Raises:
        ValueError, RuntimeError: as in open_unix_listeners.
    """
    if AF_UNIX is None:
        raise RuntimeError(NO_UNIX_SOCKETS)
    name = os.fsencode(path)
    if not name:
        raise ValueError("the path of a Unix socket must not be empty")
    if mode is not None and not 0 <= mode <= 0o777:
        raise ValueError(f"mode must be permissions, 0 to 0o777, not {mode!r}")
    if name.startswith(b"\0"):
        if mode is not None:
            raise ValueError("an abstract Unix socket has no permissions: mode must be None")
        if sys.platform != "linux":
            raise ValueError("only Linux has abstract Unix sockets: the path must begin otherwise")
    elif b"\0" in name:  # bind(2) would see only its beginning
        raise ValueError("the path of a Unix socket must not contain a zero byte")
    return name


def listen_unix(
    name: bytes, mode: int | None, options: SocketOptions
) -> tuple[stdlib_socket.socket, SocketFile | None]:
    """A listening socket for a name that `check_name` has returned, and its file if it has one.

    It may block, for LOCK_SECONDS and as long as a file system does.

    Raises:
        OSError: as in open_unix_listeners.
    """
    if name.startswith(b"\0"):
        return _listen_abstract(name, options), None
    return _listen(name, mode, options)


def _socket(kind: int) -> stdlib_socket.socket:
    assert AF_UNIX is not None  # checked by whoever opens a listener
    return stdlib_socket.socket(AF_UNIX, kind)


def _listen_abstract(name: bytes, options: SocketOptions) -> stdlib_socket.socket:
    sock = _socket(stdlib_socket.SOCK_STREAM)
    try:
        options.apply(sock, "listening")
        sock.bind(name)
        sock.listen(options.backlog_length)
        return sock
    except OSError as exc:
        sock.close()
        raise _located(exc, name) from None
    except BaseException:
        sock.close()
        raise


def _listen(
    path: bytes, mode: int | None, options: SocketOptions
) -> tuple[stdlib_socket.socket, SocketFile]:
    sock = _socket(stdlib_socket.SOCK_STREAM)
    try:
        options.apply(sock, "listening")
        if mode is not None and sys.platform == "linux":
            os.fchmod(sock.fileno(), mode)
        with _locked(os.path.dirname(path) or b"."):
            _bind(sock, path)
            try:
                identity = _settle_mode(path, mode)
                sock.listen(options.backlog_length)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                raise
        return sock, SocketFile(os.path.abspath(path), identity)
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _locked(directory: bytes) -> Iterator[None]:
    """Locks a directory, if possible: no other server of ours opens a socket in it meanwhile."""
    if sys.platform == "win32":
        raise AssertionError
    import fcntl  # the package is also imported where there is none

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # bind(2) will say what is wrong, if anything is
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        with contextlib.suppress(OSError):  # not possible on this file system
            while not _lock(fd) and time.monotonic() < deadline:
                time.sleep(0.001)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the lock, too
        os.close(fd)


def _lock(fd: int) -> bool:
    """Returns False if another process has the lock."""
    if sys.platform == "win32":
        raise AssertionError
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bind(sock: stdlib_socket.socket, path: bytes) -> None:
    """Binds the socket to the path, replacing a stale file if one is there."""
    for make_way in (_make_way, _give_up):
        try:
            sock.bind(path)
            return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise _located(exc, path) from None
        make_way(path)


def _make_way(path: bytes) -> None:
    """Removes a stale socket file; leaves everything else where it is."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise _in_use(path, "something that is not a socket is there")
        if not _is_stale(path):
            raise _in_use(path, "another socket is bound there")
        os.unlink(os.fsdecode(path))
    except FileNotFoundError:
        pass  # its owner was slow to clean up, or another program was faster


def _give_up(path: bytes) -> None:
    raise _in_use(path, "another server was started there at the same time")


def _is_stale(path: bytes) -> bool:
    with _socket(stdlib_socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:
                raise _located(exc, path) from None
    return False


def _settle_mode(path: bytes, mode: int | None) -> tuple[int, int]:
    """Gives the new file the permissions that the umask removed, and returns its identity."""
    if sys.platform != "linux":
        # Here the file has what the umask left (fchmod(2) takes no sockets), but until listen(2)
        # nobody can connect.
        status = os.lstat(path)
        if mode is not None and _lacks(status, mode):
            _chmod_by_name(path, mode)
        return status.st_dev, status.st_ino
    # O_NOFOLLOW: if somebody has put a link in its place, never that link's target.
    file = os.open(path, _O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        if mode is not None and _lacks(status, mode):
            try:
                os.chmod(f"/proc/self/fd/{file}", mode)
            except OSError:  # there is no /proc, for instance in a chroot
                _chmod_by_name(path, mode)
        return status.st_dev, status.st_ino
    finally:
        os.close(file)


def _lacks(status: os.stat_result, mode: int) -> bool:
    """Whether the file is a socket with other permissions than `mode`."""
    return stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) != mode


def _chmod_by_name(path: bytes, mode: int) -> None:
    """Changes a file's permissions, but not the target's if somebody puts a link in its place."""
    if sys.platform == "win32":
        raise AssertionError
    directory, name = os.path.split(path)
    fd = os.open(directory or b".", _O_PATH | os.O_DIRECTORY)
    try:
        # This works on macOS, and on Linux 6.6 with a C library that knows it; others need /proc,
        # and fail in one of these ways.
        with contextlib.suppress(NotImplementedError, ValueError, OSError):
            os.chmod(name, mode, dir_fd=fd, follow_symlinks=False)
            return
        status = os.fstat(fd)
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if shared or status.st_uid not in (0, os.geteuid()):
            why = "without /proc a mode can only be set in a directory that nobody else may change"
            raise PermissionError(errno.EPERM, why, os.fsdecode(path))
        os.chmod(name, mode, dir_fd=fd)
    finally:
        os.close(fd)


def _identity(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _in_use(path: bytes, why: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {why}", os.fsdecode(path))


def _located(exc: OSError, path: bytes) -> OSError:
    """The same error with the path, which a socket's errors lack."""
    if exc.errno is None:  # Python's own: the address has no room for it
        code, size = errno.ENAMETOOLONG, len(path.removeprefix(b"\0"))
        why = f"{size} bytes, and a Unix socket may have {_PATH_MAX}: choose a shorter path"
        return OSError(code, f"{os.strerror(code)}: {why}", os.fsdecode(path))
    return OSError(exc.errno, exc.strerror, os.fsdecode(path))
