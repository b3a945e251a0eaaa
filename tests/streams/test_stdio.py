"""The standard streams: every kind of descriptor that a shell gives, left as it was.

Rules: descriptors 0, 1 and 2 are replaced for the duration of a test and put back. What matters to
other processes (flags, and that they stay open) is checked on the descriptor itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import clog, closing, pattern, receive_all, until_blocked

from trio_uring import ReceiveStream, SendStream, open_stderr, open_stdin, open_stdout
from trio_uring._streams import stdio as _stdio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def replaced(fd: int, by: int) -> Iterator[None]:
    """`by` is the standard stream meanwhile, with the flags that it has at the beginning."""
    sys.stdout.flush()
    saved = os.dup(fd)
    os.dup2(by, fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        yield
        assert fcntl.fcntl(fd, fcntl.F_GETFL) == flags
        assert os.path.sameopenfile(fd, by)
    finally:
        os.dup2(saved, fd)
        os.close(saved)
        os.close(by)


def socket_pair() -> tuple[int, int]:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


def terminal() -> tuple[int, int]:
    """(our end, the other end), the other one's input not echoed and lines not translated."""
    other, ours = os.openpty()
    settings = tty.tcgetattr(ours)
    settings[1] &= ~tty.OPOST
    settings[3] &= ~tty.ECHO
    tty.tcsetattr(ours, tty.TCSANOW, settings)
    return ours, other


def read_pipe() -> tuple[int, int]:
    return os.pipe()


def write_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    return write, read


INPUTS = [
    pytest.param(read_pipe, id="pipe"),
    pytest.param(terminal, id="terminal"),
    pytest.param(socket_pair, id="socket"),
]
OUTPUTS = [
    pytest.param(write_pipe, id="pipe"),
    pytest.param(terminal, id="terminal"),
    pytest.param(socket_pair, id="socket"),
]
OPENERS = [(1, open_stdout), (2, open_stderr)]


# -- input


@pytest.mark.parametrize("make", INPUTS)
async def test_input(make: Callable[[], tuple[int, int]]) -> None:
    ours, other = make()
    with replaced(0, ours):
        stream = open_stdin()
        async with stream:
            assert type(stream) is ReceiveStream
            assert not os.get_inheritable(stream._lease.fd)
            os.write(other, b"at once\n")
            assert await stream.receive_some() == b"at once\n"
            got = []

            async def receive() -> None:
                got.append(await stream.receive_exactly(7))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await until_blocked(stream._lease.fd)
                os.write(other, b"blocked\n")
            assert got == [b"blocked"]
            assert await stream.receive_some() == b"\n"
            os.write(other, b"into\n")
            buffer = bytearray(9)
            assert await stream.receive_into(buffer) == 5
            assert buffer == b"into\n\0\0\0\0"
        os.write(other, b"for the next\n")
        assert os.read(0, 100) == b"for the next\n"  # descriptor 0 is open
    os.close(other)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("how", ["cancel", "close", "timeout"])
async def test_a_blocked_read_ends(make: Callable[[], tuple[int, int]], how: str) -> None:
    ours, other = make()
    with replaced(0, ours):
        async with open_stdin() as stream:
            await block_and_end(stream, how)
            if how != "close":  # nothing was eaten by the read that was cancelled
                os.write(other, b"later\n")
                assert await stream.receive_some() == b"later\n"
            else:
                os.write(other, b"later\n")
                assert os.read(0, 100) == b"later\n"
    os.close(other)


async def block_and_end(stream: ReceiveStream, how: str) -> None:
    woken = []

    async def receive() -> None:
        try:
            await stream.receive_some()
        except trio.ClosedResourceError:
            woken.append(how)

    if how == "timeout":
        with pytest.raises(trio.TooSlowError):
            await stream.receive_some(timeout=0.01)
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await until_blocked(stream._lease.fd)
        if how == "close":
            await stream.aclose()
        else:
            nursery.cancel_scope.cancel()
    assert woken == (["close"] if how == "close" else [])


async def test_a_terminal_gives_lines_and_ends_with_control_d() -> None:
    ours, other = terminal()
    with replaced(0, ours):
        async with open_stdin() as stream:
            os.write(other, b"half a line")
            with pytest.raises(trio.TooSlowError):
                await stream.receive_some(timeout=0.01)
            os.write(other, b", and the rest\nsecond\n")
            assert await stream.receive_some() == b"half a line, and the rest\n"
            assert await stream.receive_some() == b"second\n"
            os.write(other, b"\x04")
            assert await stream.receive_some() == b""
    os.close(other)


async def test_the_null_device() -> None:
    with replaced(0, os.open(os.devnull, os.O_RDONLY)):
        async with open_stdin() as stream:
            assert await receive_all(stream) == b""
    with replaced(1, os.open(os.devnull, os.O_WRONLY)):
        async with open_stdout() as sink:
            await sink.send_all([b"gone", b"x" * 2**20])
            assert sink.bytes_sent == 2**20 + 4


async def test_a_closed_pipe_ends() -> None:
    read, write = os.pipe()
    os.write(write, b"rest")
    os.close(write)
    with replaced(0, read):
        async with open_stdin() as stream:
            assert await receive_all(stream) == b"rest"


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 2**20 + 3])
async def test_a_file_as_input(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "file", pattern(size)
    await trio.Path(path).write_bytes(data)
    with replaced(0, os.open(path, os.O_RDONLY)):
        async with open_stdin() as stream:
            assert await receive_all(stream) == data
            assert await stream.receive_some() == b""


async def test_a_file_is_read_from_where_it_is(tmp_path: Path) -> None:
    """And what was read here is read: the position is shared with whoever has descriptor 0."""
    path = tmp_path / "file"
    await trio.Path(path).write_bytes(b"0123456789")
    with replaced(0, os.open(path, os.O_RDONLY)):
        os.lseek(0, 2, os.SEEK_SET)
        async with open_stdin() as stream:
            assert await stream.receive_some(3) == b"234"
            assert await stream.receive_into(bytearray(2)) == 2
        assert os.read(0, 100) == b"789"


# -- output


@pytest.mark.parametrize("make", OUTPUTS)
@pytest.mark.parametrize(("fd", "opener"), OPENERS)
async def test_output(
    fd: int, opener: Callable[[], SendStream], make: Callable[[], tuple[int, int]]
) -> None:
    ours, other = make()
    with replaced(fd, ours):
        async with opener() as stream:
            assert type(stream) is SendStream
            assert not os.get_inheritable(stream._lease.fd)
            await stream.send_all(b"one")
            await stream.send_all([b" two", bytearray(b" three")])
        os.write(fd, b" four")
    assert read_exactly(other, 18) == b"one two three four"
    os.close(other)


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(fd, count - len(data))
    return data


@pytest.mark.parametrize("make", OUTPUTS)
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_blocked_write_ends(make: Callable[[], tuple[int, int]], how: str) -> None:
    ours, other = make()
    with replaced(1, ours):
        stream = open_stdout()
        async with stream:
            clog(1)
            woken = []

            async def send() -> None:
                try:
                    await stream.send_all(b"x" * 2**17)
                except trio.ClosedResourceError:
                    woken.append("closed")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await until_blocked(stream._lease.fd)
                if how == "close":
                    await stream.aclose()
                else:
                    nursery.cancel_scope.cancel()
            assert woken == (["closed"] if how == "close" else [])
            # A terminal that takes no more of one write may take some of the next.
            assert stream.bytes_sent < 2**17
    os.close(other)


@pytest.mark.parametrize("how", ["cancel", "read"])
async def test_a_terminal_with_less_room_than_is_written(how: str) -> None:
    """It must not block the thread, whatever the kernel makes of a write to a terminal."""
    ours, other = terminal()
    data = pattern(2**17)
    with replaced(1, ours):
        async with open_stdout() as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                await until_blocked(stream._lease.fd)
                assert 0 < stream.bytes_sent < len(data)
                if how == "cancel":
                    nursery.cancel_scope.cancel()
                else:
                    got = b""
                    while len(got) < len(data):
                        got += await trio.to_thread.run_sync(os.read, other, 2**16)
                    assert got == data
    os.close(other)


async def test_a_terminal_that_may_not_be_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError

    ours, other = terminal()
    with replaced(0, ours), monkeypatch.context() as patched:
        patched.setattr(_stdio, "_reopen", refuse)
        async with open_stdin() as stream:
            await block_and_end(stream, "cancel")
            os.write(other, b"line\n")
            assert await stream.receive_some() == b"line\n"
            await block_and_end(stream, "close")
    os.close(other)


async def test_the_other_end_of_a_terminal() -> None:
    """Opening that anew would make another terminal."""
    ours, other = terminal()
    with replaced(0, other):
        async with open_stdin() as stream:
            os.write(ours, b"hello")
            assert await stream.receive_exactly(5) == b"hello"
    os.close(ours)


async def test_a_reader_that_went() -> None:
    write, read = write_pipe()
    os.close(read)
    with replaced(1, write):
        async with open_stdout() as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")


@pytest.mark.parametrize("append", [True, False])
async def test_a_file_as_output(tmp_path: Path, append: bool) -> None:
    path, data = tmp_path / "file", pattern(2**20 + 5)
    await trio.Path(path).write_bytes(b"before")
    with replaced(1, os.open(path, os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC))):
        os.write(1, b"<")
        async with open_stdout() as stream:
            await stream.send_all(data)
            await stream.send_all([b"1", b"2", b"3"])
            await stream.wait_send_all_might_not_block()
        os.write(1, b">")
    assert await trio.Path(path).read_bytes() == (b"before<" if append else b"<") + data + b"123>"


async def test_a_full_disk() -> None:
    with replaced(1, os.open("/dev/full", os.O_WRONLY)):
        async with open_stdout() as stream:
            with pytest.raises(trio.BrokenResourceError, match="No space left"):
                await stream.send_all(b"x")


# -- refused


async def test_a_directory(tmp_path: Path) -> None:
    with replaced(0, os.open(tmp_path, os.O_RDONLY)):
        with pytest.raises(IsADirectoryError):
            open_stdin()


async def test_a_standard_stream_that_is_closed() -> None:
    saved = os.dup(0)
    os.close(0)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            open_stdin()
    finally:
        os.dup2(saved, 0)
        os.close(saved)


# It opens the file first: trio imports ctypes, and Debian's libffi keeps a file open.
CLOSED = """
import errno, os, sys
opened = os.open(sys.argv[1], os.O_RDWR)
assert opened == int(sys.argv[2])
import trio_uring
try:
    getattr(trio_uring, sys.argv[3])()
except OSError as exc:
    assert exc.errno == errno.EBADF
    os.write(opened, str(exc).encode())
"""


@pytest.mark.parametrize(
    ("fd", "name", "opener"),
    [(0, "input", "open_stdin"), (1, "output", "open_stdout"), (2, "error", "open_stderr")],
)
async def test_a_process_that_was_started_without(
    tmp_path: Path, fd: int, name: str, opener: str
) -> None:
    """Its number is then that of the first file that the program opens."""
    path = tmp_path / "file"
    await trio.Path(path).touch()
    program = [sys.executable, "-c", CLOSED, str(path), str(fd), opener]
    await trio.run_process(["sh", "-c", f'"$@" {fd}>&-', "sh", *program])
    text = await trio.Path(path).read_text()
    assert text.startswith(
        f"[Errno 9] Bad file descriptor: this process was started without standard {name}"
    )


async def test_streams_of_one_descriptor_are_independent() -> None:
    ours, other = read_pipe()
    with replaced(0, ours):
        first, second = open_stdin(), open_stdin()
        async with closing(first, second):
            await first.aclose()
            os.write(other, b"x")
            assert await second.receive_some() == b"x"
    os.close(other)


# -- a whole program


PROGRAM = """
import trio, trio_uring
async def main():
    async with trio_uring.open_stdin() as source, trio_uring.open_stdout() as sink:
        async for chunk in source:
            await sink.send_all(chunk)
trio.run(main)
"""


async def test_a_filter_in_a_pipeline(tmp_path: Path) -> None:
    path, data = tmp_path / "in", pattern(300_000)
    await trio.Path(path).write_bytes(data)
    program = [sys.executable, "-c", PROGRAM]
    with open(path, "rb") as file:  # noqa: ASYNC230
        done: Any = await trio.run_process(program, stdin=file, capture_stdout=True)
    assert done.stdout == data
    done = await trio.run_process(program, stdin=data, capture_stdout=True)
    assert done.stdout == data
