"""The demo's functions: `test.echo`, `test.reverse` and `test.delay`; a server names `callee`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from pelotontx.backend.callee import Callee
from pelotontx.errors import CallFailed

# Longer than any caller of a demo waits: one that asks for a year gets an answer now.
DELAY_LIMIT_MS: Final = 600_000

callee = Callee()


@callee.function("test.echo", inline=True)
def echo(args: msgspec.Raw) -> msgspec.Raw:
    """Returns what it got, any JSON, byte for byte."""
    return args


@callee.function("test.reverse", inline=True)
def reverse(args: Any) -> str:
    """Returns a string's code points in reverse order.

    Raises:
        CallFailed: anything but a string.
    """
    if not isinstance(args, str):
        raise refusal("test.reverse takes a string")
    return args[::-1]


@callee.function("test.delay")
async def delay(args: Any) -> int:
    """Waits for so many milliseconds, a number or its digits, and returns them as an integer.

    Raises:
        CallFailed: as `delay_ms`.
    """
    from twisted.internet import reactor

    return await wait(IReactorTime(reactor), delay_ms(args))


def delay_ms(args: Any) -> int:
    """What `test.delay` was asked for.

    Raises:
        CallFailed: neither a string nor a number of milliseconds from 0 to `DELAY_LIMIT_MS`.
    """
    if isinstance(args, bool) or not isinstance(args, (str, int, float)):
        raise refusal("test.delay takes milliseconds, as a string or a number")
    try:
        # int() also takes blanks, underscores and the digits of every script.
        if isinstance(args, str) and not (args.isascii() and args.isdecimal()):
            raise ValueError
        milliseconds = int(args)
    except (ValueError, OverflowError):
        raise refusal(f"test.delay takes milliseconds, not {str(args)[:40]!r}") from None
    if not 0 <= milliseconds <= DELAY_LIMIT_MS:
        raise refusal(f"test.delay takes 0 to {DELAY_LIMIT_MS} milliseconds")
    return milliseconds


def refusal(message: str) -> CallFailed:
    """An error for the caller alone: unlike other exceptions it is not logged."""
    return CallFailed({"message": message})


def wait(clock: IReactorTime, milliseconds: int) -> Deferred[int]:
    """Fires with `milliseconds` when they are over; cancelling is safe."""
    return deferLater(clock, milliseconds / 1000, lambda: milliseconds)
