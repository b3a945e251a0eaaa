"""Every async test here runs with trio_uring.Enable() among trio's instruments, as for a user."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import trustme
from support.endtoend import Certificates, enabled_run

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)  # after the one for all tests, whose marker this one hides
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=enabled_run), append=False)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(trustme.CA(), tmp_path_factory.mktemp("certificates"))
