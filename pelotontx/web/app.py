r"""`App`: routes to functions, and what these return to responses.

    app = App()

    @app.get("/hello/{name}")
    async def hello(request, name):
        return f"Hello, {name}"

    @app.get(r"^/archive/(\d{4})/(\d\d)$")
    def archive(request, year, month): ...

`App.handle` is what `net.http.HTTPFactory` calls. A handler is a plain function, a coroutine
function, or returns a Deferred; it gets the request, further arguments of its route, and the
captures of its pattern (`wire.pattern` tells what that may be). What it may return stands in
`web.responses`.

Which route answers: an app's own in the order in which they were added, then those of the apps and
objects mounted in it, a longer prefix before a shorter one, and of equal ones the first.

Errors are mapped to responses in one place, `App.error_response`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from copy import copy
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from pelotontx.net.http import Response, Upgrade
from pelotontx.web.coroutines import begin
from pelotontx.web.errors import HTTPError, error_page, log_failure
from pelotontx.web.hooks import Steps, amended, collect, is_left, settled
from pelotontx.web.request import Request
from pelotontx.web.responses import respond
from pelotontx.web.routes import Tables, Target, tables
from pelotontx.web.tree import Chain, RouteTree
from pelotontx.wire.http import RefusedRequest

Answer = Response | Upgrade


class App(RouteTree):
    """Routes, and the handlers they lead to.

    Args:
        development: error pages show tracebacks. Never for the public. It is the app that
            handles a request which decides, not one that is mounted in it.
    """

    def __init__(self, *, development: bool = False) -> None:
        super().__init__()
        self.development = development
        self._tables: Tables | None = None
        # Where apps with hooks are, for what no route matches; the longest prefix first.
        self._places: list[tuple[str, Chain]] = []
        # The target of what no route is for.
        self._hole = Steps(self._nothing_here, (), self.error_response, stream=True)

    def _changed(self) -> None:
        self._tables = None
        super()._changed()

    def _build(self) -> Tables:
        places: list[tuple[str, Chain]] = []
        found = list(self._leaves("", (), self._wrapped, places))
        has_hooks = any(chain for _, chain in places)
        # Of equal prefixes the last: there the search for a route has ended.
        self._places = places[::-1] if has_hooks else []
        self._places.sort(key=lambda at: -len(at[0]))
        self._tables = tables(found, self._hole)
        return self._tables

    def _wrapped(
        self, handler: Target, chain: Chain, *, stream: bool, body_limit_bytes: int | None
    ) -> Target:
        if not chain and not stream and body_limit_bytes is None:
            return handler
        return Steps(
            handler, chain, self.error_response, stream=stream, body_limit_bytes=body_limit_bytes
        )

    # Requests.

    def handle(self, request: Request) -> Answer | Deferred[Answer]:
        """Answers a request; never raises, and its Deferred errbacks only when cancelled."""
        routing = self._tables
        if routing is None:
            routing = self._build()
        routes = routing.get(request.method)
        path = request.path
        match = None if routes is None else routes.fixed.get(path) or routes.search(path)
        if match is None:
            match = self._hole, (), {}
        handler, captures, named = match
        result: Any
        try:
            if request.framing.length and not request.is_complete and type(handler) is not Steps:
                result = _collected(request, handler, captures, named)
            elif named:
                result = handler(request, *captures, **named)
            else:
                result = handler(request, *captures)
            if type(result) is Response and request.after_hooks is None:
                return result
            if iscoroutine(result):
                result = begin(result)
            if isinstance(result, Deferred):
                return self._later(request, result)
            result = respond(result)
        except Exception as error:  # the user's code
            result = self.error_response(request, Failure(error))
        return self._finish(result, request)

    def _later(self, request: Request, result: Deferred[Any]) -> Deferred[Answer]:
        result.addCallback(respond).addErrback(self._failed, request)
        return result.addCallback(self._finish, request)

    def _failed(self, failure: Failure, request: Request) -> Response | Failure:
        if is_left(request, failure.value):
            return failure
        return self.error_response(request, failure)

    def _finish(self, answer: Answer, request: Request) -> Answer | Deferred[Answer]:
        """Runs what `Request.after` was given."""
        if request.after_hooks is None or isinstance(answer, Upgrade):
            return answer
        return begin(self._amended(request, answer))

    async def _amended(self, request: Request, answer: Response) -> Answer:
        answer = copy(answer)  # a handler may give the same one to everybody
        for hook in request.after_hooks or ():
            answer = await amended(request, answer, hook, self.error_response, answer)
        return answer

    def _nothing_here(self, request: Request, /, *_: Any, **__: Any) -> Any:
        """Answers what no route is for, as the app whose place it is would."""
        outcome = self._verdict(request)
        chain = self._chain_at(request.path)
        if chain:

            def answer(request: Request) -> Response:
                if isinstance(outcome, HTTPError):
                    raise outcome
                return outcome

            return Steps(answer, chain, self.error_response, stream=True)(request)
        if isinstance(outcome, HTTPError):
            return self.error_response(request, Failure(outcome))
        return outcome

    def _verdict(self, request: Request) -> Response | HTTPError:
        """404, 405, or what OPTIONS asks for."""
        routing = self._build() if self._tables is None else self._tables
        allowed = set(routing)
        if request.path != "*":  # OPTIONS * asks for the whole server
            matches = ((method, routes.match(request.path)) for method, routes in routing.items())
            allowed = {method for method, match in matches if match and match[0] is not self._hole}
        if not allowed:
            return HTTPError(404, "There is nothing at this address.")
        allow = {"Allow": ", ".join(sorted(allowed | {"OPTIONS"}))}
        if request.method == "OPTIONS":
            return Response(204, headers=allow)
        return HTTPError(405, f"{request.method} is not possible here.", allow)

    def _chain_at(self, path: str) -> Chain:
        for prefix, chain in self._places:
            if not prefix or path == prefix or path.startswith(f"{prefix}/"):
                return chain
        return ()

    # Errors.

    def error_response(self, request: Request, failure: Failure) -> Response:
        """Maps what a handler raised to a response; the only place that does.

        `HTTPError` is its own status, and so is a body that was refused while it was read;
        everything else is logged and a 500, with the traceback if this is a development server.
        """
        error = failure.value
        if isinstance(error, HTTPError):
            return error_page(request, error.status, error.message, headers=error.headers)
        if isinstance(error, RefusedRequest):
            page = error_page(request, error.status, f"{error.reason.capitalize()}.")
            page.close = True  # where the next request would begin is not known
            return page
        log_failure(request, failure)
        details = ""
        if self.development and error is not None:
            details = "".join(traceback.format_exception(error))
        return error_page(request, 500, "Something went wrong on our side.", details=details)


async def _collected(
    request: Request, handler: Target, captures: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    await collect(request)
    return await settled(handler(request, *captures, **named))


__all__ = ["App"]
