"""Running one coroutine under a reactor, for the commands that end by themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

INTERRUPTED: Final = 130


def run_main(
    reactor: Any,
    main: Callable[[], Coroutine[Any, Any, int]],
    *,
    handles_signals: bool = True,
) -> int:
    """Runs `main` and the reactor as long as it.

    Args:
        reactor: the installed reactor, not yet running.
        main: gives the exit status; an exception prints its traceback and means 1. One that stdout
            or stderr are not read any more prints nothing.
        handles_signals: whether the reactor takes SIGINT and SIGTERM, which stop it at once.

    Returns:
        the exit status; 130 when a signal stopped the reactor.
    """
    status = INTERRUPTED
    is_stopping = False

    def stopping() -> None:
        nonlocal is_stopping
        is_stopping = True

    def ended(result: int | Failure) -> None:
        nonlocal status
        if is_stopping:
            return  # interrupted; what it says now is only that
        status = 1
        try:
            if not isinstance(result, Failure):
                status = result
            elif result.check(BrokenPipeError) is None:
                result.printTraceback(file=sys.stderr)
        except BrokenPipeError:
            pass  # nobody reads it
        finally:
            reactor.stop()

    def start() -> None:
        Deferred.fromCoroutine(main()).addBoth(ended)

    reactor.addSystemEventTrigger("before", "shutdown", stopping)
    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=handles_signals)
    return status
