"""`python -m trio_uring run`: what the program sees, and that it is enabled; so are its children.

Rules of this file: each program is a process of its own, which says what it is. How it is without
`run` is asked of the same program, started without.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command import no_ring
from support.started import PROGRAM, RUN, SECONDS_MAX, execute, seen

from trio_uring import __main__
from trio_uring._cli import launch as _launch
from trio_uring._cli.site import sitecustomize as _sitecustomize
from trio_uring._driver import backend as _backend
from trio_uring._streams import install as _install

if TYPE_CHECKING:
    pass

# -- what the program sees


@pytest.mark.parametrize(
    "arguments",
    [
        ["program.py"],
        ["program.py", "-m", "x", "--backend", "off", "--", "-k"],
        ["./program.py", ""],
        ["-m", "program"],
        ["-m", "program", "--", "-m", "--backend=off", "a b"],
    ],
)
def test_it_is_as_without_and_enabled(arguments: list[str], program: Path) -> None:
    without = seen([sys.executable, *arguments], program.parent)
    within = seen([*RUN, *arguments], program.parent)
    assert (without.pop("socket"), within.pop("socket")) == ("_SocketType", "UringSocket")
    assert without.pop("pid") != within.pop("pid")
    assert within.pop("modules") == ["sitecustomize"]
    without.pop("modules")
    assert within == without


def test_options_of_python_itself(program: Path) -> None:
    options = ["-X", "utf8", "-W", "ignore", "-B"]
    without = seen([sys.executable, *options, "program.py"], program.parent)
    for ours in (["-m", "trio_uring"], ["-mtrio_uring"], ["-bm", "trio_uring"]):
        within = seen([sys.executable, *options, *ours, "run", "program.py"], program.parent)
        if ours[0] == "-bm":
            assert within["orig_argv"] == [sys.executable, *options, "-b", "program.py"]
        else:
            assert within["flags"] == without["flags"]
            assert within["orig_argv"] == without["orig_argv"]


@pytest.mark.parametrize("name", ["folder", "./folder/", "archive.pyz", "archive.zip"])
def test_a_folder_and_an_archive_are_scripts_too(name: str, program: Path) -> None:
    (program.parent / "folder").mkdir()
    program.rename(program.parent / "folder" / "__main__.py")
    for archive in ("archive.pyz", "archive.zip"):
        zipapp.create_archive(program.parent / "folder", program.parent / archive)
    without = seen([sys.executable, name, "-x"], program.parent)
    within = seen([*RUN, name, "-x"], program.parent)
    assert within["socket"] == "UringSocket"
    for each in ("argv", "path", "orig_argv"):
        assert within[each] == without[each]


def test_a_command(program: Path) -> None:
    """One that is found in PATH, and one with a path; argv[0] is as it was typed."""
    program.rename(command := program.with_name("serve"))
    command.write_text(f"#!{sys.executable}\n{PROGRAM}")
    command.chmod(0o755)
    for name in ("serve", "./serve", str(command)):
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        within = seen([*RUN, name, "-x"], program.parent, PATH=path)
        assert within["socket"] == "UringSocket"
        assert within["argv"][1:] == ["-x"]
    done = execute([*RUN, "sh", "-c", "echo $0 $1; exit 3", "zero", "one"], program.parent)
    assert (done.stdout, done.returncode) == ("zero one\n", 3)
    done = execute([*RUN, "sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline"], program.parent)
    assert done.stdout.startswith("sh -c ")


def test_exit_status_and_errors_are_the_program_s(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import trio\nraise SystemExit(7)")
    assert execute([*RUN, "program.py"], tmp_path).returncode == 7
    (tmp_path / "program.py").write_text("import trio, os\nos.kill(os.getpid(), 15)")
    assert execute([*RUN, "program.py"], tmp_path).returncode == -signal.SIGTERM
    (tmp_path / "program.py").write_text("import trio\n1 / 0")
    without, within = (
        execute([*start, "program.py"], tmp_path) for start in ((sys.executable,), RUN)
    )
    assert within.stderr == without.stderr
    assert within.returncode == without.returncode == 1
    done = execute([*RUN, "-m", "no_such_module"], tmp_path)
    assert done.returncode == 1
    assert "No module named no_such_module" in done.stderr


def test_it_is_the_same_process(program: Path) -> None:
    command = [*RUN, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.load(process.stdout)["pid"] == process.pid


def test_signals_reach_it_as_they_would(tmp_path: Path) -> None:
    ignored = "grep ^SigIgn: /proc/$$/status"
    without = execute(["sh", "-c", ignored], tmp_path).stdout
    assert execute([*RUN, "sh", "-c", ignored], tmp_path).stdout == without
    program = "import trio\nprint(flush=True)\ntry: trio.run(trio.sleep_forever)\n"
    program += "except KeyboardInterrupt: raise SystemExit(9)"
    (tmp_path / "program.py").write_text(program)
    command = [*RUN, str(tmp_path / "program.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) in (9, -signal.SIGINT)  # before the try, or in it


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_standard_stream_may_be_closed(closed: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import trio; raise SystemExit(7)")
    start = f'exec "$@" {closed}'
    done = execute(["sh", "-c", start, "sh", *RUN, "program.py"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


# -- which backend


@pytest.mark.parametrize(
    ("arguments", "backend", "kind"),
    [
        (["--backend", "readiness"], "readiness", "UringSocket"),
        (["--backend=auto"], "auto", "UringSocket"),
        (["--backend", "off"], "off", "_SocketType"),
        ([], "epoll", "UringSocket"),
    ],
)
def test_the_backend(arguments: list[str], backend: str, kind: str, program: Path) -> None:
    within = seen([*RUN, *arguments, "program.py"], program.parent, TRIO_URING_BACKEND="epoll")
    assert (within["backend"], within["socket"]) == (backend, kind)


def test_the_variable_has_one_name() -> None:
    assert _launch.VARIABLE == _install.VARIABLE == _sitecustomize.VARIABLE


# -- errors, before anything is started


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "the program is missing: -m module, a script or a command"),
        (["--"], 2, "the program is missing: -m module, a script or a command"),
        (["-m"], 2, "the module is missing after -m"),
        (["no-such-command"], 127, "there is no script and no command 'no-such-command'"),
        (["."], 127, "there is no script and no command '.'"),
        (
            ["--backend", "kqueue", "x"],
            2,
            "--backend is 'kqueue': a backend is one of 'uring', 'readiness', 'auto', 'off'",
        ),
        (
            ["--backend", "uring", "x"],
            2,
            "io_uring_setup failed with EPERM: forbidden by a test. io_uring is asked for by this "
            "run's argument; 'auto' means readiness here",
        ),
    ],
)
def test_it_cannot_be_started(
    arguments: list[str],
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_backend, "UringRing", no_ring)
    _backend._Memory.forget()
    assert __main__.main(["run", *arguments]) == status
    assert capsys.readouterr().err == f"python -m trio_uring run: {says}\n"


def test_wrong_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", "kqueue")
    assert __main__.main(["run", "python"]) == 2
    assert "TRIO_URING_BACKEND is 'kqueue': a backend is one of" in capsys.readouterr().err


def test_a_wrong_driver_is_refused_whatever_the_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", "kqueue")  # it is replaced
    monkeypatch.setenv("TRIO_URING_DRIVER", "thread")
    assert __main__.main(["run", "--backend", "off", "no-such-command"]) == 2
    assert "run: the driver is 'thread' (TRIO_URING_DRIVER, " in capsys.readouterr().err
    monkeypatch.delenv("TRIO_URING_DRIVER")
    assert __main__.main(["run", "--backend", "off", "no-such-command"]) == 127


def test_uring_that_the_variable_asks_for_is_tried_before_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inside of the program it would be an OSError of one of its operations."""
    monkeypatch.setattr(_backend, "UringRing", no_ring)
    _backend._Memory.forget()
    monkeypatch.setenv("TRIO_URING_BACKEND", "uring")
    assert __main__.main(["run", "no-such-command"]) == 2
    assert "is asked for by the environment variable TRIO_URING_BACKEND" in capsys.readouterr().err
    assert __main__.main(["run", "--backend", "auto", "no-such-command"]) == 127


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "bad").chmod(0o755)
    done = execute([*RUN, "./bad"], tmp_path)
    assert done.returncode == 126
    assert done.stderr.startswith("python -m trio_uring run: ./bad cannot be started: Exec format")


@pytest.mark.parametrize("option", ["-I", "-E"])
def test_a_python_that_ignores_its_environment(option: str, tmp_path: Path) -> None:
    package = str(Path(__main__.__file__).parents[1])
    start = f"import sys; sys.path.insert(0, {package!r}); from trio_uring.__main__ import main; "
    start += "raise SystemExit(main(['run', 'python']))"
    done = execute([sys.executable, option, "-c", start], tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "python -m trio_uring run: this Python ignores PYTHONPATH or has no site (-E, -I, -S), "
        "which `run` needs\n"
    )


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["run"], 1),
        (["run", "-m", "x", "-h"], 1),
        (["run", "x", "--backend", "off"], 1),
        (["run", "--backend", "off", "x"], 3),
        (["run", "--backend=off", "-m", "x"], 2),
        (["run", "--backend"], 2),
        (["run", "-h", "x"], 2),
        (["run", "--nonsense", "x"], 2),
    ],
)
def test_which_words_are_the_program_s(words: list[str], own: int) -> None:
    ours, program = _launch.split(words)
    assert (ours, program) == (words[:own], words[own:])
    assert _launch.split(["run", "--", "-x", "--"]) == (["run"], ["-x", "--"])
