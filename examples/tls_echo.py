"""Echo over TLS: a server that no client can hold up, and clients that check who it is.

    pip install trustme                     # makes the certificate; the standard library cannot
    python examples/tls_echo.py

It serves on a port that the kernel chooses, connects to itself, and ends. Two of its clients are
bad ones: one speaks no TLS, one does not trust the certificate. Neither disturbs the server.
"""

import contextlib
import ssl
from functools import partial

import trio
import trustme

import trio_uring

HOST = "127.0.0.1"
HANDSHAKE_SECONDS = 10.0
IDLE_SECONDS = 60.0  # without a byte from the client, or without one that it takes


def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server, and for clients that trust it. In production the server's is made by
    `context.load_cert_chain(certificate, key)`, and clients need none of their own."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def echo(stream: trio.SSLStream[trio_uring.SocketStream]) -> None:
    """Serves one connection. What a client does wrong ends its connection and no other."""
    below = stream.transport_stream
    below.receive_timeout = below.send_timeout = IDLE_SECONDS
    try:
        with trio.fail_after(HANDSHAKE_SECONDS):
            await stream.do_handshake()
        async for chunk in stream:
            await stream.send_all(chunk)
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)  # without a last word, which could take as long
    except trio.BrokenResourceError:
        pass  # it hung up, or does not speak TLS


async def ask(port: int, context: ssl.SSLContext, message: bytes) -> bytes:
    """Sends a message, and returns what comes back."""
    stream = await trio_uring.open_ssl_over_tcp_stream(HOST, port, ssl_context=context)
    async with stream:
        await stream.send_all(message)
        answer = b""
        while len(answer) < len(message):
            chunk = await stream.receive_some()
            if not chunk:
                raise EOFError("the server hung up")
            answer += chunk
        return answer


async def main() -> None:
    server_context, client_context = make_contexts()
    async with trio.open_nursery() as nursery:
        serve = partial(trio_uring.serve_ssl_over_tcp, host=HOST)
        [listener] = await nursery.start(serve, echo, 0, server_context)
        port = listener.transport_listener.socket.getsockname()[1]
        print(f"listening on {HOST}:{port}")

        async with await trio_uring.open_tcp_stream(HOST, port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                async for _ in stream:  # what the server says about that
                    pass
        print("a client without TLS: the server hung up")

        try:
            await ask(port, ssl.create_default_context(), b"hello")
        except trio.BrokenResourceError:
            print("a client that does not trust the certificate: it did not say a word")

        message = b"hello over TLS " * 10_000
        answer = await ask(port, client_context, message)
        print(f"a good client: {len(answer):,} bytes came back, {answer == message}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
