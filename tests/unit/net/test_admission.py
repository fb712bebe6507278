from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.admission import ADDRESS, PROCESS, RATE, Admission
from tests.support.websocket_peer import Reactor, Transport


def at(host: str) -> Any:
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, 4711)


class From(Transport):
    """A transport whose peer is at `host`."""

    def __init__(self, host: str) -> None:
        super().__init__(Reactor())
        self.host = host

    def getPeer(self) -> Any:
        return at(self.host)


class AdmissionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.make()

    def make(self, **limits: Any) -> None:
        self.admission = Admission(self.clock.seconds, **limits)

    def connect(self, host: str) -> bool:
        """What a listener does with a new connection; whether it may stay."""
        if not self.admission.admits(at(host)):
            return False
        self.admission.enter(From(host))
        return True

    def connected(self, *hosts: str) -> list[bool]:
        return [self.connect(host) for host in hosts]

    def assertRefused(self, **expected: int) -> None:
        none = {PROCESS: 0, ADDRESS: 0, RATE: 0}
        self.assertEqual(dict(self.admission.refused), none | expected)

    def test_without_limits_everybody_may(self) -> None:
        self.assertEqual(self.connected(*["192.0.2.1"] * 1000), [True] * 1000)
        self.assertEqual(self.admission.connections, 1000)
        self.assertRefused()

    def test_the_process_has_a_limit_which_holds_for_all(self) -> None:
        self.make(connections_limit=3, trusted=["127.0.0.0/8"])
        hosts = ("192.0.2.1", "127.0.0.1", "2001:db8::1", "192.0.2.2", "127.0.0.1")
        self.assertEqual(self.connected(*hosts), [True, True, True, False, False])
        self.assertFalse(self.admission.admits(UNIXAddress("/run/x")))
        self.assertRefused(process=3)

    def test_room_is_used_again(self) -> None:
        self.make(connections_limit=1, address_connections_limit=1)
        for _ in range(3):
            self.assertEqual(self.connected("192.0.2.1", "192.0.2.1"), [True, False])
            self.admission.leave(From("192.0.2.1"))

    def test_an_address_has_a_limit_of_its_own(self) -> None:
        self.make(address_connections_limit=2)
        hosts = ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
        self.assertEqual(self.connected(*hosts), [True, True, False, True])
        self.assertRefused(address=1)

    def test_ipv6_is_counted_by_64_bits(self) -> None:
        self.make(address_connections_limit=1)
        hosts = ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1", "fe80::1%eth0")
        self.assertEqual(self.connected(*hosts), [True, False, True, True])

    def test_an_ipv4_address_in_ipv6_is_that_address(self) -> None:
        self.make(address_connections_limit=1, trusted=["192.0.2.9"])
        hosts = ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2", "::ffff:192.0.2.9")
        self.assertEqual(self.connected(*hosts), [True, False, True, True])

    def test_a_rate_of_new_connections_an_address(self) -> None:
        self.make(address_rate=2)
        hosts = ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
        self.assertEqual(self.connected(*hosts), [True, True, False, True])
        self.clock.advance(1)
        self.assertEqual(self.connected(*hosts), [True, True, False, True])
        self.assertRefused(rate=2)

    def test_attempts_that_were_refused_count(self) -> None:
        self.make(address_rate=2, address_connections_limit=1)
        self.assertEqual(self.connected(*["192.0.2.1"] * 4), [True, False, False, False])
        self.assertRefused(address=1, rate=2)

    def test_trusted_networks_and_unix_sockets_have_none(self) -> None:
        self.make(address_rate=1, address_connections_limit=1, trusted=["10.0.0.0/8", "::1"])
        for host in ("10.1.2.3", "::1"):
            self.assertEqual(self.connected(*[host] * 3), [True] * 3)
        for _ in range(3):
            self.assertTrue(self.admission.admits(UNIXAddress("/run/x")))
            self.assertTrue(self.admission.admits(None))

    def test_nothing_is_kept_of_addresses_that_are_gone(self) -> None:
        self.make(address_rate=5, address_connections_limit=5)
        hosts = [f"192.0.2.{n}" for n in range(200)]
        self.connected(*hosts)
        for host in hosts:
            self.admission.leave(From(host))
        self.clock.advance(1)
        self.connect("192.0.2.1")
        self.assertEqual(len(self.admission._open) + len(self.admission._attempts), 2)
        self.assertEqual(self.admission.connections, 1)

    def test_a_flood_is_told_once_a_second(self) -> None:
        self.make(connections_limit=0)
        with capturedLogs() as events:
            self.connected(*["192.0.2.1"] * 100)
            self.clock.advance(1)
            self.connected("192.0.2.1")
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn] * 2)
        self.assertEqual(events[0]["limit"], PROCESS)
