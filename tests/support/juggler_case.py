"""A real server on a real Redis, shared by the tests of a module, and raw peers of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_twisted

from tests.support import raw_juggler
from tests.support.programs import PelotonServer
from tests.support.raw_juggler import RawPeer
from tests.support.redis_node import until
from tests.support.servers import RedisServer, redis_binary

CALL_CAP = 1000
CALLS_LIMIT = 900

TEST_FUNCTIONS = """
[[callee]]
object = "pelotontx.demo.callee:callee"
"""

# What the tests of order and payloads need out of their way: rates and limits.
CONFIG = f"""
[broker]
call_cap = {CALL_CAP}
[rpc]
patterns = true
message_rate = 0
calls_limit = {CALLS_LIMIT}
close_uri = "test.close"
result_limit = "64KiB"
[websocket]
origins = ["https://good.example"]
{TEST_FUNCTIONS}
"""


class Waiting:
    """A call as it waits in Redis.

    Attributes:
        key: of the list.
        value: the list's entry.
        call: the same, decoded.
    """

    def __init__(self, key: str, value: bytes) -> None:
        self.key = key
        self.value = value
        self.call: dict[str, Any] = json.loads(value)

    @property
    def args_text(self) -> str:
        return raw_juggler.raw_member(self.value.decode(), "args")

    @property
    def timeout_key(self) -> str:
        return f"juggler:calls:timeout:{{{self.call['uri']}}}:{self.call['msg_uuid']}"


class JugglerCase:
    """One server, its Redis, and the peers of one test.

    Args:
        reactor: the tests' reactor.
        folder: where the server runs.
        config: the text of its configuration; the broker's URL is added.
    """

    def __init__(self, reactor: Any, folder: Path, config: str = CONFIG) -> None:
        self._reactor = reactor
        self.redis = RedisServer(reactor, redis_binary())
        (folder / "peloton.toml").write_text(config)
        self.server = PelotonServer(
            reactor, "--config", "peloton.toml", "--broker", self.redis.url, folder=folder
        )
        self._peers: list[RawPeer] = []

    async def __aenter__(self) -> Self:
        await self.redis.start()
        try:
            await self.server.start()
            await until(self._reactor, self._is_ready)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self.server.stop()
        await self.redis.stop()

    async def _is_ready(self) -> bool:
        return (await self.server.get("/health"))[0] == 200

    async def connect(self, **opening: Any) -> RawPeer:
        """A peer that is let go of at the test's end; see `tests.support.raw_juggler.Opening`."""
        peer = await raw_juggler.connect(self._reactor, self.server.port, **opening)
        self._peers.append(peer)
        return peer

    async def hang_up(self) -> None:
        """Ends what `connect` has opened."""
        peers, self._peers = self._peers, []
        for peer in peers:
            if not peer.is_lost:
                peer.abort()
                await peer.until(lambda peer=peer: peer.is_lost)

    async def still_serves(self) -> None:
        """A fresh peer gets its answer."""
        peer = await self.connect()
        assert (await peer.call("test.echo", "well")).payload["args"] == "well"

    # A callee by hand

    async def take(self, uri: str) -> Waiting:
        """Pops a call as a callee does, when there is one."""
        key = f"juggler:calls:{{{uri}}}"
        reply = await self.redis.command("BRPOP", key, 4)
        assert reply is not None, f"no call of {uri}"
        return Waiting(key, reply[1])

    async def answer(self, waiting: Waiting, args_text: str | bytes) -> None:
        """Stores a result as a callee does; `args_text` are its characters or bytes."""
        call = waiting.call
        args = args_text.encode() if isinstance(args_text, str) else args_text
        fields = {name: call[name] for name in ("conn_uuid", "msg_uuid", "uri")}
        value = json.dumps(fields).encode()[:-1] + b', "args": ' + args + b"}"
        timeout_key = f"juggler:results:timeout:{{{call['conn_uuid']}}}:{call['msg_uuid']}"
        await self.redis.command("SET", timeout_key, 5000, "PX", 5000)
        await self.redis.command("LPUSH", f"juggler:results:{{{call['conn_uuid']}}}", value)

    async def keys(self, pattern: str) -> list[str]:
        """The keys in Redis that match, sorted."""
        return sorted(key.decode() for key in await self.redis.command("KEYS", pattern))


@pytest_twisted.async_yield_fixture(scope="module")
async def juggler_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[JugglerCase]:
    """The module's server, configured by `CONFIG`."""
    from twisted.internet import reactor

    async with JugglerCase(reactor, tmp_path_factory.mktemp("juggler")) as case:
        yield case


@pytest_twisted.async_yield_fixture
async def juggler(juggler_server: JugglerCase) -> AsyncIterator[JugglerCase]:
    """The module's server; the test's peers are gone behind it, and so is what it left in Redis."""
    yield juggler_server
    await juggler_server.hang_up()
    for key in await juggler_server.keys("juggler:calls:*"):
        await juggler_server.redis.command("DEL", key)
