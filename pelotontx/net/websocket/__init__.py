"""WebSocket servers: the opening handshake, Autobahn's protocol with every option set, a fast path.

`net.http` hands a judged request over (`Upgrade`), and `ServerFactory` answers it. Complete,
unfragmented text and binary frames of an open connection (nearly all frames) are parsed in one loop
over what was read; anything else goes to Autobahn's own code, frame by frame. Frames are sent as
they are built, without Autobahn's bookkeeping. The measure of this package is that it passes the
same conformance cases as Autobahn (tests/integration/test_conformance.py).

    factory       makes connections, and holds what they share
    connection    one connection
    message       limits, the faces to both sides, close codes, frames
    handshake     opening requests and their answers
    deflate       compressed messages
    client        the other side
"""

from pelotontx.net.websocket.connection import Accept, Accepted, ServerConnection
from pelotontx.net.websocket.factory import ServerFactory
from pelotontx.net.websocket.handshake import Handshake, Refused, origin_allowed
from pelotontx.net.websocket.message import (
    GOING_AWAY,
    INTERNAL_ERROR,
    MESSAGE_TOO_BIG,
    POLICY_VIOLATION,
    SLOW_CONSUMER,
    TOO_MANY_MESSAGES,
    UNSUPPORTED_DATA,
    Connection,
    Conversation,
    WebSocketLimits,
    encode_frame,
)

__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "MESSAGE_TOO_BIG",
    "POLICY_VIOLATION",
    "SLOW_CONSUMER",
    "TOO_MANY_MESSAGES",
    "UNSUPPORTED_DATA",
    "Accept",
    "Accepted",
    "Connection",
    "Conversation",
    "Handshake",
    "Refused",
    "ServerConnection",
    "ServerFactory",
    "WebSocketLimits",
    "encode_frame",
    "origin_allowed",
]
