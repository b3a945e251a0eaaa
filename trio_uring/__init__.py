"""trio's sockets, streams and listeners, driven by io_uring, or by readiness where there is none.

Every public name is here and in `trio_uring.testing`. Importing changes nothing and opens no ring:
the first operation of a trio.run does. (Where `python -m trio_uring run` has started the process,
importing calls `install`.)

Rules of this file: what most programs use is imported with the package. What only some use is
imported with its first name (`_LATER`); type checkers see all of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import socket
from ._driver.backend import BackendInfo
from ._driver.run import backend_info
from ._driver.run import current_driver as _current_driver
from ._errors import (
    DelimiterNotFound,
    IncompleteReadError,
    RingBrokenError,
    RingUnavailableError,
    WorkersError,
)
from ._options import KeepAlive, SocketOptions
from ._ring.statistics import OperationCounts, OperationInFlight, Statistics
from ._sockets.uring_socket import UringSocket
from ._streams.enable import Enable, enable, run
from ._streams.install import install, install_if_asked, uninstall
from ._streams.listeners import SocketListener, open_unix_listeners
from ._streams.processes import open_process
from ._streams.stdio import open_stderr, open_stdin, open_stdout
from ._streams.streams import ReceiveStream, SendStream, SocketStream
from ._streams.tcp import open_tcp_listeners, open_tcp_stream, open_unix_socket
from ._streams.tls import open_ssl_over_tcp_listeners, open_ssl_over_tcp_stream

if TYPE_CHECKING:
    from ._bytes.pool import BufferClassStatistics, BufferPool
    from ._driver.dump import dump_on_signal, dump_operations
    from ._messages.buffered import BufferedReceiveStream
    from ._messages.frame_stream import FrameStream
    from ._messages.frames import receive_frame, send_frame
    from ._messages.vectored import send_all_vectored
    from ._network.network import Address, Network, NetworkConfig, NetworkListener, NetworkStream
    from ._network.sockets import TrioNetwork, UringNetwork
    from ._observe.networks import Audited, Metered
    from ._observe.streams import AuditedStream, MeteredStream
    from ._relay.copy import Relayed, copy_stream, relay
    from ._relay.send_file import send_file
    from ._serving.proxy import ProxyListener, ProxyStream
    from ._serving.serve import serve_listeners, serve_ssl_over_tcp, serve_tcp, serve_unix
    from ._serving.shutdown import Shutdown
    from ._serving.systemd import listeners_from_environment, notify, notify_watchdog
    from ._udp.messages import Local
    from ._udp.udp_socket import UDPSocket, open_udp_socket
    from ._workers.supervisor import serve_workers
    from ._workers.worker import Worker
    from .audit import Audit, AuditEvent
    from .framing import FrameError, FrameTooLarge
    from .metrics import Metrics, MetricsSnapshot

__version__ = "0.1.0"

_LATER = {
    "_driver.dump": ("dump_on_signal", "dump_operations"),
    "_bytes.pool": ("BufferClassStatistics", "BufferPool"),
    "_messages.buffered": ("BufferedReceiveStream",),
    "_messages.frame_stream": ("FrameStream",),
    "_messages.frames": ("receive_frame", "send_frame"),
    "_messages.vectored": ("send_all_vectored",),
    "_network.network": ("Address", "Network", "NetworkConfig", "NetworkListener", "NetworkStream"),
    "_network.sockets": ("TrioNetwork", "UringNetwork"),
    "_observe.networks": ("Audited", "Metered"),
    "_observe.streams": ("AuditedStream", "MeteredStream"),
    "_relay.copy": ("Relayed", "copy_stream", "relay"),
    "_relay.send_file": ("send_file",),
    "_serving.proxy": ("ProxyListener", "ProxyStream"),
    "_serving.serve": ("serve_listeners", "serve_ssl_over_tcp", "serve_tcp", "serve_unix"),
    "_serving.shutdown": ("Shutdown",),
    "_serving.systemd": ("listeners_from_environment", "notify", "notify_watchdog"),
    "_udp.messages": ("Local",),
    "_udp.udp_socket": ("UDPSocket", "open_udp_socket"),
    "_workers.supervisor": ("serve_workers",),
    "_workers.worker": ("Worker",),
    "audit": ("Audit", "AuditEvent"),
    "framing": ("FrameError", "FrameTooLarge"),
    "metrics": ("Metrics", "MetricsSnapshot"),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}


if not TYPE_CHECKING:  # it would make every name one of the package

    def __getattr__(name: str) -> Any:
        """Imports what is imported later."""
        if name in _MODULES:
            value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        elif name in _LATER:  # a public module
            value = importlib.import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


def current_statistics() -> Statistics:
    """A frozen snapshot of what the ring and the driver of this trio.run have done so far.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and not available: see backend_info().
    """
    return _current_driver().statistics()


def current_operations() -> list[OperationInFlight]:
    """Every operation in flight in this trio.run, with its descriptor, its age and its task.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and not available: see backend_info().
    """
    return _current_driver().operations()


__all__ = [
    "Address",
    "Audit",
    "AuditEvent",
    "Audited",
    "AuditedStream",
    "BackendInfo",
    "BufferClassStatistics",
    "BufferPool",
    "BufferedReceiveStream",
    "DelimiterNotFound",
    "Enable",
    "FrameError",
    "FrameStream",
    "FrameTooLarge",
    "IncompleteReadError",
    "KeepAlive",
    "Local",
    "Metered",
    "MeteredStream",
    "Metrics",
    "MetricsSnapshot",
    "Network",
    "NetworkConfig",
    "NetworkListener",
    "NetworkStream",
    "OperationCounts",
    "OperationInFlight",
    "ProxyListener",
    "ProxyStream",
    "ReceiveStream",
    "Relayed",
    "RingBrokenError",
    "RingUnavailableError",
    "SendStream",
    "Shutdown",
    "SocketListener",
    "SocketOptions",
    "SocketStream",
    "Statistics",
    "TrioNetwork",
    "UDPSocket",
    "UringNetwork",
    "UringSocket",
    "Worker",
    "WorkersError",
    "backend_info",
    "copy_stream",
    "current_operations",
    "current_statistics",
    "dump_on_signal",
    "dump_operations",
    "enable",
    "install",
    "listeners_from_environment",
    "notify",
    "notify_watchdog",
    "open_process",
    "open_ssl_over_tcp_listeners",
    "open_ssl_over_tcp_stream",
    "open_stderr",
    "open_stdin",
    "open_stdout",
    "open_tcp_listeners",
    "open_tcp_stream",
    "open_udp_socket",
    "open_unix_listeners",
    "open_unix_socket",
    "receive_frame",
    "relay",
    "run",
    "send_all_vectored",
    "send_file",
    "send_frame",
    "serve_listeners",
    "serve_ssl_over_tcp",
    "serve_tcp",
    "serve_unix",
    "serve_workers",
    "socket",
    "uninstall",
]

install_if_asked()
del install_if_asked
