"""A server in a few lines, run by itself: no configuration file, no broker.

    from pelotontx import httpd

    @httpd.get("/hello/{name}")
    async def hello(request, name):
        return f"Hello, {name}"

    httpd.serve(ports=[8080])

or, with routes as data (method, pattern, handler, further arguments of the handler):

    httpd.serve({"ports": [8080], "listen_backlog": 100},
                ("GET", r"^/chunked$", on_chunked),
                ("GET", r"^/$", on_index))

The same `App` can be served by ``twistd peloton`` with everything else that this one does not have:
TLS, sessions, WebSockets, processes. Importing this module installs our reactor, unless another one
is there already; limits are the defaults of ``[http]`` and ``[server]``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

if "twisted.internet.reactor" not in sys.modules:
    from pelotontx.net import reactor as _reactor_module

    _reactor_module.install()

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger, globalLogBeginner

from pelotontx.config import HttpConfig, ServerConfig
from pelotontx.flow import spare_collector
from pelotontx.net.http import HTTPFactory
from pelotontx.net.process import end_at_next_signal
from pelotontx.net.tcp import BACKLOG, listen
from pelotontx.net.wheel import Wheel
from pelotontx.ops.logging import observer
from pelotontx.services import Phase, Server
from pelotontx.services.limits import admission, http_limits
from pelotontx.web import (
    App,
    BodyWriter,
    HTTPError,
    Request,
    Response,
    Upgrade,
    attachment,
    html,
    json,
    not_found,
    redirect,
    stream,
    text,
)

_log = Logger(namespace="pelotontx")

app = App()
"""What the functions of this module add to, and what `serve` serves."""

route = app.route
get = app.get
post = app.post
put = app.put
patch = app.patch
delete = app.delete
converter = app.converter
include = app.include
mount = app.mount
before = app.before
before_handler = app.before_handler
after = app.after
on_error = app.on_error
url_for = app.url_for

#: The original's names of options.
_OPTIONS = frozenset({"ports", "listen_backlog"})


def serve(
    options: Mapping[str, Any] | tuple[Any, ...] | None = None,
    *routes: tuple[Any, ...],
    ports: Iterable[int | str] = (8080,),
    backlog: int = BACKLOG,
    interface: str = "127.0.0.1",
    development: bool = False,
    drain_timeout_s: float = 10.0,
    log_level: str = "info",
) -> None:
    """Serves `app` until Ctrl-C or SIGTERM; the log goes to standard output.

    A server that cannot start prints one line and exits with status 1.

    Args:
        options: ``ports`` and ``listen_backlog`` as a mapping, instead of the arguments of these
            names; or the first route.
        routes: further routes: method, pattern, handler, further arguments of the handler. They
            come before those that were decorated.
        ports: numbers, 0 for a free one, and endpoint strings such as ``unix:/run/shop.sock``.
        backlog: connections that may wait to be accepted.
        interface: of the ports; empty for all. Loopback only, until you decide who may come.
        development: error pages show tracebacks; not for the public.
        drain_timeout_s: what requests in flight have at the end.
        log_level: ``debug``, ``info``, ``warn`` or ``error``.

    Raises:
        TypeError: an unknown option.
        ValueError: a route that is none.
    """
    if isinstance(options, Mapping):
        unknown = options.keys() - _OPTIONS
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        ports = options.get("ports", ports)
        backlog = options.get("listen_backlog", backlog)
    elif options is not None:
        routes = (options, *routes)
    site = _site(routes, development=development)
    output = observer(sys.stdout, level=log_level, format="text")
    globalLogBeginner.beginLoggingTo([output], redirectStandardIO=False)
    descriptions = [_endpoint(port, interface) for port in ports]
    _run(_Listening(site, descriptions, backlog, drain_timeout_s))


def _site(routes: Iterable[tuple[Any, ...]], *, development: bool) -> App:
    site = App(development=development)
    for entry in routes:
        if len(entry) < 3:
            raise ValueError(f"a route is (method, pattern, handler, ...), not {entry!r}")
        method, pattern, handler, *extra = entry
        site.route(method, pattern, *extra)(handler)
    site.mount("", app)
    return site


def _endpoint(port: int | str, interface: str) -> str:
    if isinstance(port, str):
        return port
    escaped = interface.replace(":", r"\:")
    return f"tcp:{port}:interface={escaped}" if interface else f"tcp:{port}"


class _Listening:
    """One factory on all ports."""

    def __init__(
        self, site: App, descriptions: list[str], backlog: int, drain_timeout_s: float
    ) -> None:
        reactor: Any = _reactor
        self._descriptions = descriptions
        self._backlog = backlog
        self._drain_timeout_s = drain_timeout_s
        self._wheel = Wheel(reactor)
        self._factory = HTTPFactory(
            site.handle,
            wheel=self._wheel,
            clock=reactor,
            limits=http_limits(HttpConfig()),
            request_class=Request,
            admission=admission(ServerConfig(), reactor),
        )

    def add_to(self, server: Server) -> None:
        server.add(Phase("clients", stop=self._drain))
        server.add(
            Phase(
                "listeners",
                start=lambda: Deferred.fromCoroutine(self._listen(server.ports)),
                stop=lambda: _close(server.ports),
            )
        )

    async def _listen(self, ports: list[IListeningPort]) -> None:
        for description in self._descriptions:
            port = await listen(_reactor, description, self._factory, backlog=self._backlog)
            ports.append(port)
            _log.info("Listening on {address}", address=_shown(port))

    async def _drained(self) -> None:
        await self._factory.drain(self._drain_timeout_s)
        self._wheel.stop()

    def _drain(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._drained())


def _shown(port: IListeningPort) -> str:
    host: Any = port.getHost()
    if not hasattr(host, "port"):
        return f"unix:{host.name}"
    name = f"[{host.host}]" if ":" in host.host else host.host
    return f"http://{name}:{host.port}/"


def _close(ports: list[IListeningPort]) -> Deferred[Any]:
    closing = [maybeDeferred(port.stopListening) for port in ports]
    ports.clear()
    return gatherResults(closing)


def _run(listening: _Listening) -> None:
    reactor: Any = _reactor
    failed: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failed.append(error)
        reactor.stop()

    server = Server(on_failure=fail, on_stopping=end_at_next_signal)
    listening.add_to(server)
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.callWhenRunning(server.startService)
    spare_collector()
    reactor.run()
    if failed:
        sys.exit(f"httpd: {failed[0]}")


__all__ = [
    "App",
    "BodyWriter",
    "HTTPError",
    "Request",
    "Response",
    "Upgrade",
    "after",
    "app",
    "attachment",
    "before",
    "before_handler",
    "converter",
    "delete",
    "get",
    "html",
    "include",
    "json",
    "mount",
    "not_found",
    "on_error",
    "patch",
    "post",
    "put",
    "redirect",
    "route",
    "serve",
    "stream",
    "text",
    "url_for",
]
