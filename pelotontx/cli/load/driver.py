"""Drives the load: opens the connections, sends at the pace that was asked for, ends in time."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall

from pelotontx.cli.load.connections import HANDSHAKES, SendingLink, Step, SubscribingLink, in_turn
from pelotontx.cli.load.events import EventLedger, Publisher, Subscriber
from pelotontx.cli.load.ledger import CallLedger, Sender
from pelotontx.cli.load.options import Plan
from pelotontx.errors import Disconnected, PelotonError, RequestRefused
from pelotontx.net.tcp import corked
from pelotontx.net.websocket.client import Connection, connect
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler

# How often deadlines are looked after.
_TURN_S: Final = 0.05
# The reactor sleeps whole milliseconds. Better so much too early, with the latency counted from the
# sending, than too late, with our own lateness counted as the server's.
_EARLY_S: Final = 0.001
# A client that was refused pauses: at once it would be refused again, as fast as we can ask.
_REFUSED_S: Final = 0.1
# What is in flight may still come in this time after an interruption.
_INTERRUPTED_S: Final = 1.0
# For a subscription to be confirmed.
_SUBSCRIBE_S: Final = 10.0


class _Ledger(Protocol):
    """What `CallLedger` and `EventLedger` have in common."""

    measures_from_s: float

    def begin(self, sender: Any, due_s: float, now_s: float) -> str: ...

    def received(self, sender: Any, message: juggler.Message, now_s: float) -> int: ...

    def expire(self, sender: Any, now_s: float) -> int: ...

    def disconnected(self, sender: Any) -> None: ...

    def interrupted(self, sender: Any) -> None: ...


class Driver:
    """One run: `open`, `drive`, `close`.

    Args:
        plan: what to do.
        reactor: any of Twisted's; ours is the fastest.
        on_progress: called about once a second, and at each connection, with this driver.
        now: seconds, for latencies.
        connector: `pelotontx.net.websocket.client.connect`.

    Attributes:
        calls: the book of a run that calls; None in one that publishes.
        events: the book of a run that publishes; None in one that calls.
        opened: how many connections have been opened.
        disconnects: connections that were lost, by reason.
        started_s: when the first message was sent, by `now`; None before.
        lag_s: the most that a message was sent after it was due, for want of time on our side.
        cpu_share: of one core, what we needed ourselves.
        is_interrupted: somebody did not want to wait.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        reactor: Any,
        on_progress: Callable[[Driver], object] = lambda _: None,
        now: Callable[[], float] = time.perf_counter,
        connector: Callable[..., Deferred[Any]] = connect,
    ) -> None:
        self.plan = plan
        self.calls: CallLedger | None = None
        self.events: EventLedger | None = None
        if plan.is_pubsub:
            self.events = EventLedger(timeout_s=plan.timeout_s, channels=plan.channels)
        else:
            self.calls = CallLedger(timeout_s=plan.timeout_s)
        self.opened = 0
        self.disconnects: Counter[str] = Counter()
        self.started_s: float | None = None
        self.lag_s = 0.0
        self.cpu_share = 0.0
        self.is_interrupted = False
        ledger = self.calls or self.events
        assert ledger is not None
        self._ledger: _Ledger = ledger
        self._reactor = reactor
        self._on_progress = on_progress
        self._now = now
        self._connector = connector
        self._wheel = Wheel(reactor)
        self._corked = corked(reactor)
        self._links = [SendingLink(self._new_book()) for _ in range(plan.senders)]
        self._subscriptions = [
            SubscribingLink(Subscriber(number % plan.channels), _new_id())
            for number in range(plan.clients if plan.is_pubsub else 0)
        ]
        self._channels = [plan.uri]
        if plan.channels > 1:
            self._channels = [f"{plan.uri}.{number}" for number in range(plan.channels)]
        self._opening: Deferred[Any] | None = None
        self._finished: Deferred[None] = Deferred()
        self._pacing: IDelayedCall | None = None
        self._turning: IDelayedCall | None = None
        self._is_sending = False
        self._is_closing = False
        # Messages that may still be sent; when sending stops; when waiting for answers does.
        self._left = float("inf") if plan.count is None else plan.count
        self._stops_s = float("inf")
        self._ends_s = float("inf")
        self._sent_due = 0

    def _new_book(self) -> Sender | Publisher:
        """Ids of one client have a prefix of their own, that of a version 4 uuid."""
        prefix = _new_id()[:24]
        return Publisher(prefix) if self.plan.is_pubsub else Sender(prefix)

    @property
    def connections(self) -> int:
        """How many are needed."""
        return len(self._links) + len(self._subscriptions)

    @property
    def in_flight(self) -> int:
        """Messages that are still waited for."""
        return sum(len(link.book.pending) for link in self._links)

    # Opening

    def open(self) -> Deferred[Any]:
        """Opens all connections, `HANDSHAKES` at a time, and subscribes.

        Returns:
            a Deferred; it errbacks with `PelotonError` when one of them cannot be had, and with
            that or `CancelledError` after `interrupt`. `close` is needed in any case.
        """
        self._opening = in_turn(
            self._reactor,
            self._steps(),
            at_once=HANDSHAKES,
            interval_s=self.plan.connect_interval_s,
        )
        return self._opening

    def _steps(self) -> Iterator[Step]:
        for subscription in self._subscriptions:
            yield partial(self._subscribe, subscription)
        for link in self._links:
            yield partial(self._open_link, link)

    async def _open_link(self, link: SendingLink) -> None:
        link.connection = await self._connect(
            partial(self._received, link), partial(self._lost_link, link)
        )
        link.is_usable = True
        self._connected()

    async def _subscribe(self, link: SubscribingLink) -> None:
        link.connection = await self._connect(
            partial(self._received_event, link), partial(self._lost_subscription, link)
        )
        channel = self._channels[link.book.channel]
        link.connection.send(juggler.encode_sub(link.uuid, channel, pattern=False))
        try:
            answer = await link.confirmed.addTimeout(_SUBSCRIBE_S, self._reactor)
        except TimeoutError:
            raise Disconnected(f"{self.plan.url}: a SUB was not answered in time") from None
        if answer.meta.type == juggler.NACK:
            raise RequestRefused(answer.payload.code, answer.payload.message)
        link.is_usable = True
        assert self.events is not None
        self.events.join(link.book)
        self._connected()

    def _connect(
        self,
        on_message: Callable[[bytes], object],
        on_close: Callable[[Disconnected], object],
    ) -> Deferred[Connection]:
        return self._connector(
            self._corked,
            self.plan.url,
            wheel=self._wheel,
            on_message=on_message,
            on_close=on_close,
            subprotocols=[juggler.SUBPROTOCOL],
            headers=self.plan.headers,
        )

    def _connected(self) -> None:
        self.opened += 1
        self._on_progress(self)

    # Sending

    def drive(self) -> Deferred[None]:
        """Sends as planned; fires when all that was sent has ended, one way or the other."""
        plan = self.plan
        now = self._now()
        cpu_s = time.process_time()
        self.started_s = now
        # In an open loop the first measured message may be sent a little early.
        early_s = 0.0 if plan.interval_s is None else _EARLY_S
        self._ledger.measures_from_s = now + plan.warm_up_s - early_s
        if plan.duration_s is not None:
            self._stops_s = now + plan.warm_up_s + plan.duration_s
        self._is_sending = True

        def ended(result: Any) -> Any:
            self.cpu_share = (time.process_time() - cpu_s) / max(self._now() - now, 1e-9)
            return result

        if plan.interval_s is None:
            for link in self._links:
                for _ in range(plan.in_flight):
                    self._send_now(link)
        else:
            self._send_due(plan.interval_s / len(self._links))
        self._turn()
        return self._finished.addBoth(ended)

    def _send_due(self, interval_s: float) -> None:
        """Open loop: message n of the run is due at n intervals, the clients taking turns."""
        assert self.started_s is not None
        links = self._links
        now = self._now()
        while self._is_sending:
            due_s = self.started_s + self._sent_due * interval_s
            if due_s >= self._stops_s:
                self._is_sending = False
                return
            if due_s > now + _EARLY_S:
                wait_s = max(0.0, due_s - self._now() - _EARLY_S)
                self._pacing = self._reactor.callLater(wait_s, self._send_due, interval_s)
                return
            self._send(links[self._sent_due % len(links)], min(due_s, now), now)
            self._sent_due += 1

    def _send_now(self, link: SendingLink) -> None:
        now = self._now()
        self._send(link, now, now)

    def _send(self, link: SendingLink, due_s: float, now_s: float) -> None:
        connection = link.connection
        if not self._is_sending or not link.is_usable or connection is None:
            return
        if connection.state != connection.STATE_OPEN:
            link.is_usable = False  # it is closing; what was in flight may still come
            return
        uuid = self._ledger.begin(link.book, due_s, now_s)
        try:
            connection.send(self._frame(link.book, uuid))
        except PelotonError:  # the server does not read
            link.is_usable = False
            connection.abort()
        if due_s >= self._ledger.measures_from_s:
            self.lag_s = max(self.lag_s, now_s - due_s)
            self._left -= 1
            if self._left <= 0:
                self._is_sending = False

    def _frame(self, book: Sender | Publisher, uuid: str) -> bytes:
        plan = self.plan
        if self.events is None:
            return juggler.encode_call(uuid, plan.uri, plan.args, plan.timeout_s)
        channel = self._channels[book.sent % len(self._channels)]
        return juggler.encode_pub(uuid, channel, plan.args)

    # What the server says

    def _received(self, link: SendingLink, frame: bytes) -> None:
        message = link.decoded(frame)
        if message is None:
            return
        now = self._now()
        has_ended = self._ledger.received(link.book, message, now)
        if not has_ended or self.plan.interval_s is not None:
            return
        if message.meta.type == juggler.NACK:
            self._wheel.call_later(_REFUSED_S, self._send_now, link)
        else:
            self._send(link, now, now)

    def _received_event(self, link: SubscribingLink, frame: bytes) -> None:
        message = link.decoded(frame)
        if message is None:
            return
        assert self.events is not None
        if message.meta.type == juggler.EVNT:
            self.events.event(link.book, message.payload.for_, self._now())
        elif message.payload.for_ == link.uuid and not link.confirmed.called:
            link.confirmed.callback(message)
        else:
            self.events.counts.strays += 1

    def _lost_link(self, link: SendingLink, reason: Disconnected) -> None:
        link.is_usable = False
        if not self._is_closing:
            self.disconnects[str(reason)] += 1
            self._ledger.disconnected(link.book)

    def _lost_subscription(self, link: SubscribingLink, reason: Disconnected) -> None:
        if self._is_closing:
            return
        self.disconnects[str(reason)] += 1
        assert self.events is not None
        if link.is_usable:
            self.events.leave(link.book)
        elif not link.confirmed.called:
            link.confirmed.errback(reason)
        link.is_usable = False

    # Ending

    def _turn(self) -> None:
        """Looks after deadlines, until there is nothing left to wait for."""
        now = self._now()
        is_over = self.plan.interval_s is None and now >= self._stops_s
        if is_over or not any(link.is_usable for link in self._links):
            self._is_sending = False
        for link in self._links:
            expired = self._ledger.expire(link.book, now)
            if self.plan.interval_s is None:
                for _ in range(expired):
                    self._send(link, now, now)
        self._on_progress(self)
        if self._is_sending or (self.in_flight and now < self._ends_s):
            self._turning = self._reactor.callLater(_TURN_S, self._turn)
            return
        for link in self._links:
            self._ledger.interrupted(link.book)
        self._finished.callback(None)

    def interrupt(self) -> None:
        """Ends early: connecting at once, the run after a last wait for what is in flight."""
        self.is_interrupted = True
        if self.started_s is not None:
            self._is_sending = False
            self._ends_s = self._now() + _INTERRUPTED_S
        elif self._opening is not None:
            self._opening.cancel()

    def close(self) -> Deferred[Any]:
        """Closes every connection; fires when nothing of this run is left in the reactor."""
        self._is_closing = True
        for call in (self._pacing, self._turning):
            if call is not None and call.active():
                call.cancel()
        links = (*self._links, *self._subscriptions)
        closing = gatherResults(
            [link.connection.close() for link in links if link.connection is not None]
        )

        def closed(result: Any) -> Any:
            self._wheel.stop()
            return result

        return closing.addBoth(closed)


def _new_id() -> str:
    return juggler.MessageIds(os.urandom(16)).next()
