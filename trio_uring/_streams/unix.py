"""Unix listeners: a path that is taken over only from the dead, with its permissions from the first
moment, and removed again.

How: bind(2) decides who has a path that is free. Whether somebody owns a socket file that is in the
way is asked with a datagram socket: connect(2) says ECONNREFUSED if no socket is bound to the file,
and something else (EPROTOTYPE for a stream socket) if one is. It makes no connection, so a live
server is not disturbed, and one that is bound but does not listen yet counts as alive. It is asked
after bind(2) has failed, which waits for the bind(2) of another: in the middle of that, the file
looks like a stale one.

One winner: between asking and removing, another server may have taken the stale file's place. So
all is done under an flock(2) of the directory, which leaves no file behind, and which the kernel
takes back from a process that is killed. Rejected: a lock file beside the socket (a killed process
leaves it, and who starts next may not be allowed to open it); renaming the stale file to see what
was renamed (a live server's file may be away for a moment, and another server in its place). Where
the directory cannot be locked (it may not be read; NFS; another program holds it for longer than
LOCK_SECONDS), bind(2) decides still, and a stale file is taken over as other programs do it, with a
moment between asking and removing.

Permissions: on Linux bind(2) creates the file with the mode of the socket's own inode, less the
umask. So fchmod(2) on the socket comes first, and what the umask took is put back between bind(2)
and listen(2), when every connect is refused still.
Rejected: the umask (it is the whole process's), and a temporary name with rename(2) (getsockname
would tell that name).

Rules of this file: what is not a socket is never removed. Opening is done in a thread, since a file
system may block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import stat
import time
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from .._options import SocketOptions, fold_options
from .listeners import SocketListener, listener_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .streams import SocketStream

    _Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


LOCK_SECONDS = 1.0  # for which a directory that another process has locked is waited for


class _UnixListener(SocketListener):
    """Removes its file when it is closed."""

    def __init__(
        self,
        sock: stdlib_socket.socket,
        path: bytes,
        identity: tuple[int, int],
        options: SocketOptions,
    ) -> None:
        super().__init__(sock)
        self._to_accepted = options
        self._path = path
        self._identity = identity
        self._process = os.getpid()
        self._removed = False

    @enable_ki_protection
    def _close(self) -> None:
        # Before the socket is closed: it holds the inode, so that the number cannot be another
        # file's, and no other server takes the file for a stale one meanwhile. A forked child does
        # not remove what its parent listens on.
        if not self._removed and self._process == os.getpid():
            self._removed = True
            with contextlib.suppress(OSError):
                if _identity(self._path) == self._identity:
                    os.unlink(self._path)
        super()._close()


async def open_unix_listeners(
    path: _Path,
    *,
    mode: int | None = None,
    backlog: int | None = None,
    options: SocketOptions | None = None,
) -> list[SocketListener]:
    """Opens a listener on a Unix socket.

    A socket file at `path` that nobody is bound to any more is replaced. Of several servers that
    start at the same time one gets the path. The file is removed when the listener is closed,
    unless another has taken its place. Linux only.

    Args:
        path: where; at most 107 bytes. A name that begins with a zero byte is an abstract one,
        without a file.
        mode: permissions of the file, such as 0o600; who may write to it may connect. Nobody else
            can at any moment. None: as the umask has it.
        backlog: short for the one of the options.
        options: of the listener and its connections; None: the defaults of SocketOptions.

    Returns:
        A list with one listener.

    Raises:
        OSError: EADDRINUSE: a server is alive there, or something that is not a socket, which is
            never removed; EPERM: `mode` is more than the umask allows, there is no /proc, and
            others may change the directory; other numbers as of bind(2).
        ValueError: an empty path or one with a zero byte, a mode that is none, a mode for an
            abstract name, or a backlog that contradicts the options.

    Cancellation: a checkpoint comes first; from then on it is not cancellable.
    """
    name = os.fsencode(path)
    if not name:
        raise ValueError("the path of a Unix socket must not be empty")
    if mode is not None and not 0 <= mode <= 0o777:
        raise ValueError(f"mode must be permissions, 0 to 0o777, not {mode!r}")
    options = fold_options(options, backlog=backlog)
    if name.startswith(b"\0"):
        if mode is not None:
            raise ValueError("an abstract Unix socket has no permissions: mode must be None")
        await trio.lowlevel.checkpoint()
        return [_listen_abstract(name, options)]
    if b"\0" in name:  # of which bind(2) would see the beginning only
        raise ValueError("the path of a Unix socket must not contain a zero byte")
    return [await _in_thread(name, mode, options)]


async def serve_unix(
    handler: Callable[[SocketStream], Awaitable[object]],
    path: _Path,
    *,
    mode: int | None = None,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
    options: SocketOptions | None = None,
) -> None:
    """Serves connections to a Unix socket, each with a task that runs `handler(stream)`, until it
    is cancelled.

    Args:
        path, mode, backlog, options: as of open_unix_listeners.
        handler, handler_nursery, task_status: as of serve_tcp.

    Cancellation: the listener is closed, and its file removed.
    """
    listeners = await open_unix_listeners(path, mode=mode, backlog=backlog, options=options)
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )


@enable_ki_protection
async def _in_thread(path: bytes, mode: int | None, options: SocketOptions) -> SocketListener:
    return _UnixListener(*await trio.to_thread.run_sync(_listen, path, mode, options), options)


def _listen_abstract(name: bytes, options: SocketOptions) -> SocketListener:
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    try:
        options.apply(sock, "listening")
        sock.bind(name)
        sock.listen(options.backlog_length)
        return listener_over(sock, options)
    except OSError as exc:
        sock.close()
        raise _located(exc, name) from None
    except BaseException:
        sock.close()
        raise


def _listen(
    path: bytes, mode: int | None, options: SocketOptions
) -> tuple[stdlib_socket.socket, bytes, tuple[int, int]]:
    """A socket that listens on `path`, where that is whatever the current directory will be, and
    the file's identity."""
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    try:
        options.apply(sock, "listening")
        if mode is not None:
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
        return sock, os.path.abspath(path), identity
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _locked(directory: bytes) -> Iterator[None]:
    """Meanwhile no other of our servers opens a socket in this directory, if it can be locked."""
    import fcntl  # the package is imported where there is none

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # bind(2) says what is wrong, if anything is
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        with contextlib.suppress(OSError):  # not with this file system
            while not _lock(fd) and time.monotonic() < deadline:
                time.sleep(0.001)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile has the lock, too
        os.close(fd)


def _lock(fd: int) -> bool:
    """False: another has it."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bind(sock: stdlib_socket.socket, path: bytes) -> None:
    """Binds the socket to the path, in the place of a stale file if one is there."""
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
        pass  # its owner's clean-up was slow, or another program faster


def _give_up(path: bytes) -> None:
    raise _in_use(path, "another server was started there at the same time")


def _is_stale(path: bytes) -> bool:
    with stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:
                raise _located(exc, path) from None
    return False


def _settle_mode(path: bytes, mode: int | None) -> tuple[int, int]:
    """Gives the new file the permissions that the umask took, and returns its identity."""
    # Should somebody have put a link in its place: not that link's target.
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        if (
            mode is not None
            and stat.S_ISSOCK(status.st_mode)
            and stat.S_IMODE(status.st_mode) != mode
        ):
            try:
                os.chmod(f"/proc/self/fd/{file}", mode)
            except OSError:  # there is no /proc, in a chroot for one
                _chmod_by_name(path, mode)
        return status.st_dev, status.st_ino
    finally:
        os.close(file)


def _chmod_by_name(path: bytes, mode: int) -> None:
    """Changes a file's permissions, never those of a link's target that somebody puts in its
    place."""
    directory, name = os.path.split(path)
    fd = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY)
    try:
        # By Linux 6.6 and a C library that knows it; others ask /proc, and fail in one of these
        # ways.
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
    """The same error, with the path, which those of sockets do not tell."""
    return exc if exc.errno is None else OSError(exc.errno, exc.strerror, os.fsdecode(path))
