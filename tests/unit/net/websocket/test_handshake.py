from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from pelotontx.net.websocket import origin_allowed
from tests.support.websocket_peer import (
    FIELDS,
    PING,
    TEXT,
    ServerTestCase,
    Transport,
    frame,
    request,
)


class HandshakeTests(ServerTestCase):
    def answer(self, **changes: str | None) -> tuple[int, bytes]:
        """Status and body of what an opening request gets."""
        self.connect()
        self.receive(request(**changes))
        head, _, body = self.transport.take().partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        if status != 101:
            self.assertIn(b"\r\nConnection: close\r\n", head)
            self.assertIn(b"\r\nContent-Length: %d" % len(body), head)
            self.assertIsDropped()
        self.head = head
        return status, body

    def test_a_request_is_answered_with_101(self) -> None:
        self.connect()
        self.receive(request())
        self.assertEqual(
            self.transport.take(),
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Server: pelotontx\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: juggler.0\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )

    def test_no_subprotocol_is_named_when_none_is_chosen(self) -> None:
        self.make(accept=lambda handshake: (None, self.converse))
        self.assertEqual(self.answer(Sec_WebSocket_Protocol=None), (101, b""))
        self.assertNotIn(b"Sec-WebSocket-Protocol", self.head)

    def test_extensions_are_declined(self) -> None:
        self.answer(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
        self.assertNotIn(b"Sec-WebSocket-Extensions", self.head)

    def test_accept_is_told_fields_offers_and_peer(self) -> None:
        self.answer(Cookie="a=\xc3\x85 juggler-allowed-messages: call", X_One="1")
        handshake = self.handshakes[0]
        self.assertEqual(handshake.subprotocols, ["other", "juggler.0"])
        self.assertEqual(handshake.peer, "tcp4:192.0.2.1:4711")
        self.assertEqual(handshake.headers["x-one"], "1")
        # U+0085 is the end of a line to str.splitlines, but not in HTTP
        self.assertNotIn("juggler-allowed-messages", handshake.headers)

    def test_refusal_of_accept_is_its_status(self) -> None:
        answer = self.answer(Sec_WebSocket_Protocol=None)
        self.assertEqual(answer, (400, b"400 juggler.0 is needed\n"))
        self.assertEqual(self.conversations, [])

    def test_same_origin_is_let_in_and_another_gets_403(self) -> None:
        self.assertEqual(self.answer(Origin="http://server.test")[0], 101)
        for origin in ("http://evil.test", "http://server.test.evil.test", "null", "file://", "x"):
            self.assertEqual(self.answer(Origin=origin)[0], 403, origin)

    def test_secure_server_refuses_the_insecure_page_of_its_own_name(self) -> None:
        for scheme, status in (("http", 403), ("https", 101)):
            self.connect()
            alsoProvides(self.transport, ISSLTransport)
            self.receive(request(Origin=f"{scheme}://server.test"))
            self.assertTrue(self.transport.take().startswith(b"HTTP/1.1 %d " % status))

    def test_another_version_is_426_with_ours(self) -> None:
        for version in ("8", "0", "+13", "1_3", "13, 8", "", None):
            self.assertEqual(self.answer(Sec_WebSocket_Version=version)[0], 426, version)
            self.assertIn(b"\r\nSec-WebSocket-Version: 13\r\n", self.head)

    def test_malformed_requests_are_400(self) -> None:
        key = FIELDS["Sec-WebSocket-Key"]
        for changes in (
            {"line": "POST /ws HTTP/1.1"},
            {"line": "GET /ws HTTP/1.0"},
            {"line": "GET /ws"},
            {"line": ""},
            {"Host": None},
            {"host": "second.test"},
            {"Upgrade": None},
            {"Upgrade": "h2c"},
            {"Connection": "close"},
            {"Sec_WebSocket_Key": None},
            {"Sec_WebSocket_Key": "short=="},
            {"Sec_WebSocket_Key": key[:-1]},
            {"Sec_WebSocket_Key": "*" + key[1:]},
            {"sec_websocket_key": key},
            {"Sec_WebSocket_Protocol": "juggler.0, juggler.0"},
            {"Origin": "http://server.test", "origin": "http://server.test"},
        ):
            self.assertEqual(self.answer(**changes)[0], 400, changes)
        self.assertEqual(self.handshakes, [])

    def test_what_is_not_a_head_is_dropped_when_it_is_too_long(self) -> None:
        self.connect()
        self.receive(b"x" * 10_000)
        self.assertEqual(self.transport.take(), b"")
        self.receive(b"x" * 10_000)
        self.assertTrue(self.transport.take().startswith(b"HTTP/1.1 431 "))
        self.assertIsDropped()

    def test_a_request_in_pieces_is_put_together(self) -> None:
        self.connect()
        data = request() + frame(TEXT, b"hello")
        self.receive(*(data[n : n + 1] for n in range(len(data))))
        self.assertEqual(self.conversations[0].messages, [(TEXT, b"hello")])

    def test_messages_behind_the_request_are_not_lost(self) -> None:
        self.open(more=frame(TEXT, b"one") + frame(PING, b"p") + frame(TEXT, b"two"))
        self.assertEqual(self.messages(), [(TEXT, b"one"), (TEXT, b"two")])

    def test_an_accept_that_fails_is_500_and_logged(self) -> None:
        self.make(accept=lambda handshake: {}["secret"])
        self.assertEqual(self.answer(), (500, b"500 internal error\n"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_subprotocol_that_was_not_offered_is_our_fault(self) -> None:
        self.make(accept=lambda handshake: ("unheard-of", self.converse))
        self.assertEqual(self.answer()[0], 500)
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_a_conversation_that_cannot_begin_is_1011_and_logged(self) -> None:
        self.make(accept=lambda handshake: (None, lambda connection: 1 // 0))
        self.connect()
        self.receive(request() + frame(TEXT, b"hello"))
        self.transport.sent = self.transport.take().partition(b"\r\n\r\n")[2]
        self.assertCloses(1011)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_handshake_that_takes_too_long_is_dropped(self) -> None:
        self.connect()
        self.receive(request()[:-1])
        self.clock.advance(4.9)
        self.assertFalse(self.transport.is_aborted)
        self.clock.advance(0.3)
        self.assertTrue(self.transport.is_aborted)
        self.lose(reason=ConnectionAborted())

    def test_refused_peer_that_does_not_read_is_dropped(self) -> None:
        self.connect()
        self.transport.room = 0
        self.receive(request(Origin="http://evil.test"))
        self.clock.advance(2.2)
        self.assertTrue(self.transport.is_aborted)

    def test_nothing_is_read_after_a_refusal(self) -> None:
        self.answer(Origin="http://evil.test")
        self.receive(request(), b"x" * 100_000)
        self.assertEqual((self.transport.take(), self.connection.data), (b"", b""))

    def test_small_messages_do_not_wait_for_others(self) -> None:
        self.transport = Transport(self.reactor)
        alsoProvides(self.transport, ITCPTransport)
        self.transports.append(self.transport)
        self.transport.protocol = self.factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        self.assertTrue(self.transport.no_delay)

    @given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 60))
    @settings(max_examples=300, deadline=None)
    def test_no_request_whatever_raises(self, junk: bytes, place: int, removed: int) -> None:
        data = request(Origin="http://server.test")
        self.connect()
        self.receive(data[:place] + junk + data[place + removed :])


class OriginTests(SynchronousTestCase):
    def assertAllowed(self, origin: str | None, host: str, *allowed: str) -> None:
        self.assertTrue(origin_allowed(origin, host, allowed), (origin, host))

    def assertRefused(self, origin: str | None, host: str, *allowed: str) -> None:
        self.assertFalse(origin_allowed(origin, host, allowed), (origin, host))

    def test_same_host_and_port(self) -> None:
        for origin, host in (
            ("http://a.test", "a.test"),
            ("http://a.test", "a.test:80"),
            ("http://a.test:80", "a.test"),
            ("https://a.test", "a.test"),
            ("https://a.test", "a.test:443"),
            ("https://a.test:8443", "a.test:8443"),
            ("http://A.Test", "a.test"),
            ("http://a.test", "A.TEST"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("http://[2001:DB8::1]", "[2001:db8::1]"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ):
            self.assertAllowed(origin, host)

    def test_anything_else_is_refused(self) -> None:
        for origin, host in (
            ("http://b.test", "a.test"),
            ("http://a.test.evil.test", "a.test"),
            ("http://evil-a.test", "a.test"),
            ("http://a.test@evil.test", "a.test"),
            ("http://evil.test/a.test", "a.test"),
            ("http://evil.test\\@a.test", "a.test"),
            ("http://a.test/path", "a.test"),
            ("http://a.test", "a.test:8080"),
            ("http://a.test:8080", "a.test"),
            ("https://a.test", "a.test:80"),
            ("http://[::1]", "[::2]"),
            ("http://[::1", "[::1]"),
            ("http://a.test:x", "a.test"),
            ("http://a.test", "a.test:x"),
            ("http://a.test", ""),
            ("http://", ""),
            ("ftp://a.test", "a.test"),
            ("null", "null"),
            ("nonsense", "nonsense"),
        ):
            self.assertRefused(origin, host)

    def test_no_origin_is_no_browser(self) -> None:
        self.assertAllowed(None, "a.test")

    def test_allow_list_is_exact(self) -> None:
        allowed = ("https://b.test", "http://c.test:8080", "capacitor://localhost")
        for origin in ("https://b.test", "https://B.test:443", *allowed[1:]):
            self.assertAllowed(origin, "a.test", *allowed)
        for origin in ("http://b.test", "https://b.test:8443", "https://x.b.test", "capacitor://x"):
            self.assertRefused(origin, "a.test", *allowed)

    def test_null_is_never_allowed(self) -> None:
        self.assertAllowed("http://b.test", "a.test", "*")
        for null in ("null", "NULL"):
            self.assertRefused(null, "a.test", "*", "null")
