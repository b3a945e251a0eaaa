"""When a worker that ended is started again, and when that is given up.

Rules of this file: numbers only; no clock, no process.
"""

from __future__ import annotations

FIRST_SECONDS = 0.1  # before the first restart; doubled for each failure in a row
MAX_SECONDS = 10.0  # between restarts, at most
STABLE_SECONDS = 10.0  # a worker that was ready for this long did not fail at its start


class Backoff:
    """The failures of one worker, in a row.

    Args:
        limit: how many failures in a row are one too many (serve_workers' `failures_max`); None:
            no number is.

    Raises:
        ValueError: not even one is allowed to happen.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"failures_max must be at least 1, not {limit}")
        self.limit = limit
        self.failures = 0

    def failed(self, served: float) -> float | None:
        """Counts a worker that ended without having been asked to.

        Args:
            served: seconds from when it was ready; 0 if it never was.

        Returns:
            Seconds to wait before the next start; None: it is given up.
        """
        if served >= STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        if self.limit is not None and self.failures >= self.limit:
            return None
        # the exponent is limited, too: a float has no 2**1024
        return min(FIRST_SECONDS * 2.0 ** min(self.failures - 1, 64), MAX_SECONDS)

    def reset(self) -> None:
        """Forgets the failures: the program has been replaced."""
        self.failures = 0
