"""`python -m tests.denied`: shows the fallback where io_uring is denied as platforms deny it.

Run it in the repository's root. For each errno with which platforms refuse, and each way to end a
process that tries: a child process installs a seccomp filter, runs an ordinary trio program with
trio_uring enabled, and says what it ran on and why. For one of each, it then runs trio's checks of
streams (tests/streams/test_trio_checks.py).

Rules of this file: the refusal is the kernel's. The exit status is 0 if every child fell back and
worked.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import trio

import trio_uring

from .support import seccomp

ANSWERS = ("EPERM", "ENOSYS", "EOPNOTSUPP", "ENOMEM", "EINVAL")
ENDS = ("KILL_PROCESS", "KILL_THREAD", "TRAP")
CHECKS = "tests/streams/test_trio_checks.py"
SENT = bytes(2**20)


async def program() -> None:
    """It knows nothing of trio_uring."""
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(trio.serve_tcp, echo, 0)
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            nursery.start_soon(stream.send_all, SENT)
            received = 0
            while received < len(SENT):
                received += len(await stream.receive_some())
        nursery.cancel_scope.cancel()
    info = trio_uring.backend_info()
    print(f"{info.backend}, because {info.reason}; {received} bytes echoed", flush=True)
    assert info.backend == "readiness"


async def echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


def child(name: str) -> int:
    """In this process io_uring_setup answers with that errno, or ends the process, from now on."""
    if name in ENDS:
        seccomp.answer(seccomp.IO_URING_SETUP, getattr(seccomp, name))
    else:
        seccomp.deny(seccomp.IO_URING_SETUP, getattr(errno, name))
    trio_uring.run(program)
    if name not in (ANSWERS[0], ENDS[0]):  # the checks of streams see no difference
        return 0
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", CHECKS], check=False
    ).returncode  # the filter is inherited


def main() -> int:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TRIO_URING_")
    }
    failed, all_of_them = [], (*ANSWERS, *ENDS)
    for name in all_of_them:
        print(f"io_uring_setup answers {name}: ", end="", flush=True)
        command = [sys.executable, "-m", "tests.denied", name]
        if subprocess.run(
            command, env=environment, cwd=Path(__file__).parent.parent, timeout=120, check=False
        ).returncode:
            failed.append(name)
    verdict = "no fallback for" if failed else "falls back for each of"
    print(verdict, ", ".join(failed or all_of_them))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(child(sys.argv[1]) if len(sys.argv) > 1 else main())
