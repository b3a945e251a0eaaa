"""The fields of a direction that the accelerator reads for every call.

Rules of this file: what they mean is said, and every rule about them kept, in `direction.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._accelerator import hot

if TYPE_CHECKING or hot is None:

    class DirectionFields:
        """The base of a direction; with the accelerator it is a type in C."""

        __slots__ = (
            "closes_alone", "ended", "fd", "fileno", "held", "is_socket", "kept", "left", "lends",
            "operations", "sent", "size", "streak", "waiter",
        )  # fmt: skip

else:
    DirectionFields = hot.Direction
