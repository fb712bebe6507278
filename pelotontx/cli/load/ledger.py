"""What became of each call: every one is noted before it is sent, and ends in one way.

A call of a client in this protocol ends with NACK (refused), with RES (a result), or by the
client's own clock: the server sends nothing when a call expires. So for the ledger

- a call is *expired* when it was ACKed and its timeout has passed without a RES;
- it is *lost* when neither ACK, NACK nor RES came in its timeout and a grace, or when its
  connection went away first: nobody can tell what became of it;
- a RES that comes after that is *late*; a second answer to one call is a *duplicate*; an answer to
  what was never sent is a *stray*; a RES may come before its ACK, but one without is *unACKed*.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec

from pelotontx.cli.load.histogram import Histogram
from pelotontx.wire import juggler

#: Past its timeout a call may still be ACKed for so long: a busy server, a slow way back.
GRACE_S: Final = 1.0

# Ended calls that are remembered to tell a late answer from a duplicate; the oldest go first.
_REMEMBERED: Final = 100_000
# Of the first error's text.
_ERROR_CHARS: Final = 200
# Kinds of refusals that are told apart; a server that puts a number into each would fill memory.
_KINDS: Final = 50


@dataclass(slots=True)
class Counts:
    """How many there were of what, since the first one was sent; see the top of this module."""

    sent: int = 0
    acks: int = 0
    refused: int = 0
    results: int = 0
    failed: int = 0  # results that tell of the callee's failure
    early: int = 0  # results before their ACK
    expired: int = 0
    lost: int = 0
    late: int = 0
    duplicates: int = 0
    strays: int = 0
    unacked: int = 0
    unfinished: int = 0  # in flight when the run was interrupted

    def as_dict(self) -> dict[str, int]:
        """For the report."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class Refusals:
    """The NACKs by code and text."""

    def __init__(self) -> None:
        self._kinds: Counter[tuple[int, str]] = Counter()

    def add(self, code: int, text: str) -> None:
        """Counts one; past so many kinds its text is left out."""
        kind = (code, text[:100])
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = (code, "(others)")
        self._kinds[kind] += 1

    def most_common(self) -> list[tuple[int, str, int]]:
        """Code, text and count, the most frequent first."""
        return [(code, text, count) for (code, text), count in self._kinds.most_common()]


class Call:
    """One call in flight.

    Attributes:
        due_s: when it was to be sent; latency counts from here.
        sent_s: when it was sent; its timeout counts from here.
        is_acked: its ACK has come.
        is_answered: its RES has come, before its ACK.
    """

    __slots__ = ("due_s", "is_acked", "is_answered", "sent_s")

    def __init__(self, due_s: float, sent_s: float) -> None:
        self.due_s = due_s
        self.sent_s = sent_s
        self.is_acked = False
        self.is_answered = False


@dataclass(slots=True, eq=False)
class Sender:
    """Who sends calls: one connection's book.

    Attributes:
        prefix: the first 24 characters of its messages' ids; the rest is a count from 1.
        sent: how many it has sent.
        pending: what is in flight, oldest first.
    """

    prefix: str
    sent: int = 0
    pending: dict[str, Call] = field(default_factory=dict)

    def next_id(self) -> str:
        """An id for the next message."""
        self.sent += 1
        return f"{self.prefix}{self.sent:012x}"

    def has_sent(self, uuid: str) -> bool:
        """Whether an id is one that `next_id` has given."""
        return sequence_number(uuid, self.prefix, self.sent) != 0


def sequence_number(uuid: str, prefix: str, sent: int) -> int:
    """The count in an id with this prefix; 0 if it is none of the first `sent`."""
    if uuid[:24] != prefix:
        return 0
    try:
        number = int(uuid[24:], 16)
    except ValueError:
        return 0
    return number if number <= sent else 0


class CallLedger:
    """The book of all calls of a run.

    Args:
        timeout_s: of each call.

    Attributes:
        counts: everything since the start.
        latencies: from `due_s` to RES, of the calls that were due while `measures_from_s` is past.
        measures_from_s: earlier calls only warm up; they count, but their times do not.
        last_result_s: when the last of the measured results came.
        first_error: what the first result said that told of a failure; empty for none.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self.counts = Counts()
        self.first_error = ""
        self.refusals = Refusals()
        self.latencies = Histogram()
        self.measures_from_s = float("inf")
        self.last_result_s = 0.0
        self._timeout_s = timeout_s
        self._ended: OrderedDict[str, None] = OrderedDict()

    def begin(self, sender: Sender, due_s: float, now_s: float) -> str:
        """Notes a call that is sent now; the result is its id."""
        uuid = sender.next_id()
        sender.pending[uuid] = Call(due_s, now_s)
        self.counts.sent += 1
        return uuid

    def received(self, sender: Sender, message: juggler.Message, now_s: float) -> int:
        """Notes an answer; the result is how many calls it has ended, 0 or 1."""
        type_, payload = message.meta.type, message.payload
        call = sender.pending.get(payload.for_)
        if type_ == juggler.EVNT:
            self.counts.strays += 1
        elif call is None:
            self._not_pending(sender, payload.for_)
        elif type_ == juggler.RES:
            return self._result(sender, call, payload, now_s)
        elif type_ == juggler.ACK:
            self._acknowledged(sender, call, payload.for_)
        elif call.is_acked or call.is_answered:
            self.counts.duplicates += 1  # a NACK of what was not refused
        else:
            del sender.pending[payload.for_]
            self.counts.refused += 1
            self.refusals.add(payload.code, payload.message)
            return 1
        return 0

    def _result(self, sender: Sender, call: Call, payload: juggler.Payload, now_s: float) -> int:
        counts = self.counts
        if call.is_answered:
            counts.duplicates += 1
            return 0
        if call.is_acked:
            del sender.pending[payload.for_]
        else:
            call.is_answered = True
            counts.early += 1
        counts.results += 1
        if bytes(payload.args).startswith(b'{"error":'):
            counts.failed += 1
            self.first_error = self.first_error or _error_text(bytes(payload.args))
        if call.due_s >= self.measures_from_s:
            self.latencies.record(now_s - call.due_s)
            self.last_result_s = now_s
        return 1

    def _acknowledged(self, sender: Sender, call: Call, uuid: str) -> None:
        if call.is_acked:
            self.counts.duplicates += 1
            return
        call.is_acked = True
        self.counts.acks += 1
        if call.is_answered:
            del sender.pending[uuid]

    def _not_pending(self, sender: Sender, uuid: str) -> None:
        if not sender.has_sent(uuid):
            self.counts.strays += 1
        elif uuid in self._ended:
            self.counts.late += 1
        else:
            self.counts.duplicates += 1

    def expire(self, sender: Sender, now_s: float) -> int:
        """Ends what is past its time; the result is how many calls that were in flight."""
        oldest_s = now_s - self._timeout_s
        over = []
        for uuid, call in sender.pending.items():
            if call.sent_s > oldest_s:
                break
            if call.is_acked or call.sent_s <= oldest_s - GRACE_S:
                over.append(uuid)
        ended = 0
        for uuid in over:
            call = sender.pending.pop(uuid)
            if call.is_answered:
                self.counts.unacked += 1
                continue
            if call.is_acked:
                self.counts.expired += 1
            else:
                self.counts.lost += 1
            self._remember(uuid)
            ended += 1
        return ended

    def disconnected(self, sender: Sender) -> None:
        """Ends what was in flight on a connection that is gone."""
        for call in sender.pending.values():
            if call.is_answered:
                self.counts.unacked += 1
            else:
                self.counts.lost += 1
        sender.pending.clear()

    def interrupted(self, sender: Sender) -> None:
        """Leaves what is in flight: whoever runs this did not want to wait for it."""
        self.counts.unfinished += len(sender.pending)
        sender.pending.clear()

    def _remember(self, uuid: str) -> None:
        self._ended[uuid] = None
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)


def _error_text(encoded: bytes) -> str:
    """The message of an error; all of it when it has none."""
    try:
        text = str(msgspec.json.decode(encoded)["error"]["message"])
    except (msgspec.DecodeError, UnicodeError, LookupError, TypeError):
        text = encoded.decode(errors="replace")
    return text[:_ERROR_CHARS]
