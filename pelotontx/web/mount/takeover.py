"""A transport for whoever takes the connection over while a request is being answered.

`twisted.web` resources that speak WebSocket connect their own protocol to the request's transport
and write to it at once. `net.http` hands a connection out a moment later, by an `Upgrade`: until
then `Takeover` remembers what was asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure


class Takeover:
    """The transport of a request: who sets `protocol` gets the connection.

    Args:
        reactor: the hand-over happens in its next turn, when the resource is done.
        peer: the client.
        host: our end.
        on_taken: called with the protocol that the connection is to be handed to.
        on_lost: called when the connection is to be ended without having been taken over.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        peer: IAddress,
        host: IAddress,
        on_taken: Callable[[Protocol], object],
        on_lost: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._peer = peer
        self._address = host
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._protocol: Any = None
        self._real: Any = None
        self._asked: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def protocol(self) -> Any:
        """Who the connection's bytes go to; setting it for the first time takes it over."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: Any) -> None:
        is_first, self._protocol = self._protocol is None, protocol
        if is_first:
            self._reactor.callLater(0, self._on_taken, _Relay(self))

    def getPeer(self) -> IAddress:
        """The client's address."""
        return self._peer

    def getHost(self) -> IAddress:
        """The server's, as the client knows it."""
        return self._address

    def loseConnection(self, *reason: Any) -> None:
        """Ends the connection, or the answer if nobody has taken it over."""
        if self._protocol is None:
            self._on_lost()
        else:
            self._ask("loseConnection", *reason)

    def abortConnection(self) -> None:
        """The same without sending the rest."""
        if self._protocol is None:
            self._on_lost()
        else:
            self._ask("abortConnection")

    def attach(self, transport: Any) -> None:
        """The connection: what was asked for meanwhile happens now."""
        self._real = transport
        self.let_go()
        asked, self._asked = self._asked, []
        for name, arguments in asked:
            getattr(transport, name)(*arguments)

    def let_go(self) -> None:
        """Nobody is to be told any more; who would be may refer to us."""
        self._on_taken = self._on_lost = _ignore

    def lose(self) -> None:
        """The client has left before the hand-over: who has taken over is told."""
        self.let_go()
        if self._protocol is None or self._real is not None:
            return
        try:
            self._protocol.connectionLost(Failure(ConnectionDone("the client has gone")))
        except Exception:  # foreign code
            self._log.failure("A protocol that took a connection over failed")

    def _ask(self, name: str, *arguments: Any) -> None:
        if self._real is None:
            self._asked.append((name, arguments))
        else:
            getattr(self._real, name)(*arguments)

    def __getattr__(self, name: str) -> Any:
        # Only what a resource does in one turn comes before `attach`: a few calls.
        if name.startswith("_"):
            raise AttributeError(name)
        if self._real is not None:
            return getattr(self._real, name)
        return lambda *arguments: self._ask(name, *arguments)


def _ignore(*_: object) -> None:
    """Nobody listens."""


class _Relay(Protocol):
    """Between the connection and the protocol that took it over.

    `net.http` gives a new protocol the request's head first; this one's has got it already.
    """

    def __init__(self, takeover: Takeover) -> None:
        self._takeover = takeover
        self._is_behind_head = False

    def connectionMade(self) -> None:
        self._takeover.attach(self.transport)

    def dataReceived(self, data: bytes) -> None:
        if not self._is_behind_head:
            self._is_behind_head = True
            data = data[data.index(b"\r\n\r\n") + 4 :]
        if data:
            self._takeover.protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._takeover.protocol.connectionLost(reason)
