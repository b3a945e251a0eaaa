"""The pytest plugin, under the package's name: `pytest_plugins = ["trio_uring.pytest_plugin"]`.

Rules of this file: the plugin itself is `_trio_uring_pytestplugin`, which the entry point names and
which imports nothing of this package until a fixture is used.
"""

from _trio_uring_pytestplugin import (
    DriverIdle,
    _trio_test,
    echo_server,
    pytest_runtest_makereport,
    simulated_network,
    uring_driver_idle,
)

__all__ = [
    "DriverIdle",
    "_trio_test",
    "echo_server",
    "pytest_runtest_makereport",
    "simulated_network",
    "uring_driver_idle",
]
