"""The configuration: TOML, environment and command line to frozen dataclasses.

`load` gives a `Config` or raises a `pelotontx.errors.ConfigError` whose text is one line for the
person who runs the server; `render_default` prints every key; `load_object` finds the user's code
by its dotted name. The keys are defined in `sections`, what their values look like in `values`.
"""

from pelotontx.config.listener_sections import AccessLogConfig, ListenerConfig
from pelotontx.config.objects import load_kind, load_object
from pelotontx.config.reading import load
from pelotontx.config.rendering import as_environment, render_default
from pelotontx.config.sections import (
    BrokerConfig,
    CalleeConfig,
    ChannelConfig,
    Config,
    LogConfig,
    RpcConfig,
    ServerConfig,
    UriConfig,
)
from pelotontx.config.values import parse_duration, parse_size, without_password
from pelotontx.config.web_sections import (
    HttpConfig,
    MountConfig,
    PathsConfig,
    SessionConfig,
    UploadConfig,
    WebConfig,
    WebSocketConfig,
)

__all__ = [
    "AccessLogConfig",
    "BrokerConfig",
    "CalleeConfig",
    "ChannelConfig",
    "Config",
    "HttpConfig",
    "ListenerConfig",
    "LogConfig",
    "MountConfig",
    "PathsConfig",
    "RpcConfig",
    "ServerConfig",
    "SessionConfig",
    "UploadConfig",
    "UriConfig",
    "WebConfig",
    "WebSocketConfig",
    "as_environment",
    "load",
    "load_kind",
    "load_object",
    "parse_duration",
    "parse_size",
    "render_default",
    "without_password",
]
