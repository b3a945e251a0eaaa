"""The table of an operation's states: every pair of states is either listed or refused.

Rules of this file: pure logic, no ring.
"""

from __future__ import annotations

import pytest

from trio_uring._ring.op import (
    CANCELLING,
    DONE,
    NEW,
    STEPS,
    SUBMITTED,
    Opcode,
    Operation,
    OperationStateError,
)

STATES = (NEW, SUBMITTED, CANCELLING, DONE)


@pytest.mark.parametrize("state", STATES, ids=repr)
@pytest.mark.parametrize("target", STATES[1:], ids=repr)
def test_only_listed_steps_can_be_taken(state, target):
    if target in STEPS[state]:
        assert getattr(state, target.name.lower()) is target
    else:
        with pytest.raises(OperationStateError, match=f"{state.name}.*{target.name}"):
            getattr(state, target.name.lower())


def test_only_two_states_are_the_kernels():
    assert {state for state in STATES if state.in_kernel} == {SUBMITTED, CANCELLING}


def test_an_operation_says_what_it_is():
    assert repr(Operation(Opcode.SEND, 7)) == "<SEND fd=7 NEW res=0>"
