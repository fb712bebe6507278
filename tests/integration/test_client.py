import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.client import Client, Event, State
from pelotontx.errors import CallExpired, CallFailed, Disconnected, RequestRefused
from pelotontx.net.websocket.client import Options

ROOT = Path(__file__).parents[2]
# Far more than anything here takes: it only ends a test that hangs.
LIMIT_S = 30


class Server:
    """The juggler server of `tests.support`, in a process of its own."""

    def __init__(self, port=0, mode="serve"):
        command = [sys.executable, "-m", "tests.support.juggler_server"]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--mode", mode],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.port = int(self._process.stdout.readline())
        self.url = f"ws://127.0.0.1:{self.port}/ws"

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Events:
    """A handler that tests can wait on."""

    def __init__(self):
        self._seen = []
        self._waiting = []

    def __call__(self, event):
        if self._waiting:
            self._waiting.pop(0).callback(event)
        else:
            self._seen.append(event)

    def next(self):
        result = Deferred()
        if self._seen:
            result.callback(self._seen.pop(0))
        else:
            self._waiting.append(result)
        return result.addTimeout(LIMIT_S, reactor)


@pytest.fixture
def start():
    servers = []

    def start_server(**arguments):
        servers.append(Server(**arguments))
        return servers[-1]

    yield start_server
    for server in servers:
        server.kill()


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def client(server):
    delayed = set(reactor.getDelayedCalls())
    client = Client(server.url, reactor=reactor, timeout_s=LIMIT_S, backoff_s=0.1)
    yield client
    pytest_twisted.blockon(client.close())
    assert not set(reactor.getDelayedCalls()) - delayed, "something was left in the reactor"


@pytest_twisted.ensureDeferred
async def test_call_returns_what_the_server_sent(client):
    await client.connect()
    for value in (None, True, 1.5, "ü\n", [1, {"a": []}], "x" * 500_000):
        assert await client.call("test.echo", value) == value


@pytest_twisted.ensureDeferred
async def test_result_before_the_acknowledgement_counts(client):
    await client.connect()
    assert await client.call("early", 1) == 1
    assert await client.call("test.echo", 2) == 2


@pytest_twisted.ensureDeferred
async def test_refusal_and_failure_are_told_apart(client):
    await client.connect()
    with pytest.raises(RequestRefused, match="500 list capacity exceeded"):
        await client.call("refuse")
    with pytest.raises(CallFailed, match="it broke"):
        await client.call("fail")


@pytest_twisted.ensureDeferred
async def test_expired_call_ignores_its_late_result(client):
    await client.connect()
    with pytest.raises(CallExpired):
        await client.call("late", 0.5, timeout_s=0.05)
    assert await client.call("late", 0.6) == "late"


@pytest_twisted.ensureDeferred
async def test_cut_connection_ends_calls_in_flight_and_is_mended(client):
    await client.connect()
    silent = client.call("silent")
    with pytest.raises(Disconnected) as raised:
        await client.call("cut")
    assert raised.value.close_code == 1006
    with pytest.raises(Disconnected):
        await silent
    assert await client.call("test.echo", "again") == "again"


@pytest_twisted.ensureDeferred
async def test_close_code_of_the_server_is_told(client):
    await client.connect()
    with pytest.raises(Disconnected, match="slow consumer") as raised:
        await client.call("close")
    assert raised.value.close_code == 4008


@pytest_twisted.ensureDeferred
async def test_server_that_breaks_the_protocol_is_left(client):
    await client.connect()
    with pytest.raises(Disconnected, match="bad JSON") as raised:
        await client.call("garbage")
    assert raised.value.close_code == 1007
    assert await client.call("test.echo", 1) == 1


@pytest_twisted.ensureDeferred
async def test_events_come_plainly_and_by_pattern(client):
    await client.connect()
    plain, matching = Events(), Events()
    subscription = await client.subscribe("news.a", plain)
    await client.subscribe("news.*", matching, pattern=True)
    await client.publish("news.a", {"n": 1})
    event = await plain.next()
    assert event == Event("news.a", {"n": 1}, None, event.uuid)
    assert await matching.next() == Event("news.a", {"n": 1}, "news.*", event.uuid)
    await client.unsubscribe(subscription)
    await client.publish("news.a", {"n": 2})
    assert (await matching.next()).args == {"n": 2}
    assert not plain._seen


@pytest_twisted.ensureDeferred
async def test_restarted_server_gets_the_subscriptions_again(start, server, client):
    await client.connect()
    events = Events()
    await client.subscribe("chat", events)
    server.kill()
    waiting = client.call("test.echo", "waited")
    with pytest.raises(Disconnected):
        # Sent before the loss was noticed: nobody knows what became of it.
        await waiting
    waiting = client.call("test.echo", "waited")
    start(port=server.port)
    assert await waiting == "waited"
    await client.publish("chat", "hi")
    assert (await events.next()).args == "hi"


@pytest_twisted.ensureDeferred
async def test_closing_waits_until_the_connection_is_gone(server):
    client = Client(server.url, reactor=reactor)
    await client.connect()
    called = client.call("silent")
    await client.close()
    assert client.state is State.CLOSED
    with pytest.raises(Disconnected):
        await called


async def refusal(url, **arguments):
    delayed = set(reactor.getDelayedCalls())
    client = Client(url, reactor=reactor, **arguments)
    with pytest.raises(Disconnected) as raised:
        await client.connect(retry=False)
    assert not set(reactor.getDelayedCalls()) - delayed, "something was left in the reactor"
    await client.close()
    return raised.value.reason


@pytest_twisted.ensureDeferred
async def test_nobody_listening_is_told(server):
    server.kill()
    assert "refused" in await refusal(server.url)


@pytest_twisted.ensureDeferred
async def test_http_status_of_a_refusal_is_told(start):
    assert "[403]: Forbidden" in await refusal(start(mode="forbidden").url)


@pytest_twisted.ensureDeferred
async def test_server_that_does_not_speak_juggler_is_refused(start):
    assert "does not speak juggler.0" in await refusal(start(mode="no-subprotocol").url)


@pytest_twisted.ensureDeferred
async def test_server_that_does_not_answer_is_given_up(start):
    reason = await refusal(start(mode="mute").url, options=Options(open_timeout_s=0.2))
    assert "opening handshake timeout" in reason


@pytest_twisted.ensureDeferred
async def test_server_without_tls_is_told(server):
    assert await refusal(server.url.replace("ws:", "wss:"))


@pytest_twisted.ensureDeferred
async def test_closing_while_connecting_leaves_nothing(start):
    delayed = set(reactor.getDelayedCalls())
    readers = set(reactor.getReaders())
    client = Client(start(mode="mute").url, reactor=reactor)
    connected = client.connect()
    await client.close()
    with pytest.raises(Disconnected):
        await connected
    assert not set(reactor.getReaders()) - readers
    assert not set(reactor.getDelayedCalls()) - delayed
