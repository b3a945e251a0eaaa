"""Run by every Python that `python -m trio_uring run` starts, before the program: enables its runs.

Python's site module imports it by the name sitecustomize, because its folder is in PYTHONPATH.

Rules of this file: it imports neither trio nor trio_uring until the program imports trio. It
acts only if the environment variable is set, and never ends the program. trio_uring installs itself
when it is imported where that variable is set. Afterwards sys.path is as
it would have been, and a sitecustomize that was there before has run. It may be found by another
Python than the one that it was written for, even by Python 2: so it is plain, without annotations,
and nothing of the package is imported by name here.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

import importlib
import os
import sys

VARIABLE = "TRIO_URING_INSTALL"


class Finder:
    """Stays in sys.meta_path until trio has been imported; whoever only looks for it may."""

    def find_spec(self, name, path=None, target=None):
        if name != "trio":
            return None
        spec = self.find_elsewhere(name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = Loader(spec.loader, self)  # pyright: ignore[reportAttributeAccessIssue]
        return spec

    def find_elsewhere(self, *sought):
        """What the import would find without this one."""
        for finder in list(sys.meta_path):
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(*sought)
                if spec is not None:
                    return spec
        return None


class Loader:
    """Is `loader` in every respect, but that trio_uring is imported when it has loaded trio."""

    def __init__(self, loader, finder):
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name):
        if name == "loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        enable()


def enable():
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


def run_the_next_one():
    """Runs the sitecustomize that would have been found without this one, if there is any."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ImportError as exc:
        if getattr(exc, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", ours)


if __name__ == "sitecustomize":
    # Another Python's finders have other methods; and it has no trio.
    if sys.version_info >= (3,) and os.environ.get(VARIABLE, "") not in ("", "0"):
        sys.meta_path.insert(0, Finder())
    run_the_next_one()
