"""HTTP/1.1 on the wire: heads, framing, chunks, response lines. Pure.

    request   method SP target SP "HTTP/1." ("0" | "1") CRLF *(name ":" value CRLF) CRLF [body]
    body      Content-Length bytes, or chunks: hex size [";" extension] CRLF data CRLF ... 0 CRLF
    response  "HTTP/1.1" SP status SP reason CRLF *(name ": " value CRLF) CRLF [body]

Heads are judged by llhttp (through httptools) and then by the rules of RFC 9112 that llhttp leaves
to its user, so that no request is accepted that two readers could frame differently. `net.http`
drives this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import httptools

from pelotontx.errors import LocalProtocolError, ProtocolError

REASONS: dict[int, str] = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    422: "Unprocessable Content",
}

#: The length of a body that comes in chunks.
CHUNKED = -1

#: Chunk extensions and trailers are read and dropped; more than this is an attack.
_CHUNK_LINE_BYTES = 256
_TRAILERS_BYTES = 4096

METHODS: dict[bytes, str] = {
    method.encode(): method
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TOKEN_TEXT = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_VALUE_FORBIDDEN_BYTES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PATH_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPE_BAD = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]\r\n")
# reg-name of RFC 3986 without the comma, which is what a proxy puts between two joined values
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(.*)", re.I)
_FRAMING = re.compile(
    rb"\r\n(host|connection|content-length|transfer-encoding|expect|upgrade):"
    rb"[ \t]*([^\r]*?)[ \t]*(?=\r)",
    re.I,
)
#: What would frame or route a message anew if somebody took trailers for fields of the head.
_FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding", b"host"})
#: What frames, routes, authenticates, caches or explains a message comes before its content.
_NEVER_TRAILERS = frozenset(
    {"accept-ranges", "age", "allow", "alt-svc", "authorization", "cache-control"}
    | {"connection", "content-encoding", "content-language", "content-length"}
    | {"content-location", "content-range", "content-type", "cookie", "date", "expect"}
    | {"expires", "host", "keep-alive", "last-modified", "location", "max-forwards", "pragma"}
    | {"proxy-authenticate", "proxy-authorization", "proxy-connection", "range", "retry-after"}
    | {"server", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade", "vary", "via"}
    | {"warning", "www-authenticate"}
)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class RefusedRequest(ProtocolError):
    """A request that gets an error status and ends its connection.

    Attributes:
        status: the response's status.
        reason: one line for the peer.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """What a head may cost.

    Attributes:
        line_bytes: the request line. 8190 is what servers and proxies agree on.
        field_bytes: one header line.
        head_bytes: all of it.
        fields: header lines.
    """

    line_bytes: int = 8190
    field_bytes: int = 8190
    head_bytes: int = 16 * 1024
    fields: int = 100


class Framing(NamedTuple):
    """What the fields of a head say about its message; a tuple, as it is made once a request.

    Attributes:
        version: ``1.0`` or ``1.1``.
        host: the Host field, empty only in HTTP/1.0.
        length: bytes of the body, or `CHUNKED`.
        keep_alive: the peer lets the connection live after the answer.
        expects: the peer waits for 100 (Continue).
        upgrade: the Upgrade field, lower case.
    """

    version: str
    host: bytes
    length: int
    keep_alive: bool
    expects: bool
    upgrade: bytes


class _Judge:
    """One llhttp for all heads: it is fed whole heads, and replaced after unusual ones."""

    def __init__(self) -> None:
        self._fresh()

    def _fresh(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._used = False

    def on_message_complete(self) -> None:
        self._complete = True

    def judge(self, head: bytes) -> None:
        """Raises `RefusedRequest` for what llhttp does not accept in strict mode."""
        self._complete = False
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._complete = False  # the parser is in another protocol now
        except httptools.HttpParserError as error:
            was_used = self._used
            self._fresh()
            if not was_used:
                raise _refusal(error) from None
            self.judge(head)
            return
        self._used = True

    def settle(self, framing: Framing) -> None:
        """Keeps the parser if it stands at the start of a message for certain."""
        if (
            not (self._complete and framing.keep_alive and framing.length == 0)
            or framing.upgrade
            or framing.version == "1.0"
        ):
            self._fresh()


def _refusal(error: httptools.HttpParserError) -> RefusedRequest:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return RefusedRequest(400, "no such method")
    return RefusedRequest(400, str(error).lower())


_judge = _Judge()


def read_head(head: bytes, method: bytes, rest: bytes, limits: HeadLimits) -> Framing:
    """Judges a whole head.

    Args:
        head: from the request line to the empty line, both included.
        method: what stands before the first space.
        rest: what follows the target's space: version, CRLF, fields.
        limits: bounds.

    Raises:
        RefusedRequest: with 400, 414, 417, 431, 501 or 505.
    """
    _check_size(head, limits)
    if not rest.startswith((b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")):
        if _VERSION.match(rest):
            raise RefusedRequest(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
        raise RefusedRequest(400, "malformed request line")
    if method not in METHODS:
        if method[:1].isupper() and _TOKEN.fullmatch(method):
            raise RefusedRequest(501, "method not implemented")
        raise RefusedRequest(400, "malformed request line")  # llhttp skips what precedes a method
    _judge.judge(head)
    try:
        framing = _read_fields(rest)
    except RefusedRequest:
        _judge._fresh()
        raise
    _judge.settle(framing)
    return framing


def _check_size(head: bytes, limits: HeadLimits) -> None:
    if len(head) > min(limits.line_bytes, limits.field_bytes):
        if head.find(b"\r\n") > limits.line_bytes:
            raise RefusedRequest(414, "request line too long")
        if max(map(len, head.split(b"\r\n"))) > limits.field_bytes:
            raise RefusedRequest(431, "header field too large")
        if len(head) > limits.head_bytes:
            raise RefusedRequest(431, "header fields too large")
    if head.count(b"\r\n") - 2 > limits.fields:
        raise RefusedRequest(431, "too many header fields")


def check_partial(pending: bytes, limits: HeadLimits) -> None:
    """Judges the beginning of a head whose end has not come yet.

    Raises:
        RefusedRequest: it can no longer become an acceptable head.
    """
    line_end = pending.find(b"\r\n")
    if (line_end < 0 and len(pending) > limits.line_bytes) or line_end > limits.line_bytes:
        raise RefusedRequest(414, "request line too long")
    if len(pending) > limits.head_bytes:
        raise RefusedRequest(431, "header fields too large")
    if pending.count(b"\n") != pending.count(b"\r\n"):
        raise RefusedRequest(400, "bare line feed")
    if not b"A" <= pending[:1] <= b"Z":
        raise RefusedRequest(400, "malformed request line")


def _read_fields(rest: bytes) -> Framing:
    found: dict[bytes, bytes] = {}
    for name, value in _FRAMING.findall(rest):
        key = name.lower()
        if key not in found:
            found[key] = value
        elif key in (b"connection", b"upgrade"):
            found[key] += b"," + value
        else:
            raise RefusedRequest(400, f"more than one {name.decode()} field")
    newer = rest[7] == 0x31  # HTTP/1.1
    host = found.get(b"host")
    if host is None:
        if newer:
            raise RefusedRequest(400, "no Host field")
    elif not _HOST.fullmatch(host):
        raise RefusedRequest(400, "malformed Host field")
    expect = found.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise RefusedRequest(417, "only 100-continue can be expected")
    connection = found.get(b"connection")
    tokens = () if connection is None else connection.lower().replace(b" ", b"").split(b",")
    return Framing(
        "1.1" if newer else "1.0",
        host or b"",
        _read_length(found, newer=newer),
        b"close" not in tokens and (newer or b"keep-alive" in tokens),
        expect is not None and newer,
        found.get(b"upgrade", b"").lower() if b"upgrade" in tokens else b"",
    )


def _read_length(found: dict[bytes, bytes], *, newer: bool) -> int:
    """RFC 9112, section 6: how long the body is, without room for two opinions."""
    coding = found.get(b"transfer-encoding")
    length = found.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise RefusedRequest(400, "Transfer-Encoding and Content-Length together")
        if not newer:
            raise RefusedRequest(400, "Transfer-Encoding in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise RefusedRequest(501, "only the chunked transfer coding is implemented")
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise RefusedRequest(400, "malformed Content-Length")
    return int(length)


def read_target(method: str, target: bytes, host: bytes) -> tuple[str, str, str]:
    """The target as text, its decoded path, and its query as it came.

    The path is percent-decoded once, as UTF-8; `%2F` becomes a slash like any other. An absolute
    target must name the same host as the Host field.

    Raises:
        RefusedRequest: 400 for characters outside of visible ASCII, a fragment, a bad escape, a
            path that is not UTF-8 or holds control characters, or two different hosts.
    """
    try:
        text = target.decode("ascii")
    except UnicodeDecodeError:
        raise RefusedRequest(400, "malformed target") from None
    if not text.isprintable() or "#" in text:
        raise RefusedRequest(400, "malformed target")
    rest = text
    if text[:1] != "/":
        if text == "*" and method == "OPTIONS":
            return text, text, ""
        absolute = _ABSOLUTE.fullmatch(text)
        if absolute is None:
            raise RefusedRequest(400, "malformed target")
        if host and absolute[1].lower().encode() != host.lower():
            raise RefusedRequest(400, "target and Host field name different hosts")
        rest = absolute[2]
    path, _, query = rest.partition("?")
    if "%" in path:
        path = _unquoted(path.encode())
    return text, path or "/", query


def _unquoted(path: bytes) -> str:
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        decoded = "\0"
    if _ESCAPE_BAD.search(path) or _PATH_FORBIDDEN.search(decoded):
        raise RefusedRequest(400, "malformed escape in the path")
    return decoded


class SizedBody:
    """A body of known length; the same surface as `ChunkedBody`.

    Attributes:
        left: bytes that have not come.
        complete: all have.
    """

    __slots__ = ("complete", "left")

    def __init__(self, length: int) -> None:
        self.complete = not length
        self.left = length

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Takes bytes; returns pieces of the body, and the bytes after the body's end."""
        piece = data[: self.left]
        self.left -= len(piece)
        self.complete = not self.left
        return [piece], data[len(piece) :]


class ChunkedBody:
    """Decodes a chunked body; what follows it stays with the caller.

    Attributes:
        complete: the last chunk and the trailers have been read.
    """

    __slots__ = ("_left", "_line", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._left = 0  # of this chunk's data; -2 and -1 stand for its CR and LF still to come
        self._line = b""  # a chunk-size line or the trailers, incomplete

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Takes bytes; returns pieces of the body, and the bytes after the body's end.

        Raises:
            RefusedRequest: 400, not a chunked body.
        """
        pieces: list[bytes] = []
        if self._left <= 0:
            data, self._line = self._line + data, b""
        position = 0
        while position < len(data):
            if self._left > 0:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._left = -2
            elif self._left < 0:
                if data[position] != b"\r\n"[self._left]:
                    raise RefusedRequest(400, "malformed chunk")
                position += 1
                self._left += 1
            else:
                end = self._read_line(data, position)
                if self.complete:
                    return pieces, data[end:]
                if end < 0:
                    self._line = data[position:]
                    break
                position = end
        return pieces, b""

    def _read_line(self, data: bytes, start: int) -> int:
        """Reads a chunk's size; returns where its data begins, or -1 when the line is not whole."""
        end = data.find(b"\r\n", start, start + _CHUNK_LINE_BYTES)
        if end < 0:
            partial = data[start:]
            if len(partial) >= _CHUNK_LINE_BYTES or b"\n" in partial:
                raise RefusedRequest(400, "malformed chunk size")
            return -1
        size = _CHUNK_SIZE.fullmatch(data, start, end)
        if size is None:
            raise RefusedRequest(400, "malformed chunk size")
        self._left = int(size[1], 16)
        if self._left:
            return end + 2
        return self._read_trailers(data, end)

    def _read_trailers(self, data: bytes, start: int) -> int:
        end = data.find(b"\r\n\r\n", start, start + _TRAILERS_BYTES)
        if end < 0:
            partial = data[start:]
            if len(partial) >= _TRAILERS_BYTES or partial.count(b"\n") != partial.count(b"\r\n"):
                raise RefusedRequest(400, "malformed trailers")
            return -1
        for line in data[start + 2 : end].split(b"\r\n") if end > start else ():
            name, colon, value = line.partition(b":")
            if not colon or not _TOKEN.fullmatch(name) or _VALUE_FORBIDDEN_BYTES.search(value):
                raise RefusedRequest(400, "malformed trailers")
            if name.lower() in _FRAMING_NAMES:
                raise RefusedRequest(400, "framing in trailers")
        self.complete = True
        return end + 4


def response_field(name: str, value: str) -> bytes:
    """A response header line.

    Raises:
        LocalProtocolError: the name is not a token, or the value holds CR, LF, NUL or another
            control character, or does not fit ISO 8859-1.
    """
    if not _TOKEN_TEXT.fullmatch(name):
        raise LocalProtocolError(f"not a header name: {name!r}")
    if _VALUE_FORBIDDEN.search(value):
        raise LocalProtocolError(f"control character in the value of {name}")
    try:
        return f"{name}: {value}\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise LocalProtocolError(f"the value of {name} does not fit ISO 8859-1") from None


def trailer_name(name: str) -> str:
    """The name of a field that may follow a body (RFC 9110, 6.5.1).

    Raises:
        LocalProtocolError: not a token, or a field that must be known before the body.
    """
    if not _TOKEN_TEXT.fullmatch(name):
        raise LocalProtocolError(f"not a trailer name: {name!r}")
    if name.lower() in _NEVER_TRAILERS:
        raise LocalProtocolError(f"{name} cannot follow a body")
    return name


def status_line(status: int) -> bytes:
    """The first line of a response, with CRLF.

    Raises:
        LocalProtocolError: not a final status (200 to 599), nor 101.
    """
    if not (200 <= status <= 599 or status == 101):
        raise LocalProtocolError(f"not a final status: {status}")
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\n".encode()


def split_fields(head: bytes) -> list[tuple[str, str]]:
    """The fields of a judged head, in order, names in lower case, values stripped."""
    text = head.decode("latin-1")
    pairs = []
    for line in text.split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        pairs.append((name.lower(), value.strip(" \t")))
    return pairs
