"""Compiles a seccomp profile, as container runtimes do, to a filter, and applies it to a process.

    python -m support.profiles PROFILE COMMAND [ARGUMENT ...]    # in the folder tests

Rules of this file: for x86-64. It reads both formats, Docker's with its conditions and the OCI's
without; a rule whose meaning it does not know is an error. A container's process is not privileged,
so conditions are judged for CAPABILITIES and no others.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from . import seccomp
from .seccomp import AND, JUMP_IF_EQUAL, JUMP_IF_GREATER, LOAD_WORD, RETURN
from .system_calls import NUMBERS

CAPABILITIES = {"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SYS_CHROOT"}
_ARCHITECTURE, _X86_64 = 4, 0xC000003E  # where a filter finds it, and AUDIT_ARCH_X86_64
_ARGUMENTS = 16  # where it finds them: 64 bits each, the lower half first
_EPERM = 1

Code = list[tuple[int, int, int, int]]


def compiled(profile: dict[str, Any]) -> Code:
    """The filter of a profile."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for rule in profile["syscalls"]:
        if _applies(rule):
            for name in rule["names"]:
                rules.setdefault(name, []).append(rule)
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    code: Code = [
        (LOAD_WORD, 0, 0, _ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, _X86_64),
        (RETURN, 0, 0, seccomp.KILL_PROCESS),
        (LOAD_WORD, 0, 0, 0),  # the number of the call
    ]
    for name in sorted(rules.keys() & NUMBERS.keys()):
        block = _block(rules[name], default)
        code += [(JUMP_IF_EQUAL, 0, len(block), NUMBERS[name]), *block]
    return [*code, (RETURN, 0, 0, default)]


def _applies(rule: dict[str, Any]) -> bool:
    wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
    assert {*wanted, *unwanted} <= {"arches", "caps", "minKernel"}
    if not CAPABILITIES.issuperset(wanted.get("caps", ())) or "amd64" in unwanted.get("arches", ()):
        return False
    return "amd64" in wanted.get("arches", ("amd64",)) and not CAPABILITIES.intersection(
        unwanted.get("caps", ())
    )


def _action(name: str, code: int | None) -> int:
    if name == "SCMP_ACT_ALLOW":
        return seccomp.ALLOW
    assert name == "SCMP_ACT_ERRNO", name
    return seccomp.ERRNO | (code or _EPERM)


def _block(rules: list[dict[str, Any]], default: int) -> Code:
    """What is done for one call: the first rule whose conditions hold decides."""
    code: Code = []
    for rule in rules:
        answer = (RETURN, 0, 0, _action(rule["action"], rule.get("errnoRet")))
        conditions = rule.get("args") or []
        if not conditions:
            return [*code, answer]
        [condition] = conditions
        code += _unless(condition, answer)
    return [*code, (RETURN, 0, 0, default)]


def _unless(condition: dict[str, Any], answer: tuple[int, int, int, int]) -> Code:
    """Gives the answer if the condition holds, and otherwise goes on behind it.

    The upper halves of arguments are not looked at: the kernel takes these as ints.
    """
    load = (LOAD_WORD, 0, 0, _ARGUMENTS + 8 * condition["index"])
    value = condition["value"]
    return {
        "SCMP_CMP_EQ": [load, (JUMP_IF_EQUAL, 0, 1, value), answer],
        "SCMP_CMP_GT": [load, (JUMP_IF_GREATER, 0, 1, value), answer],
        "SCMP_CMP_LT": [load, (JUMP_IF_GREATER, 1, 0, value - 1), answer],
        "SCMP_CMP_MASKED_EQ": [
            load,
            (AND, 0, 0, value),
            (JUMP_IF_EQUAL, 0, 1, condition.get("valueTwo", 0)),
            answer,
        ],
    }[condition["op"]]


if __name__ == "__main__":
    _, path, *command = sys.argv
    seccomp.install(compiled(json.loads(Path(path).read_text())))
    os.execvp(command[0], command)
