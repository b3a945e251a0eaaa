"""Child processes whose pipes are streams on the ring.

Rules of this file: the process is trio's own (trio.Process); only the parent's ends of the pipes
are ours. O_NONBLOCK is set on neither end, so that a child, and those it shares its end with, see a
pipe like the ones a shell makes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .endpoint import lease_under
from .streams import ReceiveStream, SendStream


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_Pipe = TypeVar("_Pipe", SendStream, ReceiveStream)

if TYPE_CHECKING:
    _Command = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@enable_ki_protection
async def open_process(
    command: _Command | Sequence[_Command],
    *,
    stdin: int | _HasFileno | None = None,
    stdout: int | _HasFileno | None = None,
    stderr: int | _HasFileno | None = None,
    **options: Any,
) -> trio.Process:
    """Starts a child process (trio.lowlevel.open_process) whose pipes are streams of this package.

    Args:
        command: a list of the program and its arguments; a string with shell=True.
        stdin, stdout, stderr: subprocess.PIPE, subprocess.DEVNULL, a descriptor, or an object with
            `fileno()`; None: inherited from this process. stderr may be subprocess.STDOUT.
        options: those of subprocess.Popen. Pipes always carry bytes and are unbuffered.

    Returns:
        A trio.Process. `stdin` is a trio_uring.SendStream, `stdout` and `stderr` are
        trio_uring.ReceiveStreams, and `stdio` is a trio.StapledStream of the first two; each is
        None if it has no pipe. Closing them is up to you. On Windows, all of these are trio's own.

    Raises:
        OSError: the program cannot be started.
        TypeError, ValueError: as in trio. After any of these, no pipe is left open.

    Cancellation: if it is cancelled before it begins, nothing is started; from then on it cannot be
    cancelled.
    """
    if sys.platform == "win32":  # its pipes cannot be waited for as sockets can
        return await trio.lowlevel.open_process(
            command, stdin=stdin, stdout=stdout, stderr=stderr, **options
        )
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as childs:
        child_in = child_out = child_err = None
        if stdin == subprocess.PIPE:
            stdin, child_in = _pipe(ours, childs, SendStream)
        if stdout == subprocess.PIPE:
            stdout, child_out = _pipe(ours, childs, ReceiveStream)
        if stderr == subprocess.PIPE:
            stderr, child_err = _pipe(ours, childs, ReceiveStream)
        process: trio.Process = await trio.lowlevel.open_process(
            command, stdin=stdin, stdout=stdout, stderr=stderr, **options
        )
        process.stdin, process.stdout, process.stderr = child_in, child_out, child_err
        if child_in is not None and child_out is not None:
            process.stdio = trio.StapledStream(child_in, child_out)
        ours.pop_all()
    return process


def _pipe(
    ours: contextlib.ExitStack, childs: contextlib.ExitStack, kind: type[_Pipe]
) -> tuple[int, _Pipe]:
    """Makes a pipe: the child's descriptor, and our stream. The stacks close them."""
    read, write = os.pipe()  # close-on-exec
    child, parent = (read, write) if kind is SendStream else (write, read)
    childs.callback(os.close, child)
    stream = kind(parent)
    ours.callback(lease_under(stream).close)
    return child, stream
