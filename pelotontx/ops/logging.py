"""What is logged, and how it looks."""

from __future__ import annotations

from typing import IO, Any, Final

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
    formatTime,
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
        format: ``text`` (a line an event: time, level, text; tracebacks below it) or ``json`` (an
            object a line).
    """
    if format == "json":
        inner: ILogObserver = jsonFileLogObserver(stream, recordSeparator="")
    else:
        inner = FileLogObserver(stream, _line)
    # Autobahn tells of every handshake at warn; what matters of it we log ourselves.
    predicate = LogLevelFilterPredicate(defaultLogLevel=_LEVELS[level])
    predicate.setLogLevelForNamespace("autobahn", LogLevel.error)
    return FilteringLogObserver(inner, [predicate])


def _line(event: dict[str, Any]) -> str | None:
    text = eventAsText(event, includeSystem=False, includeTimestamp=False)
    if not text:
        return None
    level: Any = event.get("log_level") or LogLevel.info
    return f"{formatTime(event['log_time'])} {level.name:5} {text}\n"
