"""io_uring is refused, or there is too little of something for it: streams run on epoll, and a sentence says why and what to
change.

Rules of this file: the refusal is the kernel's own (a seccomp filter, a resource limit), in a child process. The child asks for
"auto", whatever the tests run on.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  # nobody, whom a test becomes, may not be able to read it
import errno
import logging
import os
import resource
import socket
from typing import Any

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring import _backend, _contract, _driver, _ring
from trio_uring._poll_ring import PollRing

from .child import in_child, open_fds
from .seccomp import IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, deny

SAYS_WHY = {
    "EPERM": "seccomp",
    "EACCES": "security module",
    "ENOSYS": "no io_uring",
    "EOPNOTSUPP": "not supported",
    "ENOMEM": "RLIMIT_MEMLOCK",
    "EINVAL": "too old",
    "EMFILE": "RLIMIT_NOFILE",
    "ENFILE": "fs.file-max",
    "ENXIO": "no io_uring ring can be had",
}


class Told(logging.Handler):
    """What is logged at INFO."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        logger = logging.getLogger("trio_uring")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


async def works() -> None:
    """Connects and accepts, sends a list, receives, waits and is cancelled."""
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    left = await trio_uring.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    async with left, await listener.accept() as right, listener:
        with trio.move_on_after(0.01) as scope:
            await right.receive_some()
        assert scope.cancelled_caught
        await left.send_all([b"wor", b"ks"])
        assert await right.receive_exactly(5) == b"works"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, bytes(2**24))
            assert len(await right.receive_exactly(2**24)) == 2**24


async def falls_back(says: str) -> None:
    chosen = trio_uring.backend_info()
    await works()
    assert trio_uring.backend_info() == chosen
    assert (chosen.backend, chosen.requested, chosen.setup_flags) == ("epoll", "auto", ())
    check_sentence(chosen.reason, says)
    statistics = trio_uring.current_statistics()
    assert (statistics.backend, statistics.in_flight, statistics.rescued) == ("epoll", 0, 0)


async def asked_for() -> None:
    _driver.requested.set("uring")
    ours, theirs = socket.socketpair()
    with theirs:
        stream = trio_uring.SocketStream(ours)
        try:
            await stream.send_all(b"x")
        finally:
            with pytest.raises(trio_uring.RingUnavailableError):
                trio_uring.current_statistics()
            await stream.aclose()


def check_sentence(text: str | None, *says: str) -> None:
    assert text is not None
    for each in says:
        assert each in text, text
    assert len(text.split()) > 6, text


def auto() -> Told:
    """This process asks for "auto" and has not looked at io_uring yet."""
    os.environ.pop(_backend.VARIABLE, None)
    _backend._Memory.tested = False
    return Told()


@pytest.mark.parametrize("name", list(SAYS_WHY))
@in_child()
def test_setup_is_denied(name: str) -> None:
    code = getattr(errno, name)
    told = auto()
    deny(IO_URING_SETUP, code)
    for _ in range(3):  # told once, whatever the number of runs
        trio.run(falls_back, SAYS_WHY[name])
    assert told.messages == [f"trio_uring runs on epoll: {trio_uring.backend_info().reason}"]
    check_sentence(told.messages[0], errno.errorcode[code], SAYS_WHY[name])
    with pytest.raises(trio_uring.RingUnavailableError) as caught:
        trio.run(asked_for)
    assert caught.value.errno == code
    check_sentence(str(caught.value), errno.errorcode[code], SAYS_WHY[name], "asked for by this run's argument")
    os.environ[_backend.VARIABLE] = "uring"
    with pytest.raises(trio_uring.RingUnavailableError, match="TRIO_URING_BACKEND"):
        trio_uring.backend_info()
    assert len(told.messages) == 1


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


class Silent(_ring.UringRing):
    """Its descriptor never tells of a completion."""

    def fileno(self) -> int:
        return self.silent.fileno()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.silent, self.other = socket.socketpair()
        super().__init__(*arguments, **options)
        opened.append(self)


class Garbled(_ring.UringRing):
    """What it receives is wrong."""

    def drain(self, done: Any) -> None:
        super().drain(done)
        for op in done:
            op.chunk = b"!"
            op.buffer = bytearray(b"!")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, provide_buffers=True)
        opened.append(self)


opened: list[Any] = []


@pytest.mark.uring_only("a kernel's ring that does not work")
@pytest.mark.parametrize("name", ["Silent", "Garbled"])
@in_child()
def test_a_ring_that_does_not_work_is_not_used(name: str) -> None:
    told = auto()
    _backend.SELF_TEST_SECONDS = 0.05  # type: ignore[misc]
    _backend.UringRing = globals()[name]  # type: ignore[misc]
    for _ in range(3):
        trio.run(falls_back, "self-test failed")
    assert len(opened) == 1, "the self-test is made once in a process"
    assert len(told.messages) == 1
    with pytest.raises(trio_uring.RingUnavailableError, match="self-test failed"):
        trio.run(asked_for)
    for ring in opened:
        assert ring.close()
        if name == "Silent":
            ring.silent.close()
            ring.other.close()


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


@pytest.mark.parametrize("asked_by", ["environment", "argument"])
@in_child()
def test_epoll_is_asked_for(asked_by: str) -> None:
    told = auto()

    async def main() -> None:
        if asked_by == "argument":
            _driver.requested.set("epoll")
        await works()
        info = trio_uring.backend_info()
        assert (info.backend, info.requested) == ("epoll", "epoll")
        assert info.reason is not None
        assert info.reason.endswith("TRIO_URING_BACKEND" if asked_by == "environment" else "this run's argument")
        assert isinstance(_driver.current_driver().ring, PollRing)

    os.environ[_backend.VARIABLE] = "epoll" if asked_by == "environment" else "uring"  # the argument goes first
    trio.run(main)
    assert not told.messages


@in_child()
def test_what_is_no_backend_is_refused_with_those_that_are() -> None:
    auto()

    async def main() -> None:
        _driver.requested.set("kqueue")
        with pytest.raises(ValueError, match=r"this run's argument is 'kqueue'.*'uring', 'epoll', 'auto'"):
            trio_uring.current_statistics()
        with pytest.raises(ValueError, match="argument"):
            trio_uring.backend_info()

    trio.run(main)
    os.environ[_backend.VARIABLE] = "iouring"
    with pytest.raises(ValueError, match=r"TRIO_URING_BACKEND is 'iouring'.*'uring', 'epoll', 'auto'"):
        trio_uring.backend_info()
    os.environ[_backend.VARIABLE] = ""
    trio_uring.backend_info()


@pytest.mark.parametrize("free", range(6))
@in_child()
def test_few_descriptors_are_free(free: int) -> None:
    """Whichever descriptor is refused (a ring, its timer, the self-test's): a sentence, never a crash of trio."""
    auto()

    async def main() -> None:
        ours, theirs = socket.socketpair()
        stream = trio_uring.SocketStream(ours)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1 + free, hard))
        theirs.send(b"x")
        try:
            assert await stream.receive_some() == b"x"
        except trio_uring.RingUnavailableError as exc:
            refusals.append(exc)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await stream.aclose()
        theirs.close()

    refusals: list[OSError] = []
    trio.run(main)
    print(f"{free} free: {refusals}")
    if free == 0:
        assert refusals, "a ring cannot be had without a descriptor"
    for exc in refusals:
        check_sentence(str(exc), "RLIMIT_NOFILE", "EMFILE")
    trio.run(works)


def become_nobody(memlock: int) -> None:
    """No CAP_IPC_LOCK any more, which would lift the limit."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is readable again
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))


@in_child()
def test_no_locked_memory_is_allowed() -> None:
    auto()
    become_nobody(0)
    try:
        ring = _ring.UringRing()
    except trio_uring.RingUnavailableError:
        for _ in range(10):  # the kernel is not asked again each time: it would take a while to say no
            trio.run(falls_back, "RLIMIT_MEMLOCK")
    else:
        # A kernel that charges rings to the memory controller instead: only then may it work.
        assert ring.info.sq_entries == _contract.SQ_ENTRIES
        ring.close()
        trio.run(works)


@pytest.mark.parametrize("kib", [64, 128, 256])
@in_child()
def test_little_locked_memory_is_allowed(kib: int) -> None:
    """The ring steps down until it fits; run after run, though the kernel gives locked memory back only after a while."""
    auto()
    become_nobody(kib * 1024)
    for run in range(30):
        print(f"run {run}", flush=True)
        trio.run(works)


async def backend_of_a_run() -> str:
    await works()
    return trio_uring.current_statistics().backend


@in_child()
def test_an_enabled_run_asks_for_its_backend() -> None:
    os.environ[_backend.VARIABLE] = "uring"
    assert trio_uring.run(backend_of_a_run, backend="epoll") == "epoll"

    async def twice() -> None:
        trio_uring.enable("epoll")
        assert await backend_of_a_run() == "epoll"
        _driver.request_backend("auto")
        with pytest.raises(RuntimeError, match="already, on epoll: ask for uring before"):
            _driver.request_backend("uring")

    trio.run(twice)
    with pytest.raises(ValueError, match="'kqueue'"):
        trio_uring.Enable("kqueue")
    deny(IO_URING_SETUP, errno.EPERM)
    with pytest.raises(trio_uring.RingUnavailableError, match="EPERM"):
        trio_uring.run(works, backend="uring")
