"""Requests for other hosts than ours; over connections in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address

from pelotontx.net.http import HTTPFactory
from pelotontx.web import App, Request
from pelotontx.web.hosts import KnownHosts
from pelotontx.wire.forwarded import Proxies
from tests.support.http2_peer import HTTP2Peer
from tests.support.http_case import HTTPCase

OURS = ("shop.example", "*.shop.example", "[::1]")


class Case(HTTPCase):
    kind: type[Request] = Request

    def setUp(self) -> None:
        super().setUp()
        app = App()
        app.get("/.*")(lambda request: request.url)
        app.post("/")(lambda _: "taken")
        self.factory = HTTPFactory(
            KnownHosts(app.handle, OURS, open_path="/health").handle,
            wheel=self.wheel,
            clock=self.clock,
            request_class=self.kind,
            wall_clock=self.clock.seconds,
        )

    def status(self, host: str, path: str = "/", **fields: str) -> int:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        answer, _ = self.exchange("\r\n".join([*lines, "", ""]).encode())
        return int(answer[9:12])


class KnownHostsTests(Case):
    def test_our_names_are_answered_at_any_port_in_any_case(self) -> None:
        for host in (
            "shop.example",
            "Shop.Example",
            "shop.example.",
            "shop.example:8080",
            "www.shop.example",
            "a.b.shop.example:1",
            "[::1]:8080",
        ):
            self.assertEqual(self.status(host), 200, host)

    def test_others_are_misdirected(self) -> None:
        for host in (
            "",
            "evil.example",
            "evilshop.example",
            ".shop.example",
            "shop.example.evil.example",
            "evil.example%2f.shop.example",
            "shop-example",
            "10.0.0.7:8080",
            "::1",
        ):
            self.assertIn(self.status(host), (400, 421), host)
        self.assertEqual(self.status("evil.example"), 421)
        answer, _ = self.exchange(b"GET / HTTP/1.0\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 421 Misdirected Request\r\n"))

    def test_the_open_path_is_for_everybody(self) -> None:
        for path, status in (
            ("/health", 200),
            ("/health/live", 200),
            ("/healthy", 421),
            ("/", 421),
        ):
            self.assertEqual(self.status("10.0.0.7", path), status, path)

    def test_the_connection_goes_on(self) -> None:
        wrong = b"POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\nabc"
        right = b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\n\r\nabc"
        answers, _ = self.exchange(wrong + right)
        self.assertEqual(answers.count(b"HTTP/1.1 421 "), 1)
        self.assertTrue(answers.endswith(b"taken"))

    def test_http_2_is_asked_for_its_authority(self) -> None:
        peer = HTTP2Peer(self.factory, self.clock).begin()
        pairs = [(":method", "GET"), (":scheme", "https"), (":path", "/")]
        for host, status in (("shop.example", 200), ("evil.example", 421)):
            stream = peer.send([*pairs, (":authority", host)])
            self.assertEqual(peer.answers[stream].status, status)


class ForwardedTests(Case):
    proxies = Proxies(["10.0.0.0/8"])
    kind = type("Behind", (Request,), {"__slots__": (), "proxies": proxies})

    def connect(self) -> Any:
        connection, wire = super().connect()
        connection.peer = IPv4Address("TCP", self.address, 1)
        return connection, wire

    def test_behind_a_proxy_the_host_that_it_tells_counts(self) -> None:
        for address, host, told, status in (
            ("10.1.1.1", "inside:8080", "shop.example", 200),
            ("10.1.1.1", "shop.example", "evil.example", 421),
            ("192.0.2.7", "evil.example", "shop.example", 421),
        ):
            self.address = address
            self.assertEqual(self.status(host, X_Forwarded_Host=told), status)
