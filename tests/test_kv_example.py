"""The key-value server example: over the ring, over a simulated network, and as a reader runs it.

Rules of this file: what the server does is tested over both networks; what needs time to pass is
tested over the simulated one, whose clock is virtual.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import tracemalloc
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring.testing import SimulatedNetwork, run_deterministically

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from kv_client import Client, Refused  # noqa: E402
from kv_protocol import (  # noqa: E402
    FOUND,
    FRAME_MAX,
    GET,
    KEY_MAX,
    MISSING,
    PUT,
    REFUSED,
    REQUEST,
    VALUE_MAX,
    parse_request,
)
from kv_server import CONNECTIONS_MAX, Server  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = ("127.0.0.1", 0)
SECONDS_MAX = 100  # for a process to answer or to end


async def served(
    make: Callable[[], trio_uring.Network], scenario: Any, address: Any = ADDRESS, **options: Any
) -> float:
    """Runs a scenario beside a server, which it has to stop. Returns when the server ended (trio's
    clock, in seconds)."""

    async def serve(*, task_status: Any) -> None:
        await server.serve(address, task_status=task_status)
        ended.append(trio.current_time())

    ended: list[float] = []
    network = make()
    server = Server(network, **options)
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(serve)
        await scenario(network, server, listener.local_address, nursery)
    return ended[0]


def ring(scenario: Any, **options: Any) -> None:
    trio.run(partial(served, trio_uring.UringNetwork, scenario, **options))


def simulated(scenario: Any, **options: Any) -> None:
    make = partial(SimulatedNetwork, 7, latency=(0.001, 0.02))
    run_deterministically(partial(served, make, scenario, **options), seed=7)


on_every_network = pytest.mark.parametrize("run", [ring, simulated])


async def raw(network: trio_uring.Network, address: trio_uring.Address) -> trio_uring.FrameStream:
    return trio_uring.FrameStream(await network.dial(address), FRAME_MAX)


async def closed_later(client: trio.abc.AsyncResource) -> None:
    async with client:
        await trio.sleep(60)


@on_every_network
def test_values_come_back_and_go(run):
    async def scenario(network, server, address, nursery):
        client = await Client.connect(network, address)
        assert await client.get(b"colour") is None
        await client.put(b"colour", b"green" * 100_000)
        other = await Client.connect(network, address)
        assert await other.get(b"colour") == b"green" * 100_000
        await other.put(b"", b"")
        assert await client.get(b"") == b""
        assert await client.delete(b"colour")
        assert not await other.delete(b"colour")
        server.stop()
        await client.aclose()
        await other.aclose()

    run(scenario)


@on_every_network
def test_what_is_too_long_is_refused_and_the_connection_goes_on(run):
    async def scenario(network, server, address, nursery):
        client = await Client.connect(network, address)
        with pytest.raises(Refused):
            await client.put(b"k" * (KEY_MAX + 1), b"")
        await client.put(b"k" * KEY_MAX, b"v" * VALUE_MAX)
        with pytest.raises(Refused):
            await client.put(b"k" * KEY_MAX, b"v" * (VALUE_MAX + 1))
        assert await client.get(b"k" * KEY_MAX) == b"v" * VALUE_MAX
        await client.aclose()
        server.stop()

    run(scenario)


@pytest.mark.parametrize(
    "frame", [b"", b"\1", b"\1\0", b"\0\0\0", b"\4\0\0", b"\1\0\1", b"\1\0\0x", b"\3\0\0x"]
)
@pytest.mark.no_ring
def test_what_is_no_request(frame):
    assert parse_request(frame) is None


@on_every_network
def test_requests_sent_ahead_are_answered_in_order_also_while_it_stops(run):
    async def scenario(network, server, address, nursery):
        channel = await raw(network, address)
        await channel.send([REQUEST.pack(PUT, 1), b"a", b"value"])
        assert await channel.receive() == bytes([FOUND])
        await channel.send_many(
            [[REQUEST.pack(GET, 1), b"ab"[turn % 2 : turn % 2 + 1]] for turn in range(500)]
            + [b"nonsense"]
        )
        answers = [await channel.receive()]
        server.stop()
        answers += [answer async for answer in channel]
        assert answers == [bytes([FOUND]) + b"value", bytes([MISSING])] * 250 + [bytes([REFUSED])]
        await channel.aclose()

    run(scenario)


@on_every_network
def test_a_stop_ends_idle_connections_and_refuses_new_ones(run):
    async def scenario(network, server, address, nursery):
        clients = [await raw(network, address) for _ in range(10)]
        for client in clients:
            await client.send([REQUEST.pack(GET, 1), b"k"])
            assert await client.receive() == bytes([MISSING])
        server.stop()
        for client in clients:
            with pytest.raises(trio.EndOfChannel):
                await client.receive()
            await client.aclose()
        with pytest.raises(ConnectionRefusedError):
            await network.dial(address)

    run(scenario)


@pytest.mark.no_ring
def test_a_request_that_has_begun_to_come_is_finished_after_a_stop():
    async def scenario(network, server, address, nursery):
        stream = await network.dial(address)
        frame = [REQUEST.pack(PUT, 1), b"k", b"v" * VALUE_MAX]
        await stream.send_all(struct.pack(">I", sum(map(len, frame))) + b"".join(frame)[:1000])
        server.stop()
        await trio.sleep(5)
        await stream.send_all(b"".join(frame)[1000:])
        assert await trio_uring.receive_frame(stream) == bytes([FOUND])
        assert server.store == {b"k": b"v" * VALUE_MAX}
        assert await stream.receive_some() == b""
        await stream.aclose()

    simulated(scenario)


@on_every_network
def test_a_request_on_its_way_when_the_server_stops_is_answered(run):
    async def scenario(network, server, address, nursery):
        channel = await raw(network, address)
        await channel.send([REQUEST.pack(GET, 1), b"k"])
        assert await channel.receive() == bytes([MISSING])
        await channel.send([REQUEST.pack(PUT, 1), b"k", b"v"])
        server.stop()
        assert await channel.receive() == bytes([FOUND])
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
        await channel.aclose()

    run(scenario)


@pytest.mark.no_ring
def test_a_client_that_does_not_read_makes_the_server_hold_little():
    async def scenario(network, server, address, nursery):
        channel = await raw(network, address)
        await channel.send([REQUEST.pack(PUT, 1), b"k", b"v" * 1000])
        await channel.receive()
        tracemalloc.start()
        try:
            # All the answers would be 5 MB.
            await channel.send_many([[REQUEST.pack(GET, 1), b"k"]] * 5000)
            await trio.sleep(1)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**21
        server.stop()
        nursery.start_soon(closed_later, channel)

    run_deterministically(partial(served, partial(SimulatedNetwork, 1), scenario))


@pytest.mark.no_ring
def test_a_client_whose_request_was_cancelled_gives_no_wrong_answers():
    async def scenario(network, server, address, nursery):
        async with await Client.connect(network, address) as client:
            await client.put(b"k", b"v")
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                await client.get(b"k")
            assert scope.cancelled_caught
            with pytest.raises(trio.BrokenResourceError):
                await client.get(b"other")
        server.stop()

    # It waits for its answer by then, which takes longer than a pass of the scheduler.
    async def cancel(scope):
        scope.cancel()

    simulated(scenario)


@on_every_network
def test_a_stop_waits_for_an_answer_that_is_being_sent(run):
    async def scenario(network, server, address, nursery):
        async with await Client.connect(network, address) as client:
            await client.put(b"k", b"v" * VALUE_MAX)
        slow = await raw(network, address)
        # 16 MiB: more than the sockets hold.
        await slow.send_many([[REQUEST.pack(GET, 1), b"k"]] * 16)
        assert len(await slow.receive()) == VALUE_MAX + 1
        server.stop()
        for _ in range(15):
            assert len(await slow.receive()) == VALUE_MAX + 1
        await slow.aclose()

    run(scenario)


@pytest.mark.no_ring
def test_whoever_is_not_done_by_the_deadline_is_cut_off():
    async def scenario(network, server, address, nursery):
        async with await Client.connect(network, address) as client:
            await client.put(b"k", b"v" * VALUE_MAX)
        stuck = await raw(network, address)
        nursery.start_soon(closed_later, stuck)
        await stuck.send([REQUEST.pack(GET, 1), b"k"])  # and never reads the answer
        await trio.sleep(1)
        server.stop()
        stopped.append(trio.current_time())

    stopped: list[float] = []
    ended = run_deterministically(
        partial(served, partial(SimulatedNetwork, 1), scenario, drain_seconds=7.5)
    )
    assert ended - stopped[0] == 7.5


@pytest.mark.no_ring
def test_a_client_that_is_cut_off_by_the_network_does_not_hold_up_the_end():
    async def scenario(network, server, address, nursery):
        client = await Client.connect(network.host("far"), address)
        nursery.start_soon(closed_later, client)
        await client.put(b"k", b"v")
        network.partition("far", "server")
        server.stop()

    run_deterministically(
        partial(served, partial(SimulatedNetwork, 1), scenario, ("server", 0), drain_seconds=5)
    )


@pytest.mark.no_ring
def test_more_clients_than_the_limit_wait_in_the_backlog():
    async def scenario(network, server, address, nursery):
        clients = [await Client.connect(network, address) for _ in range(CONNECTIONS_MAX)]
        for client in clients:
            assert await client.get(b"k") is None
        late = await Client.connect(network, address)
        with trio.move_on_after(5) as waiting:
            await late.get(b"k")
        assert waiting.cancelled_caught
        await clients[0].aclose()
        again = await Client.connect(network, address)
        await clients[1].aclose()
        assert await again.get(b"k") is None
        server.stop()
        for client in [*clients[2:], late, again]:
            await client.aclose()

    run_deterministically(partial(served, partial(SimulatedNetwork, 1), scenario))


def test_the_program():
    command = [
        sys.executable,
        "-W",
        "error",
        EXAMPLES / "kv_server.py",
        "--port",
        "0",
        "--metrics-port",
        "0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().rpartition(":")[2].strip()
            metrics = process.stdout.readline().split()[-1]

            def ask(*arguments: str) -> tuple[int, str]:
                client = [
                    sys.executable,
                    "-W",
                    "error",
                    EXAMPLES / "kv_client.py",
                    "--port",
                    port,
                    *arguments,
                ]
                done = subprocess.run(
                    client, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
                )
                assert done.stderr == ""
                return done.returncode, done.stdout

            assert ask("put", "colour", "green") == (0, "")
            assert ask("get", "colour") == (0, "green\n")
            assert ask("delete", "colour") == (0, "")
            assert ask("get", "colour") == (1, "")
            with urllib.request.urlopen(metrics, timeout=SECONDS_MAX) as response:
                text = response.read().decode()
            assert 'trio_uring_network_connections_total{direction="in"} 4.0' in text
            assert "trio_uring_driver_short_writes_total 0.0" in text
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=SECONDS_MAX) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
