"""Sessions as users have them: real servers with `examples/login`, a real Redis, a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent

from pelotontx.broker.memory import MemoryBroker
from pelotontx.net.http import HTTPFactory
from pelotontx.net.tcp import listen
from pelotontx.net.wheel import Wheel
from pelotontx.web import App, Request, Sessions
from tests.support.browser import chromium, on_browser_thread
from tests.support.programs import PelotonServer
from tests.support.servers import RedisServer, eventually, redis_binary

FOLDER = Path(__file__).parents[2] / "examples" / "login"
SECRET = "of-these-tests-and-used-nowhere-else"
COOKIE = "__Host-session"
BOB = {"user": "bob", "password": "secret"}


class Visitor:
    """A program with cookies of its own, at any server."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}
        self._client = HTTPClient(Agent(reactor))

    async def ask(
        self, server: PelotonServer, method: str, path: str, form: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and text."""
        headers = {"Connection": "close"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{n}={v}" for n, v in self.cookies.items())
        response = await self._client.request(
            method, server.url + path, headers=headers, data=form, timeout=20, allow_redirects=False
        )
        for line in response.headers.getRawHeaders("Set-Cookie", []):
            name, value = line.partition(";")[0].split("=", 1)
            self.cookies[name] = value
        return response.code, (await response.content()).decode()

    async def send(
        self, server: PelotonServer, path: str, form: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Sends the form of a page, as it is rendered now."""
        _, page = await self.ask(server, "GET", "/" if path == "/logout" else path)
        match = re.search('name="csrf_token" value="([^"]+)"', page)
        assert match is not None, page
        return await self.ask(server, "POST", path, {**(form or {}), "csrf_token": match[1]})


def server_on(redis: RedisServer, **more: str) -> PelotonServer:
    """The example on a Redis."""
    return PelotonServer(
        reactor,
        *("--config", "peloton.toml"),
        folder=FOLDER,
        environ={
            "PELOTON_BROKER__URL": redis.url,
            "PELOTON_SESSION__SECRET": SECRET,
            "PELOTON_BROKER__REPLY_TIMEOUT": "1s",
            **more,
        },
    )


@pytest_twisted.async_yield_fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer(reactor, redis_binary()) as server:
        yield server


class TestServers:
    @staticmethod
    async def status_after(visitor: Visitor, server: PelotonServer, status: int) -> int:
        """The first status of the page that is another one."""
        deadline_s = reactor.seconds() + 20
        found = status
        while found == status and reactor.seconds() < deadline_s:
            found, _ = await visitor.ask(server, "GET", "/")
        return found

    @pytest_twisted.ensureDeferred
    async def test_login_and_logout(self, redis: RedisServer) -> None:
        visitor = Visitor()
        async with server_on(redis) as server:
            assert (await visitor.ask(server, "GET", "/"))[0] == 303
            assert visitor.cookies == {}
            assert (await visitor.send(server, "/login", {**BOB, "password": "x"}))[0] == 403
            before = dict(visitor.cookies)
            assert (await visitor.send(server, "/login", BOB))[0] == 303
            assert visitor.cookies[COOKIE] != before[COOKIE]
            assert "Welcome, bob" in (await visitor.ask(server, "GET", "/"))[1]
            after = dict(visitor.cookies)
            assert (await visitor.send(server, "/logout"))[0] == 303
            assert visitor.cookies == {COOKIE: ""}
            assert await redis.command("KEYS", "session:*") == []
            visitor.cookies = after
            assert (await visitor.ask(server, "GET", "/"))[0] == 303
            assert after[COOKIE] not in server.output
            assert SECRET not in server.output

    @pytest_twisted.ensureDeferred
    async def test_a_form_without_its_token_is_refused(self, redis: RedisServer) -> None:
        async with server_on(redis) as server:
            assert (await Visitor().ask(server, "POST", "/login", BOB))[0] == 403

    @pytest_twisted.ensureDeferred
    async def test_two_servers_and_a_program_of_another_language_share_sessions(
        self, redis: RedisServer
    ) -> None:
        visitor = Visitor()
        async with server_on(redis) as one, server_on(redis) as two:
            await visitor.send(one, "/login", BOB)
            assert "<output>1</output>" in (await visitor.ask(two, "GET", "/"))[1]
            assert "<output>2</output>" in (await visitor.ask(one, "GET", "/"))[1]
            (key,) = await redis.command("KEYS", "session:*")
            assert key.decode() == f"session:{visitor.cookies[COOKIE].partition('.')[0]}"
            assert await redis.command("HGET", key, "user") == b'["bob"]'
            assert 0 < await redis.command("TTL", key) <= 1800
            await redis.command("HSET", key, "user", '["<alice>"]')
            assert "Welcome, &lt;alice&gt;" in (await visitor.ask(two, "GET", "/"))[1]

    @pytest_twisted.ensureDeferred
    async def test_a_session_outlives_its_server(self, redis: RedisServer) -> None:
        visitor = Visitor()
        async with server_on(redis) as server:
            await visitor.send(server, "/login", BOB)
        renewed = {
            "PELOTON_SESSION__SECRET": SECRET[::-1],
            "PELOTON_SESSION__OLD_SECRETS": SECRET,
        }
        async with server_on(redis, **renewed) as server:
            assert "Welcome, bob" in (await visitor.ask(server, "GET", "/"))[1]
        async with server_on(redis, PELOTON_SESSION__SECRET=SECRET[::-1]) as server:
            assert (await visitor.ask(server, "GET", "/"))[0] == 303

    @pytest_twisted.ensureDeferred
    async def test_without_a_redis_it_is_a_503_and_nobody_is_logged_out(
        self, redis: RedisServer
    ) -> None:
        visitor = Visitor()
        async with server_on(redis) as server:
            await visitor.send(server, "/login", BOB)
            redis.freeze()
            assert (await visitor.ask(server, "GET", "/"))[0] == 503
            redis.thaw()
            assert await self.status_after(visitor, server, 503) == 200
            assert "Welcome, bob" in (await visitor.ask(server, "GET", "/"))[1]
            await redis.kill()
            assert await self.status_after(visitor, server, 200) == 503
            assert (await Visitor().ask(server, "GET", "/"))[0] == 303
            await redis.start()
            # What was in it is lost, and that is said as it is: logged out, not an error for ever.
            assert await self.status_after(visitor, server, 503) == 303
            await visitor.send(server, "/login", BOB)
            assert "Welcome, bob" in (await visitor.ask(server, "GET", "/"))[1]

    @pytest_twisted.ensureDeferred
    async def test_without_a_secret_the_first_session_warns(self, redis: RedisServer) -> None:
        visitor = Visitor()
        async with server_on(redis, PELOTON_SESSION__SECRET="") as server:
            await visitor.ask(server, "GET", "/")
            assert "PELOTON_SESSION__SECRET" not in server.output
            await visitor.send(server, "/login", BOB)
            await eventually(reactor, lambda: "PELOTON_SESSION__SECRET" in server.output)
            assert "Welcome, bob" in (await visitor.ask(server, "GET", "/"))[1]


class TestWithoutConfiguration:
    @pytest_twisted.ensureDeferred
    async def test_a_server_made_by_hand_has_sessions_too(self) -> None:
        app, wheel, broker = App(), Wheel(reactor), MemoryBroker(reactor)

        class OwnRequest(Request):
            __slots__ = ()
            sessions = Sessions(store=broker.sessions, secrets=[SECRET])

        @app.get("/")
        async def count(request: Request) -> str:
            session = await request.session()
            session["n"] = session.get("n", 0) + 1
            return str(session["n"])

        factory = HTTPFactory(app.handle, wheel=wheel, clock=reactor, request_class=OwnRequest)
        port = await listen(reactor, "tcp:0:interface=127.0.0.1", factory)
        url = f"http://127.0.0.1:{port.getHost().port}/"
        try:
            cookie, answers = "", []
            for _ in range(3):
                headers = {"Connection": "close", **({"Cookie": cookie} if cookie else {})}
                response = await HTTPClient(Agent(reactor)).get(url, headers=headers, timeout=20)
                answers.append(await response.text())
                for line in response.headers.getRawHeaders("Set-Cookie", []):
                    cookie = line.partition(";")[0]
            assert answers == ["1", "2", "3"]
        finally:
            await port.stopListening()
            await factory.drain(5)
            await broker.stop()
            wheel.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class TestBrowser:
    """Chromium, over plain HTTP on loopback."""

    @staticmethod
    async def opened(folder: Path, secure: str) -> PelotonServer:
        server = PelotonServer(
            reactor,
            *("--config", str(FOLDER / "peloton.toml")),
            folder=folder,
            environ={"PELOTON_SESSION__SECURE": secure, "PYTHONPATH": str(FOLDER)},
        )
        await server.start()
        return server

    @pytest.mark.parametrize(("secure", "cookie"), [("true", COOKIE), ("false", "session")])
    @pytest_twisted.ensureDeferred
    async def test_login_and_logout(
        self, browser: Any, tmp_path: Path, secure: str, cookie: str
    ) -> None:
        server = await self.opened(tmp_path, secure)
        try:
            # The server is a process of its own: the reactor may stand still meanwhile.
            on_browser_thread(self.log_in_and_out)(browser, server.url, cookie)
        finally:
            await server.stop()

    @staticmethod
    def log_in_and_out(browser: Any, url: str, cookie: str) -> None:
        from playwright.sync_api import expect

        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        expect(page).to_have_url(f"{url}/login")
        before = {each["name"]: each for each in context.cookies()}
        assert (before[cookie]["httpOnly"], before[cookie]["sameSite"]) == (True, "Lax")
        assert before[cookie]["secure"] is (cookie == COOKIE)
        assert page.evaluate("document.cookie") == ""
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill("secret")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading")).to_have_text("Welcome, bob")
        assert {each["name"]: each["value"] for each in context.cookies()} != {
            name: each["value"] for name, each in before.items()
        }
        page.reload()
        expect(page.get_by_role("status")).to_have_text("2")
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(f"{url}/login")
        page.goto(url)
        expect(page).to_have_url(f"{url}/login")
        context.close()

    @pytest_twisted.ensureDeferred
    async def test_another_site_cannot_log_anybody_out(self, browser: Any, tmp_path: Path) -> None:
        server = await self.opened(tmp_path, "true")
        try:
            on_browser_thread(self.attack)(browser, server.url, server.port)
        finally:
            await server.stop()

    @staticmethod
    def attack(browser: Any, url: str, port: int) -> None:
        from playwright.sync_api import expect

        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/login")
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill("secret")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading")).to_have_text("Welcome, bob")
        token = page.locator("input[name=csrf_token]").get_attribute("value")
        elsewhere = context.new_page()
        elsewhere.goto(f"http://localhost:{port}/login")  # another site than 127.0.0.1
        with elsewhere.expect_navigation() as navigation:
            elsewhere.evaluate(
                """([action, token]) => {
                    const form = document.createElement("form");
                    form.method = "post";
                    form.action = action;
                    form.innerHTML = `<input name="csrf_token" value="${token}">`;
                    document.body.append(form);
                    form.submit();
                }""",
                [f"{url}/logout", token],
            )
        assert navigation.value.status == 403
        expect(elsewhere.locator("body")).to_contain_text("another site")
        page.reload()
        expect(page.get_by_role("heading")).to_have_text("Welcome, bob")
        context.close()
