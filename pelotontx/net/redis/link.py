"""Connections to Redis that stay up, wherever the server is at the time.

A silent server is noticed: no reply within `reply_timeout_s` ends the connection, and everything
that waits fails with `BrokerUnavailable` (nothing waits for ever, nothing is queued while down).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.kept import Backoff
from pelotontx.net.redis.address import RedisAddress
from pelotontx.net.redis.connection import Argument, OnReply, RedisConnection
from pelotontx.net.tcp import corked

# How long a connection that is being closed has to send what was written to it.
_LINGER_S: Final = 1.0
# How often in `reply_timeout_s` a connection is looked at. After so many looks without a reply it
# is given up: one alone may only tell that our own process stood still.
_LOOKS: Final = 4
# Different reasons why there is no connection, of which each is logged once.
_REPORTS: Final = 8

# The first words of error replies which say that a command was not run since this is not the right
# server, and of those which say that it is not the right moment.
WRONG_SERVER: Final = frozenset({"MOVED", "ASK", "READONLY", "UNBLOCKED"})
WRONG_MOMENT: Final = frozenset({"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS"})


def first_word(error: Exception) -> str:
    """The kind of an error reply."""
    return str(error).partition(" ")[0]


class Locator(Protocol):
    """Knows where a server is; `str` shows no password."""

    def locate(self) -> Awaitable[RedisAddress]:
        """Where to connect to; asked before each attempt.

        Errbacks with `BrokerUnavailable` when that is not known.
        """
        ...

    def refused(self, error: str) -> None:
        """Told of an error reply which says that the server is the wrong one, or not ready."""
        ...


class Fixed:
    """A `Locator` of a server that is always in one place."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address

    def locate(self) -> Deferred[RedisAddress]:
        """See `Locator`."""
        return succeed(self._address)

    def refused(self, error: str) -> None:
        """There is nowhere else to go."""

    def __str__(self) -> str:
        return str(self._address)


class RedisLink:
    """Keeps one connection to a Redis up, for ever, with backoff and jitter.

    An error reply which says that the server is the wrong one, or not ready, ends the connection,
    and `BrokerUnavailable` is handed on in its place: see `WRONG_SERVER` and `WRONG_MOMENT`.

    Args:
        reactor: connects and keeps time.
        locator: knows where to connect to.
        name: of the connection, for CLIENT LIST and our logs.
        connection_class: `RedisConnection` or a subclass.
        connect_timeout_s: for connecting and for logging in.
        reply_timeout_s: without any reply for so long while one is due, the connection is given up.
        backoff_limit_s: attempts are not further apart.

    Attributes:
        connection: the one that is up, or None.
        address: where it goes, or where the last attempt went; None until that is known.
        on_up: called (and awaited) with each new connection once it is logged in, before it is
            used by anybody else; a failure counts as a failed attempt.
        on_down: called when a connection that was up is lost.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        locator: Locator,
        *,
        name: str,
        connection_class: type[RedisConnection] = RedisConnection,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
        backoff_limit_s: float = 5.0,
        on_up: Callable[[Any], Awaitable[None] | None] = lambda connection: None,
        on_down: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection: Any = None
        self.address: RedisAddress | None = None
        self.on_up = on_up
        self.on_down = on_down
        self._reactor = reactor
        self._locator = locator
        self._factory = Factory.forProtocol(connection_class)
        self._factory.noisy = False
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._backoff = Backoff(limit_s=backoff_limit_s)
        self._keeping: Deferred[None] | None = None
        self._is_stopped = False
        self._pending: Deferred[Any] | None = None  # an attempt, or the wait for the next
        self._is_moved = False
        self._latest: RedisConnection | None = None
        self._watchdog: IDelayedCall | None = None
        self._reported: set[str] = set()

    # Its life

    def start(self) -> None:
        """Begins to connect; never fails."""
        self._is_stopped = False
        self._keeping = Deferred.fromCoroutine(self._keep())
        self._keeping.addErrback(self._stopped_keeping)

    def _stopped_keeping(self, failure: Failure) -> None:
        if not self._is_stopped:
            self._log.failure("{locator}: not kept up", failure, locator=self._locator)

    def stop(self) -> Deferred[None]:
        """Fires when the connection is gone and nothing is left in the reactor."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._is_stopped = True
        self._cancel_watchdog()
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
        latest, self._latest = self._latest, None
        if latest is None:
            return
        if not latest.is_lost:
            latest.transport.unregisterProducer()
            latest.transport.loseConnection()
            lost = latest.lost.wait().addTimeout(_LINGER_S, self._reactor)
            await lost.addErrback(lambda _: latest.drop())
        await latest.lost.wait()

    def moved(self) -> None:
        """The server is another one now: looks for it at once."""
        self._is_moved = True
        if self.connection is not None:
            self.connection.drop()
        elif self._pending is not None:
            self._pending.cancel()

    def reconnect(self) -> None:
        """Lets go of the connection and makes another, after a pause."""
        if self.connection is not None:
            self.connection.drop()

    async def _keep(self) -> None:
        was_at_once = False
        while True:
            connection = await self._attempt()
            if connection is not None:
                up_since_s = self._reactor.seconds()
                await connection.lost.wait()
                # One that is up and down again at once must not be asked without pause.
                if self._reactor.seconds() - up_since_s > self._backoff.limit_s:
                    self._backoff.reset()
                    was_at_once = False
            was_at_once = self._is_moved and not was_at_once
            self._is_moved = False
            if not was_at_once:
                await self._pause()

    async def _pause(self) -> None:
        self._pending = deferLater(self._reactor, self._backoff.next_s())
        try:
            await self._pending
        except Exception:
            if self._is_stopped:
                raise
            self._backoff.reset()  # moved
        finally:
            self._pending = None
            self._is_moved = False

    async def _attempt(self) -> RedisConnection | None:
        self._pending = Deferred.fromCoroutine(self._connect())
        try:
            connection: RedisConnection = await self._pending
        except Exception as error:  # nothing but a stop ends the loop
            if self._is_stopped:
                raise
            if not self._is_moved:
                self._report(str(error))
            if self._latest is not None:
                await self._latest.lost.wait()
            return None
        finally:
            self._pending = None
        if self._reported:
            self._reported.clear()
            self._log.info("{locator}: connected", locator=self._locator)
        return connection

    def _report(self, error: str) -> None:
        if error not in self._reported and len(self._reported) < _REPORTS:
            self._reported.add(error)
            self._log.warn(
                "{locator}: no connection, trying on: {error}", locator=self._locator, error=error
            )

    # One connection

    async def _connect(self) -> RedisConnection:
        self.address = None
        self.address = address = await self._locator.locate()
        endpoint = address.endpoint(corked(self._reactor), timeout_s=self._connect_timeout_s)
        connection: Any = await endpoint.connect(self._factory)
        self._latest = connection
        timeout = self._reactor.callLater(self._connect_timeout_s, connection.drop)
        try:
            await self._prepare(connection, address)
            if connection.is_lost:
                raise BrokerUnavailable("lost while logging in")
        except BaseException as error:  # cancelled, too
            connection.drop()
            if isinstance(error, BrokerUnavailable) and not timeout.active():
                raise BrokerUnavailable("no answer while logging in") from error
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        self.connection = connection
        connection.on_lost = self._lost
        self._watch(connection, 0)
        return connection  # type: ignore[no-any-return]

    async def _prepare(self, connection: Any, address: RedisAddress) -> None:
        await log_in(connection, address)
        if address.db:
            await connection.select(address.db)
        await connection.execute_command("CLIENT", "SETNAME", self._name)
        await connection.execute_command("PING")  # a server that still loads its data refuses
        connection.on_error = partial(self._judge, connection)
        connection.is_asking = address.is_asking
        connection.look_at_clock(self._reactor)
        ready = self.on_up(connection)
        if ready is not None:
            await ready

    def _judge(self, connection: RedisConnection, error: Exception) -> Exception:
        word = first_word(error)
        if word not in WRONG_SERVER and word not in WRONG_MOMENT:
            return error
        if not connection.is_lost:
            self._is_moved = word in WRONG_SERVER
            connection.drop()
            self._locator.refused(str(error))
        return BrokerUnavailable(f"{self.address}: {error}")

    def _lost(self) -> None:
        self.connection = None
        self._cancel_watchdog()
        self.on_down()

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
        if not connection.waiting or connection.replies != replies_before:
            silent_looks = 0
            connection.look_at_clock(self._reactor)
        else:
            silent_looks += 1
            if silent_looks == _LOOKS:
                self._log.warn(
                    "{address}: no reply in {seconds} s, reconnecting",
                    address=self.address,
                    seconds=self._reply_timeout_s,
                )
                connection.drop()
                return
        self._watch(connection, silent_looks)

    def _cancel_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def send(self, on_reply: OnReply, *command: Argument) -> None:
        """As `RedisConnection.send`; answers `BrokerUnavailable` at once while down."""
        connection = self.connection
        if connection is None:
            on_reply(BrokerUnavailable(f"no connection to {self._locator}"))
        else:
            connection.send(on_reply, *command)


async def log_in(connection: Any, address: RedisAddress) -> None:
    """AUTH, where the address has a password; a wrong one is a `ResponseError`."""
    if address.password is not None:
        await connection.auth(address.password, address.username)


def client_name(role: str) -> str:
    """The name of a connection for CLIENT LIST: product, role, process."""
    return f"pelotontx-{role}-{os.getpid()}"
