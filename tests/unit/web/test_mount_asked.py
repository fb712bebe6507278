"""Both ends of a request, in other frameworks' words."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.web import Request
from pelotontx.web.mount.asked import client_address, client_of, origin_form, server_of
from pelotontx.wire.forwarded import Proxies
from pelotontx.wire.http import HeadLimits, read_head, read_target


class Channel:
    """A connection from somewhere."""

    def __init__(self, peer: Any, *, is_secure: bool = False) -> None:
        self.peer = peer
        self.is_secure = is_secure


def asked(peer: Any = None, target: str = "/", host: str = "a", **fields: str) -> Request:
    lines = [f"Host: {host}"] if host else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    version = "1.1" if host else "1.0"
    raw = "\r\n".join([f"GET {target} HTTP/{version}", *lines, "", ""]).encode()
    framing = read_head(raw, b"GET", raw.split(b" ", 2)[2], HeadLimits())
    parts = read_target("GET", target.encode(), framing.host)
    kind = type("Proxied", (Request,), {"__slots__": (), "proxies": Proxies(("10.0.0.0/8",))})
    found: Request = kind(Channel(peer), "GET", parts, framing, raw)
    return found


class AskedTests(SynchronousTestCase):
    def test_the_server_is_what_the_client_calls_it(self) -> None:
        for host, server in (
            ("example.com", ("example.com", 80)),
            ("example.com:8080", ("example.com", 8080)),
            ("[::1]", ("::1", 80)),
            ("[::1]:81", ("::1", 81)),
            ("", ("localhost", 80)),
        ):
            self.assertEqual(server_of(asked(host=host)), server)
        proxied = asked(IPv4Address("TCP", "10.0.0.1", 1), X_Forwarded_Proto="https")
        self.assertEqual(server_of(proxied), ("a", 443))

    def test_a_client_has_its_own_address(self) -> None:
        for peer in (IPv4Address("TCP", "192.0.2.1", 7), IPv6Address("TCP", "2001:db8::1", 7)):
            request = asked(peer)
            self.assertEqual(client_of(request), (peer.host, 7))
            self.assertIs(client_address(request), peer)

    def test_or_the_one_that_a_trusted_proxy_tells(self) -> None:
        proxy = IPv4Address("TCP", "10.0.0.1", 7)
        for told in ("192.0.2.1", "2001:db8::1"):
            request = asked(proxy, X_Forwarded_For=told)
            self.assertEqual(client_of(request), (told, 0))
            kind = IPv6Address if ":" in told else IPv4Address
            self.assertEqual(client_address(request), kind("TCP", told, 0))

    def test_a_unix_socket_has_none(self) -> None:
        peer = UNIXAddress(None)
        self.assertEqual(client_of(asked(peer)), ("", 0))
        self.assertIs(client_address(asked(peer)), peer)

    def test_a_target_loses_its_host(self) -> None:
        for target, form in (
            ("/a%20b?c", b"/a%20b?c"),
            ("http://a/b?c", b"/b?c"),
            ("http://a", b"/"),
        ):
            self.assertEqual(origin_form(asked(target=target)), form)
