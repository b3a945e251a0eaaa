"""The programs: the load generator and the floor, the servers, and the whole command.

Rules of this file: short, and nothing is said about speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import command
from support.long_cases import long

from trio_uring import __main__
from trio_uring._bench.build import Programs, compile_programs
from trio_uring._bench.clocks import Cores
from trio_uring._bench.extras import measure_cancel, measure_idle, measure_start
from trio_uring._bench.peers import PEERS
from trio_uring._bench.processes import RunError
from trio_uring._bench.rounds import Place, measure, start_servers
from trio_uring._bench.schedule import Plan
from trio_uring._bench.workloads import parse

pytestmark = pytest.mark.no_ring
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs a core for the server and one for the load"
)
SECONDS = 0.05


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    cores = sorted(os.sched_getaffinity(0))
    return Place(compile_programs(tmp_path_factory.mktemp("bench")), Cores(cores[0], cores[-1]))


@needs_compiler
def test_they_compile_without_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc -Wconversion -Werror")
    programs = compile_programs(tmp_path)
    assert os.access(programs.loadgen, os.X_OK)
    assert os.access(programs.floor, os.X_OK)


@needs_two_cores
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_it_says_so(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert __main__.main(["bench", "--quick"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m trio_uring bench: ")
    assert "compile" in err


@needs_compiler
@pytest.mark.parametrize(
    ("peer", "workload"),
    [
        ("c", "3x1K"),
        ("c", "1x1M"),
        ("c", "pipelined-2x1K"),
        ("c", "connect-2x64"),
        ("trio", "2x64K"),
        ("trio", "scopes-2x64"),
        ("trio", "frames-2x1K"),
        ("readiness", "frames-2x1K"),
        long("asyncio", "frames-2x1K"),
        long("asyncio-protocol", "frames-2x64K"),
        ("trio", "in-1x64K"),
        ("trio", "out-1x64K"),
        ("trio", "list16-2x64"),
        ("readiness", "list16-2x64"),
        ("readiness", "connect-2x64"),
        long("asyncio", "2x64K"),
        long("asyncio", "in-2x64K"),
        long("asyncio-protocol", "1x1M"),
        long("asyncio-protocol", "out-2x64K"),
        long("asyncio-protocol", "list16-2x64"),
        ("trio", "send-frame-2x64"),
        ("readiness", "send-frame-2x4K"),
        ("readiness", "send-frame-1x1M"),
        ("trio", "send-twice-2x64"),
        ("readiness", "send-joined-2x64"),
        ("readiness", "send-many-2x64"),
        ("trio", "relay-2x1K"),
        ("readiness", "relay-2x1K"),
        ("trio", "relay-bulk-1x64K"),
        ("readiness", "relay-bulk-1x64K"),
        ("trio", "send-file-2x64K"),
        ("readiness", "send-file-2x64K"),
        ("trio", "udp-2x64"),
        ("readiness", "udp-2x1400"),
        ("readiness", "udp-many-2x64"),
        long("asyncio-protocol", "udp-2x64"),
        ("trio", "tls-2x1K"),
        ("readiness", "tls-1x1M"),
        long("asyncio", "tls-2x64K"),
        long("asyncio-protocol", "tls-2x1K"),
        ("trio", "hypercorn-2x5"),
        ("readiness", "hypercorn-2x64K"),
        ("trio", "websockets-2x100"),
        ("readiness", "websockets-2x1K"),
    ],
)
def test_a_round(peer: str, workload: str, place: Place) -> None:
    load = parse(workload)
    if why := load.missing():
        pytest.skip(why)
    with ExitStack() as stack:
        running, failed = start_servers([PEERS[peer]], load.server, place, stack)
        assert not failed
        done = measure(place, running[0], load, SECONDS, 0.0)
        while not done.cpu_us and done.dropped:  # it got no processor: as in a benchmark, again
            done = measure(place, running[0], load, SECONDS, 0.0)
        assert done.rate > 0
        assert done.cpu_us > 0
        if load.paced:
            done = measure(place, running[0], load, SECONDS, 0.0, done.rate / 10)
            assert 0 < done.p50_us <= done.p99_us


@needs_compiler
def test_an_answer_that_is_no_echo_is_an_error(place: Place) -> None:
    echo, answers = parse("2x64"), parse("list2-2x64")
    with ExitStack() as stack:
        running, _ = start_servers([PEERS["trio"]], answers.server, place, stack)
        with pytest.raises(RunError, match="not the echo of what was sent"):
            measure(place, running[0], echo, SECONDS, 0.0)


@needs_compiler
@pytest.mark.parametrize("workload", ["hypercorn-1x5", "websockets-1x100"])
def test_a_program_that_does_not_speak_the_protocol_is_an_error(
    workload: str, place: Place
) -> None:
    with ExitStack() as stack:
        running, _ = start_servers([PEERS["c"]], parse("1x1").server, place, stack)
        with pytest.raises(RunError, match="refused: GET /"):
            measure(place, running[0], parse(workload), SECONDS, 0.0)


@needs_compiler
def test_over_tls_too(place: Place) -> None:
    load = parse("tls-1x64")
    if why := load.missing():
        pytest.skip(why)
    with ExitStack() as stack:
        running, _ = start_servers([PEERS["trio"]], load.server, place, stack)
        plain = replace(load, kind="echo")
        with pytest.raises(RunError, match="load"):
            measure(place, running[0], plain, SECONDS, 0.0)  # which is no handshake


@needs_compiler
def test_a_server_that_does_not_start_is_told_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_uring._bench.peers.sys.executable", shutil.which("false"))
    with ExitStack() as stack:
        running, failed = start_servers([PEERS["trio"]], parse("1x1").server, place, stack)
    assert not running
    assert "exit code 1" in failed["trio"]


@needs_compiler
@pytest.mark.parametrize("words", [["port", "0"], ["bytes"], ["nonsense", "1"], ["mode", "x"]])
def test_the_load_generator_refuses_nonsense(words: list[str], place: Place) -> None:
    programs: Programs = place.programs
    done = subprocess.run([programs.loadgen, *words], capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert words[0] in done.stderr


@needs_compiler
def test_idle_connections(place: Place) -> None:
    plan = Plan(1, 1, SECONDS, 0.0, 1, 1)
    found = measure_idle(place, plan, parse("idle-100"), PEERS["trio"])
    assert found["memory_bytes"] > 0
    assert found["alone_us"] > 0
    assert found["active_us"] > 0


@needs_compiler
@pytest.mark.parametrize("peer", ["trio", "readiness"])
def test_mass_cancellation(peer: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_uring._bench.extras.CANCELS", 2)
    assert measure_cancel(place, parse("cancel-50"), PEERS[peer])["cancel_us"] > 0


def test_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_uring._bench.extras.STARTS", 3)  # one may meet other work
    found = measure_start(PEERS["asyncio"])
    assert found["import_ms"] > 0
    assert found["run_us"] > 0


@needs_compiler
@needs_two_cores
def test_the_whole_command(tmp_path: Path) -> None:
    options = [
        "--peers",
        "trio",
        "c",
        "--workloads",
        "2x64",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--seed",
        "3",
    ]
    done = command("bench", *options, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "\n2x64 (CPU for each operation)\n" in done.stdout
    assert done.stderr.startswith("seed 3\n")
    assert "] 2x64 " in done.stderr
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(data["results"]["2x64"]) == ["trio", "c"]
    assert "--seed 3 --peers trio c --workloads 2x64" in data["command"]
