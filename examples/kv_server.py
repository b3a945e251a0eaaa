"""A key-value server over frames, with metrics for Prometheus and a graceful shutdown.

    pip install '.[prometheus]'
    python examples/kv_server.py --port 7002 --metrics-port 9102
    python examples/kv_client.py --port 7002 put colour green
    python examples/kv_client.py --port 7002 get colour

What it shows: `Server` takes a Network and does not know which one. Here it is given the ring; its
tests also give it a simulated network with partitions and a virtual clock. SIGTERM or SIGINT shuts
it down in order (`trio_uring.Shutdown`): it accepts no new connections, finishes the requests that
are in flight, cuts off clients that are not done by the deadline, and then closes everything. A
second signal does not wait for the deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
from functools import partial

import prometheus_client
import trio
from kv_protocol import (
    DELETE,
    FOUND,
    FRAME_MAX,
    GET,
    MISSING,
    PUT,
    REFUSED,
    VALUE_MAX,
    parse_request,
)

import trio_uring
from trio_uring.prometheus import DriverCollector, NetworkCollector

# beyond it, clients wait in the backlog; with METRICS_MAX, below the usual limit of 1,024
# descriptors
CONNECTIONS_MAX = 800
METRICS_MAX = 16  # connections that ask for metrics at a time
ENTRIES_MAX = 100_000  # with VALUE_MAX, the bound on what clients can make us hold
# Bytes of answers that are made ready before they are sent: a client that does not read holds no
# more.
ANSWERS_MAX = 2**18
LAST_LOOK_SECONDS = 0.2  # for requests that were on their way when the server was told to stop
GOODBYE_SECONDS = 1.0  # for a client to take its last answers and hang up
HTTP_HEAD_MAX = 8192  # bytes
HTTP_SECONDS_MAX = 10.0


class Server:
    """Serves one store to any number of clients.

    Args:
        network: where to listen.
        drain_seconds: how long a shutdown waits for requests in flight.
    """

    def __init__(self, network: trio_uring.Network, *, drain_seconds: float = 10.0) -> None:
        self.network = network
        self.store: dict[bytes, bytes] = {}
        # Only this server knows whether a request has begun to come: a client may take its time in
        # the middle of one. So it finds the idle connections itself.
        self.shutdown = trio_uring.Shutdown(grace=drain_seconds, quiet=math.inf)

    async def serve(
        self,
        address: trio_uring.Address,
        *,
        task_status: trio.TaskStatus[trio_uring.NetworkListener] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until `stop` is called and the connections have ended, or been cut off at the
        deadline."""
        listener = await self.network.bind(address)
        task_status.started(listener)
        await trio_uring.serve_listeners(
            self._serve_connection,
            [listener],
            max_connections=CONNECTIONS_MAX,
            shutdown=self.shutdown,
        )

    def stop(self) -> None:
        """Stops accepting, lets requests in flight finish, and ends connections that have none."""
        self.shutdown.start()

    async def _serve_connection(self, stream: trio_uring.NetworkStream) -> None:
        async with trio_uring.FrameStream(stream, FRAME_MAX) as channel:
            with contextlib.suppress(
                trio.EndOfChannel,  # the client is done
                trio.BrokenResourceError,  # or gone
                trio.TooSlowError,  # or as good as gone
                trio_uring.IncompleteReadError,
                trio_uring.FrameError,
            ):
                while requests := await self._next_requests(channel):
                    await self._answer_all(channel, requests)
                await self._say_goodbye(channel)

    async def _next_requests(self, channel: trio_uring.FrameStream) -> list[bytes]:
        """Every request that is here, or the next that comes. An empty list: none will, because the
        server stops."""
        # Cancelled while it waits, a receive loses nothing.
        with self.shutdown.cancel_on_start():
            return await channel.receive_many()
        with trio.move_on_after(LAST_LOOK_SECONDS):
            return await channel.receive_many()
        # Of a request that has begun to come, the rest is waited for, until the deadline if need
        # be.
        return await channel.receive_many() if channel.pending else []

    async def _answer_all(self, channel: trio_uring.FrameStream, requests: list[bytes]) -> None:
        """Answers in order, many in one operation."""
        answers: list[list[bytes]] = []
        size = 0
        for request in requests:
            answers.append(self._answer(request))
            size += sum(map(len, answers[-1]))
            if size >= ANSWERS_MAX:
                await channel.send_many(answers)
                answers, size = [], 0
        await channel.send_many(answers)

    async def _say_goodbye(self, channel: trio_uring.FrameStream) -> None:
        """Hangs up so that the client gets its last answers: closing with bytes unread would reset
        the connection."""
        with trio.move_on_after(GOODBYE_SECONDS):
            await channel.send_eof()
            async for _ in channel:
                pass

    def _answer(self, frame: bytes) -> list[bytes]:
        request = parse_request(frame)
        if request is None:
            return [bytes([REFUSED])]
        operation, key, value = request
        if operation == GET:
            stored = self.store.get(key)
            return [bytes([MISSING])] if stored is None else [bytes([FOUND]), stored]
        if operation == DELETE:
            return [bytes([MISSING if self.store.pop(key, None) is None else FOUND])]
        assert operation == PUT
        if len(value) > VALUE_MAX or (key not in self.store and len(self.store) >= ENTRIES_MAX):
            return [bytes([REFUSED])]
        self.store[key] = value
        return [bytes([FOUND])]


async def serve_metrics(
    registry: prometheus_client.CollectorRegistry, stream: trio_uring.NetworkStream
) -> None:
    """Answers one HTTP request with the metrics, and hangs up."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError, EOFError, ValueError):
            with trio.fail_after(HTTP_SECONDS_MAX):
                head = await stream.receive_until(b"\r\n\r\n", HTTP_HEAD_MAX)
                found = head.startswith((b"GET /metrics ", b"GET /metrics?"))
                body = prometheus_client.generate_latest(registry) if found else b"see /metrics\n"
                status = "200 OK" if found else "404 Not Found"
                lines = [
                    f"HTTP/1.1 {status}",
                    "Content-Type: text/plain; version=0.0.4; charset=utf-8",
                    f"Content-Length: {len(body)}",
                    "Connection: close",
                    "\r\n",
                ]
                await stream.send_all(["\r\n".join(lines).encode(), body])


async def main(host: str, port: int, metrics_port: int, drain_seconds: float) -> None:
    """Serves until SIGINT or SIGTERM."""
    config = trio_uring.NetworkConfig(read_timeout=300, write_timeout=30)
    network = trio_uring.Metered(trio_uring.UringNetwork(config))
    server = Server(network, drain_seconds=drain_seconds)
    registry = prometheus_client.CollectorRegistry()
    registry.register(DriverCollector())
    registry.register(NetworkCollector(network.metrics))
    async with trio.open_nursery() as nursery:
        # Metrics are served to the last, and not counted among what they tell about.
        metrics = await trio_uring.UringNetwork().bind((host, metrics_port))
        nursery.start_soon(
            partial(
                trio_uring.serve_listeners,
                partial(serve_metrics, registry),
                [metrics],
                max_connections=METRICS_MAX,
            )
        )
        with server.shutdown.on_signals(signal.SIGINT, signal.SIGTERM):
            async with trio.open_nursery() as serving:
                listener = await serving.start(server.serve, (host, port))
                print(f"listening on {host}:{listener.local_address[1]}", flush=True)
                print(f"metrics on http://{host}:{metrics.local_address[1]}/metrics", flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A key-value server on io_uring.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7002,
        help="port to listen on; 0 lets the kernel choose (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=9102,
        help="port to listen on; 0 lets the kernel choose (default: %(default)s)",
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=10.0,
        help="seconds for requests in flight (default: %(default)s)",
    )
    arguments = parser.parse_args()
    trio.run(main, arguments.host, arguments.port, arguments.metrics_port, arguments.drain)
