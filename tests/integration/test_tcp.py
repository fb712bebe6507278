"""Our transports under TLS: started on an open connection, and by a `tls:` string."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.python.failure import Failure

from pelotontx.net.tcp import Client, Server, connect, listen, unsent_bytes
from tests.support.conversation import LIMIT_S, Conversation, certificate

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

#: More than a transport buffers at ease, and more than the kernel takes at once.
LONG = 3_000_000


class Shouting(Protocol):
    """Answers in capitals; after ``starttls`` under TLS.

    It also answers ``starttls`` itself, in the clear, and in the same turn as TLS begins.
    """

    def __init__(self, context: CertificateOptions) -> None:
        self.context = context
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data.upper())
        if data == b"starttls":
            transport.startTLS(self.context)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Shouts(Factory):
    def __init__(self, folder: Path) -> None:
        pem = certificate(folder)
        self.context = PrivateCertificate.loadPEM(pem.read_bytes()).options()
        self.made: list[Shouting] = []

    def buildProtocol(self, _: object) -> Shouting:
        self.made.append(Shouting(self.context))
        return self.made[-1]


@pytest_twisted.ensureDeferred
async def test_tls_can_be_started_on_an_open_connection(tmp_path: Path) -> None:
    factory = Shouts(tmp_path)
    port: Any = await listen(reactor, "tcp:0:interface=127.0.0.1", factory)
    try:
        client: Any = await connect(
            reactor, f"tcp:127.0.0.1:{port.getHost().port}", Factory.forProtocol(Conversation)
        )
        client.say(b"starttls")
        assert await client.until(b"STARTTLS") == b"STARTTLS"
        transport = client.transport
        transport.startTLS(CertificateOptions(verify=False))
        client.say(b"secret")
        await client.until(b"SECRET")
        assert ISSLTransport.providedBy(transport)
        (server,) = factory.made
        assert isinstance(transport, Client)
        assert isinstance(server.transport, Server)
        client.say(b"z" * LONG)
        assert (await client.until(b"Z", LONG)).endswith(b"Z" * LONG)
        assert unsent_bytes(transport) == 0
        transport.loseConnection()
        await client.until(None)
        await server.lost.addTimeout(LIMIT_S, reactor)
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_tls_string_connects_to_a_trusted_server_only(tmp_path: Path) -> None:
    factory = Shouts(tmp_path)
    pem = tmp_path / "server.pem"
    port: Any = await listen(reactor, f"ssl:0:interface=127.0.0.1:privateKey={pem}", factory)
    place = f"tls:127.0.0.1:{port.getHost().port}"
    try:
        trusting: Any = await connect(
            reactor, f"{place}:trustRoots={tmp_path}", Factory.forProtocol(Conversation)
        )
        trusting.say(b"z" * LONG)
        assert await trusting.until(b"Z", LONG) == b"Z" * LONG
        trusting.transport.loseConnection()
        await trusting.until(None)
        doubting: Any = await connect(reactor, place, Factory.forProtocol(Conversation))
        doubting.say(b"secret")
        assert await doubting.until(None) == b""
        for server in factory.made:
            await server.lost.addTimeout(LIMIT_S, reactor)
    finally:
        await port.stopListening()
