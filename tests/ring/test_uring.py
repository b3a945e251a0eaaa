"""What only the kernel's ring has: setup on older kernels, limits, memory, an owner.

Rules of this file: older kernels are played by a stand-in for the C library that refuses what they
would refuse; everything else is real.
"""

from __future__ import annotations

import errno
import gc
import os
import pathlib
import socket
import subprocess
import sys
import types

import pytest

from trio_uring import RingUnavailableError, _errors
from trio_uring._driver import trial as _trial
from trio_uring._ring import setup as _setup
from trio_uring._ring import uring as _ring
from trio_uring._ring.base import open_rings
from trio_uring._ring.figures import LARGE_COUNT, LARGE_SIZE, POOL_SIZE, SMALL_COUNT, SMALL_SIZE
from trio_uring._ring.op import LARGE_GROUP, SMALL_GROUP, Opcode, Operation
from trio_uring._ring.uring import UringRing

pytestmark = pytest.mark.uring_only("the kernel's ring itself")

COOP, SINGLE_ISSUER, DEFER, SUBMIT_ALL, CLAMP = 1 << 8, 1 << 12, 1 << 13, 1 << 7, 1 << 4


def stand_in(monkeypatch, **functions):
    """Puts functions in place of those of the C library that have their names."""
    real = {name: getattr(_ring.lib, name) for name in dir(_ring.lib)}
    lib = types.SimpleNamespace(**{**real, **functions})
    for module in _ring, _setup:
        monkeypatch.setattr(module, "lib", lib)
    return types.SimpleNamespace(**real)


def refusing_flags(monkeypatch, unknown: int) -> None:
    def tu_open(out, entries, cq, flags, *rest):
        return -errno.EINVAL if flags & unknown else real.tu_open(out, entries, cq, flags, *rest)

    real = stand_in(monkeypatch, tu_open=tu_open)


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        (0, {"SINGLE_ISSUER", "DEFER_TASKRUN", "SUBMIT_ALL", "CLAMP"}),
        (DEFER, {"SINGLE_ISSUER", "COOP_TASKRUN", "SUBMIT_ALL", "CLAMP"}),
        (DEFER | SINGLE_ISSUER, {"COOP_TASKRUN", "SUBMIT_ALL", "CLAMP"}),
        (DEFER | SINGLE_ISSUER | COOP, {"SUBMIT_ALL", "CLAMP"}),
        (DEFER | SINGLE_ISSUER | COOP | SUBMIT_ALL, {"CLAMP"}),
        (~0, set()),
    ],
)
def test_the_ladder_goes_down_flag_by_flag(monkeypatch, unknown, expected):
    """Linux 6.1, 6.0, 5.19, 5.18, 5.11; and whatever knows none of them."""
    refusing_flags(monkeypatch, unknown)
    ring = UringRing()
    assert set(ring.info.setup_flags) - {"CQSIZE", "TASKRUN_FLAG"} == expected
    assert ring.close()


def test_the_ladder_for_a_task_that_waits_never_defers():
    for flags in ("coop", "plain"):
        ring = UringRing(flags)
        assert "DEFER_TASKRUN" not in ring.info.setup_flags
        assert ring.close()


def test_it_takes_less_memory_when_there_is_less(monkeypatch):
    asked = []

    def tu_open(out, entries, *rest):
        asked.append(entries)
        return -errno.ENOMEM if entries > 32 else real.tu_open(out, entries, *rest)

    real = stand_in(monkeypatch, tu_open=tu_open)
    ring = UringRing()
    assert asked == [256, 128, 64, 32]
    assert ring.info.sq_entries == 32
    assert ring.close()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSYS, "no io_uring"),
        (errno.EPERM, "forbidden"),
        (errno.ENOMEM, "RLIMIT_MEMLOCK"),
        (errno.EMFILE, "RLIMIT_NOFILE"),
        (errno.EOPNOTSUPP, "not supported"),
        (errno.EINVAL, "new enough and refuses it all the same: a seccomp filter"),
        (errno.EIO, "no io_uring ring can be had"),
    ],
)
def test_a_refusal_says_why(monkeypatch, code, says):
    # A kernel that counts rings, and a process for which the limit is.
    monkeypatch.setattr(_errors, "_release", lambda: "5.11.0")
    monkeypatch.setattr(_errors, "lifts_memlock", lambda: False)
    monkeypatch.setattr(_errors, "_limit", {"RLIMIT_MEMLOCK": 65536}.get)
    stand_in(monkeypatch, tu_open=lambda *_: -code)
    with pytest.raises(RingUnavailableError, match=says) as caught:
        UringRing()
    assert caught.value.errno == code
    assert errno.errorcode[code] in str(caught.value)


@pytest.mark.parametrize(
    ("release", "says"),
    [
        ("5.4.0-generic", "this kernel is too old: io_uring is used from Linux 5.11 on"),
        ("5.10.99", "too old"),
        ("5.11.0", "a seccomp filter answers in its place, or a sandbox emulates it"),
        ("6.18.1-cloud", "a seccomp filter answers in its place, or a sandbox emulates it"),
    ],
)
def test_only_an_old_kernel_is_called_old(monkeypatch, release, says):
    monkeypatch.setattr(_errors, "_release", lambda: release)
    stand_in(monkeypatch, tu_open=lambda *_: -errno.EINVAL)
    with pytest.raises(RingUnavailableError, match=says) as caught:
        UringRing()
    assert ("too old" in str(caught.value)) is ("too old" in says)


def lacking_opcodes(monkeypatch, *opcodes) -> None:
    def tu_probe(c, supported, count):
        result = real.tu_probe(c, supported, count)
        for opcode in opcodes:
            supported[opcode] = 0
        return result

    real = stand_in(monkeypatch, tu_probe=tu_probe)


@pytest.mark.parametrize("opcode", [op for op in Opcode if op.required], ids=lambda op: op.name)
def test_a_kernel_without_a_required_opcode_is_refused_and_it_is_named(monkeypatch, opcode):
    lacking_opcodes(monkeypatch, opcode, Opcode.WRITEV)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RingUnavailableError) as caught:
        UringRing()
    assert f"lacks {opcode.name} (Linux {opcode.since} has it)" in str(caught.value)
    assert "WRITEV" not in str(caught.value)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kernel_without_the_optional_opcodes_has_a_ring_that_works(monkeypatch):
    optional = [op for op in Opcode if not op.required]
    lacking_opcodes(monkeypatch, *optional)
    ring = UringRing()
    assert ring.info.lacking == tuple(op.name for op in optional)
    assert ring.info.opcodes == tuple(op.name for op in Opcode if op.required)
    assert _trial.self_test(ring) is None
    assert ring.close()


def test_a_kernel_with_every_opcode_lacks_none():
    ring = UringRing()
    assert ring.info.lacking == ()
    assert ring.info.opcodes == tuple(op.name for op in Opcode)
    assert ring.close()


def mapped() -> int:
    """Bytes of address space that this process uses."""
    count = 0
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        count += end - start
    return count


def test_the_buffers_take_what_is_said_of_them():
    UringRing().close()
    before = mapped()
    ring, bare = UringRing(), UringRing(provide_buffers=False)
    both = mapped() - before
    assert bare.close()
    assert ring.close()
    groups = POOL_SIZE + 16 * (SMALL_COUNT + LARGE_COUNT)  # bytes; and their entries of 16
    rings = 2 * 2**20  # bytes: more than the queues of two rings
    assert groups <= both <= groups + rings
    assert POOL_SIZE == SMALL_COUNT * SMALL_SIZE + LARGE_COUNT * LARGE_SIZE == 10 * 2**20


def test_a_kernel_without_buffer_rings_has_none(monkeypatch):
    freed = []

    def tu_pool_free(memory, size):
        freed.append(size)
        return real.tu_pool_free(memory, size)

    real = stand_in(monkeypatch, tu_buffers=lambda *_: -errno.EINVAL, tu_pool_free=tu_pool_free)
    ring = UringRing()
    assert not ring.info.provided_buffers
    assert freed == [POOL_SIZE], "memory that nothing would use"
    assert ring.close()
    assert freed == [POOL_SIZE]


def test_opening_and_closing_leaves_nothing():
    UringRing().close()
    gc.collect()
    before = (
        sorted(os.listdir("/proc/self/fd")),
        pathlib.Path("/proc/self/maps").read_text().count("io_uring"),
    )
    for _ in range(20):
        assert UringRing().close()
    assert (
        sorted(os.listdir("/proc/self/fd")),
        pathlib.Path("/proc/self/maps").read_text().count("io_uring"),
    ) == before
    assert not open_rings


@pytest.mark.parametrize(
    ("group", "count"), [(SMALL_GROUP, SMALL_COUNT), (LARGE_GROUP, LARGE_COUNT)]
)
def test_every_buffer_comes_back(group, count):
    ring = UringRing()
    a, b = socket.socketpair()
    with a, b:
        for number in range(3 * count):
            op = Operation(Opcode.RECV, b.fileno(), b)
            op.group, op.length = group, 64
            a.send(b"%d" % number)
            assert ring.submit(op)
            ring.flush()
            ring.drain([])
            assert op.chunk == b"%d" % number
    assert ring.close()


def test_an_empty_group_says_so_and_takes_nothing():
    """More receives at once than buffers: the rest fail with ENOBUFS, and their bytes stay in their
    sockets."""
    ring = UringRing()
    pairs = [socket.socketpair() for _ in range(LARGE_COUNT + 4)]
    ops = []
    for a, b in pairs:
        a.send(b"x")
        op = Operation(Opcode.RECV, b.fileno(), b)
        op.group, op.length = LARGE_GROUP, 64
        assert ring.submit(op)
        ops.append(op)
    ring.flush()
    ring.drain([])
    assert sorted(op.res for op in ops) == [-errno.ENOBUFS] * 4 + [1] * LARGE_COUNT
    for op, (_, b) in zip(ops, pairs):
        assert op.chunk == b"x" if op.res == 1 else b.recv(10) == b"x"
    for pair in pairs:
        for sock in pair:
            sock.close()
    assert ring.close()


def test_a_cancel_that_never_finds_a_files_read_is_asked_for_once(tmp_path, kernel_world):
    """A read that waits for a disk is where no cancel looks: asking again at once would go on until
    the disk answers."""
    ring, path = kernel_world.ring, tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file:
        op = Operation(Opcode.READ, file.fileno(), file)
        op.buffer, op.length, op.offset = bytearray(10), 10, 0
        assert ring.submit(op)
        ring.cancel(op)
        ring._missed.append(op.token)  # the answer -ENOENT of a kernel that has just begun
        assert not ring.drain([])
        kernel_world.settle(op)
    assert ring.counters.submitted[Opcode.ASYNC_CANCEL] == 1


LEAKED = """
import os, socket, warnings
from trio_uring._ring.op import Opcode, Operation
from trio_uring._ring.uring import UringRing

class Buffer(bytearray):
    def __del__(self, write=os.write):
        write(1, b"freed ")

warnings.simplefilter("ignore")
a, b = socket.socketpair()
ring = UringRing(sq_entries=8)
op = Operation(Opcode.RECV, a.fileno())
op.buffer = Buffer(100)
ring.submit(op)
ring.flush()
assert not ring.close()
os.write(1, b"the end ")
"""


def test_what_a_leaked_ring_pins_outlives_the_interpreter() -> None:
    """The kernel may write to it until the process is gone."""
    done = subprocess.run(
        [sys.executable, "-c", LEAKED], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("the end ", "")


def test_an_interrupt_while_a_ring_is_opened_leaves_none(monkeypatch) -> None:
    """Python raises KeyboardInterrupt when the call of C's has returned."""

    def tu_open(*arguments):
        assert real.tu_open(*arguments) == 0
        raise KeyboardInterrupt

    def tu_close(ring):
        closed.append(ring)
        real.tu_close(ring)

    closed: list[object] = []
    real = stand_in(monkeypatch, tu_open=tu_open, tu_close=tu_close)
    with pytest.raises(KeyboardInterrupt):
        UringRing()
    assert len(closed) == 1
