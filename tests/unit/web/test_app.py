"""Routing of requests to handlers, and what these return to responses; no connection."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.web import App, HTTPError, Request, html, json, not_found, redirect, text
from tests.support.app_case import AppCase, request


class RoutingTests(AppCase):
    def test_captures_are_arguments(self) -> None:
        @self.app.route("GET", r"^/hello/(\w+)$")
        def hello(request: Request, name: str) -> str:
            return f"Hello, {name}"

        @self.app.get(r"^/(?P<year>\d+)/(\d+)$")
        def named(request: Request, day: str, *, year: str) -> str:
            return f"{year} {day}"

        self.assertEqual(self.ask("GET", "/hello/bob").body, b"Hello, bob")
        self.assertEqual(self.ask("GET", "/7/8").body, b"7 8")

    def test_each_method_has_its_shortcut(self) -> None:
        for method in ("get", "post", "put", "patch", "delete"):
            getattr(self.app, method)(r"^/$")(lambda _, method=method: method)
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            self.assertEqual(self.ask(method, "/").body, method.lower().encode())

    def test_head_is_served_by_get(self) -> None:
        self.app.get(r"^/$")(lambda request: request.method)
        self.assertEqual(self.ask("HEAD", "/").body, b"HEAD")
        self.app.route("HEAD", r"^/$")(lambda _: "own")
        self.assertEqual(self.ask("HEAD", "/").body, b"own")

    def test_unknown_path_is_404(self) -> None:
        self.assertEqual(self.ask("GET", "/").status, 404)
        self.assertEqual(self.ask("OPTIONS", "/").status, 404)

    def test_other_method_is_405_with_allow(self) -> None:
        self.app.get(r"^/$")(lambda _: "")
        self.app.delete(r"^/$")(lambda _: "")
        self.app.post(r"^/other$")(lambda _: "")
        answer = self.ask("PUT", "/")
        self.assertEqual(answer.status, 405)
        self.assertEqual(answer.headers["allow"], "DELETE, GET, HEAD, OPTIONS")

    def test_options_are_answered(self) -> None:
        self.app.get(r"^/$")(lambda _: "")
        answer = self.ask("OPTIONS", "/")
        self.assertEqual((answer.status, answer.headers["allow"]), (204, "GET, HEAD, OPTIONS"))
        self.assertEqual(self.ask("OPTIONS", "*").headers["allow"], "GET, HEAD, OPTIONS")
        self.app.route("OPTIONS", r"^/$")(lambda _: "mine")
        self.assertEqual(self.ask("OPTIONS", "/").body, b"mine")

    def test_included_routes_come_after_the_own(self) -> None:
        other = App()
        other.get(r"^/a$")(lambda _: "other a")
        self.app.include(other)
        self.app.get(r"^/a$")(lambda _: "own a")
        self.assertEqual(self.ask("GET", "/a").body, b"own a")
        other.get(r"^/b$")(lambda _: "late")
        self.assertEqual(self.ask("GET", "/b").body, b"late")
        self.assertRaises(ValueError, other.include, self.app)

    def test_what_is_wrong_with_a_route_is_told_where_it_is_written(self) -> None:
        with self.assertRaises(Exception) as caught:
            self.app.get(r"^/(")
        self.assertEqual(type(caught.exception).__module__, "re")
        self.assertRaises(ValueError, self.app.get, "/{a:nothing}")
        self.assertRaises(ValueError, self.app.route, "get", "/")
        self.assertRaises(ValueError, self.app.converter, "x", "(a)")

    def test_pattern_from_a_slash_is_the_whole_path(self) -> None:
        self.app.get("/a/{name}")(lambda _, name: name)
        self.assertEqual(self.body("GET", "/a/b%20c"), "b c")
        self.assertEqual(self.ask("GET", "/a/b/c").status, 404)

    def test_one_handler_for_several_methods(self) -> None:
        self.app.route(("PUT", "POST"), "/")(lambda request: request.method)
        self.assertEqual(self.body("PUT", "/"), "PUT")
        self.assertEqual(self.body("POST", "/"), "POST")
        self.assertEqual(self.ask("GET", "/").headers["allow"], "OPTIONS, POST, PUT")

    def test_extra_arguments_stand_between_the_request_and_the_captures(self) -> None:
        def show(request: Request, *words: str, **named: object) -> str:
            return f"{words} {named}"

        self.app.get(r"^/(\w)/(?P<x>\w)$", "one", "two", y=3)(show)
        self.app.get(r"^/$", "one")(show)
        self.assertEqual(self.body("GET", "/a/b"), "('one', 'two', 'a') {'y': 3, 'x': 'b'}")
        self.assertEqual(self.body("GET", "/"), "('one',) {}")

    def test_converters_of_an_app(self) -> None:
        def month(text: str) -> int:
            return ["jan", "feb"].index(text) + 1

        self.app.converter("month", "[a-z]{3}", month, lambda n: ["jan", "feb"][n - 1])
        self.app.get("/{m:month}", name="month")(lambda _, m: str(m))
        self.app.get("/{m}")(lambda _, m: m)
        self.assertEqual(self.body("GET", "/feb"), "2")
        self.assertEqual(self.body("GET", "/dec"), "dec")
        self.assertEqual(self.app.url_for("month", m=1), "/jan")


class ReturnTests(AppCase):
    def returned(self, value: Any) -> Response:
        self.app = App()
        self.app.get(r"^/$")(lambda _: value)
        return self.ask("GET", "/")

    def test_values_become_responses(self) -> None:
        for value, status, content_type, body in (
            ("é<", 200, "text/plain; charset=utf-8", "é<".encode()),
            (b"\0", 200, "application/octet-stream", b"\0"),
            ({"a": [1]}, 200, "application/json", b'{"a":[1]}'),
            ([], 200, "application/json", b"[]"),
            (None, 204, "", b""),
            (html("<p>"), 200, "text/html; charset=utf-8", b"<p>"),
            (text("x", 201), 201, "text/plain; charset=utf-8", b"x"),
            (json({"a": 1}, 202), 202, "application/json", b'{"a":1}'),
            (not_found(), 404, "text/plain; charset=utf-8", b"Not Found\n"),
        ):
            answer = self.returned(value)
            self.assertEqual(
                (answer.status, answer.headers.get("content-type"), answer.body),
                (status, content_type, body),
            )

    def test_redirect_has_a_location(self) -> None:
        answer = redirect("/login")
        self.assertEqual((answer.status, answer.headers["location"]), (303, "/login"))
        self.assertRaises(LocalProtocolError, redirect, "/\r\nX: y")

    def test_upgrade_is_passed_on(self) -> None:
        upgrade = Upgrade(object())
        self.app.get(r"^/$")(lambda _: upgrade)
        self.assertIs(self.app.handle(request("GET", "/")), upgrade)

    def test_coroutines_and_deferreds_are_awaited(self) -> None:
        waiting: Deferred[str] = Deferred()

        @self.app.get(r"^/coroutine$")
        async def coroutine(request: Request) -> str:
            return await waiting

        self.app.get(r"^/deferred$")(lambda _: waiting)
        first = self.app.handle(request("GET", "/coroutine"))
        assert isinstance(first, Deferred)
        self.assertNoResult(first)
        waiting.callback("done")
        answer = self.successResultOf(first)
        assert isinstance(answer, Response)
        self.assertEqual(answer.body, b"done")

    def test_cancelling_reaches_the_handler(self) -> None:
        waiting: Deferred[str] = Deferred()
        self.app.get(r"^/$")(lambda _: waiting)
        answer = self.app.handle(request("GET", "/"))
        assert isinstance(answer, Deferred)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)

    def test_meaningless_value_is_a_500(self) -> None:
        self.assertEqual(self.returned(object()).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)


class ErrorTests(AppCase):
    def raising(self, error: Exception) -> None:
        @self.app.get(r"^/$")
        def plain(_: Request) -> None:
            raise error

        @self.app.get(r"^/later$")
        async def later(_: Request) -> None:
            raise error

    def test_http_error_is_its_status(self) -> None:
        self.raising(HTTPError(404, "No <such> thing.", {"X-Why": "gone"}))
        for path in ("/", "/later"):
            answer = self.ask("GET", path)
            self.assertEqual((answer.status, answer.headers["x-why"]), (404, "gone"))
            assert isinstance(answer.body, bytes)
            self.assertIn(b"No &lt;such&gt; thing.", answer.body)

    def test_json_clients_get_json(self) -> None:
        self.raising(HTTPError(409, "Taken."))
        answer = self.ask("GET", "/", {"Accept": "application/json"})
        self.assertEqual(
            answer.body, msgspec.json.encode({"error": {"status": 409, "message": "Taken."}})
        )
        answer = self.ask("GET", "/", {"Accept": "text/html, application/json"})
        self.assertTrue(answer.headers["content-type"].startswith("text/html"))

    def test_traceback_is_shown_only_in_development(self) -> None:
        self.raising(RuntimeError("<secret>"))
        for path in ("/", "/later"):
            answer = self.ask("GET", path)
            self.assertEqual(answer.status, 500)
            self.assertNotIn(b"secret", bytes(answer.body))  # type: ignore[arg-type]
        self.app.development = True
        self.assertIn(b"RuntimeError: &lt;secret&gt;", bytes(self.ask("GET", "/").body))  # type: ignore[arg-type]
        accept = {"Accept": "application/json"}
        answer = self.ask("GET", "/later", accept)
        error = msgspec.json.decode(answer.body)["error"]  # type: ignore[arg-type]
        self.assertIn("RuntimeError: <secret>", error["traceback"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 4)

    def test_frames_of_the_handler_are_shown_however_it_failed(self) -> None:
        self.app.development = True
        started: Deferred[None] = Deferred()

        def broken(_: object) -> None:
            raise RuntimeError("secret")

        @self.app.get(r"^/plain$")
        def plain(request: Request) -> None:
            broken(request)

        @self.app.get(r"^/coroutine$")
        async def coroutine(request: Request) -> None:
            await started
            broken(request)

        @self.app.get(r"^/deferred$")
        def deferred(_: Request) -> Deferred[None]:
            return started.addCallback(broken)

        plain_page = self.ask("GET", "/plain")
        waiting = [self.app.handle(request("GET", path)) for path in ("/coroutine", "/deferred")]
        started.callback(None)
        for answer in (plain_page, *map(self.successResultOf, waiting)):
            self.assertEqual(answer.status, 500)
            self.assertIn(b"in broken", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_app_that_handles_decides_on_tracebacks_not_the_included_one(self) -> None:
        for outer_shows in (False, True):
            inner = App(development=not outer_shows)
            self.app = App(development=outer_shows)
            self.app.include(inner)

            @inner.get(r"^/$")
            def plain(_: Request) -> None:
                raise RuntimeError("secret")

            @inner.get(r"^/later$")
            async def later(_: Request) -> None:
                raise RuntimeError("secret")

            for path in ("/", "/later"):
                for accept in ("text/html", "application/json"):
                    answer = self.ask("GET", path, {"Accept": accept})
                    self.assertEqual(answer.status, 500)
                    self.assertEqual(b"secret" in bytes(answer.body), outer_shows)  # type: ignore[arg-type]
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 8)

    def test_expected_errors_show_no_traceback_in_development(self) -> None:
        self.app.development = True
        self.raising(HTTPError(409, "Taken."))
        for path in ("/", "/later", "/nowhere"):
            self.assertNotIn(b"Traceback", bytes(self.ask("GET", path).body))  # type: ignore[arg-type]

    def test_refused_header_is_a_500_and_logged(self) -> None:
        self.app.get(r"^/$")(lambda request: text("", headers={"X": request.argument("x")}))
        self.assertEqual(self.ask("GET", "/?x=a%0d%0ab:c").status, 500)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)
