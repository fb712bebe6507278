"""What an HTTP handler is given and what it answers: requests, responses, upgrades, limits.

Values for `net.http`, which drives them; import them from there.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
)
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from twisted.internet.interfaces import IAddress

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http.body import RequestBody
from pelotontx.net.http.writer import BodyWriter, Channel
from pelotontx.net.tcp import peer_name
from pelotontx.wire.cookies import set_cookie_value
from pelotontx.wire.http import Framing, HeadLimits, response_field, split_fields, trailer_name


@dataclass(frozen=True, slots=True)
class HTTPLimits:
    """What one connection may cost.

    Attributes:
        head: the size of a head; past it 414 or 431.
        head_s: a head must be complete this long after its first byte (or after the connection
            was made), however it trickles: an idle timer would hold slowloris for ever. 408.
        body_limit_bytes: most handlers are given the whole body, so it is memory. 413. A handler
            that reads `Request.stream` itself may allow more.
        body_idle_s: a body that stands still holds its handler and its memory for nothing. 408.
            This and the rate hold while somebody waits for the body, and not while we keep the
            peer waiting.
        body_rate_bytes_s: and one that trickles does the same; 1 KiB/s is a slow modem. 408; with
            0 any rate will do.
        body_rate_after_s: the rate counts from here on, so that a slow start is forgiven.
        keep_alive_s: between requests; browsers come back within this or open a new one.
        requests: a connection ends after so many, so that load is spread again now and then.
        pipelined_bytes: requests that wait for an answer in progress; past it nothing is read.
        unread_s: a response of which the peer takes nothing for so long is aborted. At most 6 s
            later, or 2 s if more is unread than a transport buffers at ease.
        unread_bytes: and so is one that is written past this without waiting for the peer.
        linger_s: after an answer to a request that was not read to its end, input is still read and
            dropped for so long, because a socket closed over unread input resets, and the peer
            would never see the answer.
        unread_body_bytes: what is left of a body when its request has been answered is read and
            dropped up to this size, and the connection kept. More of it ends the connection.
    """

    head: HeadLimits = field(default_factory=HeadLimits)
    head_s: float = 10.0
    body_limit_bytes: int = 1024 * 1024
    body_idle_s: float = 30.0
    body_rate_bytes_s: int = 1024
    body_rate_after_s: float = 10.0
    keep_alive_s: float = 15.0
    requests: int = 1000
    pipelined_bytes: int = 16 * 1024
    unread_s: float = 30.0
    unread_bytes: int = 1024 * 1024
    linger_s: float = 2.0
    unread_body_bytes: int = 64 * 1024


class Headers:
    """The fields of a request; names in any case. Read once, when first asked for.

    It is a mapping of names in lower case to first values: so iterate it, ``dict`` and ``len``.
    `items` and `get_all` tell of repeated fields.
    """

    __slots__ = ("_first", "_pairs")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._first: dict[str, str] = {}
        for name, value in pairs:
            self._first.setdefault(name, value)

    def get(self, name: str, default: str = "") -> str:
        """The first value of a field, decoded as ISO 8859-1; `default` when there is none."""
        return self._first.get(name.lower(), default)

    def get_all(self, name: str) -> list[str]:
        """Every value of a field, in order."""
        name = name.lower()
        return [value for key, value in self._pairs if key == name]

    def items(self) -> list[tuple[str, str]]:
        """All fields in order, repeated ones too, names in lower case."""
        return list(self._pairs)

    def keys(self) -> KeysView[str]:
        """Each name once, in lower case, in order."""
        return self._first.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __getitem__(self, name: str) -> str:
        return self._first[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._first

    def __len__(self) -> int:
        return len(self._first)


class Request:
    """A request, from the moment on that its head is complete.

    Attributes:
        method: upper case.
        target: as it stood in the request line.
        path: the target's path, percent-decoded once as UTF-8 (so ``%2F`` is a slash).
        query_string: after the ``?``, not decoded.
        framing: what the head says about its message: version, host, keep-alive, upgrade.
        raw_head: from the request line to the empty line, as received.
        body: all of it, if `is_complete`. A small one has mostly come with its head; otherwise
            ``request.body = await request.stream.read()``.
        after_hooks: what `handle` is to call with the response before it returns it; for
            `web.request`, here because it is looked at for every request. None: nothing.
    """

    __slots__ = (
        "_channel",
        "_headers",
        "_stream",
        "after_hooks",
        "body",
        "framing",
        "method",
        "path",
        "query_string",
        "raw_head",
        "target",
    )

    def __init__(
        self,
        channel: Channel | None,
        method: str,
        target: tuple[str, str, str],
        framing: Framing,
        raw_head: bytes,
        body: bytes = b"",
    ) -> None:
        self._channel = channel
        self.method = method
        self.target, self.path, self.query_string = target
        self.framing = framing
        self.raw_head = raw_head
        self.body = body
        self._headers: Headers | None = None
        self._stream: RequestBody | None = None
        self.after_hooks: list[Callable[[Response], Any]] | None = None

    @property
    def stream(self) -> RequestBody:
        """The body as it arrives, to be read once; of no length if there is none."""
        if self._stream is None:
            self._stream = RequestBody.of(self.body)
        return self._stream

    def expect(self, stream: RequestBody) -> None:
        """The body will arrive through `stream`; called by the connection."""
        self._stream = stream

    @property
    def is_complete(self) -> bool:
        """Whether `body` holds all of the body; so it does when there is none."""
        stream = self._stream
        return stream is None or (stream.is_complete and stream.received == len(self.body))

    @property
    def headers(self) -> Headers:
        """The fields, read when first asked for."""
        if self._headers is None:
            self._headers = Headers(split_fields(self.raw_head))
        return self._headers

    @property
    def version(self) -> str:
        """``1.0`` or ``1.1``."""
        return self.framing.version

    @property
    def host(self) -> str:
        """The Host field: name or address, and the port if there is one."""
        return self.framing.host.decode("latin-1")

    @property
    def peer(self) -> IAddress | None:
        """Where the connection comes from."""
        return None if self._channel is None else self._channel.peer

    @property
    def client(self) -> str:
        """The peer's IP address as text, or ``unix``; empty without a connection."""
        peer = self.peer
        return "" if peer is None else peer_name(peer)

    @property
    def is_secure(self) -> bool:
        """Whether the connection is TLS's."""
        return self._channel is not None and self._channel.is_secure

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has gone; nobody will see the answer."""
        return self._channel is None or self._channel.is_gone


#: A body: bytes, an async iterator of bytes, or a coroutine function that is given a `BodyWriter`.
Body = bytes | AsyncIterable[bytes] | Callable[[BodyWriter], Awaitable[object]]

_WRITTEN_BY_US = frozenset(
    {"connection", "content-length", "content-type", "date", "keep-alive", "server"}
    | {"transfer-encoding"}
)


@lru_cache(maxsize=256)
def _content_type(value: str) -> bytes:
    return response_field("Content-Type", value)


def _check_body(body: object) -> None:
    if not (isinstance(body, bytes) or hasattr(body, "__aiter__") or callable(body)):
        raise LocalProtocolError(
            "a body is bytes, an async iterator of bytes or a coroutine function, not "
            f"{type(body).__name__}"
        )


class Response:
    """An answer.

    Args:
        status: 200 to 599.
        body: bytes, or a stream: an async iterator of bytes, or a coroutine function that is
            given a `BodyWriter`. A stream that fails aborts the connection.
        headers: further fields. Framing, Date and Server are not for the handler.
        content_type: the Content-Type field; none if empty.
        length: bytes that a stream will have, or that a body left out (HEAD) would have had.
        close: ends the connection after this answer.
        trailers: names of fields that follow a stream; see the attribute.

    Attributes:
        fields: header lines, as they will be sent.
        trailers: None, or values by the names that were given, to be set while the body is made.
            They follow a chunked body, if the peer asked for trailers, and are dropped otherwise.

    Raises:
        LocalProtocolError: a name or value that may not be sent, an impossible status, or a body
            of another type.
    """

    __slots__ = ("body", "close", "fields", "length", "status", "trailers")

    def __init__(
        self,
        status: int = 200,
        body: Body = b"",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        content_type: str = "",
        *,
        length: int | None = None,
        close: bool = False,
        trailers: Iterable[str] = (),
    ) -> None:
        if not 200 <= status <= 599:
            raise LocalProtocolError(f"not a final status: {status}")
        if type(body) is not bytes:
            _check_body(body)
        self.status = status
        self.body = body
        self.length = length
        self.close = close
        self.trailers = {trailer_name(name): "" for name in trailers} if trailers else None
        self.fields = _content_type(content_type) if content_type else b""
        if headers:
            pairs = headers.items() if isinstance(headers, Mapping) else headers
            for name, value in pairs:
                self.add_header(name, value)

    def add_header(self, name: str, value: str) -> None:
        """Appends a field.

        Raises:
            LocalProtocolError: CR, LF or NUL in it, or a field that the server itself writes.
        """
        if name.lower() in _WRITTEN_BY_US:
            raise LocalProtocolError(f"{name} is written by the server")
        self.fields += response_field(name, value)

    def set_cookie(
        self,
        name: str,
        value: str,
        *,
        max_age_s: int | None = None,
        path: str = "/",
        domain: str = "",
        secure: bool = True,
        http_only: bool = True,
        same_site: str = "Lax",
    ) -> None:
        """Appends a Set-Cookie field; there may be several. The defaults are the careful ones.

        Args:
            name: a token. ``__Host-`` before it has browsers insist on secure, path and domain.
            value: visible ASCII without quotes, commas, semicolons and backslashes; quote others.
            max_age_s: how long it is kept; None until the browser ends, 0 deletes it.
            path: which requests it is sent with.
            domain: empty for this host alone; else for its subdomains, too.
            secure: sent over HTTPS only; browsers except localhost from this.
            http_only: not shown to scripts.
            same_site: ``Strict``, ``Lax``, ``None`` or empty: sent with requests from other sites.

        Raises:
            LocalProtocolError: something that a browser would drop, or take for something else.
        """
        self.add_header(
            "Set-Cookie",
            set_cookie_value(
                name,
                value,
                max_age_s=max_age_s,
                path=path,
                domain=domain,
                secure=secure,
                http_only=http_only,
                same_site=same_site,
            ),
        )

    def delete_cookie(
        self, name: str, *, path: str = "/", domain: str = "", secure: bool = True
    ) -> None:
        """Has the browser forget a cookie; path and domain as when it was set."""
        self.set_cookie(name, "", max_age_s=0, path=path, domain=domain, secure=secure)

    @property
    def headers(self) -> Headers:
        """The fields that were set, Content-Type included."""
        return Headers(split_fields(b"\r\n" + self.fields + b"\r\n"))


class Upgrade:
    """Hands the connection to another protocol.

    The protocol is connected to the same transport and receives the request's head as it came,
    and whatever followed it: it answers itself (``101 Switching Protocols``).
    """

    __slots__ = ("protocol",)

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
