"""A TCP proxy that can be cut in one direction or both, slowed down, and hung up."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure


class _End(Protocol):
    """One side of one connection; what it reads goes out on `other`."""

    other: _End | None = None

    def __init__(self, proxy: Proxy, *, is_client: bool) -> None:
        self._proxy = proxy
        self.is_client = is_client
        self._delayed: deque[tuple[float, bytes]] = deque()
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._proxy.ends.add(self)
        if self.is_client:
            self.transport.pauseProducing()
            self._proxy.connect(self)

    def dataReceived(self, data: bytes) -> None:
        if self._proxy.delay_s or self._delayed:
            due_s = self._proxy.reactor.seconds() + self._proxy.delay_s
            self._delayed.append((due_s, data))
            if self._timer is None:
                self._timer = self._proxy.reactor.callLater(self._proxy.delay_s, self._pass_on)
        elif self.other is not None:
            self.other.transport.write(data)

    def _pass_on(self) -> None:
        self._timer = None
        now_s = self._proxy.reactor.seconds()
        while self._delayed and self._delayed[0][0] <= now_s:
            _, data = self._delayed.popleft()
            if self.other is not None:
                self.other.transport.write(data)
        if self._delayed:
            self._timer = self._proxy.reactor.callLater(self._delayed[0][0] - now_s, self._pass_on)

    def connectionLost(self, reason: Failure) -> None:
        self._proxy.ends.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._delayed.clear()
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.transport.abortConnection()
        self._proxy.look()


class Proxy:
    """Listens on a port of loopback and passes on to another, both ways.

    Bytes that are cut off are not lost: they wait in the kernel, which lets the sender's buffers
    fill, as a network that drops packets does.

    Args:
        reactor: listens, connects, and keeps time.
        target: the port to pass on to.
    """

    def __init__(self, reactor: Any, target: int) -> None:
        self.reactor = reactor
        self.port = 0
        self.delay_s = 0.0
        self.ends: set[_End] = set()
        self._target = target
        self._cut: frozenset[bool] = frozenset()
        self._listener: Any = None
        self._empty: Deferred[None] | None = None

    async def start(self) -> None:
        """Listens; `port` says where."""
        factory = Factory.forProtocol(lambda: _End(self, is_client=True))
        factory.noisy = False
        endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        self._listener = await endpoint.listen(factory)
        self.port = self._listener.getHost().port

    async def stop(self) -> None:
        """Listens no more and hangs up."""
        await self._listener.stopListening()
        self.hang_up()
        if self.ends:
            self._empty = Deferred()
            await self._empty

    def look(self) -> None:
        """Told by an end that it is gone."""
        if not self.ends and self._empty is not None:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def cut(self, *, requests: bool = False, replies: bool = False) -> None:
        """Holds up what clients send, or what they are sent, or both."""
        self._cut = frozenset(
            {is_client for is_client in (True, False) if (requests if is_client else replies)}
        )
        self._settle()

    def restore(self) -> None:
        """Passes on everything again, and what was held up first."""
        self._cut = frozenset()
        self.delay_s = 0.0
        self._settle()

    def hang_up(self) -> None:
        """Resets all connections."""
        for end in tuple(self.ends):
            end.transport.abortConnection()

    def connect(self, client: _End) -> None:
        """Opens the other half of a connection."""
        factory = Factory.forProtocol(lambda: _End(self, is_client=False))
        factory.noisy = False
        connected = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self._target).connect(factory)
        connected.addCallbacks(self._join, self._refused, (client,), {}, (client,))

    def _join(self, server: Any, client: _End) -> None:
        if client not in self.ends:
            server.transport.abortConnection()
            return
        server.other, client.other = client, server
        self._settle()

    def _refused(self, failure: Failure, client: _End) -> None:
        client.transport.abortConnection()

    def _settle(self) -> None:
        for end in self.ends:
            if end.other is not None:
                if end.is_client in self._cut:
                    end.transport.pauseProducing()
                else:
                    end.transport.resumeProducing()
