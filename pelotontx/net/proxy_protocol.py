"""The PROXY protocol for servers: the header is read, then the connection is the client's.

    factory = ProxyProtocolFactory(http, is_trusted=..., admission=admission, wheel=wheel)
    listen(reactor, "tcp:8080", factory)

Nothing stays between the transport and the inner protocol, so writes and `sendfile` are as fast as
without; the transport only tells another peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from pelotontx.net.threshold import Threshold, ThresholdFactory
from pelotontx.wire.proxy_header import InvalidProxyHeader, read_proxy_header


class ProxyProtocolFactory(ThresholdFactory):
    """Makes connections that begin with a PROXY header, version 1 or 2.

    Args:
        inner: makes the protocols behind it; it is given the client's address, and with a refusal
            (None) the connection is ended.
        is_trusted: whether a peer may say who its client is; others are cut off. A header that
            anybody can send would let anybody be anyone.
        more: see `ThresholdFactory`. The connection counts as the balancer's until the header is
            read, and as the client's from then on.

    Attributes:
        untrusted: how many connections came from elsewhere.
    """

    _log = Logger()

    def __init__(
        self, inner: IProtocolFactory, *, is_trusted: Callable[[IAddress | None], bool], **more: Any
    ) -> None:
        super().__init__(**more)
        self.inner = inner
        self.untrusted = 0
        self._is_trusted = is_trusted
        self._told: set[str] = set()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if self._is_trusted(addr):
            return _Header(self)
        self.untrusted += 1
        host = str(getattr(addr, "host", addr))
        if host not in self._told and len(self._told) < 100:  # a scan must not fill the log
            self._told.add(host)
            self._log.warn(
                "{host} was cut off: a PROXY header is taken from server.proxies only", host=host
            )
        return None


class _Header(Threshold):
    """A connection whose header is not complete yet."""

    owner: ProxyProtocolFactory
    _log = Logger()
    _data = b""

    def dataReceived(self, data: bytes) -> None:
        data = self._data + data
        try:
            header = read_proxy_header(data)
        except InvalidProxyHeader as error:
            self._log.warn(
                "{peer} was cut off: it sent {error}", peer=self.transport.getPeer(), error=error
            )
            self.abort()
            return
        if header is None:
            self._data = data
            return
        transport = self.transport
        self.leave()
        if header.source is not None:
            _replace_peer(transport, *header.source)
        protocol: Any = self.owner.inner.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.protocol = Protocol()  # nobody who would have to be told
            transport.abortConnection()
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if len(data) > header.size:
            protocol.dataReceived(data[header.size :])


def _replace_peer(transport: Any, host: str, port: int) -> None:
    """Has a transport, and whatever is put on it, tell this peer from now on."""
    peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)
    transport.getPeer = lambda: peer


__all__ = ["ProxyProtocolFactory"]
