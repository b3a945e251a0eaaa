"""serve_workers on Unix sockets: which file there is, whose it is, and when it is gone.

Rules of this file: first the supervisor's sockets alone, then with real processes.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest
from support.workers import APP, answer, pids, serving, supervisor, wait_for_end

from trio_uring import SocketOptions, __main__
from trio_uring._workers.ports import Ports, name_address, parse_unix

pytestmark = pytest.mark.no_ring
needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="it waits for processes by pidfd")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP.format(version="one"))
    return tmp_path


# -- the supervisor's sockets


def connects(path: str | bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_names_of_unix_sockets() -> None:
    assert parse_unix("unix:/run/app.sock") == "/run/app.sock"
    assert parse_unix("unix:app.sock") == "app.sock"
    assert parse_unix("unix:@app") == "\0app"
    for text in ("/run/app.sock", "127.0.0.1:80", "Unix:/run/app.sock", ""):
        assert parse_unix(text) is None
    assert name_address("/run/app.sock") == "unix:/run/app.sock"
    assert name_address(b"\0app") == "unix:@app"


@needs_unix
def test_unix_sockets_are_shared_and_their_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with reuse_port, in the order in which they were given."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "one.sock"
    ports = Ports(
        [f"unix:{path}", "127.0.0.1:0", "unix:two.sock"], SocketOptions(reuse_port=True), mode=0o620
    )
    assert not path.exists()
    ports.open(2)
    (one, tcp, two), (also_one, other_tcp, also_two) = map(ports.descriptors, range(2))
    assert (one, two) == (also_one, also_two)
    assert tcp != other_tcp
    assert [ports.names()[each] for each in (0, 2)] == [f"unix:{path}", "unix:two.sock"]
    assert mode_of(path) == mode_of(tmp_path / "two.sock") == 0o620
    assert connects(str(path))
    monkeypatch.chdir("/")  # the path was relative to what it was
    ports.close()
    assert not os.listdir(tmp_path)
    path.touch()  # somebody else's
    ports.close()
    assert path.exists()


@needs_unix
def test_a_forked_child_removes_no_file(tmp_path: Path) -> None:
    ports = Ports([f"unix:{tmp_path}/sock"], None)
    ports.open(1)
    if (pid := os.fork()) == 0:
        ports.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert connects(f"{tmp_path}/sock")
    ports.close()
    assert not os.listdir(tmp_path)


@needs_unix
def test_a_unix_socket_that_cannot_be_had_closes_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ports = Ports([f"unix:{tmp_path}/sock", f"unix:{tmp_path}/file"], None)
    with pytest.raises(OSError, match="something that is not a socket is there"):
        ports.open(1)
    assert os.listdir(tmp_path) == ["file"]
    assert ports.descriptors(0) == [-1]
    twice = Ports([f"unix:{tmp_path}/sock"] * 2, None)
    with pytest.raises(OSError, match="another socket is bound there"):
        twice.open(1)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError, match=f"No such file or directory: '{tmp_path}/no/sock'"):
        Ports([f"unix:{tmp_path}/no/sock"], None).open(1)


@needs_unix
def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{tmp_path}/sock")
    ports = Ports([f"unix:{tmp_path}/sock"], None)
    ports.open(1)
    assert connects(f"{tmp_path}/sock")
    ports.close()
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"trio_uring-{os.getpid()}"
    ports = Ports([f"unix:@{name}"], None)
    ports.open(3)
    assert ports.names() == [f"unix:@{name}"]
    assert connects(f"\0{name}".encode())
    assert not os.listdir(tmp_path)
    ports.close()
    assert not connects(f"\0{name}".encode())


@needs_unix
@pytest.mark.parametrize(
    ("addresses", "mode", "message"),
    [
        (["unix:"], None, "the path of a Unix socket must not be empty"),
        (["unix:a\0b"], None, "must not contain a zero byte"),
        (["unix:/run/sock"], 660, r"mode must be permissions, 0 to 0o777, not 660"),
        # Whoever restricts it must not believe that it is restricted.
        (["unix:@app"], 0o660, "an abstract Unix socket has no permissions"),
        ([":8000"], 0o660, "unix_mode is for addresses unix:PATH, and there is none"),
        (["/run/sock"], None, "is not HOST:PORT"),
    ],
)
def test_what_is_no_unix_socket(addresses: list[str], mode: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ports(addresses, None, mode=mode)


def test_permissions_are_octal(capsys: pytest.CaptureFixture[str]) -> None:
    parse = __main__.make_parser(["serve"]).parse_args
    for text in ("660", "0660", "0o660"):
        assert parse(["serve", "app:main", "--unix-mode", text]).unix_mode == 0o660
    for text in ("rw", "668", "1660", "-1"):
        with pytest.raises(SystemExit, match="2"):
            parse(["serve", "app:main", f"--unix-mode={text}"])
        says = f"{text!r} is no octal number up to 777, such as 660"
        assert says in capsys.readouterr().err


# -- with workers


def ask(path: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"x")
        return answer(sock)


@needs_linux
def test_workers_on_a_unix_socket(app: Path) -> None:
    """The file is the supervisor's: it outlives every worker, and is gone when all of them end."""
    path = app / "app.sock"
    with serving(app, "--bind", f"unix:{path}", "--unix-mode", "660", "--grace", "60") as (one, _):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        inode = path.lstat().st_ino
        for number, pid in pids(one).items():
            os.kill(pid, signal.SIGSTOP)
            assert ask(path)[1] == str(1 - number)
            os.kill(pid, signal.SIGCONT)
        os.kill(pids(one)[0], signal.SIGKILL)
        one.ready()
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("all workers were replaced")
        assert path.lstat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as busy:  # it holds its worker up
            busy.connect(str(path))
            busy.sendall(b"x")
            assert answer(busy)[0] == "one"
            os.killpg(one.process.pid, signal.SIGTERM)  # as a service manager does
            assert one.end() == 0
    assert not path.exists()


@needs_linux
def test_a_supervisor_takes_the_path_of_one_that_was_killed(app: Path) -> None:
    path = app / "app.sock"
    with serving(app, "--bind", f"unix:{path}") as (one, _):
        command = [sys.executable, "-m", "trio_uring", "serve", "app:main"]
        with supervisor([*command, "--bind", f"unix:{path}"], app) as other:
            assert other.end() == 2
        assert other.lines[-1].endswith(f"another socket is bound there: '{path}'")
        assert ask(path)[0] == "one"
        one.process.kill()
        for pid in pids(one).values():
            wait_for_end(pid)
    assert path.exists()
    with serving(app, "--bind", f"unix:{path}") as (one, _):
        assert ask(path)[0] == "one"
        assert one.end(signal.SIGTERM) == 0
    assert not path.exists()


@needs_linux
@pytest.mark.parametrize("when", ["bind", "_listen", "open"])
def test_a_signal_while_sockets_are_opened_leaves_no_file(app: Path, when: str) -> None:
    """Also between bind(2) and the moment in which the supervisor knows of the file."""
    (app / "script").write_text(
        "import logging, os, signal, trio_uring\n"
        "from trio_uring._streams import unix\n"
        "from trio_uring._workers.ports import Ports\n"
        f"holder = Ports if {when!r} == 'open' else unix\n"
        f"name = '_bind' if {when!r} == 'bind' else {when!r}\n"
        "do = getattr(holder, name)\n"
        "def then_signal(*arguments):\n"
        "    done = do(*arguments)\n"
        "    assert os.path.exists('sock')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return done\n"
        "async def main(worker):\n"
        "    await worker.shutdown.wait()\n"
        "if __name__ == '__main__':\n"
        "    setattr(holder, name, then_signal)\n"
        "    logging.basicConfig(level=logging.INFO)\n"
        "    trio_uring.serve_workers(main, 1, bind=['unix:sock', ':0'])\n"
    )
    with supervisor([sys.executable, "script"], app) as one:
        assert one.end() == 0
        assert "SIGTERM: the workers end" in one.lines[-1]
    assert not (app / "sock").exists()


@needs_linux
def test_a_worker_knows_the_buffers_of_unix_connections(app: Path) -> None:
    """The one option that a connection does not inherit from its listener."""
    (app / "script").write_text(
        "import logging, socket, trio_uring\n"
        "async def main(worker):\n"
        "    async def handler(stream):\n"
        "        await stream.receive_some()\n"  # else its end may be there before the question
        "        size = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)\n"
        "        await stream.send_all(f'{size}\\n'.encode())\n"
        "    await worker.serve(handler)\n"
        "if __name__ == '__main__':\n"
        "    logging.basicConfig(level=logging.INFO)\n"
        "    options = trio_uring.SocketOptions(receive_buffer=12345)\n"
        "    trio_uring.serve_workers(main, 1, bind='unix:sock', options=options)\n"
    )
    with supervisor([sys.executable, "script"], app) as one:
        one.wait_for("listening on unix:sock")
        one.wait_for("all workers are ready")
        assert ask(app / "sock") == [str(2 * 12345)]
        assert one.end(signal.SIGTERM) == 0
