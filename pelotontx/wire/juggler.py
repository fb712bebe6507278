"""The juggler.0 subprotocol: WebSocket messages and broker payloads.

Every frame is one JSON value, ``{"meta": {"type": INT, "uuid": STR}, "payload": {...}}``:

    ====  ====  ================  =============================================================
    type  name  direction         payload
    ====  ====  ================  =============================================================
    1     CALL  client → server   uri, timeout (int, nanoseconds; below 1 ms = default), args
    2     PUB   client → server   channel, args
    3     SUB   client → server   channel, pattern (bool: the channel is a Redis glob)
    4     UNSB  client → server   channel, pattern
    7     NACK  server → client   for, for_type, uri | channel, code, message
    8     ACK   server → client   for, for_type, uri | channel
    9     RES   server → client   for, uri, args
    10    EVNT  server → client   for (uuid of the PUB), channel, pattern (if one matched), args
    256   EXP   in a client only  for, uri, args
    256+        client → server   an application's own: any of these fields
    ====  ====  ================  =============================================================

On the broker a call or a result is ``{"conn_uuid", "msg_uuid", "uri", "args"}`` and an event is
``{"msg_uuid", "args"}``; ``args`` is left out when it is empty.

``args`` stays encoded JSON (bytes) on its way through: it is checked, never decoded and rebuilt, so
that what one side sent is byte for byte what the other side gets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from pelotontx.errors import LocalProtocolError, RemoteProtocolError

SUBPROTOCOL: Final = "juggler.0"

CALL: Final = 1
PUB: Final = 2
SUB: Final = 3
UNSB: Final = 4
NACK: Final = 7
ACK: Final = 8
RES: Final = 9
EVNT: Final = 10
EXP: Final = 256
#: Types from here on are free for applications; a server knows no EXP.
APPLICATION: Final = 256

NAMES: Final = {
    CALL: "CALL",
    PUB: "PUB",
    SUB: "SUB",
    UNSB: "UNSB",
    NACK: "NACK",
    ACK: "ACK",
    RES: "RES",
    EVNT: "EVNT",
    EXP: "EXP",
}

NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLimits:
    """What JSON from a peer may hold (RFC 8259, 9 lets a parser set such limits).

    Deeper nesting and more keys serve only to make a decoder work. Integers past 64 bits are never
    taken: they are not portable.

    Attributes:
        depth: of objects and arrays in each other.
        keys: in one object.
    """

    depth: int = 32
    keys: int = 1024


JSON_LIMITS: Final = JsonLimits()
"""The defaults."""


# gc=False: messages hold no cycles, and the collector need not walk all that are in flight.


_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Meta(msgspec.Struct, gc=False):
    """``meta`` of every message."""

    type: _Int64
    uuid: str


class Payload(msgspec.Struct, gc=False):
    """All the fields that a payload of any type may have; `args` is encoded JSON."""

    uri: str = ""
    channel: str = ""
    timeout: _Int64 = 0
    pattern: bool | str = False
    args: msgspec.Raw = msgspec.Raw()
    for_: str = msgspec.field(default="", name="for")
    for_type: _Int64 = 0
    code: _Int64 = 0
    message: str = ""


class Message(msgspec.Struct, gc=False):
    """One decoded frame."""

    meta: Meta
    payload: Payload


NO_TIMEOUT_KEY: Final = 1
"""The `dl` of a result to a call that had one; no call's, which a callee might copy."""


class CallPayload(msgspec.Struct, gc=False):
    """A call or a result on the broker; `args` is encoded JSON, empty when there is none.

    `dl` is when a call's time is over: milliseconds since the epoch by the broker's clock. Only our
    own programs write it (0: not there). In a result it is `NO_TIMEOUT_KEY`, or else there is one.
    Another program may copy it from a call in whatever form its numbers have.
    """

    conn_uuid: str
    msg_uuid: str
    uri: str
    dl: Any = 0
    args: msgspec.Raw = msgspec.Raw()


class EventPayload(msgspec.Struct, gc=False):
    """An event on the broker; `args` is encoded JSON, empty when there is none."""

    msg_uuid: str
    args: msgspec.Raw = msgspec.Raw()


_message_decoder = msgspec.json.Decoder(Message)
_call_decoder = msgspec.json.Decoder(CallPayload)
_event_decoder = msgspec.json.Decoder(EventPayload)
_encode_json = msgspec.json.encode

_uuid_match = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z").match
# What the full check might refuse: a long run of digits, an exponent, an escaped surrogate.
_needs_full_check = re.compile(rb"\d{19}|\d[eE]|\\u[dD][89a-fA-F]").search

_REQUESTS: Final = frozenset((CALL, PUB, SUB, UNSB))


_LOW_DIGITS: Final = tuple(f"{low:03x}" for low in range(0x1000))


class MessageIds:
    """Makes version 4 uuids: a random prefix and a counter, 8 times as fast as `uuid.uuid4`.

    Args:
        entropy: 16 random bytes (``os.urandom(16)``), a fresh value for every instance.
    """

    __slots__ = ("_count", "_head", "_prefix")

    def __init__(self, entropy: bytes) -> None:
        if len(entropy) != 16:
            raise LocalProtocolError("16 bytes of entropy are needed")
        digits = entropy.hex()
        self._prefix = (
            f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[entropy[8] & 3]}{digits[17:20]}-"
        )
        self._count = int.from_bytes(entropy[10:16], "big")
        self._head = f"{self._prefix}{self._count >> 12:09x}"

    def next(self) -> str:
        """The next id, as 36 lower-case characters."""
        self._count = count = (self._count + 1) & 0xFFFFFFFFFFFF
        low = count & 0xFFF
        if low == 0:
            self._head = f"{self._prefix}{count >> 12:09x}"
        return self._head + _LOW_DIGITS[low]


def decode_request(
    frame: bytes, limits: JsonLimits = JSON_LIMITS, *, applications: bool = False
) -> Message:
    """Decodes what a client sent.

    Args:
        frame: the payload of one text frame.
        limits: of the JSON in it.
        applications: whether types from `APPLICATION` on are taken.

    Raises:
        RemoteProtocolError: 1007 for what is not acceptable JSON, 1008 for a wrong shape, 1002 for
            a type that a client may not send; the reason names the field.
    """
    message = _decode(frame, limits)
    type_, payload = message.meta.type, message.payload
    if type_ == CALL:
        if not payload.uri:
            raise RemoteProtocolError(1008, "CALL without uri")
        return message
    if type_ not in _REQUESTS:
        if applications and type_ >= APPLICATION:
            return message
        raise unexpected_type(type_)
    if not payload.channel:
        raise RemoteProtocolError(1008, f"{NAMES[type_]} without channel")
    if type(payload.pattern) is not bool:
        raise RemoteProtocolError(1008, f"{NAMES[type_]}: pattern must be a boolean")
    return message


def unexpected_type(type_: int) -> RemoteProtocolError:
    """What is wrong with a type that a client may not send."""
    if type_ in NAMES:
        return RemoteProtocolError(1002, f"{NAMES[type_]} is not for a client to send")
    return RemoteProtocolError(1008, f"unknown message type {type_}")


def decode_response(frame: bytes) -> Message:
    """Decodes what a server sent: ACK, NACK, RES or EVNT.

    Raises:
        RemoteProtocolError: as `decode_request`.
    """
    message = _decode(frame, JSON_LIMITS)
    if message.meta.type not in (ACK, NACK, RES, EVNT):
        raise RemoteProtocolError(1002, f"unexpected message type {message.meta.type}")
    if not message.payload.for_:
        raise RemoteProtocolError(1008, f"{NAMES[message.meta.type]} without for")
    return message


def _decode(frame: bytes, limits: JsonLimits) -> Message:
    try:
        message = _message_decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(1008, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(1007, f"bad JSON: {error}") from None
    except RecursionError:
        raise RemoteProtocolError(1007, "bad JSON: nested too deeply") from None
    if _uuid_match(message.meta.uuid) is None:
        raise RemoteProtocolError(1008, "meta.uuid is not a uuid")
    check_json(message.payload.args, limits)
    return message


def check_json(encoded: bytes | msgspec.Raw, limits: JsonLimits = JSON_LIMITS) -> None:
    """Refuses JSON that this protocol does not carry: too deep, too many keys, odd numbers or text.

    Small harmless values (nearly all) pass by three scans in C; only the others are decoded.

    Args:
        encoded: JSON whose syntax has been checked, not its UTF-8; empty is accepted.
        limits: what it may hold.

    Raises:
        RemoteProtocolError: 1007, with what is wrong.
    """
    encoded = bytes(encoded)
    if not encoded.isascii():
        try:
            encoded.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(1007, f"bad UTF-8: {error}") from None
    if encoded[:1] == b'"' and b"\\" not in encoded:
        return  # a plain string
    if (
        encoded.count(b"{") + encoded.count(b"[") <= limits.depth
        and encoded.count(b":") <= limits.keys
        and _needs_full_check(encoded) is None
    ):
        return
    try:
        value = msgspec.json.decode(encoded)
        # Half a surrogate pair survives decoding and cannot be encoded again.
        _encode_json(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RemoteProtocolError(1007, f"bad JSON: {error}") from None
    _check_value(value, limits, limits.depth)


def _check_value(value: Any, limits: JsonLimits, depth_left: int) -> None:
    if isinstance(value, (dict, list)):
        if depth_left == 0:
            raise RemoteProtocolError(1007, f"bad JSON: nested more than {limits.depth} deep")
        if isinstance(value, dict):
            if len(value) > limits.keys:
                raise RemoteProtocolError(1007, f"bad JSON: more than {limits.keys} keys")
            value = list(value.values())
        for item in value:
            _check_value(item, limits, depth_left - 1)
    elif type(value) is int and not -(1 << 63) <= value < 1 << 64:
        raise RemoteProtocolError(1007, "bad JSON: an integer past 64 bits")


def timeout_s(message: Message, *, default_s: float, limit_s: float) -> float:
    """The time that a CALL gives its callee: its own, bounded, or the default below 1 ms."""
    nanoseconds = message.payload.timeout
    if nanoseconds < 1_000_000:
        return default_s
    return min(nanoseconds / NANOSECONDS, limit_s)


# Messages are built by one bytes format each: 0.3 µs, against 1.1 µs for encoding a Struct.


def encode_call(uuid: str, uri: str, args: bytes, timeout_s: float) -> bytes:
    """A CALL; `args` is encoded JSON, empty for none; `timeout_s` 0 asks for the default."""
    return b'{"meta":{"type":1,"uuid":"%b"},"payload":{"uri":%b,"timeout":%d,"args":%b}}' % (
        uuid.encode(),
        _encode_json(uri),
        int(timeout_s * NANOSECONDS),
        args or b"null",
    )


def encode_pub(uuid: str, channel: str, args: bytes) -> bytes:
    """A PUB; `args` is encoded JSON, empty for none."""
    return b'{"meta":{"type":2,"uuid":"%b"},"payload":{"channel":%b,"args":%b}}' % (
        uuid.encode(),
        _encode_json(channel),
        args or b"null",
    )


def encode_sub(uuid: str, channel: str, *, pattern: bool) -> bytes:
    """A SUB."""
    return _encode_subscription(SUB, uuid, channel, pattern)


def encode_unsb(uuid: str, channel: str, *, pattern: bool) -> bytes:
    """An UNSB."""
    return _encode_subscription(UNSB, uuid, channel, pattern)


def _encode_subscription(type_: int, uuid: str, channel: str, pattern: bool) -> bytes:
    return b'{"meta":{"type":%d,"uuid":"%b"},"payload":{"channel":%b,"pattern":%b}}' % (
        type_,
        uuid.encode(),
        _encode_json(channel),
        b"true" if pattern else b"false",
    )


def encode_ack(uuid: str, request: Message) -> bytes:
    """An ACK of `request`."""
    return b'{"meta":{"type":8,"uuid":"%b"},"payload":{"for":"%b","for_type":%d,"%b":%b}}' % (
        uuid.encode(),
        request.meta.uuid.encode(),
        request.meta.type,
        *_subject(request),
    )


def encode_nack(uuid: str, request: Message, code: int, text: str) -> bytes:
    """A NACK of `request` with an HTTP-like code and one line of text."""
    return (
        b'{"meta":{"type":7,"uuid":"%b"},"payload":'
        b'{"for":"%b","for_type":%d,"%b":%b,"code":%d,"message":%b}}'
    ) % (
        uuid.encode(),
        request.meta.uuid.encode(),
        request.meta.type,
        *_subject(request),
        code,
        _encode_json(text),
    )


def _subject(request: Message) -> tuple[bytes, bytes]:
    if request.meta.type == CALL:
        return b"uri", _encode_json(request.payload.uri)
    return b"channel", _encode_json(request.payload.channel)


def encode_res(uuid: str, for_uuid: str, uri: str, args: bytes) -> bytes:
    """A RES; `args` is encoded JSON, empty for none."""
    return b'{"meta":{"type":9,"uuid":"%b"},"payload":{"for":"%b","uri":%b,"args":%b}}' % (
        uuid.encode(),
        for_uuid.encode(),
        _encode_json(uri),
        args or b"null",
    )


def encode_evnt(
    uuid: str, for_uuid: str, channel: str, args: bytes, pattern: str | None = None
) -> bytes:
    """An EVNT; `pattern` is the glob that matched, None for a plain subscription."""
    if pattern is None:
        return b'{"meta":{"type":10,"uuid":"%b"},"payload":{"for":%b,"channel":%b,"args":%b}}' % (
            uuid.encode(),
            _encode_json(for_uuid),  # any string: it comes from whoever publishes
            _encode_json(channel),
            args or b"null",
        )
    return (
        b'{"meta":{"type":10,"uuid":"%b"},"payload":{"for":%b,"channel":%b,"pattern":%b,"args":%b}}'
    ) % (
        uuid.encode(),
        _encode_json(for_uuid),
        _encode_json(channel),
        _encode_json(pattern),
        args or b"null",
    )


def encode_response(message: Message) -> bytes:
    """An ACK, NACK, RES or EVNT by its fields: slower than the others, for what was changed."""
    type_, payload = message.meta.type, message.payload
    fields: dict[str, object] = {"for": payload.for_}
    if type_ in (ACK, NACK):
        fields["for_type"] = payload.for_type
    if payload.uri:
        fields["uri"] = payload.uri
    if payload.channel:
        fields["channel"] = payload.channel
    if type_ == NACK:
        fields |= {"code": payload.code, "message": payload.message}
    if type_ == EVNT and payload.pattern:
        fields["pattern"] = payload.pattern
    if type_ in (RES, EVNT):
        fields["args"] = msgspec.Raw(bytes(payload.args) or b"null")
    return _encode_json({"meta": {"type": type_, "uuid": message.meta.uuid}, "payload": fields})


def encode_call_payload(
    conn_uuid: str, msg_uuid: str, uri: str, args: bytes, deadline_ms: int = 0
) -> bytes:
    """A call or a result as it stands in a broker's list; `deadline_ms` 0: without `dl`."""
    return b'{"conn_uuid":"%b","msg_uuid":"%b","uri":%b%b%b}' % (
        conn_uuid.encode(),
        msg_uuid.encode(),
        _encode_json(uri),
        b',"dl":%d' % deadline_ms if deadline_ms else b"",
        b',"args":%b' % args if args else b"",
    )


def decode_call_payload(value: bytes) -> CallPayload:
    """The reverse of `encode_call_payload`.

    Raises:
        RemoteProtocolError: 1007, when somebody else put something else on the list.
    """
    try:
        return _call_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(1007, f"bad broker payload: {error}") from None


def encode_event_payload(msg_uuid: str, args: bytes) -> bytes:
    """An event as it is published on the broker's channel."""
    if args:
        return b'{"msg_uuid":"%b","args":%b}' % (msg_uuid.encode(), args)
    return b'{"msg_uuid":"%b"}' % msg_uuid.encode()


def decode_event_payload(value: bytes) -> EventPayload:
    """The reverse of `encode_event_payload`.

    Raises:
        RemoteProtocolError: 1007, when somebody else published something else.
    """
    try:
        return _event_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(1007, f"bad broker payload: {error}") from None


def encode_error(message: str) -> bytes:
    """The args of a RES that tells of a callee's failure."""
    return b'{"error":{"message":%b}}' % _encode_json(message)


def _keys(kind: str) -> tuple[str, str]:
    return f"juggler:{kind}:{{%s}}", f"juggler:{kind}:timeout:{{%s}}:%s"


_CALLS, _CALL_TIMEOUT = _keys("calls")
_RESULTS, _RESULT_TIMEOUT = _keys("results")


def calls_key(uri: str) -> str:
    """The list of waiting calls; the braces keep a URI's keys on one cluster slot."""
    return _CALLS % uri


def call_timeout_key(uri: str, msg_uuid: str) -> str:
    """Lives as long as the call may still be run."""
    return _CALL_TIMEOUT % (uri, msg_uuid)


def results_key(conn_uuid: str) -> str:
    """The list of results for one server process."""
    return _RESULTS % conn_uuid


def result_timeout_key(conn_uuid: str, msg_uuid: str) -> str:
    """Lives as long as somebody waits for the result."""
    return _RESULT_TIMEOUT % (conn_uuid, msg_uuid)
