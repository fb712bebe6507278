"""RPC and pub/sub for WebSocket peers: the juggler.0 endpoint.

    gateway     what an application adds: middlewares and hooks
    limits      what a session may do
    session     one peer
    chained     one peer behind an application's hooks and middlewares
    endpoint    opens sessions, ends them
    routes      the paths over HTTP

Import names from here.
"""

from pelotontx.errors import RequestRefused
from pelotontx.gateway.juggler.endpoint import JugglerEndpoint
from pelotontx.gateway.juggler.gateway import Gateway, Message, Next, Session, logging_middleware
from pelotontx.gateway.juggler.limits import JugglerLimits, allowed_messages, nack_of
from pelotontx.gateway.juggler.routes import client_routes, routes
from pelotontx.gateway.juggler.session import JugglerSession

__all__ = [
    "Gateway",
    "JugglerEndpoint",
    "JugglerLimits",
    "JugglerSession",
    "Message",
    "Next",
    "RequestRefused",
    "Session",
    "allowed_messages",
    "client_routes",
    "logging_middleware",
    "nack_of",
    "routes",
]
