"""The acts of the demo: servers, loads, rounds, and what happens when something goes wrong.

Rules: an act has rounds of no time, so that every client does its work once: what is counted is
always the same. No speed is asserted. What a load must notice is done to it by a server in a
thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.command import command, group_ends, no_ring

from trio_uring import __main__
from trio_uring._cli import process as _process
from trio_uring._demo import command as _command
from trio_uring._demo import loads, servers
from trio_uring._demo.acts import ACTS
from trio_uring._demo.rounds import STACKS, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS_MAX = 100
PATIENCE = 60  # seconds in which a datagram comes that is not lost
SMALL = {
    "echo": {"connections": 5, "size": 3000},
    "files": {"clients": 3, "least": 100_000},
    "relay": {"connections": 2, "chunk": 2**20},
    "udp": {"sockets": 2, "burst": 10, "size": 50, "patience": PATIENCE},
}
SMALL_ACTS = {act.name: dataclasses.replace(act, sizes=SMALL[act.name]) for act in ACTS}


def test_an_act_has_a_server_and_a_load() -> None:
    names = {act.name for act in ACTS}
    assert names == servers.SERVERS.keys() == loads.LOADS.keys() == SMALL.keys()
    for act in ACTS:
        assert act.sizes.keys() == SMALL[act.name].keys()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("echo", "10 messages came back as they had been sent"),
        ("files", "files with the right checksum, 2 of them cut and resumed"),
        ("relay", "4 MiB with the right checksum, 4 answers after the end"),
        ("udp", "40 datagrams came back as they had been sent, 0 were lost"),
    ],
)
def test_an_act(name: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _command.perform_all([SMALL_ACTS[name]], 1, 0.0) == 0
    lines = capsys.readouterr().out.splitlines()
    [row] = [number for number, line in enumerate(lines) if line.startswith("   trio_uring ")]
    assert lines[row - 1].startswith("   trio ")
    assert lines[row].endswith(" of trio's")
    assert lines[row + 1].endswith(found)


def test_the_command() -> None:
    done = command("demo", "--seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    for number, act in enumerate(ACTS, start=1):
        assert f"\n{number}. {act.title}\n   {act.difference}\n" in done.stdout
    assert done.stdout.count(" of trio's\n") == len(ACTS)
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout


def test_it_says_what_it_runs_on() -> None:
    environment = {**os.environ, "TRIO_URING_BACKEND": "readiness"}
    done = command("demo", "--seconds", "0.1", env=environment)
    assert done.returncode == 0, done.stdout
    why = "readiness is asked for by the environment variable TRIO_URING_BACKEND"
    assert f"\nNot on io_uring, because {why}\n" in done.stdout


@pytest.mark.no_ring
def test_a_wrong_variable_is_one_sentence() -> None:
    for name in ("TRIO_URING_BACKEND", "TRIO_URING_DRIVER"):
        done = command("demo", env={**os.environ, name: "nonsense"})
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("python -m trio_uring demo: ")
        assert name in done.stderr
        assert "'nonsense'" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.uring_only("a ring that is seen from outside")
@pytest.mark.parametrize(("stack", "rings"), [("trio", 0), ("trio_uring", 1)])
@pytest.mark.parametrize("act", ["echo", "files", "relay", "udp"])
def test_which_server_has_a_ring(act: str, stack: str, rings: int) -> None:
    """Also where every run is enabled: otherwise trio_uring would be compared with itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "trio_uring._demo.servers", act, stack, "-1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRIO_URING_INSTALL": "1"},
    ) as process:
        assert process.stdin
        assert process.stdout
        port = json.loads(process.stdout.readline())["port"]
        load = loads.LOADS[act](stack, port, **SMALL[act])
        assert load.run(0.0)["operations"]
        assert len(_process._rings(process.pid)) == rings
        load.close()
        process.stdin.close()


@pytest.mark.no_ring
def test_it_cannot_begin_without_a_ring_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_command, "backend_info", no_ring)
    assert __main__.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "python -m trio_uring demo: io_uring_setup failed with EPERM: forbidden by a test\n"
    )


def test_an_act_that_fails_says_why_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown = dataclasses.replace(SMALL_ACTS["echo"], name="nothing")
    refused = dataclasses.replace(SMALL_ACTS["udp"], sizes={**SMALL["udp"], "size": 70_000})
    acts = [unknown, refused, SMALL_ACTS["echo"]]
    assert _command.perform_all(acts, 1, 0.0) == 1
    out = capsys.readouterr().out
    failures = [line for line in out.splitlines() if line.startswith("   failed: ")]
    assert len(failures) == 2
    assert "the server on trio ended before its time" in failures[0]
    assert "KeyError: 'nothing'" in failures[0]
    assert "Message too long" in failures[1]
    assert "10 messages came back as they had been sent" in out


@pytest.mark.no_ring
def test_time_is_shared_out() -> None:
    rounds = len(ACTS) * _command.ROUNDS * len(STACKS)
    for seconds in (15.0, 60.0):
        of_rounds = _command.round_seconds(seconds) * rounds
        assert of_rounds + len(ACTS) * _command.START_SECONDS == pytest.approx(seconds)
    assert _command.round_seconds(0.1) == 0.0


@pytest.mark.no_ring
def test_the_least_of_the_rounds_counts() -> None:
    outcome = Outcome(ACTS[0], 2)
    for seconds, operations in ((2.0, 100), (1.0, 100), (3.0, 100)):
        outcome.add("trio", seconds, operations, {"lost": 1})
        assert not outcome.complete
    outcome.add("trio_uring", 5.0, 1000, {})
    assert outcome.complete
    assert outcome.cpu == {"trio": 0.01, "trio_uring": 0.005}
    assert (outcome.operations, outcome.counts) == (1300, {"lost": 3})


# -- what is left behind


@contextlib.contextmanager
def demo_in_a_group() -> Iterator[subprocess.Popen[str]]:
    """The demo in its first act, in a process group of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "trio_uring", "demo", "--seconds", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            while line := process.stdout.readline():
                if line.startswith("1. "):
                    break
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("later", [0.0, 1.5])  # seconds; while children start, or in a round
def test_a_signal_leaves_nothing_behind(stop: int, later: float) -> None:
    with demo_in_a_group() as process:
        time.sleep(later)
        os.killpg(process.pid, stop)
        _, stderr = process.communicate(timeout=SECONDS_MAX)
        assert (process.returncode, stderr) == (130, "python -m trio_uring demo: interrupted\n")
        assert group_ends(process.pid)


def test_children_end_when_their_parent_is_killed() -> None:
    with demo_in_a_group() as process:
        time.sleep(1.0)
        process.kill()
        process.wait(SECONDS_MAX)
        assert group_ends(process.pid)


# -- what a load notices


@contextlib.contextmanager
def tcp_server(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Answers what arrives on its connections; None: hangs up."""

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(100_000):
                out = answer(data)
                if out is None:
                    return
                sock.sendall(out)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RD)


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda data: data[:-1] + b"!", "wrong bytes"),
        (lambda data: data + b"!", "too much"),
        (lambda data: None, "hung up"),
    ],
)
def test_echo_notices(answer: Callable[[bytes], bytes | None], why: str) -> None:
    with tcp_server(answer) as port:
        load = loads.Echo("trio", port, connections=2, size=100)
        with pytest.raises((loads.WrongAnswerError, ConnectionError)) as info:
            load.run(0.0)
        load.close()
    assert isinstance(info.value, ConnectionError) or why in str(info.value)


@pytest.mark.no_ring
def test_echo_takes_an_answer_in_pieces() -> None:
    """Of a message that is larger than a receive of the server."""
    with tcp_server(lambda data: data) as port:
        load = loads.Echo("trio", port, connections=2, size=1_000_000)
        assert load.run(0.0) == {"operations": 2, "counts": {}}
        load.close()


@pytest.mark.no_ring
def test_files_notice() -> None:
    with tcp_server(lambda data: b"\0" * 49) as port:
        load = loads.Files("trio", port, clients=2, least=1000)
        with pytest.raises(loads.WrongAnswerError, match="status 0, 0 of 0 bytes"):
            load.run(0.0)


@pytest.mark.no_ring
def test_the_load_of_a_proxy_notices() -> None:
    def proxy(data: bytes) -> bytes | None:
        """Connects, but loses what it was given."""
        [port] = servers.PORT.unpack(data[: servers.PORT.size])
        socket.create_connection(("127.0.0.1", port)).close()
        return None

    with tcp_server(proxy) as port:
        load = loads.Relay("trio", port, connections=1, chunk=1000)
        with pytest.raises((loads.WrongAnswerError, OSError)):
            load.run(0.0)


def udp_server(answer: Callable[[int, bytes], bytes | None]) -> Any:
    @contextlib.contextmanager
    def serving() -> Iterator[int]:
        def serve() -> None:
            number = 0
            while True:
                data, address = sock.recvfrom(1000)
                if data == b"end":
                    return
                out = answer(number, data)
                number += 1
                if out is not None:
                    sock.sendto(out, address)

        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield sock.getsockname()[1]
            finally:
                with socket.socket(type=socket.SOCK_DGRAM) as last:
                    last.sendto(b"end", sock.getsockname())
                thread.join()

    return serving()


@pytest.mark.no_ring
def test_lost_datagrams_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def answer(number: int, data: bytes) -> bytes | None:
        if number == 9:
            answered.set()
        return None if number % 2 else data

    def receive(load: loads.Udp, *burst: Any) -> int:
        answered.wait()  # what has not come by then is lost
        return take(load, *burst)

    take = loads.Udp._receive
    monkeypatch.setattr(loads.Udp, "_receive", receive)
    with udp_server(answer) as port:
        load = loads.Udp("trio", port, sockets=1, burst=10, size=50, patience=1)
        assert load.run(0.0) == {"operations": 5, "counts": {"lost": 5}}
        load.close()


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("answer", "patience", "why"),
    [
        (lambda number, data: data[:-1] + b"!", PATIENCE, "wrong bytes"),
        (lambda number, data: None, 1, "one"),
    ],
)
def test_udp_notices(answer: Callable[[int, bytes], bytes | None], patience: int, why: str) -> None:
    with udp_server(answer) as port:
        load = loads.Udp("trio", port, sockets=1, burst=3, size=50, patience=patience)
        with pytest.raises(loads.WrongAnswerError, match=why):
            load.run(0.0)
        load.close()


@pytest.mark.no_ring
def test_the_long_one_needs_linux(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert __main__.main(["demo", "files"]) == 1
    assert capsys.readouterr().err == (
        "python -m trio_uring demo: it needs Linux; `demo` alone does not\n"
    )
