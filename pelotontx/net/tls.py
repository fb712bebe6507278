"""TLS for servers: certificates that are chosen by name and renewed in place, protocols by ALPN.

    certificates = Certificates([CertificateFiles("shop.pem", "shop.key")])
    certificates.load()
    factory = TLSFactory(certificates, build, admission=admission, wheel=wheel)
    listen(reactor, "tcp:443", factory)

TLS 1.2 and 1.3, only ciphers with forward secrecy and authenticated encryption; no renegotiation,
no compression.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IOpenSSLServerConnectionCreator,
    IProtocol,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from pelotontx.errors import ConfigError
from pelotontx.net.threshold import Threshold, ThresholdFactory

# Of TLS 1.2; all of 1.3's are like these. The client chooses: it knows if it has AES in hardware.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"

_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION

#: Who has the keys of session tickets can read sessions of TLS 1.2 that were resumed. OpenSSL makes
#: them with a context, so none lives longer than this.
CONTEXT_S: Final = 24 * 3600.0

#: Protocols that are offered, best first.
HTTP_1: Final = b"http/1.1"
HTTP_2: Final = b"h2"

# Of OpenSSL, by file: what it was when it was last looked at. None: it was not there.
_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate's files.

    Attributes:
        certificate: PEM: the certificate, then those that lead to a root.
        key: its private key, PEM, unencrypted; may be the same file.
    """

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A certificate as it is used."""

    context: SSL.Context
    names: tuple[str, ...]
    expires_s: float  # since the epoch


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificates of a listener.

    A client gets the one that holds the host name it asks for, else the first.

    Args:
        files: at least one pair.
        protocols: offered by ALPN, best first.
        client_ca: PEM certificates; a client then needs a certificate that one of these signed.
        seconds: the time; a reactor's.
    """

    _log = Logger()

    def __init__(
        self,
        files: Sequence[CertificateFiles],
        *,
        protocols: Sequence[bytes] = (HTTP_1,),
        client_ca: str = "",
        seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._files = tuple(files)
        self._protocols = tuple(protocols)
        self._client_ca = client_ca
        self._seconds = seconds
        self._stamps: dict[CertificateFiles, tuple[_Stamp, ...]] = {}
        self._loaded_s: dict[CertificateFiles, float] = {}
        self._loaded: dict[CertificateFiles, _Loaded] = {}
        self._by_name: dict[str, SSL.Context] = {}
        self._told: dict[CertificateFiles, str] = {}  # what is wrong with a pair

    def load(self) -> None:
        """Reads all files.

        Raises:
            ConfigError: one cannot be used; its `path` is the file.
        """
        for files in self._files:
            self._use(files)
        self._index()

    def look(self) -> None:
        """Loads what has changed, or is a day old; connections that are there keep what they have.

        Of a pair that cannot be used the old one stays in use, which is logged once, and it is
        tried again: permissions and full tables of files are no change of a file.
        """
        for files in self._files:
            is_old = self._seconds() - self._loaded_s[files] >= CONTEXT_S
            if self._stamps_of(files) == self._stamps[files] and not is_old:
                continue
            try:
                self._use(files)
            except ConfigError as error:
                if self._told.get(files) != str(error):
                    self._told[files] = str(error)
                    self._log.warn(
                        "The old certificate stays in use: {error}", error=error, path=error.path
                    )
            else:
                self._told.pop(files, None)
                self._log.info("{path} was loaded anew", path=files.certificate)
        self._index()

    def _use(self, files: CertificateFiles) -> None:
        """Loads a pair; how its files were is looked at before, so that no change is missed."""
        stamps = self._stamps_of(files)
        self._loaded[files] = self._load(files)
        self._stamps[files] = stamps
        self._loaded_s[files] = self._seconds()

    def expiry(self) -> Mapping[str, float]:
        """When each certificate file's certificate expires: seconds since the epoch."""
        return {files.certificate: loaded.expires_s for files, loaded in self._loaded.items()}

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return SSL.Connection(self._loaded[self._files[0]].context, None)

    def _index(self) -> None:
        """Which name gets which; of two with the same name the first."""
        self._by_name = {
            name: self._loaded[files].context
            for files in reversed(self._files)
            for name in self._loaded[files].names
        }

    def _choose(self, connection: SSL.Connection) -> None:
        """OpenSSL asks for the certificate of a host name (SNI)."""
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        parent = name.partition(".")[2]
        context = self._by_name.get(name) or self._by_name.get(f"*.{parent}")
        if context is not None and context is not connection.get_context():
            connection.set_context(context)

    def _select(self, connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
        """OpenSSL asks for one of a client's protocols (ALPN)."""
        common = (ours for ours in self._protocols if ours in offered)
        return next(common, SSL.NO_OVERLAPPING_PROTOCOLS)

    def _stamps_of(self, files: CertificateFiles) -> tuple[_Stamp, ...]:
        return _stamp(files.certificate), _stamp(files.key), _stamp(self._client_ca)

    def _load(self, files: CertificateFiles) -> _Loaded:
        chain = _read_chain(files.certificate)
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(_OPTIONS)
        # OpenSSL's buffers of an idle connection, some 34 KiB by its own account, are given back.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        # Sessions are resumed by tickets, which the clients keep.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(_CIPHERS)
        try:
            context.use_certificate(chain[0])
            for issuer in chain[1:]:
                context.add_extra_chain_cert(issuer)
        except SSL.Error as error:
            raise ConfigError(files.certificate, _reasons(error)) from None
        try:
            context.use_privatekey(_read_key(files.key))
            context.check_privatekey()
        except SSL.Error:
            reason = f"is not the key of {files.certificate}"
            raise ConfigError(files.key, reason) from None
        if self._client_ca:
            self._ask_for_certificate(context)
        context.set_tlsext_servername_callback(self._choose)
        context.set_alpn_select_callback(self._select)
        return _Loaded(context, _names(chain[0]), chain[0].not_valid_after_utc.timestamp())

    def _ask_for_certificate(self, context: SSL.Context) -> None:
        _read_chain(self._client_ca)
        try:
            context.load_verify_locations(self._client_ca)
            context.load_client_ca(self._client_ca.encode())
        except SSL.Error as error:
            raise ConfigError(self._client_ca, _reasons(error)) from None
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        # Without a name for them, sessions of clients with certificates cannot be resumed.
        context.set_session_id(b"pelotontx")


def _stamp(path: str) -> _Stamp:
    """What changes when a file does."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from None


def _read_chain(path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise ConfigError(path, "holds no certificate in PEM format") from None


def _read_key(path: str) -> Any:
    try:
        return load_pem_private_key(_read(path), None)
    except TypeError:
        raise ConfigError(path, "is encrypted; a server needs the key without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(path, "holds no private key in PEM format") from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names of a certificate, ``*.example`` among them."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.value.get_values_for_type(x509.DNSName))


def _reasons(error: SSL.Error) -> str:
    """What OpenSSL says."""
    return "; ".join(reason for _, _, reason in error.args[0]) or "OpenSSL refuses it"


class TLSFactory(TLSMemoryBIOFactory):
    """Makes TLS connections.

    Args:
        certificates: loaded.
        build: makes the protocol of a connection when the handshake is done, given what ALPN chose
            (`HTTP_1`, `HTTP_2`; None if the client offered nothing that we know).
        more: see `ThresholdFactory`; who is not admitted is not given a handshake.

    Attributes:
        handshakes: those that are going on.
    """

    # Not the stock one, which collects writes for a turn: ours are collected already.
    protocol = TLSMemoryBIOProtocol

    def __init__(
        self,
        certificates: Certificates,
        build: Callable[[bytes | None], IProtocol],
        **more: Any,
    ) -> None:
        self.handshakes = _Handshakes(build, **more)
        super().__init__(certificates, False, self.handshakes)

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:  # type: ignore[override]
        if not self.handshakes.admission.admits(addr):
            return None
        return self.protocol(self, _Handshake(self.handshakes))  # type: ignore[no-untyped-call]


class _Handshakes(ThresholdFactory):
    def __init__(self, build: Callable[[bytes | None], IProtocol], **more: Any) -> None:
        super().__init__(**more)
        self.build = build


@implementer(IHandshakeListener)
class _Handshake(Threshold):
    """A connection whose protocol is not known yet."""

    owner: _Handshakes

    def handshakeCompleted(self) -> None:
        transport = self.transport
        self.leave()
        protocol: Any = self.owner.build(transport.negotiatedProtocol)
        transport.wrappedProtocol = protocol
        protocol.makeConnection(transport)


__all__ = [
    "HTTP_1",
    "HTTP_2",
    "CertificateFiles",
    "Certificates",
    "TLSFactory",
]
