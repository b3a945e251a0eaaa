"""Every block of code on the site does what a reader expects of it.

Rules of this file: a block has a language, and each language a way to be tested, which is in one of
these tables. A program runs in its own process, with warnings as errors, and has nothing to say.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.pages import BLOCKS, PAGES, ROOT, page_name
from test_docs import GUIDES

from trio_uring import __main__
from trio_uring.__main__ import make_parser
from trio_uring._cli.launch import split

if TYPE_CHECKING:
    from pathlib import Path

    from support.pages import Block

SECONDS_MAX = 100  # for a program
ELSEWHERE = {  # pages whose programs another file runs
    **dict.fromkeys(GUIDES, "tests/test_docs.py"),
    "testing": "tests/plugin/test_pytest_plugin.py",
    "workers": "tests/workers/test_guide.py",
    "tutorial": "tests/pages/test_tutorial.py",
}
NOT_RUN = {  # languages that are not run, and why
    "text": "it is what something prints",
    "{toctree}": "Sphinx reads it: .ci/docs",
    "{eval-rst}": "Sphinx reads it: .ci/docs, and test_reference",
    "dockerfile": "it needs a container engine",
    "yaml": "it needs Kubernetes or Compose",
}


def of(*languages: str) -> list[object]:
    return [
        pytest.param(block, id=block.name)
        for block in BLOCKS
        if block.language in languages
        and (block.language != "python" or block.page not in ELSEWHERE)
    ]


@pytest.mark.parametrize("block", of("python"))
def test_a_program(block: Block) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.code],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("block", of("sh"))
def test_a_shell_reads_it(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", of("json", "ini"))
def test_a_file_is_well_formed(block: Block) -> None:
    if block.language == "json":
        json.loads(block.code)
    else:
        configparser.ConfigParser(strict=False, interpolation=None).read_string(block.code)


def test_every_block_has_a_language_that_is_tested() -> None:
    tested = {"python", "sh", "json", "ini", *NOT_RUN}
    assert not [
        f"{block.name} {block.language or 'has none'}"
        for block in BLOCKS
        if block.language not in tested
    ]


def test_who_runs_a_page_reads_it() -> None:
    for page, file in ELSEWHERE.items():
        assert re.search(rf'"{page}(\.md)?"', (ROOT / file).read_text()), page


# -- the command line

README = ROOT / "README.md"


@pytest.mark.parametrize("path", [README, *PAGES], ids=["README", *map(page_name, PAGES)])
def test_commands_are_understood(path: Path) -> None:
    """Those of `python -m trio_uring`, in blocks and in sentences: each with its arguments."""
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    for line in re.findall(r"python -m trio_uring ([^`\n|<>&();]*)", text):
        if "[" in line or "..." in line:  # a synopsis
            continue
        words = shlex.split(line, comments=True)
        words = ["1" if word == "N" else word for word in words]
        if words and words[-1].startswith("--"):  # in a sentence: an option without its argument
            words.pop()
        if words[:1] == ["run"]:
            words, _ = split(words)
        assert is_understood(words), line


def is_understood(words: list[str]) -> bool:
    if len(words) == 1 and words[0] in __main__._COMMANDS:  # its name
        return True
    try:
        make_parser(words).parse_args(words)
    except SystemExit as exc:
        return exc.code == 0
    return True
