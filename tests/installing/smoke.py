"""Does an installed trio_uring work? Run by the Python that has it:

    python smoke.py c        # a wheel with both extensions is installed
    python smoke.py pure     # one without any

Rules of this file: the standard library, trio and the package only. Nothing is skipped; what it
ran on is printed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
import sysconfig
from pathlib import Path

import trio

import trio_uring
from trio_uring import _accelerator

SENT = b"x" * 300_000
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def check_the_package(kind: str) -> None:
    """It is the installed one, and has the extensions that its wheel promises."""
    package = Path(trio_uring.__file__).parent
    assert package.parent.name in ("site-packages", "dist-packages"), package
    assert importlib.metadata.version("trio-uring") == trio_uring.__version__
    shared = sorted(path.name.split(".")[0] for path in package.glob("*.so"))
    expected = {"c": ["_uring"] if FREE_THREADED else ["_hot", "_uring"], "pure": []}[kind]
    assert shared == expected, shared
    assert (_accelerator.hot is not None) == ("_hot" in expected), _accelerator.why_not
    if expected:
        importlib.import_module("trio_uring._uring")


async def echo(stream: trio_uring.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(trio_uring.serve_tcp, echo, 0)
        port = listener.socket.getsockname()[1]
        async with await trio_uring.open_tcp_stream("127.0.0.1", port) as stream:
            nursery.start_soon(stream.send_all, [SENT[:1], SENT[1:]])
            assert await stream.receive_exactly(len(SENT)) == SENT
        nursery.cancel_scope.cancel()
    info = trio_uring.backend_info()
    print(
        f"trio_uring {trio_uring.__version__} on {platform.python_implementation()} "
        f"{platform.python_version()}, {sysconfig.get_platform()}: {info.backend}"
        f"{f' ({info.reason})' if info.reason else ''}; accelerator "
        f"{'in use' if _accelerator.hot is not None else f'none: {_accelerator.why_not}'}"
    )


check_the_package(sys.argv[1])
trio.run(main)
