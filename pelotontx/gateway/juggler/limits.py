"""What one juggler session may do, and how an error becomes a NACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pelotontx.errors import BrokerError, QueueFull, RequestRefused
from pelotontx.wire import juggler

ALLOWED_HEADER: Final = "juggler-allowed-messages"
_ALL_MESSAGES: Final = frozenset((juggler.CALL, juggler.PUB, juggler.SUB, juggler.UNSB))

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JugglerLimits:
    """What one session may do.

    Some URIs and channels may have limits of their own: an endpoint then has several of these, and
    of the others only what is marked with * counts.

    Attributes:
        call_timeout_s: * of a CALL that asks for none.
        call_timeout_limit_s: * the most that a CALL gets.
        calls_limit: * calls in flight; past it NACK 429. A URI's own counts beside that of all.
        args_limit_bytes: * of a CALL's or PUB's args, 0 = what a message holds; past it NACK 413.
        result_limit_bytes: * a larger result becomes an error.
        subscriptions_limit: past it NACK 429.
        channel_limit_bytes: of a channel's or URI's name; past it NACK 400.
        patterns: whether pattern subscriptions are allowed (one costs work for each event of the
            whole broker); otherwise NACK 403.
        message_rate: messages a second on average, 0 = any number; past it NACK 429.
        message_burst: messages at once; as many again past the rate close the connection.
        waiting_limit: messages that wait for middleware, or for the broker to confirm what stands
            before them; past it NACK 429, and for outgoing ones close 4008.
        waiting_limit_bytes: the same in bytes.
        close_uri: a CALL of this URI closes the connection; empty = none.
        slow_message_s: a message whose handling took longer is counted and logged: it held up
            everybody else.
        hook_timeout_s: what middleware and hooks may take for one message.
    """

    call_timeout_s: float = 60.0
    call_timeout_limit_s: float = 300.0
    calls_limit: int = 64
    args_limit_bytes: int = 0
    result_limit_bytes: int = 1024 * 1024
    subscriptions_limit: int = 128
    channel_limit_bytes: int = 255
    patterns: bool = False
    message_rate: float = 50.0
    message_burst: int = 100
    waiting_limit: int = 256
    waiting_limit_bytes: int = 1024 * 1024
    close_uri: str = ""
    slow_message_s: float = 0.1
    hook_timeout_s: float = 10.0


def nack_of(error: BaseException) -> tuple[int, str]:
    """The one place that maps errors to a NACK's code and message."""
    if isinstance(error, RequestRefused):
        return error.code, error.message
    if isinstance(error, QueueFull):
        return 500, str(error)
    if isinstance(error, BrokerError):
        return 500, "the broker is unavailable"  # why is for our log: it may name hosts and keys
    return 500, "internal error"


def allowed_messages(header: str | None) -> frozenset[int]:
    """Reads a Juggler-Allowed-Messages header: a comma list of call, pub, sub and unsb, any case.

    ``*``, nothing, or nothing valid allows all.
    """
    by_name = {juggler.NAMES[type_].lower(): type_ for type_ in _ALL_MESSAGES}
    names = {name.strip().lower() for name in (header or "").split(",")}
    allowed = frozenset(by_name[name] for name in names & by_name.keys())
    return _ALL_MESSAGES if "*" in names or not allowed else allowed


class Backlog(Generic[_T]):
    """Messages that wait for their turn: `waiting_limit` of them, in `waiting_limit_bytes`.

    One that waits alone may have any size. Past a limit `put` refuses.

    Args:
        limits: the two.

    Attributes:
        items: the messages in order, each with its size; read it, and change it by the methods.
    """

    __slots__ = ("_bytes", "_limits", "items")

    def __init__(self, limits: JugglerLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self.items: list[tuple[_T, int]] = []

    def put(self, message: _T, payload: juggler.Payload) -> bool:
        """Lets a message of this payload wait behind the others; False when there is no room."""
        payload.args = payload.args.copy()  # they would hold the whole frame that they came in
        size = memoryview(payload.args).nbytes + len(payload.channel) + len(payload.uri)
        limits = self._limits
        if self.items and (
            len(self.items) >= limits.waiting_limit
            or self._bytes + size > limits.waiting_limit_bytes
        ):
            return False
        self.items.append((message, size))
        self._bytes += size
        return True

    def take(self) -> _T:
        """The message whose turn it is."""
        message, size = self.items.pop(0)
        self._bytes -= size
        return message

    def clear(self) -> None:
        """Forgets all of them."""
        self.items.clear()
        self._bytes = 0


class TokenBucket:
    """Lets `rate` a second pass on average and `burst` at once."""

    __slots__ = ("_burst", "_filled_at_s", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, now_s: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at_s = now_s

    def take(self, now_s: float) -> float:
        """Takes one token; the result is what is left, negative when there was none."""
        # A reactor whose clock is the wall's may see it step back.
        tokens = self._tokens + max(0.0, now_s - self._filled_at_s) * self._rate
        self._filled_at_s = now_s
        self._tokens = tokens = min(tokens, self._burst) - 1
        return tokens
