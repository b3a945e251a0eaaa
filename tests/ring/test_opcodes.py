"""The table of opcodes: every row is complete, and every family that is used is derived from it.

Rules of this file: pure logic, no ring.
"""

from __future__ import annotations

import ast
import pathlib
import select
from collections.abc import Iterator

import pytest

import trio_uring
from trio_uring._driver import readiness
from trio_uring._ring.op import Operation, poll_event
from trio_uring._ring.opcodes import (
    BY_READINESS,
    BYTES_RECEIVED,
    BYTES_SENT,
    OPCODES_MAX,
    POLL_EVENTS,
    RECEIVING,
    SENDING,
    Direction,
    Opcode,
)

every_opcode = pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)


@every_opcode
def test_every_row_is_complete(opcode):
    assert Opcode(int(opcode)) is opcode
    assert 0 <= opcode < OPCODES_MAX
    assert tuple(map(int, opcode.since.split("."))) >= (5, 1)
    assert isinstance(opcode.direction, Direction)
    assert opcode.poll_event in (0, select.POLLIN, select.POLLOUT)
    for column in Opcode.__annotations__.keys() - {"since", "direction", "poll_event"}:
        assert getattr(opcode, column) in (True, False), column


@every_opcode
def test_every_row_makes_sense(opcode):
    assert opcode.counts_bytes is (opcode.direction is not Direction.NEITHER)
    if opcode.direction is Direction.SENDING:
        assert opcode.poll_event == select.POLLOUT
    if opcode.direction is Direction.RECEIVING:
        assert opcode.poll_event == select.POLLIN
    # It is waited for, and then tried.
    assert opcode.may_be_tried is (opcode.poll_event != 0)
    # What a ring does not do, or lacks, is done by its call.
    assert opcode.may_be_tried or (opcode.by_completion and opcode.required)


@every_opcode
def test_every_family_has_those_that_its_column_says(opcode):
    assert (opcode in SENDING) is (opcode.direction is Direction.SENDING)
    assert (opcode in RECEIVING) is (opcode.direction is Direction.RECEIVING)
    assert (opcode in BYTES_SENT) is (opcode in SENDING and opcode.counts_bytes)
    assert (opcode in BYTES_RECEIVED) is (opcode in RECEIVING and opcode.counts_bytes)
    assert (opcode in BY_READINESS) is not opcode.by_completion
    assert POLL_EVENTS[int(opcode)] == opcode.poll_event


@pytest.mark.parametrize(
    "family", [SENDING, RECEIVING, BYTES_SENT, BYTES_RECEIVED, BY_READINESS], ids=str
)
def test_a_family_has_an_opcode_and_its_number(family):
    """Which a set of plain ints would not: the hash of an enum is its name's."""
    for number in family:
        assert type(number) is int
        assert Opcode(number) in family
        assert int(number) in family


@every_opcode
def test_what_may_be_tried_has_a_system_call_and_nothing_else_has(opcode):
    assert (int(opcode) in readiness._CALLS) is opcode.may_be_tried


def test_no_family_is_written_out():
    """Whoever needs several opcodes asks the table for them. Two places name them one by one: what
    the system call of each is, and which one a direction's kind of operation means on a socket and
    on a file."""
    package = pathlib.Path(trio_uring.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in collections_in(ast.parse(path.read_text()))
        if len(members_of(node)) > 1
    }
    assert found == {"_driver/readiness.py", "_descriptors/direction.py"}


def collections_in(tree: ast.AST) -> Iterator[ast.AST]:
    """Those that are written out; not what is unpacked at once, into a name for each."""
    unpacked = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Set, ast.Tuple, ast.List, ast.Dict)) and node not in unpacked:
            yield node


def members_of(node: ast.AST) -> set[str]:
    return {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and getattr(inner.value, "id", None) == "Opcode"
    }


@every_opcode
def test_what_an_operation_waits_for(opcode):
    op = Operation(opcode, 7)
    assert poll_event(op) == opcode.poll_event
    op.flags = select.POLLPRI  # of a send or receive these are MSG_*
    assert poll_event(op) == (opcode.poll_event or select.POLLPRI)


def test_a_ring_of_sockets_needs_few_opcodes():
    required = {opcode.name for opcode in Opcode if opcode.required}
    assert required == {"SEND", "SENDMSG", "RECV", "POLL_ADD", "ASYNC_CANCEL"}
