"""What is logged, and how it looks."""

from __future__ import annotations

from typing import IO, Final

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
    jsonFileLogObserver,
)

_LEVELS: Final = {
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warn": LogLevel.warn,
    "error": LogLevel.error,
}


def observer(stream: IO[str], *, level: str, format: str) -> ILogObserver:
    """An observer that writes to `stream`.

    Args:
        stream: usually standard output.
        level: the least that is shown: debug, info, warn or error.
        format: ``text`` (a line an event, tracebacks below it) or ``json`` (an object a line).
    """
    if format == "json":
        inner: ILogObserver = jsonFileLogObserver(stream, recordSeparator="")
    else:
        inner = FileLogObserver(stream, _line)
    # Autobahn tells of every handshake at warn; what matters of it we log ourselves.
    predicate = LogLevelFilterPredicate(defaultLogLevel=_LEVELS[level])
    predicate.setLogLevelForNamespace("autobahn", LogLevel.error)
    return FilteringLogObserver(inner, [predicate])


def _line(event: dict[str, object]) -> str | None:
    text = eventAsText(event, includeSystem=False)
    return f"{text}\n" if text else None
