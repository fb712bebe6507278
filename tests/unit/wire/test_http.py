"""Heads, framing and chunks, without a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.errors import LocalProtocolError
from pelotontx.wire.http import (
    CHUNKED,
    ChunkedBody,
    HeadLimits,
    RefusedRequest,
    SizedBody,
    read_head,
    read_target,
    response_field,
    split_fields,
    status_line,
)


def framing(head: bytes) -> object:
    method, _, rest = head.split(b" ", 2)
    return read_head(head, method, rest, HeadLimits())


class TestHead:
    def test_what_the_fields_say(self) -> None:
        read = framing(
            b"POST / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 7\r\nExpect: 100-Continue\r\n"
            b"Connection: x, Upgrade\r\nConnection: Close\r\nUpgrade: WebSocket\r\n\r\n"
        )
        assert read == ("1.1", b"a:1", 7, False, True, b"websocket")
        assert framing(b"GET / HTTP/1.0\r\n\r\n") == ("1.0", b"", 0, False, False, b"")
        chunked = framing(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:chunked\r\n\r\n")
        assert chunked == ("1.1", b"a", CHUNKED, True, False, b"")

    def test_upgrade_counts_only_when_connection_names_it(self) -> None:
        read = framing(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n")
        assert read == ("1.1", b"a", 0, True, False, b"")

    def test_field_names_inside_of_values_mean_nothing(self) -> None:
        read = framing(b"GET / HTTP/1.1\r\nHost: a\r\nX: host: b content-length: 5\r\n\r\n")
        assert read == ("1.1", b"a", 0, True, False, b"")

    @given(st.binary(max_size=60))
    def test_nothing_but_refusal_comes_of_rubbish(self, rubbish: bytes) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n" + rubbish + b"\r\n\r\n"
        if head.index(b"\r\n\r\n") + 4 != len(head):
            return  # not one head
        try:
            framing(head)
        except RefusedRequest as refused:
            assert refused.status in (400, 417, 501)  # noqa: PT017

    def test_split_fields_keeps_order_and_strips(self) -> None:
        head = b"GET / HTTP/1.1\r\nA: 1\r\nb:\t2 \r\nA:\r\n\r\n"
        assert split_fields(head) == [("a", "1"), ("b", "2"), ("a", "")]


class TestTarget:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            (b"/", ("/", "/", "")),
            (b"/a?b?c", ("/a?b?c", "/a", "b?c")),
            (b"/a%20b%2F?%", ("/a%20b%2F?%", "/a b/", "%")),
            (b"http://h/x?y", ("http://h/x?y", "/x", "y")),
            (b"http://H", ("http://H", "/", "")),
            (b"//a", ("//a", "//a", "")),
        ],
    )
    def test_target_is_split(self, target: bytes, expected: tuple[str, str, str]) -> None:
        assert read_target("GET", target, b"h") == expected

    @pytest.mark.parametrize("target", [b"/\xc3\xa9", b"a", b"*", b"/%e9", b"/#", b"http://i/"])
    def test_odd_targets_are_refused(self, target: bytes) -> None:
        with pytest.raises(RefusedRequest) as caught:
            read_target("GET", target, b"h")
        assert caught.value.status == 400


class TestBodies:
    encoded = b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n000\r\nT: x\r\n\r\nrest"

    def test_every_split_of_a_chunked_body(self) -> None:
        for first in range(len(self.encoded)):
            for second in range(first, len(self.encoded)):
                body = ChunkedBody()
                pieces: list[bytes] = []
                rest = b""
                parts = self.encoded[:first], self.encoded[first:second], self.encoded[second:]
                for part in parts:
                    if body.complete:
                        rest += part
                        continue
                    some, rest = body.feed(part)
                    pieces += some
                assert b"".join(pieces) == b"abc0123456789"
                assert rest == b"rest"

    @given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 50))
    def test_what_was_chunked_comes_back(self, pieces: list[bytes], step: int) -> None:
        data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        body = ChunkedBody()
        seen: list[bytes] = []
        for position in range(0, len(data), step):
            some, rest = body.feed(data[position : position + step])
            seen += some
            assert rest == b""
        assert body.complete
        assert b"".join(seen) == b"".join(pieces)

    @given(st.binary(max_size=40), st.integers(1, 5))
    def test_rubbish_never_does_worse_than_refusal(self, rubbish: bytes, step: int) -> None:
        body = ChunkedBody()
        try:
            for position in range(0, len(rubbish), step):
                if not body.complete:
                    body.feed(rubbish[position : position + step])
        except RefusedRequest as refused:
            assert refused.status == 400  # noqa: PT017

    def test_sized_body_ends_where_it_should(self) -> None:
        body = SizedBody(5)
        assert body.feed(b"abc") == ([b"abc"], b"")
        assert not body.complete
        assert body.feed(b"defg") == ([b"de"], b"fg")
        assert body.complete
        assert SizedBody(0).complete


class TestResponses:
    def test_field_is_one_line(self) -> None:
        assert response_field("X-A", "b\té") == b"X-A: b\t\xe9\r\n"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("X", "\r"), ("X", "\n"), ("X", "\0"), ("", "a"), ("X:", "a"), ("X", "€")],
    )
    def test_field_that_could_be_two_is_refused(self, name: str, value: str) -> None:
        with pytest.raises(LocalProtocolError):
            response_field(name, value)

    def test_status_has_its_reason(self) -> None:
        assert status_line(404) == b"HTTP/1.1 404 Not Found\r\n"
        assert status_line(299) == b"HTTP/1.1 299 Unknown\r\n"
        with pytest.raises(LocalProtocolError):
            status_line(100)
