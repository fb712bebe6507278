"""What is around a WebSocket connection: its limits, its faces to both sides, codes and frames.

For `net.websocket`; import these names from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

TEXT_FINAL: Final = 0x81
BINARY_FINAL: Final = 0x82

GOING_AWAY: Final = 1001
UNSUPPORTED_DATA: Final = 1003
POLICY_VIOLATION: Final = 1008
MESSAGE_TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SLOW_CONSUMER: Final = 4008
TOO_MANY_MESSAGES: Final = 4029


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketLimits:
    """What a peer may do; each default is explained in the configuration's `[websocket]`."""

    message_limit_bytes: int = 64 * 1024
    fragments_limit: int = 1024
    frame_rate: int = 2000
    outbound_limit_bytes: int = 1024 * 1024
    deflate: bool = False
    deflate_from_bytes: int = 256
    open_timeout_s: float = 5.0
    close_timeout_s: float = 2.0
    ping_interval_s: float = 25.0
    pong_timeout_s: float = 10.0


class Connection(Protocol):
    """An open WebSocket, as the code above sees it."""

    peer: str

    def send_text(self, payload: bytes) -> None:
        """Sends one text message (UTF-8); does nothing once the connection is closing."""
        ...

    def send_frame(self, frame: bytes) -> None:
        """Sends what `encode_frame` has made, the same for any number of connections.

        To peers that take compressed messages a long one goes compressed: once, as long as one
        `bytes` object goes to all of them before the next one does.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame; the connection is dropped if the peer does not answer in time."""
        ...


class Conversation(Protocol):
    """What a connection talks to."""

    def text_received(self, payload: bytes) -> None:
        """One whole text message, valid UTF-8."""
        ...

    def binary_received(self, payload: bytes) -> None:
        """One whole binary message."""
        ...

    def connection_lost(self, code: int) -> None:
        """It is over.

        Args:
            code: the close frame's: the peer's, or ours if the peer broke the protocol; 1005 when
                it had none, 1006 when the connection ended without one.
        """
        ...


def encode_frame(payload: bytes, *, binary: bool = False) -> bytes:
    """One unmasked, final frame (RFC 6455, 5.2)."""
    first = BINARY_FINAL if binary else TEXT_FINAL
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return bytes((first, 126, length >> 8, length & 0xFF)) + payload
    return bytes((first, 127)) + length.to_bytes(8, "big") + payload
