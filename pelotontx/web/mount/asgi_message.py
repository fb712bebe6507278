"""What HTTP and WebSockets of ASGI applications have in common: messages, fields, ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, MutableMapping
from typing import Any

from pelotontx.errors import LocalProtocolError

Message = MutableMapping[str, Any]


class ClientDisconnected(OSError):
    """Raised by `send` when nobody reads any more (specification, version 2.4)."""


def decoded(headers: Iterable[Iterable[bytes]]) -> list[tuple[str, str]]:
    """Fields as text."""
    return [
        (bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers
    ]


def misplaced(message: Message) -> LocalProtocolError:
    """For a message that is unknown, or not to be sent now."""
    return LocalProtocolError(f"{message['type']!r} has no place here")


def failure_of(task: asyncio.Task[None]) -> Exception | None:
    """What an application has raised; None if it returned."""
    if task.cancelled():
        return LocalProtocolError("the server is stopping")
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return error
    return RuntimeError(f"the application raised {error!r}")  # a SystemExit, say
