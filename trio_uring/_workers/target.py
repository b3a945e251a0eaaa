"""Which function a worker runs: how the supervisor names it, and how the worker finds it.

A worker is a new process that imports the program by itself. So the supervisor hands over a name,
never the function, and with "module:function" it does not import the program at all.

Rules of this file: what is wrong with the name is said in one sentence.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from dataclasses import dataclass
from functools import reduce
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"(?!\d)\w+(?:\.(?!\d)\w+)*:(?!\d)\w+(?:\.(?!\d)\w+)*")
# What the standard library's multiprocessing calls the script of the parent in a child: programs
# and tools know it, and it is not "__main__".
_SCRIPT = "__mp_main__"


class TargetError(Exception):
    """The worker cannot load its function.

    Attributes:
        details: a traceback, if the program raised; else "".
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Target:
    """A function in a module, or in the script that the supervisor was started with."""

    function: str  # may have dots
    module: str | None = None
    script: str | None = None  # its path

    def __str__(self) -> str:
        return f"{self.module or self.script}:{self.function}"


def name_target(main: str | Callable[..., object]) -> Target:
    """Makes a name of what the caller gave.

    Args:
        main: "module:function", or a function at the top level of a module.

    Raises:
        ValueError: a worker could not find it by its name.
        TypeError: it is neither.
    """
    if isinstance(main, str):
        if not _NAME.fullmatch(main):
            raise ValueError(f"{main!r} is not MODULE:FUNCTION")
        module, _, function = main.partition(":")
        return Target(function, module)
    if not callable(main):
        raise TypeError(f"main must be a function or 'module:function', not {main!r}")
    function = getattr(main, "__qualname__", "")
    home = sys.modules.get(getattr(main, "__module__", None) or "")
    if home is None or _attribute(home, function) is not main:
        raise ValueError(
            f"workers import main by its name, so it must be at the top level of a module: {main!r}"
        )
    if home.__name__ != "__main__":
        return Target(function, home.__name__)
    if home.__spec__ is not None:  # python -m package.module
        return Target(function, home.__spec__.name)
    if not getattr(home, "__file__", None):
        raise ValueError("workers import main by its name, and this program has no file")
    return Target(function, script=str(home.__file__))


def _attribute(module: ModuleType, path: str) -> Any:
    try:
        return reduce(getattr, path.split("."), module)
    except AttributeError:
        return None


def load_target(target: Target) -> Callable[..., Any]:
    """Imports the program, in the worker.

    Raises:
        TargetError: there is no such module or function, it takes something else than a Worker, or
            importing it raised.
    """
    try:
        module = _script(target.script) if target.script else _module(str(target.module))
    except TargetError:
        raise
    except (Exception, SystemExit) as exc:
        what = target.script or target.module
        reason = "".join(traceback.format_exception_only(type(exc), exc)).strip()
        raise TargetError(
            f"{what} cannot be imported: {reason.splitlines()[-1]}", traceback.format_exc()
        ) from exc
    main = _attribute(module, target.function)
    if main is None:
        raise TargetError(f"there is no {target.function!r} in {target.module or target.script}")
    if not callable(main):
        raise TargetError(f"{target} is not a function")
    _check_arguments(main, target)
    return main  # type: ignore[no-any-return]


def _check_arguments(main: Callable[..., Any], target: Target) -> None:
    """Raises what would otherwise be raised by every worker, started again and again."""
    try:
        signature = inspect.signature(main)
    except ValueError:  # a function of C's that does not tell
        return
    try:
        signature.bind(None)
    except TypeError as exc:
        raise TargetError(
            f"{target} does not take a Worker, as async def main(worker) does: {exc}"
        ) from None


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise TargetError(f"there is no module {missing!r}") from None
        raise


def _script(path: str) -> ModuleType:
    """Imports the script under another name, so that `if __name__ == "__main__"` is false."""
    loader = importlib.machinery.SourceFileLoader(_SCRIPT, path)
    spec = importlib.util.spec_from_file_location(_SCRIPT, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # As multiprocessing has it: a process that the worker spawns goes by the file, not by a name.
    module.__spec__ = None
    # what is pickled or annotated in the script calls its module by either name
    sys.modules["__main__"] = sys.modules[_SCRIPT] = module
    loader.exec_module(module)
    return module
