"""Outgoing against the joined bytes: whatever was given and however little goes at a time, it hands
out the rest of them in order, and every buffer can be resized afterwards.

Rules: no I/O. What a stream would send is read from the fields of an operation.
"""

from __future__ import annotations

import array
import ctypes
import types
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.long_cases import examples

from trio_uring._bytes import outgoing
from trio_uring._bytes.outgoing import Outgoing

pytestmark = pytest.mark.no_ring


class Record(ctypes.Structure):
    """Of a format that only its own library knows: a memoryview cannot cast it."""

    _fields_ = [("a", ctypes.c_uint8), ("b", ctypes.c_uint16)]


def records(data: bytes) -> Any:
    size = ctypes.sizeof(Record)
    return (Record * (len(data) // size)).from_buffer_copy(data[: len(data) // size * size])


def table(data: bytes) -> memoryview:
    """Two dimensions."""
    rows = len(data) // 2
    return memoryview(bytearray(data[: 2 * rows])).cast("B", (rows, 2)) if rows else memoryview(b"")


FORMS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "array": lambda data: array.array("H", data[: len(data) // 2 * 2]),
    "signed": lambda data: memoryview(bytearray(data)).cast("b"),
    "part": lambda data: memoryview(b"_" + data + b"_")[1:-1],
    "records": records,
    "table": table,
    "scalar": lambda data: ctypes.c_uint32(len(data)),
}
buffers = st.builds(
    lambda form, data: FORMS[form](data), st.sampled_from(sorted(FORMS)), st.binary(max_size=12)
)


def content(items: list[Any]) -> bytes:
    return b"".join(memoryview(item).tobytes() for item in items)


def can_be_resized(item: Any) -> bool:
    if isinstance(item, (bytearray, array.array)):
        try:
            item.append(0)
        except BufferError:
            return False
        item.pop()
    return True


def loaded(out: Outgoing) -> bytes:
    """What an operation would send."""
    op = types.SimpleNamespace(buffer=None, buffers=None, start=-1, length=-1)
    many = out.vectored
    out.load(op)
    assert (op.buffer is None) == many == (op.buffers is not None)
    parts = [op.buffer] if op.buffers is None else list(op.buffers)
    assert 1 <= len(parts) <= outgoing.IOV_MAX
    assert len(parts) > 1 or not many
    # no more is added once there is enough
    assert len(content(parts[:-1])) - op.start < outgoing.VECTOR_BYTES_MAX or len(parts) == 1
    assert all(memoryview(part).nbytes for part in parts)
    assert 0 <= op.start < parts[0].nbytes
    assert 0 < op.length <= outgoing.SEND_MAX
    rest = content(parts)[op.start :]
    assert op.length == min(len(rest), outgoing.SEND_MAX)
    return rest[: op.length]


@given(data=st.data(), items=st.lists(buffers, max_size=12))
@settings(max_examples=examples(2000), deadline=None)
@mock.patch.multiple(outgoing, IOV_MAX=4, VECTOR_BYTES_MAX=20, SEND_MAX=9)
def test_what_it_hands_out_is_all_that_was_given(data: st.DataObject, items: list[Any]) -> None:
    whole = content(items)
    given_whole = data.draw(st.sampled_from([list, tuple])) if len(items) != 1 else None
    out = Outgoing(given_whole(items) if given_whole else items[0])
    held = [item for item in items if memoryview(item).nbytes]
    went = b""
    while not out.done:
        rest = whole[len(went) :]
        assert rest
        assert out.count <= len(held)
        way = data.draw(st.sampled_from(["load", "cut", "first", "take"]))
        if way == "take":
            size = len(out.first())
            part = out.take(data.draw(st.integers(0, size + 3)))
            assert len(part) <= size
        else:
            if way == "load":
                part = loaded(out)
            elif way == "cut":
                views = out.cut()
                assert len(views) <= outgoing.IOV_MAX
                assert (len(views) > 1) == out.vectored
                assert views[0].format == "B"
                assert views[0].ndim == 1
                part = content(views)
                del views
            else:
                part = bytes(out.first())
            assert rest.startswith(part)
            part = part[: data.draw(st.integers(0, len(part)))]
            out.advance(len(part))
        went += part
        assert whole.startswith(went)
    assert went == whole
    assert out.count == 0
    assert all(map(can_be_resized, items))  # what has gone is not held


@given(items=st.lists(buffers, max_size=6), data=st.data())
@settings(max_examples=examples(500), deadline=None)
def test_every_buffer_can_be_resized_after_the_release(
    items: list[Any], data: st.DataObject
) -> None:
    with Outgoing(items) as out:
        for item in items:
            assert can_be_resized(item) == (
                not isinstance(item, (bytearray, array.array)) or not len(item)
            )
        while not out.done and data.draw(st.booleans()):
            rest = out.first()
            out.advance(data.draw(st.integers(0, len(rest))))
            del rest
    assert all(map(can_be_resized, items))
    out.release()


def test_what_has_gone_is_let_go_before_the_rest() -> None:
    first, second = bytearray(10), bytearray(10)
    out = Outgoing([first, second])
    out.advance(9)
    assert not can_be_resized(first)
    out.advance(1)
    assert can_be_resized(first)
    assert not can_be_resized(second)
    out.release()
    assert can_be_resized(second)


def test_a_buffer_that_something_else_exports_stays_until_that_is_gone() -> None:
    """As the kernel's pin on it does, of a call whose coroutine was destroyed."""
    item = bytearray(10)
    out = Outgoing(item)
    op = types.SimpleNamespace()
    out.load(op)
    pin = memoryview(op.buffer)
    out.advance(10)
    out.release()
    assert not can_be_resized(item)
    pin.release()
    assert can_be_resized(item)


@pytest.mark.parametrize("wrong", ["str", 5, None, memoryview(b"abcd")[::2]])
def test_a_wrong_buffer_is_found_first_and_none_is_held(wrong: object) -> None:
    item = bytearray(10)
    with pytest.raises((TypeError, BufferError)) as caught:
        Outgoing([item, wrong])
    assert can_be_resized(item)  # though the traceback is still here
    assert caught.value.__traceback__ is not None


def test_text_is_no_buffer_and_no_sequence_of_them() -> None:
    with pytest.raises(TypeError, match="encode the text"):
        Outgoing("text")  # type: ignore[arg-type]


def test_a_sequence_that_is_a_buffer_is_one() -> None:
    item = array.array("H", [1, 2])
    with Outgoing(item) as out:
        assert out.count == 1
        assert bytes(out.first()) == item.tobytes()
