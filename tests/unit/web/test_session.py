"""Sessions, from the handler's side and from the browser's; no connection, no Redis."""

from __future__ import annotations

import re
from math import nan
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.errors import BrokerUnavailable, LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.web.app import HTTPError, Request
from pelotontx.web.session import Session
from pelotontx.wire.session import encode_value
from tests.unit.web.session_case import SECRET, Browser, SessionCase

COOKIE = "__Host-session"


class FaultyStore(MemorySessions):
    """A store that fails on demand, or has to be waited for, and counts what it is asked."""

    is_down = False
    is_holding = False

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.asked: list[str] = []
        self.held: list[Deferred[Any]] = []

    def load(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        if self.is_holding:
            self.held.append(Deferred())
            return self.held[-1]
        return self._ask("load", *arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        return self._ask("save", *arguments, **options)

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Deferred[Any]:
        self.asked.append(name)
        if self.is_down:
            return fail(BrokerUnavailable("down"))
        found: Deferred[Any] = getattr(MemorySessions, name)(self, *arguments, **options)
        return found


class Case(SessionCase):
    def setUp(self) -> None:
        super().setUp()
        self.store: FaultyStore = FaultyStore(self.clock)
        self.texts: list[str] = []

        def observe(event: LogEvent) -> None:
            if event["log_namespace"].startswith("pelotontx.web"):
                self.texts.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

        @self.app.get("/show")
        async def show(request: Request) -> Any:
            return dict(await request.session())

        @self.app.post("/set/{name}/{value}")
        async def set_(request: Request, name: str, value: str) -> str:
            session = await request.session()
            session[name] = value
            return session.id

        @self.app.post("/login")
        async def login(request: Request) -> str:
            session = await request.session()
            session.rotate()
            session["user"] = "bob"
            return session.id

        @self.app.post("/logout")
        async def logout(request: Request) -> str:
            (await request.session()).destroy()
            return "bye"


class CookieTests(Case):
    def test_who_puts_nothing_in_gets_no_cookie_and_no_session_is_stored(self) -> None:
        browser = self.browser()
        self.assertEqual(browser.get("/show").body, b"{}")
        self.assertEqual(browser.set_cookies, [])
        self.assertEqual(self.store.asked, [])

    def test_a_request_that_does_not_ask_for_its_session_costs_nothing(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        self.store.asked.clear()
        self.app.get("/plain")(lambda request: "plain")
        self.assertEqual(browser.get("/plain").body, b"plain")
        self.assertEqual(self.store.asked, [])

    def test_the_cookie_is_as_strict_as_cookies_can_be(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        (line,) = browser.set_cookies
        cookie, *attributes = line.split("; ")
        self.assertRegex(cookie, r"^__Host-session=[\w-]{22}\.1700000000\.[\w-]{43}$")
        self.assertEqual(set(attributes), {"Path=/", "SameSite=Lax", "Secure", "HttpOnly"})

    def test_what_was_set_is_there_in_the_next_request_without_another_cookie(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        self.assertEqual(browser.set_cookies, [])
        browser.ask("POST", "/set/b/2")
        self.assertEqual(browser.set_cookies, [])
        self.assertEqual(browser.get("/show").body, b'{"a":"1","b":"2"}')

    def test_two_servers_with_one_store_and_secret_share_sessions(self) -> None:
        one, two = self.browser(), self.browser()
        one.ask("POST", "/set/a/1")
        two.cookies = one.cookies
        self.assertEqual(two.get("/show").body, b'{"a":"1"}')

    def test_a_new_secret_keeps_the_sessions_of_the_old_one(self) -> None:
        old, new = self.browser(), self.browser(secrets=["the new one", SECRET])
        old.ask("POST", "/set/a/1")
        new.cookies = old.cookies
        self.assertEqual(new.get("/show").body, b'{"a":"1"}')

    def test_a_cookie_that_was_tampered_with_is_none(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        good = browser.cookies[COOKIE]
        session_id, began, signature = good.split(".")
        for bad in (
            f"{session_id}.{int(began) + 1}.{signature}",
            f"{session_id[:-1]}{'a' if session_id[-1] != 'a' else 'b'}.{began}.{signature}",
            f"{session_id}.{began}.{signature[::-1]}",
            f"{session_id}.{began}.",
            session_id,
            "",
        ):
            browser.cookies[COOKIE] = bad
            self.assertEqual(browser.get("/show").body, b"{}", bad)

    def test_a_cookie_of_another_server_is_none(self) -> None:
        other, browser = self.browser(secrets=["another"]), self.browser()
        other.ask("POST", "/set/a/1")
        browser.cookies = other.cookies
        self.assertEqual(browser.get("/show").body, b"{}")

    def test_an_id_that_is_not_in_the_store_is_not_adopted(self) -> None:
        attacker, victim = self.browser(), self.browser()
        planted = attacker.ask("POST", "/set/a/1").body
        attacker.ask("POST", "/logout")
        attacker.ask("POST", "/set/a/1")
        self.store.stop()  # whatever made them vanish: the cookie is signed by us
        victim.cookies = dict(attacker.cookies)
        self.assertNotEqual(victim.ask("POST", "/set/b/2").body, planted)
        self.assertEqual(len(victim.set_cookies), 1)
        self.assertNotEqual(victim.cookies, attacker.cookies)

    def test_without_secure_the_cookie_has_neither_prefix_nor_flag_and_a_warning(self) -> None:
        browser = self.browser(secure=False, cookie="sid")
        browser.ask("POST", "/set/a/1")
        (line,) = browser.set_cookies
        self.assertTrue(line.startswith("sid="))
        self.assertNotIn("Secure", line)
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        self.assertEqual(len(self.texts), 1)
        self.assertIn("session.secure is off", self.texts[0])

    def test_without_a_secret_one_is_made_up_and_the_first_session_warns_of_it(self) -> None:
        browser, other = self.browser(secrets=()), self.browser(secrets=())
        browser.get("/show")
        self.assertEqual(self.texts, [])
        browser.ask("POST", "/set/a/1")
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        browser.ask("POST", "/login")
        self.assertEqual(len(self.texts), 1)
        self.assertIn("PELOTON_SESSION__SECRET", self.texts[0])
        other.cookies = browser.cookies
        self.assertEqual(other.get("/show").body, b"{}")

    def test_neither_ids_nor_values_are_shown(self) -> None:
        session = Session({"card": b'["4711"]'}, origin="the id")
        self.assertEqual(repr(session), "<Session with 1 values>")


class PlainHTTPTests(Case):
    def begin(self, **seen: Any) -> list[str]:
        browser = self.browser()
        browser.request_class = type(
            "Seen", (browser.request_class,), {"__slots__": (), "is_secure": False, **seen}
        )
        browser.ask("POST", "/set/a/1")
        browser.ask("POST", "/login")
        return self.texts

    def test_a_browser_that_will_drop_the_cookie_is_warned_of_once(self) -> None:
        (text,) = self.begin(client="203.0.113.7")
        self.assertIn("plain HTTP", text)
        self.assertIn("203.0.113.7", text)

    def test_loopback_proxies_and_tls_are_fine(self) -> None:
        for seen in (
            {"client": "127.0.0.1"},
            {"client": "::1"},
            {"client": "unix"},
            {"client": "203.0.113.7", "is_secure": True},
        ):
            self.assertEqual(self.begin(**seen), [])


class LifeTests(Case):
    def test_it_ends_when_nobody_asked_for_it_for_the_idle_time(self) -> None:
        browser = self.browser(idle_timeout_s=600)
        browser.ask("POST", "/set/a/1")
        self.clock.advance(599)
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        self.clock.advance(600)
        self.assertEqual(browser.get("/show").body, b"{}")

    def test_reading_keeps_it_alive_up_to_its_lifetime(self) -> None:
        browser = self.browser(idle_timeout_s=600, lifetime_s=3600)
        browser.ask("POST", "/set/a/1")
        for _ in range(11):
            self.clock.advance(300)
            self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        self.clock.advance(299)
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')
        self.clock.advance(1)
        self.assertEqual(browser.get("/show").body, b"{}")

    def test_past_its_lifetime_the_store_is_not_even_asked(self) -> None:
        browser = self.browser(idle_timeout_s=600, lifetime_s=600)
        browser.ask("POST", "/set/a/1")
        self.clock.advance(600)
        self.store.asked.clear()
        browser.get("/show")
        self.assertEqual(self.store.asked, [])

    def test_writing_does_not_prolong_the_lifetime_but_a_rotation_does(self) -> None:
        browser = self.browser(idle_timeout_s=600, lifetime_s=600)
        browser.ask("POST", "/set/a/1")
        self.clock.advance(400)
        browser.ask("POST", "/set/b/2")
        self.clock.advance(100)
        browser.ask("POST", "/login")
        self.clock.advance(500)
        self.assertEqual(browser.get("/show").body, b'{"a":"1","b":"2","user":"bob"}')
        self.clock.advance(100)
        self.assertEqual(browser.get("/show").body, b"{}")


class RotationTests(Case):
    def test_at_login_the_id_changes_and_the_values_stay(self) -> None:
        browser, thief = self.browser(), self.browser()
        before = browser.ask("POST", "/set/a/1").body
        thief.cookies = dict(browser.cookies)
        self.assertNotEqual(browser.ask("POST", "/login").body, before)
        self.assertEqual(len(browser.set_cookies), 1)
        self.assertEqual(browser.get("/show").body, b'{"a":"1","user":"bob"}')
        self.assertEqual(thief.get("/show").body, b"{}")
        self.assertEqual(len(self.store), 1)

    def test_a_login_without_a_session_begins_one(self) -> None:
        browser = self.browser()
        browser.ask("POST", "/login")
        self.assertEqual(browser.get("/show").body, b'{"user":"bob"}')

    def test_a_rotation_alone_keeps_the_values(self) -> None:
        @self.app.post("/rotate")
        async def rotate(request: Request) -> None:
            session = await request.session()
            session.rotate()
            session.rotate()

        browser = self.browser()
        browser.ask("POST", "/set/a/1")
        before = dict(browser.cookies)
        browser.ask("POST", "/rotate")
        self.assertNotEqual(browser.cookies, before)
        self.assertEqual(browser.get("/show").body, b'{"a":"1"}')

    def test_a_rotation_of_nothing_issues_nothing(self) -> None:
        @self.app.post("/rotate")
        async def rotate(request: Request) -> None:
            (await request.session()).rotate()

        browser = self.browser()
        browser.ask("POST", "/rotate")
        self.assertEqual((browser.set_cookies, len(self.store)), ([], 0))

    def test_logged_out_it_is_gone_everywhere_and_so_is_the_cookie(self) -> None:
        browser, other = self.browser(), self.browser()
        browser.ask("POST", "/login")
        other.cookies = dict(browser.cookies)
        browser.ask("POST", "/logout")
        self.assertEqual(browser.cookies, {})
        self.assertRegex(browser.set_cookies[0], r"^__Host-session=;.*Max-Age=0;.*Secure")
        self.assertEqual(other.get("/show").body, b"{}")
        self.assertEqual(len(self.store), 0)

    def test_a_logout_without_a_session_does_nothing(self) -> None:
        browser = self.browser()
        self.assertEqual(browser.ask("POST", "/logout").body, b"bye")
        self.assertEqual(browser.set_cookies, [])

    def test_what_is_set_after_a_logout_begins_a_new_session(self) -> None:
        @self.app.post("/bye")
        async def bye(request: Request) -> Any:
            session = await request.session()
            session.destroy()
            session["flash"] = "bye"
            return [session.is_new, session.id]

        browser = self.browser()
        before = browser.ask("POST", "/login").body
        answer = browser.ask("POST", "/bye").body
        assert isinstance(answer, bytes)
        assert isinstance(before, bytes)
        self.assertTrue(answer.startswith(b"[true,"))
        self.assertNotIn(before, answer)
        self.assertEqual(browser.get("/show").body, b'{"flash":"bye"}')
        self.assertEqual(len(self.store), 1)


class ConcurrencyTests(Case):
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


class HandlerTests(Case):
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


class UnavailableTests(Case):
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
