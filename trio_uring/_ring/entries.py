"""Turns objects into addresses: writes what an entry says, and pins what it points at.

Rules of this file: rule S1 of _ring/base.py. What an entry points at is in `op.pin`, or kept by
the operation itself (`op.entry`, `op.vector`), which is in the ring's table. Nothing here looks at
a task or enters the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._accelerator import hot
from .extension import ffi, lib
from .op import NO_GROUP
from .opcodes import Opcode

if TYPE_CHECKING:
    from .op import Operation

_SQE_BUFFER_SELECT = 1 << 5 << 8  # at its position in the entry's first word

# Looked up once, since they are called for most operations.
_new, _from_buffer, _tu_pair = ffi.new, ffi.from_buffer, lib.tu_vector_pair
_VECTOR = "struct tu_vector *"


def make_entry(op: Operation) -> Any:
    """Makes the part of the entry that is the same in each submission, and keeps it in the op."""
    head = (
        op.opcode | (op.fd & 0xFFFFFFFF) << 32 | (0 if op.group == NO_GROUP else _SQE_BUFFER_SELECT)
    )
    op.entry = _new("struct tu_entry *", (head, op.offset, op.flags, max(op.group, 0)))
    if hot is not None:
        op.entry_at = address(op.entry)
    return op.entry


def address(pointer: Any) -> int:
    """For the accelerator, which has no cdata."""
    return int(ffi.cast("uintptr_t", pointer))


def address_of(function: str) -> int:
    """The same, of one of C's functions."""
    return address(ffi.addressof(lib, function))


def pin_vector(op: Operation) -> tuple[Any, int]:
    """Pins the buffers of a SENDMSG or WRITEV and the vector that points at them.

    Returns:
        The entry's address and length.
    """
    pins: list[Any] = [_from_buffer(buffer) for buffer in op.buffers or ()]
    if len(pins) == 2 and not op.start:
        vector = op.vector = op.vector or _new(_VECTOR, {"iov": 4})
        _tu_pair(vector, pins[0], len(pins[0]), pins[1], len(pins[1]))
    else:
        vector = _new(_VECTOR, {"iov": 2 * len(pins)})
        lib.tu_vector_fill(vector, len(pins), pins, [len(pin) for pin in pins], op.start)
    op.pin = [vector, *pins]
    if op.opcode == Opcode.WRITEV:
        return vector.iov, len(pins)
    return vector, 1
