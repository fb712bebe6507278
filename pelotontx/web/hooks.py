"""What apps do around their handlers: hooks, error handlers, and the collection of bodies.

Only for `web.app`. A route that needs any of this leads to `Steps` instead of to its handler; that
is settled when the routing table is built, so that other routes pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from pelotontx.net.http import Response, Upgrade
from pelotontx.web.errors import HTTPError, log_failure
from pelotontx.web.request import Request
from pelotontx.web.responses import respond
from pelotontx.wire.http import RefusedRequest

#: A user's function: plain, a coroutine function, or one that returns a Deferred.
Hook = Callable[..., Any]


class Hooks:
    """The hooks and error handlers that one app was given.

    Attributes:
        before: called with the request.
        before_handler: likewise, when the body is there.
        after: called with the request and the response.
        on_error: by exception type or status; called with the request and the exception.
    """

    def __init__(self) -> None:
        self.before: list[Hook] = []
        self.before_handler: list[Hook] = []
        self.after: list[Hook] = []
        self.on_error: dict[type[Exception] | int, Hook] = {}

    def __bool__(self) -> bool:
        return bool(self.before or self.before_handler or self.after or self.on_error)

    def error_handler(self, error: Exception, status: int) -> Hook | None:
        """The one for this error: by its status, or else by the nearest of its types.

        `status` is what the client would be told.
        """
        found = self.on_error.get(status) if isinstance(error, HTTPError) else None
        types = iter(type(error).__mro__)
        while found is None and (kind := next(types, None)) is not None:
            found = self.on_error.get(kind)
        return found or self.on_error.get(status)


class Steps:
    """A handler with what comes before and after it.

    Args:
        handler: the user's function.
        chain: hooks of the apps around it, the outermost first.
        fail: makes the page of an exception that no error handler takes, and logs it.
        stream: the handler reads the body itself.
        body_limit_bytes: of this route; None: the server's.
    """

    __slots__ = (
        "_after",
        "_before",
        "_chain",
        "_fail",
        "_handler",
        "_limit_bytes",
        "_ready",
        "_stream",
    )

    def __init__(
        self,
        handler: Hook,
        chain: Iterable[Hooks],
        fail: Callable[[Request, Failure], Response],
        *,
        stream: bool = False,
        body_limit_bytes: int | None = None,
    ) -> None:
        self._handler = handler
        self._chain = tuple(chain)
        self._fail = fail
        self._stream = stream
        self._limit_bytes = body_limit_bytes
        self._before = tuple(hook for hooks in self._chain for hook in hooks.before)
        self._ready = tuple(hook for hooks in self._chain for hook in hooks.before_handler)
        self._after = tuple(hook for hooks in reversed(self._chain) for hook in hooks.after)

    def __call__(self, request: Request, /, *captures: Any, **named: Any) -> Any:
        if self._stream and not self._chain:
            if self._limit_bytes is not None:
                request.stream.limit_bytes = self._limit_bytes
            return self._handler(request, *captures, **named)
        return self._run(request, captures, named)

    async def _run(
        self, request: Request, captures: tuple[Any, ...], named: dict[str, Any]
    ) -> Response | Upgrade:
        try:
            answer = await self._answer(request, captures, named)
        except Exception as error:  # the user's code
            if is_left(request, error):
                raise
            answer = await self._failed(request, error)
        if not self._after or isinstance(answer, Upgrade):
            return answer
        answer = copy(answer)  # a handler may give the same one to everybody
        for hook in self._after:
            answer = await amended(request, answer, hook, self._fail, request, answer)
        return answer

    async def _answer(
        self, request: Request, captures: tuple[Any, ...], named: dict[str, Any]
    ) -> Response | Upgrade:
        request.handler = self._handler
        for hook in self._before:
            early = await settled(hook(request))
            if early is not None:
                return respond(early)
        if not self._stream:
            await collect(request, self._limit_bytes)
        elif self._limit_bytes is not None:
            request.stream.limit_bytes = self._limit_bytes
        for hook in self._ready:
            early = await settled(hook(request))
            if early is not None:
                return respond(early)
        return respond(await settled(self._handler(request, *captures, **named)))

    async def _failed(self, request: Request, error: Exception) -> Response | Upgrade:
        status = error.status if isinstance(error, HTTPError | RefusedRequest) else 500
        for hooks in reversed(self._chain):
            handler = hooks.error_handler(error, status)
            if handler is None:
                continue
            is_expected = isinstance(error, HTTPError | RefusedRequest)
            if handler is hooks.on_error.get(500) and not is_expected:
                log_failure(request, Failure(error))  # a page for it does not explain it
            try:
                answer = _page(error, status, await settled(handler(request, error)))
            except Exception as failed:  # the user's code
                if is_left(request, failed):
                    raise
                return self._fail(request, Failure())
            return answer
        return self._fail(request, Failure(error))


def is_left(request: Request, error: BaseException | None) -> bool:
    """Whether this is a cancelled handler whose client has gone.

    With the client still there somebody else has cancelled what it waits for: a failure.
    """
    return isinstance(error, CancelledError) and request.is_abandoned


async def settled(result: Any) -> Any:
    """A value, of a Deferred or coroutine if it is one."""
    if isinstance(result, Deferred) or iscoroutine(result):
        return await result
    return result


async def collect(request: Request, limit_bytes: int | None = None) -> None:
    """Waits for the whole body.

    Raises:
        RefusedRequest: 413 past the limit, 400 for a malformed body, 408 for a slow one.
    """
    if request.is_complete:
        if limit_bytes is not None and len(request.body) > limit_bytes:
            raise RefusedRequest(413, "body too large")
        return
    if limit_bytes is not None:
        request.stream.limit_bytes = limit_bytes
    request.body = await request.stream.read()


async def amended(
    request: Request,
    answer: Response,
    hook: Hook,
    fail: Callable[[Request, Failure], Response],
    *arguments: Any,
) -> Response:
    """The answer after a hook, which may have changed it, returned another, or failed."""
    try:
        changed = await settled(hook(*arguments))
        if changed is None:
            return answer
        if isinstance(changed, Response):
            return changed
        raise TypeError(f"a hook returned {type(changed).__name__}, not a Response")
    except Exception as error:  # the user's code
        if is_left(request, error):
            raise
        return fail(request, Failure())


def _page(error: Exception, status: int, result: Any) -> Response | Upgrade:
    """What an error handler returned, with what the error itself asks of the answer."""
    answer = copy(respond(result))
    if isinstance(answer, Upgrade):
        return answer
    if not isinstance(result, Response):  # a plain value
        answer.status = status
    if isinstance(error, HTTPError):
        for name, value in error.headers.items():
            if name not in answer.headers:
                answer.add_header(name, value)
    if isinstance(error, RefusedRequest):
        answer.close = True
    return answer
