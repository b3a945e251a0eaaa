"""Run by every Python that `python -m trio_uring run` starts, before the program: enables its runs.

Python's site module imports it by the name sitecustomize, because its folder is in PYTHONPATH.

Rules of this file: it imports neither trio nor trio_uring until the program imports trio. It
acts only if the environment variable is set, and never ends the program. trio_uring installs itself
when it is imported where that variable is set. Afterwards sys.path is as
it would have been, and a sitecustomize that was there before has run. It may be found by another
Python than the one that it was written for, so it is plain, and nothing of the package is imported
by name here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "TRIO_URING_INSTALL"


class Finder:
    """Waits in sys.meta_path for the first import of trio."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "trio":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            sys.meta_path.insert(0, self)  # not installed; perhaps later
        else:
            spec.loader = Loader(spec.loader)  # type: ignore[assignment]
        return spec


class Loader:
    """Loads trio as `loader` does, and then imports trio_uring."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        enable()


def enable() -> None:
    try:
        # If it is being imported already, it installs itself at the end of that.
        import trio_uring  # noqa: F401
    except Exception as exc:
        import logging

        logging.getLogger("trio_uring").warning(
            "trio_uring is not enabled in this process, which is trio's own: %s: %s (%s)",
            type(exc).__name__,
            exc,
            sys.executable,
        )


def run_the_next_one() -> None:
    """Runs the sitecustomize that would have been found without this one, if there is any."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ImportError as exc:
        if exc.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", ours)


if __name__ == "sitecustomize":
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        sys.meta_path.insert(0, Finder())
    run_the_next_one()
