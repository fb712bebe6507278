"""What the tests of brokers share: a callee, and taking calls by hand."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from pelotontx.backend.callee import Callee
from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import later


async def take(source: Any, count: int, uris: tuple[str, ...] = ("u",)) -> list[Any]:
    """Takes `count` calls, however many waits that needs."""
    calls: list[Any] = []
    while len(calls) < count:
        try:
            calls += await source.take_calls(uris, count - len(calls))
        except BrokerUnavailable:
            await later(reactor, 0.01)
    return calls


echo = Callee()


@echo.function("echo")
def run_echo(args: Any) -> Any:
    return args


@echo.function("wait")
async def _wait(args: float) -> str:
    await later(reactor, args)
    return "waited"


@echo.function("fail")
def _fail(args: Any) -> None:
    raise ValueError(f"not {args}")
