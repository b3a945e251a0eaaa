"""Signals that Windows lacks, where there are no workers, but where all of this is imported.

Rules of this file: names only.
"""

from __future__ import annotations

import signal
from typing import Any

SIGHUP: Any = getattr(signal, "SIGHUP", None)
SIGKILL: Any = getattr(signal, "SIGKILL", None)
