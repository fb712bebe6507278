"""Where Redis is, read off a URL: one server, the Sentinels that know it, or a cluster's nodes.

- ``redis://[[user]:password@]host[:port][/db]``, with TLS ``rediss://``
- ``unix://[[user]:password@]/path/of.sock[?db=N]``
- ``redis+sentinel://[[user]:password@]host[:port],host[:port]/service[/db]``, with TLS (to the
  Sentinels too) ``rediss+sentinel://``; what the Sentinels themselves want to hear is
  ``?sentinel_password=`` and ``&sentinel_user=``
- ``redis+cluster://[[user]:password@]host[:port],host[:port]``, with TLS ``rediss+cluster://``

TLS is always verified, the host's name included, by the system's authorities or by those in
``?ca=/path.pem``; ``&cert=/path.pem&key=/path.pem`` is our own certificate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from OpenSSL.crypto import FILETYPE_PEM
from OpenSSL.crypto import Error as OpenSSLError
from twisted.internet.abstract import isIPAddress
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)

from pelotontx.errors import ConfigError

FORMS: Final = (
    "redis://[[user]:password@]host[:port][/db], unix:///path/to.sock[?db=N], "
    "redis+sentinel://host[:port],host[:port]/service[/db], redis+cluster://host[:port],host[:port]"
    " (rediss... for TLS)"
)
"""What a URL may look like, for error messages."""

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_HOST_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]@,]+))(?::([0-9]{1,5}))?")
# RFC 3986, appendix B. Not urlsplit: what it takes for several hosts differs between Pythons.
_PARTS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?]*))?([^?]*)(?:\?(.*))?")
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class TLS:
    """How a server is verified, and who we are.

    Attributes:
        ca: a PEM file of authorities; empty: those of the system.
        cert: a PEM file of our certificate and its chain; empty: we have none.
        key: a PEM file of its private key; empty: it is in `cert`.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""

    def options(self, host: str) -> IOpenSSLClientConnectionCreator:
        """Reads the files, so that renewed ones need no restart.

        Raises:
            ConfigError: a file cannot be read or holds something else.
        """
        authorities = _certificates("ca", self.ca)
        own, chain = self._own()
        return optionsForClientTLS(
            host,
            trustRootFromCertificates(authorities) if authorities else platformTrust(),
            own,
            extraCertificateOptions={"extraCertChain": chain} if chain else None,
        )

    def _own(self) -> tuple[PrivateCertificate | None, list[Any]]:
        if not self.cert:
            return None, []
        own, *chain = _certificates("cert", self.cert)
        key = _read("key", self.key or self.cert)
        try:
            key_pair = KeyPair.load(key, FILETYPE_PEM)
            private_key = key_pair.original.to_cryptography_key()
            if own.original.get_pubkey().to_cryptography_key() != private_key.public_key():
                raise ValueError("the key of another certificate")
        except (ValueError, OpenSSLError):
            raise ConfigError("broker URL", "key: not the private key of cert") from None
        return PrivateCertificate.fromCertificateAndKeyPair(own, key_pair), [
            each.original for each in chain
        ]


def _certificates(name: str, path: str) -> list[Certificate]:
    if not path:
        return []
    try:
        found = [Certificate.loadPEM(pem) for pem in _CERTIFICATE.findall(_read(name, path))]
    except OpenSSLError:
        found = []
    if not found:
        raise ConfigError("broker URL", f"{name}: {path}: no PEM certificate in it")
    return found


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError("broker URL", f"{name}: {path}: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server and how to log in; `str` shows no password.

    Attributes:
        path: of a UNIX socket; `host` and `port` mean nothing then.
        username: None: Redis's ``default``.
        password: None: no login.
        db: what to SELECT.
        tls: None: in the clear.
        is_asking: whether each command is preceded by ASKING, as the server of a cluster that
            a slot is moving to demands.
    """

    host: str = ""
    port: int = _REDIS_PORT
    path: str = ""
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: TLS | None = None
    is_asking: bool = False

    def at(self, host: str, port: int) -> RedisAddress:
        """Another server with the same login."""
        return replace(self, host=host, port=port)

    def endpoint(self, reactor: Any, *, timeout_s: float) -> IStreamClientEndpoint:
        """The endpoint to connect to.

        Raises:
            ConfigError: a file that TLS needs cannot be used.
        """
        if self.path:
            return UNIXClientEndpoint(reactor, self.path, timeout=timeout_s)
        endpoint: IStreamClientEndpoint
        if isIPAddress(self.host):  # no name to look up
            endpoint = TCP4ClientEndpoint(reactor, self.host, self.port, timeout=timeout_s)
        else:
            endpoint = HostnameEndpoint(reactor, self.host, self.port, timeout=timeout_s)
        if self.tls is None:
            return endpoint
        return wrapClientTLS(self.tls.options(self.host), endpoint)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        scheme = "redis" if self.tls is None else "rediss"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A master that Sentinels know by name.

    Attributes:
        sentinels: where they are, with their own login.
        service: the master's name.
        server: how to log in to the master; its host and port are for the Sentinels to say.
    """

    sentinels: tuple[RedisAddress, ...]
    service: str
    server: RedisAddress


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Some nodes of a cluster; they know the others, and the login is the same everywhere."""

    seeds: tuple[RedisAddress, ...]


def parse_redis_url(url: str) -> RedisAddress | SentinelAddress | ClusterAddress:
    """What a URL means; see the module for the forms.

    Raises:
        ConfigError: it is none of them; the text says what is wrong and holds no part of the URL
            that may be secret.
    """
    try:
        return _parse(url)
    except _Unusable as error:
        raise ConfigError("broker URL", f"{error}; must be one of {FORMS}") from None


class _Unusable(Exception):
    """What is wrong, without a secret."""


def _parse(url: str) -> RedisAddress | SentinelAddress | ClusterAddress:
    if not url.isprintable() or " " in url:
        raise _Unusable("it holds spaces or control characters")
    if "#" in url:
        raise _Unusable("a # in a password is written %23")
    parts = _PARTS.fullmatch(url)
    if parts is None:
        raise _Unusable("it is no URL")
    full_scheme, authority, path, query_text = (part or "" for part in parts.groups())
    full_scheme = full_scheme.lower()
    scheme, _, kind = full_scheme.partition("+")
    login, _, hosts = authority.rpartition("@")
    is_tls = scheme == "rediss"
    query = _Query(query_text)
    server = RedisAddress(**_login(login), tls=query.tls() if is_tls else None)
    result: RedisAddress | SentinelAddress | ClusterAddress
    if full_scheme == "unix":
        result = _unix(server, hosts, path, query)
    elif scheme not in ("redis", "rediss"):
        raise _Unusable("its scheme is unknown")
    elif kind == "sentinel":
        result = _sentinel(server, hosts, path, query)
    elif kind == "cluster":
        result = _cluster(server, hosts, path)
    elif kind:
        raise _Unusable("its scheme is unknown")
    else:
        (found,) = _hosts(server, hosts, _REDIS_PORT, most=1)
        result = replace(found, db=_db(path.removeprefix("/")))
    query.must_be_empty()
    return result


def _unix(server: RedisAddress, hosts: str, path: str, query: _Query) -> RedisAddress:
    if hosts or not path.startswith("/") or len(path) < 2:
        raise _Unusable("the path of a UNIX socket begins with a third slash")
    return replace(server, path=unquote(path), db=_db(query.take("db")))


def _sentinel(server: RedisAddress, hosts: str, path: str, query: _Query) -> SentinelAddress:
    service, _, db = path.removeprefix("/").partition("/")
    if not service:
        raise _Unusable("the master's name is missing: /service after the hosts")
    sentinel = RedisAddress(
        username=query.take("sentinel_user") or None,
        password=query.take("sentinel_password") or None,
        tls=server.tls,
    )
    return SentinelAddress(
        _hosts(sentinel, hosts, _SENTINEL_PORT), unquote(service), replace(server, db=_db(db))
    )


def _cluster(server: RedisAddress, hosts: str, path: str) -> ClusterAddress:
    if path.strip("/") not in ("", "0"):
        raise _Unusable("a cluster has database 0 only")
    return ClusterAddress(_hosts(server, hosts, _REDIS_PORT))


def _login(text: str) -> dict[str, Any]:
    username, separator, password = text.partition(":")
    if username and not separator:
        raise _Unusable("a user without a password: [user]:password@")
    return {
        "username": unquote(username) or None,
        "password": unquote(password) if separator else None,
    }


def _hosts(
    login: RedisAddress, text: str, default_port: int, *, most: int = 100
) -> tuple[RedisAddress, ...]:
    found = []
    for host_port in text.split(","):
        match = _HOST_PORT.fullmatch(host_port)
        port = default_port if match is None or match[3] is None else int(match[3])
        if match is None or not 0 < port < 65536:
            raise _Unusable("a host is missing, or its port is none")
        found.append(login.at((match[1] or match[2]).lower(), port))
    if len(found) > most:
        raise _Unusable(f"{most} host at most" if most == 1 else "too many hosts")
    return tuple(found)


def _db(text: str) -> int:
    if re.fullmatch(r"[0-9]{0,5}", text) is None:
        raise _Unusable("the database is no number")
    return int(text or 0)


class _Query:
    """What follows the ``?``, each key once."""

    def __init__(self, text: str) -> None:
        try:
            found = parse_qs(text, strict_parsing=bool(text), keep_blank_values=True)
        except ValueError:
            raise _Unusable("what follows the ? is not key=value&key=value") from None
        if any(len(values) > 1 for values in found.values()):
            raise _Unusable("a key after the ? is there twice")
        self._values: Mapping[str, str] = {key: values[0] for key, values in found.items()}
        self._taken: set[str] = set()

    def take(self, key: str) -> str:
        """The value of a key; empty when it is not there."""
        self._taken.add(key)
        return self._values.get(key, "")

    def tls(self) -> TLS:
        tls = TLS(self.take("ca"), self.take("cert"), self.take("key"))
        if tls.key and not tls.cert:
            raise _Unusable("a key without a cert")
        return tls

    def must_be_empty(self) -> None:
        """What nobody took is a mistake."""
        if set(self._values) - self._taken:
            raise _Unusable("a key after the ? is unknown here")
