"""Requests and responses as values; no connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import BodyWriter, Headers, Response


class TestBody:
    @pytest.mark.parametrize("body", ["text", bytearray(b"x"), None, 7, [b"x"], iter([b"x"])])
    def test_a_body_of_another_type_is_refused_where_it_is_made(self, body: Any) -> None:
        with pytest.raises(LocalProtocolError, match=f"a body is bytes, .*{type(body).__name__}"):
            Response(200, body)

    def test_bytes_and_streams_are_bodies(self) -> None:
        class Bytes(bytes):
            pass

        async def pieces() -> AsyncIterator[bytes]:
            yield b"x"

        async def write(writer: BodyWriter) -> None: ...

        for body in (b"x", Bytes(b"x"), pieces(), write):
            assert Response(200, body).body is body


class TestHeaders:
    headers = Headers([("host", "a"), ("x-a", "1"), ("x-a", "2")])

    def test_names_are_given_once_in_order(self) -> None:
        assert list(self.headers) == list(self.headers.keys()) == ["host", "x-a"]
        assert len(self.headers) == 2

    def test_a_dict_has_the_first_value(self) -> None:
        assert dict(self.headers) == {"host": "a", "x-a": "1"}
        assert {**self.headers} == {"host": "a", "x-a": "1"}

    def test_items_are_all_fields(self) -> None:
        assert self.headers.items() == [("host", "a"), ("x-a", "1"), ("x-a", "2")]
