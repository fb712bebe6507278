"""What a broker can do, as the hub and a callee see it.

Two sides share one store of waiting calls and results:

- a server process is a `Caller` (it stores calls and is told of results) and a `PubSub`;
- a callee is a `Callee` (it takes calls and stores results).

Hot paths report by plain callbacks, in batches where a broker has them; the rest by Deferreds.
Payloads are encoded JSON (bytes) that a broker carries and never reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec
from twisted.internet.defer import Deferred

from pelotontx.errors import BrokerError, CallExpired


class IncomingCall(msgspec.Struct, frozen=True, gc=False):
    """A call that a callee has taken.

    Attributes:
        uri: the function that is wanted.
        conn_uuid: names the results list; copied into the result.
        msg_uuid: names the call; copied into the result.
        args: encoded JSON, empty for none.
        expires_at_s: when its time is over, on the callee's own clock.
        ticket: what the broker wants back with the result; its own affair.
    """

    uri: str
    conn_uuid: str
    msg_uuid: str
    args: bytes
    expires_at_s: float
    ticket: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's history.

    Attributes:
        epoch: names one unbroken history; another epoch means that offsets cannot be compared.
        offset: of the event in its epoch, from 1.
    """

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class History:
    """What a channel remembers.

    Attributes:
        position: of the newest event.
        events: (position, payload) in order, oldest first.
        recovered: whether `events` is all that followed the position that was asked for.
    """

    position: Position
    events: Sequence[tuple[Position, bytes]]
    recovered: bool


CallStored: TypeAlias = Callable[[BrokerError | None], object]
"""Told once for each call: None when the broker has it, else why it has not."""

ResultStored: TypeAlias = Callable[[BrokerError | CallExpired | None], object]
"""Told once for each result: None when the broker has it, else why it has not."""


class Part(Protocol):
    """A part of a broker with connections of its own."""

    @property
    def available(self) -> bool:
        """Whether its connection is up at this moment."""
        ...

    def start(self) -> None:
        """Connects, and from then on reconnects for ever with backoff. Never fails."""
        ...

    def stop(self) -> Deferred[None]:
        """Fires when nothing of it is left in the reactor; what still waits has failed."""
        ...


class Caller(Part, Protocol):
    """The server's side of calls."""

    on_result: Callable[[str, bytes], None]
    """Called with (msg_uuid, args) for each result; set before start."""

    def store_call(
        self, uri: str, msg_uuid: str, args: bytes, timeout_ms: int, stored: CallStored
    ) -> None:
        """Stores a call for whoever serves `uri`, first in first out.

        `stored` is called exactly once, maybe before this returns: with None, `QueueFull` or
        `BrokerUnavailable`. After `timeout_ms` no callee runs the call any more.
        """
        ...

    payloads_failed: int
    """Results that could not be read."""

    def queue_lengths(self) -> Deferred[dict[str, int]]:
        """How many calls wait for each URI that was called lately and has been answered.

        Of some hundred at most; those of all other URIs are summed up under ``""``, since clients
        choose their names. Of URIs that cannot be asked about nothing is told; never fails.
        """
        ...


class Callee(Part, Protocol):
    """The callee's side of calls; one `take_calls` at a time."""

    def take_calls(self, uris: Sequence[str], limit: int) -> Deferred[list[IncomingCall]]:
        """Waits for calls of any of the URIs.

        Returns:
            A Deferred of up to `limit` calls, of none when some seconds went by; expired calls are
            dropped. Fails with `BrokerUnavailable`. Cancelling is safe: nothing is lost.
        """
        ...

    def store_result(self, call: IncomingCall, args: bytes, stored: ResultStored) -> None:
        """Stores a result for the caller.

        `stored` is called exactly once, maybe before this returns: with None, `CallExpired` when
        the call's time was over (nothing is stored then), `BrokerUnavailable`, or `QueueFull` when
        nobody fetches the caller's results. A result may be stored again: the second is dropped.
        """
        ...


class PubSub(Part, Protocol):
    """Events."""

    on_event: Callable[[str, str | None, bytes], None]
    """Called with (channel, pattern or None, payload) for each event; set before start."""

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        """Fires when the broker took the event; fails with `BrokerUnavailable`."""
        ...

    def subscribe(self, channel: str, *, pattern: bool) -> Deferred[None]:
        """Fires when events of the channel (or the Redis glob) will come from now on.

        It stays subscribed over reconnections until `unsubscribe`. Fails with `BrokerUnavailable`,
        and is then not subscribed.
        """
        ...

    def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        """No events of the channel come from now on."""
        ...

    def history(self, channel: str, since: Position | None, limit: int) -> Deferred[History]:
        """What followed `since` on a channel that keeps history.

        Fails with `HistoryUnsupported` where the broker keeps none.
        """
        ...


class SessionStore(Protocol):
    """Sessions: fields by name, each encoded by `pelotontx.wire.session.encode_value`.

    It needs no start of its own: it is there while its broker is. Everything fails with
    `BrokerUnavailable`; what was asked for then may or may not have happened. Cancelling only stops
    waiting.
    """

    def load(
        self, session_id: str, *, life_ms: int, slack_ms: int
    ) -> Deferred[dict[str, bytes] | None]:
        """The fields; None if there is no such session, or no longer.

        Args:
            session_id: whose.
            life_ms: how long it may live from now on. It is not written with each load, but
                when the session would end more than `slack_ms` earlier.
            slack_ms: see there.
        """
        ...

    def save(
        self,
        session_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
        is_new: bool = False,
    ) -> Deferred[bool]:
        """Writes some fields and leaves the others as they are, in one step.

        Args:
            session_id: whose.
            changed: fields to set.
            removed: fields to remove; a session without fields is none.
            life_ms: how long it may live from now on.
            is_new: whether it may begin with this.

        Returns:
            A Deferred of False if the session was to exist and does not: it has ended meanwhile,
            and nothing was written.
        """
        ...

    def move(
        self,
        session_id: str,
        new_id: str,
        changed: Mapping[str, bytes],
        removed: Sequence[str] = (),
        *,
        life_ms: int,
    ) -> Deferred[bool]:
        """Gives a session another id, and saves as `save` does; the old id is dead.

        If the session has ended meanwhile, the new one consists of `changed`. Should it fail half
        way, the session is over: it is never to be found under both ids.

        Returns:
            A Deferred of whether there is a session now: not if it would have no field.
        """
        ...

    def delete(self, session_id: str) -> Deferred[None]:
        """Ends a session, if there is one."""
        ...


class Broker(Part, Protocol):
    """A broker: what its parts share, and the parts, each started by whoever uses it."""

    @property
    def caller(self) -> Caller:
        """The server's side of calls."""
        ...

    @property
    def pubsub(self) -> PubSub:
        """Events."""
        ...

    @property
    def sessions(self) -> SessionStore:
        """Sessions of web applications."""
        ...

    def callee(self) -> Callee:
        """A new callee side, with a connection of its own."""
        ...
