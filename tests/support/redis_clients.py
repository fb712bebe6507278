"""Redis clients under test: started, asked with Deferreds, stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import later
from pelotontx.net.redis.client import RedisClient, redis_client
from pelotontx.net.redis.script import Script
from tests.support.servers import eventually


@asynccontextmanager
async def opened(
    reactor: Any, url: str, *, until_up: bool = True, **options: Any
) -> AsyncIterator[RedisClient]:
    """A client, started, and up unless a test does not wait for that."""
    client = redis_client(reactor, url, **{"reply_timeout_s": 2.0, **options})
    client.start()
    try:
        if until_up:
            await eventually(reactor, lambda: client.available)
        yield client
    finally:
        await client.stop()


def ask(client: RedisClient, key: str, *command: bytes | str | int) -> Deferred[Any]:
    """The reply to a command; an error fails."""
    result: Deferred[Any] = Deferred()
    client.send(_teller(result), key, *command)
    return result


def run(
    client: RedisClient, script: Script, keys: list[str], *arguments: bytes | str | int
) -> Deferred[Any]:
    """What a script returns; an error fails."""
    result: Deferred[Any] = Deferred()
    client.run(_teller(result), script, keys, *arguments)
    return result


def _teller(result: Deferred[Any]) -> Any:
    def replied(reply: Any) -> None:
        if isinstance(reply, Exception):
            result.errback(reply)
        else:
            result.callback(reply)

    return replied


async def ask_on(
    reactor: Any,
    client: RedisClient,
    key: str,
    *command: bytes | str | int,
    timeout_s: float = 20.0,
) -> Any:
    """The reply, asking again while the server is unavailable."""
    deadline_s = reactor.seconds() + timeout_s
    while True:
        try:
            return await ask(client, key, *command)
        except BrokerUnavailable:
            if reactor.seconds() > deadline_s:
                raise
        await later(reactor, 0.01)


@contextmanager
def log_texts() -> Iterator[list[str]]:
    """What is logged meanwhile, as people read it."""
    texts: list[str] = []

    def observe(event: LogEvent) -> None:
        texts.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield texts
    finally:
        globalLogPublisher.removeObserver(observe)
