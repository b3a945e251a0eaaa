"""Builds `trio_uring._uring`, the C extension, with cffi in API mode (run by setup.py, never
imported at run time).

The declarations come from ring.h as it stands: one header, read by cffi and included by ring.c.
"""

import pathlib

import cffi

HERE = pathlib.Path(__file__).parent

ffibuilder = cffi.FFI()
ffibuilder.cdef((HERE / "ring.h").read_text())
ffibuilder.set_source(
    "trio_uring._uring",
    '#include "ring.h"',
    sources=["trio_uring/_c/ring.c", "trio_uring/_c/probe.c"],
    include_dirs=["trio_uring/_c"],
    depends=["trio_uring/_c/ring.h"],
    py_limited_api=True,
)
