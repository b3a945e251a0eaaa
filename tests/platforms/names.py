"""Which names of the standard library another platform lacks, as typeshed (which mypy brings) says.

Rules of this file: typeshed is read as text. Only what this Python has counts.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from pathlib import Path

import pytest

# What of the standard library depends on the platform, and this package uses.
MODULES = (
    "errno",
    "fcntl",
    "mmap",
    "os",
    "resource",
    "select",
    "signal",
    "socket",
    "termios",
    "time",
)
# Windows lacks these altogether.
WHOLE = {"win32": ("fcntl", "termios", "resource", "pwd", "grp", "pty", "tty"), "darwin": ()}


def missing_names(platform: str) -> dict[str, list[str]]:
    """By module: what Linux has, and so this Python, and the platform lacks."""
    return {
        module: sorted(
            (_names(module, "linux") - _names(module, platform))
            & vars(importlib.import_module(module)).keys()
        )
        for module in MODULES
        if module not in WHOLE[platform]
    }


def _stub(module: str) -> Path:
    mypy = pytest.importorskip("mypy", reason="its typeshed says what a platform has")
    stubs = Path(mypy.__file__).parent / "typeshed" / "stdlib"
    found = stubs / f"{module}.pyi"
    return found if found.exists() else stubs / module / "__init__.pyi"


@functools.cache
def _names(module: str, platform: str) -> frozenset[str]:
    return frozenset(_defined(ast.parse(_stub(module).read_text()).body, platform))


def _defined(body: list[ast.stmt], platform: str) -> set[str]:
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.If):
            names |= _defined(node.body if _holds(node.test, platform) else node.orelse, platform)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name == "*":
                    names |= {name for name in _names(node.module, platform) if name[0] != "_"}
                else:
                    names.add(alias.asname or alias.name)
    return names


def _holds(test: ast.expr, platform: str) -> bool:
    """Whether a condition of a stub holds; it is about sys.platform and sys.version_info only."""
    if isinstance(test, ast.BoolOp):
        together = all if isinstance(test.op, ast.And) else any
        return together(_holds(value, platform) for value in test.values)
    if isinstance(test, ast.UnaryOp):
        return not _holds(test.operand, platform)
    assert isinstance(test, ast.Compare)
    left, right = ast.unparse(test.left), ast.literal_eval(test.comparators[0])
    if left == "sys.platform":
        same = platform == right
        return same if isinstance(test.ops[0], ast.Eq) else not same
    assert left == "sys.version_info"
    newer = sys.version_info[:2] >= right[:2]
    return newer if isinstance(test.ops[0], ast.GtE) else not newer


# What CPython has on Linux, and PyPy 3.11 does not; only names that a network library might use.
PYPY = {
    "ctypes": "PyDLL pydll pythonapi",
    "fcntl": "F_ADD_SEALS F_DUPFD_CLOEXEC F_GETPIPE_SZ F_GET_SEALS F_SETPIPE_SZ",
    "os": "EFD_CLOEXEC EFD_NONBLOCK EFD_SEMAPHORE O_ACCMODE O_PATH O_TMPFILE P_ALL P_PGID P_PID "
    "P_PIDFD RWF_APPEND RWF_DSYNC RWF_HIPRI RWF_NOWAIT RWF_SYNC SEEK_DATA SEEK_HOLE "
    "SPLICE_F_MORE SPLICE_F_MOVE SPLICE_F_NONBLOCK WEXITED WNOWAIT WSTOPPED copy_file_range "
    "eventfd eventfd_read eventfd_write pidfd_open posix_spawn posix_spawnp preadv pwritev readv "
    "sched_getaffinity sched_setaffinity splice waitid waitid_result writev",
    "select": "EPOLLEXCLUSIVE EPOLLRDHUP EPOLL_CLOEXEC POLLRDHUP POLLWRBAND",
    "signal": "SIGSTKFLT pidfd_send_signal sigtimedwait sigwaitinfo struct_siginfo",
    "socket": "IPPROTO_MPTCP IP_BIND_ADDRESS_NO_PORT IP_RECVTOS IP_TRANSPARENT MSG_CMSG_CLOEXEC "
    "MSG_CONFIRM MSG_FASTOPEN MSG_MORE MSG_NOSIGNAL SCM_CREDENTIALS SO_BINDTODEVICE "
    "SO_INCOMING_CPU SO_MARK SO_PASSCRED SO_PEERCRED SO_PRIORITY TCP_FASTOPEN",
}
