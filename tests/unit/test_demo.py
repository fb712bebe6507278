import re
from html.parser import HTMLParser
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.demo import callee
from pelotontx.demo.page import CONTENT_SECURITY_POLICY, Asset, assets, routes
from pelotontx.errors import CallFailed
from pelotontx.web import Request
from pelotontx.wire.http import Framing


class CalleeTests(SynchronousTestCase):
    def test_three_functions_are_registered(self) -> None:
        assert set(callee.callee.functions) == {"test.echo", "test.reverse", "test.delay"}

    def test_echo_returns_any_json_byte_for_byte(self) -> None:
        echo = callee.callee.functions["test.echo"].signature
        for args in (b'"\\u00e9\\/"', b"1.50", b"null", b'{"a": [ true ]}'):
            assert msgspec.json.encode(echo.call(echo.decode(args))) == args

    def test_reverse_goes_by_code_point(self) -> None:
        assert callee.reverse("añ🚲") == "🚲ña"
        assert callee.reverse("") == ""

    def test_reverse_takes_strings_only(self) -> None:
        for args in (None, 12, ["a"]):
            self.assertRaises(CallFailed, callee.reverse, args)

    def test_delay_takes_digits_and_numbers(self) -> None:
        for args, milliseconds in (("100", 100), (250, 250), (1.9, 1), ("0", 0), ("007", 7)):
            assert callee.delay_ms(args) == milliseconds

    def test_delay_refuses_what_is_no_time_to_wait(self) -> None:
        for args in ("soon", "", "-1", -1, 1e300, "1.5", str(callee.DELAY_LIMIT_MS + 1)):
            self.assertRaises(CallFailed, callee.delay_ms, args)
        for args in (" 7 ", "+7", "1_0", "٣", "9" * 5000):
            self.assertRaises(CallFailed, callee.delay_ms, args)
        for args in (None, True, ["100"], {}):
            self.assertRaises(CallFailed, callee.delay_ms, args)

    def test_delay_waits_as_long_as_it_says(self) -> None:
        clock = Clock()
        waiting = callee.wait(clock, 1500)
        clock.advance(1.4)
        self.assertNoResult(waiting)
        clock.advance(0.1)
        assert self.successResultOf(waiting) == 1500

    def test_a_cancelled_delay_leaves_no_timer(self) -> None:
        clock = Clock()
        waiting = callee.wait(clock, 1500)
        waiting.cancel()
        self.failureResultOf(waiting)
        assert clock.getDelayedCalls() == []


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text within scripts and styles."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline = ""
        self._within = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.inline += data

    def values(self, *names: str) -> list[str]:
        return [
            value for _, attrs in self.elements for name, value in attrs.items() if name in names
        ]


def page_assets(path: str = "/", **paths: str) -> dict[str, Asset]:
    return assets(path, **{"websocket_path": "/ws", "client_path": "/peloton.js", **paths})


def get(path: str) -> Request:
    framing = Framing("1.1", b"host", 0, True, False, b"")
    head = f"GET {path} HTTP/1.1\r\nHost: host\r\n\r\n".encode()
    return Request(None, "GET", (path, path, ""), framing, head)


class PageTests(SynchronousTestCase):
    def test_everything_the_page_refers_to_is_served(self) -> None:
        for path, folder in (("/", "/demo/"), ("/try/it/", "/try/it/demo/"), ("/x", "/x/demo/")):
            found = page_assets(path)
            page = Page(found[path].body)
            links = [url for url in page.values("src", "href") if url and not url.startswith("#")]
            assert f"{folder}demo.js" in links
            assert set(links) - {"/peloton.js"} <= set(found)

    def test_every_module_that_a_script_imports_is_served(self) -> None:
        found = page_assets()
        for name, asset in found.items():
            for imported in re.findall(rb'^import .* from "\./(.*)";$', asset.body, re.MULTILINE):
                if name.endswith(".js"):
                    assert f"/demo/{imported.decode()}" in found

    def test_the_page_is_told_where_the_websocket_and_the_client_are(self) -> None:
        found = page_assets(websocket_path='/rt?a="b"&c', client_path="/static/<peloton>.js")
        body = found["/"].body
        assert b"{{" not in body
        html = Page(body).elements[0][1]
        assert html["data-websocket"] == '/rt?a="b"&c'
        assert html["data-client"] == "/static/<peloton>.js"

    def test_nothing_is_inline_and_nothing_comes_from_elsewhere(self) -> None:
        found = page_assets()
        page = Page(found["/"].body)
        assert page.inline.strip() == ""
        assert page.values("style") == []
        assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
        for name, asset in found.items():
            urls = set(re.findall(rb"(?:https?:)?//[\w.]+/", asset.body))
            assert urls <= {b"http://www.w3.org/", b"//127.0.0.1/"}, name
        assert "unsafe" not in CONTENT_SECURITY_POLICY

    def test_every_form_field_has_a_label(self) -> None:
        page = Page(page_assets()["/"].body)
        labelled = set(page.values("for"))
        for tag, attrs in page.elements:
            if tag == "input" and attrs.get("type") not in ("radio", "checkbox"):
                assert attrs["id"] in labelled

    def test_a_path_that_is_none_is_refused(self) -> None:
        for path in ("", "demo", "demo/"):
            self.assertRaises(ValueError, page_assets, path)

    def test_routes_serve_every_asset_with_its_type_and_a_strict_policy(self) -> None:
        app = routes("/try/")
        for name, asset in page_assets("/try/").items():
            response: Any = app.handle(get(name))
            assert (response.status, response.body) == (200, asset.body)
            assert response.headers.get("content-type") == asset.content_type
            assert response.headers.get("content-security-policy") == CONTENT_SECURITY_POLICY
            assert response.headers.get("x-content-type-options") == "nosniff"

    def test_routes_serve_nothing_else(self) -> None:
        app = routes()
        for path in ("/demo/", "/demo/index.html", "/demo/demoXjs", "/demo/../callee.py"):
            response: Any = app.handle(get(path))
            assert response.status == 404
