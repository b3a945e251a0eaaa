"""`doctor`: what it blames, the fix that it names, and its exit status.

Rules of this file: what can be made to happen here is made to happen, in a process of its own: a
seccomp filter, no descriptors, variables, a missing extension. What cannot (another kernel, a
sysctl of the whole machine, a security module) is evidence that is written down here.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import command

from trio_uring import __main__
from trio_uring._cli import evidence as _evidence
from trio_uring._cli.causes import (
    BLOCKS,
    IN_THE_WAY,
    NO_RUN,
    NOT_ASKED_FOR,
    NOTE,
    UNKNOWN,
    USED,
    Finding,
    examine,
    verdict,
)
from trio_uring._cli.evidence import Evidence, Trial
from trio_uring._driver.backend import BackendInfo
from trio_uring._errors import why_unavailable
from trio_uring._ring.figures import RingInfo

ROOT = Path(__file__).parent.parent.parent
RING = RingInfo("uring", (), 0, 256, 4096, (), True)
GOOD = Evidence(
    system="Linux",
    release="6.12.9-generic",
    machine="x86_64",
    implementation="CPython",
    version="Linux version 6.12.9-generic",
    disabled="0",
    group=-1,
    groups=frozenset({1000}),
    privileged=False,
    seccomp="0",
    modules="lockdown,capability,yama",
    confined=None,
    memlock=(8388608, 8388608),
    lifted=False,
    address_space=(-1, -1),
    nofile=(65536, 65536),
    open_files=5,
    variables={},
    no_extension=None,
    no_accelerator=None,
    trial=Trial(RING),
    chosen=BackendInfo("uring", None, "auto", ()),
    refusal=None,
)


def refused(code: int, **others: Any) -> Evidence:
    """Evidence of a machine whose io_uring_setup answers `code`."""
    why = why_unavailable(code, "io_uring_setup")
    chosen = BackendInfo("readiness", why, "auto", ())
    trial = Trial(None, errno=code, why=why)
    return dataclasses.replace(GOOD, trial=trial, chosen=chosen, **others)


def in_the_way(seen: Evidence) -> Finding:
    [found] = [each for each in examine(seen) if each.state == BLOCKS]
    assert found.fix
    return found


pytestmark = pytest.mark.no_ring


# -- what is blamed


def test_nothing_is_in_the_way() -> None:
    assert [each.state for each in examine(GOOD)] == ["ok"] * 12
    assert verdict(GOOD) == (USED, "io_uring is used")


@pytest.mark.parametrize(
    ("seen", "name", "fix"),
    [
        (refused(errno.EPERM, disabled="2"), "kernel.io_uring_disabled", "io_uring_disabled=0"),
        (
            refused(errno.EPERM, disabled="1", group=999),
            "kernel.io_uring_disabled",
            "io_uring_group",
        ),
        (refused(errno.EPERM, seccomp="2"), "seccomp", "seccomp --docker"),
        (refused(errno.EPERM, seccomp=None), "seccomp", "--kubernetes"),
        # The sysctl does not forbid it to this process, so the filter does.
        (refused(errno.EPERM, disabled="1", privileged=True, seccomp="2"), "seccomp", "--systemd"),
        (refused(errno.EPERM, disabled="1", group=1000, seccomp="2"), "seccomp", "--systemd"),
        (refused(errno.EPERM, modules="capability,bpf"), "security modules", "BPF"),
        (refused(errno.EACCES, modules="capability,selinux"), "security modules", "audit2allow"),
        (
            refused(errno.EACCES, confined="docker-default (enforce)"),
            "security modules",
            "AppArmor",
        ),
        (refused(errno.ENOSYS, seccomp="2"), "seccomp", "io_uring_enter"),
        # podman's default, on a kernel that is too old for the sysctl
        (
            refused(errno.ENOSYS, seccomp="2", release="5.15.0", disabled=None),
            "seccomp",
            "--docker",
        ),
        (refused(errno.ENOSYS, seccomp="2", release="4.19.0", disabled=None), "kernel", "5.11"),
        (refused(errno.ENOSYS, disabled=None), "kernel", "CONFIG_IO_URING"),
        (refused(errno.ENOSYS, disabled=None, seccomp="2"), "kernel", "CONFIG_IO_URING"),
        (refused(errno.ENOSYS, release="4.19.0", disabled=None), "kernel", "5.11"),
        (refused(errno.EOPNOTSUPP, release="5.4.0"), "kernel", "5.11"),
        (refused(errno.EINVAL, release="5.4.0"), "kernel", "5.11"),
        (refused(errno.EINVAL), "kernel", "outside of the sandbox"),
        (refused(errno.EOPNOTSUPP), "kernel", "outside of the sandbox"),
        # A kernel that is new enough does not answer so: its filter does.
        (refused(errno.EINVAL, seccomp="2"), "seccomp", "--docker"),
        # /proc cannot be read: that the sysctl is not there means nothing.
        (refused(errno.ENOSYS, seccomp=None, disabled=None), "seccomp", "--docker"),
        *(
            (refused(errno.ENOMEM, release=release), "RLIMIT_MEMLOCK", "LimitMEMLOCK")
            for release in ("5.11.0", "6.14.0-rc1", "7.0.0")
        ),
        # These kernels count no ring against it.
        (refused(errno.ENOMEM, release="5.12.0"), "memory", "MemoryMax"),
        (refused(errno.ENOMEM, release="6.13.9"), "memory", "MemoryMax"),
        # It is not for this process.
        (refused(errno.ENOMEM, release="6.14.0", lifted=True), "memory", "MemoryMax"),
        (refused(errno.ENOMEM, release="6.14.0", memlock=(-1, -1)), "memory", "MemoryMax"),
        # Somebody has limited what is hardly ever limited.
        (refused(errno.ENOMEM, release="6.14.0", address_space=(2**20, -1)), "memory", "ulimit -v"),
        (refused(errno.EMFILE), "descriptors", "LimitNOFILE"),
        (refused(errno.ENFILE), "descriptors", "fs.file-max"),
        (refused(errno.EIO), "ring", "report it"),
        (refused(errno.ENOSYS, no_extension="No module named '_uring'"), "C extension", "compiler"),
        (refused(errno.ENOSYS, system="Darwin", machine="arm64"), "platform", "nothing"),
        (refused(errno.ENOSYS, implementation="PyPy"), "platform", "nothing"),
        (refused(errno.ENOSYS, machine="riscv64"), "platform", "nothing"),
    ],
)
def test_what_is_blamed(seen: Evidence, name: str, fix: str) -> None:
    found = in_the_way(seen)
    assert found.name == name
    assert fix in str(found.fix)
    assert seen.trial.why in found.text
    status, text = verdict(seen)
    assert status == IN_THE_WAY
    assert text.endswith(seen.trial.why)


@pytest.mark.parametrize(
    ("release", "version", "name", "fix"),
    [
        ("4.4.0", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", "gVisor", "runc"),
        ("4.4.0", "Linux version 4.4.0 (gVisor, by its log)", "gVisor", "runc"),
        ("4.4.0-19041-Microsoft", "Linux version 4.4.0-19041-Microsoft", "WSL1", "set-version"),
    ],
)
def test_kernels_that_are_none(release: str, version: str, name: str, fix: str) -> None:
    for seccomp in ("0", "2"):  # gVisor says that it has filters
        seen = refused(
            errno.ENOSYS, release=release, version=version, disabled=None, seccomp=seccomp
        )
        found = in_the_way(seen)
        assert found.name == "kernel"
        assert name in found.text
        assert fix in str(found.fix)


def test_wsl2_is_an_ordinary_kernel() -> None:
    version = "Linux version 5.15.153.1-microsoft-standard-WSL2"
    seen = dataclasses.replace(GOOD, release="5.15.153.1-microsoft-standard-WSL2", version=version)
    [kernel] = [each for each in examine(seen) if each.name == "kernel"]
    assert kernel.state == NOTE  # it lacks what 5.19 has
    assert "WSL2" in kernel.text
    assert verdict(seen)[0] == USED


# -- what could be better


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        ({"release": "5.15.0"}, "kernel", "provided buffers"),
        ({"release": "6.0.0"}, "kernel", "Linux 6.1"),
        ({"no_accelerator": "it was not built"}, "accelerator", "twice the CPU"),
        ({"nofile": (1024, 524288)}, "descriptors", "each connection takes one"),
        ({"release": "5.11.0", "memlock": (65536, 65536)}, "RLIMIT_MEMLOCK", "64 KiB"),
        ({"release": "6.14.0", "memlock": (65536, 65536)}, "RLIMIT_MEMLOCK", "64 KiB"),
        ({"trial": Trial(RING, "no thread could be started")}, "ring", "no thread"),
        ({"trial": Trial(dataclasses.replace(RING, lacking=("READ",)))}, "ring", "READ"),
        ({"variables": {"TRIO_URING_BAKEND": "uring"}}, "TRIO_URING_BAKEND", "no run looks"),
    ],
)
def test_notes(change: dict[str, Any], name: str, word: str) -> None:
    seen = dataclasses.replace(GOOD, **change)
    notes = {each.name: each for each in examine(seen) if each.state == NOTE}
    assert word in notes[name].text
    assert notes[name].fix
    assert verdict(seen)[0] == USED


@pytest.mark.parametrize(
    "change",
    [
        {"release": "6.13.0"},
        {"release": "6.14.0", "lifted": True},
        {"release": "6.14.0", "memlock": (-1, -1)},
    ],
)
def test_a_limit_of_locked_memory_that_is_not_for_rings(change: dict[str, Any]) -> None:
    seen = dataclasses.replace(GOOD, **{"memlock": (65536, 65536), **change})
    assert not [each for each in examine(seen) if each.state == NOTE]


# -- as a command


def doctor(*arguments: str, **variables: str) -> tuple[int, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TRIO_URING_")
    }
    done = command("doctor", *arguments, env={**environment, **variables})
    assert done.stderr == ""
    return done.returncode, unwrapped(done.stdout)


def unwrapped(text: str) -> str:
    """A line for each entry."""
    return re.sub(r"\n {28}(?!->)", " ", text)


@pytest.mark.uring_only("it is used")
def test_where_io_uring_is_used() -> None:
    status, text = doctor()
    assert status == USED
    assert re.search(r"^verdict +io_uring is used\nexit status +0$", text, re.MULTILINE)
    assert BLOCKS not in text
    status, text = doctor(TRIO_URING_RESTRICT="1")
    assert status == USED
    assert "verdict                     io_uring is used, restricted to the opcodes" in text


@pytest.mark.parametrize("name", ["readiness", "epoll", "off"])
def test_where_nobody_wants_it(name: str) -> None:
    status, text = doctor(TRIO_URING_BACKEND=name)
    assert status == NOT_ASKED_FOR
    assert re.search(rf"^TRIO_URING_BACKEND +in the way: '{name}'", text, re.MULTILINE)
    assert "-> unset TRIO_URING_BACKEND" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIO_URING_BACKEND", "nonsense"),
        ("TRIO_URING_RESTRICT", "yes"),
        ("TRIO_URING_DRIVER", "nonsense"),
    ],
)
def test_where_a_variable_is_wrong(name: str, value: str) -> None:
    status, text = doctor(**{name: value})
    assert status == NO_RUN
    assert re.search(rf"^{name} +in the way: .*{value}", text, re.MULTILINE)
    assert f"-> correct or unset {name}" in text


def test_every_wrong_variable_is_named() -> None:
    names = ("TRIO_URING_BACKEND", "TRIO_URING_RESTRICT", "TRIO_URING_DRIVER")
    status, text = doctor(**dict.fromkeys(names, "nonsense"))
    assert status == NO_RUN
    for name in names:
        assert re.search(rf"^{name} +in the way: .*nonsense", text, re.MULTILINE)


def test_a_sysctl_that_cannot_be_read() -> None:
    found = {each.name: each for each in examine(dataclasses.replace(GOOD, disabled=None))}
    assert found["kernel.io_uring_disabled"].state == UNKNOWN
    older = dataclasses.replace(GOOD, disabled=None, release="6.1.0")
    found = {each.name: each for each in examine(older)}
    assert found["kernel.io_uring_disabled"].state == "ok"


def test_json() -> None:
    status, text = doctor("--json", TRIO_URING_BACKEND="off")
    found = json.loads(text)
    assert (status, found["status"], found["backend"]) == (3, 3, "readiness")
    assert "TRIO_URING_BACKEND" in found["in_the_way"]
    assert {"name", "state", "text", "fix"} == found["findings"][0].keys()


def after(preparation: str, *arguments: str, backend: str = "auto") -> tuple[int, str]:
    """`doctor` in a process that has first done something to itself."""
    source = f"""
import sys
sys.path.insert(0, "tests")
from support import seccomp
from trio_uring.__main__ import main
from trio_uring._cli import doctor  # there may be no descriptor for it later
{preparation}
sys.exit(main(["doctor", *{list(arguments)}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "TRIO_URING_BACKEND": backend},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, unwrapped(done.stdout)


of_kernel = pytest.mark.uring_only("it is forbidden here to what could be used")


@of_kernel
@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
def test_a_filter_that_refuses(code: str) -> None:
    number = getattr(errno, code)
    status, text = after(f"seccomp.deny(seccomp.IO_URING_SETUP, {number})")
    assert status == IN_THE_WAY
    assert re.search(rf"^seccomp +in the way: .*{code}", text, re.MULTILINE)
    assert "python -m trio_uring seccomp --docker" in text


@of_kernel
def test_a_filter_that_kills() -> None:
    status, text = after("seccomp.answer(seccomp.IO_URING_ENTER, seccomp.KILL_PROCESS)")
    assert status == IN_THE_WAY
    assert re.search(r"^seccomp +in the way: io_uring_enter is forbidden", text, re.MULTILINE)


@of_kernel
def test_a_filter_where_io_uring_is_demanded() -> None:
    status, text = after(f"seccomp.deny(seccomp.IO_URING_SETUP, {errno.EPERM})", backend="uring")
    assert status == NO_RUN
    assert "runs fail rather than wait by readiness" in text
    assert re.search(r"^seccomp +in the way: ", text, re.MULTILINE)


@of_kernel
def test_a_filter_that_allows_it() -> None:
    status, text = after(f"seccomp.deny(seccomp.SWAPON, {errno.EPERM})")
    assert status == USED
    assert "a filter is in force, and it allows io_uring_setup" in text


@of_kernel
def test_no_descriptors() -> None:
    # As many as are open: not even /proc can be read, and it still says what is wrong.
    status, text = after(
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)"
    )
    assert status == IN_THE_WAY
    assert re.search(r"^descriptors +in the way: .*EMFILE|Too many open", text, re.MULTILINE)


def test_a_failed_self_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no reason at all")

    monkeypatch.setattr(_evidence, "open_uring", fail)
    monkeypatch.setattr(_evidence, "_no_extension", lambda: None)
    for name in ("system", "machine", "python_implementation"):
        answer = {"system": "Linux", "machine": "x86_64"}.get(name, "CPython")
        monkeypatch.setattr(_evidence.platform, name, lambda answer=answer: answer)
    __main__.main(["doctor"])
    out = capsys.readouterr().out
    assert re.search(r"^ring +in the way: .*RuntimeError: no reason at all$", out, re.MULTILINE)


def test_what_cannot_be_read_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_evidence, "_read", lambda _: None)
    monkeypatch.setattr(_evidence, "_open_files", lambda: None)
    monkeypatch.setattr(_evidence, "_limit", lambda _: None)
    __main__.main(["doctor"])
    assert re.search(r"^seccomp +unknown", capsys.readouterr().out, re.MULTILINE)
