"""A program that uses the public API, for type checkers: with trio's own types, and with
trio-typing's stubs.

Rules of this file: it is only checked, never run.
"""

from __future__ import annotations

import array
import io
import mmap
import signal
import ssl
import subprocess
from functools import partial

import trio
import trio.testing

import trio_uring
import trio_uring.testing


async def handle(stream: trio_uring.SocketStream) -> None:
    async with stream:
        stream.send_timeout = 10.0
        header: bytes = await stream.receive_exactly(4, timeout=5.0)
        await stream.send_all(
            [header, bytearray(b"body"), memoryview(b"more"), array.array("I", [1, 2])]
        )
        sent: int = stream.bytes_sent
        buffer = bytearray(sent)
        count: int = await stream.receive_into(buffer)
        data: bytes = await stream.receive_some(count)
        await stream.send_all(data)
        await stream.send_eof()
        async for chunk in stream:
            print(len(chunk))


async def around(path: str, context: ssl.SSLContext) -> None:
    secure = await trio_uring.open_ssl_over_tcp_stream("localhost", 443)
    await trio_uring.send_all_vectored(secure, [b"header", bytearray(b"body")])
    [unix] = await trio_uring.open_unix_listeners(path, mode=0o600)
    send, receive = (await unix.accept()).split()
    stapled = trio.StapledStream(send, receive)
    await stapled.send_eof()
    process: trio.Process = await trio_uring.open_process(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert isinstance(process.stdout, trio_uring.ReceiveStream)
    line: bytes = await process.stdout.receive_exactly(3)
    source: trio_uring.ReceiveStream = trio_uring.open_stdin()
    sink: trio_uring.SendStream = trio_uring.open_stdout()
    await sink.send_all([line, await source.receive_some()])
    async with trio.open_nursery() as nursery:
        options = trio_uring.SocketOptions(keepalive=trio_uring.KeepAlive(idle=60), linger=0)
        await nursery.start(partial(trio_uring.serve_tcp, handle, 0, reuse_port=True))
        await nursery.start(partial(trio_uring.serve_tcp, handle, 0, options=options))
        options.apply(unix.socket, "listening")
        await nursery.start(trio_uring.serve_unix, handle, path)
        await nursery.start(trio_uring.serve_ssl_over_tcp, handle_tls, 0, context)


async def serving(listeners: list[trio_uring.SocketListener], context: ssl.SSLContext) -> None:
    shutdown = trio_uring.Shutdown(grace=5, quiet=0.1)
    with shutdown.on_signals(signal.SIGTERM, signal.SIGINT):
        await trio_uring.serve_tcp(handle, 0, max_connections=5, shutdown=shutdown)
    web = trio_uring.listeners_from_environment().get("web", listeners)
    await trio_uring.serve_listeners(handle, web, first_byte_timeout=1.5, idle_timeout=2)
    proxied = [trio_uring.ProxyListener(one, trusted=["10.0.0.0/8"]) for one in listeners]
    await trio_uring.serve_listeners(handle_proxied, proxied)
    secure = [trio.SSLListener(one, context) for one in proxied]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio_uring.serve_listeners, handle_tls, secure)
    with shutdown.cancel_on_start() as scope, shutdown.cancel_after_grace():
        scope.cancel()
        await shutdown.wait()
    await trio_uring.notify_watchdog()
    await trio_uring.notify_watchdog(lambda: not shutdown.started)
    if not shutdown.started and trio_uring.notify("STOPPING=1"):
        shutdown.cut_short()


async def handle_proxied(stream: trio_uring.ProxyStream) -> None:
    address: tuple[str, int] | str = stream.remote_address
    await stream.send_all(f"{address} {len(stream.proxy_extra)}".encode())


async def handle_tls(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"x")


async def in_a_worker(worker: trio_uring.Worker) -> None:
    print(worker.number + worker.workers, worker.shutdown.started)
    worker.ready()
    await worker.serve(handle, max_connections=10, first_byte_timeout=1, idle_timeout=60)
    await trio_uring.serve_listeners(handle, worker.listeners, shutdown=worker.shutdown)


def workers() -> None:
    try:
        trio_uring.serve_workers(in_a_worker, 2, bind=":0", options=trio_uring.SocketOptions())
        trio_uring.serve_workers("app:main", bind=["127.0.0.1:80", "systemd"], metrics=":9100")
    except trio_uring.WorkersError as exc:
        print(exc.status + 1)


async def send_file(stream: trio_uring.SendStream, mapped: mmap.mmap) -> None:
    await stream.send_all((b"header", mapped), timeout=30)
    await stream.wait_send_all_might_not_block()


async def network_layer(network: trio_uring.Network) -> None:
    metered = trio_uring.Metered(network)
    audited = trio_uring.Audited(metered)
    listener: trio_uring.NetworkListener = await audited.bind(("127.0.0.1", 0))
    address: trio_uring.Address = listener.local_address
    stream: trio_uring.NetworkStream = await audited.dial(address)
    stream.receive_timeout = 5.0
    await stream.send_all_vectored(part for part in (b"a", bytearray(b"b")))
    line: bytes = await stream.receive_until(b"\r\n", 1024, timeout=1)
    peeked: bytes = stream.peek(4)
    frames: trio.abc.Channel[bytes] = trio_uring.FrameStream(stream, 2**16, prefix="varint")
    await frames.send(line + peeked)
    async for message in frames:
        print(len(message))
    pool = trio_uring.BufferPool(max_size=2**16)
    with pool.alloc(4096) as view:
        print(
            await stream.receive_into(view),
            pool.try_alloc(2**20) is None,
            pool.statistics()[0].in_use,
        )
    await trio_uring.send_frame(stream, [b"header", view], 2**16, timeout=3)
    print(
        await trio_uring.receive_frame(stream, 2**16),
        metered.metrics.snapshot().bytes_in,
        audited.audit.digest(),
    )
    await trio_uring.send_all_vectored(trio.testing.MemorySendStream(), [b"x"])
    print(
        await trio_uring.BufferedReceiveStream(
            trio.testing.MemoryReceiveStream(), 0
        ).receive_exactly(3)
    )
    await trio.serve_listeners(serve, [listener])


async def serve(stream: trio_uring.NetworkStream) -> None:
    await stream.aclose()


def in_memory() -> None:
    network = trio_uring.testing.SimulatedNetwork(
        3, latency=(0.01, 0.02), config=trio_uring.NetworkConfig(so_linger=0)
    )
    trio_uring.testing.run_deterministically(network_layer, network, seed=3)


async def drop_in(backend: str | None = None) -> int:
    trio_uring.enable(backend)
    info: trio_uring.BackendInfo = trio_uring.backend_info()
    print(info.backend, info.reason, info.setup_flags)
    left, right = trio_uring.socket.socketpair()
    sock = trio_uring.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM)
    sent: int = await left.send(b"x")
    data: bytes = await right.recv(sent)
    await sock.sendto(data, ("::1", 9))
    accepted, _ = await left.accept()
    plain: trio_uring.UringSocket = accepted.dup()
    plain.close()
    async with await trio_uring.open_udp_socket(remote_address=("127.0.0.1", 53)) as udp:
        await udp.send_to([b"a", b"b"], timeout=1)
        count: int = await udp.send_many([b"one", (b"two", ("127.0.0.1", 53))])
        for datagram, _ in await udp.receive_many(count):
            print(len(datagram), udp.datagrams_sent)
        payload, address, local = await udp.receive_from(local=True)
        host: str = local.host
        await udp.send_to(payload, address, local=trio_uring.Local(host, local.interface))
        await udp.send_many(await udp.receive_many(10, local=True))
    return count


async def moving_bytes(
    a: trio_uring.SocketStream, b: trio.abc.HalfCloseableStream, file: io.FileIO
) -> None:
    copied: int = await trio_uring.copy_stream(a, b, max_bytes=10, progress=print)
    there, back = await trio_uring.relay(a, b)
    print(await trio_uring.send_file(a, file, 0, copied), there + back)


async def main() -> None:
    await network_layer(trio_uring.UringNetwork(trio_uring.NetworkConfig(connect_timeout=3)))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio_uring.serve_tcp, handle, 0)
        print(len(listeners))
        client: trio_uring.SocketStream = await trio_uring.open_tcp_stream(
            "localhost", 80, happy_eyeballs_delay=0.1
        )
        await client.aclose()
        other: trio_uring.SocketStream = await trio_uring.open_unix_socket("/run/socket")
        await other.aclose()
        opened: list[trio_uring.SocketListener] = await trio_uring.open_tcp_listeners(
            0, host="127.0.0.1"
        )
        stream: trio_uring.SocketStream = await opened[0].accept()
        await stream.aclose()
        source = trio_uring.ReceiveStream(0)
        print(await source.receive_some())
    statistics: trio_uring.Statistics = trio_uring.current_statistics()
    print(
        statistics.operations["SEND"].submitted, [op.age for op in trio_uring.current_operations()]
    )


trio.run(main, instruments=[trio_uring.Enable(streams=False)])
print(trio_uring.run(drop_in, "epoll", backend="auto") + 1)
