"""Too little of something for io_uring (descriptors, memory, processes, threads): it falls back, or
uses less.

Rules of this file: the limit is the kernel's own, in a child process. Where no limit can cause the
shortage at will, the exception is raised in the place where it would occur.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  # nobody, whom a test becomes, may not be able to read it
import errno
import os
import resource
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from support.child import in_child
from support.fallback import asked_for, auto, check_sentence, falls_back, works
from support.seccomp import SWAPON, deny
from support.streams import open_descriptors

import trio_uring
from trio_uring._driver import backend as _backend
from trio_uring._driver import trial as _trial
from trio_uring._ring import protocol as _contract
from trio_uring._ring import uring as _ring


@pytest.mark.parametrize("free", range(6))
@in_child()
def test_few_descriptors_are_free(free: int) -> None:
    """Whichever descriptor is refused (a ring's, the self-test's): a sentence, never a crash of
    trio."""
    auto()

    async def main() -> None:
        ours, theirs = socket.socketpair()
        stream = trio_uring.SocketStream(ours)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1 + free, hard))
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
        # The kernel is not asked again each time: it would take a while to say no.
        for _ in range(10):
            trio.run(falls_back, "RLIMIT_MEMLOCK")
    else:
        # A kernel that charges rings to the memory controller instead: only then may it work.
        assert ring.info.sq_entries == _contract.SQ_ENTRIES
        ring.close()
        trio.run(works)


@pytest.mark.parametrize("kib", [64, 128, 256])
@in_child()
def test_little_locked_memory_is_allowed(kib: int) -> None:
    """The ring steps down until it fits; run after run, though the kernel gives locked memory back
    only after a while."""
    auto()
    become_nobody(kib * 1024)
    for run in range(30):
        print(f"run {run}", flush=True)
        trio.run(works)


# -- threads and processes


def limit_processes() -> None:
    become_nobody(2**20)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()


@pytest.mark.uring_only("the kernel's ring is used all the same")
@in_child()
def test_no_thread_can_be_started() -> None:
    """io_uring needs none; only its self-test would have one."""
    told = auto()
    limit_processes()
    for _ in range(2):
        trio.run(works)
    info = trio_uring.backend_info()
    assert (info.backend, info.reason) == ("uring", None)
    check_sentence(info.untested, "no thread could be started", "was not tested")
    assert not told.messages


@in_child()
def test_no_process_can_be_started_where_a_filter_is() -> None:
    auto()
    deny(SWAPON, errno.EPERM)
    limit_processes()
    says = "clone failed with EAGAIN: the limit of processes is reached: raise RLIMIT_NPROC"
    trio.run(falls_back, says)
    with pytest.raises(trio_uring.RingUnavailableError, match="RLIMIT_NPROC") as caught:
        trio.run(asked_for)
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.uring_only("the kernel's ring can be had in the end")
@pytest.mark.parametrize(
    ("name", "says"),
    [("EAGAIN", "RLIMIT_NPROC"), ("ENOMEM", "vm.overcommit_memory")],
)
@in_child()
def test_a_process_that_could_not_be_started_is_asked_for_again(name: str, says: str) -> None:
    auto()
    deny(SWAPON, errno.EPERM)
    code = getattr(errno, name)
    before, _trial.lib = _trial.lib, Refusing(_trial.lib, tu_try_calls=lambda _: -code)
    trio.run(falls_back, says)
    _trial.lib = before
    _backend._Memory.refused_memory = None  # ten seconds later
    assert trio_uring.backend_info().backend == "uring"


class Refusing:
    """The C library, but for some functions."""

    def __init__(self, lib: Any, **functions: Any) -> None:
        self._lib = lib
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)


# -- memory


def mapped() -> int:
    """Bytes of address space that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize("backend", ["auto", "uring"])
@in_child()
def test_the_address_space_is_limited(backend: str) -> None:
    """From nothing that is free to enough for a ring, its buffers and a thread."""
    auto()
    trio_uring.backend_info()  # what Python imports and keeps
    seen = set()
    for kib in (0, 64, 256, 1024, 2048, 3072, 4096, 4608, 6144, 8192, 12288, 16384, 65536):
        _backend._Memory.forget()
        resource.setrlimit(resource.RLIMIT_AS, (mapped() + kib * 1024, resource.RLIM_INFINITY))
        try:
            info = _backend.probe(backend)
            seen.add(info.backend)
            reason = info.reason
        except trio_uring.RingUnavailableError as exc:
            assert backend == "uring"
            seen.add("readiness")
            reason = str(exc)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(kib, reason)
        if reason is not None and "readiness is asked" not in reason and kib < 4096:
            check_sentence(reason, "ENOMEM", "RLIMIT_AS")
    assert "readiness" in seen
    trio.run(works)


# -- whatever else


@pytest.mark.uring_only("it is the kernel's ring that is tested")
@pytest.mark.parametrize("where", ["seccomp_filters", "self_test", "UringRing"])
@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("MemoryError", errno.ENOMEM, "ENOMEM"),
        ("RuntimeError", errno.EIO, "RuntimeError: can't start new thread"),
        ("KeyError", errno.EIO, "KeyError"),
        ("OSError", errno.EMFILE, "RLIMIT_NOFILE"),
    ],
)
@in_child()
def test_whatever_a_probe_raises_is_a_reason(where: str, name: str, code: int, says: str) -> None:
    told = auto()
    exceptions: dict[str, Exception] = {
        "MemoryError": MemoryError(),
        "RuntimeError": RuntimeError("can't start new thread"),
        "KeyError": KeyError("x"),
        "OSError": OSError(errno.EMFILE, "Too many open files"),
    }

    def refuse(*_: Any, **__: Any) -> Any:
        raise exceptions[name]

    honest = getattr(_backend, where)
    setattr(_backend, where, refuse)
    for _ in range(2):
        trio.run(falls_back, says)
    assert len(told.messages) == 1
    with pytest.raises(trio_uring.RingUnavailableError, match=says) as caught:
        trio.run(asked_for)
    assert caught.value.errno == code
    setattr(_backend, where, honest)
    _backend._Memory.refused_memory = None
    assert trio_uring.backend_info().backend == "uring", "it is no news of io_uring, and not kept"
    trio.run(works)
