r"""`App`: routes to functions, and what these return to responses.

    app = App()

    @app.get(r"^/hello/(\w+)$")
    async def hello(request, name):
        return f"Hello, {name}"

`App.handle` is what `net.http.HTTPFactory` calls. A handler is a plain function, a coroutine
function, or returns a Deferred; it gets the request and the captures of its route. It may return:

    Response, Upgrade    as they are
    str                  text/plain, UTF-8 (`html` for HTML)
    bytes                application/octet-stream
    dict, list           application/json
    None                 204 No Content

Errors are mapped to responses in one place, `App.error_response`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from html import escape
from http.cookies import CookieError, SimpleCookie
from inspect import iscoroutine
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError, PelotonError
from pelotontx.net import http
from pelotontx.net.http import BodyWriter, Headers, Response, Upgrade
from pelotontx.wire.http import REASONS, Route, Routes

#: More query arguments than any page has; each costs an object.
_ARGUMENTS = 1000

_encode_json = msgspec.json.Encoder().encode


class HTTPError(PelotonError):
    """Raised by a handler to answer with an error page.

    Attributes:
        status: the response's status, 400 to 599.
        message: a sentence for the person at the other end.
        headers: further response headers.
    """

    def __init__(
        self, status: int, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {message or REASONS.get(status, 'Error')}")
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class Request(http.Request):
    """A request with what handlers ask for."""

    __slots__ = ("_query",)

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's arguments, each with its values in order.

        Raises:
            HTTPError: 400, more than a thousand arguments.
        """
        try:
            return self._query  # type: ignore[has-type,no-any-return]
        except AttributeError:
            pass
        try:
            self._query = parse_qs(
                self.query_string, keep_blank_values=True, max_num_fields=_ARGUMENTS
            )
        except ValueError:
            raise HTTPError(400, "Too many arguments.") from None
        return self._query

    def argument(self, name: str, default: str = "") -> str:
        """The last value of a query argument."""
        values = self.query.get(name)
        return values[-1] if values else default

    def header(self, name: str, default: str = "") -> str:
        """The first value of a header, in any case of its name."""
        return self.headers.get(name, default)

    def json(self, type: Any = Any) -> Any:
        """The body, decoded from JSON.

        Args:
            type: what it must be: any type that msgspec can check.

        Raises:
            HTTPError: 400, not JSON, or not of that type.
        """
        try:
            return msgspec.json.decode(self.body, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPError(400, f"The body is not what was expected: {error}.") from None

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name; malformed ones are left out."""
        cookies: dict[str, str] = {}
        for line in self.headers.get_all("cookie"):
            for pair in line.split(";"):
                try:
                    parsed = SimpleCookie(pair.strip())
                except CookieError:
                    continue
                for name, morsel in parsed.items():
                    cookies.setdefault(name, morsel.value)
        return cookies


def text(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A text/plain response in UTF-8."""
    return Response(status, body.encode(), headers or (), "text/plain; charset=utf-8")


def html(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A text/html response in UTF-8."""
    return Response(status, body.encode(), headers or (), "text/html; charset=utf-8")


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An application/json response.

    Raises:
        TypeError: something that msgspec cannot encode.
    """
    return Response(status, _encode_json(value), headers or (), "application/json")


def redirect(location: str, status: int = 303) -> Response:
    """Sends the browser elsewhere; 303 makes it a GET, 307 and 308 keep the method.

    Raises:
        LocalProtocolError: a location with control characters.
    """
    return Response(status, b"", {"Location": location})


def not_found(message: str = "") -> Response:
    """A 404 in plain text; ``raise HTTPError(404)`` gives the app's own page."""
    return text(f"{message or 'Not Found'}\n", 404)


Handler = TypeVar("Handler", bound=Callable[..., Any])


class App:
    """Routes, and the handlers they lead to.

    Args:
        development: error pages show tracebacks. Never for the public. It is the app that
            handles a request which decides, not one that it includes.
    """

    _log = Logger()

    def __init__(self, *, development: bool = False) -> None:
        self.development = development
        self._entries: list[tuple[str, str, Callable[..., Any]]] = []
        self._included: list[App] = []
        self._parents: list[App] = []
        self._tables: dict[str, Routes[Callable[..., Any]]] | None = None

    def route(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        """Decorates a handler for a method and a regular expression.

        Args:
            method: upper case; ``GET`` serves HEAD as well.
            pattern: matched from the start of the decoded path; end it with ``$`` for the whole.
                Groups become arguments, named groups keyword arguments.

        Raises:
            re.error: not a regular expression.
        """

        def add(handler: Handler) -> Handler:
            Route(method, pattern, handler)  # a bad pattern is told where it is written
            self._entries.append((method, pattern, handler))
            self._changed()
            return handler

        return add

    def get(self, pattern: str) -> Callable[[Handler], Handler]:
        """`route` for GET, and so for HEAD."""
        return self.route("GET", pattern)

    def post(self, pattern: str) -> Callable[[Handler], Handler]:
        """`route` for POST."""
        return self.route("POST", pattern)

    def put(self, pattern: str) -> Callable[[Handler], Handler]:
        """`route` for PUT."""
        return self.route("PUT", pattern)

    def patch(self, pattern: str) -> Callable[[Handler], Handler]:
        """`route` for PATCH."""
        return self.route("PATCH", pattern)

    def delete(self, pattern: str) -> Callable[[Handler], Handler]:
        """`route` for DELETE."""
        return self.route("DELETE", pattern)

    def include(self, other: App) -> None:
        """Appends another app's routes after this one's own; later additions to it count too.

        Raises:
            ValueError: `other` includes this app already.
        """
        if other is self or self in other._all():
            raise ValueError("an app cannot include itself")
        self._included.append(other)
        other._parents.append(self)
        self._changed()

    def _all(self) -> list[App]:
        apps = [self]
        for app in self._included:
            apps.extend(app._all())
        return apps

    def _changed(self) -> None:
        self._tables = None
        for parent in self._parents:
            parent._changed()

    def _build(self) -> dict[str, Routes[Callable[..., Any]]]:
        by_method: dict[str, list[Route[Callable[..., Any]]]] = {}
        for app in self._all():
            for method, pattern, handler in app._entries:
                by_method.setdefault(method, []).append(Route(method, pattern, handler))
        if "GET" in by_method:
            by_method["HEAD"] = by_method.get("HEAD", []) + by_method["GET"]
        self._tables = {method: Routes(routes) for method, routes in by_method.items()}
        return self._tables

    def handle(self, request: Request) -> Response | Upgrade | Deferred[Response | Upgrade]:
        """Answers a request; never raises, and its Deferred errbacks only when cancelled."""
        tables = self._tables or self._build()
        routes = tables.get(request.method)
        match = routes.match(request.path) if routes is not None else None
        if match is None:
            return self._unmatched(request, tables)
        handler, captures, named = match
        try:
            result = handler(request, *captures, **named) if named else handler(request, *captures)
            if type(result) is Response:
                return result
            if iscoroutine(result):
                result = Deferred.fromCoroutine(result)
            if not isinstance(result, Deferred):
                return respond(result)
        except Exception as error:  # the user's code
            return self.error_response(request, Failure(error))
        return result.addCallback(respond).addErrback(self._failed, request)

    def _failed(self, failure: Failure, request: Request) -> Response:
        if failure.check(CancelledError):
            failure.raiseException()
        return self.error_response(request, failure)

    def _unmatched(
        self, request: Request, tables: Mapping[str, Routes[Callable[..., Any]]]
    ) -> Response:
        allowed = {method for method, routes in tables.items() if routes.match(request.path)}
        if request.path == "*":  # OPTIONS * asks for the whole server
            allowed = set(tables)
        if not allowed:
            return self.error_page(request, 404, "There is nothing at this address.")
        allow = {"Allow": ", ".join(sorted(allowed | {"OPTIONS"}))}
        if request.method == "OPTIONS":
            return Response(204, headers=allow)
        return self.error_page(
            request, 405, f"{request.method} is not possible here.", headers=allow
        )

    def error_response(self, request: Request, failure: Failure) -> Response:
        """Maps what a handler raised to a response; the only place that does.

        `HTTPError` is its own status; everything else is logged and a 500, with the traceback if
        this is a development server.
        """
        error = failure.value
        if isinstance(error, HTTPError):
            return self.error_page(request, error.status, error.message, headers=error.headers)
        self._log.failure(
            "{method} {path} failed", failure, method=request.method, path=request.path
        )
        details = ""
        if self.development and error is not None:
            details = "".join(traceback.format_exception(error))
        return self.error_page(request, 500, "Something went wrong on our side.", details=details)

    def error_page(
        self,
        request: Request,
        status: int,
        message: str = "",
        *,
        details: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """An error as a small page, or as ``{"error": {"status", "message"}}`` for JSON clients."""
        reason = REASONS.get(status, "Error")
        accept = request.headers.get("accept")
        if "application/json" in accept and "text/html" not in accept:
            error: dict[str, Any] = {"status": status, "message": message or reason}
            if details:
                error["traceback"] = details
            return json({"error": error}, status, headers)
        page = _PAGE.format(
            status=status,
            reason=escape(reason),
            message=escape(message),
            details=f"<pre>{escape(details)}</pre>" if details else "",
        )
        return html(page, status, headers)


def respond(result: Any) -> Response | Upgrade:
    """What a handler returned, as a response; see the module's table.

    Raises:
        LocalProtocolError: a type that has no meaning.
    """
    if isinstance(result, Response | Upgrade):
        return result
    if isinstance(result, str):
        return text(result)
    if isinstance(result, bytes):
        return Response(200, result, (), "application/octet-stream")
    if isinstance(result, dict | list):
        return json(result)
    if result is None:
        return Response(204)
    raise LocalProtocolError(f"a handler returned {type(result).__name__}")


__all__ = [
    "App",
    "BodyWriter",
    "HTTPError",
    "Headers",
    "Request",
    "Response",
    "Upgrade",
    "html",
    "json",
    "not_found",
    "redirect",
    "respond",
    "text",
]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{status} {reason}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2530; --soft: #5c6876; --paper: #f7f8fa;
  --edge: #dde2e8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ecf1; --soft: #9aa7b5; --paper: #14181d; --edge: #2b333c; }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; color: var(--ink);
  background: var(--paper); font: 1rem/1.6 system-ui, sans-serif; }}
main {{ padding: 2rem; max-width: min(60rem, 90vw); box-sizing: border-box; }}
h1 {{ margin: 0 0 .25em; font-size: clamp(1.5rem, 5vw, 2.25rem); line-height: 1.2; }}
h1 span {{ color: var(--soft); font-weight: 400; }}
p {{ margin: 0; color: var(--soft); }}
pre {{ margin: 1.5rem 0 0; padding: 1rem; overflow: auto; border: 1px solid var(--edge);
  border-radius: .5rem; font-size: .85rem; line-height: 1.45; }}
</style>
</head>
<body><main><h1><span>{status}</span> {reason}</h1><p>{message}</p>{details}</main></body>
</html>
"""
