"""What is served over HTTP: the configured paths, and the user's application."""

from __future__ import annotations

from secrets import token_urlsafe

from pelotontx.broker.interface import SessionStore
from pelotontx.config import Config, load_kind
from pelotontx.demo import page
from pelotontx.gateway import juggler
from pelotontx.net.http import Handle
from pelotontx.net.websocket import ServerFactory
from pelotontx.ops import debug_vars, health, metrics
from pelotontx.services.limits import form_limits
from pelotontx.services.mounts import Mounts
from pelotontx.web import App, Request
from pelotontx.web.compress import Compress
from pelotontx.web.hosts import KnownHosts
from pelotontx.web.session import Sessions
from pelotontx.web.uploads import DiskSink
from pelotontx.wire.forwarded import Proxies


def application(
    config: Config,
    *,
    websockets: ServerFactory,
    health_state: health.Health,
    metrics_registry: metrics.Metrics,
    variables: debug_vars.DebugVars,
    mounts: Mounts,
    serves: str = "all",
) -> App:
    """The app of what a listener answers: ``all``, ``application`` or ``operations``.

    Raises:
        ConfigError: ``web.app`` is missing or of another kind.
    """
    paths = config.paths
    app = App(development=config.server.development)
    if config.http.gzip:
        app.after(Compress())
    if serves != "application":
        if paths.health:
            app.include(health.routes(paths.health, health_state))
        if paths.metrics:
            app.include(metrics.routes(paths.metrics, metrics_registry))
        if paths.debug_vars:
            app.include(debug_vars.routes(paths.debug_vars, variables))
    if serves == "operations":
        return app
    if paths.websocket:
        app.include(juggler.routes(paths.websocket, websockets))
    if paths.client:
        app.include(juggler.client_routes(paths.client))
    last = None
    if config.web.app:
        last = load_kind(config.web.app, "web.app", App)
    elif paths.demo and not mounts.has_root:
        last = page.routes(paths.demo, websocket_path=paths.websocket, client_path=paths.client)
    rest = App()  # behind all that the configuration names itself
    mounts.add_to(rest, last)
    app.include(rest)
    return app


def for_hosts(config: Config, handle: Handle, serves: str) -> Handle:
    """The same for ``server.hosts`` alone, as far as it is not for operations."""
    if not config.server.hosts or serves == "operations":
        return handle
    return KnownHosts(handle, config.server.hosts, open_path=config.paths.health).handle


def request_class(
    config: Config, store: SessionStore, uploads: DiskSink | None = None
) -> type[Request]:
    """What handlers are given: what a request needs of its server is on its class, and so free."""
    part = config.session
    secrets = [secret for secret in (part.secret, *part.old_secrets) if secret]
    if not secrets and config.broker.url in ("embedded:", "memory:"):
        # Sessions end with the server there, and no other one sees them: nothing to warn of.
        secrets = [token_urlsafe(32)]
    sessions = Sessions(
        store=store,
        secrets=secrets,
        cookie=part.cookie,
        secure=part.secure,
        idle_timeout_s=part.idle_timeout_s,
        lifetime_s=part.lifetime_s,
    )
    proxies = Proxies(config.server.proxies, header=config.server.proxy_header)
    own = {
        "__slots__": (),
        "sessions": sessions,
        "proxies": proxies,
        "uploads": uploads,
        "form_limits": form_limits(config.upload),
    }
    return type("Request", (Request,), own)
