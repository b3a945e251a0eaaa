"""docs/workers.md: its programs run, as it says that they are started.

Rules of this file: nothing is changed of them but the address, which the kernel chooses here.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
from support.served import reset
from support.workers import supervisor

from trio_uring import __main__

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(sys.platform == "win32", reason="no worker processes"),
]

TEXT = (Path(__file__).parents[2] / "docs" / "workers.md").read_text()
COMMANDS = re.findall(r"python -m trio_uring serve .*", TEXT)


def here(text: str) -> str:
    assert ":8000" in text
    return text.replace(":8000", "127.0.0.1:0")


@pytest.mark.parametrize("number", [0, 1])
def test_its_programs(number: int, tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 2
    if number == 0:
        (tmp_path / "app.py").write_text(programs[0])
        words = shlex.split(here(COMMANDS[0]))[1:]
    else:
        (tmp_path / "app.py").write_text(here(programs[1]))
        words = ["app.py"]
    with supervisor([sys.executable, "-W", "error", *words], tmp_path) as one:
        port = int(one.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        one.wait_for("all workers are ready: 4")
        for _ in range(3):  # clients that reset their connections end no worker
            with socket.create_connection(("127.0.0.1", port), 60) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
                reset(sock)
        assert one.end(signal.SIGTERM) == 0
        assert not [line for line in one.lines if "by itself" in line]


def test_its_options_exist() -> None:
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        words = shlex.split(command)[3:]
        assert __main__.make_parser(words).parse_args(words).main == "app:main"
    commands = __main__.make_parser(["serve"])._subparsers
    assert commands is not None
    text = commands._group_actions[0].choices["serve"].format_help()  # type: ignore[index]
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--bind"}:
        assert option in text, option
