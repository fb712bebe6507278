"""Every section and key of the configuration; those for browsers are in `web_sections`.

A field's metadata holds its `Key`: kind and range, default as it is written in TOML, help with the
reason of a limit. Loading, overriding, the default configuration and the errors all come from it.
A field is named as its key, with the unit behind: `head_timeout = "10s"` is `head_timeout_s`,
10.0; `body_limit = "1MiB"` is `body_limit_bytes`, 1048576.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from pelotontx.config.keys import Key, inherited, key, keys, required, wait
from pelotontx.config.listener_sections import AccessLogConfig, ListenerConfig
from pelotontx.config.texts import (
    BROKER_URL,
    ENDPOINTS,
    GATEWAY,
    GLOB,
    HOSTS,
    NAME,
    NETWORKS,
    OBJECT,
    PROXIES,
    PUBSUB_URL,
)
from pelotontx.config.values import Choice, Duration, Flag, Integer, Size
from pelotontx.config.web_sections import (
    HttpConfig,
    MountConfig,
    PathsConfig,
    SessionConfig,
    UploadConfig,
    WebConfig,
    WebSocketConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """`[server]`."""

    listen: tuple[str, ...] = key(
        ["tcp:8080:interface=127.0.0.1"],
        ENDPOINTS,
        "Where to listen. Loopback only, until you decide who may reach the server.",
        option="--listen",
    )
    development: bool = key(
        False,
        Flag(),
        "Error pages show tracebacks, and with `twistd --nodaemon` the server starts again when a "
        "Python file of the working folder or the configuration has changed. Tracebacks tell "
        "strangers about your code: not in production.",
    )
    drain_timeout_s: float = key(
        "10s",
        Duration("0s", "1h"),
        "How long a stop waits for calls and requests in flight. Past it they are cut off, since "
        "a stop that waits for ever ends in a kill.",
    )
    connections_limit: int = key(
        12_000,
        Integer(1, 1_000_000),
        "Connections of this process. Past it new ones are refused: each needs a file descriptor "
        "and memory, and those who are connected come first.",
    )
    address_connections_limit: int = key(
        100,
        Integer(0, 1_000_000),
        "Connections of one address (IPv6: of a /64). Further ones are cut off: one client must "
        "not take all the room; 0: any number.",
    )
    address_handshake_rate: int = key(
        20,
        Integer(0, 1_000_000),
        "New connections a second of one address. Further ones are cut off: each costs a "
        "handshake, under TLS a dear one; 0: any rate.",
    )
    trusted: tuple[str, ...] = key(
        ["127.0.0.0/8", "::1"],
        NETWORKS,
        "Addresses and networks without these two limits. Name your proxies and balancers here: "
        "all of their clients come from their address.",
    )
    proxies: tuple[str, ...] = key(
        [],
        PROXIES,
        "Proxies whose word on a request's client, scheme and host counts. Others could make up "
        'any address; "unix" stands for whoever comes by a UNIX socket.',
    )
    proxy_header: str = key(
        "x-forwarded",
        Choice(("x-forwarded", "forwarded")),
        "The fields that these proxies write: X-Forwarded-For, -Proto and -Host, or Forwarded (RFC "
        "7239). The others are not read: a proxy lets through what it does not know.",
    )
    hosts: tuple[str, ...] = key(
        [],
        HOSTS,
        "Host names that your application answers to, at any port; *.shop.example: all below "
        "shop.example. A request for another gets a 421, so that no address is built of a Host "
        "that a stranger made up. Behind server.proxies the forwarded host counts. paths.health "
        "and listeners for operations alone answer to any: balancers ask them by address. Empty: "
        "any host.",
    )
    node: str = key("", NAME, "This server's name in /health; empty: the host's name.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """`[broker]`."""

    url: str = key(
        "embedded:",
        BROKER_URL,
        "Where calls and events go. embedded: a Valkey of our own, started and ended with the "
        "server; memory: inside this process, nothing outlives it; redis://host:6379/0 or "
        "unix:///run/redis.sock?db=0: a server of yours, shared by several of ours; "
        "redis+sentinel://host,host/service, redis+cluster://host,host; rediss... for TLS.",
        option="--broker",
    )
    pubsub_url: str = key(
        "",
        PUBSUB_URL,
        "Where events go, if elsewhere: an URL as in url. Calls and events then do not slow each "
        "other down, and each can grow by itself; empty: where calls go.",
    )
    connect_timeout_s: float = wait(
        "5s", "A connection to the broker that takes longer is given up and tried again.", most="5m"
    )
    reply_timeout_s: float = wait(
        "5s",
        "A command that is not answered in this time means that the broker is unavailable: "
        "clients get a definite answer instead of waiting on a server that hangs.",
        most="5m",
    )
    call_cap: int = key(
        10_000,
        Integer(0, 100_000_000),
        "Calls that may wait for the callees of one URI. Past it calls are refused, so that a "
        "dead callee does not fill the broker's memory; 0: no cap.",
    )
    result_cap: int = key(
        20_000,
        Integer(0, 100_000_000),
        "Results that may wait for one server process, and so the calls that it has in flight: "
        "further ones are refused. A dead server does not fill the broker's memory; 0: no cap.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcConfig:
    """`[rpc]`."""

    call_timeout_s: float = wait(
        "60s",
        "The time that a call has when its client names none.",
        most="24h",
        at_most="rpc.call_timeout_limit",
    )
    call_timeout_limit_s: float = wait(
        "300s",
        "The longest time that a client may ask for: a waiting call holds memory here and in the "
        "broker.",
        most="24h",
    )
    calls_limit: int = key(
        64,
        Integer(1, 1_000_000),
        "Calls in flight on one connection. More: NACK; one client must not take all callees.",
    )
    subscriptions_limit: int = key(
        128,
        Integer(1, 1_000_000),
        "Subscriptions of one connection. More: NACK; each is kept here and in the broker.",
    )
    channel_limit_bytes: int = key(
        "255B",
        Size("1B", "64KiB"),
        "A channel's name. Longer: NACK; names are kept for every subscription.",
    )
    patterns: bool = key(
        False,
        Flag(),
        "Allow subscriptions to patterns. They reach every channel that matches, also those a "
        "client should not know of, and each costs time at every event.",
    )
    message_rate: int = key(
        50,
        Integer(0, 1_000_000),
        "Messages a second of one connection. Past it: NACK 429, then close 4029; one client "
        "must not slow the others down; 0: any rate.",
    )
    message_burst: int = key(
        100,
        Integer(1, 1_000_000),
        "Messages that may come at once before message_rate counts.",
    )
    result_limit_bytes: int = key(
        "1MiB",
        Size("128B", "256MiB"),
        "A result from a callee. Larger: the caller gets an error instead; a result past "
        "websocket.outbound_limit would close its connection.",
        at_most="websocket.outbound_limit",
    )
    args_limit_bytes: int = key(
        "0B",
        Size("0B", "256MiB"),
        "The args of a call or an event. Larger: NACK; they wait in the broker's memory; 0: as "
        "large as a message may be.",
    )
    json_depth_limit: int = key(
        32,
        Integer(1, 500),
        "Objects and arrays in each other, in args and results. Deeper: close 1007; depth costs "
        "every decoder stack.",
    )
    json_keys_limit: int = key(
        1024,
        Integer(1, 1_000_000),
        "Keys of one object, in args and results. More: close 1007; they cost every decoder time.",
    )
    waiting_limit: int = key(
        256,
        Integer(1, 100_000),
        "Messages of one connection that wait for middleware, or for the broker to confirm what "
        "stands before them; in bytes at most websocket.outbound_limit. More: NACK, and for "
        "outgoing ones close 4008; they are held in memory.",
    )
    close_uri: str = key(
        "", NAME, "A call to this URI closes the connection with 1000 bye; empty: none does."
    )
    gateway: str = key(
        "",
        GATEWAY,
        "Your middlewares and hooks, a pelotontx.gateway.juggler.Gateway; empty: none.",
    )
    hook_timeout_s: float = wait(
        "10s",
        "What middlewares and hooks may take for one message, which then gets a NACK: the "
        "connection's other messages wait behind it.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UriConfig:
    """One `[[uri]]`."""

    glob: str = required("shop.*", GLOB, "The URIs.")
    call_cap: int | None = inherited(
        "broker.call_cap", BrokerConfig, "Calls that may wait for the callees of one."
    )
    call_timeout_s: float | None = inherited(
        "rpc.call_timeout",
        RpcConfig,
        "The time that a call has when its client names none; call_timeout_limit holds for it too.",
    )
    call_timeout_limit_s: float | None = inherited(
        "rpc.call_timeout_limit",
        RpcConfig,
        "The longest time that a client may ask for.",
    )
    calls_limit: int | None = inherited(
        "rpc.calls_limit",
        RpcConfig,
        "Calls of these together in flight on one connection; rpc.calls_limit counts them too.",
    )
    args_limit_bytes: int | None = inherited("rpc.args_limit", RpcConfig, "The args of a call.")
    result_limit_bytes: int | None = inherited(
        "rpc.result_limit",
        RpcConfig,
        "A result from a callee, which has rpc.result_limit itself.",
        at_most="rpc.result_limit",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """One `[[channel]]`."""

    glob: str = required("room.*", GLOB, "The channels.")
    args_limit_bytes: int | None = inherited("rpc.args_limit", RpcConfig, "The args of an event.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalleeConfig:
    """One `[[callee]]`."""

    object: str = required("shop.rpc:callee", OBJECT, "The callee: a pelotontx Callee object.")
    processes: int = key(
        0,
        Integer(0, 1024),
        "Processes of its own that run it; 0: it runs inside the server's process.",
    )
    concurrency: int = key(
        256,
        Integer(1, 10_000),
        "Calls that one process takes and runs at a time. The others wait in the broker, where "
        "another process can take them.",
    )
    threads: int = key(
        8,
        Integer(1, 1000),
        "Threads of one process for plain functions, which may block; inline ones and coroutines "
        "need none. No more of their calls are taken than will find a free thread soon. More where "
        "functions wait for something (a database), at the price of memory; Python computes in one "
        "thread at a time.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """`[log]`."""

    level: str = key(
        "info",
        Choice(("debug", "info", "warn", "error")),
        "Events below this level are left out. For `twistd --nodaemon`, which logs to standard "
        "output; with --logfile, as a daemon and under twist, their own options hold.",
    )
    format: str = key(
        "text", Choice(("text", "json")), "Lines for people, or one JSON object a line."
    )


def _help(text: str, *, repeated: type[Any] | None = None) -> dict[str, Any]:
    """A section's metadata; `repeated`: what one table of `[[section]]` becomes."""
    return {"help": text, "repeated": repeated}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration: a field a section, named as in TOML.

    Services take what they need as plain keyword arguments, never this.
    """

    server: ServerConfig = field(
        default_factory=ServerConfig, metadata=_help("The process and its listeners.")
    )
    listener: tuple[ListenerConfig, ...] = field(
        default=(),
        metadata=_help(
            "Listeners that server.listen cannot describe; any number. server.listen then counts "
            "only if it is given too.",
            repeated=ListenerConfig,
        ),
    )
    broker: BrokerConfig = field(
        default_factory=BrokerConfig, metadata=_help("What carries calls, results and events.")
    )
    http: HttpConfig = field(
        default_factory=HttpConfig, metadata=_help("Limits of HTTP connections.")
    )
    websocket: WebSocketConfig = field(
        default_factory=WebSocketConfig, metadata=_help("Limits of WebSocket connections.")
    )
    rpc: RpcConfig = field(
        default_factory=RpcConfig, metadata=_help("Calls and subscriptions of connected clients.")
    )
    uri: tuple[UriConfig, ...] = field(
        default=(),
        metadata=_help(
            "Limits of calls to some URIs; any number, the first that matches counts.",
            repeated=UriConfig,
        ),
    )
    channel: tuple[ChannelConfig, ...] = field(
        default=(),
        metadata=_help(
            "Limits of events on some channels; any number, the first that matches counts.",
            repeated=ChannelConfig,
        ),
    )
    paths: PathsConfig = field(
        default_factory=PathsConfig, metadata=_help('What is served where; "" turns one off.')
    )
    web: WebConfig = field(default_factory=WebConfig, metadata=_help("Your HTTP code."))
    mount: tuple[MountConfig, ...] = field(
        default=(),
        metadata=_help(
            "Other applications and files under a path; any number, each with exactly one of app, "
            "resource, wsgi, asgi, directory and package. [paths] come first, then mounts, the "
            "longest path first, then web.app; a mount at / is the last.",
            repeated=MountConfig,
        ),
    )
    session: SessionConfig = field(
        default_factory=SessionConfig,
        metadata=_help("What your HTTP code remembers of a browser: request.session()."),
    )
    upload: UploadConfig = field(
        default_factory=UploadConfig,
        metadata=_help("Forms with files that your HTTP code reads: request.read_form()."),
    )
    callee: tuple[CalleeConfig, ...] = field(
        default=(),
        metadata=_help(
            "Your functions that clients may call; any number of these.", repeated=CalleeConfig
        ),
    )
    log: LogConfig = field(default_factory=LogConfig, metadata=_help("What is logged, and how."))
    access_log: AccessLogConfig = field(
        default_factory=AccessLogConfig, metadata=_help("A line for each answer over HTTP.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section as loading and rendering see it: `cls` is built from `keys`, by TOML name."""

    cls: type[Any]
    help: str
    repeated: bool
    keys: dict[str, Key]


def _collect(entry: Field[Any]) -> Section:
    cls: Any = entry.metadata["repeated"] or entry.default_factory
    return Section(
        cls=cls,
        help=entry.metadata["help"],
        repeated=entry.metadata["repeated"] is not None,
        keys=keys(cls),
    )


SECTIONS: dict[str, Section] = {entry.name: _collect(entry) for entry in fields(Config)}
"""Every section by its name in TOML, in the order of the default configuration."""
