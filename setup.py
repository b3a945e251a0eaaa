"""Builds the C extension; everything else is in pyproject.toml.

This file exists for what pyproject.toml cannot express: the cffi module, the stable-ABI tag, and
an error message that says what is missing when there is no compiler or no kernel header.
"""

import glob
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class build_ring(build_ext):
    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as exc:
            if ext.optional:
                raise  # setuptools warns, and goes on without it
            # setuptools has several unrelated exceptions for a compiler that failed or is missing.
            raise SystemExit(
                f"trio_uring could not build its C extension ({type(exc).__name__}). It needs a C "
                "compiler (Debian: apt-get install gcc libc6-dev), Python's headers (python3-dev) "
                "and the kernel's header linux/io_uring.h (linux-libc-dev); the compiler's own "
                "message, above, says which one is missing."
            ) from exc


# What it does is written in Python as well, so the package does without it where it does not build.
ACCELERATOR = Extension(
    "trio_uring._hot",
    sorted(glob.glob("trio_uring/_c/hot/*.c")),
    depends=["trio_uring/_c/hot/hot.h"],
    extra_compile_args=["-fvisibility=hidden"],
    py_limited_api=True,
    optional=True,
)


class stable_abi_wheel(bdist_wheel):
    def finalize_options(self):
        self.py_limited_api = "cp310"
        super().finalize_options()


# io_uring is a Linux interface. Elsewhere the package has no extension, and everything but the ring
# works.
if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
    setup(
        cffi_modules=["trio_uring/_c/build.py:ffibuilder"],
        ext_modules=[ACCELERATOR],
        cmdclass={"build_ext": build_ring, "bdist_wheel": stable_abi_wheel},
    )
else:
    setup()
