"""io_uring is refused, or does not work: streams wait by readiness, and a message says why.

Rules of this file: the message also says what to change. The refusal is the kernel's own (a seccomp
filter, a resource limit), in a child process. The child asks for "auto", whatever the tests run on.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

import pytest
import trio
import trio.testing
from support.child import expect_log, in_child
from support.fallback import asked_for, auto, check_sentence, falls_back, works
from support.seccomp import IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, deny

import trio_uring
from trio_uring import _errors
from trio_uring._driver import backend as _backend
from trio_uring._driver import run as _driver
from trio_uring._driver import trial as _trial
from trio_uring._ring import uring as _ring
from trio_uring._ring.op import Opcode

SAYS_WHY = {
    "EPERM": "seccomp",
    "EACCES": "security module",
    "ENOSYS": "no io_uring",
    "EOPNOTSUPP": "not supported",
    "ENOMEM": "RLIMIT_MEMLOCK",
    "EINVAL": "a seccomp filter answers in its place",
    "EMFILE": "RLIMIT_NOFILE",
    "ENFILE": "fs.file-max",
    "ENXIO": "no io_uring ring can be had",
}


@pytest.mark.parametrize("name", list(SAYS_WHY))
@in_child()
def test_setup_is_denied(name: str) -> None:
    # A kernel that counts rings, and a process for which the limit is.
    _errors._release, _errors.lifts_memlock = lambda: "5.11.0", lambda: False
    _errors._limit = {"RLIMIT_MEMLOCK": 65536}.get  # type: ignore[assignment]
    code = getattr(errno, name)
    told = auto()
    deny(IO_URING_SETUP, code)
    for _ in range(3):  # told once, whatever the number of runs
        trio.run(falls_back, SAYS_WHY[name])
    assert told.messages == [f"trio_uring waits by readiness: {trio_uring.backend_info().reason}"]
    check_sentence(told.messages[0], errno.errorcode[code], SAYS_WHY[name])
    with pytest.raises(trio_uring.RingUnavailableError) as caught:
        trio.run(asked_for)
    assert caught.value.errno == code
    check_sentence(
        str(caught.value), errno.errorcode[code], SAYS_WHY[name], "asked for by this run's argument"
    )
    os.environ[_backend.VARIABLE] = "uring"
    with pytest.raises(trio_uring.RingUnavailableError, match="TRIO_URING_BACKEND"):
        trio_uring.backend_info()
    assert len(told.messages) == 1


@in_child()
def test_an_enabled_run_that_falls_back_warns_once() -> None:
    told = auto()
    deny(IO_URING_SETUP, errno.EPERM)
    trio.run(falls_back, "seccomp")
    for _ in range(3):
        trio_uring.run(falls_back, "seccomp")
        trio.run(enables_later)
    told_first, warning = told.records
    assert (told_first.levelname, warning.levelname) == ("INFO", "WARNING")
    reason = str(trio_uring.backend_info().reason)
    check_sentence(warning.getMessage(), reason, "Nobody asked for that", "TRIO_URING_BACKEND=")
    assert expect_log(reason) == 1


@in_child()
def test_a_run_that_is_enabled_after_it_fell_back_warns() -> None:
    told = auto()
    deny(IO_URING_SETUP, errno.EPERM)
    trio.run(enables_later)
    assert [record.levelname for record in told.records] == ["INFO", "WARNING"]
    expect_log("seccomp")


async def enables_later() -> None:
    await falls_back("seccomp")
    trio_uring.enable()


@pytest.mark.parametrize("asked", ["readiness", "epoll", "off"])
@in_child()
def test_who_asked_for_readiness_is_not_warned(asked: str) -> None:
    told = auto()
    deny(IO_URING_SETUP, errno.EPERM)
    trio_uring.run(works, backend=asked)
    os.environ[_backend.VARIABLE] = asked
    trio_uring.run(works)
    assert not trio_uring.backend_info().fell_back
    assert not told.records


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EINVAL"])
@in_child()
def test_register_is_denied(name: str) -> None:
    """The ring itself opens; the probe of its opcodes does not."""
    auto()
    deny(IO_URING_REGISTER, getattr(errno, name))
    trio.run(falls_back, "probe")


@in_child()
def test_enter_is_denied() -> None:
    """The ring opens and is useless: the self-test sees it."""
    auto()
    deny(IO_URING_ENTER, errno.EPERM)
    trio.run(falls_back, "io_uring_enter failed with EPERM")


def impatient() -> None:
    """What is tried next fails, and no longer than it has to. What came before took its time."""
    _trial.TRIAL_SECONDS = 0.05  # type: ignore[misc]


class Silent(_ring.UringRing):
    """Its descriptor never tells of a completion."""

    def fileno(self) -> int:
        return self.silent.fileno()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.silent, self.other = socket.socketpair()
        super().__init__("coop", *arguments[1:], **options)
        impatient()

    def close(self) -> bool:
        self.silent.close()
        self.other.close()
        return super().close()


class Sleepy(_ring.UringRing):
    """Who waits in it is woken by nothing but the time."""

    submitted = 0

    def submit(self, op: Any) -> bool:
        self.submitted += 1
        # The first one is for an epoll that watches the ring, if one can.
        if self.submitted == 2 or "DEFER_TASKRUN" in self.info.setup_flags:
            impatient()
        return super().submit(op)

    def turn(self, timeout: float, done: Any) -> bool:
        time.sleep(timeout)
        return super().turn(0, done)


class Blind(_ring.UringRing):
    """It does not see that an epoll becomes readable."""

    def submit(self, op: Any) -> bool:
        if op.opcode == Opcode.POLL_ADD:
            op.flags = 0
            impatient()
        return super().submit(op)


class Garbled(_ring.UringRing):
    """What it receives is wrong."""

    def _take(self, count: int, done: Any) -> None:
        super()._take(count, done)
        for op in done:
            op.chunk = b"!"


DEFECTIVE = {
    "Silent": (Silent, "a byte that was sent did not wake an epoll that watches the ring"),
    "Sleepy": (Sleepy, "a byte that was sent did not wake io_uring_enter"),
    "Blind": (Blind, "an epoll that the ring watches did not wake it"),
    "Garbled": (Garbled, "a byte that was sent came as another"),
}


@pytest.mark.uring_only("a kernel's ring that does not work")
@pytest.mark.parametrize("name", list(DEFECTIVE))
@in_child()
def test_a_ring_that_does_not_work_is_not_used(name: str) -> None:
    told = auto()
    defective, says = DEFECTIVE[name]
    opened = []

    def open_one(*arguments: Any, **options: Any) -> _ring.UringRing:
        opened.append(arguments[0])
        _trial.TRIAL_SECONDS = 30  # type: ignore[misc]
        return defective(*arguments, **options)

    _backend.UringRing = open_one  # type: ignore[assignment, misc]
    for _ in range(3):
        trio.run(falls_back, f"self-test failed: {says}")
    assert len(opened) == len(set(opened)), (
        "the self-test is made once in a process for a set of flags"
    )
    assert len(told.messages) == 1
    with pytest.raises(trio_uring.RingUnavailableError, match="self-test failed"):
        trio.run(asked_for)


@pytest.mark.uring_only("it is about a ring of the kernel's that works")
@in_child()
def test_where_io_uring_works_it_is_used_and_nothing_is_logged() -> None:
    told = auto()
    for _ in range(2):
        trio.run(works)
        info = trio_uring.backend_info()
        assert (info.backend, info.reason, info.requested) == ("uring", None, "auto")
        assert "CLAMP" in info.setup_flags
    assert not told.messages


@pytest.mark.parametrize("name", ["readiness", "epoll"])
@pytest.mark.parametrize("asked_by", ["environment", "argument"])
@in_child()
def test_readiness_is_asked_for(asked_by: str, name: str) -> None:
    told = auto()

    async def main() -> None:
        if asked_by == "argument":
            _driver.request_backend(name)
        await works()
        info = trio_uring.backend_info()
        assert (info.backend, info.requested) == ("readiness", "readiness")
        assert info.reason is not None
        assert info.reason.startswith("readiness is asked for by ")
        assert info.reason.endswith(
            "TRIO_URING_BACKEND" if asked_by == "environment" else "this run's argument"
        )
        assert trio_uring.current_statistics().backend == "readiness"

    # The argument goes first.
    os.environ[_backend.VARIABLE] = name if asked_by == "environment" else "uring"
    trio.run(main)
    assert _backend.open_ring(name)[0] is None
    assert not told.messages


@in_child()
def test_what_is_no_backend_is_refused_with_those_that_are() -> None:
    auto()

    async def main() -> None:
        _driver.requested.set("kqueue")
        with pytest.raises(
            ValueError, match=r"this run's argument is 'kqueue'.*'uring', 'readiness', 'auto'"
        ):
            trio_uring.current_statistics()
        with pytest.raises(ValueError, match="argument"):
            trio_uring.backend_info()

    trio.run(main)
    os.environ[_backend.VARIABLE] = "iouring"
    with pytest.raises(
        ValueError, match=r"TRIO_URING_BACKEND is 'iouring'.*'uring', 'readiness', 'auto'"
    ):
        trio_uring.backend_info()
    os.environ[_backend.VARIABLE] = ""
    trio_uring.backend_info()


async def backend_of_a_run() -> str:
    await works()
    return trio_uring.current_statistics().backend


@in_child()
def test_an_enabled_run_asks_for_its_backend() -> None:
    os.environ[_backend.VARIABLE] = "uring"
    assert trio_uring.run(backend_of_a_run, backend="epoll") == "readiness"
    assert trio_uring.run(backend_of_a_run, backend="readiness") == "readiness"

    async def twice() -> None:
        trio_uring.enable("epoll")
        assert await backend_of_a_run() == "readiness"
        _driver.request_backend("auto")
        _driver.request_backend("epoll")
        with pytest.raises(RuntimeError, match="already, on readiness: ask for uring before"):
            _driver.request_backend("uring")

    trio.run(twice)
    with pytest.raises(ValueError, match="'kqueue'"):
        trio_uring.Enable("kqueue")
    deny(IO_URING_SETUP, errno.EPERM)
    with pytest.raises(trio_uring.RingUnavailableError, match="EPERM"):
        trio_uring.run(works, backend="uring")
