"""A ring that fails when a test says so.

Rules of this file: the failure is raised in front of the kernel's ring, which goes on working.
"""

from __future__ import annotations

from typing import Any

from .child import BackendRing, driver


class FaultyRing(BackendRing):
    """Whatever takes its completions fails while `faults` lasts."""

    faults = 0
    error: BaseException = ZeroDivisionError("injected")

    def _fail(self) -> None:
        if self.faults:
            self.faults -= 1
            raise self.error

    def drain(self, *arguments: Any) -> Any:
        self._fail()
        return super().drain(*arguments)

    def turn(self, *arguments: Any) -> Any:
        self._fail()
        return super().turn(*arguments)


def drain_fails(times: int) -> None:
    driver().ring.faults = times
