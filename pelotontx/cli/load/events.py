"""What became of each event: which subscribers should have got it, and which have.

Publisher P's n-th event goes to channel n modulo the number of channels, and a subscriber has one
channel. So a subscriber knows from the id of an event (publisher and count) whether it is the
next, one behind a gap, one that was overtaken (*reordered*) or one that it has already
(*duplicate*). An event that the server ACKed and that did not come within its timeout and a grace
is *missing*; if it comes then, it is *late*.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from pelotontx.cli.load.histogram import Histogram
from pelotontx.cli.load.ledger import GRACE_S, Refusals, sequence_number
from pelotontx.wire import juggler

# Of one subscriber; past it the oldest are forgotten, and an event of them counts as a duplicate.
_GAPS: Final = 10_000


@dataclass(slots=True)
class EventCounts:
    """How many there were of what, since the first one was published."""

    sent: int = 0  # PUBs
    acks: int = 0
    refused: int = 0
    lost: int = 0  # PUBs without any answer
    expected: int = 0  # events: ACKed PUBs times their subscribers
    received: int = 0  # of those
    missing: int = 0
    late: int = 0
    duplicates: int = 0
    reordered: int = 0
    strays: int = 0
    unfinished: int = 0  # events under way when the run was interrupted

    def as_dict(self) -> dict[str, int]:
        """For the report."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class Publication:
    """One event under way.

    Attributes:
        due_s: when it was to be published; latency counts from here.
        sent_s: when it was.
        subscribers: how many should get it.
        awaited: how many have not yet.
        is_acked: its ACK has come.
    """

    __slots__ = ("awaited", "due_s", "is_acked", "sent_s", "subscribers")

    def __init__(self, due_s: float, sent_s: float, subscribers: int) -> None:
        self.due_s = due_s
        self.sent_s = sent_s
        self.subscribers = self.awaited = subscribers
        self.is_acked = False


@dataclass(slots=True, eq=False)
class Publisher:
    """Who publishes; `prefix`, `sent` and `pending` as in `ledger.Sender`."""

    prefix: str
    sent: int = 0
    pending: dict[str, Publication] = field(default_factory=dict)

    def next_channel(self, channels: int) -> int:
        """The number of the channel that the next event goes to."""
        return (self.sent + 1) % channels


@dataclass(slots=True, eq=False)
class Subscriber:
    """Who gets the events of one channel.

    Attributes:
        channel: its number.
        last: by publisher's prefix, the count in the newest event.
        gaps: events that were overtaken, or never came: prefix and count.
    """

    channel: int
    last: dict[str, int] = field(default_factory=dict)
    gaps: dict[tuple[str, int], None] = field(default_factory=dict)


class EventLedger:
    """The book of all events of a run.

    Args:
        timeout_s: how long an event may take.
        channels: how many there are.

    Attributes:
        counts, refusals, latencies, measures_from_s, last_result_s: as in `ledger.CallLedger`; the
            latency is from publishing to receipt.
        subscribers: how many each channel has.
    """

    def __init__(self, *, timeout_s: float, channels: int) -> None:
        self.counts = EventCounts()
        self.refusals = Refusals()
        self.latencies = Histogram()
        self.measures_from_s = float("inf")
        self.last_result_s = 0.0
        self.subscribers = [0] * channels
        self._publishers: dict[str, Publisher] = {}
        self._time_s = timeout_s + GRACE_S

    def join(self, subscriber: Subscriber) -> None:
        """A subscription is in place."""
        self.subscribers[subscriber.channel] += 1

    def leave(self, subscriber: Subscriber) -> None:
        """A subscriber is gone: nothing that is published from now on is expected of it."""
        self.subscribers[subscriber.channel] -= 1

    def begin(self, publisher: Publisher, due_s: float, now_s: float) -> str:
        """Notes an event that is published now; the result is its id."""
        self._publishers[publisher.prefix] = publisher
        publisher.sent += 1
        uuid = f"{publisher.prefix}{publisher.sent:012x}"
        subscribers = self.subscribers[publisher.sent % len(self.subscribers)]
        publisher.pending[uuid] = Publication(due_s, now_s, subscribers)
        self.counts.sent += 1
        return uuid

    def received(self, publisher: Publisher, message: juggler.Message, now_s: float) -> int:
        """Notes the answer to a PUB; the result is how many it has answered, 0 or 1."""
        type_, payload = message.meta.type, message.payload
        publication = publisher.pending.get(payload.for_)
        if type_ not in (juggler.ACK, juggler.NACK):
            self.counts.strays += 1
        elif publication is None:
            if sequence_number(payload.for_, publisher.prefix, publisher.sent):
                self.counts.late += 1
            else:
                self.counts.strays += 1
        elif publication.is_acked:
            self.counts.duplicates += 1
        elif type_ == juggler.ACK:
            publication.is_acked = True
            self.counts.acks += 1
            self.counts.expected += publication.subscribers
            if not publication.awaited:
                del publisher.pending[payload.for_]
            return 1
        else:
            del publisher.pending[payload.for_]
            self.counts.refused += 1
            self.refusals.add(payload.code, payload.message)
            return 1
        return 0

    def event(self, subscriber: Subscriber, uuid: str, now_s: float) -> None:
        """Notes an event that a subscriber got; `uuid` is its PUB's."""
        prefix = uuid[:24]
        publisher = self._publishers.get(prefix)
        number = sequence_number(uuid, prefix, publisher.sent) if publisher is not None else 0
        if publisher is None or not number or number % len(self.subscribers) != subscriber.channel:
            self.counts.strays += 1
            return
        if not self._is_new(subscriber, prefix, number):
            return
        publication = publisher.pending.get(uuid)
        if publication is None:
            self.counts.late += 1
            return
        self.counts.received += 1
        publication.awaited -= 1
        if publication.due_s >= self.measures_from_s:
            self.latencies.record(now_s - publication.due_s)
            self.last_result_s = now_s
        if not publication.awaited and publication.is_acked:
            del publisher.pending[uuid]

    def _is_new(self, subscriber: Subscriber, prefix: str, number: int) -> bool:
        channels = len(self.subscribers)
        # The first event of a channel has its own number; that of channel 0 the number of channels.
        last = subscriber.last.get(prefix, subscriber.channel - (subscriber.channel > 0) * channels)
        if number > last:
            if number > last + channels:
                self._note_gap(subscriber, prefix, range(last + channels, number, channels))
            subscriber.last[prefix] = number
            return True
        if subscriber.gaps.pop((prefix, number), 0) is None:
            self.counts.reordered += 1
            return True
        self.counts.duplicates += 1
        return False

    @staticmethod
    def _note_gap(subscriber: Subscriber, prefix: str, numbers: range) -> None:
        gaps = subscriber.gaps
        for number in numbers[-_GAPS:]:
            gaps[prefix, number] = None
        while len(gaps) > _GAPS:
            del gaps[next(iter(gaps))]

    def expire(self, publisher: Publisher, now_s: float) -> int:
        """Ends what is past its time; the result is how many PUBs had no answer."""
        oldest_s = now_s - self._time_s
        over = []
        for uuid, publication in publisher.pending.items():
            if publication.sent_s > oldest_s:
                break
            over.append(uuid)
        lost = 0
        for uuid in over:
            publication = publisher.pending.pop(uuid)
            if publication.is_acked:
                self.counts.missing += publication.awaited
            else:
                self.counts.lost += 1
                lost += 1
        return lost

    def disconnected(self, publisher: Publisher) -> None:
        """What was not answered on a connection that is gone; ACKed events are still awaited."""
        unanswered = [uuid for uuid, item in publisher.pending.items() if not item.is_acked]
        for uuid in unanswered:
            del publisher.pending[uuid]
        self.counts.lost += len(unanswered)

    def interrupted(self, publisher: Publisher) -> None:
        """Leaves what is under way."""
        self.counts.unfinished += sum(item.awaited for item in publisher.pending.values())
        publisher.pending.clear()
