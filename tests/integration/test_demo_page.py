"""The demo page in Chromium, served by a server that was started without any configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import DemoServer, chromium, demo_server, on_browser_thread

# Delays between attempts to reconnect grow while the server is down.
RECONNECT_TIMEOUT_MS = 40_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    with demo_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A window of its own: nothing is shared with other tests."""
    context = on_browser_thread(browser.new_context)(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)
    yield context
    on_browser_thread(context.close)()


class Demo:
    """The page as a person knows it: by labels and roles."""

    def __init__(self, context: Any, server: DemoServer) -> None:
        from playwright.sync_api import expect

        self.expect = expect
        self.page = context.new_page()
        self.problems: list[str] = []
        self.requested: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.response = self.page.goto(server.url)
        self.state = self.page.get_by_role("status").filter(has_text=re.compile("onnect|Closed"))
        self.result = self.page.get_by_label("Result", exact=True)
        self.messages = self.page.get_by_label("Chat messages")
        self.text = self.page.get_by_label("Message", exact=True)
        self.frames = self.page.get_by_label("Messages on the wire").locator("[data-type]")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def connected(self, timeout_ms: int = 10_000) -> Demo:
        self.expect(self.state).to_have_text("Connected", timeout=timeout_ms)
        return self

    def in_chat(self) -> Demo:
        self.connected()
        self.expect(self.messages).to_contain_text("You are in")
        return self

    def call(self, uri: str, argument: str, timeout_ms: int = 5000) -> None:
        self.page.get_by_role("radio", name=uri).check()
        self.page.locator("#call-argument").fill(argument)
        self.page.get_by_label("Timeout, ms").fill(str(timeout_ms))
        self.page.get_by_role("button", name="Call", exact=True).click()

    def shows(self, outcome: str, value: str | re.Pattern[str]) -> None:
        self.expect(self.result).to_contain_text(outcome)
        self.expect(self.result).to_contain_text(value)

    def say(self, text: str) -> None:
        self.text.fill(text)
        self.page.get_by_role("button", name="Send").click()

    def hears(self, text: str, *, own: bool) -> None:
        line = self.messages.locator(".own" if own else ".other").filter(has_text=text)
        self.expect(line).to_have_count(1)


@on_browser_thread
def test_the_page_needs_nothing_from_elsewhere_and_reports_no_error(
    context: Any, server: DemoServer
) -> None:
    demo = Demo(context, server).in_chat()
    assert all(url.startswith(server.url) for url in demo.requested)
    assert any(url.endswith("/peloton.js") for url in demo.requested)
    policy = demo.response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert demo.problems == []


@on_browser_thread
def test_the_three_functions_answer(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).connected()
    demo.call("test.echo", 'a "quoted" vélo')
    demo.shows("Result", r'"a \"quoted\" vélo"')
    demo.call("test.reverse", "olé 🚲")
    demo.shows("Result", '"🚲 élo"')
    demo.call("test.delay", "30")
    demo.shows("Result", re.compile(r"ms\s*30\s*$"))
    rows = demo.page.get_by_role("table", name="Last calls").get_by_role("row")
    demo.expect(rows).to_have_count(4)
    demo.expect(rows.nth(1)).to_contain_text("test.delay")


@on_browser_thread
def test_a_function_that_fails_shows_its_error(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).connected()
    demo.call("test.delay", "soon")
    demo.shows("Error", "soon")


@on_browser_thread
def test_a_call_longer_than_its_timeout_expires(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).connected()
    demo.call("test.delay", "5000", timeout_ms=150)
    demo.shows("Expired", "No result in time.")
    demo.expect(demo.frames.last).to_have_attribute("data-type", "EXP")


@on_browser_thread
def test_the_log_shows_a_call_its_ack_and_its_result(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).in_chat()
    demo.page.get_by_role("button", name="Clear").click()
    demo.call("test.echo", "spam")
    demo.shows("Result", '"spam"')
    types = demo.frames.evaluate_all("lines => lines.map((line) => line.dataset.type)")
    assert types == ["CALL", "ACK", "RES"]
    threads = demo.frames.evaluate_all("lines => lines.map((line) => line.dataset.thread)")
    assert len(set(threads)) == 1
    demo.frames.first.locator("summary").click()
    demo.expect(demo.frames.first).to_contain_text('"timeout": 5000000000')


@on_browser_thread
def test_log_history_and_chat_stay_bounded(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).in_chat()
    # Three clients: each one alone would pass the server's limit of messages a second.
    demo.page.evaluate(
        """async () => {
            const { connect } = await import("/peloton.js");
            for (let n = 0; n < 210; n += 70) {
                const client = await connect();
                for (let i = n; i < n + 70; i++) {
                    await client.publish("demo.chat", { name: "Flood", text: `line ${i}` });
                }
                client.close();
            }
        }"""
    )
    demo.expect(demo.messages).to_contain_text("line 209")
    assert demo.messages.locator("> div").count() == 200
    assert demo.frames.count() <= 150
    for number in range(8):
        demo.call("test.echo", f"round {number}")
        demo.shows("Result", f"round {number}")
    rows = demo.page.get_by_role("table", name="Last calls").get_by_role("row")
    demo.expect(rows).to_have_count(7)


@on_browser_thread
def test_two_tabs_chat_with_each_other(context: Any, server: DemoServer) -> None:
    ann, bob = Demo(context, server).in_chat(), Demo(context, server).in_chat()
    ann.page.get_by_label("Name").fill("Ann")
    ann.say("hello from the first")
    ann.hears("hello from the first", own=True)
    bob.hears("hello from the first", own=False)
    bob.expect(bob.messages).to_contain_text("Ann")
    bob.say("and back")
    bob.hears("and back", own=True)
    ann.hears("and back", own=False)


@on_browser_thread
def test_foreign_events_are_shown_as_text_or_not_at_all(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).in_chat()
    demo.page.evaluate(
        """async () => {
            for (const args of [null, 1, "text", [], { text: 1, name: "x" }, { name: "x" }]) {
                await client.publish("demo.chat", args);
            }
            await client.publish("demo.chat", { name: "<b>x</b>", text: "<img src=/none>" });
        }"""
    )
    demo.hears("<img src=/none>", own=False)
    assert demo.messages.locator("> div:not(.system)").count() == 1
    assert demo.messages.locator("img").count() == 0
    assert demo.problems == []


@on_browser_thread
def test_everything_works_from_the_keyboard(context: Any, server: DemoServer) -> None:
    demo = Demo(context, server).in_chat()
    press = demo.page.keyboard.press
    focused = demo.page.locator(":focus")

    press("Tab")
    demo.expect(focused).to_have_text("Skip to the demo")
    press("Enter")
    press("Tab")
    demo.expect(focused).to_have_value("test.reverse")
    press("ArrowLeft")
    demo.expect(focused).to_have_value("test.echo")
    press("Tab")
    demo.page.keyboard.type("typed ")
    press("Enter")
    demo.shows("Result", "typed")

    for _ in range(12):
        press("Tab")
        assert _focus_is_visible(demo.page)
        if demo.text.evaluate("element => element === document.activeElement"):
            break
    demo.page.keyboard.type("no mouse needed")
    press("Enter")
    demo.hears("no mouse needed", own=True)
    demo.expect(demo.text).to_be_focused()

    shell = demo.page.get_by_role("tab", name="Shell")
    shell.focus()
    press("ArrowRight")
    demo.expect(demo.page.get_by_role("tab", name="Python")).to_be_focused()
    demo.expect(demo.page.get_by_role("tabpanel")).to_contain_text("from pelotontx.client")
    press("End")
    demo.expect(demo.page.get_by_role("tabpanel")).to_contain_text("@callee.function")


def _focus_is_visible(page: Any) -> bool:
    """Whether the focused element, or the label text beside a radio button, has an outline."""
    visible: bool = page.evaluate(
        """() => {
            const element = document.activeElement;
            return [element, element.nextElementSibling].some((shown) => {
                if (!shown) return false;
                const style = getComputedStyle(shown);
                return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            });
        }"""
    )
    return visible


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@on_browser_thread
def test_nothing_sticks_out_sideways(
    browser: Any, server: DemoServer, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 740}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        demo = Demo(context, server).in_chat()
        demo.call("test.echo", "long" * 200)
        demo.shows("Result", "longlong")
        demo.say("wide" * 100)
        demo.hears("widewide", own=True)
        assert demo.page.evaluate("document.documentElement.scrollWidth") == width
        assert demo.page.evaluate("document.getAnimations().length") == 0
    finally:
        context.close()


@on_browser_thread
def test_a_killed_server_that_comes_back_is_found_again(context: Any, server: DemoServer) -> None:
    ann, bob = Demo(context, server).in_chat(), Demo(context, server).in_chat()
    loaded_at = [demo.page.evaluate("performance.timeOrigin") for demo in (ann, bob)]

    server.kill()
    for demo in (ann, bob):
        demo.expect(demo.state).to_have_text("Reconnecting")
        demo.expect(demo.messages).to_contain_text("Connection lost")
    server.start()
    for demo in (ann, bob):
        demo.connected(RECONNECT_TIMEOUT_MS)
        demo.expect(demo.messages).to_contain_text("Connected again", timeout=20_000)

    ann.say("still there?")
    bob.hears("still there?", own=False)
    bob.say("of course")
    ann.hears("of course", own=False)
    ann.call("test.reverse", "back")
    ann.shows("Result", '"kcab"')
    assert [demo.page.evaluate("performance.timeOrigin") for demo in (ann, bob)] == loaded_at
