"""hypercorn's trio worker with httpx, both unmodified and on the ring: Starlette and Quart-Trio."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from support.apps import APPS, Watch, hypercorn
from support.endtoend import (
    LARGE,
    MIB,
    SECONDS_MAX,
    accepts,
    connects,
    digest,
    http_client,
    payload,
)

import trio_uring

if TYPE_CHECKING:
    from pathlib import Path

    from support.endtoend import Certificates

CLIENTS = 50


@pytest.fixture(params=sorted(APPS))
def watch_and_app(request: pytest.FixtureRequest) -> tuple[Watch, Any]:
    watch = Watch()
    return watch, APPS[request.param](watch)


@pytest.fixture
def app(watch_and_app: tuple[Watch, Any]) -> Any:
    return watch_and_app[1]


def socket_of(response: httpx.Response) -> Any:
    return response.extensions["network_stream"].get_extra_info("socket")


async def test_a_request(app: Any) -> None:
    async with hypercorn(app) as url, http_client(url) as client:
        async with client.stream("GET", "/") as response:
            assert isinstance(socket_of(response), trio_uring.UringSocket)
            assert await response.aread() == b"hello"
    assert connects() == 1
    assert accepts() == 1


async def test_keep_alive_uses_one_connection(app: Any) -> None:
    async with hypercorn(app) as url, http_client(url) as client:
        peers = [tuple((await client.get("/peer")).json()) for _ in range(20)]
    assert len(set(peers)) == 1
    assert accepts() == 1


@pytest.mark.parametrize("size", [0, 1, 65536, LARGE])
async def test_bodies_up_and_down(app: Any, size: int) -> None:
    async with hypercorn(app) as url, http_client(url) as client:
        answer = await client.post("/digest", content=payload(size))
        assert answer.json() == {"size": size, "sha256": digest(payload(size))}
        answer = await client.get(f"/bytes/{size}")
        assert (len(answer.content), digest(answer.content)) == (size, digest(payload(size)))


async def test_a_body_that_is_streamed_up(app: Any) -> None:
    async def body() -> Any:
        for start in range(0, MIB, 1000):
            yield payload(MIB)[start : start + 1000]

    async with hypercorn(app) as url, http_client(url) as client:
        answer = await client.post("/digest", content=body())
        assert answer.json() == {"size": MIB, "sha256": digest(payload(MIB))}


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_tls(app: Any, certificates: Certificates, http2: bool) -> None:
    async with (
        hypercorn(app, tls=certificates) as url,
        http_client(url, verify=certificates.client(), http2=http2) as client,
    ):
        assert url.startswith("https:")
        body = payload(MIB if http2 else LARGE)  # HTTP/2 is slow in Python, and TLS is the same
        answer = await client.get(f"/bytes/{len(body)}")
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert digest(answer.content) == digest(body)
        answer = await client.post("/digest", content=body)
        assert answer.json()["sha256"] == digest(body)


async def test_requests_multiplexed_over_one_http2_connection(
    app: Any, certificates: Certificates
) -> None:
    async with (
        hypercorn(app, tls=certificates) as url,
        http_client(url, verify=certificates.client(), http2=True) as client,
    ):
        peers: list[Any] = [(await client.get("/peer")).json()]

        async def ask(count: int) -> None:
            assert digest((await client.get(f"/bytes/{count}")).content) == digest(payload(count))
            peers.append((await client.get("/peer")).json())

        async with trio.open_nursery() as nursery:
            for count in range(0, 30_000, 1000):
                nursery.start_soon(ask, count)
    assert len(peers) == 31
    assert all(peer == peers[0] for peer in peers)


async def test_many_at_the_same_time(app: Any) -> None:
    answered: list[int] = []
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with hypercorn(app) as url, http_client(url, limits=limits) as client:

        async def ask(number: int) -> None:
            body = payload(1000 * number)
            assert (await client.get("/")).text == "hello"
            answer = await client.post("/digest", content=body)
            assert answer.json() == {"size": len(body), "sha256": digest(body)}
            answered.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(ask, number)
    assert sorted(answered) == list(range(CLIENTS))


@pytest.mark.parametrize("path", ["/hang", "/endless"])
async def test_a_cancelled_request_ends_at_the_server_too(
    watch_and_app: tuple[Watch, Any], path: str
) -> None:
    watch, app = watch_and_app
    async with hypercorn(app) as url, http_client(url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, path)
            await watch.started.wait()
            nursery.cancel_scope.cancel()
        await watch.ended.wait()
        assert (await client.get("/")).text == "hello"


async def test_a_timeout_of_httpx(watch_and_app: tuple[Watch, Any]) -> None:
    watch, app = watch_and_app
    async with hypercorn(app) as url, http_client(url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/hang", timeout=httpx.Timeout(None, read=0.05))
        await watch.ended.wait()
        assert (await client.get("/")).text == "hello"


async def test_a_response_that_is_not_read(watch_and_app: tuple[Watch, Any]) -> None:
    watch, app = watch_and_app
    async with hypercorn(app) as url, http_client(url) as client:
        async with client.stream("GET", "/endless") as response:
            assert response.status_code == 200
        await watch.ended.wait()


async def test_over_a_unix_socket(app: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with (
        hypercorn(app, f"unix:{path}"),
        http_client("http://here", transport=transport) as client,
    ):
        answer = await client.get(f"/bytes/{LARGE}")
        assert digest(answer.content) == digest(payload(LARGE))
        answer = await client.post("/digest", content=payload(LARGE))
        assert answer.json()["sha256"] == digest(payload(LARGE))


async def test_the_server_under_a_client_of_the_standard_library(app: Any) -> None:
    def visit(host: str, port: int) -> list[bytes]:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            bodies = []
            for method, path, body in (
                ("GET", "/", None),
                ("GET", f"/bytes/{MIB}", None),
                ("POST", "/digest", payload(MIB)),
            ):
                connection.request(method, path, body)
                bodies.append(connection.getresponse().read())
            return bodies

    async with hypercorn(app) as url:
        where = urlsplit(url)
        hello, large, digested = await trio.to_thread.run_sync(visit, where.hostname, where.port)
    assert (hello, digest(large)) == (b"hello", digest(payload(MIB)))
    assert digest(payload(MIB)).encode() in digested
    assert connects() == 0


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_clients_that_go_away(watch_and_app: tuple[Watch, Any], reset: bool) -> None:
    watch, app = watch_and_app
    async with hypercorn(app) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port)) as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n")
            await watch.started.wait()
        await watch.ended.wait()
        async with http_client(url) as other:
            assert (await other.get("/")).text == "hello"
