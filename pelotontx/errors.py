"""The exception tree; anyone may import it.

PelotonError
├── ConfigError(path, reason)         a configuration that cannot be used
├── ProtocolError
│   ├── LocalProtocolError            our own caller broke the protocol
│   └── RemoteProtocolError(code)     the peer broke it; code is the WebSocket close code
├── BrokerError
│   ├── BrokerUnavailable             nobody answers; nothing was stored, as far as we know
│   └── QueueFull(name)               the broker's list for a URI is at its cap
├── RequestRefused(code, message)     a NACK, as the client sees it
├── CallError
│   ├── CallExpired(uri)              its time is over and no result came
│   └── CallFailed(payload)           the callee answered with an error
│       └── InvalidArguments(message) the function was not run: its arguments are wrong
├── TimedOut(timeout_s)               a wait was cut off; also a TimeoutError
├── StreamClosed                      nothing more can be put into a stream
├── TruncatedFile                     a file became shorter while it was sent
├── Disconnected(reason, close_code)  no connection; what was in flight may or may not have happened
└── SlowConsumer(limit_bytes)         a peer does not read what it is sent
"""

from __future__ import annotations

from typing import Any


class PelotonError(Exception):
    """The root: everything that this package raises on purpose."""


class ConfigError(PelotonError):
    """A configuration that cannot be used.

    Attributes:
        path: where it stands: a file name and a dotted key (``peloton.toml: broker.url``).
        reason: what is wrong and what is allowed, one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ProtocolError(PelotonError):
    """Somebody broke a protocol."""


class LocalProtocolError(ProtocolError):
    """Our own caller asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.

    Attributes:
        close_code: the WebSocket close code that fits (RFC 6455, 7.4.1).
        reason: one line for the close frame.
    """

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code
        self.reason = reason


class BrokerError(PelotonError):
    """The broker did not do what it was asked."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached, or did not answer in time."""


class QueueFull(BrokerError):
    """A capped list took no more entries.

    Attributes:
        name: the URI (or channel) whose list is full.
    """

    def __init__(self, name: str) -> None:
        super().__init__("list capacity exceeded")
        self.name = name


class HistoryUnsupported(BrokerError):
    """This broker, or this channel, keeps no history of events."""


class RequestRefused(PelotonError):
    """The server answered NACK.

    Attributes:
        code: the NACK's code (500 from the core; 403, 429 ... from limits and middleware).
        message: the NACK's text.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class CallError(PelotonError):
    """A call was accepted and did not end in a plain result."""


class CallExpired(CallError):
    """The call's time is over and no result came.

    Attributes:
        uri: what was called.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri}: no result in time")
        self.uri = uri


class CallFailed(CallError):
    """The callee answered with ``{"error": {"message": ...}}``.

    Attributes:
        payload: the decoded ``error`` object.
    """

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__(str(payload.get("message", payload)))
        self.payload = payload


class InvalidArguments(CallFailed):
    """The call's args are not what the function takes; a caller sees code 400.

    Raised by callees for what type hints cannot say, too: the caller's fault is not logged.
    """

    def __init__(self, message: str) -> None:
        super().__init__({"message": message, "code": 400})


class TimedOut(PelotonError, TimeoutError):
    """Something took longer than it was given.

    Attributes:
        timeout_s: what it was given.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"not done within {timeout_s:g} s")
        self.timeout_s = timeout_s


class StreamClosed(PelotonError):
    """Nothing more can be put into a stream."""


class TruncatedFile(PelotonError):
    """A file is shorter than it was when its length was announced: the answer cannot be whole."""


class Disconnected(PelotonError):
    """There is no connection: it was lost, or could not be made.

    What was in flight when a connection was lost may or may not have happened.

    Attributes:
        reason: one line.
        close_code: the WebSocket close code, 1006 for none; None when there was no connection.
    """

    def __init__(self, reason: str, close_code: int | None = None) -> None:
        super().__init__(reason if close_code is None else f"{reason} ({close_code})")
        self.reason = reason
        self.close_code = close_code


class SlowConsumer(PelotonError):
    """A peer does not read what it is sent.

    Attributes:
        limit_bytes: the bound on its outbound queue that was passed.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"more than {limit_bytes} bytes unread")
        self.limit_bytes = limit_bytes
