"""No wake-up is lost: 100,000 messages to another process and back, with every set of setup flags
and both ways to wait.

Rules of this file: the data comes from a process that shares nothing with ours (a test in one
thread cannot see a lost wake-up). A loss makes the child hang: nothing of ours ticks that could
hide it.
"""

from __future__ import annotations

import socket

import pytest
import trio
from support.child import BY_READINESS, EVERY_FLAGS, Passes, in_child, use_ring
from support.peer import echo_peer

import trio_uring

MANY = 100_000


async def ping_pong(sock: socket.socket, messages: int) -> None:
    async with trio_uring.SocketStream(sock) as stream:
        for number in range(messages):
            message = number.to_bytes(8, "little")
            await stream.send_all(message)
            assert await stream.receive_exactly(8) == message


@pytest.mark.parametrize("messages", [MANY // 20, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_ping_pongs(flags: str, connections: int, messages: int) -> None:
    use_ring(flags=flags)
    with echo_peer(connections) as socks:
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(ping_pong, sock, messages // connections)
    statistics = trio_uring.current_statistics()
    count = messages // connections * connections
    assert statistics.bytes_received == statistics.bytes_sent == 8 * count
    assert statistics.in_flight == 0
    assert ("DEFER_TASKRUN" in statistics.setup_flags) == (flags == "defer")


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_a_pass_for_each_operation_and_no_more(flags: str) -> None:
    """A pass for the send, and one for the answer; in each, one enter submits, waits and drains."""
    use_ring(flags=flags)
    messages, passes = 2000, Passes()
    with echo_peer(1) as [sock]:
        trio.lowlevel.add_instrument(passes)
        await ping_pong(sock, messages)
        trio.lowlevel.remove_instrument(passes)
    statistics = trio_uring.current_statistics()
    print(passes.count, statistics.enters)
    assert passes.count < 2.1 * messages
    assert BY_READINESS or statistics.enters < 2.1 * messages
