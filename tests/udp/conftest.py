"""What the tests of UDP run on: the best that the kernel has, and a ring without provided buffers and multishot receives.

Rules: both behave the same. `kernel` is for async tests.
"""

from __future__ import annotations

import pytest

from .support import KERNELS, use


@pytest.fixture(params=KERNELS)
async def kernel(request: pytest.FixtureRequest) -> str:
    use(request.param)
    return str(request.param)
