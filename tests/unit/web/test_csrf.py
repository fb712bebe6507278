"""Tokens against requests that other sites cause; no connection, no Redis."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, succeed

from pelotontx.net.http import Response
from pelotontx.net.http.body import RequestBody
from pelotontx.web import App, Request, csrf, html
from pelotontx.web.uploads import DiskSink
from tests.unit.web.session_case import Browser, SessionCase, request

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OURS = {"Origin": "https://shop.example", "Sec-Fetch-Site": "same-origin"}


class Case(SessionCase):
    def setUp(self) -> None:
        super().setUp()
        csrf.protect(self.app, origins=["https://partner.example"])

        @self.app.get("/form")
        async def form(request: Request) -> Response:
            return html(csrf.field(await request.session()))

        @self.app.route(("POST", "PUT", "DELETE"), "/change")
        def change(request: Request) -> str:
            return "changed"

        self.visitor = self.browser()
        self.token = self.show_form()

    def show_form(self) -> str:
        match = re.fullmatch(
            rb'<input type="hidden" name="csrf_token" value="([\w-]{86})">',
            self.visitor.get("/form").body,
        )
        assert match is not None
        return match[1].decode()

    def change(
        self, headers: dict[str, str], *, method: str = "POST", body: bytes = b""
    ) -> tuple[int, bytes]:
        answer = self.visitor.ask(method, "/change", headers, body=body)
        return answer.status, answer.body

    def with_token(self, token: str) -> tuple[int, bytes]:
        return self.change({**OURS, "X-CSRF-Token": token})


class TokenTests(Case):
    def test_the_form_brings_the_token(self) -> None:
        body = urlencode({"a": "1", "csrf_token": self.token}).encode()
        self.assertEqual(self.change({**OURS, **FORM}, body=body), (200, b"changed"))

    def test_a_script_brings_it_in_a_header(self) -> None:
        for method in ("POST", "PUT", "DELETE"):
            headers = {**OURS, "X-CSRF-Token": self.token}
            self.assertEqual(self.change(headers, method=method), (200, b"changed"))

    def test_without_a_token_it_is_a_403_that_says_what_is_missing(self) -> None:
        for headers, body in (
            (OURS, b""),
            ({**OURS, **FORM}, b"a=1"),
            ({**OURS, "Content-Type": "application/json"}, b'{"csrf_token": "x"}'),
        ):
            status, page = self.change(headers, body=body)
            self.assertEqual(status, 403)
            self.assertIn(b"csrf_token", page)

    def test_every_page_shows_the_token_in_another_mask_and_all_are_good(self) -> None:
        tokens = {self.token, *(self.show_form() for _ in range(5))}
        self.assertEqual(len(tokens), 6)
        for token in tokens:
            self.assertEqual(self.with_token(token)[0], 200)

    def test_a_wrong_token_is_a_403(self) -> None:
        first = "A" if self.token[0] != "A" else "B"
        for token in (
            first + self.token[1:],
            self.token[:-4],
            self.token + self.token,
            self.token[:43],
            "x",
            "\u00e9" * 86,
        ):
            status, page = self.with_token(token)
            self.assertEqual(status, 403, token)
            self.assertIn(b"Load it again", page)

    def test_anothers_token_is_a_403(self) -> None:
        other = self.browser()
        theirs = other.get("/form").text.split('"')[5]
        self.assertEqual(self.with_token(theirs)[0], 403)

    def test_without_a_session_no_token_is_good(self) -> None:
        self.visitor.cookies.clear()
        self.assertEqual(self.with_token(self.token)[0], 403)
        self.assertEqual(self.visitor.set_cookies, [])

    def test_a_rotated_session_has_another_token(self) -> None:
        @self.app.get("/rotate")
        async def rotate(request: Request) -> None:
            (await request.session()).rotate()

        self.assertEqual(self.visitor.ask("GET", "/rotate").status, 204)
        self.assertEqual(self.with_token(self.token)[0], 403)
        self.assertEqual(self.with_token(self.show_form())[0], 200)

    def test_pages_that_are_made_at_the_same_time_have_one_token(self) -> None:
        waiting: list[Deferred[None]] = []

        @self.app.get("/begin")
        async def begin(request: Request) -> None:
            (await request.session())["user"] = "ann"

        @self.app.get("/slow")
        async def slow(request: Request) -> Response:
            session = await request.session()
            waiting.append(Deferred())
            await waiting[-1]
            return html(csrf.token(session))

        self.visitor = self.browser()
        self.visitor.ask("GET", "/begin")
        pages = [self.visitor.begin("GET", "/slow") for _ in range(2)]
        for page in waiting:
            page.callback(None)
        for page in pages:
            self.assertEqual(self.with_token(self.successResultOf(page).body.decode())[0], 200)

    def test_tokens_keep_a_session_that_is_emptied(self) -> None:
        @self.app.get("/empty")
        async def empty(request: Request) -> None:
            session = await request.session()
            session["cart"] = []
            del session["cart"]

        self.assertEqual(self.visitor.ask("GET", "/empty").status, 204)
        self.assertEqual(self.with_token(self.token)[0], 200)


class OriginTests(Case):
    def status(self, headers: dict[str, str]) -> int:
        return self.change({**headers, "X-CSRF-Token": self.token})[0]

    def test_requests_of_our_own_pages_pass(self) -> None:
        for headers in (
            {},  # no browser, or an old one: the token must do
            {"Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "https://shop.example"},
            {"Origin": "http://shop.example"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "https://partner.example"},
            {"Origin": "https://partner.example"},
        ):
            self.assertEqual(self.status(headers), 200, headers)

    def test_requests_of_other_sites_are_refused_with_the_right_token_too(self) -> None:
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "same-site", "Origin": "https://cdn.shop.example"},
            {"Sec-Fetch-Site": "something new"},
            {"Origin": "https://evil.example"},
            {"Origin": "https://shop.example.evil.example"},
            {"Origin": "https://shop.example:8443"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
        ):
            self.assertEqual(self.status(headers), 403, headers)
            status, page = self.change({**headers, "X-CSRF-Token": self.token})
            self.assertEqual(status, 403, headers)
            self.assertIn(b"another site", page)

    def test_a_safe_method_needs_nothing(self) -> None:
        self.app.route(("GET", "OPTIONS"), "/safe")(lambda request: request.method)
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = self.visitor.ask(method, "/safe", {"Sec-Fetch-Site": "cross-site"})
            self.assertEqual(answer.status, 200)


class ReachTests(SessionCase):
    """Which requests are checked, and when."""

    def test_apps_within_are_protected_and_those_around_are_not(self) -> None:
        inner, middle = App(), App()
        for app in (inner, middle, self.app):
            app.post("/change")(lambda request: "changed")
        middle.mount("/inner", inner)
        self.app.mount("/middle", middle)
        csrf.protect(middle)
        browser = self.browser()
        self.assertEqual(browser.ask("POST", "/change").status, 200)
        self.assertEqual(browser.ask("POST", "/middle/change").status, 403)
        self.assertEqual(browser.ask("POST", "/middle/inner/change").status, 403)

    def test_a_form_that_is_still_coming_is_waited_for(self) -> None:
        csrf.protect(self.app)
        self.app.get("/form")(self.show)
        self.app.post("/change")(lambda request: request.form_field("a"))
        browser = self.browser()
        form = urlencode({"a": "1", "csrf_token": browser.get("/form").text}).encode()
        answer = self.send_slowly(browser, form)
        self.assertEqual(self.successResultOf(answer).body, b"1")

    def test_a_body_that_is_read_as_a_stream_is_left_to_its_handler(self) -> None:
        csrf.protect(self.app)
        self.app.get("/form")(self.show)

        @self.app.post("/change", stream=True)
        async def change(request: Request) -> bytes:
            return await request.stream.read()

        browser = self.browser()
        token = browser.get("/form").text
        form = urlencode({"csrf_token": token}).encode()
        self.assertEqual(self.successResultOf(self.send_slowly(browser, form)).status, 403)
        answer = self.send_slowly(browser, form, {"X-CSRF-Token": token})
        self.assertEqual(self.successResultOf(answer).body, form)

    def protected_upload(self) -> Browser:
        """An app, protected, where a form with files is read and checked by its handler."""
        csrf.protect(self.app)
        self.app.get("/form")(self.show)
        self.taken: list[str] = []

        @self.app.post("/photos", stream=True)
        @csrf.exempt
        async def add(request: Request) -> str:
            async with request.read_form() as form:
                await csrf.check(request, form.field(csrf.FIELD))
                self.taken.append(form.field("title"))
            return "taken"

        browser = self.browser()
        sink = DiskSink(self.clock)  # type: ignore[arg-type]  # what is small stays in memory
        browser.request_class = type(
            "Uploads", (browser.request_class,), {"__slots__": (), "uploads": sink}
        )
        return browser

    def test_an_exempt_handler_checks_the_form_that_it_has_read(self) -> None:
        browser = self.protected_upload()
        token = browser.get("/form").text
        for sent, status in ((token, 200), (token[:-1], 403), ("", 403)):
            form = {"title": "Me", csrf.FIELD: sent}
            answer = browser.post("/photos", OURS, data=form, files={})
            self.assertEqual(answer.status, status, sent)
        elsewhere = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        form = {"title": "Me", csrf.FIELD: token}
        self.assertEqual(browser.post("/photos", elsewhere, data=form, files={}).status, 403)
        self.assertEqual(self.taken, ["Me"])

    def test_a_route_with_further_arguments_may_be_exempt(self) -> None:
        csrf.protect(self.app)

        @csrf.exempt
        def hear(request: Request, word: str) -> str:
            return word

        self.app.post("/exempt", "yes")(hear)
        self.app.post("/other", "yes")(lambda request, word: word)
        inner = App()
        inner.post("/")(csrf.exempt(lambda request: "yes"))
        self.app.mount("/inner", inner)
        for path, status in (("/exempt", 200), ("/inner", 200), ("/other", 403), ("/none", 403)):
            self.assertEqual(self.browser().ask("POST", path).status, status, path)

    def test_a_handler_may_check_what_it_has_read_itself(self) -> None:
        self.app.get("/form")(self.show)

        @self.app.post("/change/{token}")
        async def change(request: Request, token: str) -> str:
            await csrf.check(request, token)
            return "changed"

        browser = self.browser()
        token = browser.get("/form").text
        self.assertEqual(browser.ask("POST", f"/change/{token}").status, 200)
        self.assertEqual(browser.ask("POST", f"/change/{token[:-1]}").status, 403)

    @staticmethod
    async def show(request: Request) -> str:
        return csrf.token(await request.session())

    def send_slowly(
        self, browser: Browser, body: bytes, headers: dict[str, str] | None = None
    ) -> Deferred[Response]:
        """Sends a form whose body comes after its head."""
        fields = {
            **FORM,
            **(headers or {}),
            "Content-Length": str(len(body)),
            "Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items()),
        }
        asked = request(browser.request_class, "POST", "/change", fields)
        stream = RequestBody(None, len(body), limit_bytes=10_000)
        asked.expect(stream)
        answer: Any = self.app.handle(asked)
        stream.feed(body[:5])
        stream.feed(body[5:], is_last=True)
        return answer if isinstance(answer, Deferred) else succeed(answer)
