"""`seccomp`: what is printed is applied, and what a program does under it is looked at.

Rules of this file: a profile is compiled to a filter (support/profiles.py) and put on a process, as
container runtimes do; whether io_uring works there, the kernel says.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import command
from support.system_calls import NUMBERS

from trio_uring._cli import seccomp as _seccomp
from trio_uring._cli.causes import IN_THE_WAY, USED

TESTS = Path(__file__).parent.parent
CALLS = set(_seccomp.CALLS)
# Of a container that may do more: no rule of Docker's allows these without a capability.
DANGEROUS = {"bpf", "mount", "init_module", "kexec_load", "perf_event_open", "setns", "unshare"}
_PR_SET_MDWE = 65  # with the bit that refuses: no memory is ever both written and executed

of_kernel = [
    pytest.mark.uring_only("a filter that allows io_uring allows what there is"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the filters are for x86-64"),
]

ECHO = """
import trio, trio_uring

async def main():
    async with trio.open_nursery() as nursery:
        [listener, *_] = await nursery.start(trio.serve_tcp, echo, 0)
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            nursery.start_soon(stream.send_all, bytes(2**20))
            received = 0
            while received < 2**20:
                received += len(await stream.receive_some())
        nursery.cancel_scope.cancel()
    info = trio_uring.backend_info()
    print(info.backend, info.restricted, received)

async def echo(stream):
    async for chunk in stream:
        await stream.send_all(chunk)

trio_uring.run(main)
"""
DEMO = ["-m", "trio_uring", "demo", "files", "--clients", "3", "--max-mib", "1", "--rounds", "1"]


def printed(*arguments: str | Path) -> dict[str, Any]:
    done = command("seccomp", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    profile: dict[str, Any] = json.loads(done.stdout)
    return profile


def under(
    profile: dict[str, Any], folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """This Python with those arguments in a process to which the profile is applied."""
    path = folder / "profile.json"
    path.write_text(json.dumps(profile))
    others = {n: v for n, v in os.environ.items() if not n.startswith("TRIO_URING_")}
    return subprocess.run(
        [sys.executable, "-m", "support.profiles", path, sys.executable, *arguments],
        cwd=TESTS,
        env={**others, "PYTHONPATH": str(TESTS.parent), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def allowed(profile: dict[str, Any]) -> set[str]:
    """What it allows whatever the conditions and arguments are."""
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        and not (rule.get("args") or rule.get("includes") or rule.get("excludes"))
        for name in rule["names"]
    }


# -- applied


@pytest.mark.parametrize("kind", ["--docker", "--oci"])
class TestApplied:
    pytestmark = of_kernel

    def test_an_echo_runs_on_io_uring(self, kind: str, tmp_path: Path) -> None:
        profile = printed(kind)
        done = under(profile, tmp_path, "-c", ECHO)
        assert (done.stdout, done.stderr) == ("uring False 1048576\n", "")
        done = under(profile, tmp_path, "-c", ECHO, TRIO_URING_RESTRICT="1")
        assert (done.stdout, done.stderr) == ("uring True 1048576\n", "")

    @pytest.mark.long
    def test_the_demo_runs_on_io_uring(self, kind: str, tmp_path: Path) -> None:
        done = under(printed(kind), tmp_path, *DEMO, TRIO_URING_BACKEND="uring")
        assert done.returncode == 0, done.stderr

    def test_doctor_says_so(self, kind: str, tmp_path: Path) -> None:
        done = under(printed(kind), tmp_path, "-m", "trio_uring", "doctor")
        assert done.returncode == USED, done.stdout
        assert "a filter is in force, and it allows" in done.stdout


class TestDockersDefault:
    pytestmark = of_kernel

    def test_the_echo_runs_by_readiness(self, tmp_path: Path) -> None:
        done = under(_seccomp.docker_default(), tmp_path, "-c", ECHO)
        assert done.stdout == "readiness False 1048576\n"
        assert "forbidden by a seccomp profile (Docker and Kubernetes" in done.stderr

    @pytest.mark.long
    def test_the_demo_runs_as_well(self, tmp_path: Path) -> None:
        done = under(_seccomp.docker_default(), tmp_path, *DEMO)
        assert done.returncode == 0, done.stderr

    def test_doctor_names_the_command_that_prints_the_profile(self, tmp_path: Path) -> None:
        done = under(_seccomp.docker_default(), tmp_path, "-m", "trio_uring", "doctor", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["in_the_way"]) == (IN_THE_WAY, ["seccomp"])
        [fix] = [each["fix"] for each in found["findings"] if each["name"] == "seccomp"]
        assert "python -m trio_uring seccomp --docker" in fix

    def test_the_filter_refuses_what_it_should(self, tmp_path: Path) -> None:
        """Otherwise the translation would prove nothing."""
        source = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.mount(None, None, None, 0, None) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.syscall(435, None, 0) == -1 and ctypes.get_errno() == errno.ENOSYS  # clone3
for family, refused in ((38, True), (40, True), (1, False), (2, False), (16, False)):
    try:
        socket.socket(family, socket.SOCK_DGRAM if family != 38 else socket.SOCK_SEQPACKET).close()
    except PermissionError:
        assert refused, family
    except OSError:
        assert not refused, family
    else:
        assert not refused, family
assert not os.system("exit 0")
"""
        done = under(_seccomp.docker_default(), tmp_path, "-c", source)
        assert (done.returncode, done.stderr) == (0, "")


# -- what is printed


@pytest.mark.no_ring
def test_only_the_three_calls_are_added() -> None:
    default, profile = _seccomp.docker_default(), printed("--docker")
    assert not allowed(default) & CALLS
    assert allowed(profile) - allowed(default) == CALLS
    *before, added = profile["syscalls"]
    assert before == default["syscalls"]
    assert (set(added["names"]), added["action"]) == (CALLS, "SCMP_ACT_ALLOW")
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"


@pytest.mark.no_ring
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_oci_format_has_no_conditions_and_allows_nothing_that_needs_a_capability(
    machine: str,
) -> None:
    profile = printed("--oci", "--machine", machine)
    assert {key for rule in profile["syscalls"] for key in rule} == {
        "names", "action", "args", "errnoRet",
    }  # fmt: skip
    named = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert not named & DANGEROUS
    assert named >= CALLS
    assert allowed(profile) >= {"read", "write", "epoll_wait", "futex", "execve"}
    assert machine.upper() in profile["architectures"][0]
    assert ("arch_prctl" in named) == (machine == "x86_64")


@pytest.mark.no_ring
def test_every_call_of_the_profile_is_one_that_the_kernel_has() -> None:
    """A misspelt name would allow nothing, and nobody would notice."""
    added = {*_seccomp._LATER, *_seccomp.CALLS}
    assert added <= NUMBERS.keys()
    assert all(NUMBERS[name] >= 329 for name in added)  # pkey_mprotect: it is younger


@pytest.mark.no_ring
def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    own = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "io_uring_setup"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO"},
        ],
    }
    path.write_text(json.dumps(own))
    profile = printed("--docker", "--base", path)
    assert profile["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    assert allowed(profile) == {"read", *CALLS}
    assert len(profile["syscalls"]) == 2


@pytest.mark.no_ring
@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"syscalls": [{}]}', '{"syscalls": [1]}'])
def test_what_is_no_profile(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    done = command("seccomp", "--docker", "--base", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is no profile" in done.stderr


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "required"),
        (("--docker", "--systemd"), 2, "not allowed with"),
        (("--oci", "--machine", "vax"), 2, "invalid choice"),
        (("--docker", "--base", "/nowhere"), 1, "/nowhere cannot be read: No such file"),
        (("--oci", "--base", "/nowhere"), 1, "--base goes with --docker"),
        (("--docker", "--machine", "aarch64"), 1, "--machine goes with --oci"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], status: int, message: str) -> None:
    done = command("seccomp", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


@pytest.mark.no_ring
def test_kubernetes() -> None:
    text = command("seccomp", "--kubernetes").stdout
    assert "localhostProfile: profiles/trio-uring.json" in text
    assert "/var/lib/kubelet/seccomp/profiles/trio-uring.json" in text
    yaml = pytest.importorskip("yaml")
    pod = yaml.safe_load(text)
    assert pod["spec"]["securityContext"]["seccompProfile"]["type"] == "Localhost"


# -- systemd


@pytest.mark.no_ring
def test_the_unit_is_one(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "server.service"
    unit.write_text(f"{command('seccomp', '--systemd').stdout}ExecStart=/bin/true\n")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert unit.name not in done.stderr, done.stderr


def calls_of(analyze: str, what: str) -> set[str]:
    """The calls of one of systemd's sets."""
    done = subprocess.run(
        [analyze, "syscall-filter", what], capture_output=True, text=True, check=True
    )
    names: set[str] = set()
    for line in done.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            names |= calls_of(analyze, word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


class TestSystemd:
    pytestmark = of_kernel

    def test_the_echo_runs_under_the_filter(self, tmp_path: Path) -> None:
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            pytest.skip("there is no systemd-analyze")
        names = (calls_of(analyze, "@system-service") | CALLS) - {"socket"}
        rules: list[dict[str, Any]] = [{"names": sorted(names), "action": "SCMP_ACT_ALLOW"}]
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            condition = {"index": 0, "value": int(family), "op": "SCMP_CMP_EQ"}
            rules.append({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [condition]})
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}
        resolve = "import socket\nsocket.getaddrinfo('localhost', 80)  # it would like AF_NETLINK\n"
        done = under(profile, tmp_path, "-c", resolve + ECHO, TRIO_URING_RESTRICT="1")
        assert (done.stdout, done.stderr) == ("uring True 1048576\n", "")

    def test_the_echo_runs_where_memory_is_never_written_and_executed(self) -> None:
        """MemoryDenyWriteExecute=yes; the accelerator and cffi's module are code like any other."""
        source = f"""
import ctypes
if ctypes.CDLL(None).prctl({_PR_SET_MDWE}, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3):
    print("unknown")
    raise SystemExit
{ECHO}"""
        done = subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS.parent,
        )
        if done.stdout == "unknown\n":
            pytest.skip("this kernel does not know it (Linux 6.3 does)")
        assert done.stdout.split()[::2] == ["uring", "1048576"], done.stderr
