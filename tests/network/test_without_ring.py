"""Messages, frames, simulated networks and observers work without the packages that know a ring.

Rules of this file: each test has its own process, in which trio_uring is not imported as a whole,
and importing one of those packages is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import trio_uring

pytestmark = pytest.mark.no_ring

NO_RING = f"""\
import sys, types
package = types.ModuleType("trio_uring")
package.__path__ = [{os.path.dirname(trio_uring.__file__)!r}]
sys.modules["trio_uring"] = package
for room in ("_ring", "_driver", "_descriptors", "_sockets", "_streams", "_udp", "_relay"):
    sys.modules["trio_uring." + room] = None
sys.modules["trio_uring._uring"] = None
import trio, trio.testing
from trio_uring import framing, metrics, audit
from trio_uring._messages.buffered import BufferedReceiveStream
from trio_uring._messages.frame_stream import FrameStream
from trio_uring._messages.frames import receive_frame, send_frame
from trio_uring._messages.vectored import send_all_vectored
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically
from trio_uring._observe.networks import Audited, Metered
from trio_uring._observe.streams import MeteredStream
"""


def run(code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", NO_RING + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_observed_program_over_a_simulated_network() -> None:
    run(
        """
        async def scenario(network):
            listener = await network.bind(("127.0.0.1", 0))
            client = await network.dial(listener.local_address)
            async with client, await listener.accept() as server:
                await send_frame(client, [b"hello, ", bytearray(b"world")])
                assert await receive_frame(server) == b"hello, world"
                await FrameStream(server).send_many([b"one", b"two" * 1000])
                channel = FrameStream(client)
                assert await channel.receive() == b"one"
                assert await channel.receive() == b"two" * 1000
            await listener.aclose()

        for observe in (Metered, Audited):
            run_deterministically(scenario, observe(SimulatedNetwork(3, latency=0.1)))
        """
    )


def test_trios_own_streams() -> None:
    run(
        """
        async def main():
            pairs = [trio.testing.memory_stream_pair()]
            pairs.append(map(trio.SocketStream, trio.socket.socketpair()))
            for left, right in pairs:
                async with MeteredStream(left) as left, BufferedReceiveStream(right) as right:
                    await send_all_vectored(left, [b"on", b"e\\n"])
                    assert await right.receive_until(b"\\n", 10, timeout=5) == b"one\\n"

        trio.run(main)
        """
    )
