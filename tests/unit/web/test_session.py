"""Sessions: their cookie, their life, and how they change hands; no connection, no Redis."""

from __future__ import annotations

from typing import Any

from pelotontx.web import Request
from pelotontx.web.session import Session
from tests.unit.web.session_case import SECRET, FaultySessionCase

COOKIE = "__Host-session"


class CookieTests(FaultySessionCase):
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


class PlainHTTPTests(FaultySessionCase):
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


class LifeTests(FaultySessionCase):
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


class RotationTests(FaultySessionCase):
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
