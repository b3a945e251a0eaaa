"""ENOMEM: which memory is used up, by the kernel's number, the limits and the capabilities.

Rules of this file: kernels and limits are stood in for; that a limit of locked memory refuses a
ring is tried by `test_scarce`.
"""

from __future__ import annotations

import errno
import os
import sys

import pytest

from trio_uring import _errors
from trio_uring._errors import kernel_number, lifts_memlock, why_unavailable

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(sys.platform != "linux", reason="rings are Linux's"),
]

LOCKED = (
    "io_uring_setup failed with ENOMEM: locked memory is used up: raise RLIMIT_MEMLOCK (ulimit -l),"
    " 512 KiB are enough for a ring"
)
ANY = (
    "io_uring_setup failed with ENOMEM: memory is used up: that of the control group (memory.max),"
    " or of the whole machine"
)


def why(
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    *,
    lifted: bool = False,
    locked: bool = True,
    **limits: int,
) -> str:
    monkeypatch.setattr(_errors, "_release", lambda: release)
    monkeypatch.setattr(_errors, "lifts_memlock", lambda: lifted)
    monkeypatch.setattr(_errors, "_limit", limits.get)
    return why_unavailable(errno.ENOMEM, "io_uring_setup", locked=locked)


@pytest.mark.parametrize(
    ("release", "text"),
    [
        ("5.10.0-8-amd64", LOCKED),
        ("5.11.22", LOCKED),
        ("5.12.0", ANY),
        ("6.13.12-generic", ANY),
        ("6.14.0-rc1", LOCKED),
        ("6.18.44", LOCKED),
        ("7.0", LOCKED),
    ],
)
def test_by_the_number_of_the_kernel(
    release: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why(monkeypatch, release, RLIMIT_MEMLOCK=65536) == text
    # There the limit is not for this process, or there is none.
    assert why(monkeypatch, release, RLIMIT_MEMLOCK=65536, lifted=True) == ANY
    assert why(monkeypatch, release) == ANY
    # What is no ring is not counted by any of them.
    assert why(monkeypatch, release, RLIMIT_MEMLOCK=65536, locked=False) == ANY


@pytest.mark.parametrize("release", ["5.11.0", "6.1.0"])
def test_a_limited_address_space_is_named_first(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = why(monkeypatch, release, RLIMIT_MEMLOCK=65536, RLIMIT_AS=2**20)
    says = "the address space is used up: raise RLIMIT_AS (ulimit -v), which is 1024 KiB; or "
    assert says in text
    assert ("locked memory" in text) is (release == "5.11.0")


@pytest.mark.parametrize("release", ["", "unknown", "5"])
def test_a_kernel_without_a_number_may_be_an_old_one(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel_number(release) == (0, 0)
    assert why(monkeypatch, release, RLIMIT_MEMLOCK=65536) == LOCKED


def test_the_capability_of_this_process() -> None:
    """mlock(2) knows: it refuses a process without the capability whose limit is zero."""
    import ctypes
    import mmap
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    page = ctypes.c_char.from_buffer(memory)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        allowed = libc.mlock(ctypes.byref(page), mmap.PAGESIZE) == 0
        assert allowed is lifts_memlock(), os.strerror(ctypes.get_errno())
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
        del page
        memory.close()
