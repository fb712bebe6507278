"""Sessions as handlers use them: at the same time, in answers of all kinds, and as a mapping."""

from __future__ import annotations

import re
from math import nan
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.web import HTTPError, Request
from pelotontx.web.session import Session
from pelotontx.wire.session import encode_value
from tests.unit.web.session_case import Browser, FaultySessionCase

COOKIE = "__Host-session"


class ConcurrencyTests(FaultySessionCase):
    def setUp(self) -> None:
        super().setUp()
        self.gates: dict[str, Deferred[None]] = {}

        @self.app.post("/slow/{name}")
        async def slow(request: Request, name: str) -> None:
            session = await request.session()
            gate = self.gates[name] = Deferred()
            await gate
            session[name] = "slow"

    def slowly(self, browser: Browser, name: str) -> Deferred[Response]:
        return browser.begin("POST", f"/slow/{name}")

    def open(self, name: str) -> None:
        self.gates.pop(name).callback(None)

    def test_each_request_writes_only_what_it_has_changed(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        one, two = self.slowly(browser, "one"), self.slowly(browser, "two")
        browser.ask("POST", "/set/a/2")
        self.open("two")
        self.open("one")
        self.successResultOf(one)
        self.successResultOf(two)
        self.assertEqual(browser.get("/show").body, b'{"a":"2","two":"slow","one":"slow"}')

    def test_a_request_that_outlasts_a_logout_does_not_bring_the_session_back(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/login")
        before = dict(browser.cookies)
        answer = self.slowly(browser, "one")
        browser.ask("POST", "/logout")
        self.open("one")
        self.assertEqual(self.successResultOf(answer).status, 204)
        self.assertEqual((browser.cookies, len(self.store)), ({}, 0))
        browser.cookies = before
        self.assertEqual(browser.get("/show").body, b"{}")

    def test_a_request_that_outlasts_a_login_leaves_the_new_cookie_alone(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        answer = self.slowly(browser, "one")
        browser.ask("POST", "/login")
        after = dict(browser.cookies)
        self.open("one")
        self.successResultOf(answer)
        self.assertEqual(browser.cookies, after)
        self.assertEqual(browser.get("/show").body, b'{"a":"1","user":"bob"}')


class HandlerTests(FaultySessionCase):
    """What a handler may do, and what it is told."""

    def test_a_request_has_one_session_however_often_it_asks(self) -> None:
        seen: list[Any] = []

        @self.app.get("/twice")
        async def twice(request: Request) -> None:
            waiting = Deferred.fromCoroutine(request.session())
            seen.extend([await request.session(), await request.session(), await waiting])

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        browser.get("/twice")
        self.assertEqual(len(set(map(id, seen))), 1)

    def test_of_two_loads_at_a_time_the_first_counts(self) -> None:
        seen: list[Any] = []

        @self.app.get("/together")
        async def together(request: Request) -> None:
            waiting = [Deferred.fromCoroutine(request.session()) for _ in range(2)]
            for gate in reversed(self.store.held):
                gate.callback({"a": b"[1]"})
            seen.extend([await each for each in waiting])

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        self.store.is_holding = True
        browser.get("/together")
        self.assertEqual(len(self.store.held), 2)
        self.assertIs(seen[0], seen[1])

    def test_a_server_without_sessions_says_so(self) -> None:
        browser = Browser(self.app, None)
        self.assertEqual(browser.ask("GET", "/show").status, 500)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_changes_inside_lists_and_dicts_are_saved(self) -> None:
        @self.app.post("/add")
        async def add(request: Request) -> None:
            (await request.session()).setdefault("cart", []).append({"n": 1})

        browser = self.browser()
        browser.ask("POST", "/add")
        browser.ask("POST", "/add")
        self.assertEqual(browser.get("/show").body, b'{"cart":[{"n":1},{"n":1}]}')

    def test_what_has_not_changed_is_not_written(self) -> None:
        @self.app.post("/same")
        async def same(request: Request) -> None:
            session = await request.session()
            session["a"] = "1"
            session["b"] = [1]

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        browser.ask("POST", "/same")
        self.store.asked.clear()
        browser.ask("POST", "/same")
        self.assertEqual(self.store.asked, ["load"])

    def test_values_can_be_taken_out_one_by_one_and_all_together(self) -> None:
        @self.app.post("/pop")
        async def pop(request: Request) -> Any:
            return (await request.session()).pop("a")

        @self.app.post("/clear")
        async def clear(request: Request) -> None:
            (await request.session()).clear()

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        browser.ask("POST", "/set/b/2")
        self.assertEqual(browser.ask("POST", "/pop").body, b"1")
        self.assertEqual(browser.get("/show").body, b'{"b":"2"}')
        browser.ask("POST", "/clear")
        self.assertEqual(browser.get("/show").body, b"{}")
        self.assertEqual(len(self.store), 0)

    def test_an_answer_with_an_error_of_the_clients_saves_and_a_5xx_does_not(self) -> None:
        @self.app.post("/fails/{status:int}")
        async def fails(request: Request, status: int) -> None:
            (await request.session())["status"] = status
            raise HTTPError(status)

        browser = self.browser()
        browser.ask("POST", "/fails/403")
        self.assertEqual(browser.get("/show").body, b'{"status":403}')
        browser.ask("POST", "/fails/500")
        self.assertEqual(browser.get("/show").body, b'{"status":403}')

    def test_after_the_answer_nothing_can_be_changed(self) -> None:
        kept: list[Session] = []

        @self.app.get("/keep")
        async def keep(request: Request) -> None:
            kept.append(await request.session())
            kept[0]["a"] = 1

        self.browser().get("/keep")
        for change in (
            lambda: kept[0].update(a=2),
            lambda: kept[0].pop("a"),
            lambda: kept[0].rotate(),
            lambda: kept[0].destroy(),
        ):
            with self.assertRaisesRegex(LocalProtocolError, "saved already"):
                change()
        self.assertEqual(kept[0]["a"], 1)

    def test_a_response_that_is_given_to_everybody_carries_nobodys_cookie(self) -> None:
        shared = Response(200, b"shared")

        @self.app.post("/shared")
        async def answer(request: Request) -> Response:
            (await request.session())["a"] = 1
            return shared

        browser = self.browser()
        sent = browser.ask("POST", "/shared")
        self.assertEqual((len(browser.set_cookies), sent.body), (1, b"shared"))
        self.assertNotIn("set-cookie", shared.headers)
        self.assertNotIn("cache-control", shared.headers)

    def test_answers_with_a_session_are_not_for_shared_caches(self) -> None:
        @self.app.get("/public")
        async def public(request: Request) -> Response:
            await request.session()
            return Response(200, headers={"Cache-Control": "public, max-age=60"})

        browser = self.browser()
        for method, target, cached in (
            ("GET", "/show", "private"),
            ("POST", "/set/a/1", "no-store"),
            ("GET", "/show", "private"),
            ("POST", "/logout", "no-store"),
            ("GET", "/public", "public, max-age=60"),
        ):
            headers = browser.ask(method, target).headers
            self.assertEqual(headers.get_all("cache-control"), [cached])

    def test_an_upgrade_may_read_the_session(self) -> None:
        @self.app.get("/upgrade")
        async def upgrade(request: Request) -> Upgrade:
            return Upgrade(dict(await request.session()))

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        answer: Any = self.app.handle(browser.make("GET", "/upgrade"))
        self.assertEqual(answer.protocol, {"a": "1"})


class UnavailableTests(FaultySessionCase):
    def test_a_session_that_cannot_be_loaded_is_a_503_and_stays_as_it_is(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        self.store.is_down = True
        answer = browser.ask("POST", "/set/b/2")
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "2"))
        self.assertEqual(browser.set_cookies, [])
        self.store.is_down = False
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')

    def test_a_session_that_cannot_be_saved_is_a_503_without_a_cookie(self) -> None:
        browser = self.browser()
        self.store.is_down = True
        answer = browser.ask("POST", "/set/a/1")
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "2"))
        self.assertEqual(browser.set_cookies, [])

    def test_who_has_no_session_and_wants_none_is_served(self) -> None:
        self.store.is_down = True
        self.assertEqual(self.browser().get("/show").body, b"{}")


class SessionTests(SynchronousTestCase):
    """The mapping."""

    def test_values_of_json_only(self) -> None:
        session = Session()
        for value in ((1,), {1, 2}, b"a", object(), {1: 2}, [(1,)]):
            with self.assertRaisesRegex(TypeError, r"session\['a'\] must be|keys of a dict"):
                session["a"] = value
        for value in (nan, 2**64, "\ud800"):
            with self.assertRaisesRegex(ValueError, r"session\['a'\]: "):
                session["a"] = value
        with self.assertRaisesRegex(TypeError, "a name in a session must be str, not int"):
            session[1] = 2  # type: ignore[index]
        self.assertEqual(dict(session), {})

    def test_what_is_too_much_is_refused_and_changes_nothing(self) -> None:
        session = Session()
        session["a"] = "x" * (64 * 1024 - 5)
        with self.assertRaisesRegex(ValueError, "at most 65536 bytes"):
            session["b"] = ""
        session["a"] = "x"
        session.update({f"f{n}": n for n in range(99)})
        with self.assertRaisesRegex(ValueError, "at most 100 values"):
            session["b"] = 1
        session["a"] = 2
        self.assertEqual(len(session), 100)

    def test_what_grew_too_large_inside_is_refused_when_it_is_saved(self) -> None:
        session = Session()
        session["a"] = []
        session["a"].append("x" * 70_000)
        self.assertRaises(ValueError, session.changes)
        session["a"] = []
        session["a"].append((1,))
        self.assertRaises(TypeError, session.changes)

    def test_fields_that_are_not_ours_are_left_alone(self) -> None:
        fields = {"a": b"[1]", "b": b"text", "c": b"[1,2]", "d": b"[1%s]" % (b"0" * 30)}
        session = Session(fields, origin="id")
        self.assertEqual(dict(session), {"a": 1})
        session.clear()
        self.assertEqual(session.changes(), ({}, ["a"]))

    def test_other_spaces_are_no_change(self) -> None:
        session = Session({"a": b'[ {"b": 1} ]', "c": b"[ 1 ]"}, origin="id")
        session["c"] = 1
        self.assertEqual(session.changes(), ({}, []))
        session["a"]["b"] = 2
        session["c"] = "1"
        changed = {"a": encode_value({"b": 2}), "c": encode_value("1")}
        self.assertEqual(session.changes(), (changed, []))

    def test_another_type_is_a_change(self) -> None:
        session = Session({"a": b"[1]", "b": b"[[0]]"}, origin="id")
        session["a"] = True
        session["b"][0] = 0.0
        changed = {"a": encode_value(True), "b": encode_value([0.0])}
        self.assertEqual(session.changes(), (changed, []))

    def test_whether_it_is_new(self) -> None:
        self.assertTrue(Session().is_new)
        found = Session({"a": b"[1]"}, origin="id")
        self.assertFalse(found.is_new)
        found.rotate()
        self.assertFalse(found.is_new)
        found.destroy()
        self.assertTrue(found.is_new)

    def test_ids_are_of_128_random_bits(self) -> None:
        ids = {Session().id for _ in range(100)}
        self.assertEqual(len(ids), 100)
        self.assertTrue(all(re.fullmatch(r"[\w-]{22}", each, re.ASCII) for each in ids))
