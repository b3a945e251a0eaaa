"""Seccomp filters that do to one system call what sandboxes do, permanently for the calling thread.

Rules of this file: ctypes and prctl only; x86-64 and aarch64 have the same numbers for io_uring.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427
_ON_ARM = platform.machine() == "aarch64"
CLONE, WAIT4, SWAPON = (220, 260, 224) if _ON_ARM else (56, 61, 167)
_SECCOMP = 277 if _ON_ARM else 317

# What a filter answers.
KILL_PROCESS, KILL_THREAD, TRAP = 0x80000000, 0x00000000, 0x00030000
ERRNO, _ASK, ALLOW = 0x00050000, 0x7FC00000, 0x7FFF0000

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_SET_FILTER, _NEW_LISTENER = 1, 8
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_GREATER, AND, RETURN = 0x20, 0x15, 0x25, 0x54, 0x06


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def deny(system_call: int, code: int) -> None:
    """From now on `system_call` fails with errno `code`."""
    answer(system_call, ERRNO | code)


def answer(system_call: int, action: int) -> None:
    """From now on the filter does that for `system_call`: KILL_PROCESS, KILL_THREAD or TRAP."""
    _install(_program(system_call, action))


def install(code: Sequence[tuple[int, int, int, int]]) -> None:
    """From now on that filter decides: instructions with their two jumps and their operand."""
    _install(_as_program(code))


def _install(program: _Program) -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program), 0, 0)


def ask_nobody(system_call: int) -> int:
    """From now on `system_call` waits for an answer of who has the descriptor that this returns."""
    program = _program(system_call, _ASK)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _call("syscall", _SECCOMP, _SET_FILTER, _NEW_LISTENER, ctypes.addressof(program))


def _program(system_call: int, action: int) -> _Program:
    return _as_program(
        [
            (LOAD_WORD, 0, 0, 0),  # the number of the call
            (JUMP_IF_EQUAL, 0, 1, system_call),
            (RETURN, 0, 0, action),
            (RETURN, 0, 0, ALLOW),
        ]
    )


def _as_program(code: Sequence[tuple[int, int, int, int]]) -> _Program:
    instructions = (_Instruction * len(code))(*(_Instruction(*each) for each in code))
    return _Program(len(instructions), instructions)


def _call(function: str, first: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(libc, function)(ctypes.c_int(first), *map(ctypes.c_ulong, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
