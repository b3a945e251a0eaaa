"""What an operation in flight is about, for people: its peer, and where its task waits.

Rules of this file: it only looks. A signal handler may call it at any point of a run's pass, in any
thread: nothing here waits, imports, takes a lock or changes anything, and what is found to be
changing is left out.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from .._ring.statistics import OperationInFlight

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAMES_MAX = 4
# Whose frames say nothing about a program.
_LIBRARIES = (
    f"{Path(trio.__file__ or '').parent}{os.sep}",
    f"{Path(__file__).parent.parent}{os.sep}",
)


def in_flight(op: Any, state: str, age: float) -> OperationInFlight:
    """Describes an operation."""
    task = op.task
    return OperationInFlight.of(op, task, state, age, peer_of(op.owner), waits_at(task))


def peer_of(owner: object) -> str | None:
    """Who is at the other end of what keeps a descriptor open; None: it is no socket.

    A socket that is not connected has "(bound to ...)" instead.
    """
    if not isinstance(owner, socket.socket):
        return None
    try:
        peer = owner.getpeername()
        return _address(peer) if peer else _address(owner.getsockname()) or "an unnamed socket"
    except (OSError, ValueError):
        pass
    try:
        own = _address(owner.getsockname())
    except (OSError, ValueError):
        return None
    return f"(bound to {own})" if own else None


def _address(address: Any) -> str:
    """An address as text. A path is the peer's choice: it does not control the terminal."""
    if isinstance(address, bytes):  # of Linux's abstract namespace
        address = f"@{address[1:].decode(errors='replace')}"
    if not isinstance(address, tuple) or len(address) < 2:
        return repr(str(address))[1:-1]
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def waits_at(task: Any) -> tuple[str, ...]:
    """Where a task waits: "file:line in function", the innermost first.

    Frames of trio and of this package are left out. If there are no others, it is the function that
    the task was started with.
    """
    if task is None:
        return ()
    frames: list[tuple[str, str]] = []
    try:
        for frame, line in task.iter_await_frames():
            code = frame.f_code
            frames.append((code.co_filename, f"{code.co_filename}:{line} in {code.co_name}"))
    except Exception:  # in another thread, it has gone on meanwhile
        pass
    return tuple(_innermost(frames))


def runs_at(frame: Any) -> tuple[str, ...]:
    """The same of a thread that runs, by its current frame."""
    frames: list[tuple[str, str]] = []
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename, f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"))
        frame = frame.f_back
    frames.reverse()
    return tuple(_innermost(frames))


def _innermost(frames: list[tuple[str, str]]) -> Iterator[str]:
    ours = [text for file, text in frames if not file.startswith(_LIBRARIES)]
    return reversed(ours[-FRAMES_MAX:] or [text for _, text in frames[:1]])
