from itertools import pairwise

import msgspec
import pytest
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.cli.load.events import EventLedger, Publisher, Subscriber
from pelotontx.cli.load.histogram import Histogram
from pelotontx.cli.load.ledger import GRACE_S, CallLedger, Refusals, Sender
from pelotontx.wire.juggler import ACK, EVNT, NACK, RES, Message, Meta, Payload

PREFIX = "00000000-0000-4000-8000-"


def answer(type_, uuid, args=b"1", code=500, text="no"):
    payload = Payload(for_=uuid, args=msgspec.Raw(args), code=code, message=text)
    return Message(Meta(type_, f"{PREFIX}ffffffffffff"), payload)


class TestHistogram:
    def test_a_value_is_kept_to_one_percent(self):
        value_us = 1
        while value_us < 3_600_000_000:
            histogram = Histogram()
            histogram.record(value_us / 1e6)
            # Others outside, so that the extremes do not help.
            histogram.record(0.0)
            histogram.record(3700.0)
            kept_us = histogram.quantile_s(0.5) * 1e6
            assert abs(kept_us - value_us) <= max(1, value_us / 100)
            value_us = value_us * 9 // 8 + 1

    def test_quantiles_extremes_and_mean(self):
        histogram = Histogram()
        for milliseconds in range(1, 1001):
            histogram.record(milliseconds / 1000)
        assert histogram.quantile_s(0.5) == pytest.approx(0.5, rel=0.01)
        assert histogram.quantile_s(0.99) == pytest.approx(0.99, rel=0.01)
        assert histogram.quantile_s(0.999) == pytest.approx(0.999, rel=0.01)
        assert histogram.quantile_s(1.0) == 1.0
        assert (histogram.least_s, histogram.most_s) == (0.001, 1.0)
        assert histogram.mean_s == pytest.approx(0.5005)

    def test_nothing_recorded_is_zero_everywhere(self):
        histogram = Histogram()
        assert (histogram.quantile_s(0.99), histogram.mean_s, histogram.most_s) == (0.0, 0.0, 0.0)
        assert list(histogram.rows()) == []

    def test_longest_and_negative_times_are_counted(self):
        histogram = Histogram()
        histogram.record(-0.001)
        histogram.record(1e6)
        assert (histogram.count, histogram.least_s, histogram.most_s) == (2, -0.001, 1e6)
        assert histogram.quantile_s(1.0) == pytest.approx(3600, rel=0.01)

    def rows_of(self, *times_s):
        histogram = Histogram()
        for seconds in times_s:
            histogram.record(seconds)
        return [(round(a * 1e3, 4), round(b * 1e3, 4), n) for a, b, n in histogram.rows()]

    def test_rows_are_fine_where_values_are_near_each_other(self):
        assert self.rows_of(0.0101, 0.0102, 0.0125) == [(10, 11, 2), (11, 12, 0), (12, 13, 1)]

    def test_rows_are_coarse_where_they_are_not(self):
        rows = self.rows_of(0.0012, 0.0013, 0.3)
        assert (rows[0], rows[-1]) == ((1, 1.5, 2), (220, 330, 1))
        assert all(left[1] == right[0] for left, right in pairwise(rows))
        rows = self.rows_of(-1.0, 0.0000005, 1e7)
        assert (rows[0], rows[-1][2]) == ((0, 0.001, 2), 1)


class CallLedgerTests(SynchronousTestCase):
    def setUp(self):
        self.ledger = CallLedger(timeout_s=1.0)
        self.ledger.measures_from_s = 0.0
        self.sender = Sender(PREFIX)

    def begin(self, now_s=0.0, due_s=None):
        return self.ledger.begin(self.sender, now_s if due_s is None else due_s, now_s)

    def receive(self, type_, uuid, now_s=0.5, **more):
        return self.ledger.received(self.sender, answer(type_, uuid, **more), now_s)

    def check(self, **counts):
        """These, and nothing but these."""
        found = {name: count for name, count in self.ledger.counts.as_dict().items() if count}
        self.assertEqual(found, counts)

    def test_ids_are_uuids_and_differ(self):
        self.assertEqual(self.begin(), f"{PREFIX}000000000001")
        self.assertEqual(self.begin(), f"{PREFIX}000000000002")

    def test_ack_and_result_end_a_call_once(self):
        uuid = self.begin()
        self.assertEqual(self.receive(ACK, uuid), 0)
        self.assertEqual(self.receive(RES, uuid), 1)
        self.assertEqual(self.ledger.expire(self.sender, 100.0), 0)
        self.check(sent=1, acks=1, results=1)

    def test_result_before_its_ack_counts_and_the_ack_is_awaited(self):
        uuid = self.begin()
        self.assertEqual(self.receive(RES, uuid), 1)
        self.assertEqual(len(self.sender.pending), 1)
        self.assertEqual(self.receive(ACK, uuid), 0)
        self.assertEqual(self.sender.pending, {})
        self.check(sent=1, acks=1, results=1, early=1)

    def test_result_whose_ack_never_comes_is_told(self):
        uuid = self.begin()
        self.receive(RES, uuid)
        self.assertEqual(self.ledger.expire(self.sender, 1.0 + GRACE_S), 0)
        self.check(sent=1, results=1, early=1, unacked=1)

    def test_refusal_ends_a_call_and_is_not_a_loss(self):
        uuid = self.begin()
        self.assertEqual(self.receive(NACK, uuid, code=429, text="too many"), 1)
        self.check(sent=1, refused=1)
        self.assertEqual(self.ledger.refusals.most_common(), [(429, "too many", 1)])

    def test_callee_that_fails_is_a_result(self):
        uuid = self.begin()
        self.receive(ACK, uuid)
        self.receive(RES, uuid, args=b'{"error":{"message":"broken"}}')
        self.check(sent=1, acks=1, results=1, failed=1)

    def test_acked_call_expires_at_its_timeout(self):
        self.receive(ACK, self.begin())
        self.assertEqual(self.ledger.expire(self.sender, 0.999), 0)
        self.assertEqual(self.ledger.expire(self.sender, 1.0), 1)
        self.check(sent=1, acks=1, expired=1)

    def test_call_without_any_answer_is_lost_after_the_grace(self):
        self.begin()
        self.assertEqual(self.ledger.expire(self.sender, 0.999 + GRACE_S), 0)
        self.assertEqual(self.ledger.expire(self.sender, 1.0 + GRACE_S), 1)
        self.check(sent=1, lost=1)

    def test_timeout_counts_from_the_sending_not_from_when_it_was_due(self):
        self.receive(ACK, self.begin(now_s=5.0, due_s=0.0))
        self.assertEqual(self.ledger.expire(self.sender, 5.9), 0)

    def test_late_result_is_no_duplicate(self):
        uuid = self.begin()
        self.receive(ACK, uuid)
        self.ledger.expire(self.sender, 1.0)
        self.assertEqual(self.receive(RES, uuid), 0)
        self.check(sent=1, acks=1, expired=1, late=1)

    def test_second_answers_are_duplicates(self):
        one, two, three = self.begin(), self.begin(), self.begin()
        for type_, uuid in ((ACK, one), (RES, one), (RES, one), (ACK, two), (ACK, two)):
            self.receive(type_, uuid)
        self.receive(NACK, two)
        self.receive(RES, three)
        self.receive(RES, three)
        self.check(sent=3, acks=2, results=2, early=1, duplicates=4)

    def test_answers_to_what_was_never_sent_are_strays(self):
        self.begin()
        for uuid in (f"{PREFIX}000000000002", "other", f"{PREFIX}zzzzzzzzzzzz", f"{PREFIX}0"):
            self.receive(RES, uuid)
        self.receive(EVNT, f"{PREFIX}000000000001")
        self.check(sent=1, strays=5)

    def test_calls_in_flight_on_a_lost_connection_are_lost(self):
        uuids = [self.begin() for _ in range(3)]
        self.receive(ACK, uuids[0])
        self.receive(RES, uuids[1])
        self.ledger.disconnected(self.sender)
        self.check(sent=3, acks=1, results=1, early=1, lost=2, unacked=1)
        self.assertEqual(self.sender.pending, {})

    def test_interrupted_calls_are_not_lost(self):
        self.begin()
        self.ledger.interrupted(self.sender)
        self.check(sent=1, unfinished=1)

    def test_latency_counts_from_when_a_call_was_due(self):
        uuid = self.begin(now_s=0.4, due_s=0.1)
        self.receive(ACK, uuid, 0.5)
        self.receive(RES, uuid, 0.6)
        self.assertAlmostEqual(self.ledger.latencies.most_s, 0.5)
        self.assertEqual(self.ledger.last_result_s, 0.6)

    def test_calls_of_the_warm_up_count_but_have_no_latency(self):
        self.ledger.measures_from_s = 1.0
        for due_s in (0.9, 1.0):
            uuid = self.begin(due_s)
            self.receive(ACK, uuid, 1.1)
            self.receive(RES, uuid, 1.1)
        self.assertEqual(self.ledger.latencies.count, 1)
        self.check(sent=2, acks=2, results=2)

    def test_kinds_of_refusals_are_bounded(self):
        refusals = Refusals()
        for number in range(1000):
            refusals.add(500, f"number {number}")
        kinds = refusals.most_common()
        self.assertLess(len(kinds), 60)
        self.assertEqual(sum(count for _, _, count in kinds), 1000)


class EventLedgerTests(SynchronousTestCase):
    def setUp(self):
        self.make(channels=1, subscribers=2)

    def make(self, *, channels, subscribers):
        self.ledger = EventLedger(timeout_s=1.0, channels=channels)
        self.ledger.measures_from_s = 0.0
        self.publisher = Publisher(PREFIX)
        self.subscribers = [Subscriber(number % channels) for number in range(subscribers)]
        for subscriber in self.subscribers:
            self.ledger.join(subscriber)

    def publish(self, answered=ACK):
        uuid = self.ledger.begin(self.publisher, 0.0, 0.0)
        if answered:
            self.assertEqual(self.ledger.received(self.publisher, answer(answered, uuid), 0.1), 1)
        return uuid

    def event(self, uuid, *numbers, now_s=0.2):
        for number in numbers or range(len(self.subscribers)):
            self.ledger.event(self.subscribers[number], uuid, now_s)

    def check(self, **counts):
        found = {name: count for name, count in self.ledger.counts.as_dict().items() if count}
        self.assertEqual(found, counts)

    def test_event_for_every_subscriber(self):
        self.event(self.publish())
        self.check(sent=1, acks=1, expected=2, received=2)
        self.assertEqual(self.publisher.pending, {})
        self.assertAlmostEqual(self.ledger.latencies.most_s, 0.2)

    def test_event_may_come_before_the_ack(self):
        uuid = self.publish(answered=None)
        self.event(uuid)
        self.ledger.received(self.publisher, answer(ACK, uuid), 0.3)
        self.check(sent=1, acks=1, expected=2, received=2)
        self.assertEqual(self.publisher.pending, {})

    def test_event_that_one_did_not_get_is_missing(self):
        uuid = self.publish()
        self.event(uuid, 0)
        self.ledger.expire(self.publisher, 0.9 + GRACE_S)
        self.check(sent=1, acks=1, expected=2, received=1)
        self.ledger.expire(self.publisher, 1.0 + GRACE_S)
        self.check(sent=1, acks=1, expected=2, received=1, missing=1)
        self.event(uuid, 1, now_s=9.0)
        self.check(sent=1, acks=1, expected=2, received=1, missing=1, late=1)

    def test_second_copy_is_a_duplicate(self):
        uuid = self.publish()
        self.event(uuid, 0, 0, 1, 1)
        self.check(sent=1, acks=1, expected=2, received=2, duplicates=2)

    def test_overtaken_event_is_out_of_order_not_missing(self):
        first, second, third = self.publish(), self.publish(), self.publish()
        self.event(second, 0)
        self.event(third, 0)
        self.event(first, 0, 0)
        for uuid in (first, second, third):
            self.event(uuid, 1)
        self.check(sent=3, acks=3, expected=6, received=6, reordered=1, duplicates=1)

    def test_refused_event_is_not_expected(self):
        self.publish(answered=NACK)
        self.event(self.publish())
        self.ledger.expire(self.publisher, 100.0)
        self.check(sent=2, acks=1, refused=1, expected=2, received=2)

    def test_publication_without_an_answer_is_lost(self):
        self.publish(answered=None)
        self.assertEqual(self.ledger.expire(self.publisher, 1.0 + GRACE_S), 1)
        self.check(sent=1, lost=1)

    def test_each_channel_has_its_own_order(self):
        self.make(channels=3, subscribers=3)
        for _ in range(7):
            uuid = self.publish()
            self.event(uuid, self.publisher.sent % 3)
        self.check(sent=7, acks=7, expected=7, received=7)

    def test_first_event_that_is_missing_is_noticed_as_a_gap(self):
        self.make(channels=3, subscribers=3)
        uuids = [self.publish() for _ in range(6)]
        # Numbers 3 and 6 go to channel 0.
        self.event(uuids[5], 0)
        self.event(uuids[2], 0)
        self.assertEqual(self.ledger.counts.reordered, 1)

    def test_event_of_another_channel_or_of_nobody_is_a_stray(self):
        self.make(channels=2, subscribers=2)
        uuid = self.publish()  # number 1: channel 1
        self.event(uuid, 0)
        self.event("elsewhere", 0)
        self.event(f"{PREFIX}000000000009", 0)
        self.check(sent=1, acks=1, expected=1, strays=3)

    def test_nothing_is_expected_of_a_subscriber_that_is_gone(self):
        self.ledger.leave(self.subscribers[1])
        self.event(self.publish(), 0)
        self.check(sent=1, acks=1, expected=1, received=1)

    def test_acked_events_are_awaited_though_their_publisher_is_gone(self):
        uuid = self.publish()
        self.publish(answered=None)
        self.ledger.disconnected(self.publisher)
        self.event(uuid)
        self.check(sent=2, acks=1, lost=1, expected=2, received=2)

    def test_gaps_are_bounded(self):
        self.publisher.sent = 1_000_000
        uuid = self.publish()
        self.event(uuid, 0)
        self.assertLessEqual(len(self.subscribers[0].gaps), 10_000)
