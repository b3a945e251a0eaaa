"""A reverse proxy: what comes from a client goes to a server behind it, and back.

    python examples/reverse_proxy.py

It runs the proxy, a server behind it and three clients on ports that the kernel chooses, and ends.
`relay` moves the bytes without waking a task for each chunk, and hands on the end of a stream in
each direction by itself: the server behind answers only when its client has said everything.
"""

import hashlib
import logging
from functools import partial

import trio

import trio_uring

HOST = "127.0.0.1"
CONNECT_SECONDS = 5.0
# Of a connection on which nothing moves: a peer that has vanished is noticed after 2 minutes.
OPTIONS = trio_uring.SocketOptions(keepalive=trio_uring.KeepAlive(idle=60, interval=15, count=4))
log = logging.getLogger("proxy")


async def proxy(port_behind: int, client: trio_uring.SocketStream) -> None:
    """Serves one client. serve_tcp closes its stream when this returns."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            server = await trio_uring.open_tcp_stream(HOST, port_behind, options=OPTIONS)
    except (OSError, trio.TooSlowError) as exc:
        log.warning("nobody behind the proxy: %s", exc)
        return
    async with server:
        try:
            sent, received = await trio_uring.relay(client, server)
        except trio.BrokenResourceError:
            log.info("one of the two hung up in the middle")
        else:
            log.info("%s bytes to the server, %s back", f"{sent:,}", f"{received:,}")


async def summarize(stream: trio_uring.SocketStream) -> None:
    """The server behind: reads to the end, and answers with the SHA-256 of it all."""
    digest = hashlib.sha256()
    try:
        async for chunk in stream:
            digest.update(chunk)
        await stream.send_all(digest.hexdigest().encode())
    except trio.BrokenResourceError:
        pass  # the client has left


async def ask(port: int, data: bytes) -> bytes:
    """A client: says everything, ends its direction, and listens to the end."""
    async with await trio_uring.open_tcp_stream(HOST, port) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        answer = b""
        async for chunk in stream:
            answer += chunk
        return answer


async def main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(trio_uring.serve_tcp, host=HOST, options=OPTIONS)
        async with trio.open_nursery() as behind:
            [server] = await behind.start(serve, summarize, 0)
            handler = partial(proxy, server.socket.getsockname()[1])
            [front] = await nursery.start(serve, handler, 0)
            port = front.socket.getsockname()[1]
            print(f"listening on {HOST}:{port}")

            data = b"all of this goes through the proxy " * 100_000
            right = hashlib.sha256(data).hexdigest().encode()
            print("a large request:", "right" if await ask(port, data) == right else "WRONG")

            async with await trio_uring.open_tcp_stream(HOST, port) as stream:
                await stream.send_all(b"half of a request")  # and leaves
            behind.cancel_scope.cancel()

        print("with nobody behind:", await ask(port, b"") or "the proxy hung up")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    trio.run(main)
