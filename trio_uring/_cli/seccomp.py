"""`python -m trio_uring seccomp`: what allows io_uring in a container or a unit, and nothing else.

Docker's default profile forbids io_uring since version 25, and RuntimeDefault of Kubernetes does
so with the runtimes of that time. A profile cannot be extended where it is used, so a whole one is
printed.

Rules of this file: it prints, and installs nothing. `seccomp.json` is the file of moby's release
20.10.24, unchanged (NOTICE says where it is from); what later releases decide otherwise is in
`docker_default`. A profile never allows more than that, but for the three calls.
"""

from __future__ import annotations

import copy
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import CommandError

if TYPE_CHECKING:
    import argparse

CALLS = ("io_uring_setup", "io_uring_enter", "io_uring_register")
_BASE = Path(__file__).with_name("seccomp.json")
_ALLOW = "SCMP_ACT_ALLOW"

# Harmless calls that Linux has had since, and that later releases of Docker allow.
_LATER = (
    "cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "getxattrat",
    "listxattrat", "map_shadow_stack", "mseal", "pkey_alloc", "pkey_free", "pkey_mprotect",
    "removexattrat", "setxattrat",
)  # fmt: skip
# Address families that they forbid: namespaces do not confine them.
_AF_ALG, _AF_VSOCK = 38, 40

# What a container has if nobody gives or takes capabilities, as Docker and containerd have it.
_CAPABILITIES = frozenset({
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID", "CAP_SYS_CHROOT",
})  # fmt: skip
# By platform.machine(): moby's name, and the name of its entry in archMap.
_MACHINES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}

KUBERNETES = """\
# A Pod that may use io_uring. RuntimeDefault cannot be extended, so a profile takes its place.
#
# 1. Put the profile on every node, where kubelet looks for it (the Security Profiles Operator, or a
#    DaemonSet, does that on all of them); on nodes of another kind with --machine aarch64:
#
#      python -m trio_uring seccomp --oci > trio-uring.json
#      install -D -m 644 trio-uring.json /var/lib/kubelet/seccomp/profiles/trio-uring.json
#
#    Not the output of --docker: containerd would read past its conditions and allow what is for
#    privileged containers only.
#
# 2. The Pod. localhostProfile is relative to /var/lib/kubelet/seccomp. The Pod Security Standards
#    "baseline" and "restricted" allow Localhost.
apiVersion: v1
kind: Pod
metadata:
  name: server
spec:
  securityContext:
    seccompProfile:
      type: Localhost
      localhostProfile: profiles/trio-uring.json
  containers:
    - name: server
      image: server
      env:
        - name: TRIO_URING_RESTRICT  # the ring takes only the opcodes that trio_uring uses
          value: "1"
# 3. See what came of it:
#
#      kubectl exec server -- python -m trio_uring doctor
"""

SYSTEMD = """\
# For the section of a unit, or a file in /etc/systemd/system/NAME.service.d/. What is not about
# io_uring confines a server of trio_uring further, and is tested with it.
[Service]
# A unit without SystemCallFilter= needs nothing: io_uring is not forbidden there. The three calls
# are in @system-service today (by @aio), and stay allowed so if that changes.
SystemCallFilter=@system-service
SystemCallFilter=io_uring_setup io_uring_enter io_uring_register
# Otherwise a call that is missing here ends the process.
SystemCallErrorNumber=EPERM
SystemCallArchitectures=native
# TCP, UDP and Unix sockets. This filters socket(2), which a ring can do without that call:
# therefore the next line, by which this process's rings cannot.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
Environment=TRIO_URING_RESTRICT=1
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
# A descriptor for each connection.
LimitNOFILE=65536
# Before Linux 5.12, rings count against it: 512 KiB each.
LimitMEMLOCK=8M
# See what came of it: systemd-run --wait --pipe with the same properties, and
# python -m trio_uring doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--docker",
        action="store_true",
        help="Docker's default profile and the three calls: docker run --security-opt "
        "seccomp=FILE; for podman as well",
    )
    kinds.add_argument(
        "--oci",
        action="store_true",
        help="the same as a file for containerd and CRI-O, whose containers have no capabilities "
        "added",
    )
    kinds.add_argument(
        "--kubernetes", action="store_true", help="a Pod, and how the profile gets to its node"
    )
    kinds.add_argument("--systemd", action="store_true", help="the lines of a unit")
    parser.add_argument(
        "--base",
        metavar="FILE",
        help="with --docker: adds the calls to this profile, such as the default.json of your own "
        "version of Docker, instead",
    )
    parser.add_argument(
        "--machine",
        choices=_MACHINES,
        help="with --oci: of which kind the nodes are (default: this one)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.base is not None and not arguments.docker:
        raise CommandError("--base goes with --docker")
    if arguments.machine is not None and not arguments.oci:
        raise CommandError("--machine goes with --oci: a profile for Docker is for all machines")
    if arguments.docker:
        base = docker_default() if arguments.base is None else _load(Path(arguments.base))
        print(json.dumps(with_io_uring(base), indent=2))
    elif arguments.oci:
        machine = arguments.machine or platform.machine()
        print(json.dumps(as_oci(with_io_uring(docker_default()), machine), indent=2))
    else:
        print(KUBERNETES if arguments.kubernetes else SYSTEMD, end="")
    return 0


def docker_default() -> dict[str, Any]:
    """Docker's default profile as it is since version 25: without io_uring."""
    profile = _without_io_uring(_load(_BASE))
    [rule] = [each for each in profile["syscalls"] if "socket" in each["names"]]
    rule["names"] = sorted({*rule["names"], *_LATER} - {"socket"})
    for op, family in (
        ("SCMP_CMP_LT", _AF_ALG),
        ("SCMP_CMP_EQ", _AF_ALG + 1),
        ("SCMP_CMP_GT", _AF_VSOCK),
    ):
        profile["syscalls"].append(
            {
                "names": ["socket"],
                "action": _ALLOW,
                "args": [{"index": 0, "value": family, "op": op}],
            }
        )
    return {"defaultAction": profile.pop("defaultAction"), "defaultErrnoRet": 1, **profile}


def with_io_uring(profile: dict[str, Any]) -> dict[str, Any]:
    """A copy of a profile that has one rule for the three calls: they are allowed."""
    result = _without_io_uring(profile)
    result["syscalls"].append({"names": list(CALLS), "action": _ALLOW, "comment": "for trio_uring"})
    return result


def _without_io_uring(profile: dict[str, Any]) -> dict[str, Any]:
    """A copy that names the three calls nowhere: two rules for a call exclude each other."""
    result = copy.deepcopy(profile)
    rules = result["syscalls"]
    for rule in rules:
        rule["names"] = [name for name in rule["names"] if name not in CALLS]
    result["syscalls"] = [rule for rule in rules if rule["names"]]
    return result


def as_oci(profile: dict[str, Any], machine: str) -> dict[str, Any]:
    """The profile in the format of the OCI runtime specification, which has no conditions.

    Raises:
        CommandError: there is no such machine.
    """
    if machine not in _MACHINES:
        raise CommandError(f"--machine is one of {', '.join(_MACHINES)}: {machine} is not known")
    short, long = _MACHINES[machine]
    [kind] = [each for each in profile["archMap"] if each["architecture"] == long]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [long, *kind["subArchitectures"]],
        "syscalls": [_plain(rule) for rule in profile["syscalls"] if _applies(rule, short)],
    }


def _applies(rule: dict[str, Any], machine: str) -> bool:
    wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        machine in wanted.get("arches", [machine])
        and _CAPABILITIES.issuperset(wanted.get("caps", []))
        and machine not in unwanted.get("arches", [])
        and _CAPABILITIES.isdisjoint(unwanted.get("caps", []))
    )


def _plain(rule: dict[str, Any]) -> dict[str, Any]:
    return {name: rule[name] for name in ("names", "action", "errnoRet", "args") if rule.get(name)}


def _load(path: Path) -> dict[str, Any]:
    """Reads a profile. Raises CommandError if there is none, or it has another format."""
    try:
        profile = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(name, str) for rule in profile["syscalls"] for name in rule["names"]):
            return dict(profile)
    except OSError as exc:
        raise CommandError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError):
        pass
    raise CommandError(
        f"{path} is no profile: it is a JSON object with rules in `syscalls`, each with `names`"
    )
