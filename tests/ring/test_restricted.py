"""Restricted rings: the kernel refuses whatever this package does not use.

Rules of this file: what is refused is tried at the kernel, by whichever way gets past our own code.
What still works is what the contract and the streams' own tests say, which run on such a ring, too.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import trio_uring
from trio_uring._driver import backend as _backend
from trio_uring._driver.trial import self_test
from trio_uring._ring import setup as _setup
from trio_uring._ring.extension import ffi, lib
from trio_uring._ring.op import Opcode, Operation
from trio_uring._ring.uring import UringRing

ROOT = Path(__file__).parent.parent.parent
OF_STREAMS = ("test_receive.py", "test_send.py", "test_listeners.py", "test_trio_checks.py")
RESTRICT = "TRIO_URING_RESTRICT"
_REGISTER = 427  # io_uring_register, on x86-64 and aarch64
# IORING_OP_* that a program which got hold of the ring would like: NOP, SPLICE, OPENAT, SOCKET,
# URING_CMD.
OTHERS = (0, 30, 18, 45, 46)
# IORING_REGISTER_*: BUFFERS, FILES, EVENTFD, PROBE, PERSONALITY, RESTRICTIONS, PBUF_RING.
REGISTRATIONS = (0, 2, 4, 8, 9, 11, 22)

of_kernel = pytest.mark.uring_only("the kernel restricts it")


def answer_to(ring: UringRing, opcode: int, flags: int = 0) -> int:
    """What the kernel answers to an entry that no `Operation` can be."""
    op = Operation(Opcode.POLL_ADD, -1)
    op.entry = ffi.new("struct tu_entry *", (opcode | flags << 8 | 0xFFFFFFFF << 32, 0, 0, 0))
    op.entry_at = int(ffi.cast("uintptr_t", op.entry))
    assert ring.submit(op)
    done: list[Operation] = []
    while not done:
        ring.turn(1.0, done)
    return op.res


def register(ring: UringRing, what: int) -> int:
    """io_uring_register with nothing to register; returns 0 or -errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_REGISTER, ring.fileno(), what, None, 0) >= 0:
        return 0
    return -ctypes.get_errno()


@of_kernel
@pytest.mark.parametrize("flags", ["defer", "coop", "plain"])
def test_other_opcodes_and_flags_are_refused(flags: str) -> None:
    ring = UringRing(flags, restrict=True)
    assert [answer_to(ring, opcode) for opcode in OTHERS] == [-errno.EACCES] * len(OTHERS)
    # IOSQE_FIXED_FILE, _IO_LINK and _ASYNC, with an opcode that is allowed
    poll = int(Opcode.POLL_ADD)
    assert [answer_to(ring, poll, 1 << bit) for bit in (0, 2, 4)] == [-errno.EACCES] * 3
    assert answer_to(ring, poll) == -errno.EBADF  # there is no descriptor -1
    assert ring.close()


@of_kernel
def test_without_restricting_they_are_not() -> None:
    """Otherwise the test above would prove nothing."""
    ring = UringRing()
    assert answer_to(ring, 0) == 0
    assert -errno.EACCES not in [register(ring, what) for what in REGISTRATIONS]
    assert ring.close()


@of_kernel
@pytest.mark.parametrize("flags", ["defer", "coop", "plain"])
def test_nothing_more_can_be_registered(flags: str) -> None:
    ring = UringRing(flags, restrict=True)
    refused = [register(ring, what) for what in REGISTRATIONS]
    assert refused == [-errno.EACCES] * len(REGISTRATIONS)
    assert register(ring, 12) == -errno.EBADFD  # ENABLE_RINGS: it is enabled already
    assert ring.close()


@of_kernel
def test_the_only_opcodes_are_those_of_the_table() -> None:
    ring = UringRing(restrict=True)
    refusals = (-errno.EACCES, -errno.EINVAL)  # EINVAL: this kernel does not know it
    allowed = [opcode for opcode in range(48) if answer_to(ring, opcode) not in refusals]
    assert allowed == sorted(int(opcode) for opcode in Opcode)
    assert ring.info.restricted
    assert "R_DISABLED" in ring.info.setup_flags
    assert ring.close()


@of_kernel
def test_a_kernel_that_agrees_and_does_not_restrict_is_found_out() -> None:
    """A ring that was never disabled cannot be restricted, and neither can one that is."""
    ring = UringRing()
    assert lib.tu_restrict(ring.fileno(), b"", 0) == -errno.EBADFD
    assert ring.close()
    ring = UringRing(restrict=True)
    assert lib.tu_restrict(ring.fileno(), b"", 0) == -errno.EACCES
    assert lib.tu_restrict(ring.fileno(), bytes(100), 100) == -errno.EINVAL
    assert ring.close()


@of_kernel
@pytest.mark.parametrize("flags", ["defer", "coop", "plain"])
def test_the_self_test_finds_a_ring_that_takes_everything(flags: str) -> None:
    ring = UringRing(flags, restrict=True)
    assert self_test(ring) is None
    assert ring.close()
    ring = UringRing(flags)
    ring.info = dataclasses.replace(ring.info, restricted=True)
    error = self_test(ring)
    assert isinstance(error, trio_uring.RingUnavailableError)
    assert "did not refuse" in str(error)
    assert ring.close()


@of_kernel
def test_no_ring_rather_than_one_that_is_not_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lib:
        tu_restrict = staticmethod(lambda *_: -errno.EINVAL)

        def __getattr__(self, name: str) -> object:
            return getattr(lib, name)

    monkeypatch.delenv("TRIO_URING_BACKEND", raising=False)
    monkeypatch.setattr(_setup, "lib", Lib())
    _backend._Memory.forget()
    with pytest.raises(trio_uring.RingUnavailableError, match="restricting it failed with EINVAL"):
        UringRing(restrict=True)
    info = _backend.probe("auto", restrict=True)
    assert (info.backend, info.restricted) == ("readiness", False)
    assert info.reason is not None
    assert "restricted ring" in info.reason
    assert _backend.probe("auto").backend == "uring"


# -- asking for it


async def echo_once() -> trio_uring.BackendInfo:
    ours, theirs = socket.socketpair()
    async with trio_uring.SocketStream(ours) as stream:
        theirs.send(b"x")
        assert await stream.receive_some() == b"x"
        await stream.send_all([b"y", b"z"])
        assert theirs.recv(2) == b"yz"
    theirs.close()
    return trio_uring.backend_info()


async def enabled_within() -> trio_uring.BackendInfo:
    trio_uring.enable(restrict=True)
    return await echo_once()


@of_kernel
@pytest.mark.parametrize("driver", ["auto", "task"])
def test_run_enable_and_the_instrument(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESTRICT, raising=False)
    monkeypatch.setenv("TRIO_URING_DRIVER", driver)
    assert trio_uring.run(echo_once, restrict=True).restricted
    assert trio.run(enabled_within).restricted
    assert trio.run(echo_once, instruments=[trio_uring.Enable(restrict=True)]).restricted
    assert not trio_uring.run(echo_once).restricted
    assert not trio_uring.backend_info().restricted


@of_kernel
def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESTRICT, raising=False)
    trio_uring.install(restrict=True)
    try:
        assert trio.run(echo_once).restricted
    finally:
        trio_uring.uninstall()
    assert not trio.run(echo_once).restricted


@of_kernel
def test_the_variable_holds_for_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICT, "1")
    assert trio.run(echo_once).restricted  # not even an enabled one
    assert trio_uring.run(echo_once, restrict=False).restricted
    assert trio_uring.backend_info().restricted
    monkeypatch.setenv(RESTRICT, "0")
    assert not trio.run(echo_once).restricted
    assert trio_uring.run(echo_once, restrict=True).restricted


@pytest.mark.no_ring
@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_a_wrong_variable_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICT, value)
    with pytest.raises(ValueError, match=f"{RESTRICT} is {value!r}: it is 0 or 1"):
        trio_uring.run(echo_once)
    with pytest.raises(ValueError, match=RESTRICT):
        trio_uring.Enable()


@of_kernel
async def test_asking_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    if trio_uring.backend_info().restricted:
        pytest.skip("TRIO_URING_RESTRICT asks for it")
    await echo_once()
    with pytest.raises(RuntimeError, match="a ring that is not restricted"):
        trio_uring.enable(restrict=True)


def test_by_readiness_there_is_nothing_to_restrict() -> None:
    assert trio_uring.run(enabled_within, backend="readiness").backend == "readiness"


@pytest.mark.long
@of_kernel
@pytest.mark.hang_seconds(240)
def test_streams_on_a_restricted_ring() -> None:
    """Their own tests. The whole suite passes so, too: TRIO_URING_RESTRICT=1."""
    environment = {**os.environ, RESTRICT: "1"}
    tests = [f"tests/streams/{name}" for name in OF_STREAMS]
    # It measures memory, which a ring is not what decides, and a sanitizer changes.
    tests += ["--deselect", f"{tests[1]}::test_hundreds_of_mebibytes_without_joining_them"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
