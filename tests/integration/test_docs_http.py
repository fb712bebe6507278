"""The programs of docs/http.md, and what is said of them there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory

from pelotontx.config.sections import SECTIONS
from pelotontx.net.http.client import HEAD_TIMEOUT_S, TIMEOUT_S, Answer, fetch
from pelotontx.net.http2.connection import STREAMS
from pelotontx.net.tcp import connect
from pelotontx.wire.routing import ROUTED_PATH_LIMIT
from tests.support.conversation import Conversation
from tests.support.documents import DOCS, programs
from tests.support.programs import PelotonServer, Program
from tests.support.servers import eventually, free_port

ROOT = Path(__file__).parents[2]
PYTHON = programs("http.md", "python")
TOML = programs("http.md", "toml")
MOUNTS = "examples/mounts/peloton.toml"


class Shop:
    """The program of the page, as the page starts it."""

    def __init__(self, folder: Path, config: str = "peloton.toml") -> None:
        for name, text in {**PYTHON, **TOML}.items():
            if name != MOUNTS:
                (folder / name).write_text(text)
        (folder / "static").mkdir()
        (folder / "static" / "terms.txt").write_text("Be kind.\n")
        (folder / "static" / "app.0123abcd.js").write_text("0\n")
        (folder / "photos").mkdir()
        self.folder = folder
        port = free_port()
        self.server = PelotonServer(
            reactor,
            *("--config", config, "--broker", "memory:"),
            port=port,
            folder=folder,
            environ={"MARKET": f"http://127.0.0.1:{port}"},
        )

    async def ask(self, path: str, method: str = "GET", **options: Any) -> Answer:
        options.setdefault("headers", {})
        return await fetch(reactor, method, self.server.url + path, **options)

    async def text(self, path: str, **options: Any) -> str:
        answer = await self.ask(path, **options)
        assert answer.status == 200, answer
        return answer.body.decode()

    async def talk(self, request: str) -> Conversation:
        client = await connect(
            reactor, f"tcp:127.0.0.1:{self.server.port}", Factory.forProtocol(Conversation)
        )
        assert isinstance(client, Conversation)
        client.say(request.encode())
        return client


@pytest_twisted.async_yield_fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    async with shop.server:
        yield shop


def field(answer: Answer, name: str) -> str:
    values = answer.headers.getRawHeaders(name)
    return values[-1] if values else ""


def cookie(answer: Answer) -> str:
    """What a browser would send back."""
    return field(answer, "Set-Cookie").partition(";")[0]


@pytest_twisted.ensureDeferred
async def test_the_first_program(tmp_path: Path) -> None:
    assert PYTHON["hello.py"].strip() in (ROOT / "README.md").read_text()
    port = free_port()
    assert "8080" in PYTHON["hello.py"]
    (tmp_path / "hello.py").write_text(PYTHON["hello.py"].replace("8080", str(port)))
    program = Program(reactor, folder=tmp_path, command=(sys.executable, "hello.py"))
    program.child.start()
    try:
        await eventually(reactor, lambda: "Listening on" in program.output, timeout_s=20)
        answer = await fetch(reactor, "GET", f"http://127.0.0.1:{port}/hello/ann")
        assert (answer.status, answer.body) == (200, b"Hello, ann")
    finally:
        await program.stop()


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    Shop(tmp_path)  # writes the files, and is not started
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"]
    ended = subprocess.run(
        program, cwd=tmp_path, timeout=60, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout


class TestRoutes:
    @pytest_twisted.ensureDeferred
    async def test_captures_converters_and_further_arguments(self, shop: Shop) -> None:
        assert await shop.text("/") == "<h1>The shop is open</h1>"
        assert await shop.text("/archive/2026/05") == "05/2026"
        assert await shop.text("/price/pear") == '{"pear":45}'
        assert (await shop.ask("/price/plum")).status == 404
        assert (await shop.ask("/price/plum/7", "PUT")).status == 204
        assert (await shop.ask("/price/plum/dear", "PATCH")).status == 404
        assert await shop.text("/price/plum") == '{"plum":7}'
        assert await shop.text("/hello/ann") == "Hello, ann"
        assert await shop.text("/ciao/ann%20b") == "Ciao, ann b"
        assert await shop.text("/opening/2026-05-03") == "closed"
        assert await shop.text("/opening/2026-05-04") == "8 to 18"
        assert (await shop.ask("/opening/2026-13-04")).status == 404
        wrong = await shop.ask("/price/pear", "DELETE")
        assert (wrong.status, field(wrong, "Allow")) == (405, "GET, HEAD, OPTIONS")

    @pytest_twisted.ensureDeferred
    async def test_addresses_are_built_from_names(self, shop: Shop) -> None:
        before = date.today()
        answer = await shop.ask("/today")
        assert answer.status == 303
        assert field(answer, "Location") in {f"/opening/{before}", f"/opening/{date.today()}"}


class TestHooks:
    @pytest_twisted.ensureDeferred
    async def test_hooks_of_an_app_hold_below_its_prefix(self, shop: Shop) -> None:
        refused = await shop.ask("/admin/stock/pear")
        assert (refused.status, field(refused, "WWW-Authenticate")) == (401, "Bearer")
        known = await shop.ask("/admin/stock/pear", headers={"Authorization": "Bearer opensesame"})
        assert known.json() == {"fruit": "pear", "by": "ann"}
        for answer in (refused, known, await shop.ask("/nothing")):
            assert field(answer, "X-Content-Type-Options") == "nosniff"

    @pytest_twisted.ensureDeferred
    async def test_errors_are_pages_or_json(self, shop: Shop) -> None:
        zero = await shop.ask("/share/0")
        assert (zero.status, zero.body) == (422, b"that is nothing\n")
        assert await shop.text("/share/3") == "33"
        answer = await shop.ask("/price/plum", headers={"Accept": "application/json"})
        assert answer.json() == {"error": {"status": 404, "message": "There is no plum here."}}


@pytest_twisted.ensureDeferred
async def test_requests(shop: Shop) -> None:
    answer = await shop.ask("/order", "POST", json={"fruit": "pear", "count": 2})
    assert (answer.status, answer.json()) == (201, {"total": 90})
    assert (await shop.ask("/order/example")).json() == {"fruit": "pear", "count": 1}
    wrong = await shop.ask("/order", "POST", json={"fruit": "pear", "count": "two"})
    assert wrong.status == 400
    assert b"Expected `int`, got `str` - at `$.count`" in wrong.body.replace(b"&#x27;", b"'")
    found = await shop.ask("/search?q=pea")
    assert found.body == b"<p>1 found</p>"
    assert await shop.text("/last", headers={"Cookie": cookie(found)}) == "pea"
    assert await shop.text("/last") == "nothing yet"
    assert await shop.text("/rename", method="POST", data={"name": "Zoë"}) == "now called Zoë"
    assert (await shop.ask("/search?" + 999 * "q&" + "q")).status == 200
    assert (await shop.ask("/search?" + 1000 * "q&" + "q")).status == 400
    answer = await shop.ask("/order", "POST", data=b"x" * 1_100_000)
    assert answer.status == 413


class TestStreams:
    @pytest_twisted.ensureDeferred
    async def test_a_generator_is_closed_when_its_client_goes(self, shop: Shop) -> None:
        client = await shop.talk("GET /count HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"2\n\r\n")
        assert client.transport is not None
        client.transport.loseConnection()
        await eventually(reactor, lambda: "stopped at" in shop.server.output, timeout_s=30)

    @pytest_twisted.ensureDeferred
    async def test_trailers_follow_for_those_who_ask(self, shop: Shop) -> None:
        head = "GET /export HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        asked = await (await shop.talk(f"{head}TE: trailers\r\n\r\n")).until(None)
        assert asked.endswith(b"0\r\nX-Rows: 2\r\n\r\n")
        plain = await (await shop.talk(f"{head}\r\n")).until(None)
        assert plain.endswith(b"8\r\npear;45\n\r\n0\r\n\r\n")
        old = await (await shop.talk("GET /export HTTP/1.0\r\n\r\n")).until(None)
        assert old.endswith(b"\r\n\r\napple;30\npear;45\n")

    @pytest_twisted.ensureDeferred
    async def test_a_body_is_read_as_it_comes(self, shop: Shop) -> None:
        answer = await shop.ask("/measure", "POST", data=b"x" * 3_000_000)
        assert answer.json() == {"bytes": 3_000_000}
        head = "POST /measure HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: "
        small = await shop.talk(f"{head}3\r\nConnection: close\r\n\r\n")
        await small.until(b"100 Continue\r\n\r\n")
        small.say(b"abc")
        assert (await small.until(None)).endswith(b'{"bytes":3}')
        large = await (await shop.talk(f"{head}10000001\r\n\r\n")).until(None)
        assert large.startswith(b"HTTP/1.1 413 ")


@pytest_twisted.ensureDeferred
async def test_uploads(shop: Shop) -> None:
    photo = b"\x89PNG" + b"x" * 100_000
    files = {"photo": ("../me.png", "image/png", photo)}
    answer = await shop.ask("/photos", "POST", data={"title": "Me"}, files=files)
    assert (answer.status, answer.json()) == (201, {"bytes": len(photo), "title": "Me"})
    assert (shop.folder / "photos" / "me.png").read_bytes() == photo
    assert (await shop.ask("/photos", "POST", files={"other": ("a", "a/b", b"c")})).status == 400


@pytest_twisted.ensureDeferred
async def test_files_and_compression(shop: Shop) -> None:
    file = await shop.ask("/static/terms.txt", headers={"Range": "bytes=3-6"})
    assert (file.status, file.body) == (206, b"kind")
    assert field(file, "Cache-Control") == "public, max-age=3600"
    hashed = await shop.ask("/static/app.0123abcd.js")
    assert "immutable" in field(hashed, "Cache-Control")
    assert (await shop.ask("/static/%2e%2e/shop.py")).status == 404
    terms = await shop.ask("/terms")
    assert (terms.body, field(terms, "Content-Disposition")) == (
        b"Be kind.\n",
        'attachment; filename="Our Terms.txt"',
    )
    prices = await shop.ask("/prices.csv")
    assert prices.body == b"apple\npear\n"
    count = await shop.talk("GET /count HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
    assert b"Content-Encoding: gzip\r\n" in await count.until(b"\r\n\r\n")
    assert count.transport is not None
    count.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_sessions_and_tokens(shop: Shop) -> None:
    page = await shop.ask("/account")
    assert b"<p>nobody</p>" in page.body
    first = cookie(page)
    assert first.startswith("__Host-session=")
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
    assert token is not None
    form = {"user": "ann", "csrf_token": token[1].decode()}
    without = await shop.ask(
        "/account/login", "POST", data={"user": "ann"}, headers={"Cookie": first}
    )
    assert without.status == 403
    login = await shop.ask("/account/login", "POST", data=form, headers={"Cookie": first})
    assert (login.status, field(login, "Location")) == (303, "/account")
    assert "<p>ann</p>" in await shop.text("/account", headers={"Cookie": cookie(login)})
    assert "<p>nobody</p>" in await shop.text("/account", headers={"Cookie": first})
    mine = {"Cookie": cookie(login)}
    page = await shop.ask("/account", headers=mine)
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', page.body)
    assert token is not None
    for sent, status in ((token[1].decode(), 200), ("", 403)):
        photo = await shop.ask(
            "/account/photo",
            "POST",
            headers=mine,
            data={"csrf_token": sent},
            files={"photo": ("me.png", "image/png", b"x" * 10)},
        )
        assert photo.status == status


@pytest_twisted.ensureDeferred
async def test_two_things_at_once(shop: Shop) -> None:
    assert json.loads(await shop.text("/both")) == {"apple": 30, "pear": 45}


@pytest_twisted.ensureDeferred
async def test_development_mode_watches_the_project(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "development.toml")
    async with shop.server as server:
        await eventually(reactor, lambda: "Watching" in server.output)
        assert await shop.text("/hello/ann") == "Hello, ann"


def test_the_mounts_are_those_of_the_example() -> None:
    example = tomllib.loads((ROOT / MOUNTS).read_text())
    shown = tomllib.loads(TOML[MOUNTS])
    assert shown["mount"] == example["mount"]


LIMITS = re.findall(r"^\| `(\w+)\.(\w+)` \| `([^`]+)` \|", (DOCS / "http.md").read_text(), re.M)


@pytest.mark.parametrize(("section", "key", "default"), LIMITS)
def test_every_default_is_the_one_that_is_told(section: str, key: str, default: str) -> None:
    assert str(SECTIONS[section].keys[key].default) == default


def test_limits_that_are_not_configured() -> None:
    text = " ".join((DOCS / "http.md").read_text().split())
    assert f"form, {ROUTED_PATH_LIMIT} characters of a path" in text
    assert f"{STREAMS} streams of an HTTP/2 connection" in text
    assert f"head ({HEAD_TIMEOUT_S:g} s) and the whole answer ({TIMEOUT_S:g} s)" in text


def test_all_of_http_is_in_the_table() -> None:
    told = {key for section, key, _ in LIMITS if section == "http"}
    assert SECTIONS["http"].keys.keys() - told == {"body_rate_grace", "gzip"}
