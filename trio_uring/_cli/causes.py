"""What the facts that `doctor` has gathered mean: what stands in the way of io_uring, and the fix.

Rules of this file: no I/O; a pure function of the evidence. Exactly one finding is blamed for a
ring that cannot be had: the first that the kernel's answer fits. Whoever removes it runs `doctor`
again.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _accelerator
from .._driver.backend import VARIABLE
from .._errors import kernel_number, locks_rings

if TYPE_CHECKING:
    from typing import TypeGuard

    from .evidence import Evidence

OK, NOTE, BLOCKS, UNKNOWN = "ok", "note", "in the way", "unknown"
# What `doctor` exits with. 2 is argparse's.
USED, IN_THE_WAY, NOT_ASKED_FOR, NO_RUN = 0, 1, 3, 4

_MACHINES = ("x86_64", "aarch64")
_KNOWN = {
    "TRIO_URING_BACKEND", "TRIO_URING_DRIVER", "TRIO_URING_RESTRICT", "TRIO_URING_ACCELERATOR",
    "TRIO_URING_INSTALL",
}  # fmt: skip
_FEW_FILES = 4096  # descriptors; a server soon needs more
_CALLS = "io_uring_setup, io_uring_enter and io_uring_register"
_RUN_PRIVILEGED = "or run it with CAP_SYS_ADMIN, or in the group of kernel.io_uring_group"
_PROFILES = (
    f"allow {_CALLS}. `python -m trio_uring seccomp --docker`, `--kubernetes` or `--systemd` "
    "prints what to give to each of these"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str
    """OK, NOTE (it works, and could be better), BLOCKS or UNKNOWN."""
    text: str
    fix: str | None = None


def examine(seen: Evidence) -> list[Finding]:
    """Everything that was looked at, in the order in which a run meets it."""
    findings = [
        _platform(seen),
        _kernel(seen),
        _extension(seen),
        _sysctl(seen),
        _seccomp(seen),
        _modules(seen),
        _memory(seen),
        _memlock(seen),
        _descriptors(seen),
        _ring(seen),
        _without_accelerator(seen),
        *_variables(seen),
    ]
    blamed = blame(seen)
    return [_blamed(seen, each) if each.name == blamed else each for each in findings]


def verdict(seen: Evidence) -> tuple[int, str]:
    """The exit status, and a sentence."""
    if seen.chosen is None:
        return NO_RUN, f"no run begins here: {seen.refusal}"
    if seen.chosen.backend == "uring":
        how = ", restricted to the opcodes that it needs" if seen.chosen.restricted else ""
        return USED, f"io_uring is used{how}"
    if seen.chosen.requested in ("readiness", "off"):
        return NOT_ASKED_FOR, f"io_uring is not used: {seen.chosen.reason}"
    return IN_THE_WAY, f"io_uring is not used; runs wait by readiness: {seen.chosen.reason}"


# -- who is to blame


def blame(seen: Evidence) -> str | None:
    """The name of the finding that stands in the way of a ring; None: there is one."""
    if seen.trial.ring is not None:
        return None
    if seen.system != "Linux" or seen.machine not in _MACHINES or seen.implementation != "CPython":
        return "platform"
    if seen.no_extension is not None:
        return "C extension"
    return _by_answer(seen)


def _by_answer(seen: Evidence) -> str:
    """By the kernel's answer."""
    code = seen.trial.errno
    filtered = seen.seccomp != "0"
    if code == errno.EPERM:
        if _sysctl_forbids(seen):
            return "kernel.io_uring_disabled"
        return "seccomp" if filtered else "security modules"
    if code == errno.EACCES:
        return "security modules"
    if code == errno.ENOSYS:
        # Without the sysctl, which came with 6.6, a newer kernel was built without io_uring; but
        # where /proc says nothing of filters either, it cannot be read.
        hidden = seen.seccomp is None or kernel_number(seen.release) < (6, 6)
        built_in = seen.disabled is not None or (hidden and kernel_number(seen.release) >= (5, 1))
        return "seccomp" if filtered and built_in and not _emulated(seen) else "kernel"
    if code in (errno.EINVAL, errno.EOPNOTSUPP):
        new = kernel_number(seen.release) >= (5, 11) and not _emulated(seen)
        return "seccomp" if filtered and new else "kernel"
    if code == errno.ENOMEM:
        # An address space that somebody has limited is more likely used up than locked memory,
        # which is limited everywhere.
        locked = _locks(seen) and not _is_limited(seen.address_space)
        return "RLIMIT_MEMLOCK" if locked else "memory"
    return "descriptors" if code in (errno.EMFILE, errno.ENFILE) else "ring"


def _blamed(seen: Evidence, finding: Finding) -> Finding:
    why = seen.trial.why
    fix = {
        "platform": "nothing: io_uring is Linux's, and the extension is built for CPython on "
        "x86-64 and aarch64. trio_uring works by readiness here",
        "kernel": _fix_kernel(seen),
        "C extension": "install a wheel for this platform, or a C compiler and Python's headers "
        "and then install again (docs/installing.md)",
        "kernel.io_uring_disabled": "sysctl -w kernel.io_uring_disabled=0, and a file in "
        f"/etc/sysctl.d for the next start; {_RUN_PRIVILEGED}",
        "seccomp": _PROFILES,
        "security modules": _fix_modules(seen),
        "RLIMIT_MEMLOCK": "ulimit -l 8192; systemd: LimitMEMLOCK=8M; Docker: --ulimit "
        "memlock=8388608",
        "memory": "ulimit -v unlimited; systemd: LimitAS=infinity, and more than this for "
        "MemoryMax=; Docker and Kubernetes: a higher limit of memory",
        "descriptors": "ulimit -n 65536; systemd: LimitNOFILE=65536; Docker: --ulimit "
        "nofile=65536. If the whole system is at its limit: sysctl fs.file-max",
        "ring": "run it again; if that does not help, report it with this output. "
        f"{VARIABLE}=readiness does not try io_uring at all",
    }[finding.name]
    text = f"{why} ({finding.text})" if finding.name != "ring" else why
    return Finding(finding.name, BLOCKS, text, fix)


def _sysctl_forbids(seen: Evidence) -> bool:
    if seen.disabled == "1":
        return not seen.privileged and seen.group not in seen.groups
    return seen.disabled == "2"


def _emulated(seen: Evidence) -> str | None:
    """The name of what is no Linux, or not quite."""
    version = (seen.version or "").lower()
    if "gvisor" in version or "#1 smp sun jan 10 15:06:54 pst 2016" in version:
        return "gVisor"
    if "microsoft" in version and "wsl2" not in version and kernel_number(seen.release) < (5, 0):
        return "WSL1"
    return None


def _fix_kernel(seen: Evidence) -> str:
    emulated = _emulated(seen)
    if emulated == "gVisor":
        return (
            "gVisor has io_uring only in part and switched off: run this container with runc, or "
            "leave it as it is"
        )
    if emulated == "WSL1":
        return "WSL1 has no io_uring: wsl --set-version <distribution> 2"
    if kernel_number(seen.release) >= (5, 11):
        if seen.trial.errno == errno.ENOSYS:
            return "a kernel that is built with CONFIG_IO_URING"
        return (
            "run this outside of the sandbox that calls itself Linux here; if there is none, "
            "report it with this output"
        )
    return "Linux 5.11 or newer (6.1 for its fastest way)"


def _fix_modules(seen: Evidence) -> str:
    known = seen.modules or "their list cannot be read"
    return (
        f"ask the security module that forbids it ({known}). SELinux: ausearch -m avc -ts recent "
        "shows the refusal, and audit2allow makes a rule of it (class io_uring); AppArmor: the "
        "rule `io_uring,` in the profile; a BPF program on uring_*: whoever loaded it"
    )


# -- each finding, as it is where nothing is wrong with it


def _platform(seen: Evidence) -> Finding:
    return Finding("platform", OK, f"{seen.system} on {seen.machine}, {seen.implementation}")


def _kernel(seen: Evidence) -> Finding:
    release, emulated = kernel_number(seen.release), _emulated(seen)
    text = f"{seen.release}{f', which is {emulated}' if emulated else ''}"
    if "wsl2" in (seen.version or "").lower():
        text += ", which is WSL2"
    if seen.system != "Linux" or release >= (6, 1) or release < (5, 11):
        return Finding("kernel", OK, text)
    lacks = "completions that wait until the loop asks for them (Linux 6.1)"
    if release < (5, 19):
        lacks = f"provided buffers (5.19), so each waiting receive has 16 KiB, and {lacks}"
    return Finding("kernel", NOTE, f"{text}; it lacks {lacks}", "a newer kernel is faster")


def _extension(seen: Evidence) -> Finding:
    text = "it is there" if seen.no_extension is None else seen.no_extension
    return Finding("C extension", OK, text)


def _sysctl(seen: Evidence) -> Finding:
    name = "kernel.io_uring_disabled"
    if seen.disabled is None:
        if seen.system == "Linux" and kernel_number(seen.release) >= (6, 6):
            text = "it cannot be read, or this kernel was built without io_uring"
            return Finding(name, UNKNOWN, text)
        return Finding(name, OK, "this kernel does not have it (Linux 6.6 has)")
    meaning = {
        "0": "every process may use io_uring",
        "1": f"only privileged processes and the group {seen.group} may use io_uring",
        "2": "nobody may use io_uring",
    }.get(seen.disabled, "a value that this version does not know")
    return Finding(name, OK, f"{seen.disabled}: {meaning}")


def _seccomp(seen: Evidence) -> Finding:
    if seen.seccomp is None:
        return Finding("seccomp", UNKNOWN, "/proc does not tell whether a filter is in force")
    if seen.seccomp == "0":
        return Finding("seccomp", OK, "no filter is in force")
    if seen.trial.ring is None:
        return Finding("seccomp", OK, "a filter is in force")
    return Finding("seccomp", OK, f"a filter is in force, and it allows {_CALLS}")


def _modules(seen: Evidence) -> Finding:
    if seen.modules is None and seen.confined is None:
        return Finding("security modules", OK, "none is seen from here")
    confined = f"; this process is {seen.confined}" if seen.confined else ""
    return Finding("security modules", OK, f"{seen.modules or 'unknown'}{confined}")


def _memory(seen: Evidence) -> Finding:
    if not _is_limited(seen.address_space):
        return Finding("memory", OK, "this process's address space is not limited")
    kib = seen.address_space[0] // 1024
    return Finding("memory", OK, f"this process's address space is limited to {kib} KiB")


def _memlock(seen: Evidence) -> Finding:
    if seen.memlock is None:
        return Finding("RLIMIT_MEMLOCK", OK, "this platform has no such limit")
    soft = seen.memlock[0]
    text = "unlimited" if soft < 0 else f"{soft // 1024} KiB"
    if _locks(seen) and soft < 2**19:
        return Finding("RLIMIT_MEMLOCK", NOTE, text, "512 KiB for each ring: ulimit -l 512")
    return Finding("RLIMIT_MEMLOCK", OK, text)


def _locks(seen: Evidence) -> bool:
    """Whether the kernel counts this process's rings against a limit of locked memory."""
    return _is_limited(seen.memlock) and not seen.lifted and locks_rings(seen.release)


def _is_limited(limits: tuple[int, int] | None) -> TypeGuard[tuple[int, int]]:
    """Whether there is such a limit, and it is below infinity."""
    return limits is not None and limits[0] >= 0


def _descriptors(seen: Evidence) -> Finding:
    if seen.nofile is None:
        return Finding("descriptors", OK, "this platform has no such limit")
    soft, hard = seen.nofile
    used = "" if seen.open_files is None else f"{seen.open_files} open, "
    text = f"{used}{soft if soft >= 0 else 'unlimited'} allowed (hard limit: {_or_none(hard)})"
    if 0 <= soft < _FEW_FILES:
        return Finding(
            "descriptors",
            NOTE,
            f"{text}; each connection takes one",
            "ulimit -n 65536; systemd: LimitNOFILE=65536; Docker: --ulimit nofile=65536",
        )
    return Finding("descriptors", OK, text)


def _or_none(limit: int) -> str:
    return "none" if limit < 0 else str(limit)


def _ring(seen: Evidence) -> Finding:
    ring = seen.trial.ring
    if ring is None:
        return Finding("ring", UNKNOWN, "there is none to test")
    if seen.trial.untested:
        return Finding("ring", NOTE, seen.trial.untested, "raise RLIMIT_NPROC (ulimit -u)")
    if ring.lacking:
        lacks = f"it opens, and lacks {', '.join(ring.lacking)}, which are done by calls"
        return Finding("ring", NOTE, lacks, "a newer kernel is faster")
    limits = ", restricted to the opcodes that are used" if ring.restricted else ""
    return Finding("ring", OK, f"it opens, and its self-test passed{limits}")


def _without_accelerator(seen: Evidence) -> Finding:
    if seen.no_accelerator is None:
        return Finding("accelerator", OK, "it is in use")
    text = f"{seen.no_accelerator}: messages take about twice the CPU time"
    if _accelerator.VARIABLE in seen.no_accelerator:
        return Finding("accelerator", NOTE, text, f"unset {_accelerator.VARIABLE}")
    if _accelerator.NOT_BUILT in seen.no_accelerator:
        fix = "install a wheel, or a C compiler and Python's headers and then install again"
        return Finding("accelerator", NOTE, text, fix)
    return Finding("accelerator", NOTE, text)


def _variables(seen: Evidence) -> list[Finding]:
    if not seen.variables:
        return [Finding("variables", OK, "none of TRIO_URING_* is set")]
    return [_variable(seen, name, value) for name, value in sorted(seen.variables.items())]


def _variable(seen: Evidence, name: str, value: str) -> Finding:
    if name not in _KNOWN:
        known = ", ".join(sorted(_KNOWN))
        return Finding(
            name, NOTE, f"{value!r}: no run looks at this variable", f"the variables are {known}"
        )
    if name in seen.wrong:
        return Finding(name, BLOCKS, seen.wrong[name], f"correct or unset {name}")
    if name == VARIABLE and value in ("readiness", "epoll", "off"):
        return Finding(name, BLOCKS, f"{value!r}: it says not to use io_uring", f"unset {name}")
    if name == VARIABLE and value == "uring" and seen.trial.ring is None:
        what = f"{value!r}: runs fail rather than wait by readiness"
        return Finding(name, NOTE, what, f"{name}=auto falls back")
    return Finding(name, OK, repr(value))
