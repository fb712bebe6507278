"""Hooks around handlers, and handlers of errors."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed

from pelotontx.net.http import Response, Upgrade
from pelotontx.web import App, HTTPError, Request, text
from tests.support.app_case import AppCase, request


class Nothing:
    """An object that answers 200."""

    def handle(self, request: Request) -> Response:
        return Response(200, b"object")


class HookTests(AppCase):
    def setUp(self) -> None:
        super().setUp()
        self.seen: list[str] = []

    def note(self, word: str) -> Any:
        return lambda *_: self.seen.append(word)

    def nest(self) -> App:
        """An app at /in with hooks, in one with hooks."""
        inner = App()
        for app, name in ((self.app, "outer"), (inner, "inner")):
            app.before(self.note(f"before {name}"))
            app.after(self.note(f"after {name}"))
        self.app.get("/")(lambda _: self.seen.append("handler"))
        inner.get("/x")(lambda _: self.seen.append("handler"))
        inner.mount("/object", Nothing())
        self.app.mount("/in", inner)
        return inner

    def test_outer_hooks_are_around_inner_ones(self) -> None:
        self.nest()
        self.ask("GET", "/in/x")
        expected = ["before outer", "before inner", "handler", "after inner", "after outer"]
        self.assertEqual(self.seen, expected)
        self.seen.clear()
        self.ask("GET", "/")
        self.assertEqual(self.seen, ["before outer", "handler", "after outer"])

    def test_objects_and_unmatched_requests_have_the_hooks_of_their_place(self) -> None:
        self.nest()
        around = ["before outer", "before inner", "after inner", "after outer"]
        for method, target, status in (
            ("GET", "/in/object/x", 200),
            ("GET", "/in/nothing", 404),
            ("POST", "/in/x", 405),
            ("OPTIONS", "/in/x", 204),
        ):
            self.seen.clear()
            self.assertEqual(self.ask(method, target).status, status)
            self.assertEqual(self.seen, around)
        self.seen.clear()
        self.ask("GET", "/inside")
        self.assertEqual(self.seen, ["before outer", "after outer"])

    def test_hooks_of_an_included_app_are_for_its_routes(self) -> None:
        other = App()
        other.before(self.note("other"))
        other.get("/x")(lambda _: "")
        self.app.include(other)
        self.app.get("/")(lambda _: "")
        for target in ("/", "/nothing"):
            self.ask("GET", target)
        self.assertEqual(self.seen, [])
        self.ask("GET", "/x")
        self.assertEqual(self.seen, ["other"])

    def test_before_can_answer(self) -> None:
        @self.app.before
        def only_friends(request: Request) -> Response | None:
            return None if request.argument("friend") else text("no", 403)

        self.app.get("/")(self.note("handler"))
        self.app.after(self.note("after"))
        self.assertEqual(self.ask("GET", "/").status, 403)
        self.assertEqual(self.seen, ["after"])
        self.assertEqual(self.ask("GET", "/?friend=1").status, 204)

    def test_after_can_change_and_replace(self) -> None:
        @self.app.after
        def mark(request: Request, response: Response) -> None:
            response.add_header("X-Mark", request.path)

        @self.app.after
        async def replace(request: Request, response: Response) -> Response | None:
            return text("gone", 410) if response.status == 404 else None

        self.app.get("/")(lambda _: "here")
        self.assertEqual(self.ask("GET", "/").headers["x-mark"], "/")
        self.assertEqual(self.ask("GET", "/x").status, 410)

    def test_hooks_do_not_change_a_response_that_is_given_to_everybody(self) -> None:
        shared = text("here")
        self.app.after(lambda _, response: response.add_header("X-App", "1"))

        @self.app.get("/")
        def answer(request: Request) -> Response:
            request.after(lambda response: response.add_header("X-Request", "1"))
            return shared

        for _ in range(2):
            headers = self.ask("GET", "/").headers
            self.assertEqual(headers.get_all("x-app"), ["1"])
            self.assertEqual(headers.get_all("x-request"), ["1"])
        self.assertEqual(shared.headers.items(), text("").headers.items())

    def test_hooks_may_wait(self) -> None:
        first, last = Deferred[None](), Deferred[None]()
        self.app.before(lambda _: first)
        self.app.after(lambda *_: last)
        self.app.get("/")(lambda _: succeed("x"))
        answer = self.app.handle(request("GET", "/"))
        assert isinstance(answer, Deferred)
        first.callback(None)
        self.assertNoResult(answer)
        last.callback(None)
        response = self.successResultOf(answer)
        assert isinstance(response, Response)
        self.assertEqual(response.body, b"x")

    def test_hooks_added_late_count(self) -> None:
        inner = App()
        inner.get("/")(lambda _: "")
        self.app.mount("/in", inner)
        self.ask("GET", "/in")
        inner.before(self.note("late"))
        self.ask("GET", "/in")
        self.assertEqual(self.seen, ["late"])

    def test_hook_that_fails_is_a_500(self) -> None:
        self.app.get("/")(lambda _: "")
        self.app.after(lambda *_: 1 / 0)
        self.app.after(self.note("next"))
        self.assertEqual(self.ask("GET", "/").status, 500)
        self.assertEqual(self.seen, ["next"])
        self.app.before(lambda *_: [][1])
        self.assertEqual(self.ask("GET", "/").status, 500)
        self.app.after(lambda *_: "a word")
        self.assertEqual(self.ask("GET", "/").status, 500)
        for error, count in ((ZeroDivisionError, 3), (IndexError, 2), (TypeError, 1)):
            self.assertEqual(len(self.flushLoggedErrors(error)), count)

    def test_upgrade_has_no_response_for_hooks(self) -> None:
        upgrade = Upgrade(object())
        self.app.after(self.note("after"))

        @self.app.get("/")
        def take(request: Request) -> Upgrade:
            request.after(self.note("request"))
            return upgrade

        self.assertIs(self.app.handle(request("GET", "/")), upgrade)
        self.assertEqual(self.seen, [])

    def test_cancelling_goes_through(self) -> None:
        waiting: Deferred[str] = Deferred()
        self.app.after(self.note("after"))
        self.app.on_error(Exception)(lambda *_: "never")
        self.app.get("/")(lambda _: waiting)
        answer = self.app.handle(request("GET", "/"))
        assert isinstance(answer, Deferred)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual(self.seen, [])

    def test_state_goes_from_hook_to_handler(self) -> None:
        self.app.before(lambda request: request.state.update(user="bob"))
        self.app.get("/")(lambda request: request.state["user"])
        self.assertEqual(self.body("GET", "/"), "bob")


class RequestHookTests(AppCase):
    def test_request_can_have_hooks_of_its_own(self) -> None:
        def mark(word: str) -> Any:
            return lambda response: response.add_header("X-Mark", word)

        async def later(response: Response) -> None:
            await succeed(None)
            response.add_header("X-Mark", "later")

        @self.app.get("/plain")
        def plain(request: Request) -> Response:
            request.after(mark("one"))
            request.after(later)
            return text("")

        @self.app.get("/failing")
        async def failing(request: Request) -> None:
            request.after(mark("failed"))
            raise HTTPError(418)

        self.app.get("/other")(lambda _: text(""))
        self.assertEqual(self.ask("GET", "/plain").headers.get_all("x-mark"), ["one", "later"])
        answer = self.ask("GET", "/failing")
        self.assertEqual((answer.status, answer.headers["x-mark"]), (418, "failed"))
        self.assertNotIn("x-mark", self.ask("GET", "/other").headers)

    def test_they_come_after_those_of_the_app(self) -> None:
        seen: list[str] = []
        self.app.after(lambda *_: seen.append("app"))

        @self.app.before
        def remember(request: Request) -> None:
            request.after(lambda _: seen.append("request"))

        self.app.get("/")(lambda _: "")
        self.ask("GET", "/")
        self.ask("GET", "/nowhere")
        self.assertEqual(seen, ["app", "request"] * 2)

    def test_one_that_fails_is_a_500_and_the_next_sees_it(self) -> None:
        seen: list[int] = []

        @self.app.get("/")
        def fail(request: Request) -> str:
            request.after(lambda _: 1 / 0)
            request.after(lambda response: seen.append(response.status))
            return ""

        self.assertEqual(self.ask("GET", "/").status, 500)
        self.assertEqual(seen, [500])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ErrorHandlerTests(AppCase):
    def setUp(self) -> None:
        super().setUp()
        self.inner = App()
        self.app.mount("/in", self.inner)

    def failing(self, app: App, error: Exception) -> None:
        @app.get("/fail")
        def fail(request: Request) -> None:
            raise error

    def test_by_type_and_nothing_is_logged(self) -> None:
        self.failing(self.app, KeyError("x"))

        @self.app.on_error(LookupError)
        async def missing(request: Request, error: LookupError) -> Response:
            return text(f"{request.path} {error!r}", 404)

        answer = self.ask("GET", "/fail")
        self.assertEqual((answer.status, answer.body), (404, b"/fail KeyError('x')"))

    def test_nearest_type_wins(self) -> None:
        self.failing(self.app, KeyError("x"))
        self.app.on_error(Exception)(lambda *_: "any")
        self.app.on_error(KeyError, ValueError)(lambda *_: "key")
        answer = self.ask("GET", "/fail")
        self.assertEqual((answer.status, answer.body), (500, b"key"))

    def test_by_status_what_no_route_matches_included(self) -> None:
        self.app.on_error(404, 405)(lambda _, error: f"{error.status}")
        self.failing(self.app, HTTPError(404))
        for method, target, status in (
            ("GET", "/fail", 404),
            ("GET", "/nowhere", 404),
            ("GET", "/in/nowhere", 404),
            ("POST", "/fail", 405),
        ):
            answer = self.ask(method, target)
            self.assertEqual((answer.status, answer.body), (status, f"{status}".encode()))
        self.assertEqual(self.ask("POST", "/fail").headers["allow"], "GET, HEAD, OPTIONS")

    def test_innermost_app_is_asked_first(self) -> None:
        self.app.on_error(404)(lambda *_: "outer")
        self.inner.on_error(404)(lambda *_: "inner")
        self.assertEqual(self.body("GET", "/in/nowhere"), "inner")
        self.assertEqual(self.body("GET", "/nowhere"), "outer")

    def test_page_for_500_does_not_silence_the_log(self) -> None:
        self.failing(self.app, RuntimeError("x"))
        self.app.on_error(500)(lambda *_: "sorry")
        answer = self.ask("GET", "/fail")
        self.assertEqual((answer.status, answer.body), (500, b"sorry"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_error_handler_that_fails_is_a_500(self) -> None:
        self.failing(self.app, KeyError("x"))
        self.app.on_error(KeyError)(lambda *_: 1 / 0)
        self.assertEqual(self.ask("GET", "/fail").status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_page_for_everybody_keeps_nothing_of_an_error(self) -> None:
        page = text("no", 405)
        self.app.on_error(405)(lambda *_: page)
        self.failing(self.app, RuntimeError())
        self.assertEqual(self.ask("POST", "/fail").headers["allow"], "GET, HEAD, OPTIONS")
        self.assertNotIn("allow", page.headers)

    def test_response_keeps_its_own_status(self) -> None:
        self.app.on_error(404)(lambda *_: text("moved", 410))
        self.assertEqual(self.ask("GET", "/nowhere").status, 410)
