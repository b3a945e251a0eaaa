"""systemd's conventions: sockets in the environment, and notify.

Rules of this file: a child takes over descriptors as systemd gives them: from 3 on, with the
variables. What is read of the environment alone is tested here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_uring import listeners_from_environment, notify, notify_watchdog
from trio_uring._serving import systemd as _systemd

if TYPE_CHECKING:
    from trio.testing import MockClock

VARIABLES = (
    "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
)  # fmt: skip

# Descriptors from 3 on that are inherited, and LISTEN_PID: as systemd starts a service.
STARTER = """
import fcntl, os, sys
code, *fds = sys.argv[1:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]
for fd in fds:
    os.close(int(fd))
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
    os.close(fd)
given = len(fds)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
exec(code)
"""

SERVER = """
import os, sys, trio, trio_uring

async def handler(stream):
    global served
    await stream.send_all(b"served")
    served += 1
    if served == given:
        scope.cancel()

async def main():
    found = trio_uring.listeners_from_environment()
    assert not [name for name in os.environ if name.startswith("LISTEN_")], os.environ
    assert trio_uring.listeners_from_environment() == {}
    print({name: [one.socket.family.name for one in found[name]] for name in found}, flush=True)
    for listeners in found.values():
        for listener in listeners:
            assert not os.get_inheritable(listener.socket.fileno())
    with scope:
        listeners = [one for each in found.values() for one in each]
        await trio_uring.serve_listeners(handler, listeners)

served, scope = 0, trio.CancelScope()
trio.run(main)
"""

ERROR = """
import os, trio_uring

try:
    trio_uring.listeners_from_environment()
except ValueError as exc:
    print(exc)
    for fd in range(3, 3 + given):
        os.fstat(fd)  # still there
assert not [name for name in os.environ if name.startswith("LISTEN_")], os.environ
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run(code: str, socks: list[Any], **variables: str) -> str:
    """Runs a program whose descriptors from 3 on are these, and returns what it prints."""
    copies = [os.dup(sock.fileno()) for sock in socks]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", STARTER, code, *map(str, copies)],
            env={**os.environ, **variables},
            pass_fds=copies,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for copy in copies:
            os.close(copy)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def listening(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(address)
    sock.listen()
    return sock


# -- listeners_from_environment


def test_listeners_of_every_family_by_name(tmp_path: Path) -> None:
    socks = [
        listening(socket.AF_INET, ("127.0.0.1", 0)),
        listening(socket.AF_INET6, ("::1", 0)),
        listening(socket.AF_UNIX, str(tmp_path / "socket")),
    ]
    clients = []
    for sock in socks:  # they wait in the backlog: no connection is lost while a service starts
        clients.append(socket.socket(sock.family))
        clients[-1].connect(sock.getsockname())
    printed = run(SERVER, socks, LISTEN_FDS="3", LISTEN_FDNAMES="web:web:control")
    assert printed == "{'web': ['AF_INET', 'AF_INET6'], 'control': ['AF_UNIX']}\n"
    for client in clients:
        assert client.recv(100) == b"served"
        client.close()
    for sock in socks:  # the supervisor's stay, and so does the file
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        sock.close()
    assert (tmp_path / "socket").exists()


def test_nobody_has_named_them() -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as sock:
        with socket.create_connection(sock.getsockname()):
            assert run(SERVER, [sock], LISTEN_FDS="1") == "{'unknown': ['AF_INET']}\n"


def test_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listeners_from_environment() == {}
    monkeypatch.setenv("LISTEN_FDS", "0")
    assert listeners_from_environment() == {}
    monkeypatch.setenv("LISTEN_FDS", "0")
    monkeypatch.setenv("LISTEN_FDNAMES", "")
    assert listeners_from_environment() == {}
    assert not os.environ.keys() & set(VARIABLES)


def test_they_are_for_another_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert listeners_from_environment() == {}
    assert not os.environ.keys() & set(VARIABLES)
    assert f"LISTEN_PID is 1, and this process is {os.getpid()}" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS is not a number: 'many'"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is not a number: '-1'"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": ""}, "LISTEN_PID is not a number: ''"),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES has 2 names for 1"),
        ({"LISTEN_FDS": "9" * 15}, r"descriptor \d+ \('unknown'\) of LISTEN_FDS is not"),
        ({"LISTEN_FDS": "9" * 30, "LISTEN_FDNAMES": "a"}, "LISTEN_FDNAMES has 1 names for 99999"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": ""}, "LISTEN_FDNAMES has 0 names for 2"),
    ],
)
def test_variables_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        listeners_from_environment()
    assert not os.environ.keys() & set(VARIABLES)


def connected() -> Any:
    left, right = socket.socketpair()
    right.close()
    return left


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path(os.devnull).open, "is not a socket: Socket operation on non-socket"),
        (
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "is not a listening stream socket: its unit needs ListenStream= and Accept=no",
        ),
        (lambda: socket.socket(socket.AF_INET), "is not a listening stream socket"),
        (connected, "is not a listening stream socket"),
    ],
    ids=["file", "UDP", "not listening", "Accept=yes"],
)
def test_descriptors_that_are_something_else(make: Any, message: str) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as good, make() as bad:
        printed = run(ERROR, [good, bad], LISTEN_FDS="2", LISTEN_FDNAMES="web:bad")
    assert f"descriptor 4 ('bad') of LISTEN_FDS {message}" in printed


def test_fewer_descriptors_than_announced() -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as good:
        printed = run(ERROR, [good], LISTEN_FDS="2")
    assert "descriptor 4 ('unknown') of LISTEN_FDS is not a socket: Bad file descriptor" in printed


# -- notify


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        if abstract:
            supervisor.bind("")  # the kernel chooses an abstract name
            name = "@" + supervisor.getsockname()[1:].decode()
        else:
            name = str(tmp_path / "notify")
            supervisor.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        for state in ("READY=1", "RELOADING=1\nMONOTONIC_USEC=5", "STOPPING=1", "WATCHDOG=1",
                      "STATUS=größer"):  # fmt: skip
            assert notify(state)
            assert supervisor.recv(4096).decode() == state
    assert os.environ["NOTIFY_SOCKET"] == name


def test_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    assert notify("READY=1") is False


def test_what_cannot_be_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with pytest.raises(ValueError, match="not the name of a Unix socket: 'vsock:2:1234'"):
        notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with pytest.raises(FileNotFoundError):
        notify("READY=1")


def test_a_supervisor_that_does_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trio_uring._serving.systemd._NOTIFY_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100_000:
                sent += notify("WATCHDOG=1")
        assert 0 < sent < 100_000


# -- the watchdog


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the watchdog was told."""
    times: list[float] = []

    def notify(state: str) -> bool:
        assert state == "WATCHDOG=1"
        times.append(trio.current_time())
        return True

    monkeypatch.setattr(_systemd, "notify", notify)
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    return times


@pytest.mark.parametrize("named", [False, True])
async def test_the_watchdog_is_told_at_half_of_its_interval(
    named: bool,
    told: list[float],
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if named:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with trio.move_on_after(13) as scope:
        await notify_watchdog()
    assert scope.cancelled_caught
    assert told == [0, 4, 8, 12]


async def test_the_watchdog_is_told_only_of_what_is_well(
    told: list[float], autojump_clock: MockClock
) -> None:
    """And as soon as it is well again: a whole interval must not pass for a moment's illness."""
    with trio.move_on_after(19):
        await notify_watchdog(lambda: not 3 < trio.current_time() < 5.2)
    assert told == [0, 5.5, 9.5, 13.5, 17.5]


async def test_a_run_that_is_blocked_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notify_watchdog)
            await trio.testing.wait_all_tasks_blocked()
            assert systemd.recv(100) == b"WATCHDOG=1"
            time.sleep(0.3)  # noqa: ASYNC251
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, ""),
        ({"WATCHDOG_USEC": "0"}, ""),
        ({"WATCHDOG_USEC": "1000"}, ""),  # and nobody listens
        (
            {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1", "NOTIFY_SOCKET": "/nowhere"},
            "WATCHDOG_PID is 1, and this process is {}: the watchdog is not told",
        ),
    ],
)
async def test_no_watchdog_asks(
    variables: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with trio.fail_after(30):
        await notify_watchdog()
    assert [each.getMessage() for each in caplog.records] == [says.format(os.getpid())] * bool(says)


@pytest.mark.parametrize("name", ["WATCHDOG_USEC", "WATCHDOG_PID"])
async def test_variables_of_the_watchdog_that_make_no_sense(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv(name, "1s")
    with pytest.raises(ValueError, match=f"{name} is not a number: '1s'"):
        await notify_watchdog()


async def test_a_watchdog_that_cannot_be_told_ends_nothing(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    with trio.move_on_after(2.5) as scope:
        await notify_watchdog()
    assert scope.cancelled_caught
    assert caplog.text.count("systemd could not be told 'WATCHDOG=1'") == 3
