"""The supervisor as process 1 of a container: orphans, and signals that the kernel would drop.

Rules of this file: a PID namespace is made by unshare(1), where that is allowed; what is waited for
and what is not is also tried without one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.child import in_child
from support.workers import request, supervisor

from trio_uring._workers import orphans

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces are Linux's"),
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="PyPy has no waitid"),
]

PR_SET_CHILD_SUBREAPER = 36


# -- which are waited for


def left_to_us(status: int, gate: int) -> int:
    """A process whose parent has ended, and which ends with this status when the gate is closed."""
    code = f"read line; exit {status}"
    # Its output is not ours: the end of that is waited for.
    starts = f"import subprocess as s; print(s.Popen(['sh', '-c', {code!r}], stdout=s.DEVNULL).pid)"
    return int(subprocess.check_output([sys.executable, "-c", starts], stdin=gate))


def wait_until_ended(pid: int) -> None:
    """Until it is a zombie."""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(30_000)
    os.close(fd)


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@in_child()
def test_only_orphans_are_waited_for() -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    gate, closes = os.pipe()
    ours = [subprocess.Popen(["sh", "-c", f"read line; exit {n}"], stdin=gate) for n in (5, 6)]
    strangers = [left_to_us(status, gate) for status in (7, 8, 9)]
    known = {child.pid for child in ours}
    orphans.reap(known)
    assert all(map(is_there, strangers))
    os.close(closes)
    for pid in (*known, *strangers):
        wait_until_ended(pid)
    # One of ours that nobody has waited for may hide the others, and is left alone.
    orphans.reap(known)
    assert all(map(is_there, known))
    for child, status in zip(ours, (5, 6)):
        assert child.wait() == status
        orphans.reap(known)
    assert not any(map(is_there, strangers))
    orphans.reap(known)  # there are no children at all
    os.close(gate)


def test_without_a_namespace_nobody_else_is_waited_for() -> None:
    assert not orphans.gets_orphans()


# -- process 1

APP = """
import os, signal, subprocess, time

async def main(worker):
    async def handler(stream):
        what = await stream.receive_some()
        if what == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        pid = int(subprocess.check_output(["sh", "-c", "sleep 0.1 >&2 & echo $!"]))
        end = time.monotonic() + 30
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
            time.sleep(0.01)
        said = "gone" if time.monotonic() < end else open(f"/proc/{pid}/status").read()
        await stream.send_all(f"{said!r} {os.getppid()}\\n".encode())
    await worker.serve(handler)
"""


@functools.cache
def unshare() -> list[str]:
    """The command that makes a PID namespace, with a /proc of it."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("no PID namespace can be made here")
    return command


def first_of(pid: int) -> int:
    """Process 1 of the namespace that unshare(1) has made, as it is numbered outside."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_process_1(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    with supervisor([*unshare(), *command, "--bind", "127.0.0.1:0"], tmp_path) as one:
        port = int(one.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        one.wait_for("all workers are ready: 1")
        for _ in range(2):
            assert request(port) == ["'gone'", "1"]
        with pytest.raises((AssertionError, ConnectionError)):
            request(port, b"die")
        # Its status was not taken from the supervisor.
        one.wait_for("has ended by itself after .*: killed by SIGKILL")
        one.ready()
        assert request(port) == ["'gone'", "1"]
        os.kill(first_of(one.process.pid), number)
        assert one.end() == 0
        assert any(f"{number.name}: the workers end" in line for line in one.lines)
