"""Sections of the configuration as the parts that they bound want them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pelotontx.config import (
    ChannelConfig,
    HttpConfig,
    RpcConfig,
    ServerConfig,
    UploadConfig,
    UriConfig,
    WebSocketConfig,
)
from pelotontx.gateway import juggler
from pelotontx.net.admission import Admission
from pelotontx.net.http import HTTPLimits
from pelotontx.net.websocket import WebSocketLimits
from pelotontx.web.forms import FormLimits
from pelotontx.wire.glob import GlobTable
from pelotontx.wire.http import HeadLimits
from pelotontx.wire.juggler import JsonLimits

_log = Logger()
_T = TypeVar("_T")

#: Open files that are not for connections: the broker's, callees', logs, files that are served.
RESERVED_FILES: Final = 256


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
        unread_body_bytes=config.unread_body_limit_bytes,
    )


def form_limits(config: UploadConfig) -> FormLimits:
    """The section ``[upload]`` as `web.forms` wants it."""
    return FormLimits(
        body_bytes=config.body_limit_bytes,
        fields=config.fields_limit,
        fields_bytes=config.fields_limit_bytes,
        field_bytes=config.field_limit_bytes,
        files=config.files_limit,
        part_head_bytes=config.part_head_limit_bytes,
    )


def admission(config: ServerConfig, clock: IReactorTime) -> Admission:
    """The section ``[server]`` as `net.admission` wants it.

    Without files to open for the broker, connections would be of no use: the system's limit counts.
    """
    limit = config.connections_limit
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(1, files - RESERVED_FILES)
    if room < limit:
        _log.warn(
            "server.connections_limit is {room} instead of {limit}: the system allows {files} open "
            "files (ulimit -n, LimitNOFILE=)",
            room=room,
            limit=limit,
            files=files,
        )
        limit = room
    return Admission(
        clock.seconds,
        connections_limit=limit,
        address_connections_limit=config.address_connections_limit,
        address_rate=config.address_handshake_rate,
        trusted=config.trusted,
    )


def websocket_limits(config: WebSocketConfig) -> WebSocketLimits:
    """The section ``[websocket]`` as `net.websocket` wants it."""
    return WebSocketLimits(
        message_limit_bytes=config.message_limit_bytes,
        fragments_limit=config.fragments_limit,
        frame_rate=config.frame_rate,
        outbound_limit_bytes=config.outbound_limit_bytes,
        deflate=config.deflate,
        deflate_from_bytes=config.deflate_from_bytes,
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
        args_limit_bytes=config.args_limit_bytes,
        subscriptions_limit=config.subscriptions_limit,
        channel_limit_bytes=config.channel_limit_bytes,
        patterns=config.patterns,
        message_rate=config.message_rate,
        message_burst=config.message_burst,
        waiting_limit=config.waiting_limit,
        waiting_limit_bytes=websocket.outbound_limit_bytes,
        result_limit_bytes=config.result_limit_bytes,
        close_uri=config.close_uri,
        slow_message_s=websocket.slow_message_threshold_s,
        hook_timeout_s=config.hook_timeout_s,
    )


def json_limits(config: RpcConfig) -> JsonLimits:
    """What JSON from clients and callees may hold."""
    return JsonLimits(depth=config.json_depth_limit, keys=config.json_keys_limit)


def uri_limits(
    limits: juggler.JugglerLimits, tables: Sequence[UriConfig]
) -> GlobTable[juggler.JugglerLimits] | None:
    """`limits` as each ``[[uri]]`` changes them; None when there is none."""
    own = []
    for table in tables:
        timeout_limit_s = _given(table.call_timeout_limit_s, limits.call_timeout_limit_s)
        timeout_s = _given(table.call_timeout_s, limits.call_timeout_s)
        changed = replace(
            limits,
            call_timeout_s=min(timeout_s, timeout_limit_s),
            call_timeout_limit_s=timeout_limit_s,
            calls_limit=_given(table.calls_limit, limits.calls_limit),
            args_limit_bytes=_given(table.args_limit_bytes, limits.args_limit_bytes),
            result_limit_bytes=_given(table.result_limit_bytes, limits.result_limit_bytes),
        )
        own.append((table.glob, changed))
    return GlobTable(own, limits) if own else None


def channel_limits(
    limits: juggler.JugglerLimits, tables: Sequence[ChannelConfig]
) -> GlobTable[juggler.JugglerLimits] | None:
    """`limits` as each ``[[channel]]`` changes them; None when there is none."""
    own = []
    for table in tables:
        limit_bytes = _given(table.args_limit_bytes, limits.args_limit_bytes)
        own.append((table.glob, replace(limits, args_limit_bytes=limit_bytes)))
    return GlobTable(own, limits) if own else None


def call_cap_of(call_cap: int, tables: Sequence[UriConfig]) -> Callable[[str], int]:
    """How many calls of a URI may wait: of its ``[[uri]]``, or `call_cap`."""
    own = [(table.glob, _given(table.call_cap, call_cap)) for table in tables]
    return GlobTable(own, call_cap).find


def _given(value: _T | None, otherwise: _T) -> _T:
    return otherwise if value is None else value
