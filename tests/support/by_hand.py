"""Coroutines that a test drives by hand, step by step.

Rules of this file: what such a coroutine yields to trio says what it waits for.
"""

from __future__ import annotations

from typing import Any

import outcome
import trio
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring._ring.op import Opcode

SENDS = (Opcode.SEND, Opcode.SENDMSG)  # which never wait: a poll does, after one that found no room


async def park(coro: Any) -> None:
    """Runs a call by hand until it waits for the kernel, and its operation has been submitted."""
    message = coro.send(None)
    while True:
        result = None
        if not isinstance(message, WaitTaskRescheduled):
            await trio.lowlevel.checkpoint()
        elif getattr(getattr(message.abort_func, "__self__", None), "opcode", None) in SENDS:
            result = await trio.lowlevel.wait_task_rescheduled(message.abort_func)
        else:
            break
        message = coro.send(outcome.Value(result))
    while trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()


def run_by_hand(coro: Any) -> None:
    """Steps a coroutine to its first wait, where there is no scheduler: in a forked child."""
    try:
        coro.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")
