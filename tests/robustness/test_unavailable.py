"""io_uring is refused, or there is too little of something for it: a sentence that says why and what to change.

Rules of this file: the refusal is the kernel's own (a seccomp filter, a resource limit), in a child process. A run in which
io_uring is refused must be a normal run for everything else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring import _contract, _ring

from .child import in_child, open_fds
from .seccomp import IO_URING_REGISTER, IO_URING_SETUP, deny

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


async def refused(says: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    stream = trio_uring.SocketStream(ours)
    with pytest.raises(trio_uring.RingUnavailableError) as caught:
        await stream.receive_some()
    check_sentence(caught.value, says, code)
    with pytest.raises(trio_uring.RingUnavailableError):
        await stream.send_all(b"x")
    with pytest.raises(trio_uring.RingUnavailableError):
        trio_uring.current_statistics()
    left, right = trio.testing.memory_stream_pair()  # trio itself is untouched
    await left.send_all(b"x")
    assert await right.receive_some() == b"x"
    await stream.aclose()
    theirs.close()


def check_sentence(exc: OSError, says: str, code: int) -> None:
    assert exc.errno == code
    text = str(exc)
    assert says in text
    assert errno.errorcode[code] in text
    assert len(text.split()) > 6, text


@pytest.mark.parametrize("name", list(SAYS_WHY))
@in_child()
def test_setup_is_denied(name: str) -> None:
    code = getattr(errno, name)
    deny(IO_URING_SETUP, code)
    for _ in range(2):  # the reason is the same every time
        trio.run(refused, SAYS_WHY[name], code)


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EINVAL"])
@in_child()
def test_register_is_denied(name: str) -> None:
    """The ring itself opens; the probe of its opcodes does not."""
    code = getattr(errno, name)
    deny(IO_URING_REGISTER, code)
    trio.run(refused, "probe", code)


async def works() -> None:
    ours, theirs = socket.socketpair()
    async with trio_uring.SocketStream(ours) as left, trio_uring.SocketStream(theirs) as right:
        await left.send_all([b"wor", b"ks"])
        assert await right.receive_exactly(5) == b"works"


@pytest.mark.parametrize("free", range(6))
@in_child()
def test_few_descriptors_are_free(free: int) -> None:
    """Whichever descriptor is refused (the ring, its timer, what the setup tries): a sentence, never a crash of trio."""

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
        check_sentence(exc, "RLIMIT_NOFILE", errno.EMFILE)
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
    become_nobody(0)
    try:
        trio.run(works)
    except trio_uring.RingUnavailableError as exc:
        check_sentence(exc, "RLIMIT_MEMLOCK", errno.ENOMEM)
    else:
        # A kernel that charges rings to the memory controller instead: only then may it work.
        assert locked_memory_is_not_charged()


def locked_memory_is_not_charged() -> bool:
    ring = _ring.UringRing()
    try:
        return ring.info.sq_entries == _contract.SQ_ENTRIES
    finally:
        ring.close()


@pytest.mark.parametrize("kib", [64, 128, 256])
@in_child()
def test_little_locked_memory_is_allowed(kib: int) -> None:
    """The ring steps down until it fits; run after run, though the kernel gives locked memory back only after a while."""
    become_nobody(kib * 1024)
    for run in range(30):
        print(f"run {run}", flush=True)
        trio.run(works)
