"""When a handler is called: at once, or when the body is there; and refused bodies."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from pelotontx.net.http import Response
from pelotontx.net.http.body import RequestBody
from pelotontx.web import HTTPError, Request
from pelotontx.wire.http import RefusedRequest
from tests.support.app_case import AppCase, arriving, request


class BodyTests(AppCase):
    def start(self, asked: Request) -> Deferred[Response]:
        result = self.app.handle(asked)
        assert isinstance(result, Deferred)
        self.assertNoResult(result)
        return result  # type: ignore[return-value]

    def test_handler_is_called_when_the_body_is_there(self) -> None:
        self.app.post("/")(lambda request: request.body)
        self.app.post("/later/{n:int}")(self.later)
        for target, expected in (("/", b"abcd"), ("/later/3", b"3abcd")):
            asked, body = arriving("POST", target)
            answer = self.start(asked)
            body.feed(b"ab")
            self.assertNoResult(answer)
            body.feed(b"cd", is_last=True)
            self.assertEqual(self.successResultOf(answer).body, expected)

    async def later(self, request: Request, n: int) -> bytes:
        return b"%d%b" % (n, request.body)

    def test_streaming_handler_is_called_at_once(self) -> None:
        seen: list[bytes] = []

        @self.app.post("/", stream=True)
        async def take(request: Request) -> str:
            async for piece in request.stream:
                seen.append(piece)
            return "done"

        asked, body = arriving("POST", "/")
        answer = self.start(asked)
        body.feed(b"ab")
        self.assertEqual(seen, [b"ab"])
        body.feed(b"cd", is_last=True)
        self.assertEqual(self.successResultOf(answer).body, b"done")

    def test_limit_of_a_route_is_above_or_below_the_servers(self) -> None:
        self.app.post("/more", body_limit_bytes=5000)(lambda request: str(len(request.body)))
        self.app.post("/less", body_limit_bytes=3)(lambda request: str(len(request.body)))

        @self.app.post("/streamed", body_limit_bytes=3, stream=True)
        async def streamed(request: Request) -> bytes:
            return await request.stream.read()

        asked, body = arriving("POST", "/more", length=4000)
        answer = self.start(asked)
        body.feed(b"z" * 4000, is_last=True)
        self.assertEqual(self.successResultOf(answer).body, b"4000")
        for target in ("/less", "/streamed"):
            asked, _ = arriving("POST", target, length=4)
            self.assertEqual(self.answer(asked).status, 413)
        self.assertEqual(self.ask("POST", "/less", body=b"1234").status, 413)
        self.assertEqual(self.ask("POST", "/less", body=b"123").body, b"3")

    def test_refused_body_is_an_error_page_and_the_end_of_the_connection(self) -> None:
        self.app.post("/")(lambda _: "never")
        asked, body = arriving("POST", "/")
        answer = self.start(asked)
        body.fail(RefusedRequest(408, "request took too long"))
        page = self.successResultOf(answer)
        self.assertEqual((page.status, page.close), (408, True))
        assert isinstance(page.body, bytes)
        self.assertIn(b"Request took too long.", page.body)

    def test_refused_body_can_have_a_page_of_the_app(self) -> None:
        @self.app.on_error(413)
        def too_much(_: Request, error: RefusedRequest) -> str:
            return "too much"

        self.app.post("/")(lambda _: "never")
        asked, _ = arriving("POST", "/", length=1001)
        page = self.answer(asked)
        self.assertEqual((page.status, page.close, page.body), (413, True, b"too much"))

    def test_answers_that_need_no_body_do_not_read_it(self) -> None:
        @self.app.before
        def only_friends(request: Request) -> None:
            if request.path == "/private":
                raise HTTPError(403)

        self.app.post("/private")(lambda _: "never")
        self.app.get("/page")(lambda _: "never")
        self.app.mount("/mounted", Mounted())
        for target, status in (("/private", 403), ("/page", 405), ("/no", 404), ("/mounted", 200)):
            asked, body = arriving("POST", target)
            body.feed(b"a")
            self.assertEqual(self.answer(asked).status, status)
            self.assertEqual(body.received, 1)

    def test_cancelling_reaches_who_waits_for_the_body(self) -> None:
        self.app.post("/")(lambda _: "never")
        asked, _ = arriving("POST", "/")
        answer = self.start(asked)
        answer.cancel()
        self.failureResultOf(answer)

    def test_body_of_a_get_is_collected_too(self) -> None:
        self.app.get("/")(lambda request: request.body)
        asked, body = arriving("GET", "/", length=2)
        answer = self.start(asked)
        body.feed(b"ab", is_last=True)
        self.assertEqual(self.successResultOf(answer).body, b"ab")

    def test_complete_request_is_streamed_as_well(self) -> None:
        @self.app.post("/", stream=True)
        async def take(request: Request) -> bytes:
            return await request.stream.read()

        self.assertEqual(self.answer(request("POST", "/", body=b"xy")).body, b"xy")


class Mounted:
    """Takes whatever comes."""

    def handle(self, request: Request) -> Response:
        assert isinstance(request.stream, RequestBody)
        return Response(200, f"{request.root_path} {request.path_info}".encode())
