"""Connections behind a PROXY header, over transports in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.admission import ADDRESS, Admission
from pelotontx.net.proxy_protocol import ProxyProtocolFactory
from pelotontx.net.wheel import Wheel
from tests.support.http_case import Wire

BALANCER = IPv4Address("TCP", "10.0.0.1", 40000)
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 50321 443\r\n"


class Inner(Protocol):
    data = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.peer = transport.getPeer()

    def dataReceived(self, data: bytes) -> None:
        self.data += data


class ProxyProtocolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.wheel = Wheel(self.clock)
        self.admission = Admission(self.clock.seconds, address_connections_limit=1)
        self.inner: list[Inner] = []
        self.asked: list[IAddress | None] = []
        self.refuses = False
        self.factory = ProxyProtocolFactory(
            self,
            is_trusted=lambda peer: peer != UNTRUSTED,
            admission=self.admission,
            wheel=self.wheel,
        )

    # The factory behind it.

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        self.asked.append(addr)
        if self.refuses:
            return None
        self.inner.append(Inner())
        return self.inner[-1]

    def connect(self, peer: Any = BALANCER) -> Wire:
        wire = Wire(peerAddress=peer)
        protocol = self.factory.buildProtocol(peer)
        assert protocol is not None
        wire.protocol = protocol
        protocol.makeConnection(wire)
        return wire

    def test_the_connection_is_handed_over_with_the_clients_address(self) -> None:
        wire = self.connect()
        wire.protocol.dataReceived(LINE + b"GET")
        (inner,) = self.inner
        self.assertIs(wire.protocol, inner)
        self.assertEqual(inner.peer, IPv4Address("TCP", "192.0.2.7", 50321))
        self.assertEqual(self.asked, [inner.peer])
        self.assertEqual(inner.data, b"GET")
        self.assertEqual(
            (len(self.factory.waiting), self.factory.failed, len(self.wheel)), (0, 0, 0)
        )

    def test_a_header_may_come_byte_by_byte(self) -> None:
        wire = self.connect()
        for byte in LINE:
            self.assertEqual(self.inner, [])
            wire.protocol.dataReceived(bytes([byte]))
        (inner,) = self.inner
        self.assertEqual(inner.data, b"")

    def test_an_ipv6_client_has_an_ipv6_address(self) -> None:
        wire = self.connect()
        wire.protocol.dataReceived(b"PROXY TCP6 2001:db8::7 2001:db8::1 50321 443\r\n")
        self.assertEqual(self.inner[0].peer, IPv6Address("TCP", "2001:db8::7", 50321))

    def test_the_balancers_own_connections_keep_its_address(self) -> None:
        wire = self.connect()
        wire.protocol.dataReceived(b"PROXY UNKNOWN\r\nGET")
        self.assertEqual((self.inner[0].peer, self.inner[0].data), (BALANCER, b"GET"))

    def test_who_may_not_send_a_header_is_not_connected(self) -> None:
        self.assertIsNone(self.factory.buildProtocol(UNTRUSTED))
        self.assertEqual(self.factory.untrusted, 1)
        self.assertEqual(self.inner, [])

    def test_what_is_no_header_ends_the_connection_at_once(self) -> None:
        wire = self.connect()
        wire.protocol.dataReceived(b"G")
        self.assertTrue(wire.aborted)
        self.assertEqual((self.inner, len(self.factory.waiting), len(self.wheel)), ([], 0, 0))
        self.assertEqual((self.factory.failed, self.admission.connections), (1, 0))

    def test_a_header_that_does_not_come_is_not_waited_for(self) -> None:
        wire = self.connect()
        wire.protocol.dataReceived(LINE[:-1])
        self.clock.advance(9.9)
        self.assertFalse(wire.aborted)
        self.clock.advance(0.3)
        self.assertTrue(wire.aborted)
        self.assertEqual(self.admission.connections, 0)

    def test_the_client_counts_and_not_the_balancer(self) -> None:
        balancer, other = self.connect(), self.connect()  # past the limit of an address
        self.assertEqual(self.admission.connections, 2)
        balancer.protocol.dataReceived(LINE)
        other.protocol.dataReceived(LINE)
        self.assertEqual(self.admission.connections, 0)  # what the inner protocols count is theirs
        self.assertEqual(self.admission.refused[ADDRESS], 0)

    def test_a_client_that_is_not_admitted_is_cut_off(self) -> None:
        self.refuses = True
        wire = self.connect()
        wire.protocol.dataReceived(LINE + b"GET")
        self.assertTrue(wire.aborted)
        self.assertEqual(self.admission.connections, 0)

    def test_with_the_server_all_that_wait_end(self) -> None:
        wires = [self.connect(), self.connect(UNIXAddress("/x"))]
        self.factory.abort_all()
        self.assertEqual([wire.aborted for wire in wires], [True, True])
        self.assertEqual((len(self.factory.waiting), len(self.wheel)), (0, 0))


UNTRUSTED = IPv4Address("TCP", "203.0.113.9", 40000)
