"""Metered and Audited: networks that, like their listeners and streams, report to an observer.

Rules of this file: those of _observe/observer.py.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from .._network.network import Address, Network, NetworkListener, NetworkStream
from ..audit import Audit
from ..metrics import Metrics
from .observer import Forwarding, ObservedResource, Observer, told
from .streams import AuditedStream, metered_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..metrics import Direction


class _ObservedListener(ObservedResource, NetworkListener):
    """A listener of an observed network."""

    def __init__(
        self,
        listener: NetworkListener,
        observer: Observer,
        wrap: Callable[[NetworkStream, Direction], NetworkStream],
    ) -> None:
        super().__init__(listener, observer, listener.local_address)
        self._wrap = wrap

    @property
    def local_address(self) -> Address:
        return self.wrapped.local_address  # type: ignore[no-any-return]

    @enable_ki_protection
    async def accept(self) -> NetworkStream:
        stream: NetworkStream = await told(
            self._observer, "accept", self._address, self.wrapped.accept
        )
        self._observer.success("accept", stream.remote_address)
        return self._wrap(stream, "in")


class _ObservedNetwork(Forwarding, Network):
    """A network that reports to `observer`. `config` is the wrapped network's, through
    __getattr__."""

    def __init__(self, network: Network, observer: Observer) -> None:
        self.wrapped = network
        self._observer = observer

    @abc.abstractmethod
    def _wrap(self, stream: NetworkStream, direction: Direction) -> NetworkStream:
        """Wraps the stream of a new connection."""

    @enable_ki_protection
    async def bind(self, address: Address) -> NetworkListener:
        listener: NetworkListener = await told(
            self._observer, "bind", address, self.wrapped.bind, address
        )
        self._observer.success("bind", listener.local_address)
        return _ObservedListener(listener, self._observer, self._wrap)

    @enable_ki_protection
    async def dial(self, address: Address) -> NetworkStream:
        stream: NetworkStream = await told(
            self._observer, "dial", address, self.wrapped.dial, address
        )
        self._observer.success("dial", stream.remote_address)
        return self._wrap(stream, "out")


class Metered(_ObservedNetwork):
    """Counts what is done on a network: connections, bytes, operations, timeouts and errors.

    Its listeners and streams count, too. Anything besides bind and dial, such as the hosts of a
    SimulatedNetwork, is the wrapped network's own and counts nothing: wrap what you bind and dial
    with.

    Args:
        network: the network to wrap; also the attribute `wrapped`.
        metrics: where to count, also an attribute; None: a new one. Several networks may share one.
    """

    def __init__(self, network: Network, metrics: Metrics | None = None) -> None:
        self.metrics: Metrics = Metrics() if metrics is None else metrics
        super().__init__(network, self.metrics)

    def _wrap(self, stream: NetworkStream, direction: Direction) -> NetworkStream:
        return metered_connection(stream, self.metrics, direction)


class Audited(_ObservedNetwork):
    """Hashes everything that is done on a network, and gives the events to subscribers.

    It wraps a network as Metered does.

    Args:
        network: the network to wrap; also the attribute `wrapped`.
        audit: where to hash, also an attribute; None: a new one. Several networks may share one.
    """

    def __init__(self, network: Network, audit: Audit | None = None) -> None:
        self.audit: Audit = Audit() if audit is None else audit
        super().__init__(network, self.audit)

    def _wrap(self, stream: NetworkStream, direction: Direction) -> NetworkStream:
        return AuditedStream(stream, self.audit)
