"""`python -m trio_uring run` in the processes of a program: the hook that waits for trio's import.

Rules of this file: each program is a process of its own, which says what it is.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.started import PACKAGE, PROGRAM, RUN, SECONDS_MAX, execute, seen

from trio_uring import __main__
from trio_uring._cli.site import sitecustomize as _sitecustomize

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
