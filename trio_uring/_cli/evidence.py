"""What `doctor` looks at: the facts of this machine and process that decide about io_uring.

Rules of this file: it judges nothing, and it never fails. What cannot be read is None. It opens
one ring and closes it.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import _accelerator
from .._driver.backend import (
    RESTRICT,
    BackendInfo,
    check_backend_variable,
    open_uring,
    variable_restricts,
)
from .._driver.backend import VARIABLE as BACKEND
from .._driver.run import VARIABLE as DRIVER
from .._driver.run import backend_info, check_variables, check_way_variable
from .._errors import RingUnavailableError, lifts_memlock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._ring.figures import RingInfo

PREFIX = "TRIO_URING_"
_CAP_SYS_ADMIN = 21  # its bit in CapEff
_READ_ALL = 3  # SYSLOG_ACTION_READ_ALL
# What gVisor's kernel calls itself (pkg/sentry/syscalls/linux), and the first line of its log.
_GVISOR_RELEASE, _GVISOR = "4.4.0", "gvisor"


@dataclass(frozen=True)
class Trial:
    """What came of opening a ring, whatever is asked for."""

    ring: RingInfo | None
    untested: str | None = None
    errno: int = 0
    why: str = ""
    """Why there is no ring, as a sentence."""


@dataclass(frozen=True)
class Evidence:
    """The facts. None: unknown, or there is no such thing here."""

    system: str
    release: str
    machine: str
    implementation: str
    version: str | None
    """/proc/version, or what gVisor's log says of itself."""
    disabled: str | None
    """The sysctl kernel.io_uring_disabled."""
    group: int | None
    """The sysctl kernel.io_uring_group."""
    groups: frozenset[int]
    privileged: bool
    """CAP_SYS_ADMIN."""
    seccomp: str | None
    """"0": no filter is in force; "2": one is."""
    modules: str | None
    """The kernel's security modules."""
    confined: str | None
    """What they call this process: an AppArmor profile, or an SELinux context."""
    memlock: tuple[int, int] | None
    """The soft and the hard limit, in bytes; -1: none."""
    lifted: bool
    """CAP_IPC_LOCK: that limit is not for this process."""
    address_space: tuple[int, int] | None
    """RLIMIT_AS, as `memlock`."""
    nofile: tuple[int, int] | None
    """The same, of descriptors."""
    open_files: int | None
    variables: Mapping[str, str]
    no_extension: str | None
    no_accelerator: str | None
    trial: Trial
    chosen: BackendInfo | None
    refusal: str | None
    """Why no run begins here; None: runs begin."""
    wrong: Mapping[str, str] = field(default_factory=dict)
    """Of each variable whose value no run accepts: why."""


def gather() -> Evidence:
    """Looks at everything."""
    status = _status()
    chosen, refusal = _choose()
    trial = _try()
    return Evidence(
        system=platform.system(),
        release=platform.release(),
        machine=platform.machine(),
        implementation=platform.python_implementation(),
        version=_version(),
        disabled=_read("/proc/sys/kernel/io_uring_disabled"),
        group=_number(_read("/proc/sys/kernel/io_uring_group")),
        groups=_groups(),
        privileged=bool(_hex(status.get("CapEff")) >> _CAP_SYS_ADMIN & 1),
        seccomp=status.get("Seccomp"),
        modules=_read("/sys/kernel/security/lsm"),
        confined=_read("/proc/self/attr/current"),
        memlock=_limit("RLIMIT_MEMLOCK"),
        lifted=lifts_memlock(),
        address_space=_limit("RLIMIT_AS"),
        nofile=_limit("RLIMIT_NOFILE"),
        open_files=_open_files(),
        variables={name: text for name, text in os.environ.items() if name.startswith(PREFIX)},
        no_extension=_no_extension(),
        no_accelerator=_accelerator.why_not,
        trial=trial,
        chosen=chosen,
        refusal=refusal,
        wrong=_wrong(),
    )


def _try() -> Trial:
    try:
        try:
            restrict = variable_restricts()
        except ValueError:  # that is reported as the variable's fault
            restrict = True
        ring, untested = open_uring(restrict=restrict)
    except RingUnavailableError as exc:
        return Trial(None, errno=exc.errno or 0, why=str(exc.strerror))
    except OSError as exc:  # what the test of a ring needs itself: descriptors, memory
        return Trial(None, errno=exc.errno or 0, why=f"a ring could not be tested: {exc}")
    except Exception as exc:  # there are as many ways to fail as there are sandboxes
        return Trial(None, why=f"a ring could not be tested: {type(exc).__name__}: {exc}")
    info = ring.info
    ring.close()
    return Trial(info, untested)


def _choose() -> tuple[BackendInfo | None, str | None]:
    """What a run would be driven by; or why none begins."""
    try:
        check_variables()
        return backend_info(), None
    except Exception as exc:
        return None, str(getattr(exc, "strerror", None) or exc)


def _wrong() -> dict[str, str]:
    """Every variable whose value is wrong: a run names only the first, and `doctor` all of them."""
    wrong = {}
    for name, check in (
        (BACKEND, check_backend_variable),
        (RESTRICT, variable_restricts),
        (DRIVER, check_way_variable),
    ):
        try:
            check()
        except ValueError as exc:
            wrong[name] = str(exc)
    return wrong


def _no_extension() -> str | None:
    try:
        import trio_uring._uring  # noqa: F401
    except ImportError as exc:
        return str(exc)
    return None


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read().rstrip(b"\0").strip().decode(errors="replace") or None
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _hex(text: str | None) -> int:
    try:
        return int(text or "0", 16)
    except ValueError:
        return 0


def _status() -> dict[str, str]:
    """The fields of this thread's status: seccomp filters belong to threads."""
    text = _read("/proc/thread-self/status") or _read("/proc/self/status") or ""
    return {
        name: rest.strip() for name, _, rest in (line.partition(":") for line in text.split("\n"))
    }


def _groups() -> frozenset[int]:
    if sys.platform == "win32":
        return frozenset()
    try:
        return frozenset({os.getegid(), *os.getgroups()})
    except OSError:
        return frozenset()


def _limit(which: str) -> tuple[int, int] | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(getattr(resource, which))
    none = resource.RLIM_INFINITY
    return -1 if soft == none else soft, -1 if hard == none else hard


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return None


def _version() -> str | None:
    version = _read("/proc/version")
    if platform.release().startswith(_GVISOR_RELEASE) and _GVISOR in _log().lower():
        return f"{version} (gVisor, by its log)"
    return version


def _log() -> str:
    """The kernel's log, which gVisor begins with its name. "": it may not be read."""
    try:
        import ctypes

        memory = ctypes.create_string_buffer(2**16)
        count = ctypes.CDLL(None).klogctl(_READ_ALL, memory, len(memory))
        return memory.raw[: max(count, 0)].decode(errors="replace")
    except Exception:  # without ctypes, or such a call
        return ""
