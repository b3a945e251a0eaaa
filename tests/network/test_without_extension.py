"""Without the C extension: everything except the ring works, and the ring says why it does not.

Rules of this file: each test has its own process, in which the extension cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.no_ring

NO_EXTENSION = """\
import logging, os, sys
logging.disable()  # an enabled run says that it falls back
os.environ.pop('TRIO_URING_BACKEND', None)
sys.modules['trio_uring._uring'] = None
"""


def run(code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", NO_EXTENSION + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SCENARIO = """
    import trio, trio_uring
    from trio_uring.testing import FakeRing, SimulatedNetwork, run_deterministically

    async def scenario(network):
        listener = await network.bind(("127.0.0.1", 0))
        client = await network.dial(listener.local_address)
        async with client, await listener.accept() as server:
            await trio_uring.send_frame(client, [b"hello, ", b"world"])
            assert await trio_uring.receive_frame(server) == b"hello, world"
        await listener.aclose()
"""


def test_a_program_on_trios_sockets() -> None:
    run(SCENARIO + "\n    trio.run(scenario, trio_uring.Metered(trio_uring.TrioNetwork()))")


def test_a_simulated_program() -> None:
    run(SCENARIO + "\n    run_deterministically(scenario, SimulatedNetwork(3, latency=0.1))")


STREAMS = """
    import errno, os, socket, trio, trio_uring

    async def main():
        for make in (socket.socketpair, trio.socket.socketpair):
            left, right = map(trio_uring.SocketStream, make())
            async with left, right:
                await left.send_all([b"with", b"out C"])
                assert await right.receive_exactly(9) == b"without C"
        read, write = os.pipe()
        async with trio_uring.ReceiveStream(read) as source, trio_uring.SendStream(write) as sink:
            await sink.send_all(b"a pipe")
            assert await source.receive_some() == b"a pipe"
        assert trio_uring.backend_info().backend == "readiness"
"""


@pytest.mark.parametrize("how", ["trio.run(main)", "trio_uring.run(main)"])
def test_streams_wait_by_readiness(how: str) -> None:
    run(STREAMS + f"\n    {how}")


def test_the_ring_says_why() -> None:
    run(
        """
        import errno, trio, trio_uring

        assert "without its C extension" in trio_uring.backend_info().reason
        try:
            trio_uring.run(trio.sleep, 0, backend="uring")
        except trio_uring.RingUnavailableError as exc:
            assert exc.errno == errno.ENOSYS
            assert "without its C extension" in exc.strerror, exc
        else:
            raise AssertionError
        """
    )
