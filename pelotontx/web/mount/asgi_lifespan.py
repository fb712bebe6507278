"""The lifespan of an ASGI application: its start before the first request, its end after the last.

All of it runs in asyncio.
"""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure


class Lifespan:
    """One application's.

    Args:
        application: the callable.
        loop: where it runs.
        state: the application puts in it what every request finds in ``scope["state"]``.
    """

    _log = Logger()

    def __init__(
        self, application: Any, loop: asyncio.AbstractEventLoop, state: dict[str, Any]
    ) -> None:
        self._application = application
        self._loop = loop
        self._state = state
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[str] = asyncio.Queue()  # two at most
        self._started: asyncio.Future[str | None] = loop.create_future()
        self._stopped: asyncio.Future[str | None] = loop.create_future()

    async def start(self, timeout_s: float) -> str | None:
        """Has the application start; one that knows no lifespan needs none.

        Returns:
            None, or why it cannot.
        """
        self._events.put_nowait("lifespan.startup")
        self._task = task = self._loop.create_task(self._run())
        ends: set[asyncio.Future[Any]] = {task, self._started}
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._started.done():
            return self._started.result()
        if not task.done():
            await self._cancel(task)
            return f"no answer within {timeout_s:g} s"
        error = task.exception()
        self._log.info("The ASGI application knows no lifespan ({error!r})", error=error)
        return None

    async def stop(self, timeout_s: float) -> None:
        """Has it end, or cancels it; what goes wrong is logged."""
        task = self._task
        if task is None or task.done():
            return
        self._events.put_nowait("lifespan.shutdown")
        await asyncio.wait({task}, timeout=timeout_s)
        if self._stopped.done() and self._stopped.result() is not None:
            reason = self._stopped.result()
            self._log.error("The ASGI application did not stop well: {reason}", reason=reason)
        elif task.done() and not task.cancelled() and task.exception() is not None:
            self._log.failure("The ASGI application did not stop well", Failure(task.exception()))
        if not task.done():
            self._log.warn("The ASGI application did not stop within {wait:g} s", wait=timeout_s)
            await self._cancel(task)

    async def _cancel(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        await self._application(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, str]:
        return {"type": await self._events.get()}

    async def _send(self, message: dict[str, Any]) -> None:
        name, _, event = message["type"].rpartition(".")
        future = {"lifespan.startup": self._started, "lifespan.shutdown": self._stopped}.get(name)
        if future is None or event not in ("complete", "failed") or future.done():
            raise RuntimeError(f"{message['type']!r} has no place here")
        failed = event == "failed"
        future.set_result((message.get("message") or "it does not say why") if failed else None)
