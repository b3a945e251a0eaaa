"""Unix listeners: who owns the file, who may connect, and what is left afterwards.

Rules: other servers are plain sockets of this process; permissions are read from the file, since
root may do everything.
"""

# ruff: noqa: ASYNC240
from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.streams import closing, until
from support.unix import bound, check_it_serves, open_one

from trio_uring import (
    SocketListener,
    SocketOptions,
    SocketStream,
    open_unix_listeners,
    open_unix_socket,
    serve_unix,
)
from trio_uring._streams import unix as _unix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sock"


# -- opening and closing


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
async def test_paths_of_all_kinds(path: Path, kind: Callable[[Path], Any]) -> None:
    listener = await open_one(kind(path))
    async with listener:
        assert type(listener).__mro__[1] is SocketListener
        assert listener.socket.getsockname() == str(path)
        assert not os.get_inheritable(listener.socket.fileno())
        await check_it_serves(listener, path)
    assert not path.exists()
    assert not os.listdir(path.parent)


async def test_a_relative_path_is_that_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = await open_one("sock")
    monkeypatch.chdir("/")
    await listener.aclose()
    assert not (tmp_path / "sock").exists()


async def test_closing_in_a_cancelled_scope(path: Path) -> None:
    listener = await open_one(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await listener.aclose()
    assert not path.exists()
    assert listener.socket.fileno() == -1


async def test_closing_wakes_who_accepts(path: Path) -> None:
    listener = await open_one(path)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await listener.aclose()


async def test_cancelled_before_it_begins(path: Path) -> None:
    for name in (str(path), "\0trio-uring-test-cancelled"):
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await open_unix_listeners(name)
    assert not path.exists()


async def test_cancelled_in_its_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be: what it opened is given to the caller all the same."""
    inside, go_on = threading.Event(), threading.Event()
    bind = _unix._bind

    def slow(*args: Any) -> None:
        inside.set()
        go_on.wait(20)
        bind(*args)

    monkeypatch.setattr(_unix, "_bind", slow)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            opened: list[SocketListener] = []

            async def open_it() -> None:
                opened.append(await open_one(path))

            nursery.start_soon(open_it)
            await until(inside.is_set, "the thread runs")
            scope.cancel()
            go_on.set()
    assert path.exists()
    await trio.aclose_forcefully(opened[0])
    assert not path.exists()


@pytest.mark.cpython_only("PyPy's listen(0) takes one connection more")
async def test_the_backlog(path: Path) -> None:
    listener = await open_one(path, backlog=0)
    async with listener, await open_unix_socket(path):
        with pytest.raises(BlockingIOError):
            await open_unix_socket(path)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("", {}, ValueError), ("x", {"mode": -1}, ValueError), ("x", {"mode": 0o1000}, ValueError),
        ("x", {"mode": "600"}, TypeError), ("x", {"backlog": "5"}, TypeError), (5, {}, TypeError),
        (None, {}, TypeError), ("a\0b", {}, ValueError), ("\0a", {"mode": 0o600}, ValueError),
    ],
)  # fmt: skip
async def test_wrong_arguments(
    name: Any, options: Any, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        await open_unix_listeners(
            str(tmp_path / name) if name and name != "\0a" and isinstance(name, str) else name,
            **options,
        )
    assert not os.listdir(tmp_path)


async def test_errors_tell_the_path(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "sock"
    with pytest.raises(FileNotFoundError) as caught:
        await open_unix_listeners(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", ["x" * 120, "\0" + "x" * 120])
async def test_a_path_that_is_too_long_is_told_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("\0") and sys.platform != "linux":
        pytest.skip("abstract names are Linux's")
    monkeypatch.chdir(tmp_path)
    says = "too long: 120 bytes, and a Unix socket may have 10[37]: choose a shorter path"
    with pytest.raises(OSError, match=says) as caught:
        await open_unix_listeners(name)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, name)
    longest = "\0"[: name.startswith("\0")] + "x" * (107 if sys.platform == "linux" else 103)
    [listener] = await open_unix_listeners(longest)
    await listener.aclose()
    with pytest.raises(OSError, match="choose a shorter path"):
        await open_unix_listeners(longest + "x")
    assert not os.listdir(tmp_path)


# -- closing


async def test_another_ones_file_is_left_at_close(path: Path) -> None:
    listener = await open_one(path)
    path.unlink()
    other = bound(path)
    await listener.aclose()
    with other:
        assert path.is_socket()


async def test_closing_when_the_file_is_gone(path: Path) -> None:
    listener = await open_one(path)
    path.unlink()
    await listener.aclose()


async def test_the_file_goes_before_the_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nobody can take the file for a stale one in between."""
    listener = await open_one(path)
    unlink, open_then = os.unlink, []

    def look(name: bytes) -> None:
        open_then.append(listener.socket.fileno())
        unlink(name)

    monkeypatch.setattr(os, "unlink", look)
    await listener.aclose()
    assert open_then != [-1]


async def test_a_forked_child_leaves_the_file_to_its_parent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = await open_one(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        await listener.aclose()
    assert path.exists()


async def test_nothing_is_left_when_it_fails_after_bind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(_unix, "_settle_mode", fail)
    with pytest.raises(PermissionError):
        await open_unix_listeners(path)
    assert not path.exists()


# -- permissions


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [None, 0o600, 0o660, 0o666, 0o777, 0])
async def test_the_mode(
    path: Path, umask: Callable[[int], int], mask: int, mode: int | None
) -> None:
    umask(mask)
    async with await open_one(path, mode=mode):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o777 & ~mask if mode is None else mode)
        assert umask(mask) == mask


async def test_there_is_no_moment_in_which_others_could_connect(
    path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after bind the file has no more permissions than asked for, and nobody can connect
    yet."""
    umask(0o002)
    seen = []
    settle = _unix._settle_mode

    def look(name: bytes, mode: int | None) -> tuple[int, int]:
        seen.append(stat.S_IMODE(os.lstat(name).st_mode))
        with socket.socket(socket.AF_UNIX) as other, pytest.raises(ConnectionRefusedError):
            other.connect(name)
        return settle(name, mode)

    monkeypatch.setattr(_unix, "_settle_mode", look)
    async with await open_one(path, mode=0o606):
        assert seen == [0o604]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o606


async def test_the_target_of_a_link_in_its_place_keeps_its_mode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = path.with_name("victim")
    bound(victim).close()
    victim.chmod(0o600)
    settle = _unix._settle_mode

    def swap(name: bytes, mode: int | None) -> tuple[int, int]:
        os.unlink(name)
        os.symlink(victim, name)
        return settle(name, mode)

    monkeypatch.setattr(_unix, "_settle_mode", swap)
    async with await open_one(path, mode=0o666):
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a chroot, with a C library that needs /proc, too, for what it could not ask the
    kernel."""
    chmod = os.chmod

    def without(name: Any, mode: int, *, follow_symlinks: bool = True, **named: Any) -> None:
        if "/proc" in os.fsdecode(name):
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        if not follow_symlinks:
            raise NotImplementedError
        chmod(name, mode, **named)

    monkeypatch.setattr(os, "chmod", without)


@pytest.mark.usefixtures("no_proc")
async def test_the_mode_without_proc(path: Path, umask: Callable[[int], int]) -> None:
    umask(0o077)
    async with await open_one(path, mode=0o666):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o666


@pytest.mark.usefixtures("no_proc")
async def test_without_proc_and_where_others_could_put_a_link(
    path: Path, umask: Callable[[int], int]
) -> None:
    """A mode that the umask takes nothing of needs no second step; and a sticky directory is
    safe."""
    umask(0o077)
    path.parent.chmod(0o770)
    with pytest.raises(PermissionError, match="without /proc") as caught:
        await open_unix_listeners(path, mode=0o666)
    assert caught.value.filename == str(path)
    assert not path.exists()
    async with await open_one(path, mode=0o600):
        pass
    path.parent.chmod(0o1777)
    async with await open_one(path, mode=0o666):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o666


async def test_without_proc_and_with_a_new_kernel(
    path: Path, umask: Callable[[int], int], no_proc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the directory does not matter."""
    umask(0o077)
    path.parent.chmod(0o770)
    asked: list[Any] = []
    monkeypatch.setattr(_unix.os, "chmod", lambda *args, **named: asked.append((args, named)))
    monkeypatch.setattr(_unix, "_settle_mode", lambda name, mode: _unix._chmod_by_name(name, mode))
    with _unix._listen(os.fsencode(path), 0o666, SocketOptions())[0]:
        [((name, mode), named)] = asked
    assert (name, mode, named["follow_symlinks"]) == (b"sock", 0o666, False)


# -- abstract names


@pytest.mark.parametrize("kind", [str, str.encode])
async def test_abstract_names(kind: Callable[[str], Any]) -> None:
    name = kind(f"\0trio-uring-test-{os.getpid()}")
    async with await open_one(name) as listener:
        await check_it_serves(listener, name)
        with pytest.raises(OSError, match="in use") as caught:
            await open_unix_listeners(name)
        assert caught.value.errno == errno.EADDRINUSE
    async with await open_one(name):
        pass


# -- serving


async def test_serve_unix(path: Path) -> None:
    async def echo(stream: SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    bound(path).close()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(serve_unix, echo, path, mode=0o600, backlog=5))
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        for _ in range(3):
            async with await open_unix_socket(path) as client:
                await client.send_all(b"ping")
                assert await client.receive_exactly(4) == b"ping"
        nursery.cancel_scope.cancel()
    assert not path.exists()
    assert listener.socket.fileno() == -1


async def test_serve_unix_with_handlers_elsewhere(path: Path) -> None:
    async def greet(stream: SocketStream) -> None:
        await stream.send_all(b"hi")
        await stream.receive_some()

    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_unix, greet, path, handler_nursery=handlers))
            client = await open_unix_socket(path)
            await client.receive_exactly(2)
            nursery.cancel_scope.cancel()
        async with closing(client):
            assert handlers.child_tasks
            await client.send_all(b"x")
