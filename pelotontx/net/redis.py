"""txredisapi glue: connections to one Redis that stay up, pipeline, and keep bytes as they were.

txredisapi makes the commands (`auth`, `select`, `hset` ...); its send and reply paths are replaced:

- payloads are never converted (`b"0012"` stays what it is), replies are parsed by hiredis;
- replies go to a queue of plain callbacks, Deferreds only at the edge;
- a silent server is noticed: no reply within `reply_timeout_s` ends the connection, and everything
  that waits fails with `BrokerUnavailable` (nothing waits for ever, nothing is queued while down);
- what a server does not read is bounded: past 32 MiB further commands fail in the same way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import txredisapi
from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable, ConfigError
from pelotontx.net.kept import Backoff
from pelotontx.net.process import Moment
from pelotontx.net.tcp import corked, unsent_bytes

Argument: TypeAlias = bytes | str | int
Reply: TypeAlias = Any  # bytes, int, None, a list of these, or an Exception that was the answer
OnReply: TypeAlias = Callable[[Reply], object]

ResponseError = txredisapi.ResponseError

# What may wait to be sent to one Redis: some hundred thousand calls, a small part of the memory.
_UNSENT_LIMIT_BYTES: Final = 32 * 1024 * 1024
# How long a connection that is being closed has to send what was written to it.
_LINGER_S: Final = 1.0
# How often in `reply_timeout_s` a connection is looked at. After so many looks without a reply it
# is given up: one alone may only tell that our own process stood still.
_LOOKS: Final = 4


def ignore_reply(reply: Reply) -> None:
    """For commands whose outcome changes nothing for us."""


class RedisConnection(txredisapi.HiredisProtocol):  # type: ignore[misc]
    """One connection: any number of commands in flight, answered in order."""

    _log = Logger()

    def __init__(self) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._hiredis = hiredis.Reader(
            protocolError=txredisapi.InvalidData, replyError=txredisapi.ResponseError
        )
        self._waiting: deque[OnReply] = deque()
        self._is_choked = False  # the transport holds more than it likes
        self.replies = 0
        self.is_lost = False
        self.on_lost: Callable[[], None] = lambda: None
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
        self._waiting.append(on_reply)
        self.transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

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
                self.replyReceived(reply)
            except txredisapi.InvalidData as error:
                self._log.error("What answers is no Redis: {error}", error=error)
                self.transport.abortConnection()
                return
            except Exception:  # one reply's handling must not take the others along
                self._log.failure("A reply could not be handled")

    def replyReceived(self, reply: Reply) -> None:
        self._waiting.popleft()(reply)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_lost = True
        # Told first: whoever fails below must not find this connection still in use.
        self.on_lost()
        super().connectionLost(reason)
        waiting, self._waiting = self._waiting, deque()
        for on_reply in waiting:
            try:
                on_reply(BrokerUnavailable("the connection to Redis is lost"))
            except Exception:  # the others must be told all the same
                self._log.failure("The loss of a connection could not be handled")
        self.lost.happen(None)


class SubscriberConnection(RedisConnection):
    """A connection in subscribed mode: events by `on_event`, one reply a channel in a command.

    Attributes:
        on_event: called with (channel, pattern or None, payload), all bytes.
    """

    on_event: Callable[[bytes, bytes | None, bytes], None]

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
                if not self.is_lost and left:
                    self.transport.abortConnection()
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


class RedisAddress:
    """Where a Redis is and how to log in, read off a URL.

    ``redis://[[user]:password@]host[:port][/db]`` or ``unix:///path/of.sock[?db=N]``

    Raises:
        ConfigError: for any other URL; the text does not show it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.username = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password) if parts.password is not None else None
        self.host = parts.hostname or "127.0.0.1"
        self.path = ""
        try:
            self.port = parts.port or 6379
            if parts.scheme == "redis":
                self.db = int(parts.path.strip("/") or 0)
            elif parts.scheme == "unix" and parts.path.startswith("/"):
                self.path = unquote(parts.path)
                self.db = int(parse_qs(parts.query).get("db", ["0"])[0])
            else:
                raise ValueError("redis://[[user]:password@]host[:port][/db] or unix:///path")
        except ValueError as error:
            raise ConfigError("broker URL", f"not usable: {error}") from None  # may hold a password

    def endpoint(self, reactor: Any, *, timeout_s: float) -> IStreamClientEndpoint:
        """The endpoint to connect to."""
        if self.path:
            return UNIXClientEndpoint(reactor, self.path, timeout=timeout_s)
        if isIPAddress(self.host):  # no name to look up
            return TCP4ClientEndpoint(reactor, self.host, self.port, timeout=timeout_s)
        return HostnameEndpoint(reactor, self.host, self.port, timeout=timeout_s)

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"redis://{self.host}:{self.port}"


class RedisLink:
    """Keeps one connection to a Redis up, for ever, with backoff and jitter.

    Args:
        reactor: connects and keeps time.
        address: where and who.
        name: of the connection, for CLIENT LIST and our logs.
        connection_class: `RedisConnection` or a subclass.
        connect_timeout_s: for connecting and for logging in.
        reply_timeout_s: without any reply for so long while one is due, the connection is given up.

    Attributes:
        connection: the one that is up, or None.
        on_up: called (and awaited) with each new connection once it is logged in, before it is
            used by anybody else; a failure counts as a failed attempt.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        *,
        name: str,
        connection_class: type[RedisConnection] = RedisConnection,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
        on_up: Callable[[Any], Awaitable[None] | None] = lambda connection: None,
    ) -> None:
        self.connection: Any = None
        self.on_up = on_up
        self._reactor = reactor
        self._address = address
        self._endpoint = address.endpoint(corked(reactor), timeout_s=connect_timeout_s)
        self._factory = Factory.forProtocol(connection_class)
        self._factory.noisy = False
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._keeping: Deferred[None] | None = None
        self._latest: RedisConnection | None = None
        self._watchdog: IDelayedCall | None = None

    def start(self) -> None:
        """Begins to connect; never fails."""
        self._keeping = Deferred.fromCoroutine(self._keep())
        self._keeping.addErrback(self._stopped_keeping)

    def _stopped_keeping(self, failure: Failure) -> None:
        if failure.check(CancelledError, ConnectingCancelledError) is None:
            self._log.failure("{address}: not kept up", failure, address=self._address)

    def stop(self) -> Deferred[None]:
        """Fires when the connection is gone and nothing is left in the reactor."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._cancel_watchdog()
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        keeping.cancel()
        latest, self._latest = self._latest, None
        if latest is not None and not latest.is_lost:
            latest.transport.unregisterProducer()
            latest.transport.loseConnection()
            lost = latest.lost.wait().addTimeout(_LINGER_S, self._reactor)
            await lost.addErrback(lambda _: latest.transport.abortConnection())
            await latest.lost.wait()

    async def _keep(self) -> None:
        backoff = Backoff()
        is_reported = False
        while True:
            try:
                connection = await self._connect()
            except (CancelledError, ConnectingCancelledError):
                raise
            except Exception as error:  # nothing but a stop ends this loop
                if not is_reported:
                    is_reported = True
                    self._log.warn(
                        "{address}: no connection, trying on: {error}",
                        address=self._address,
                        error=error,
                    )
                await deferLater(self._reactor, backoff.next_s())
                continue
            if is_reported:
                is_reported = False
                self._log.info("{address}: connected", address=self._address)
            up_since_s = self._reactor.seconds()
            await connection.lost.wait()
            # One that is up and down again at once must not be asked without pause.
            if self._reactor.seconds() - up_since_s > backoff.limit_s:
                backoff.reset()
            await deferLater(self._reactor, backoff.next_s())

    async def _connect(self) -> RedisConnection:
        connection: Any = await self._endpoint.connect(self._factory)
        self._latest = connection
        timeout = self._reactor.callLater(
            self._connect_timeout_s, connection.transport.abortConnection
        )
        try:
            await self._log_in(connection)
        except BaseException:  # cancelled, too
            if not connection.is_lost:
                connection.transport.abortConnection()
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        if connection.is_lost:
            raise BrokerUnavailable("lost while logging in")
        self.connection = connection
        connection.on_lost = self._lost
        self._watch(connection, 0)
        return connection  # type: ignore[no-any-return]

    async def _log_in(self, connection: Any) -> None:
        if self._address.password is not None:
            await connection.auth(self._address.password, self._address.username)
        if self._address.db:
            await connection.select(self._address.db)
        await connection.execute_command("CLIENT", "SETNAME", self._name)
        ready = self.on_up(connection)
        if ready is not None:
            await ready

    def _lost(self) -> None:
        self.connection = None
        self._cancel_watchdog()

    def _watch(self, connection: RedisConnection, silent_looks: int) -> None:
        self._watchdog = self._reactor.callLater(
            self._reply_timeout_s / _LOOKS,
            self._look,
            connection,
            connection.replies,
            silent_looks,
        )

    def _look(self, connection: RedisConnection, replies_before: int, silent_looks: int) -> None:
        self._watchdog = None
        if not connection.waiting:
            connection.send(ignore_reply, "PING")
        elif connection.replies == replies_before:
            silent_looks += 1
            if silent_looks == _LOOKS:
                self._log.warn(
                    "{address}: no reply in {seconds} s, reconnecting",
                    address=self._address,
                    seconds=self._reply_timeout_s,
                )
                connection.transport.abortConnection()
                return
        if connection.replies != replies_before:
            silent_looks = 0
        self._watch(connection, silent_looks)

    def _cancel_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def send(self, on_reply: OnReply, *command: Argument) -> None:
        """As `RedisConnection.send`; answers `BrokerUnavailable` at once while down."""
        connection = self.connection
        if connection is None:
            on_reply(BrokerUnavailable(f"no connection to {self._address}"))
        else:
            connection.send(on_reply, *command)


def client_name(role: str) -> str:
    """The name of a connection for CLIENT LIST: product, role, process."""
    return f"pelotontx-{role}-{os.getpid()}"
