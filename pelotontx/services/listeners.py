"""Where a server listens: endpoints, TLS, headers of balancers, redirects, and what it serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory
from twisted.logger import Logger

from pelotontx.config import ListenerConfig
from pelotontx.errors import ConfigError
from pelotontx.net.admission import Admission
from pelotontx.net.http import Handle, HTTPConnection, HTTPFactory, Request, Response
from pelotontx.net.proxy_protocol import ProxyProtocolFactory
from pelotontx.net.systemd import activated
from pelotontx.net.tcp import listen, peer_name
from pelotontx.net.threshold import ThresholdFactory
from pelotontx.net.tls import HTTP_1, HTTP_2, CertificateFiles, Certificates, TLSFactory
from pelotontx.net.wheel import Timer, Wheel
from pelotontx.wire.forwarded import Proxies

#: How often certificates are looked at: they are renewed weeks ahead.
LOOK_S: Final = 10.0

_HTTPS_PORT: Final = 443

_log = Logger(namespace="pelotontx")


class Fronts:
    """The HTTP factories of a server: one for each set of things that is served somewhere.

    Args:
        make: a factory with the server's limits, for what answers its requests.
        handle_of: what answers for ``all``, ``application`` or ``operations``.

    Attributes:
        all: the factories.
    """

    def __init__(
        self, make: Callable[[Handle], HTTPFactory], handle_of: Callable[[str], Handle]
    ) -> None:
        self._make = make
        self._handle_of = handle_of
        self._serving: dict[str, HTTPFactory] = {}
        self.all: list[HTTPFactory] = []

    def serving(self, what: str) -> HTTPFactory:
        """The one for ``all``, ``application`` or ``operations``."""
        if what not in self._serving:
            self._serving[what] = self.answering(self._handle_of(what))
        return self._serving[what]

    def answering(self, handle: Handle) -> HTTPFactory:
        """One for something else."""
        factory = self._make(handle)
        self.all.append(factory)
        return factory

    @property
    def connections(self) -> int:
        """How many speak HTTP."""
        return sum(len(factory.connections) for factory in self.all)

    def drain(self, timeout_s: float) -> Deferred[Any]:
        """See `HTTPFactory.drain`."""
        return gatherResults([factory.drain(timeout_s) for factory in self.all])


class Listeners:
    """All listeners of a server.

    Args:
        reactor: they live on it.
        listen: `server.listen`, endpoint strings.
        tables: the `[[listener]]` tables.
        certificates: theirs, see `load_certificates`.
        fronts: what they serve.
        admission: who may connect.
        wheel: deadlines of handshakes.
        proxies: addresses that may tell a client's address by the PROXY protocol.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        listen: Sequence[str],
        tables: Sequence[ListenerConfig],
        certificates: Mapping[int, Certificates],
        fronts: Fronts,
        admission: Admission,
        wheel: Wheel,
        proxies: Proxies,
    ) -> None:
        self._reactor = reactor
        self._fronts = fronts
        self._admission = admission
        self._wheel = wheel
        self._proxies = proxies
        self._thresholds: list[ThresholdFactory] = []
        self._certificates = certificates
        self._looking: Timer | None = None
        self._https_port: int | None = None
        short = [ListenerConfig(endpoint=endpoint) for endpoint in listen]
        self._factories = [
            *((f"server.listen[{n}]", own, self._factory(own)) for n, own in enumerate(short)),
            *(
                (f"listener[{n}].endpoint", own, self._factory(own, certificates.get(n)))
                for n, own in enumerate(tables)
            ),
        ]

    async def start(self, ports: list[IListeningPort]) -> None:
        """Listens everywhere; each port is appended to `ports` as soon as it is there.

        Raises:
            ConfigError: where it is not possible; what was opened before stays open until `stop`.
        """
        for key, own, factory in self._factories:
            await self._listen(key, own, factory, ports)
        if self._certificates:
            self._looking = self._wheel.call_later(LOOK_S, self._look)

    def stop(self, ports: list[IListeningPort]) -> Deferred[Any]:
        """Closes the ports, and ends who is still shaking hands."""
        if self._looking is not None:
            self._looking.cancel()
        closing = [maybeDeferred(port.stopListening) for port in ports]
        ports.clear()
        for threshold in self._thresholds:
            threshold.abort_all()
        return DeferredList(closing, consumeErrors=True)

    def refresh(self) -> None:
        """Loads certificates that have changed now, instead of soon."""
        for certificates in self._certificates.values():
            certificates.look()

    def handshakes_failed(self) -> int:
        """How many connections ended before their first request could be sent."""
        return sum(threshold.failed for threshold in self._thresholds)

    def expiry(self) -> Mapping[str, float]:
        """When each certificate expires, by its file: seconds since the epoch."""
        return {
            path: expires_s
            for certificates in self._certificates.values()
            for path, expires_s in certificates.expiry().items()
        }

    def _look(self) -> None:
        self._looking = self._wheel.call_later(LOOK_S, self._look)
        self.refresh()

    async def _listen(
        self,
        key: str,
        own: ListenerConfig,
        factory: IProtocolFactory,
        ports: list[IListeningPort],
    ) -> None:
        try:
            for description in activated(own.endpoint):
                port = await listen(self._reactor, description, factory, backlog=own.backlog)
                ports.append(port)
                self._opened(port, own)
        except CannotListenError as error:
            cause = error.socketError
            reason = getattr(cause, "strerror", None) or str(cause)
            raise ConfigError(key, f'"{own.endpoint}": cannot listen: {reason}') from None
        except ConfigError as error:
            raise ConfigError(key, f'"{own.endpoint}": {error.reason}') from None

    def _opened(self, port: IListeningPort, own: ListenerConfig) -> None:
        is_secure = bool(own.certificate) or own.endpoint.startswith("ssl:")
        _log.info("Listening on {address}", address=_shown(port, is_secure=is_secure))
        if own.certificate and self._https_port is None:
            self._https_port = getattr(port.getHost(), "port", None)

    def _factory(
        self, own: ListenerConfig, certificates: Certificates | None = None
    ) -> IProtocolFactory:
        """What makes a listener's connections: HTTP, in TLS, behind a balancer's header."""
        if own.redirect:
            http = self._fronts.answering(partial(self._redirect, own.redirect))
        else:
            http = self._fronts.serving(own.serves)
        factory: IProtocolFactory = http
        if certificates is not None:
            secure = TLSFactory(
                certificates,
                partial(_protocol, http),
                admission=self._admission,
                wheel=self._wheel,
                timeout_s=own.handshake_timeout_s,
            )
            self._thresholds.append(secure.handshakes)
            factory = secure
        if own.proxy_protocol:
            behind = ProxyProtocolFactory(
                factory,
                is_trusted=self._is_proxy,
                admission=self._admission,
                wheel=self._wheel,
                timeout_s=own.handshake_timeout_s,
            )
            self._thresholds.append(behind)
            factory = behind
        return factory

    def _is_proxy(self, peer: IAddress | None) -> bool:
        name = peer_name(peer)
        return name == "unix" or name in self._proxies

    def _redirect(self, redirect: str, request: Request) -> Response:
        """308: the method and the body stay."""
        host = request.host
        if host.rpartition(":")[2].isdecimal():
            host = host.rpartition(":")[0]
        if not host:
            return Response(400, b"400 no Host field\n", content_type="text/plain")
        port = int(redirect.partition(":")[2] or self._https_port or _HTTPS_PORT)
        authority = host if port == _HTTPS_PORT else f"{host}:{port}"
        target = request.target
        if not target.startswith("/"):  # in absolute form, or *
            target = f"/{target.partition('//')[2].partition('/')[2]}"
        return Response(308, b"", {"Location": f"https://{authority}{target}"})


def load_certificates(tables: Sequence[ListenerConfig]) -> dict[int, Certificates]:
    """The certificates of the listeners that have some, by their index.

    Raises:
        ConfigError: a file cannot be read or used; its `path` is the key that names it.
    """
    loaded = {}
    for index, own in enumerate(tables):
        if not own.certificate:
            continue
        files = [CertificateFiles(*pair) for pair in _pairs(own)]
        certificates = Certificates(files, protocols=(HTTP_2, HTTP_1), client_ca=own.client_ca)
        try:
            certificates.load()
        except ConfigError as error:
            key = f"listener[{index}].{_key_of(own, error.path)}"
            raise ConfigError(key, f'"{error.path}": {error.reason}') from None
        loaded[index] = certificates
    return loaded


def _pairs(own: ListenerConfig) -> Iterator[tuple[str, str]]:
    return zip(own.certificate, own.private_key or own.certificate, strict=True)


def _key_of(own: ListenerConfig, path: str) -> str:
    """Which key of a table names a file."""
    if path in own.certificate:
        return "certificate"
    return "private_key" if path in own.private_key else "client_ca"


def _protocol(http: HTTPFactory, negotiated: bytes | None) -> IProtocol:
    """Who was given a handshake is admitted already, so the factory is not asked."""
    if negotiated != HTTP_2:
        return HTTPConnection(http)
    from pelotontx.net.http2 import HTTP2Connection  # h2 is large, and few processes speak TLS

    return HTTP2Connection(http)


def _shown(port: IListeningPort, *, is_secure: bool) -> str:
    host: Any = port.getHost()
    if hasattr(host, "port"):
        name = f"[{host.host}]" if ":" in host.host else host.host
        return f"{'https' if is_secure else 'http'}://{name}:{host.port}/"
    return f"unix:{os.fsdecode(host.name)}"


__all__ = ["Fronts", "Listeners", "load_certificates"]
