"""A test file: a client of a line protocol, tested without a kernel and with one.

    pip install pytest pytest-trio
    pytest examples/test_line_protocol.py

The client takes its network as a value. `simulated_network` gives it one in memory, with a clock
that jumps, where faults happen when the test says so; `echo_server` is a peer on the ring, and
`uring_driver_idle` fails a test that leaves an operation or a descriptor behind.
"""

import pytest
import trio

import trio_uring

pytestmark = pytest.mark.trio

LINE_MAX = 1000
ATTEMPTS = 3
PAUSE_SECONDS = 1.0
ANSWER_SECONDS = 5.0


async def ask(network: trio_uring.Network, address: tuple[str, int], question: bytes) -> bytes:
    """What is tested: sends a line and returns the line that comes back; tries again if the
    connection breaks."""
    for attempt in range(ATTEMPTS):
        try:
            async with await network.dial(address) as stream:
                await stream.send_all([question, b"\n"])
                line = await stream.receive_until(b"\n", LINE_MAX, timeout=ANSWER_SECONDS)
                return line[:-1]
        except (OSError, trio.BrokenResourceError, trio_uring.IncompleteReadError):
            if attempt == ATTEMPTS - 1:
                raise
            await trio.sleep(PAUSE_SECONDS)
    raise AssertionError


class Server:
    """Answers each line with its length; hangs up on the first clients instead."""

    def __init__(self, hangs_up: int = 0) -> None:
        self.hangs_up = hangs_up

    async def handle(self, stream: trio_uring.NetworkStream) -> None:
        line = await stream.receive_until(b"\n", LINE_MAX)
        if self.hangs_up:
            self.hangs_up -= 1
        else:
            await stream.send_all(b"%d\n" % (len(line) - 1))


ADDRESS = ("server", 7)


async def serve(network, nursery, server):
    listener = await network.bind(ADDRESS)
    nursery.start_soon(trio.serve_listeners, server.handle, [listener])


async def test_an_answer(simulated_network, autojump_clock, nursery):
    await serve(simulated_network, nursery, Server())
    assert await ask(simulated_network, ADDRESS, b"hello") == b"5"


async def test_it_tries_again(simulated_network, autojump_clock, nursery):
    await serve(simulated_network, nursery, Server(hangs_up=2))
    assert await ask(simulated_network, ADDRESS, b"hello") == b"5"
    assert trio.current_time() == 2 * PAUSE_SECONDS


async def test_it_gives_up(simulated_network, autojump_clock, nursery):
    with pytest.raises(ConnectionRefusedError):
        await ask(simulated_network, ADDRESS, b"hello")
    assert trio.current_time() == 2 * PAUSE_SECONDS


async def test_no_answer_is_a_timeout(simulated_network, autojump_clock, nursery):
    async with await simulated_network.bind(ADDRESS):
        with pytest.raises(trio.TooSlowError):
            await ask(simulated_network, ADDRESS, b"hello")
    assert trio.current_time() == ANSWER_SECONDS


async def test_on_sockets(echo_server, uring_driver_idle):
    assert await ask(trio_uring.UringNetwork(), echo_server, b"hello") == b"hello"
