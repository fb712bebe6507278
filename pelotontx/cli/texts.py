"""What the commands say about what a server said: made harmless, and with a hint what to do."""

from __future__ import annotations

import re
from typing import Final

# Control characters and those that turn the direction of writing: a server must not write to the
# terminal what the terminal obeys.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

# Regular expressions for what `Disconnected` says when a connection cannot be opened.
_HINTS: Final = {
    r"\[400\]": "is juggler.0 spoken at this path?",
    r"\[401\]|\[403\]": "this server wants an Origin or a login: peloton load has --header",
    r"\[404\]": "which path is the server's WebSocket at? ws://HOST:PORT/ws by default",
    r"\[429\]": "the server limits connections or handshakes of one address",
    r"\[503\]": "the server is stopping, or has as many connections as server.connections_limit",
    r"refused by other side": "is the server running? twistd -n peloton",
    r"^ws://\S+: the server dropped": "does this port speak TLS? wss://HOST:PORT/ws",
    r"wrong version number": "does this port speak no TLS? ws://HOST:PORT/ws",
}


def printable(text: str) -> str:
    """The text with escapes instead of what would drive a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def with_hint(error: object) -> str:
    """An error that ended a connection, printable, and what may help, if we know it."""
    text = str(error)
    for pattern, hint in _HINTS.items():
        if re.search(pattern, text):
            return f"{printable(text)} (hint: {hint})"
    return printable(text)
