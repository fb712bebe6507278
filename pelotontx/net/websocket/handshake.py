"""The opening handshake of a WebSocket, the server's side: what is asked, and what is answered.

For `net.websocket`, which drives it; import `Handshake`, `Refused` and `origin_allowed` from there.
Autobahn's own is not used: it reads the head in another way than `net.http` has judged it (its
lines end at any character that Python takes for a line's end, U+0085 in a cookie among them).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from pelotontx.wire.http import split_fields, status_line

# RFC 6455, 1.3
_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ONCE: Final = ("host", "origin", "sec-websocket-key", "sec-websocket-version")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_is_request_line = re.compile(rb"GET [!-~]+ HTTP/1\.1").fullmatch
_is_key = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
_match_origin = re.compile(
    r"(https?)://([a-z0-9._\-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
).fullmatch
_match_host = re.compile(r"([^:@/\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{0,5}))?").fullmatch


@dataclass(frozen=True, slots=True)
class Handshake:
    """A client's opening request.

    Attributes:
        headers: by lower-case name.
        subprotocols: as offered, in order.
        peer: the client's address.
        target: of the request line: path and query as they came.
    """

    headers: Mapping[str, str]
    subprotocols: list[str]
    peer: str
    target: str = "/"


class Refused(Exception):
    """Raised by an `accept` to answer an opening request with an HTTP error.

    Attributes:
        status: the HTTP status.
        reason: one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def read_handshake(head: bytes, peer: str) -> tuple[Handshake, str]:
    """An opening request (RFC 6455, 4.2.1) whose head was judged already, and its key.

    Raises:
        Refused: with 400 or 426.
    """
    fields: dict[str, str] = {}
    for name, value in split_fields(head):
        if name in fields and name in _ONCE:
            raise Refused(400, f"more than one {name} field")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    line = head[: head.index(b"\r\n")]
    if not (
        _is_request_line(line)
        and "websocket" in _items(fields.get("upgrade", "").lower())
        and "upgrade" in _items(fields.get("connection", "").lower())
        and "host" in fields
    ):
        raise Refused(400, "not an opening request of a WebSocket")
    if fields.get("sec-websocket-version") != "13":
        raise Refused(426, "version 13 is spoken here")
    key = fields.get("sec-websocket-key", "")
    if not _is_key(key):
        raise Refused(400, "malformed Sec-WebSocket-Key")
    subprotocols = _items(fields.get("sec-websocket-protocol", ""))
    if len(set(subprotocols)) < len(subprotocols):
        raise Refused(400, "a subprotocol is offered twice")
    return Handshake(fields, subprotocols, peer, line.split(b" ")[1].decode("ascii")), key


def _items(value: str) -> list[str]:
    return [item for piece in value.split(",") if (item := piece.strip(" \t"))]


def switching_protocols(
    key: str, subprotocol: str | None, extension: str | None, fields: bytes = b""
) -> bytes:
    """The 101 (RFC 6455, 4.2.2); `fields` are further header lines."""
    accept = b64encode(sha1(key.encode() + _ACCEPT_GUID).digest())
    chosen = b""
    if subprotocol is not None:
        chosen = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("latin-1")
    if extension is not None:
        chosen += b"Sec-WebSocket-Extensions: %b\r\n" % extension.encode()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nServer: pelotontx\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\n%b%bSec-WebSocket-Accept: %b\r\n\r\n" % (chosen, fields, accept)
    )


def error_response(refusal: Refused) -> bytes:
    """The end of a handshake that failed."""
    body = f"{refusal.status} {refusal.reason}\n".encode()
    # RFC 9110, 15.5.22 and RFC 6455, 4.4
    more = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" if refusal.status == 426 else b""
    return (
        b"%bServer: pelotontx\r\nConnection: close\r\n%b"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b"
        % (status_line(refusal.status), more, len(body), body)
    )


def origin_allowed(
    origin: str | None, host: str, allowed: tuple[str, ...], *, is_secure: bool = False
) -> bool:
    """Whether a browser at `origin` may connect to a server that it reached as `host`.

    No origin at all is fine: it is not a browser. `null` never is. Behind a proxy that ends TLS the
    server does not see it, so only a secure server insists on an origin with https.
    """
    if not origin:
        return True
    asking = _split_origin(origin)
    if asking == "null" or "*" in allowed or asking in map(_split_origin, allowed):
        return asking != "null"
    match = _match_host(host.lower())
    if isinstance(asking, str) or match is None:
        return False
    scheme, name, port = asking
    if is_secure and scheme != "https":
        return False
    return (name, port) == (match[1], int(match[2] or _DEFAULT_PORTS[scheme]))


def _split_origin(origin: str) -> tuple[str, str, int] | str:
    """Scheme, host and port; the text itself, lower case, if it is of another kind."""
    origin = origin.lower()
    match = _match_origin(origin)
    if match is None:
        return origin
    scheme, host, port = match.groups()
    return scheme, host, int(port or _DEFAULT_PORTS[scheme])
