"""txredisapi glue: connections to one Redis that pipeline, and keep bytes as they were.

txredisapi makes the commands (`auth`, `select`, `hset` ...); its send and reply paths are replaced:

- payloads are never converted (`b"0012"` stays what it is), replies are parsed by hiredis;
- replies go to a queue of plain callbacks, Deferreds only at the edge;
- what waits when the connection is lost fails with `BrokerUnavailable`;
- what a server does not read is bounded: past 32 MiB further commands fail in the same way.

`pelotontx.net.redis.link` makes connections and keeps them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import hiredis
import txredisapi
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.process import Moment
from pelotontx.net.tcp import unsent_bytes

Argument: TypeAlias = bytes | str | int
Reply: TypeAlias = Any  # bytes, int, None, a list of these, or an Exception that was the answer
OnReply: TypeAlias = Callable[[Reply], object]

ResponseError = txredisapi.ResponseError

# What may wait to be sent to one Redis: some hundred thousand calls, a small part of the memory.
_UNSENT_LIMIT_BYTES: Final = 32 * 1024 * 1024
_ASKING: Final = hiredis.pack_command(("ASKING",))


def ignore_reply(reply: Reply) -> None:
    """For commands whose outcome changes nothing for us."""


class RedisConnection(txredisapi.HiredisProtocol):  # type: ignore[misc]
    """One connection: any number of commands in flight, answered in order.

    Attributes:
        replies: how many have come.
        ahead_s: how far Redis's clock is ahead of ours, in seconds; None: not known.
        is_asking: each command is preceded by ASKING (see `pelotontx.net.redis.address`).
        is_lost: nothing can be sent any more.
        on_lost: called when that becomes so.
        on_error: gets each error reply; what it returns is handed on in its place.
        lost: happens when nothing is left of it in the reactor.
    """

    _log = Logger()

    def __init__(self) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._hiredis = hiredis.Reader(
            protocolError=txredisapi.InvalidData, replyError=txredisapi.ResponseError
        )
        self._waiting: deque[OnReply] = deque()
        self._is_choked = False  # the transport holds more than it likes
        self.replies = 0
        self.ahead_s: float | None = None
        self.is_asking = False
        self.is_lost = False
        self.on_lost: Callable[[], None] = lambda: None
        self.on_error: Callable[[Exception], Exception] = lambda error: error
        self.lost: Moment[None] = Moment()

    @property
    def waiting(self) -> int:
        """How many commands have no reply yet."""
        return len(self._waiting)

    def send(self, on_reply: OnReply, *command: Argument) -> None:
        """Sends one command; `on_reply` is called once with the reply or with the error's instance.

        A transport sends what a reactor turn has written in one piece.
        """
        if self.is_lost:
            on_reply(BrokerUnavailable("the connection to Redis is lost"))
            return
        if self._is_choked and unsent_bytes(self.transport) > _UNSENT_LIMIT_BYTES:
            on_reply(BrokerUnavailable("Redis does not keep up"))
            return
        if self.is_asking:
            self._waiting.append(ignore_reply)
            self.transport.write(_ASKING)
        self._waiting.append(on_reply)
        self.transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

    def drop(self) -> None:
        """Ends it at once: from now on it counts as lost."""
        if not self.is_lost:
            self._is_lost_now()
            self.transport.abortConnection()

    def _is_lost_now(self) -> None:
        self.is_lost = True
        # Told first: whoever fails afterwards must not find this connection still in use.
        self.on_lost()

    def look_at_clock(self, clock: IReactorTime) -> None:
        """Asks for Redis's time, which is a sign of life too."""
        sent_s = clock.seconds()

        def replied(reply: Reply) -> None:
            if type(reply) is list:
                self._compare_clocks(int(reply[0]) + int(reply[1]) / 1e6, sent_s, clock.seconds())

        self.send(replied, "TIME")

    def _compare_clocks(self, redis_s: float, sent_s: float, received_s: float) -> None:
        """Redis read its clock at some moment between: what contradicts that is corrected."""
        least_s, most_s = redis_s - received_s, redis_s - sent_s
        if self.ahead_s is None:
            self.ahead_s = (least_s + most_s) / 2
        else:
            self.ahead_s = min(max(self.ahead_s, least_s), most_s)

    def execute_command(self, *arguments: Any, **options: Any) -> Deferred[Any]:
        """Txredisapi's own commands end here; an error reply is a failure."""
        result: Deferred[Any] = Deferred()

        def replied(reply: Reply) -> None:
            if not result.called:
                (result.errback if isinstance(reply, Exception) else result.callback)(reply)

        self.send(replied, *(_encode(argument) for argument in arguments))
        post_process = options.get("post_proc")
        return result.addCallback(post_process) if callable(post_process) else result

    def connectionMade(self) -> Deferred[Any]:
        self.transport.registerProducer(self, True)
        made: Deferred[Any] = super().connectionMade()
        return made

    def pauseProducing(self) -> None:
        self._is_choked = True

    def resumeProducing(self) -> None:
        self._is_choked = False

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        reader = self._hiredis
        reader.feed(data)
        while True:
            try:
                reply = reader.gets()
                if reply is False:
                    return
                self.replies += 1
                if isinstance(reply, ResponseError):
                    reply = self.on_error(reply)
                self.replyReceived(reply)
            except txredisapi.InvalidData as error:
                self._log.error("What answers is no Redis: {error}", error=error)
                self.drop()
                return
            except Exception:  # one reply's handling must not take the others along
                self._log.failure("A reply could not be handled")

    def replyReceived(self, reply: Reply) -> None:
        self._waiting.popleft()(reply)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.is_lost:
            self._is_lost_now()
        super().connectionLost(reason)
        waiting, self._waiting = self._waiting, deque()
        for on_reply in waiting:
            try:
                on_reply(BrokerUnavailable(f"the connection to Redis is lost{_why(reason)}"))
            except Exception:  # the others must be told all the same
                self._log.failure("The loss of a connection could not be handled")
        self.lost.happen(None)


class SubscriberConnection(RedisConnection):
    """A connection in subscribed mode: events by `on_event`, one reply a channel in a command.

    Attributes:
        on_event: called with (channel, pattern or None, payload), all bytes.
    """

    on_event: Callable[[bytes, bytes | None, bytes], None]

    def look_at_clock(self, clock: IReactorTime) -> None:
        """A subscribed connection may ask for no time."""
        self.send(ignore_reply, "PING")

    def replyReceived(self, reply: Reply) -> None:
        if type(reply) is list:
            kind = reply[0]
            if kind == b"message":
                self.on_event(reply[1], None, reply[2])
                return
            if kind == b"pmessage":
                self.on_event(reply[2], reply[1], reply[3])
                return
        self._waiting.popleft()(reply)

    def subscribe_to(self, command: str, names: Sequence[bytes]) -> Deferred[None]:
        """Sends one (un)subscribing command for many names; fires after each was replied to."""
        result: Deferred[None] = Deferred()
        left = len(names)

        def replied(reply: Reply) -> None:
            nonlocal left
            left -= 1
            if result.called:
                return
            if isinstance(reply, Exception):
                # Redis refuses the whole command with one reply: the others will never come.
                if left:
                    self.drop()
                result.errback(reply)
            elif left == 0:
                result.callback(None)

        self._waiting.extend([replied] * (left - 1))
        self.send(replied, command, *names)
        return result


def _encode(argument: Any) -> Argument:
    if isinstance(argument, (bytes, str, int)):
        return argument
    if isinstance(argument, float):
        return repr(argument)
    return str(argument)


def _why(reason: Failure) -> str:
    """What there is to say about a loss that is more than a closed connection."""
    error = reason.value
    if isinstance(error, ConnectionClosed):
        return ""
    if isinstance(error, VerificationError):
        return ": its certificate is for another host"
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return f": TLS: {', '.join(each[-1] for each in error.args[0])}"
    return f": {reason.getErrorMessage()}"
