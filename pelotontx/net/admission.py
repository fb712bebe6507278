"""Who may connect: how many connections in all, how many from one address, how many new ones.

For whoever accepts connections (`net.http`) and whoever takes them over (`net.websocket`): a
connection counts from its `enter` to its `leave`, whatever is spoken on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from pelotontx.net.tcp import socket_peer

#: The limits by name, as refused connections are counted.
PROCESS: Final = "process"
ADDRESS: Final = "address"
RATE: Final = "rate"

# Hosts whose name for counting is remembered: those that come again and again.
_NAMES: Final = 4096


class Admission:
    """Counts the connections of one process, in all and by address.

    An IPv6 address stands for its /64, which is what one customer gets. UNIX sockets and trusted
    networks have the limit of the process only. What is kept is bounded by the connections that
    are open and those of one second.

    Args:
        seconds: the time; a reactor's.
        connections_limit: connections of the process.
        address_connections_limit: connections of one address; 0: any number.
        address_rate: new connections a second of one address, refused ones too; 0: any number.
        trusted: addresses and networks without limits of their own.

    Attributes:
        connections: those that are open.
        refused: how many were, by `PROCESS`, `ADDRESS` and `RATE`.
    """

    _log = Logger()

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        connections_limit: int = 1_000_000,
        address_connections_limit: int = 0,
        address_rate: int = 0,
        trusted: Iterable[str] = (),
    ) -> None:
        self.connections = 0
        self.refused: Counter[str] = Counter({PROCESS: 0, ADDRESS: 0, RATE: 0})
        self._seconds = seconds
        self._limit = connections_limit
        self._address_limit = address_connections_limit
        self._address_rate = address_rate
        self._trusted = [ip_network(network) for network in trusted]
        self._name_of_host = lru_cache(_NAMES)(self._named)
        self._open: Counter[str] = Counter()
        self._second = self._told = -1
        self._attempts: Counter[str] = Counter()

    def admits(self, peer: IAddress | None) -> bool:
        """Whether there is room for one more from there; it counts as an attempt."""
        limit = self._passed_limit(self._name(peer))
        if limit is None:
            return True
        self.refused[limit] += 1
        second = int(self._seconds())
        if second != self._told:  # a flood must not fill the log
            self._told = second
            self._log.warn("{peer} was cut off: the {limit} limit", peer=peer, limit=limit)
        return False

    def enter(self, transport: Any) -> None:
        """A connection has begun, or was taken over."""
        self.connections += 1
        name = self._name(socket_peer(transport))
        if name:
            self._open[name] += 1

    def leave(self, transport: Any) -> None:
        """It has ended, or is about to be taken over."""
        self.connections -= 1
        name = self._name(socket_peer(transport))
        if name:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    def _passed_limit(self, name: str) -> str | None:
        if name and self._address_rate:
            second = int(self._seconds())
            if second != self._second:
                self._second = second
                self._attempts.clear()
            self._attempts[name] += 1
            if self._attempts[name] > self._address_rate:
                return RATE
        if self.connections >= self._limit:
            return PROCESS
        if name and self._address_limit and self._open.get(name, 0) >= self._address_limit:
            return ADDRESS
        return None

    def _name(self, peer: Any) -> str:
        """What a peer counts as; empty if it has no limits of its own."""
        host = getattr(peer, "host", None)
        return self._name_of_host(host) if isinstance(host, str) else ""

    def _named(self, host: str) -> str:
        address = ip_address(host)
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if any(address in network for network in self._trusted):
            return ""
        if isinstance(address, IPv6Address):
            return address.packed[:8].hex(":", 2)
        return str(address)


__all__ = ["ADDRESS", "PROCESS", "RATE", "Admission"]
