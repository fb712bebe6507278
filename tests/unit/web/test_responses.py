"""Responses that handlers make."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from twisted.internet.defer import Deferred

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response
from pelotontx.web import attachment, redirect, respond, stream
from tests.support.app_case import AppCase


async def numbers(log: list[str]) -> AsyncIterator[str | bytes]:
    try:
        yield "é"
        yield b"2"
    finally:
        log.append("closed")


class StreamTests(AppCase):
    def collect(self, response: Response) -> list[bytes]:
        async def pieces() -> list[bytes]:
            return [piece async for piece in response.body]  # type: ignore[union-attr]

        return self.successResultOf(Deferred.fromCoroutine(pieces()))

    def test_text_and_bytes_are_sent_as_bytes(self) -> None:
        self.assertEqual(self.collect(stream(numbers([]))), ["é".encode(), b"2"])

    def test_async_generator_is_a_response(self) -> None:
        @self.app.get("/")
        async def count(request: object) -> AsyncIterator[str]:
            yield "1"

        answer = self.ask("GET", "/")
        self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(self.collect(answer), [b"1"])

    def test_closing_reaches_the_generator(self) -> None:
        log: list[str] = []
        body = stream(numbers(log), "text/html").body

        async def begin() -> None:
            await anext(body)  # type: ignore[arg-type]
            await body.aclose()  # type: ignore[union-attr]

        self.successResultOf(Deferred.fromCoroutine(begin()))
        self.assertEqual(log, ["closed"])


def test_redirect_has_a_status_of_its_kind() -> None:
    for status in (301, 302, 303, 307, 308):
        assert redirect("/x", status).status == status
    with pytest.raises(LocalProtocolError):
        redirect("/x", 200)


def test_location_that_is_not_quoted_is_quoted() -> None:
    for location, sent in (
        ("/a%20b?c=%C3%A9&d=[1]#e", "/a%20b?c=%C3%A9&d=[1]#e"),
        ("/café au lait", "/caf%C3%A9%20au%20lait"),
    ):
        assert redirect(location).headers["location"] == sent
    with pytest.raises(LocalProtocolError):
        redirect("/a\r\nSet-Cookie: a=b")


class Item(msgspec.Struct):
    name: str


def test_what_msgspec_encodes_as_an_object_is_json() -> None:
    for value in ({"name": "x"}, Item("x")):
        answer = respond(value)
        assert isinstance(answer, Response)
        assert answer.body == b'{"name":"x"}'
        assert answer.headers["content-type"] == "application/json"


def test_what_is_no_answer_is_told_with_what_is_one() -> None:
    for value in (("gone", 404), 5, {1}, iter("ab")):
        with pytest.raises(LocalProtocolError, match=f"{type(value).__name__}; .*Response"):
            respond(value)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ("é.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt"),
        ('a"/b\r\n', "attachment; filename=\"a__b__\"; filename*=UTF-8''a%22%2Fb%0D%0A"),
    ],
)
def test_attachment_takes_any_name(name: str, field: str) -> None:
    assert attachment(b"x", name).headers["content-disposition"] == field
