"""The client for tests of apps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError
from pelotontx.web import App, BodyWriter, Files, HTTPError, Request, Response, Upgrade, csrf
from pelotontx.web.testing import Answer, Client, make_request


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.app = App()
        self.client = Client(self.app)

    def answer_with(self, value: Any) -> None:
        self.app.get("/")(lambda _: value)


class AnswerTests(Case):
    def test_an_answer_has_status_headers_and_body(self) -> None:
        self.answer_with({"a": [1]})
        answer = self.client.get("/")
        self.assertEqual(
            (answer.status, answer.body, answer.text), (200, b'{"a":[1]}', '{"a":[1]}')
        )
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        self.assertEqual((answer.json(), answer.json(dict[str, list[int]])), ({"a": [1]},) * 2)
        self.assertRaises(msgspec.ValidationError, answer.json, list)
        self.assertEqual(self.client.ask("HEAD", "/").body, b"")
        self.assertEqual(self.client.get("/nothing").status, 404)

    def test_every_method_is_there(self) -> None:
        for method in ("get", "post", "put", "patch", "delete"):
            self.app.route(method.upper(), "/")(lambda request: request.method)
            self.assertEqual(getattr(self.client, method)("/").text, method.upper())
            later = getattr(self.client, f"a{method}")("/")
            self.assertEqual(self.successResultOf(later).text, method.upper())

    def test_streams_are_collected(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        async def write(writer: BodyWriter) -> None:
            await writer.write(b"c")
            writer.flush()
            await writer.write(b"d")

        self.answer_with(pieces())
        self.assertEqual(self.client.get("/").text, "ab")
        self.app.get("/writer")(lambda _: Response(200, write))
        self.assertEqual(self.client.get("/writer").text, "cd")
        with TemporaryDirectory() as folder:
            Path(folder, "large").write_bytes(bytes(100_000))
            self.app.mount("/files", Files(folder))
            self.assertEqual(self.client.get("/files/large").body, bytes(100_000))
            self.assertEqual(self.client.ask("HEAD", "/files/large").body, b"")

    def test_a_stream_that_fails_fails(self) -> None:
        async def write(writer: BodyWriter) -> None:
            raise ZeroDivisionError

        self.answer_with(Response(200, write))
        self.assertRaises(ZeroDivisionError, self.client.get, "/")

    def test_an_upgrade_is_no_answer(self) -> None:
        self.answer_with(Upgrade(None))
        self.assertRaises(LocalProtocolError, self.client.get, "/")


class LaterTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.waiting: Deferred[str] = Deferred()

        @self.app.get("/")
        async def wait(request: Request) -> str:
            return await self.waiting

    def test_an_answer_may_come_later(self) -> None:
        async def ask() -> Answer:
            return await self.client.aget("/")

        asking = Deferred.fromCoroutine(ask())
        self.assertNoResult(asking)
        self.waiting.callback("done")
        self.assertEqual(self.successResultOf(asking).text, "done")

    def test_get_does_not_wait(self) -> None:
        self.assertRaises(LocalProtocolError, self.client.get, "/")
        self.assertTrue(self.waiting.called)

    def test_cancelling_is_leaving(self) -> None:
        asking = self.client.aget("/")
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assertTrue(self.waiting.called)

    def test_a_wait_that_is_cancelled_otherwise_is_a_500(self) -> None:
        asking = self.client.aget("/")
        self.waiting.cancel()
        self.assertEqual(self.successResultOf(asking).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)


class RequestTests(Case):
    def test_headers_of_the_client_and_of_the_request(self) -> None:
        self.app.get("/")(lambda request: f"{request.url} {request.header('X-A')}")
        client = Client(self.app, headers={"Host": "shop.example", "X-A": "1"})
        self.assertEqual(client.get("/?q").text, "http://shop.example/?q 1")
        self.assertEqual(client.get("/", {"X-A": "2"}).text, "http://shop.example/ 2")

    def test_bodies(self) -> None:
        self.app.post("/raw")(lambda request: request.body)
        self.app.post("/form")(lambda request: request.form)
        self.app.post("/json")(lambda request: request.json())
        self.assertEqual(self.client.post("/raw", body=b"abc").body, b"abc")
        self.assertEqual(
            self.client.post("/form", data={"a": "é", "b": ["1", "2"]}).json(),
            {"a": ["é"], "b": ["1", "2"]},
        )
        self.assertEqual(self.client.post("/json", json={"a": 1}).json(), {"a": 1})

    def test_limits_of_a_route_hold(self) -> None:
        self.app.post("/", body_limit_bytes=3)(lambda request: request.body)
        self.assertEqual(self.client.post("/", body=b"abcd").status, 413)

    def test_files_of_forms(self) -> None:
        with TemporaryDirectory() as folder:

            @self.app.post("/", stream=True)
            async def add(request: Request) -> list[Any]:
                async with request.read_form() as form:
                    photo = form.file("photo")
                    await photo.store(f"{folder}/{photo.filename}")
                    return [form.field("title"), photo.content_type, await photo.sha256()]

            files = {"photo": ("me.png", "image/png", bytes(100_000))}
            answer = self.client.post("/", data={"title": "Me"}, files=files)
            self.assertEqual(answer.json()[:2], ["Me", "image/png"])
            self.assertEqual(Path(folder, "me.png").read_bytes(), bytes(100_000))

    def test_a_request_for_a_function(self) -> None:
        asked = make_request("GET", "/a%20b?c=d", {"Cookie": "e=f"})
        self.assertEqual((asked.path, asked.argument("c")), ("/a b", "d"))
        self.assertEqual((asked.cookies, asked.client), ({"e": "f"}, ""))


class CookieTests(Case):
    def test_cookies_are_kept_until_they_are_deleted(self) -> None:
        @self.app.get("/set/{value}")
        def set_both(request: Request, value: str) -> Response:
            response = Response(204)
            response.set_cookie("a", value)
            response.set_cookie("b", "=")
            return response

        @self.app.get("/delete")
        def delete(request: Request) -> Response:
            response = Response(204)
            response.delete_cookie("a")
            return response

        self.app.get("/show")(lambda request: request.cookies)
        self.client.get("/set/1")
        self.client.get("/set/2")
        self.assertEqual(self.client.get("/show").json(), {"a": "2", "b": "="})
        self.client.get("/delete")
        self.assertEqual(self.client.get("/show").json(), {"b": "="})
        self.client.cookies["c"] = "3"
        self.assertEqual(self.client.get("/show").json(), {"b": "=", "c": "3"})

    def test_sessions_are_kept_and_end(self) -> None:
        csrf.protect(self.app)

        @self.app.get("/show")
        async def show(request: Request) -> dict[str, Any]:
            session = await request.session()
            return {"token": csrf.token(session), "user": session.get("user")}

        @self.app.post("/login")
        async def log_in(request: Request) -> None:
            session = await request.session()
            session.rotate()
            session["user"] = request.form_field("user")

        @self.app.post("/logout")
        async def log_out(request: Request) -> None:
            if "user" not in await request.session():
                raise HTTPError(409)
            (await request.session()).destroy()

        def token() -> dict[str, str]:
            return {csrf.FIELD: self.client.get("/show").json()["token"]}

        self.assertEqual(self.client.post("/login", data={"user": "ann"}).status, 403)
        self.assertEqual(self.client.post("/login", data={"user": "ann", **token()}).status, 204)
        self.assertEqual(self.client.get("/show").json()["user"], "ann")
        self.assertIsNone(Client(self.app).get("/show").json()["user"])
        logged_in = dict(self.client.cookies)
        self.assertEqual(self.client.post("/logout", data=token()).status, 204)
        self.assertEqual(self.client.post("/logout", data=token()).status, 409)
        self.client.cookies = logged_in
        self.assertIsNone(self.client.get("/show").json()["user"])
