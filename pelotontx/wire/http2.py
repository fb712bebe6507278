"""HTTP/2 on the wire: frames cut out of what arrives, and requests judged as in HTTP/1.1. Pure.

    connection  "PRI * HTTP/2.0" CRLF CRLF "SM" CRLF CRLF *frame
    frame       length (24 bits) kind (8) flags (8) stream (32) payload
    request     HEADERS *CONTINUATION *DATA [HEADERS], the last of them with END_STREAM

h2 keeps the state of connection and streams (RFC 9113) and the compression of fields (RFC 7541).
What comes before h2 is here: a frame is counted and measured before it costs anything. And what
comes after: a request's fields become the HTTP/1.1 head that they stand for, so that one set of
rules judges both. `net.http2` drives this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from h2.errors import ErrorCodes

from pelotontx.errors import ProtocolError
from pelotontx.wire.http import RefusedRequest

#: What a client sends first.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: The largest payload that we let a peer send: the smallest limit that there is.
FRAME_BYTES: Final = 16384

#: A head's size while it is compressed, and its frames. More are a flood that never ends.
_BLOCK_BYTES: Final = 64 * 1024
_BLOCK_FRAMES: Final = 16

# Kinds of frames.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

_END_HEADERS: Final = 0x4

_HEAD_KINDS = frozenset({HEADERS, CONTINUATION, PUSH_PROMISE})

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]\Z")
_PATH = re.compile(rb"/[\x21-\x7e]*|\*")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

#: Fields that speak of a connection, which HTTP/2 does by frames (RFC 9113, 8.2.2).
_OF_CONNECTIONS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})

Pairs = tuple[tuple[bytes, bytes], ...]


class BrokenConnection(ProtocolError):
    """The peer did what no connection survives.

    Attributes:
        code: for the GOAWAY frame.
    """

    def __init__(self, code: ErrorCodes, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class MalformedRequest(ProtocolError):
    """A request that RFC 9113 calls malformed: its stream is reset."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
        kind: as numbered above; unknown kinds are frames too.
        stream_id: 0 for the connection's own.
        data: all of it, with its head.
    """

    kind: int
    stream_id: int
    data: bytes

    @property
    def size(self) -> int:
        """Bytes of its payload."""
        return len(self.data) - 9


class FrameCutter:
    """Cuts what arrives into frames; holds no more than one frame and what was fed last.

    Attributes:
        is_begun: the preface and a first frame have come.
    """

    __slots__ = ("_block_bytes", "_block_frames", "_buffer", "_position", "_preface", "is_begun")

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        self._preface = PREFACE
        self._block_bytes = 0
        self._block_frames = 0
        self.is_begun = False

    @property
    def is_in_block(self) -> bool:
        """Whether the frames of a head have begun and not ended."""
        return self._block_frames > 0

    @property
    def is_in_head(self) -> bool:
        """Whether the beginning of a head is here, and its end is not."""
        position = self._position
        if self._block_frames or not self.is_begun:
            return True
        return len(self._buffer) - position > 3 and self._buffer[position + 3] in _HEAD_KINDS

    def feed(self, data: bytes) -> None:
        """Takes bytes.

        Raises:
            BrokenConnection: they are not the preface.
        """
        buffer = self._buffer[self._position :] + data if self._buffer else data
        if self._preface:
            size = min(len(self._preface), len(buffer))
            if self._preface[:size] != buffer[:size]:
                raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "not the preface of HTTP/2")
            self._preface = self._preface[size:]
            buffer = buffer[size:]
        self._buffer = buffer
        self._position = 0

    def cut(self) -> Frame | None:
        """The next frame; None if it is not whole.

        Raises:
            BrokenConnection: a frame that is too large, or a head in too many of them.
        """
        buffer, start = self._buffer, self._position
        if len(buffer) - start < 9:
            return None
        size = int.from_bytes(buffer[start : start + 3], "big")
        if size > FRAME_BYTES:
            raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, "frame too large")
        end = start + 9 + size
        if len(buffer) < end:
            return None
        kind = buffer[start + 3]
        if kind in _HEAD_KINDS:
            self._measure(size, buffer[start + 4])
        elif self._block_frames:
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "a head was interrupted")
        self._position = end
        if end == len(buffer):
            self._buffer = b""
            self._position = 0
        self.is_begun = True
        stream_id = int.from_bytes(buffer[start + 5 : start + 9], "big") & 0x7FFFFFFF
        return Frame(kind, stream_id, buffer[start:end])

    def _measure(self, size: int, flags: int) -> None:
        self._block_bytes += size
        self._block_frames += 1
        if self._block_bytes > _BLOCK_BYTES or self._block_frames > _BLOCK_FRAMES:
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "a head in too many frames")
        if flags & _END_HEADERS:
            self._block_bytes = self._block_frames = 0


def request_head(pairs: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes, bytes]:
    """A request's fields as the HTTP/1.1 head that they stand for.

    Returns:
        Method, target, and what follows the target's space: version, CRLF, fields, an empty line.
        ``:authority`` is the Host field; crumbs of a cookie are one field again.

    Raises:
        MalformedRequest: the stream is to be reset (RFC 9113, 8.1.1).
        RefusedRequest: 400 for a malformed path, 501 for CONNECT.
    """
    pseudo: dict[bytes, bytes] = {}
    lines = [b"HTTP/1.1", b""]
    cookies: list[bytes] = []
    hosts: list[bytes] = []
    for name, value in pairs:
        if name[:1] == b":":
            if name in pseudo or name not in _PSEUDO or len(lines) > 2 or cookies or hosts:
                raise MalformedRequest("a pseudo-header field that is not expected")
            _check_value(value)
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            hosts.append(value)
        else:
            lines.append(b"%b: %b" % (name, value))
    if cookies:
        lines.append(b"cookie: " + b"; ".join(cookies))
    method, target = _read_pseudo(pseudo)
    lines[1] = b"host: " + _read_host(pseudo.get(b":authority"), hosts)
    return method, target, b"\r\n".join(lines) + b"\r\n\r\n"


def check_trailers(pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Judges the fields after a body.

    Raises:
        MalformedRequest: as `request_head`.
    """
    for name, value in pairs:
        _check_field(name, value)


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedRequest("malformed field name")
    if name in _OF_CONNECTIONS or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedRequest("a field that speaks of the connection")
    _check_value(value)


def _check_value(value: bytes) -> None:
    if _VALUE_FORBIDDEN.search(value):
        raise MalformedRequest("malformed field value")


def _read_pseudo(pseudo: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    method = pseudo.get(b":method", b"")
    if not _METHOD.fullmatch(method):
        raise MalformedRequest("no method")
    if method == b"CONNECT":
        raise RefusedRequest(501, "method not implemented")
    path = pseudo.get(b":path")
    if not path or pseudo.get(b":scheme") not in (b"https", b"http"):
        raise MalformedRequest("no scheme or no path")
    if not _PATH.fullmatch(path):
        raise RefusedRequest(400, "malformed target")
    return method, path


def _read_host(authority: bytes | None, hosts: list[bytes]) -> bytes:
    if len(hosts) > 1:
        raise MalformedRequest("more than one Host field")
    if authority is None:
        if not hosts:
            raise MalformedRequest("no authority")
        return hosts[0]
    if hosts and hosts[0].lower() != authority.lower():
        raise MalformedRequest("authority and Host field differ")
    return authority


@lru_cache(maxsize=256)
def response_pairs(fields: bytes) -> Pairs:
    """Header lines of a response as HTTP/2 wants them: names in lower case, none of connections."""
    pairs = []
    for line in fields.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        name = name.lower()
        if name and name not in _OF_CONNECTIONS:
            pairs.append((name, value))
    return tuple(pairs)


__all__ = [
    "CONTINUATION",
    "DATA",
    "FRAME_BYTES",
    "GOAWAY",
    "HEADERS",
    "PING",
    "PREFACE",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "BrokenConnection",
    "Frame",
    "FrameCutter",
    "MalformedRequest",
    "check_trailers",
    "request_head",
    "response_pairs",
]
