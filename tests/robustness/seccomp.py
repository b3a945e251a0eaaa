"""A seccomp filter that answers one system call with an errno, as containers do. For the calling thread, and for good.

Rules of this file: ctypes and prctl only; x86-64 and aarch64 have the same numbers for io_uring.
"""

from __future__ import annotations

import ctypes
import os

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RET_ERRNO, _RET_ALLOW = 0x00050000, 0x7FFF0000


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def deny(system_call: int, code: int) -> None:
    """From now on `system_call` fails with errno `code`."""
    instructions = (_Instruction * 4)(
        _Instruction(_LOAD_WORD, 0, 0, 0),  # the number of the call
        _Instruction(_JUMP_IF_EQUAL, 0, 1, system_call),
        _Instruction(_RETURN, 0, 0, _RET_ERRNO | code),
        _Instruction(_RETURN, 0, 0, _RET_ALLOW),
    )
    program = _Program(len(instructions), instructions)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    if libc.prctl(ctypes.c_int(option), *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
