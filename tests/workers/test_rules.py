"""The parts of a supervisor that need no process: names, addresses, backoff, the page, its server.

Rules of this file: nothing is started.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_uring
from trio_uring import SocketOptions, Worker, serve_workers
from trio_uring._workers import http
from trio_uring._workers import supervisor as _supervisor
from trio_uring._workers.backoff import MAX_SECONDS, STABLE_SECONDS, Backoff
from trio_uring._workers.channel import Channel, Order, receive_message, send_message
from trio_uring._workers.ports import Ports, name_address, parse_address
from trio_uring._workers.process import Process
from trio_uring._workers.slot import Slot
from trio_uring._workers.target import Target, TargetError, load_target, name_target

pytestmark = pytest.mark.no_ring


# -- backoff


def test_the_delay_is_doubled_for_each_failure_in_a_row() -> None:
    backoff = Backoff(None)
    delays = [backoff.failed(0.0) for _ in range(10)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, MAX_SECONDS, MAX_SECONDS, MAX_SECONDS]
    for _ in range(3000):
        assert backoff.failed(0.0) == MAX_SECONDS
    assert backoff.failed(STABLE_SECONDS) == 0.1
    assert backoff.failed(STABLE_SECONDS - 1) == 0.2
    backoff.reset()
    assert backoff.failed(0.0) == 0.1


def test_it_gives_up_at_the_limit() -> None:
    backoff = Backoff(3)
    assert [backoff.failed(0.0) for _ in range(3)] == [0.1, 0.2, None]
    assert Backoff(1).failed(math.inf) is None


async def test_a_worker_that_takes_long_to_fail_is_given_up_too(autojump_clock: MockClock) -> None:
    """That it is never ready takes `ready_timeout` each time, which is longer than what is
    stable."""
    why: list[str] = []

    class Stuck(Process):
        async def live(self) -> None:
            await trio.sleep(60)
            self.lifetime = 60.0
            self.ended.set()
            self._settled.set()

    def launch(number: int) -> Process:
        process = Stuck(Order(number, 1, Target("f", "m"), [], [], [], None, 1.0, False))
        nursery.start_soon(process.live)
        return process

    slot = Slot(0, launch, Backoff(4), 100.0, lambda *said: why.append(said[0]))
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            await slot.keep()
    assert why[0].endswith("that was failure 4 in a row")


# -- which function


async def at_the_top(worker: Worker) -> None: ...


class Inside:
    @staticmethod
    async def method(worker: Worker) -> None: ...


def test_names_of_functions() -> None:
    assert str(name_target("package.module:function")) == "package.module:function"
    assert name_target(at_the_top) == Target("at_the_top", __name__)
    assert load_target(name_target(at_the_top)) is at_the_top
    assert name_target(Inside.method) == Target("Inside.method", __name__)
    assert load_target(name_target(Inside.method)) is Inside.method


@pytest.mark.parametrize("name", ["", "app", "app:", ":main", "app.py:main()", "a b:c", "1a:b"])
def test_what_is_not_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not MODULE:FUNCTION"):
        name_target(name)


def test_what_a_worker_could_not_import() -> None:
    async def local(worker: Worker) -> None: ...

    for function in (local, partial(at_the_top), lambda worker: None):
        with pytest.raises(ValueError, match="must be at the top level of a module"):
            name_target(function)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a function or"):
        name_target(1)  # type: ignore[arg-type]


def test_functions_of_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = ModuleType("__main__")
    script.main = lambda worker: None  # type: ignore[attr-defined]
    script.main.__module__, script.main.__qualname__ = "__main__", "main"
    monkeypatch.setitem(sys.modules, "__main__", script)
    with pytest.raises(ValueError, match="this program has no file"):
        name_target(script.main)
    script.__file__ = str(tmp_path / "script")
    assert name_target(script.main) == Target("main", script=script.__file__)
    script.__spec__ = type(os.__spec__)("package.module", None)  # python -m
    assert name_target(script.main) == Target("main", "package.module")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no 'main' in that_program"),
        ("main = 1", "that_program:main is not a function"),
        ("async def main(a, b): ...", "that_program:main does not take a Worker, "),
        ("async def main(): ...", "that_program:main does not take a Worker, "),
        ("async def main(*, a): ...", "that_program:main does not take a Worker, "),
        ("import nothing_like_it", "that_program cannot be imported: ModuleNotFoundError: No mod"),
        ("1 / 0", "that_program cannot be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "that_program cannot be imported: SystemExit: 3"),
        ("a b", "that_program cannot be imported: SyntaxError: invalid syntax"),
    ],
)
def test_what_cannot_be_loaded(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "that_program", raising=False)
    (tmp_path / "that_program.py").write_text(text)
    with pytest.raises(TargetError) as caught:
        load_target(Target("main", "that_program"))
    assert str(caught.value).startswith(message)
    assert ("Traceback" in caught.value.details) == ("cannot be" in message)
    monkeypatch.delitem(sys.modules, "that_program", raising=False)


def test_a_module_that_is_not_there() -> None:
    for name in ("nothing_like_it", "nothing_like_it.deeper"):
        with pytest.raises(TargetError, match=r"^there is no module 'nothing_like_it'$"):
            load_target(Target("main", name))
    with pytest.raises(TargetError, match=r"^there is no module 'os\.deeper'$"):
        load_target(Target("main", "os.deeper"))


# -- addresses


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        (":8000", (None, 8000)),
        ("8000", (None, 8000)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, found: tuple[str | None, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text", ["", "localhost", "::1:80", "a:65536", "a:-1", "a:b", "[::1]", "a:1:2", "a:123456"]
)
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_address(text)


def name_of(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return name_address(sock.getsockname())


def test_workers_share_a_queue_or_have_their_own() -> None:
    for reuse, queues in ((False, 1), (True, 3)):
        ports = Ports(["127.0.0.1:0", "127.0.0.1:0"], SocketOptions(reuse_port=reuse))
        ports.open(3)
        found = [ports.descriptors(number) for number in range(3)]
        assert len({tuple(each) for each in found}) == queues
        assert [len(each) for each in found] == [2, 2, 2]
        for each in found:
            assert [name_of(fd) for fd in each] == ports.names()
        ports.close()


def test_an_address_that_is_taken_closes_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = Ports(["127.0.0.1:0", f"127.0.0.1:{port}"], None)
        with pytest.raises(OSError, match=rf"Address already in use: 127\.0\.0\.1:{port}$"):
            ports.open(2)
        assert ports.descriptors(0) == [-1, -1]
    with pytest.raises(OSError, match=r": no\.such\.host\.invalid$"):
        Ports(["no.such.host.invalid:1"], None).open(1)


def test_ipv6_is_named_in_brackets() -> None:
    assert name_address(("::1", 80, 0, 0)) == "[::1]:80"


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, ValueError, "at least 1 worker, not 0"),
        ({"workers": True}, TypeError, "workers must be an int, not True"),
        ({"workers": "2"}, TypeError, "workers must be an int, not '2'"),
        ({"bind": "nonsense"}, ValueError, "'nonsense' is not HOST:PORT"),
        ({"metrics": "nonsense"}, ValueError, "'nonsense' is not HOST:PORT"),
        ({"grace": -1}, ValueError, "a number of seconds >= 0"),
        ({"ready_timeout": math.nan}, ValueError, "a number of seconds >= 0"),
        ({"failures_max": 0}, ValueError, "failures_max must be at least 1"),
        ({"backend": "kqueue"}, ValueError, "a backend is one of"),
        ({"options": 1}, TypeError, "options must be SocketOptions"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    if "metrics" in arguments:
        pytest.importorskip("prometheus_client")
    with pytest.raises(error, match=message):
        serve_workers("app:main", **arguments)


def test_only_in_the_main_thread_and_outside_of_trio() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="in the main thread"):
            await trio.to_thread.run_sync(serve_workers, "app:main", 1)
        with pytest.raises(RuntimeError, match="run"):
            serve_workers("app:main", 1)

    trio.run(main)


# -- a worker by hand


async def test_a_worker_by_hand_serves_and_ends() -> None:
    said: list[str] = []
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    worker = Worker(listeners=[listener], on_ready=lambda: said.append("ready"))
    assert repr(worker) == "<Worker 0 of 1>"

    async def handler(stream: trio_uring.SocketStream) -> None:
        await stream.send_all(b"x")
        worker.shutdown.start()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve, handler)
        async with await trio_uring.open_tcp_stream("127.0.0.1", port) as client:
            assert await client.receive_some() == b"x"
    worker.ready()
    assert said == ["ready"]
    with pytest.raises(OSError, match="failed"):
        await trio_uring.open_tcp_stream("127.0.0.1", port)


async def test_a_worker_without_listeners() -> None:
    with pytest.raises(ValueError, match="no listeners"):
        await Worker().serve(trio.aclose_forcefully)


async def test_the_limits_of_a_worker_are_those_of_serve_listeners() -> None:
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        worker = Worker(listeners=[listener])
        for wrong in ({"max_connections": 0}, {"first_byte_timeout": -1}, {"idle_timeout": -1}):
            with pytest.raises(ValueError, match=r"at least 1|a number of seconds"):
                await worker.serve(trio.aclose_forcefully, **wrong)  # type: ignore[arg-type]


# -- what they tell each other


async def test_messages_both_ways() -> None:
    ours, theirs = socket.socketpair()
    order = Order(1, 2, Target("f", "m"), [5], ["a"], ["p"], None, 1.5, True)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    channel = Channel(theirs)
    async with stream:
        await send_message(stream, order.as_message())
        message = await trio.to_thread.run_sync(channel.receive)
        assert message is not None
        assert Order.of_message(message) == order
        channel.send({"metrics": [["a", math.inf]]})
        assert await receive_message(stream) == {"metrics": [["a", math.inf]]}
    assert channel.receive() is None
    channel.send({"ready": True})  # nobody is there
    theirs.close()
    assert channel.receive() is None


async def test_a_thread_that_cannot_be_started_is_a_process_that_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where processes are limited, so are threads: the supervisor tries again later."""

    async def open_process(*args: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    process = Process(Order(0, 1, Target("f", "m"), [], [], [], None, 1.0, False))
    await process.live()
    assert process.ended.is_set()
    assert "can't start new thread" in process.outcome


async def test_what_is_asked_of_a_worker_at_the_same_time() -> None:
    """A scrape and a second SIGTERM: neither is refused because of the other."""
    ours, theirs = socket.socketpair()
    process = Process(Order(0, 1, Target("f", "m"), [], [], [], None, 1.0, True))
    process._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    process.ready.set()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with process._stream, stream, trio.open_nursery() as nursery:
        nursery.start_soon(process.metrics)
        nursery.start_soon(process.cut_short, 60.0)
        asked = [await receive_message(stream) for _ in range(2)]
        process.ended.set()
        nursery.cancel_scope.cancel()
    assert sorted(each["ask"] for each in asked) == ["cut short", "metrics"]


# -- the page over HTTP


async def ask(request: bytes, page: Any = None) -> bytes:
    async def made() -> bytes:
        return b"the page\n"

    ends = socket.socketpair()
    client, server = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in ends)
    limit = trio.Semaphore(1)
    data = b""

    async def serve() -> None:
        async with server:  # as trio.serve_listeners closes it
            await http._serve(page or made, limit, server)

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.send_all(request)
        async for chunk in client:
            data += chunk
    assert limit.value == 1
    return data


@pytest.mark.parametrize(
    ("request_", "status", "has_page"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200", True),
        (b"GET /metrics?name=x HTTP/1.0\n\n", b"200", True),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200", False),
        (b"GET / HTTP/1.1\r\n\r\n", b"404", False),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405", False),
        (b"nonsense\r\n\r\n", b"400", False),
        (b"\x16\x03\x01" + b"x" * 9000, b"400", False),
    ],
)
async def test_answers_over_http(request_: bytes, status: bytes, has_page: bool) -> None:
    answer = await ask(request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[:2] == [b"HTTP/1.1", status]
    assert (b"the page" in body) == has_page
    if status != b"200" or has_page:
        assert f"Content-Length: {len(body)}\r\n".encode() in head


async def test_a_page_that_cannot_be_made_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def page() -> bytes:
        raise ValueError("no page")

    answer = await ask(b"GET /metrics HTTP/1.1\r\n\r\n", page)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "no page" in caplog.text


async def test_a_slow_client_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    assert await ask(b"GET /metrics") == b""
    assert trio.current_time() >= http.SECONDS_MAX


# -- the watchdog


def test_a_supervisor_without_any_worker_is_not_healthy() -> None:
    """All of them wait to be started again."""
    supervisor = _supervisor._Supervisor(
        Target("f", "m"), 1, Ports([], None), None, 1.0, 1.0, None, None
    )
    assert not supervisor._is_healthy()
    supervisor._living.add(Process(Order(0, 1, Target("f", "m"), [], [], [], None, 1.0, False)))
    assert supervisor._is_healthy()
