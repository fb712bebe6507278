"""The gateway of the real server: an application's say, limits per URI, and order over Redis."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.client import Client
from pelotontx.errors import Disconnected, RequestRefused
from tests.support.raw_websocket import (
    ACK,
    EVNT,
    NACK,
    PUB,
    UNSB,
    RawWebSocket,
    WatchedServer,
    call,
    message,
    subscribe,
)
from tests.support.servers import RedisServer, eventually, redis_binary
from tests.support.websocket_peer import TEXT, frame

ROOT = Path(__file__).parents[2]
ANN = {"Authorization": "Bearer ann-s-secret-token"}
BOB = {"Authorization": "Bearer bob-s-secret-token"}


def publish(channel: str, args: Any) -> bytes:
    return frame(TEXT, message(PUB, channel=channel, args=args))


def unsubscribe(channel: str) -> bytes:
    return frame(TEXT, message(UNSB, channel=channel, pattern=False))


@pytest_twisted.async_yield_fixture
async def authorisation() -> AsyncIterator[WatchedServer]:
    """The example."""
    folder = ROOT / "examples" / "authorisation"
    async with WatchedServer(reactor, "--config", "peloton.toml", folder=folder) as server:
        yield server


class TestAuthorisation:
    @pytest.mark.parametrize(
        "fields",
        [
            ANN,
            {"Sec-WebSocket-Protocol": "juggler.0, bearer.ann-s-secret-token"},
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_token_in_the_head_opens_the_door(
        self, authorisation: WatchedServer, fields: dict[str, str]
    ) -> None:
        peer = await authorisation.open_raw(fields=fields)
        assert b"Sec-WebSocket-Protocol: juggler.0\r\n" in peer.head + b"\r\n"
        peer.say(call("user.greet", None))
        (result,) = await peer.gets(9)
        assert result["args"] == "Hello, ann!"

    @pytest_twisted.ensureDeferred
    async def test_a_token_in_the_query_does_too(self, authorisation: WatchedServer) -> None:
        url = f"{authorisation.websocket_url}?token=bob-s-secret-token"
        async with Client(url, reactor=reactor) as client:
            assert await client.call("user.greet") == "Hello, bob!"

    @pytest_twisted.ensureDeferred
    async def test_without_one_there_is_no_websocket(self, authorisation: WatchedServer) -> None:
        client = Client(authorisation.websocket_url, reactor=reactor)
        with pytest.raises(Disconnected, match="401"):
            await client.connect(retry=False)

    @pytest_twisted.ensureDeferred
    async def test_rooms_are_for_their_members_and_events_are_signed(
        self, authorisation: WatchedServer
    ) -> None:
        ann = await authorisation.client(headers=ANN)
        bob = await authorisation.client(headers=BOB)
        seen: list[Any] = []
        await bob.subscribe("room.kitchen", lambda event: seen.append(event.args))
        await ann.publish("room.kitchen", {"text": "tea?"})
        await eventually(reactor, lambda: seen)
        assert seen == [{"user": "ann", "args": {"text": "tea?"}}]
        for refused in (
            bob.subscribe("room.office", print),
            bob.subscribe("user.ann", print),
            bob.publish("room.office", 1),
            bob.call("admin.erase"),
        ):
            with pytest.raises(RequestRefused) as caught:
                await refused
            assert caught.value.code == 403

    @pytest_twisted.ensureDeferred
    async def test_limits_of_some_uris_and_channels(self, authorisation: WatchedServer) -> None:
        ann = await authorisation.client(headers=ANN)
        for refused in (
            ann.call("user.greet", "x" * 256),
            ann.publish("room.kitchen", "x" * 1024),
        ):
            with pytest.raises(RequestRefused) as caught:
                await refused
            assert caught.value.code == 413
        await ann.publish("user.ann", "x" * 1024)


class TestDocumentation:
    @pytest_twisted.ensureDeferred
    async def test_the_code_of_docs_gateway_md_does_what_it_says(self, tmp_path: Path) -> None:
        text = (ROOT / "docs" / "gateway.md").read_text()
        for language, name in (("toml", "peloton.toml"), ("python", "shop_gateway.py")):
            (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
            (tmp_path / name).write_text(block)
        async with WatchedServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            url = f"{server.websocket_url}?token=opensesame"
            async with Client(url, reactor=reactor) as client:
                assert await client.call("shop.hello", "Good day") == "Good day, ann"
                await client.subscribe("order.ann", print)
                with pytest.raises(RequestRefused, match="403"):
                    await client.subscribe("order.bob", print)
                with pytest.raises(RequestRefused, match="413"):
                    await client.call("shop.hello", "x" * 5000)
                with pytest.raises(RequestRefused, match="413"):
                    await client.publish("order.ann", "x" * 1024)
            with pytest.raises(Disconnected, match="401"):
                await Client(server.websocket_url, reactor=reactor).connect(retry=False)


MIDDLEWARE = '''
from twisted.internet import reactor
from pelotontx.flow import later
from pelotontx.gateway.juggler import Gateway

gateway = Gateway()


@gateway.middleware
async def unsteady(session, message, next):
    """Takes longer for every third message of either direction."""
    session.state.count = getattr(session.state, "count", 0) + 1
    if session.state.count % 3 == 0:
        await later(reactor, 0.002)
    if message.channel == "broken":
        raise ValueError("it broke")
    await next(message)
'''


class TestMiddleware:
    @pytest_twisted.ensureDeferred
    async def test_order_is_kept_and_an_exception_survived(self, tmp_path: Path) -> None:
        (tmp_path / "unsteady.py").write_text(MIDDLEWARE)
        (tmp_path / "peloton.toml").write_text('[rpc]\ngateway = "unsteady:gateway"\n')
        async with WatchedServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            peer = await server.open_raw()
            peer.say(subscribe("c") + b"".join(publish("c", n) for n in range(30)))
            peer.say(publish("broken", 0))
            assert [event["args"] for event in await peer.gets(EVNT, 30)] == list(range(30))
            (nack,) = await peer.gets(NACK)
            assert (nack["code"], nack["message"]) == (500, "internal error")
            assert_acknowledged_before_their_events(peer)

    @pytest_twisted.ensureDeferred
    async def test_an_object_of_another_kind_is_refused_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "wrong.py").write_text("gateway = 7\n")
        (tmp_path / "peloton.toml").write_text('[rpc]\ngateway = "wrong:gateway"\n')
        server = WatchedServer(reactor, "--config", "peloton.toml", folder=tmp_path)
        server.child.start()
        await server.ended()
        assert (
            'rpc.gateway: "wrong:gateway": is a int; a pelotontx Gateway is needed' in server.output
        )


def assert_acknowledged_before_their_events(peer: RawWebSocket) -> None:
    acknowledged = set()
    for one in peer.messages(ACK, EVNT):
        if "for_type" in one:
            acknowledged.add(one["for"])
        else:
            assert one["for"] in acknowledged


class TestOrderOverRedis:
    """What one client sends in one go, over the two connections that a server has to Redis."""

    @pytest_twisted.async_yield_fixture
    async def server(self, tmp_path: Path) -> AsyncIterator[WatchedServer]:
        (tmp_path / "p.toml").write_text("[rpc]\nmessage_rate = 0\n")
        async with (
            RedisServer(reactor, redis_binary()) as redis,
            WatchedServer(
                reactor, "--config", "p.toml", "--broker", redis.url, folder=tmp_path
            ) as server,
        ):
            yield server

    @pytest_twisted.ensureDeferred
    async def test_a_publisher_gets_its_own_event_at_once(self, server: WatchedServer) -> None:
        peer = await server.open_raw()
        for n in range(100):
            peer.say(subscribe(f"c{n}") + publish(f"c{n}", n))
        events = await peer.gets(EVNT, 100)
        assert [event["args"] for event in events] == list(range(100))

    @pytest_twisted.ensureDeferred
    async def test_a_subscription_does_not_see_what_was_published_before(
        self, server: WatchedServer
    ) -> None:
        peer = await server.open_raw()
        for n in range(40):
            channel = f"c{n}"
            peer.say(
                subscribe(channel)
                + unsubscribe(channel)
                + publish(channel, "before")
                + subscribe(channel)
                + publish(channel, "after")
            )
        await peer.gets(EVNT, 40)
        assert [event["args"] for event in peer.messages(EVNT)] == ["after"] * 40
        assert len(await peer.gets(ACK, 200)) == 200
