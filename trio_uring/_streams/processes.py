"""Child processes whose pipes are streams on the ring.

Rules of this file: the process is trio's own (trio.Process); only the parent's ends of the pipes
are ours. O_NONBLOCK is set on neither end: a child that shares its end with others sees a pipe as a
shell would make it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
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
    """Starts a child process (trio.lowlevel.open_process), with streams of this package where a
    pipe is asked for.

    Args:
        command: a list of the program and its arguments; a string with shell=True.
        stdin, stdout, stderr: subprocess.PIPE, subprocess.DEVNULL, a descriptor, or something with
            `fileno()`; None: as this process has it. stderr may be subprocess.STDOUT.
        options: those of subprocess.Popen; pipes are always of bytes and unbuffered.

    Returns:
        A trio.Process. `stdin` is a trio_uring.SendStream, `stdout` and `stderr` are
        trio_uring.ReceiveStream, and `stdio` is a trio.StapledStream of the first two; each is None
        without its pipe. Nobody closes them for you.

    Raises:
        OSError: the program cannot be started. TypeError, ValueError: as of trio. No pipe is left
            open.

    Cancellation: cancelled before it begins, nothing was started; from then on it is not
    cancellable.
    """
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
    """A pipe: the descriptor for the child, and our stream. The stacks close them."""
    read, write = os.pipe()  # close-on-exec
    child, parent = (read, write) if kind is SendStream else (write, read)
    childs.callback(os.close, child)
    stream = kind(parent)
    ours.callback(lease_under(stream).close)
    return child, stream
