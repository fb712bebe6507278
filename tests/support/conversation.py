"""A client that says raw bytes and waits for what comes back, and a certificate for servers."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

#: Far more than anything here takes: it only ends a test that hangs.
LIMIT_S = 30


class Conversation(Protocol):
    """A client that says raw bytes and waits for what comes back."""

    def __init__(self) -> None:
        self.data = b""
        self.is_over = False
        self._waiting: list[tuple[Any, Deferred[bytes]]] = []

    def say(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def until(self, end: bytes | None, count: int = 1) -> Deferred[bytes]:
        """Everything received, once `end` came `count` times, or the connection ended (None)."""
        waiting: Deferred[bytes] = Deferred()

        def is_there() -> bool:
            return self.is_over if end is None else self.data.count(end) >= count

        self._waiting.append((is_there, waiting))
        self._look()
        return waiting.addTimeout(LIMIT_S, reactor)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_over = True
        self._look()

    def _look(self) -> None:
        for is_there, waiting in self._waiting[:]:
            if is_there():
                self._waiting.remove((is_there, waiting))
                if not waiting.called:
                    waiting.callback(self.data)


def certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost and 127.0.0.1 with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), address])
    now = datetime.now(UTC)
    own = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        own.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return pem
