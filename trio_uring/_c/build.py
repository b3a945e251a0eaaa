"""Builds the C extension, `trio_uring._uring`, with cffi in API mode.

It is run by setup.py and never imported at run time. The declarations are those of ring.h, which
both cffi and the C files read.
"""

import pathlib

import cffi

HERE = pathlib.Path(__file__).parent

ffibuilder = cffi.FFI()
ffibuilder.cdef((HERE / "ring.h").read_text())
ffibuilder.set_source(
    "trio_uring._uring",
    '#include "ring.h"',
    sources=[f"trio_uring/_c/{name}.c" for name in ("ring", "probe", "restrict")],
    include_dirs=["trio_uring/_c"],
    depends=["trio_uring/_c/ring.h", "trio_uring/_c/uapi.h"],
    py_limited_api=True,
)
