"""Certificates and handshakes, with a client of OpenSSL's and transports in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError
from pelotontx.net.admission import RATE, Admission
from pelotontx.net.tls import CONTEXT_S, HTTP_1, HTTP_2, CertificateFiles, Certificates, TLSFactory
from pelotontx.net.wheel import Wheel
from tests.support.certificates import Authority
from tests.support.http_case import Wire

PEER = IPv4Address("TCP", "192.0.2.7", 50321)


class Inner(Protocol):
    data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


class Client:
    """The other end of a connection: bytes are carried over by hand."""

    session: SSL.Session | None = None  # to be resumed
    received = b""  # as it came over the wire

    def __init__(
        self, factory: TLSFactory, *, name: bytes = b"", alpn: tuple[bytes, ...] = ()
    ) -> None:
        self.context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if alpn:
            self.context.set_alpn_protos(list(alpn))
        self.name = name
        self.wire = Wire(peerAddress=PEER)
        protocol = factory.buildProtocol(PEER)
        assert protocol is not None
        self.wire.protocol = protocol
        protocol.makeConnection(self.wire)

    def shake_hands(self) -> SSL.Connection:
        """The handshake, whole; raises `SSL.Error` if it fails."""
        self.connection = SSL.Connection(self.context, None)
        self.connection.set_connect_state()
        if self.session is not None:
            self.connection.set_session(self.session)
        if self.name:
            self.connection.set_tlsext_host_name(self.name)
        for _ in range(10):
            try:
                self.connection.do_handshake()
            except SSL.WantReadError:
                self.carry()
            else:
                break
        self.carry()
        return self.connection

    def carry(self) -> None:
        try:
            data = self.connection.bio_read(2**16)
        except SSL.WantReadError:
            data = b""
        if data:
            self.wire.protocol.dataReceived(data)
        if answer := self.wire.taken():
            self.received += answer
            self.connection.bio_write(answer)

    @property
    def shown(self) -> str:
        """The common name of the server's certificate."""
        certificate = self.connection.get_peer_certificate(as_cryptography=True)
        assert certificate is not None
        (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(name.value)


class TLSCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.authority = Authority(self.folder)
        self.clock = Clock()
        self.wheel = Wheel(self.clock)
        self.admission = Admission(self.clock.seconds, address_rate=5)
        self.built: list[bytes | None] = []
        self.inner: list[Inner] = []
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def files(self, name: str, *hosts: str) -> CertificateFiles:
        certificate, key = self.authority.issue(name, *hosts)
        return CertificateFiles(str(certificate), str(key))

    def serve(self, *files: CertificateFiles, **options: Any) -> TLSFactory:
        self.certificates = Certificates(files, **options)
        self.certificates.load()
        return TLSFactory(self.certificates, self.build, admission=self.admission, wheel=self.wheel)

    def build(self, negotiated: bytes | None) -> Inner:
        self.built.append(negotiated)
        self.inner.append(Inner())
        return self.inner[-1]

    def warnings(self) -> list[str]:
        return [str(e.get("error")) for e in self.events if e.get("log_level") is LogLevel.warn]


class HandshakeTests(TLSCase):
    def test_data_reaches_the_protocol_that_was_negotiated(self) -> None:
        factory = self.serve(self.files("one", "a.example"), protocols=(HTTP_2, HTTP_1))
        for offered, negotiated in (
            ((HTTP_1, HTTP_2), HTTP_2),  # our order counts
            ((HTTP_1,), HTTP_1),
            ((b"spdy/1",), None),
            ((), None),
        ):
            client = Client(factory, alpn=offered)
            connection = client.shake_hands()
            connection.send(b"hello")
            client.carry()
            self.assertEqual((self.built[-1], self.inner[-1].data), (negotiated, b"hello"))
            self.inner[-1].transport.write(b"you too")  # type: ignore[union-attr]
            client.carry()
            self.assertEqual(connection.recv(100), b"you too")

    def test_old_versions_and_weak_ciphers_are_refused(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        for version, ciphers in (
            (SSL.TLS1_1_VERSION, b"ALL:@SECLEVEL=0"),
            (SSL.TLS1_2_VERSION, b"ECDHE+SHA1:ECDHE+SHA256:!AEAD"),  # CBC
            (SSL.TLS1_2_VERSION, b"kRSA"),  # no forward secrecy
        ):
            client = Client(factory)
            client.context.set_cipher_list(ciphers)
            client.context.set_max_proto_version(version)
            with self.subTest(ciphers=ciphers), self.assertRaises(SSL.Error):
                client.shake_hands()
        self.assertEqual(self.built, [])

    def test_both_versions_that_are_left_speak_authenticated_encryption(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            client = Client(factory)
            client.context.set_max_proto_version(version)
            cipher = client.shake_hands().get_cipher_name()
            self.assertRegex(str(cipher), "GCM|CHACHA20")

    def test_renegotiation_is_refused(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        client = Client(factory)
        client.context.set_max_proto_version(SSL.TLS1_2_VERSION)
        connection = client.shake_hands()
        connection.renegotiate()
        with self.assertRaises(SSL.Error) as caught:
            for _ in range(5):
                try:
                    connection.do_handshake()
                except SSL.WantReadError:
                    client.carry()
        self.assertIn("no renegotiation", str(caught.exception))

    def test_a_handshake_that_does_not_end_is_not_waited_for(self) -> None:
        client = Client(self.serve(self.files("one", "a.example")))
        self.assertEqual(self.admission.connections, 1)
        client.connection = SSL.Connection(client.context, None)
        client.connection.set_connect_state()
        with self.assertRaises(SSL.WantReadError):
            client.connection.do_handshake()
        hello = client.connection.bio_read(2**16)
        for start in range(8):  # however steadily it drips
            client.wire.protocol.dataReceived(hello[start : start + 1])
            self.clock.advance(1.2)
        self.assertFalse(client.wire.aborted)
        self.clock.advance(0.6)
        self.assertTrue(client.wire.aborted)
        self.assertEqual((self.admission.connections, len(self.wheel)), (0, 0))

    def test_a_finished_handshake_leaves_no_deadline(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        client = Client(factory)
        client.shake_hands()
        self.assertEqual((len(factory.handshakes.waiting), len(self.wheel)), (0, 0))
        self.assertEqual(self.admission.connections, 0)  # what follows counts itself
        self.clock.advance(20)
        self.assertFalse(client.wire.aborted)

    def test_who_is_not_admitted_gets_no_handshake(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        wires = [factory.buildProtocol(PEER) for _ in range(7)]
        self.assertEqual([wire is None for wire in wires], [False] * 5 + [True] * 2)
        self.assertEqual(self.admission.refused[RATE], 2)

    def test_what_is_no_tls_ends_the_connection_and_is_counted(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        client = Client(factory)
        client.wire.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(client.wire.ended)
        client.wire.abortConnection()
        self.assertEqual((factory.handshakes.failed, self.admission.connections), (1, 0))

    def test_with_the_server_handshakes_end(self) -> None:
        factory = self.serve(self.files("one", "a.example"))
        client = Client(factory)
        factory.handshakes.abort_all()
        self.assertTrue(client.wire.aborted)


class CertificateTests(TLSCase):
    def shown(self, factory: TLSFactory, name: bytes = b"") -> str:
        self.clock.advance(1)  # the rate of an address
        client = Client(factory, name=name)
        client.shake_hands()
        return client.shown

    def test_the_name_that_a_client_asks_for_chooses(self) -> None:
        factory = self.serve(
            self.files("one", "a.example"),
            self.files("two", "b.example", "*.b.example"),
            self.files("three", "b.example", "c.example"),
        )
        for name, shown in (
            (b"a.example", "one"),
            (b"b.example", "two"),
            (b"B.Example", "two"),
            (b"x.b.example", "two"),
            (b"x.y.b.example", "one"),  # a star stands for one label
            (b"c.example", "three"),
            (b"unknown.example", "one"),
            (b"", "one"),
        ):
            self.assertEqual(self.shown(factory, name), shown, name)

    def test_changed_files_are_used_from_the_next_handshake_on(self) -> None:
        files, other = self.files("one", "a.example"), self.files("other", "c.example")
        factory = self.serve(files, other)
        live = Client(factory)
        connection = live.shake_hands()
        fresh = self.files("fresh", "b.example")
        os.replace(fresh.certificate, files.certificate)
        os.replace(fresh.key, files.key)
        self.certificates.look()
        self.assertEqual(self.shown(factory), "fresh")
        self.assertEqual(self.shown(factory, b"b.example"), "fresh")
        self.assertEqual(self.shown(factory, b"c.example"), "other")
        connection.send(b"still here")
        live.carry()
        self.assertEqual((self.inner[0].data, live.shown), (b"still here", "one"))
        self.assertEqual(self.warnings(), [])

    def test_what_cannot_be_used_is_told_once_and_healed_later(self) -> None:
        files = self.files("one", "a.example")
        factory = self.serve(files)
        fresh = self.files("fresh", "b.example")
        os.replace(fresh.certificate, files.certificate)  # its key comes a little later
        for _ in range(3):
            self.certificates.look()
        self.assertEqual(self.shown(factory), "one")
        self.assertEqual(self.warnings(), [f"{files.key}: is not the key of {files.certificate}"])
        os.replace(fresh.key, files.key)
        self.certificates.look()
        self.assertEqual(self.shown(factory), "fresh")

    def test_a_file_that_is_gone_is_told_once_and_healed_later(self) -> None:
        files = self.files("one", "a.example")
        factory = self.serve(files)
        os.rename(files.key, self.folder / "away")
        for _ in range(3):
            self.certificates.look()
        self.assertEqual(self.shown(factory), "one")
        self.assertEqual(len(self.warnings()), 1)
        self.assertIn("cannot be read: No such file", self.warnings()[0])
        os.rename(self.folder / "away", files.key)
        self.certificates.look()
        self.assertEqual(self.shown(factory), "one")
        self.assertEqual(len(self.warnings()), 1)

    def test_what_heals_without_a_change_of_the_file_is_noticed(self) -> None:
        files = self.files("one", "a.example")
        factory = self.serve(files)
        fresh = self.files("fresh", "b.example")
        os.replace(fresh.certificate, files.certificate)
        key = Path(files.key)
        away = Path(fresh.key)
        stamp = (away.stat().st_atime_ns, away.stat().st_mtime_ns)
        good, bad = away.read_bytes(), bytes(away.stat().st_size)
        for content in (bad, bad, good):  # as if reading had failed, in one and the same inode
            key.write_bytes(content)
            os.utime(key, ns=stamp)
            self.certificates.look()
        self.assertEqual(self.shown(factory), "fresh")
        self.assertEqual(len(self.warnings()), 1)

    def test_what_is_wrong_at_the_start_is_said_in_words(self) -> None:
        good, other = self.files("one", "a.example"), self.files("two", "b.example")
        text = self.folder / "text"
        text.write_text("no PEM")
        for files, error in (
            (CertificateFiles("/nowhere", good.key), "/nowhere: cannot be read: No such file"),
            (CertificateFiles(good.certificate, "/nowhere"), "/nowhere: cannot be read"),
            (CertificateFiles(str(text), good.key), f"{text}: holds no certificate"),
            (CertificateFiles(good.certificate, str(text)), f"{text}: holds no private key"),
            (
                CertificateFiles(good.certificate, other.key),
                f"{other.key}: is not the key of {good.certificate}",
            ),
        ):
            with self.assertRaisesRegex(ConfigError, error):
                Certificates([files]).load()
        with self.assertRaisesRegex(ConfigError, "text: holds no certificate"):
            Certificates([good], client_ca=str(text)).load()
        block = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n".format("X509 CRL")
        text.write_text(Path(good.certificate).read_text() + block)
        with self.assertRaisesRegex(ConfigError, "text: .*PEM"):
            Certificates([good], client_ca=str(text)).load()

    def test_keys_of_session_tickets_last_a_day(self) -> None:
        files = self.files("one", "a.example")
        factory = self.serve(files, seconds=self.clock.seconds)
        pem = Path(files.certificate).read_bytes()
        certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        first: Client | None = None
        for wait_s, is_resumed in ((0, False), (CONTEXT_S - 10, True), (20, False)):
            self.clock.advance(wait_s)
            self.certificates.look()
            client = Client(factory)
            client.context.set_max_proto_version(SSL.TLS1_2_VERSION)
            if first is not None:
                client.context, client.session = first.context, first.connection.get_session()
            client.shake_hands()
            # A session that is resumed goes without certificates, which 1.2 sends in the clear.
            self.assertEqual(certificate not in client.received, is_resumed)
            first = first or client
        self.assertEqual(self.warnings(), [])

    def test_expiry_is_known(self) -> None:
        files = self.files("one", "a.example")
        self.serve(files)
        ((path, expires_s),) = self.certificates.expiry().items()
        certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
        self.assertEqual(path, files.certificate)
        self.assertEqual(expires_s, certificate.not_valid_after_utc.timestamp())

    def test_clients_show_a_certificate_where_it_is_asked_for(self) -> None:
        files = self.files("one", "a.example")
        factory = self.serve(files, client_ca=str(self.authority.path))
        stranger = Authority(self.folder, "stranger")
        mine, theirs = self.authority.issue("mine", "x"), stranger.issue("theirs", "x")
        for own, is_let_in in ((mine, True), (theirs, False), (None, False)):
            client = Client(factory)
            if own is not None:
                client.context.use_certificate_file(str(own[0]))
                client.context.use_privatekey_file(str(own[1]))
            before = len(self.built)
            client.shake_hands()  # in TLS 1.3 the client is done before the server judges
            self.assertEqual(len(self.built) - before, int(is_let_in))
