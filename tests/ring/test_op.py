"""The tables of opcodes, and of an operation's states: every pair is either listed or refused.

Rules of this file: pure logic, no ring.
"""

from __future__ import annotations

import pytest

from trio_uring._ring.op import (
    CANCELLING,
    DONE,
    LINGERING,
    NEW,
    RECEIVING,
    SENDING,
    STEPS,
    SUBMITTED,
    Direction,
    Opcode,
    Operation,
    OperationStateError,
)
from trio_uring._ring.protocol import OPCODES_MAX

STATES = (NEW, SUBMITTED, CANCELLING, LINGERING, DONE)


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_every_opcode_has_its_columns(opcode):
    assert Opcode(int(opcode)) is opcode
    assert 0 <= opcode < OPCODES_MAX
    assert tuple(map(int, opcode.since.split("."))) >= (5, 1)
    assert opcode.required in (True, False)
    assert (opcode in SENDING) is (opcode.direction is Direction.SENDING)
    assert (opcode in RECEIVING) is (opcode.direction is Direction.RECEIVING)
    assert opcode.counts_bytes is (opcode.direction is not Direction.NEITHER)


def test_a_ring_of_sockets_needs_few_opcodes():
    required = {opcode.name for opcode in Opcode if opcode.required}
    assert required == {"SEND", "SENDMSG", "RECV", "POLL_ADD", "ASYNC_CANCEL"}


@pytest.mark.parametrize("state", STATES, ids=repr)
@pytest.mark.parametrize("target", STATES[1:], ids=repr)
def test_only_listed_steps_can_be_taken(state, target):
    if target in STEPS[state]:
        assert getattr(state, target.name.lower()) is target
    else:
        with pytest.raises(OperationStateError, match=f"{state.name}.*{target.name}"):
            getattr(state, target.name.lower())


def test_only_three_states_are_the_kernels():
    assert {state for state in STATES if state.in_kernel} == {SUBMITTED, CANCELLING, LINGERING}


def test_an_operation_says_what_it_is():
    assert repr(Operation(Opcode.SEND, 7)) == "<SEND fd=7 NEW res=0>"
