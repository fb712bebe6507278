"""What a request tells its handler."""

from __future__ import annotations

import encodings
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError
from pelotontx.web import HTTPError, Request
from pelotontx.wire.forwarded import Proxies
from tests.support.app_case import arriving, request

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class RequestTests(SynchronousTestCase):
    def test_query_is_decoded(self) -> None:
        asked = request("GET", "/?a=1&a=2&b=%C3%A9&c")
        self.assertEqual(asked.query, {"a": ["1", "2"], "b": ["é"], "c": [""]})
        self.assertIs(asked.query, asked.query)
        self.assertEqual(asked.argument("a"), "2")
        self.assertEqual(asked.argument("z", "none"), "none")

    def test_query_is_bounded(self) -> None:
        with self.assertRaises(HTTPError) as caught:
            _ = request("GET", "/?" + "a&" * 1001).query
        self.assertEqual(caught.exception.status, 400)

    def test_json_is_decoded_and_checked(self) -> None:
        asked = request("POST", "/", body=b'{"a": 1}')
        self.assertEqual(asked.json(), {"a": 1})
        self.assertEqual(asked.json(dict[str, int]), {"a": 1})
        for broken in (b"{", b"\xff", b"", b"[" * 100_000, b"9" * 5000):
            with self.assertRaises(HTTPError) as caught:
                request("POST", "/", body=broken).json()
            self.assertEqual(caught.exception.status, 400)
        with self.assertRaises(HTTPError):
            asked.json(list[int])

    def test_cookies_and_headers_are_read(self) -> None:
        asked = request("GET", "/", {"Cookie": 'a=1; b="x y"; =bad; a=2', "X-Y": "z"})
        self.assertEqual(asked.cookies, {"a": "1", "b": "x y"})
        self.assertEqual((asked.header("x-y"), asked.header("q", "-")), ("z", "-"))
        self.assertEqual((asked.client, asked.is_secure), ("", False))

    def test_cookies_are_read_once(self) -> None:
        asked = request("GET", "/", {"Cookie": "a=1"})
        self.assertIs(asked.cookies, asked.cookies)

    def test_form_is_decoded(self) -> None:
        asked = request("POST", "/", FORM, b"a=1&a=2&b=%C3%A9+x&c")
        self.assertEqual(asked.form, {"a": ["1", "2"], "b": ["é x"], "c": [""]})
        self.assertEqual((asked.form_field("a"), asked.form_field("z", "-")), ("2", "-"))
        latin = {"Content-Type": FORM["Content-Type"] + "; charset=ISO-8859-1"}
        self.assertEqual(request("POST", "/", latin, b"b=%E9").form, {"b": ["é"]})
        self.assertEqual(request("POST", "/").form, {})

    def test_form_of_another_type_or_size_is_refused(self) -> None:
        for headers, body, status in (
            ({"Content-Type": "multipart/form-data; boundary=x"}, b"a=1", 415),
            ({}, b"a=1", 415),
            (FORM, b"a&" * 1001, 400),
            ({"Content-Type": FORM["Content-Type"] + "; charset=klingon"}, b"a", 415),
        ):
            with self.assertRaises(HTTPError) as caught:
                _ = request("POST", "/", headers, body).form
            self.assertEqual(caught.exception.status, status)

    def test_body_that_is_still_to_come_is_not_taken_for_an_empty_one(self) -> None:
        asked, body = arriving("POST", "/", length=2)
        for look in (lambda: asked.text, lambda: asked.form, asked.json):
            self.assertRaises(LocalProtocolError, look)
        body.feed(b"17", is_last=True)
        self.assertRaises(LocalProtocolError, asked.json)
        asked.body = b"17"
        self.assertEqual(asked.json(), 17)

    def test_text_is_in_its_charset(self) -> None:
        asked = request("POST", "/", {"Content-Type": 'Text/Plain; charset="Latin-1"'}, b"\xe9")
        self.assertEqual(
            (asked.content_type, asked.charset, asked.text), ("text/plain", "latin-1", "é")
        )
        self.assertEqual(request("POST", "/").charset, "utf-8")
        for headers, status in (({}, 400), ({"Content-Type": "a/b; charset=klingon"}, 415)):
            with self.assertRaises(HTTPError) as caught:
                _ = request("POST", "/", headers, b"\xff").text
            self.assertEqual(caught.exception.status, status)

    def test_codecs_that_are_no_charsets_are_refused(self) -> None:
        for charset in ("hex", "punycode", "idna", "unicode_escape", "utf7", "undefined", "mbcs"):
            with self.assertRaises(HTTPError) as caught:
                _ = request("POST", "/", {"Content-Type": f"a/b; charset={charset}"}, b"ff").text
            self.assertEqual(caught.exception.status, 415)

    def test_charset_of_any_spelling_is_found(self) -> None:
        for charset, body, told in (
            ("windows-1252", b"\x80", "€"),
            ("Shift_JIS", b"\x83\x65", "テ"),
            ("iso-8859-15", b"\xa4", "€"),
            ("KOI8-U", b"\xa4", "є"),
        ):
            with self.subTest(charset):
                headers = {"Content-Type": f"a/b;q=1; Charset = {charset}"}
                self.assertEqual(request("POST", "/", headers, body).text, told)

    def test_names_of_charsets_that_clients_make_up_are_not_kept(self) -> None:
        for charset in ("made-up", "utf...8", "u-t-f-8"):
            with self.assertRaises(HTTPError):
                _ = request("POST", "/", {"Content-Type": f"a/b; charset={charset}"}, b"a").text
            self.assertNotIn(charset, encodings._cache)  # type: ignore[attr-defined]
        _ = request("POST", "/", {"Content-Type": "a/b; charset=utf----8"}, b"a").text
        self.assertNotIn("utf----8", encodings._cache)  # type: ignore[attr-defined]


class OriginTests(SynchronousTestCase):
    def asked(self, kind: type[Request], peer: Any, **headers: str) -> Request:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = request("GET", "/p?q", {"Host": "inside:8080", **fields}, kind=kind)
        asked._channel = Connection(peer)
        return asked

    def behind(self, *networks: str, header: str = "x-forwarded") -> type[Request]:
        proxies = Proxies(networks, header=header)
        return type("Behind", (Request,), {"__slots__": (), "proxies": proxies})

    def test_nobody_is_trusted_by_default(self) -> None:
        asked = self.asked(
            Request,
            IPv4Address("TCP", "127.0.0.1", 1),
            X_Forwarded_For="1.2.3.4",
            X_Forwarded_Proto="https",
            X_Forwarded_Host="evil.example",
            Forwarded="for=1.2.3.4",
        )
        self.assertEqual((asked.client, asked.is_secure), ("127.0.0.1", False))
        self.assertEqual(asked.url, "http://inside:8080/p?q")
        self.assertEqual(asked.absolute("/"), "http://inside:8080/")

    def test_trusted_proxy_speaks_for_its_client(self) -> None:
        kind = self.behind("10.0.0.0/8")
        headers = {
            "X_Forwarded_For": "1.2.3.4",
            "X_Forwarded_Proto": "https",
            "X_Forwarded_Host": "shop.example",
        }
        asked = self.asked(kind, IPv4Address("TCP", "10.1.2.3", 1), **headers)
        self.assertEqual((asked.client, asked.scheme, asked.is_secure), ("1.2.3.4", "https", True))
        self.assertEqual((asked.host, asked.url), ("shop.example", "https://shop.example/p?q"))
        self.assertEqual(asked.absolute("/reset?t=1"), "https://shop.example/reset?t=1")
        stranger = self.asked(kind, IPv4Address("TCP", "11.0.0.1", 1), **headers)
        self.assertEqual((stranger.client, stranger.host), ("11.0.0.1", "inside:8080"))

    def test_unix_sockets_can_be_trusted(self) -> None:
        kind = self.behind("unix", header="forwarded")
        asked = self.asked(kind, UNIXAddress(None), Forwarded='for="[2001:db8::1]:7";proto=https')
        self.assertEqual((asked.client, asked.scheme), ("2001:db8::1", "https"))

    def test_url_of_an_absolute_target(self) -> None:
        asked = request("GET", "http://a/x/y?z")
        self.assertEqual(asked.url, "http://a/x/y?z")


class Connection:
    """As much of one as a request looks at."""

    is_secure = False

    def __init__(self, peer: Any) -> None:
        self.peer = peer
