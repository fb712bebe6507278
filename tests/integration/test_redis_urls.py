"""A whole server on what each kind of URL names."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.errors import CallError, RequestRefused
from pelotontx.flow import later
from tests.support.programs import PelotonServer
from tests.support.redis_fronts import ClusterServer, TrioServer
from tests.support.servers import RedisServer, eventually, redis_binary


@pytest_twisted.async_yield_fixture(params=["sentinel", "cluster", "split"])
async def urls(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """Where calls go and where events go."""
    if request.param == "split":
        cluster = await ClusterServer.open(reactor)
        async with RedisServer(reactor, redis_binary()) as events:
            yield cluster.url, events.socket_url
        return
    kind = TrioServer if request.param == "sentinel" else ClusterServer
    yield (await kind.open(reactor)).url, ""


async def assert_calls_and_events_pass(server: PelotonServer) -> None:
    client = await server.client()
    deadline_s = reactor.seconds() + 20  # type: ignore[attr-defined]
    while True:  # the broker and the callee come up in their own time
        try:
            assert await client.call("test.echo", "0012", timeout_s=1) == "0012"
            break
        except (CallError, RequestRefused):
            assert reactor.seconds() < deadline_s, server.output  # type: ignore[attr-defined]
        await later(reactor, 0.05)
    assert await client.call("test.reverse", "abc") == "cba"
    events: list[Any] = []
    await client.subscribe("c", events.append)
    await client.publish("c", {"n": 1})
    await eventually(reactor, lambda: [event.args for event in events] == [{"n": 1}])


@pytest_twisted.ensureDeferred
async def test_calls_and_events_pass(urls: tuple[str, str], tmp_path: Path) -> None:
    url, pubsub_url = urls
    environ = {"PELOTON_BROKER__URL": url}
    if pubsub_url:
        environ["PELOTON_BROKER__PUBSUB_URL"] = pubsub_url
    async with PelotonServer(reactor, folder=tmp_path, environ=environ) as server:
        await assert_calls_and_events_pass(server)


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
@pytest_twisted.ensureDeferred
async def test_the_rights_that_the_documentation_names_are_enough(
    kind: str, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    rights = re.search(r"ACL SETUSER peloton on >password (.+)", text)
    assert rights is not None
    words = ("ACL", "SETUSER", "peloton", "on", ">password", *rights[1].split())
    async with RedisServer(reactor, redis_binary()) as single:
        if kind == "single":
            url, commands = single.url, [single.command]
        elif kind == "sentinel":
            trio = (await TrioServer.open(reactor)).trio
            url, commands = trio.url, [node.command for node in trio.nodes]
        else:
            cluster = (await ClusterServer.open(reactor)).cluster
            url, commands = cluster.url, [node.command for node in cluster.nodes]
        for command in commands:
            assert await command(*words) == b"OK"
            await command("ACL", "LOG", "RESET")
        url = url.replace("://", "://peloton:password@")
        environ = {"PELOTON_BROKER__URL": url}
        async with PelotonServer(reactor, folder=tmp_path, environ=environ) as server:
            await assert_calls_and_events_pass(server)
        for command in commands:
            assert await command("ACL", "LOG") == []
            await command("ACL", "DELUSER", "peloton")
