"""`python -m trio_uring run`: what the program sees, and that it is enabled; so are its children.

Rules of this file: each program is a process of its own, which says what it is. How it is without
`run` is asked of the same program, started without.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.command import no_ring

from trio_uring import __main__
from trio_uring._cli import launch as _launch
from trio_uring._cli.site import sitecustomize as _sitecustomize
from trio_uring._driver import backend as _backend
from trio_uring._streams import install as _install

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = (sys.executable, "-m", "trio_uring", "run")
PACKAGE = str(Path(__main__.__file__).parents[1])
SECONDS_MAX = 60

# Says, as JSON, what it sees of its surroundings, and whether its run is enabled.
PROGRAM = """
import json, os, sys
import trio

async def kind():
    left, right = trio.socket.socketpair()
    with left, right:
        await left.send(b"x")
        await right.recv(1)
        return type(left).__name__

def seen():
    return {
        "argv": sys.argv, "path": sys.path, "pid": os.getpid(), "flags": list(sys.flags),
        "executable": sys.executable, "orig_argv": sys.orig_argv, "cwd": os.getcwd(),
        "site": getattr(sys, "site_said", None), "socket": trio.run(kind),
        "backend": os.environ.get("TRIO_URING_BACKEND"), "loader": type(trio.__loader__).__name__,
        "modules": [name for name in sys.modules if "sitecustomize" in name],
    }

if __name__ == "__main__":
    print(json.dumps(seen()))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def execute(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != _launch.VARIABLE}
    environment["PYTHONPATH"] = PACKAGE
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def seen(command: Sequence[str | Path], folder: Path, **variables: str) -> dict[str, Any]:
    done = execute(command, folder, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return dict(json.loads(done.stdout))


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


# -- children


def test_children_are_enabled_too(program: Path) -> None:
    (program.parent / "parent.py").write_text(
        "import concurrent.futures, json, multiprocessing, os, subprocess, sys\n"
        "import program\n"
        "def main():\n"
        "    found = {}\n"
        "    for method in ('spawn', 'forkserver', 'fork'):\n"
        "        context = multiprocessing.get_context(method)\n"
        "        with context.Pool(1) as pool:\n"
        "            found[method] = pool.apply(program.seen)['socket']\n"
        "    run = lambda **options: subprocess.run([sys.executable, 'program.py'], text=True,"
        " stdout=subprocess.PIPE, check=True, **options).stdout\n"
        "    found['subprocess'] = json.loads(run())['socket']\n"
        "    clean = {k: v for k, v in os.environ.items() if k != 'TRIO_URING_INSTALL'}\n"
        "    found['variable unset'] = json.loads(run(env=clean))['socket']\n"
        "    print(json.dumps(found))\n"
        "if __name__ == '__main__': main()\n"
    )
    assert seen([*RUN, "parent.py"], program.parent) == {
        "spawn": "UringSocket",
        "forkserver": "UringSocket",
        "fork": "UringSocket",
        "subprocess": "UringSocket",
        "variable unset": "_SocketType",
    }


def test_another_environment_says_that_it_is_not_enabled(program: Path) -> None:
    """As a Python that has trio, but not trio_uring."""
    start = "import sys; sys.modules['trio_uring'] = None; import trio; print('goes on')"
    done = execute([*RUN, sys.executable, "-c", start], program.parent)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("trio_uring is not enabled in this process, which is trio's own: ")
    assert sys.executable in line


def test_a_program_without_trio_does_not_pay(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys; print([n for n in sys.modules if 'trio' in n or n in ('typing', 'logging')])"
    )
    without = execute([sys.executable, "program.py"], tmp_path)
    within = execute([*RUN, "program.py"], tmp_path)
    assert within.stdout == without.stdout


@pytest.mark.parametrize("first", ["trio_uring", "trio_uring.framing", "trio.lowlevel", "anyio"])
def test_whatever_is_imported_first(first: str, program: Path) -> None:
    pytest.importorskip(first.partition(".")[0])
    program.write_text(f"import {first}\n{PROGRAM}")
    assert seen([*RUN, "program.py"], program.parent)["socket"] == "UringSocket"


def test_a_program_that_uses_it_by_itself(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import trio, trio_uring\n"
        "async def main():\n"
        "    trio_uring.enable()\n"
        "    return type(trio.socket.socket()).__name__\n"
        "assert trio_uring.run(main) == trio.run(main) == 'UringSocket'\n"
        "trio_uring.uninstall()\n"
        "async def stock(): return type(trio.socket.socket()).__name__\n"
        "assert trio.run(stock) == '_SocketType'\n"
    )
    done = execute([*RUN, "program.py"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_trio_is_not_there_at_first(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "whole = list(sys.path)\n"
        "sys.path[:] = [entry for entry in whole if not os.path.isdir(entry + '/trio')]\n"
        "for _ in range(2):\n"
        "    try: import trio\n"
        "    except ModuleNotFoundError as exc: print(exc.name)\n"
        "sys.path[:] = whole\n"
        "import trio\n"
        "async def main(): return type(trio.socket.socket()).__name__\n"
        "print(trio.run(main))\n"
    )
    done = execute([*RUN, "program.py"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "trio\ntrio\nUringSocket\n", "")


def test_who_only_looks_for_trio_changes_nothing(program: Path) -> None:
    """What it finds is what it would find without, and the import that comes later is enabled."""
    program.write_text(
        "import copy, importlib.util\n"
        "spec = importlib.util.find_spec('trio')\n"
        "assert spec.loader.get_filename('trio') == spec.origin\n"
        "assert copy.copy(spec.loader).is_package('trio')\n" + PROGRAM
    )
    without = seen([sys.executable, "program.py"], program.parent)
    within = seen([*RUN, "program.py"], program.parent)
    assert within["socket"] == "UringSocket"
    assert within["loader"] == without["loader"]


def test_trio_s_own_console(tmp_path: Path) -> None:
    """`-m trio` looks for the package, and then imports it."""
    said = subprocess.run(
        [*RUN, "-m", "trio"],
        cwd=tmp_path,
        input="type(trio.socket.socket()).__name__\n",
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=True,
    ).stdout
    assert "'UringSocket'" in said


def test_trio_cannot_be_imported_at_first(program: Path) -> None:
    program.write_text(
        "import sys\n"
        "sys.modules['outcome'] = None\n"
        "try: import trio\n"
        "except ImportError: del sys.modules['outcome']\n"
        "for name in [n for n in sys.modules if n.startswith('trio')]: del sys.modules[name]\n"
        + PROGRAM
    )
    assert seen([*RUN, "program.py"], program.parent)["socket"] == "UringSocket"


# -- a sitecustomize that was there before


def test_an_existing_sitecustomize_still_runs(program: Path) -> None:
    folder = program.parent / "theirs"
    folder.mkdir()
    ours = str(Path(__main__.__file__).parents[1])
    path = os.pathsep.join([str(folder), ours])
    (folder / "sitecustomize.py").write_text("import sys; sys.site_said = __file__")
    without = seen([sys.executable, "program.py"], program.parent, PYTHONPATH=path)
    within = seen([*RUN, "program.py"], program.parent, PYTHONPATH=path)
    assert (without["socket"], within["socket"]) == ("_SocketType", "UringSocket")
    for name in ("site", "path", "modules"):
        assert within[name] == without[name]
    assert within["site"] == str(folder / "sitecustomize.py")
    for body in ("import nothing_like_it", "1 / 0"):
        (folder / "sitecustomize.py").write_text(body)
        done = [
            execute([*start, "program.py"], program.parent, PYTHONPATH=path)
            for start in ((sys.executable,), RUN)
        ]
        assert [each.returncode for each in done] == [0, 0]
        # RUN is a Python with that sitecustomize, too, before it becomes the program
        assert done[1].stderr == done[0].stderr * 2
        assert json.loads(done[1].stdout)["socket"] == "UringSocket"


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_a_python_that_is_too_old(version: str, program: Path) -> None:
    """It notices nothing, and the sitecustomize that was there before runs."""
    python = shutil.which(f"python{version}")
    works = python and subprocess.run([python, "-c", ""], capture_output=True, check=False)
    if not python or not works or works.returncode:
        pytest.skip(f"there is no Python {version} here")
    (program.parent / "sitecustomize.py").write_text("import sys; sys.site_said = 'theirs'")
    start = "import sys, json; print(sys.site_said)"
    path = str(program.parent)
    done = execute([*RUN, python, "-c", start], program.parent, PYTHONPATH=f"{path}:{PACKAGE}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "theirs\n", "")


def test_it_is_written_for_every_python() -> None:
    tree = ast.parse(Path(_sitecustomize.__file__).read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr))
        assert not isinstance(node, ast.ImportFrom) or node.module != "__future__"
        if isinstance(node, ast.FunctionDef):
            every = node.args
            assert not any(each.annotation for each in [*every.args, *every.kwonlyargs])
            assert not node.returns
            assert not every.kwonlyargs + every.posonlyargs


def test_run_within_run(program: Path) -> None:
    within = seen([*RUN, "-m", "trio_uring", "run", "program.py"], program.parent)
    assert within["socket"] == "UringSocket"
    assert not [entry for entry in within["path"] if "_cli" in entry]


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
