"""Requests that could be understood in two ways: none is accepted, however it is cut."""

from __future__ import annotations

from tests.support.http_case import GET, HTTPCase


def _get(
    extra: bytes = b"", line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a\r\n"
) -> bytes:
    return line + b"\r\n" + host + extra + b"\r\n"


def _post(extra: bytes, body: bytes = b"") -> bytes:
    return _get(extra, b"POST / HTTP/1.1") + body


_CHUNKED = b"Transfer-Encoding: chunked\r\n"

#: What a peer may send to be understood in two ways, and the status that answers it.
HOSTILE: list[tuple[str, bytes, int]] = [
    ("no host", _get(host=b""), 400),
    ("two hosts", _get(b"Host: b\r\n"), 400),
    ("two equal hosts", _get(b"Host: a\r\n"), 400),
    ("two hosts in 1.0", _get(b"Host: b\r\n", b"GET / HTTP/1.0"), 400),
    ("empty host", _get(host=b"Host:\r\n"), 400),
    ("host with user", _get(host=b"Host: u@a\r\n"), 400),
    ("host with path", _get(host=b"Host: a/b\r\n"), 400),
    ("host with space", _get(host=b"Host: a b\r\n"), 400),
    ("host with comma", _get(host=b"Host: a,b\r\n"), 400),
    ("host with bad port", _get(host=b"Host: a:80x\r\n"), 400),
    ("host with long port", _get(host=b"Host: a:123456\r\n"), 400),
    ("host with open bracket", _get(host=b"Host: [::1\r\n"), 400),
    ("host with bad escape", _get(host=b"Host: a%2\r\n"), 400),
    ("malformed host in 1.0", _get(host=b"Host: a b\r\n", line=b"GET / HTTP/1.0"), 400),
    ("target for another host", _get(line=b"GET http://b/ HTTP/1.1"), 400),
    ("length and chunked", _post(b"Content-Length: 3\r\n" + _CHUNKED, b"0\r\n\r\n"), 400),
    ("chunked and length", _post(_CHUNKED + b"Content-Length: 3\r\n", b"0\r\n\r\n"), 400),
    ("two lengths", _post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"), 400),
    ("two equal lengths", _post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    ("list of lengths", _post(b"Content-Length: 3, 3\r\n", b"abc"), 400),
    ("negative length", _post(b"Content-Length: -1\r\n"), 400),
    ("signed length", _post(b"Content-Length: +3\r\n", b"abc"), 400),
    ("hexadecimal length", _post(b"Content-Length: 0x3\r\n", b"abc"), 400),
    ("fractional length", _post(b"Content-Length: 3.0\r\n", b"abc"), 400),
    ("length with space", _post(b"Content-Length: 3 0\r\n", b"abc"), 400),
    ("empty length", _post(b"Content-Length:\r\n"), 400),
    ("length past 64 bits", _post(b"Content-Length: 18446744073709551619\r\n", b"abc"), 400),
    ("length with underscore", _post(b"Content-Length: 1_0\r\n", b"0123456789"), 400),
    ("unknown coding", _post(b"Transfer-Encoding: gzip\r\n"), 400),
    ("coding before chunked", _post(b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    ("chunked before coding", _post(b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    ("identity", _post(b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n", b"abc"), 400),
    ("chunked twice", _post(_CHUNKED + _CHUNKED, b"0\r\n\r\n"), 400),
    ("chunked twice in a list", _post(b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    ("almost chunked", _post(b"Transfer-Encoding: xchunked\r\n"), 400),
    ("quoted chunked", _post(b'Transfer-Encoding: "chunked"\r\n'), 400),
    ("chunked after vertical tab", _post(b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    ("empty coding", _post(b"Transfer-Encoding:\r\n"), 400),
    ("chunked in 1.0", _get(_CHUNKED, b"POST / HTTP/1.0"), 400),
    ("coding with space before colon", _post(b"Transfer-Encoding : chunked\r\n"), 400),
    ("length with space before colon", _post(b"Content-Length : 3\r\n", b"abc"), 400),
    ("folded field", _get(b"X: a\r\n b\r\n"), 400),
    ("folded coding", _post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    ("space before first field", _get(host=b" Host: a\r\n"), 400),
    ("field without colon", _get(b"X\r\n"), 400),
    ("field without name", _get(b": x\r\n"), 400),
    ("space in name", _get(b"X Y: z\r\n"), 400),
    ("control character in name", _get(b"X\x01: z\r\n"), 400),
    ("latin-1 in name", _get(b"X\xe9: z\r\n"), 400),
    ("NUL in value", _get(b"X: a\x00b\r\n"), 400),
    ("control character in value", _get(b"X: a\x08b\r\n"), 400),
    ("DEL in value", _get(b"X: a\x7f\r\n"), 400),
    ("bare CR in value", _get(b"X: a\rY: b\r\n"), 400),
    ("bare LF in value", _get(b"X: a\nY: b\r\n"), 400),
    ("bare LF everywhere", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ("bare LF after line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    ("bare CR after line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    ("two empty lines first", b"\r\n\r\n" + _get(), 400),
    ("no target", _get(line=b"GET HTTP/1.1"), 400),
    ("no version", _get(line=b"GET /"), 400),
    ("two spaces", _get(line=b"GET  / HTTP/1.1"), 400),
    ("two spaces before version", _get(line=b"GET /  HTTP/1.1"), 400),
    ("space in target", _get(line=b"GET /a b HTTP/1.1"), 400),
    ("tab in request line", _get(line=b"GET\t/ HTTP/1.1"), 400),
    ("tab in target", _get(line=b"GET /\ta HTTP/1.1"), 400),
    ("NUL in target", _get(line=b"GET /\x00 HTTP/1.1"), 400),
    ("control character in target", _get(line=b"GET /\x1b HTTP/1.1"), 400),
    ("DEL in target", _get(line=b"GET /\x7f HTTP/1.1"), 400),
    ("eight bits in target", _get(line=b"GET /\xff HTTP/1.1"), 400),
    ("fragment", _get(line=b"GET /#a HTTP/1.1"), 400),
    ("relative target", _get(line=b"GET a HTTP/1.1"), 400),
    ("star for GET", _get(line=b"GET * HTTP/1.1"), 400),
    ("escaped NUL", _get(line=b"GET /%00 HTTP/1.1"), 400),
    ("escaped CR LF", _get(line=b"GET /%0d%0a HTTP/1.1"), 400),
    ("broken escape", _get(line=b"GET /%zz HTTP/1.1"), 400),
    ("cut escape", _get(line=b"GET /%a HTTP/1.1"), 400),
    ("overlong UTF-8", _get(line=b"GET /%c0%ae HTTP/1.1"), 400),
    ("target with user", _get(line=b"GET http://u@a/ HTTP/1.1"), 400),
    ("other scheme", _get(line=b"GET ftp://a/ HTTP/1.1"), 400),
    ("lower-case method", _get(line=b"get / HTTP/1.1"), 400),
    ("unknown method", _get(line=b"BREW / HTTP/1.1"), 501),
    ("CONNECT", _get(line=b"CONNECT a:80 HTTP/1.1"), 501),
    ("method with control character", _get(line=b"G\x01T / HTTP/1.1"), 400),
    ("lower-case version", _get(line=b"GET / http/1.1"), 400),
    ("version 0.9", _get(line=b"GET / HTTP/0.9"), 505),
    ("version 1.2", _get(line=b"GET / HTTP/1.2"), 505),
    ("version 2.0", _get(line=b"GET / HTTP/2.0"), 505),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("long version", _get(line=b"GET / HTTP/1.10"), 400),
    ("no minor version", _get(line=b"GET / HTTP/1"), 400),
    ("space after version", _get(line=b"GET / HTTP/1.1 "), 400),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("other expectation", _get(b"Expect: miracles\r\n"), 417),
    ("long line", _get(line=b"GET /" + b"a" * 8190 + b" HTTP/1.1"), 414),
    ("endless line", b"GET /" + b"a" * 9000, 414),
    ("long field", _get(b"X: " + b"a" * 8200 + b"\r\n"), 431),
    ("long head", _get((b"X: " + b"a" * 4000 + b"\r\n") * 5), 431),
    ("endless head", b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 4000, 431),
    ("many fields", _get(b"X: a\r\n" * 100), 431),
    ("long body", _post(b"Content-Length: 1048577\r\n"), 413),
    ("long chunk", _post(_CHUNKED, b"100001\r\n" + b"x" * 0x100001), 413),
    ("chunk without size", _post(_CHUNKED, b"\r\nabc\r\n"), 400),
    ("chunk with signed size", _post(_CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk with prefixed size", _post(_CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk with space before size", _post(_CHUNKED, b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk with space after size", _post(_CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk past 64 bits", _post(_CHUNKED, b"10000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    ("chunk with bare LF", _post(_CHUNKED, b"3\nabc\r\n0\r\n\r\n"), 400),
    ("chunk with bare LF in extension", _post(_CHUNKED, b"3;x\nabc\r\n0\r\n\r\n"), 400),
    ("chunk that is too long", _post(_CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    ("chunk without its end", _post(_CHUNKED, b"3\r\nabc0\r\n\r\n"), 400),
    ("chunk ended by LF", _post(_CHUNKED, b"3\r\nabc\n0\r\n\r\n"), 400),
    ("endless extension", _post(_CHUNKED, b"3;" + b"x" * 300), 400),
    ("trailer without colon", _post(_CHUNKED, b"0\r\nabc\r\n\r\n"), 400),
    ("trailer with NUL", _post(_CHUNKED, b"0\r\na: \x00\r\n\r\n"), 400),
    ("endless trailers", _post(_CHUNKED, b"0\r\n" + b"a: b\r\n" * 1000), 400),
]


class HostileTests(HTTPCase):
    def check(self, name: str, raw: bytes, status: int, step: int) -> None:
        connection, wire = self.connect()
        for position in range(0, len(raw), step):
            connection.dataReceived(raw[position : position + step])
        connection.dataReceived(GET)  # must not be answered
        answer = wire.taken()
        self.assertEqual(answer[9:12], b"%d" % status, (name, answer))
        self.assertEqual(answer.count(b"Server: "), 1, name)
        self.assertIn(b"Connection: close\r\n", answer, name)
        self.assertTrue(wire.ended, name)
        self.assertEqual(self.requests, [], name)

    def test_no_ambiguous_request_is_accepted(self) -> None:
        self.assertGreaterEqual(len(HOSTILE), 60)
        for name, raw, status in HOSTILE:
            self.check(name, raw, status, len(raw))

    def test_nor_byte_by_byte(self) -> None:
        for name, raw, status in HOSTILE:
            if len(raw) < 2000:
                self.check(name, raw, status, 1)

    def test_nor_behind_a_good_request_with_the_same_fields(self) -> None:
        for name, raw, status in HOSTILE:
            connection, wire = self.connect()
            connection.dataReceived(GET)
            wire.taken()
            connection.dataReceived(raw)
            self.assertEqual(wire.taken()[9:12], b"%d" % status, name)
            self.assertEqual(len(self.requests), 1, name)
            self.requests.clear()

    def test_good_requests_after_bad_ones_are_judged_afresh(self) -> None:
        for _, raw, _ in HOSTILE:
            self.exchange(raw)
            answer, _ = self.exchange(GET)
            self.assertEqual(answer[9:12], b"200")

    def test_unusual_but_clear_requests_are_accepted(self) -> None:
        for raw in (
            b"\r\n" + GET,
            _get(line=b"GET http://a/b HTTP/1.1"),
            _get(line=b"GET http://A HTTP/1.1"),
            _get(line=b"OPTIONS * HTTP/1.1"),
            _get(host=b"hOsT:\t[::1]:8080 \r\n"),
            _get(host=b"Host: a:\r\n"),
            _get(host=b"", line=b"GET / HTTP/1.0"),
            _get(b"X:\r\nX: \xe9\ta\r\n"),
            _get(b"X: a\r\n" * 99),
            _get(b"Connection: \r\n"),
            _post(b"Content-Length: 003\r\n", b"abc"),
            _post(b"Transfer-Encoding: Chunked\r\n", b"03 ;a=b\r\nabc\r\n0\r\n\r\n"),
            _get(line=b"GET /a//b/../c?%zz#".replace(b"#", b"") + b" HTTP/1.1"),
            _get(line=b"GET /" + b"a" * 8170 + b" HTTP/1.1"),
        ):
            answer, wire = self.exchange(raw)
            self.assertEqual(answer[9:12], b"200", raw[:80])
            self.assertEqual(len(self.requests), 1)
            self.assertTrue(b"HTTP/1.0" in raw or not wire.ended, raw[:80])
            self.requests.clear()
