"""An echo server: sends back what it receives, on any number of connections.

    python examples/echo_server.py --port 7000
    nc 127.0.0.1 7000

To run it on trio's own streams, write `trio.serve_tcp` and `trio.SocketStream` instead of
`trio_uring`'s; nothing else changes.
"""

import argparse
import signal
from functools import partial

import trio

import trio_uring


async def echo(stream: trio_uring.SocketStream) -> None:
    """Serves one connection. serve_tcp closes the stream when this returns."""
    try:
        async for chunk in stream:
            await stream.send_all(chunk)
    except trio.BrokenResourceError:
        pass  # the client hung up while we were sending; other clients are not affected


async def main(host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio_uring.serve_tcp, echo, port, host=host))
            print(f"listening on {host}:{listeners[0].socket.getsockname()[1]}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server on io_uring.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7000,
        help="port to listen on; 0 lets the kernel choose (default: %(default)s)",
    )
    arguments = parser.parse_args()
    trio.run(main, arguments.host, arguments.port)
