"""Objects become addresses: what an entry says, what an operation pins, and what the kernel wrote into a message.

Rules of this file: rule S1 of _ring.py. What an entry points at is in `op.pin`, or kept by the operation itself (`op.entry`,
`op.vector`), which the ring's table holds; nothing here looks at a task or enters the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._extension import ffi, lib
from ._op import NAME_MAX, NO_GROUP, Opcode

if TYPE_CHECKING:
    from ._op import Message, Operation

_SQE_BUFFER_SELECT, _RECV_MULTISHOT = 1 << 5 << 8, 1 << 1 << 16  # in place in the entry's first word

# Looked up once: they are called for most operations.
_new, _from_buffer, _VECTOR, _tu_pair = ffi.new, ffi.from_buffer, "struct tu_vector *", lib.tu_vector_pair


def make_entry(op: Operation) -> Any:
    """What is the same each time that this operation is submitted; kept by it."""
    head = op.opcode | (op.fd & 0xFFFFFFFF) << 32 | (0 if op.group == NO_GROUP else _SQE_BUFFER_SELECT)
    if op.shots is not None:
        head |= _RECV_MULTISHOT
    op.entry = _new("struct tu_entry *", (head, op.offset, op.flags, max(op.group, 0)))
    return op.entry


def pin(op: Operation) -> tuple[Any, int]:
    """Pins whatever the operation points at; returns the entry's address and length. UringRing.submit has it inlined."""
    if op.buffer is not None:
        op.pin = address = _from_buffer(op.buffer)
        return address + op.start if op.start else address, op.length
    if op.buffers is None and op.message is None:
        return ffi.NULL, op.length
    return pin_vector(op)


def pin_vector(op: Operation) -> tuple[Any, int]:
    """Pins [what SENDMSG, RECVMSG, WRITEV and ACCEPT point at, the buffers...]; returns the entry's address and length."""
    pins: list[Any] = [_from_buffer(buffer) for buffer in op.buffers or ()]
    if len(pins) == 2 and not op.start and op.message is None:
        vector = op.vector = op.vector or _new(_VECTOR, {"iov": 4})
        _tu_pair(vector, pins[0], len(pins[0]), pins[1], len(pins[1]))
    elif op.group != NO_GROUP:  # the kernel brings the buffer, of at most this length
        vector = _new(_VECTOR, {"iov": 2})
        lib.tu_vector_fill(vector, 1, [ffi.NULL], [op.length], 0)
    else:
        vector = _new(_VECTOR, {"iov": 2 * len(pins)})
        lib.tu_vector_fill(vector, len(pins), pins, [len(pin) for pin in pins], op.start)
    op.pin = [vector, *pins]
    if op.opcode == Opcode.WRITEV:
        return vector.iov, len(pins)
    if op.message is not None:
        op.vector = vector
        if op.opcode == Opcode.ACCEPT:
            vector.name_length = NAME_MAX
            op.entry.off = int(ffi.cast("uintptr_t", ffi.addressof(vector, "name_length")))
            return vector.name, 0
        _pin_message(op, op.message, vector)
    return vector, 1


def _pin_message(op: Operation, message: Message, vector: Any) -> None:
    if op.opcode == Opcode.RECVMSG:
        message.control = bytearray(message.control_max)
        name_length = NAME_MAX
    else:
        name_length = len(message.name)
        ffi.memmove(vector.name, message.name, min(name_length, NAME_MAX))
    control = _from_buffer(message.control) if message.control else ffi.NULL
    if lib.tu_vector_message(vector, name_length, control, len(message.control)) < 0:
        raise ValueError(f"an address of {name_length} bytes: sockets have at most {NAME_MAX}")
    op.pin.append(control)


def read_message(op: Operation) -> None:
    """Reads into op.message what the kernel wrote for an operation that is done."""
    message, vector = op.message, op.vector
    if message is None or vector is None:
        return
    if op.opcode == Opcode.ACCEPT:
        message.name = bytes(ffi.buffer(vector.name, min(vector.name_length, NAME_MAX)))
        return
    out = ffi.new("int64_t[3]")
    lib.tu_vector_received(vector, out)
    message.name = bytes(ffi.buffer(vector.name, min(out[0], NAME_MAX)))
    message.control = bytes(message.control[: out[1]])
    message.flags = out[2]
