"""Sections of the configuration as the parts that they bound want them."""

from __future__ import annotations

from pelotontx.config import HttpConfig, RpcConfig, WebSocketConfig
from pelotontx.gateway import juggler
from pelotontx.net.http import HTTPLimits
from pelotontx.net.websocket import WebSocketLimits
from pelotontx.wire.http import HeadLimits


def http_limits(config: HttpConfig) -> HTTPLimits:
    """The section ``[http]`` as `net.http` wants it."""
    return HTTPLimits(
        head=HeadLimits(
            line_bytes=config.request_line_limit_bytes,
            field_bytes=config.field_limit_bytes,
            head_bytes=config.head_limit_bytes,
            fields=config.fields_limit,
        ),
        head_s=config.head_timeout_s,
        body_limit_bytes=config.body_limit_bytes,
        body_idle_s=config.body_idle_timeout_s,
        body_rate_bytes_s=config.body_rate_bytes,
        body_rate_after_s=config.body_rate_grace_s,
        keep_alive_s=config.idle_timeout_s,
        requests=config.requests_limit,
        pipelined_bytes=config.pipeline_limit_bytes,
        unread_s=config.write_idle_timeout_s,
        unread_bytes=config.write_buffer_limit_bytes,
    )


def websocket_limits(config: WebSocketConfig) -> WebSocketLimits:
    """The section ``[websocket]`` as `net.websocket` wants it."""
    return WebSocketLimits(
        message_limit_bytes=config.message_limit_bytes,
        fragments_limit=config.fragments_limit,
        outbound_limit_bytes=config.outbound_limit_bytes,
        open_timeout_s=config.open_timeout_s,
        close_timeout_s=config.close_timeout_s,
        ping_interval_s=config.ping_interval_s,
        pong_timeout_s=config.pong_timeout_s,
    )


def juggler_limits(config: RpcConfig, websocket: WebSocketConfig) -> juggler.JugglerLimits:
    """The section ``[rpc]`` as `gateway.juggler` wants it."""
    return juggler.JugglerLimits(
        call_timeout_s=config.call_timeout_s,
        call_timeout_limit_s=config.call_timeout_limit_s,
        calls_limit=config.calls_limit,
        subscriptions_limit=config.subscriptions_limit,
        channel_limit_bytes=config.channel_limit_bytes,
        patterns=config.patterns,
        message_rate=config.message_rate,
        message_burst=config.message_burst,
        result_limit_bytes=config.result_limit_bytes,
        close_uri=config.close_uri,
        slow_message_s=websocket.slow_message_threshold_s,
    )
