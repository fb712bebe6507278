"""What is served over HTTP: the configured paths, and the user's application."""

from __future__ import annotations

from pelotontx.config import Config, load_kind
from pelotontx.demo import page
from pelotontx.gateway import juggler
from pelotontx.net.websocket import ServerFactory
from pelotontx.ops import debug_vars, health, metrics
from pelotontx.web.app import App


def application(
    config: Config,
    *,
    websockets: ServerFactory,
    health_state: health.Health,
    metrics_registry: metrics.Metrics,
    variables: debug_vars.DebugVars,
) -> App:
    """The app of all that the server answers.

    Raises:
        ConfigError: ``web.app`` is missing or of another kind.
    """
    paths = config.paths
    app = App(development=config.server.development)
    if paths.websocket:
        app.include(juggler.routes(paths.websocket, websockets))
    if paths.client:
        app.include(juggler.client_routes(paths.client))
    if paths.health:
        app.include(health.routes(paths.health, health_state))
    if paths.metrics:
        app.include(metrics.routes(paths.metrics, metrics_registry))
    if paths.debug_vars:
        app.include(debug_vars.routes(paths.debug_vars, variables))
    if config.web.app:
        app.include(load_kind(config.web.app, "web.app", App))
    elif paths.demo:
        app.include(
            page.routes(paths.demo, websocket_path=paths.websocket, client_path=paths.client)
        )
    return app
