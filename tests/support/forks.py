"""Forks a test's child from a process that has imported everything.

Starting Python anew for each child would cost more than most tests.

Rules of this file: the process that forks has no thread, no ring and no trio run; it imports,
forks, and waits for one child at a time. There is one for each process of tests, and it ends when
that does, because its socket is then closed; and if that dies, it is killed, as is the child. A
child ends as Python ends, and its output goes to a file.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
REQUEST_MAX = 2**16  # bytes
_PR_SET_PDEATHSIG = 1


class Child:
    """A child that runs: its number, and how it ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.pid = int(self._told(60))

    def wait(self, timeout: float) -> int:
        """The exit code, or -signal. Raises TimeoutError after so many seconds; it can be called
        again."""
        return int(self._told(timeout))

    def _told(self, timeout: float) -> bytes:
        self._control.settimeout(timeout)
        told = self._control.recv(100)
        assert told, "the process that forks has ended"
        return told


class Server:
    """The process that forks."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path[0] = {str(ROOT)!r}; "
            f"from {__name__} import serve; serve({theirs.fileno()})"
        )
        command = [sys.executable, "-W", "error", "-c", code]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], start_new_session=True
            )
        atexit.register(self._close)

    def start(
        self, module: str, name: str, arguments: dict[str, object], output: IO[bytes]
    ) -> Child:
        """A child that runs the scenario of `module.name` with these arguments, which must be JSON,
        and writes to `output`."""
        request = json.dumps([module, name, arguments]).encode()
        socket.send_fds(self._control, [request], [output.fileno()])
        return Child(self._control)

    def _close(self) -> None:
        self._control.close()
        self._process.wait()


# -- in the process that forks


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def until_alone() -> None:
    """Until the threads of imports, as of a self-test, are gone from the kernel's view, too."""
    while len(os.listdir("/proc/self/task")) > 1:
        time.sleep(0.001)


def serve(descriptor: int) -> None:
    """Returns at the end, and in every child after its test."""
    import pytest as pytest  # the tests import it

    from .child import run_scenario  # which imports all else

    die_with_parent()
    with socket.socket(fileno=descriptor) as control:
        while True:
            request, [*descriptors], _, _ = socket.recv_fds(control, REQUEST_MAX, 1)
            if not request:
                return
            [output] = descriptors
            module, name, arguments = json.loads(request)
            with contextlib.suppress(Exception):  # the child will say what is wrong with it
                importlib.import_module(module)
            if hasattr(gc, "freeze"):  # a collection in the child has not to look at the imports
                gc.freeze()
            until_alone()
            pid = os.fork()
            if not pid:
                break
            os.close(output)
            control.send(str(pid).encode())
            control.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    die_with_parent()
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    run_scenario(module, name, arguments)
