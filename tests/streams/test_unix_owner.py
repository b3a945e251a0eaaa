"""Unix listeners: who owns the file when several servers start, and when one dies while starting.

Rules: other programs are plain sockets of this process; a server that is killed is a separate
process.
"""

# ruff: noqa: ASYNC240
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.unix import bound, check_it_serves, open_one

from trio_uring import SocketOptions, open_unix_listeners, open_unix_socket
from trio_uring._streams import unix as _unix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sock"


# -- whose file it is


async def test_a_stale_file_is_replaced(path: Path) -> None:
    bound(path).close()
    with pytest.raises(ConnectionRefusedError):
        await open_unix_socket(path)
    async with await open_one(path) as listener:
        await check_it_serves(listener, path)
        assert os.listdir(path.parent) == ["sock"]


LIVE = [(socket.SOCK_STREAM, True), (socket.SOCK_STREAM, False), (socket.SOCK_DGRAM, False)]


@pytest.mark.parametrize(("kind", "listen"), LIVE)
async def test_a_live_servers_file_is_not(path: Path, kind: int, listen: bool) -> None:
    """Nor is that of a server that does not listen yet. The server does not see that it was
    asked."""
    with bound(path, kind, listen) as server:
        before = path.lstat()
        with pytest.raises(OSError, match="in use: another socket is bound there") as caught:
            await open_unix_listeners(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == str(path)
        assert path.lstat().st_ino == before.st_ino
        assert path.lstat().st_ctime_ns == before.st_ctime_ns  # it was not even moved
        if listen:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


async def test_our_own_live_server(path: Path) -> None:
    async with await open_one(path) as listener:
        with pytest.raises(OSError, match="in use"):
            await open_unix_listeners(path)
        await check_it_serves(listener, path)


@pytest.mark.parametrize(
    "make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")]
)
async def test_what_is_not_a_socket_is_never_removed(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(OSError, match="not a socket") as caught:
        await open_unix_listeners(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.lstat().st_ino == before.st_ino


async def test_a_link_to_a_stale_socket_is_not_a_socket(path: Path) -> None:
    target = path.with_name("target")
    bound(target).close()
    path.symlink_to(target)
    with pytest.raises(OSError, match="not a socket"):
        await open_unix_listeners(path)
    assert path.is_symlink()
    assert target.is_socket()


@pytest.mark.parametrize("when", ["bind", "lstat", "connect", "unlink"])
async def test_another_program_that_does_not_lock(
    path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the stale file's place while that is looked at: we are told so, and leave it."""
    bound(path).close()
    others: list[socket.socket] = []

    def late() -> None:
        if not others:
            path.unlink()
            others.append(bound(path))

    lstat, unlink, is_stale = os.lstat, os.unlink, _unix._is_stale
    with monkeypatch.context() as patched:
        if when == "bind":
            make_way = _unix._make_way
            patched.setattr(_unix, "_make_way", lambda name: [late(), make_way(name)])
        elif when == "lstat":
            patched.setattr(os, "lstat", lambda name: [lstat(name), late()][0])
        elif when == "connect":
            patched.setattr(_unix, "_is_stale", lambda name: [late(), is_stale(name)][1])
        else:
            patched.setattr(os, "unlink", lambda name: [unlink(name), others.append(bound(path))])
        with pytest.raises(OSError, match="in use: another") as caught:
            await open_unix_listeners(path)
    assert caught.value.errno == errno.EADDRINUSE
    with others[0]:
        await (await open_unix_socket(path)).aclose()


@pytest.mark.parametrize("when", ["lstat", "connect", "unlink"])
async def test_a_stale_file_that_somebody_else_removes(
    path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(path).close()
    module, name = (_unix, "_is_stale") if when == "connect" else (os, when)
    real = getattr(module, name)

    def late(argument: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        os.unlink(path)
        return real(argument)

    monkeypatch.setattr(module, name, late)
    async with await open_one(path) as listener:
        await check_it_serves(listener, path)
    assert not os.listdir(path.parent)


# -- one winner


def start(path: Path, results: list[Any]) -> None:
    try:
        results.append(_unix._listen(os.fsencode(path), 0o666, SocketOptions())[0])
    except OSError as exc:
        results.append(exc.errno)


def test_a_server_that_starts_meanwhile_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has found the file stale and not removed it yet; the second must not find that."""
    bound(path).close()
    results: list[Any] = []
    waits = threading.Event()
    is_stale, lock = _unix._is_stale, _unix._lock
    second = threading.Thread(target=start, args=(path, results))

    def found(name: bytes) -> bool:
        stale = is_stale(name)
        if stale:
            second.start()
            assert waits.wait(20)
        return stale

    def look(fd: int) -> bool:
        locked = lock(fd)
        if not locked:
            waits.set()
        return locked

    monkeypatch.setattr(_unix, "LOCK_SECONDS", 60)
    monkeypatch.setattr(_unix, "_is_stale", found)
    monkeypatch.setattr(_unix, "_lock", look)
    first: list[Any] = []
    start(path, first)
    second.join()
    assert results == [errno.EADDRINUSE]
    assert os.listdir(path.parent) == ["sock"]
    with first[0], socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_four_servers_that_start_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stale file, again and again."""
    monkeypatch.setattr(_unix, "LOCK_SECONDS", 60)  # who has it may get no processor for a while
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(500):
            bound(path).close()
            results: list[Any] = []
            servers = [threading.Thread(target=start, args=(path, results)) for _ in range(4)]
            for server in servers:
                server.start()
            for server in servers:
                server.join()
            [winner] = [result for result in results if isinstance(result, socket.socket)]
            assert results.count(errno.EADDRINUSE) == 3
            assert os.listdir(path.parent) == ["sock"]
            assert stat.S_IMODE(path.lstat().st_mode) == 0o666
            with winner, socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            path.unlink()
    finally:
        sys.setswitchinterval(interval)


KILLED = """
import os, signal, sys, trio_uring
from trio_uring._streams import unix as _unix
setattr(_unix, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
_unix._listen(os.fsencode(sys.argv[1]), 0o600, trio_uring.SocketOptions())
"""


@pytest.mark.parametrize("where", ["_make_way", "_settle_mode"])
async def test_a_server_that_is_killed_while_it_starts_is_in_nobodys_way(
    path: Path, where: str
) -> None:
    if where == "_make_way":
        bound(path).close()
    killed = await trio.run_process([sys.executable, "-c", KILLED, str(path), where], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(path.parent) == ["sock"]
    async with await open_one(path) as listener:
        await check_it_serves(listener, path)
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("why", ["held", "cannot be opened", "cannot be locked"])
async def test_a_directory_that_cannot_be_locked(
    path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that somebody else has locked is waited for, but not for ever."""
    bound(path).close()
    monkeypatch.setattr(_unix, "LOCK_SECONDS", 0.01)
    directory = os.open(path.parent, os.O_RDONLY)
    real_open = os.open

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "as NFS does")

    def deny(name: Any, *args: Any, **named: Any) -> int:
        if name == os.fsencode(path.parent):
            raise PermissionError(errno.EACCES, "no")
        return real_open(name, *args, **named)

    if why == "held":
        fcntl.flock(directory, fcntl.LOCK_EX)
    elif why == "cannot be locked":
        monkeypatch.setattr(fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(os, "open", deny)
    async with await open_one(path, mode=0o600) as listener:
        await check_it_serves(listener, path)
    os.close(directory)


def test_a_forked_child_does_not_keep_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same open directory until it ends, or executes another program."""
    kept: list[int] = []
    lock = _unix._lock

    def fork(fd: int) -> bool:
        kept.append(os.dup(fd))  # what a child has
        return lock(fd)

    monkeypatch.setattr(_unix, "_lock", fork)
    results: list[Any] = []
    start(path, results)
    with results[0]:
        monkeypatch.undo()
        directory = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(directory)
    os.close(kept[0])


@contextlib.contextmanager
def no_privileges() -> Iterator[Path]:
    """A directory of somebody's who is not root, as whom we go on."""
    with tempfile.TemporaryDirectory() as name:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(name, 0o700)


@pytest.mark.parametrize(
    ("mode", "error"), [(0o555, PermissionError), (0o000, PermissionError), (0o333, None)]
)
def test_what_the_directory_allows(mode: int, error: type[OSError] | None) -> None:
    """Where nothing may be written, the error is bind's own."""
    with no_privileges() as directory:
        path = directory / "sock"
        if error is None:
            bound(path).close()
        directory.chmod(mode)
        if error is None:
            _unix._listen(os.fsencode(path), 0o600, SocketOptions())[0].close()
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            return
        with pytest.raises(error) as ours:
            _unix._listen(os.fsencode(path), 0o600, SocketOptions())
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(error) as binds:
            sock.bind(str(path))
        assert (ours.value.errno, ours.value.filename) == (binds.value.errno, str(path))


def test_a_stale_file_that_may_not_be_removed() -> None:
    with no_privileges() as directory:
        path = directory / "sock"
        bound(path).close()
        directory.chmod(0o555)
        with pytest.raises(PermissionError) as caught:
            _unix._listen(os.fsencode(path), None, SocketOptions())
        assert caught.value.filename == str(path)
