"""The application's say in a juggler endpoint: middleware around messages, and hooks.

    gateway = Gateway()

    @gateway.middleware
    async def note(session, message, next):
        print(message.direction, message.name)
        await next(message)

    @gateway.on_subscribe
    def own_channels_only(session, message):
        if not message.channel.startswith(session.state.user):
            raise RequestRefused(403, "not your channel")

Middlewares and hooks may be plain functions, coroutine functions, or return a Deferred.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from inspect import isawaitable
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from twisted.logger import Logger

from pelotontx.errors import LocalProtocolError, RequestRefused
from pelotontx.net.websocket import Handshake
from pelotontx.wire import juggler

#: Arguments of a query: a URL of 8 KiB can hold thousands.
_ARGUMENTS: Final = 100
_UNREAD: Final = object()

_log = Logger()


class Message:
    """One message on its way through the middlewares.

    What a middleware assigns counts from then on. For a CALL: the `uri` that is called and later
    stands in ACK and RES, `args` and `timeout_s`; for the others `channel`, `pattern`, `args`; for
    a NACK `code` and `text`.

    Attributes:
        direction: ``in``: from the client; ``out``: to it.
    """

    __slots__ = ("_args", "_wire", "came_s", "direction", "is_done")

    def __init__(
        self, wire: juggler.Message, direction: Literal["in", "out"], came_s: float = 0.0
    ) -> None:
        self._wire = wire
        self._args: Any = _UNREAD
        self.direction = direction
        self.came_s = came_s
        self.is_done = False

    @property
    def wire(self) -> juggler.Message:
        """The message as `pelotontx.wire.juggler` has it."""
        return self._wire

    @property
    def type(self) -> int:
        """`pelotontx.wire.juggler.CALL` ... `EVNT`; 256 and more: an application's own."""
        return self._wire.meta.type

    @property
    def name(self) -> str:
        """CALL, PUB, SUB, UNSB, ACK, NACK, RES or EVNT; an application's type as a number."""
        type_ = self._wire.meta.type
        return str(type_) if type_ >= juggler.APPLICATION else juggler.NAMES[type_]

    @property
    def uuid(self) -> str:
        """Its own id."""
        return self._wire.meta.uuid

    @property
    def for_uuid(self) -> str:
        """The id of the request that an ACK, NACK or RES answers, or of an EVNT's PUB."""
        return self._wire.payload.for_

    @property
    def for_type(self) -> int:
        """The type of the request that an ACK or NACK answers."""
        return self._wire.payload.for_type

    @property
    def uri(self) -> str:
        """Of a CALL, its answers and its RES; else empty."""
        return self._wire.payload.uri

    @uri.setter
    def uri(self, uri: str) -> None:
        self._wire.payload.uri = uri

    @property
    def channel(self) -> str:
        """Of the others."""
        return self._wire.payload.channel

    @channel.setter
    def channel(self, channel: str) -> None:
        self._wire.payload.channel = channel

    @property
    def pattern(self) -> bool | str:
        """Of SUB and UNSB: whether the channel is a glob; of an EVNT: the glob that matched."""
        return self._wire.payload.pattern

    @pattern.setter
    def pattern(self, pattern: bool | str) -> None:
        self._wire.payload.pattern = pattern

    @property
    def timeout_s(self) -> float:
        """What a CALL asks for; 0: the default. The server's limits come after."""
        return self._wire.payload.timeout / juggler.NANOSECONDS

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._wire.payload.timeout = int(timeout_s * juggler.NANOSECONDS)

    @property
    def code(self) -> int:
        """Of a NACK."""
        return self._wire.payload.code

    @code.setter
    def code(self, code: int) -> None:
        self._wire.payload.code = code

    @property
    def text(self) -> str:
        """Of a NACK."""
        return self._wire.payload.message

    @text.setter
    def text(self, text: str) -> None:
        self._wire.payload.message = text

    @property
    def encoded_args(self) -> bytes:
        """The args as JSON, empty for none."""
        return bytes(self._wire.payload.args)

    @property
    def args(self) -> Any:
        """The args, decoded when they are first asked for; None for none.

        Assign to change what is passed on; a list or dict that is changed and not assigned changes
        nothing.
        """
        if self._args is _UNREAD:
            encoded = self.encoded_args
            self._args = msgspec.json.decode(encoded) if encoded else None
        return self._args

    @args.setter
    def args(self, value: Any) -> None:
        self._wire.payload.args = msgspec.Raw(msgspec.json.encode(value))
        self._args = value


class Talk(Protocol):
    """The connection's side of a `Session`."""

    def close(self, code: int, reason: str) -> None: ...

    def acknowledge(self, message: Message) -> None: ...

    def answer(self, message: Message, args: bytes) -> None: ...


class Session:
    """One connected client, as middlewares and hooks see it.

    Attributes:
        id: a uuid; no secret.
        peer: the client's address: ``tcp4:127.0.0.1:52914``.
        headers: of the opening request, by lower-case name.
        subprotocols: those that the client offers, in order; browsers can hide a token there.
        path: of the opening request, decoded.
        state: yours; whatever you set on it.
    """

    def __init__(self, handshake: Handshake, id: str) -> None:
        target = urlsplit(handshake.target)
        self.id = id
        self.peer = handshake.peer
        self.headers: Mapping[str, str] = handshake.headers
        self.subprotocols = tuple(handshake.subprotocols)
        self.path = unquote(target.path)
        self.state = SimpleNamespace()
        self._query_string = target.query
        self._talk: Talk | None = None

    @property
    def origin(self) -> str | None:
        """Where a browser's page is from, already judged; None for other programs."""
        return self.headers.get("origin")

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's arguments, each with its values in order.

        Raises:
            RequestRefused: 400, too many.
        """
        try:
            return parse_qs(self._query_string, keep_blank_values=True, max_num_fields=_ARGUMENTS)
        except ValueError:
            raise RequestRefused(400, "too many arguments") from None

    @cached_property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, as they were sent."""
        pairs = (pair.partition("=") for pair in self.headers.get("cookie", "").split(";"))
        return {name.strip(): value.strip().strip('"') for name, found, value in pairs if found}

    def begin(self, talk: Talk) -> None:
        """Told by the connection that it is open."""
        self._talk = talk

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection (RFC 6455, 7.4: 1000, or 3000 to 4999 for your own codes)."""
        self._opened().close(code, reason)

    def acknowledge(self, message: Message) -> None:
        """Sends an ACK of a request that a middleware handles itself, instead of passing it on."""
        self._opened().acknowledge(message)

    def answer(self, message: Message, args: Any) -> None:
        """Sends a RES for a request that was acknowledged so; `args` is what JSON can carry."""
        self._opened().answer(message, msgspec.json.encode(args))

    def _opened(self) -> Talk:
        if self._talk is None:
            raise LocalProtocolError("the connection is not open yet")
        return self._talk


Next: TypeAlias = Callable[[Message], Awaitable[None]]
Middleware: TypeAlias = Callable[[Session, Message, Next], Any]
Hook: TypeAlias = Callable[..., Any]
_M = TypeVar("_M", bound=Middleware)
_H = TypeVar("_H", bound=Hook)


class Gateway:
    """Middlewares and hooks, each in the order in which it was added.

    A message from a client goes through the middlewares, then through the hooks for its type, and
    is then performed. A message to a client goes through the same middlewares. One message of a
    connection and direction is on its way at a time: whoever takes long holds up that connection
    only, and is cancelled when ``rpc.hook_timeout`` is over or the client goes.

    To refuse a request raise `pelotontx.errors.RequestRefused`: the client gets that NACK. Any
    other exception is logged and becomes NACK 500. On the way out an exception means that an EVNT
    is not sent, a RES carries an error instead of its args, and an ACK or NACK goes out as it was.
    """

    def __init__(self) -> None:
        self.middlewares: list[Middleware] = []
        self.connect_hooks: list[Hook] = []
        self.disconnect_hooks: list[Hook] = []
        self.request_hooks: dict[int, list[Hook]] = {
            juggler.CALL: [],
            juggler.PUB: [],
            juggler.SUB: [],
        }

    def middleware(self, function: _M) -> _M:
        """Adds a middleware around every message: ``async def m(session, message, next)``.

        ``await next(message)`` passes the message on, once; without, it is dropped.
        """
        self.middlewares.append(function)
        return function

    def on_connect(self, hook: _H) -> _H:
        """Adds ``hook(session)``, called before the 101; a `RequestRefused` has an HTTP status."""
        self.connect_hooks.append(hook)
        return hook

    def on_disconnect(self, hook: _H) -> _H:
        """Adds ``hook(session, code)``, called with the close code of a client that has gone."""
        self.disconnect_hooks.append(hook)
        return hook

    def on_call(self, hook: _H) -> _H:
        """Adds ``hook(session, message)``, called before a CALL is stored."""
        self.request_hooks[juggler.CALL].append(hook)
        return hook

    def on_publish(self, hook: _H) -> _H:
        """Adds ``hook(session, message)``, called before a PUB is published."""
        self.request_hooks[juggler.PUB].append(hook)
        return hook

    def on_subscribe(self, hook: _H) -> _H:
        """Adds ``hook(session, message)``, called before a SUB takes effect."""
        self.request_hooks[juggler.SUB].append(hook)
        return hook


async def run_hook(hook: Hook, *arguments: Any) -> None:
    """Calls a hook and waits for it.

    Raises:
        LocalProtocolError: it returned something: False would look like a refusal and be none.
    """
    result = hook(*arguments)
    if isawaitable(result):
        result = await result
    if result is not None:
        raise LocalProtocolError("a hook returns nothing; to refuse, it raises RequestRefused")


def logging_middleware(*, slow_s: float = 0.1) -> Middleware:
    """A middleware that logs each message without its args: debug, or warn when it was slow.

    Args:
        slow_s: what the middlewares behind it, the hooks and the server may take together.
    """

    async def log_message(session: Session, message: Message, next: Next) -> None:
        began_s = monotonic()
        try:
            await next(message)
        finally:
            took_s = monotonic() - began_s
            (_log.warn if took_s > slow_s else _log.debug)(
                "{session} {direction} {name} {subject} {uuid}: {ms:.1f} ms",
                session=session.id,
                direction=message.direction,
                name=message.name,
                subject=message.uri or message.channel,
                uuid=message.uuid,
                ms=took_s * 1000,
            )

    return log_message
