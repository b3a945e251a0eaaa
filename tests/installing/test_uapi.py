"""trio_uring/_c/uapi.h says the same as the kernel's own header.

Rules of this file: a compiler decides; nothing runs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

C = Path(__file__).parent.parent.parent / "trio_uring" / "_c"
FIELDS = {
    "io_uring_sqe": [
        *("opcode", "flags", "ioprio", "fd", "off", "addr", "len", "user_data", "buf_group"),
        "personality",
    ],
    "io_uring_cqe": ["user_data", "res", "flags"],
    "io_uring_params": ["sq_entries", "cq_entries", "flags", "features", "sq_off", "cq_off"],
    "io_sqring_offsets": ["head", "tail", "ring_mask", "ring_entries", "flags", "array"],
    "io_cqring_offsets": ["head", "tail", "ring_mask", "ring_entries", "overflow", "cqes"],
}
OFFSETS = ["OFF_SQ_RING", "OFF_CQ_RING", "OFF_SQES"]

pytestmark = pytest.mark.no_ring


def same(theirs: str, ours: str) -> str:
    return f'_Static_assert({theirs} == {ours}, "{theirs}");'


def test_what_the_kernel_says(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    lines = ["#include <linux/io_uring.h>", "#include <sys/syscall.h>"]
    lines += [f"enum {{ theirs_{n} = __NR_io_uring_{n} }};" for n in ("setup", "enter", "register")]
    lines += [f"#undef __NR_io_uring_{name}" for name in ("setup", "enter", "register")]
    lines += ['#include "uapi.h"']
    lines += [same(f"theirs_{n}", f"__NR_io_uring_{n}") for n in ("setup", "enter", "register")]
    lines += [same(f"IORING_{name}", f"TU_{name}") for name in OFFSETS]
    lines += [same("offsetof(struct io_uring_sqe, rw_flags)", "offsetof(struct tu_sqe, op_flags)")]
    for name, fields in FIELDS.items():
        ours = f"tu_{name.removeprefix('io_').removeprefix('uring_')}"
        lines += [same(f"sizeof(struct {name})", f"sizeof(struct {ours})")]
        lines += [
            same(f"offsetof(struct {name}, {field})", f"offsetof(struct {ours}, {field})")
            for field in fields
        ]
    source = tmp_path / "same.c"
    source.write_text("\n".join(lines) + "\n")
    probe = [compiler, "-fsyntax-only", "-x", "c", "-"]
    if subprocess.run(
        probe, input=lines[0], text=True, capture_output=True, check=False
    ).returncode:
        pytest.skip("the kernel's header is not installed")
    done = subprocess.run(
        [compiler, "-std=gnu11", "-fsyntax-only", "-I", str(C), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
