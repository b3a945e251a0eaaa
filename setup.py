"""Builds the C extensions where that is possible; everything else is in pyproject.toml.

This file exists for what pyproject.toml cannot express: the cffi module, the stable ABI, and what
happens where C cannot be built. The environment variable TRIO_URING_EXTENSIONS says what is wanted:

    auto      the default: what can be built is built. What cannot be is left out, and this says so;
              without either extension the package is in Python only, and waits by readiness.
    require   what cannot be built is an error. For wheels that are given away, and for CI.
    none      no C. The wheel is the same on all platforms (py3-none-any).

`python setup.py build_ext` asks for the extensions by name: there, too, a failure is an error.

Rules of this file: a wheel's tag says what is in the wheel.
"""

import contextlib
import glob
import importlib.util
import os
import sys
import sysconfig

import setuptools
from setuptools import Extension, setup

if int(setuptools.__version__.split(".")[0]) < 77:  # a build without isolation takes what is there
    raise SystemExit(f"trio_uring needs setuptools 77 or newer; this is {setuptools.__version__}")

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

VARIABLE, WANTED = "TRIO_URING_EXTENSIONS", ("auto", "require", "none")
wanted = os.environ.get(VARIABLE) or "auto"
if wanted not in WANTED:
    raise SystemExit(f"{VARIABLE} is {wanted!r}; it must be one of {', '.join(WANTED)}")

# io_uring is an interface of Linux. What is built for is asked for, which may be another machine
# than this one. A Python of 32 bits on a kernel of 64 says the kernel's name.
possible = (
    sys.implementation.name == "cpython"
    and sysconfig.get_platform() in ("linux-x86_64", "linux-aarch64")
    and sys.maxsize > 2**32
)
if wanted == "require" and not possible:
    raise SystemExit(
        f"{VARIABLE}=require, but there are extensions only for CPython on Linux, x86-64 and "
        f"aarch64; this is {sys.implementation.name} on {sysconfig.get_platform()}, "
        f"{sys.maxsize.bit_length() + 1} bits"
    )
# These have no stable ABI (before 3.15), and the accelerator relies on the GIL.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

WITHOUT = {
    "trio_uring._uring": "Without it there is no io_uring; operations wait by readiness.",
    "trio_uring._hot": "Without it everything is done in Python, at about twice the CPU time.",
}
NEEDS_TOO = {"trio_uring._uring": " and cffi", "trio_uring._hot": ""}
ACCELERATOR = Extension(
    "trio_uring._hot",
    sorted(glob.glob("trio_uring/_c/hot/*.c")),
    depends=["trio_uring/_c/hot/hot.h"],
    extra_compile_args=["-fvisibility=hidden"],
    py_limited_api=True,
)
# cffi makes this one. Without cffi, setuptools would leave it out and hardly mention it.
RING_WITHOUT_CFFI = Extension("trio_uring._uring", [], py_limited_api=True)
with_cffi = importlib.util.find_spec("cffi") is not None


class build_what_can_be(build_ext):
    def build_extensions(self):
        self.failed = []
        super().build_extensions()
        for ext in self.failed:  # what is in this list is also copied and recorded
            self.extensions.remove(ext)
        self.distribution.ext_modules = self.extensions

    def build_extension(self, ext):
        file = self.get_ext_fullpath(ext.name)
        try:
            if ext is RING_WITHOUT_CFFI:
                raise ModuleNotFoundError("there is no cffi")
            super().build_extension(ext)
            if not os.path.exists(file):
                raise FileNotFoundError(f"the compiler succeeded, but there is no {file}")
        except Exception as exc:
            # setuptools has several unrelated exceptions for a compiler that failed or is missing.
            why = (
                f"trio_uring: {ext.name} was not built ({type(exc).__name__}: {exc}). "
                f"{WITHOUT[ext.name]} It needs a C compiler (Debian: apt-get install gcc "
                f"libc6-dev) and Python's headers (python3-dev){NEEDS_TOO[ext.name]}; the "
                "compiler's own message, above, says more."
            )
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)  # of an earlier build: everything in build/ goes into the wheel
            if wanted == "require" or "build_ext" in self.distribution.commands:
                raise SystemExit(why) from exc
            print(f"{why} {VARIABLE}=require makes this an error.", file=sys.stderr)
            self.failed.append(ext)


class tagged_wheel(bdist_wheel):
    def finalize_options(self):
        if not free_threaded:
            self.py_limited_api = "cp310"
        super().finalize_options()

    def run(self):
        self.run_command("build")  # from here on it is known what could be built
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


if possible and wanted != "none":
    extensions = [] if free_threaded else [ACCELERATOR]
    if not with_cffi:
        extensions.append(RING_WITHOUT_CFFI)
    setup(
        **({"cffi_modules": ["trio_uring/_c/build.py:ffibuilder"]} if with_cffi else {}),
        ext_modules=extensions,
        cmdclass={"build_ext": build_what_can_be, "bdist_wheel": tagged_wheel},
    )
else:
    setup()
