"""open_process: children whose pipes are our streams.

Rules: every child is waited for, and ends by itself when its pipes do.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import clog, open_descriptors, pattern, receive_all, until_blocked

from trio_uring import ReceiveStream, SendStream, open_process

if TYPE_CHECKING:
    from pathlib import Path

PIPE = subprocess.PIPE
CAT = ["cat"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def finish(process: trio.Process) -> int:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            await stream.aclose()
    return await process.wait()


def sending(process: trio.Process) -> SendStream:
    assert isinstance(process.stdin, SendStream)
    return process.stdin


def receiving(process: trio.Process, name: str = "stdout") -> ReceiveStream:
    stream = getattr(process, name)
    assert isinstance(stream, ReceiveStream)
    return stream


async def test_more_than_the_pipes_hold() -> None:
    data = pattern(2**20)
    process = await open_process(CAT, stdin=PIPE, stdout=PIPE)

    async def feed() -> None:
        await sending(process).send_all([data[:1000], bytearray(data[1000:])])
        await sending(process).aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert await receive_all(receiving(process)) == data
    assert await finish(process) == 0


async def test_all_that_ours_can() -> None:
    process = await open_process(CAT, stdin=PIPE, stdout=PIPE)
    await sending(process).send_all([b"12", b"345"])
    assert await receiving(process).receive_exactly(5, timeout=20) == b"12345"
    with pytest.raises(trio.TooSlowError):
        await receiving(process).receive_some(timeout=0)
    assert await finish(process) == 0


async def test_stdio_is_a_stream() -> None:
    process = await open_process(CAT, stdin=PIPE, stdout=PIPE)
    assert process.stdio is not None
    async with process.stdio as stdio:
        await stdio.send_all(b"x")
        assert await stdio.receive_some() == b"x"
        await stdio.send_eof()
        assert await stdio.receive_some() == b""
    assert await process.wait() == 0


async def test_only_what_was_asked_for(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+b") as file:  # noqa: ASYNC230
        process = await open_process(["echo", "hi"], stdin=subprocess.DEVNULL, stdout=file)
        assert (process.stdin, process.stdout, process.stderr, process.stdio) == (
            None,
            None,
            None,
            None,
        )
        assert await finish(process) == 0
        file.seek(0)
        assert file.read() == b"hi\n"
        process = await open_process(["echo", "more"], stdout=file.fileno(), stderr=PIPE)
        assert process.stderr is not None
        assert process.stdout is None
        assert await finish(process) == 0


async def test_standard_error() -> None:
    code = "import sys; sys.stdout.write('out'); sys.stdout.flush(); sys.stderr.write('err')"
    process = await open_process(python(code), stdout=PIPE, stderr=PIPE)
    assert await receive_all(receiving(process)) == b"out"
    assert await receive_all(receiving(process, "stderr")) == b"err"
    assert process.stdio is None
    assert await finish(process) == 0
    process = await open_process(python(code), stdout=PIPE, stderr=subprocess.STDOUT)
    assert await receive_all(receiving(process)) == b"outerr"
    assert process.stderr is None
    assert await finish(process) == 0


async def test_options_are_passed_on(tmp_path: Path) -> None:
    process = await open_process(
        "pwd; echo $SAY", shell=True, cwd=tmp_path, env={"SAY": "this"}, stdout=PIPE
    )
    assert await receive_all(receiving(process)) == f"{tmp_path}\nthis\n".encode()
    assert await finish(process) == 0


async def test_no_end_of_a_pipe_is_nonblocking_or_inherited() -> None:
    code = (
        "import os; print([os.get_blocking(fd) for fd in (0, 1, 2)], "
        "sorted(os.listdir('/proc/self/fd'))[:-1])"
    )
    process = await open_process(python(code), stdin=PIPE, stdout=PIPE, stderr=PIPE)
    for stream in (sending(process), receiving(process), receiving(process, "stderr")):
        assert not fcntl.fcntl(stream._lease.fd, fcntl.F_GETFL) & os.O_NONBLOCK
        assert not os.get_inheritable(stream._lease.fd)
    assert await receive_all(receiving(process)) == b"[True, True, True] ['0', '1', '2']\n"
    assert await finish(process) == 0


async def test_the_childs_ends_are_closed_here() -> None:
    before = set(open_descriptors())
    process = await open_process(CAT, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    new = {
        fd
        for fd, what in open_descriptors().items()
        if fd not in before and what.startswith("pipe:")
    }
    assert new == {
        end._lease.fd
        for end in (sending(process), receiving(process), receiving(process, "stderr"))
    }
    assert await finish(process) == 0


async def test_a_child_that_closed_its_input() -> None:
    process = await open_process(["true"], stdin=PIPE)
    await process.wait()
    with pytest.raises(trio.BrokenResourceError):
        await sending(process).send_all(b"x")
    await finish(process)


@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_blocked(direction: str, how: str) -> None:
    code = "import signal; signal.pause()"
    process = await open_process(python(code), stdin=PIPE, stdout=PIPE)
    stream: Any = process.stdin if direction == "send" else process.stdout
    if direction == "send":
        clog(stream._lease.fd)
    woken = []

    async def block() -> None:
        try:
            await (stream.send_all(b"x") if direction == "send" else stream.receive_some())
        except trio.ClosedResourceError:
            woken.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        await until_blocked(stream._lease.fd)
        if how == "close":
            await stream.aclose()
        else:
            nursery.cancel_scope.cancel()
    assert woken == (["closed"] if how == "close" else [])
    process.kill()
    assert await finish(process) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (["/does/not/exist"], {}, FileNotFoundError),
        ("a string", {}, TypeError),
        (CAT, {"shell": True}, TypeError),
        (CAT, {"text": True}, TypeError),
        (CAT, {"no_such_option": 1}, TypeError),
    ],
)
async def test_when_it_cannot_start(command: Any, options: Any, error: type[Exception]) -> None:
    before = open_descriptors()
    with pytest.raises(error):
        await open_process(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)
    assert open_descriptors().keys() == before.keys()


async def test_cancelled_before_it_begins() -> None:
    before = open_descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await open_process(CAT, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert open_descriptors().keys() == before.keys()


async def test_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, made = open_descriptors(), os.pipe, []

    def pipe() -> tuple[int, int]:
        if made:
            raise OSError(24, "too many")
        made.append(real())
        return made[0]

    monkeypatch.setattr(os, "pipe", pipe)
    with pytest.raises(OSError, match="too many"):
        await open_process(CAT, stdin=PIPE, stdout=PIPE)
    assert open_descriptors().keys() == before.keys()
