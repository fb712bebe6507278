"""What /health and /metrics show: read off the parts when somebody asks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pelotontx.broker.hub import Hub
from pelotontx.config import Config, without_password
from pelotontx.gateway.juggler import JugglerEndpoint
from pelotontx.net.http import HTTPFactory
from pelotontx.net.websocket import ServerFactory
from pelotontx.ops.health import Health
from pelotontx.ops.metrics import Metrics
from pelotontx.wire.juggler import NAMES


def watch_health(health: Health, *, config: Config, is_available: Callable[[], bool]) -> None:
    """What is told of the whole server."""
    shown_url = without_password(config.broker.url)
    node = config.server.node or socket.gethostname()
    health.add("node", lambda: (True, node))
    health.add("broker", lambda: (is_available(), {"url": shown_url, "available": is_available()}))


def watch_metrics(
    add: Metrics,
    *,
    endpoint: JugglerEndpoint,
    hub: Hub,
    http: HTTPFactory,
    websockets: ServerFactory,
    is_available: Callable[[], bool],
) -> None:
    """What is counted."""
    add.gauge("broker_available", "1 when the broker answers.", is_available)
    add.gauge("http_connections", "Connections that speak HTTP.", lambda: len(http.connections))
    add.gauge("websocket_connections", "Open WebSockets.", lambda: len(websockets.connections))
    add.counter("connections_refused", "No room for them.", lambda: http.turned_away)
    add.gauge("juggler_sessions", "Open juggler sessions.", lambda: len(endpoint.sessions))
    add.gauge("calls_pending", "Calls that wait for a result.", lambda: hub.pending_calls)
    add.gauge("topics", "Channels and globs subscribed to.", lambda: hub.topics)
    add.counter("juggler_sessions", "juggler sessions so far.", lambda: endpoint.sessions_total)
    add.counter("calls_expired", "Calls without a result.", lambda: endpoint.calls_expired)
    add.counter("slow_messages", "Took long to handle.", lambda: endpoint.slow_messages)
    add.counter("limits_exceeded", "Requests past a limit.", lambda: endpoint.limits_exceeded)
    add.counter("slow_consumers", "Closed for not reading.", lambda: websockets.slow_consumers)
    for name, counts in (
        ("messages_read", endpoint.messages_read),
        ("messages_written", endpoint.messages_written),
    ):
        add.counters(name, "juggler messages by type.", "type", _by_name(counts))


def _by_name(counts: Any) -> Callable[[], dict[str, float]]:
    return lambda: {NAMES[type_]: count for type_, count in counts.items()}
