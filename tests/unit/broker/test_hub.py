from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.hub import Event, Hub, PendingCall
from pelotontx.broker.interface import CallStored, History, Position
from pelotontx.errors import BrokerError, BrokerUnavailable, QueueFull
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler


class RecordingBroker:
    """A caller and pub/sub side that answers when the test says so."""

    available = True
    conn_uuid = "c"
    on_result: Any
    on_event: Any

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes, int, CallStored]] = []
        self.subscribed: list[tuple[str, bool, Deferred[None]]] = []
        self.unsubscribed: list[tuple[str, bool]] = []

    def start(self) -> None: ...

    def stop(self) -> Deferred[None]:
        raise AssertionError("not here")

    def store_call(
        self, uri: str, msg_uuid: str, args: bytes, timeout_ms: int, stored: CallStored
    ) -> None:
        self.calls.append((uri, msg_uuid, args, timeout_ms, stored))

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        raise AssertionError("not here")

    def subscribe(self, channel: str, *, pattern: bool) -> Deferred[None]:
        result: Deferred[None] = Deferred()
        self.subscribed.append((channel, pattern, result))
        return result

    def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        self.unsubscribed.append((channel, pattern))

    def history(self, channel: str, since: Position | None, limit: int) -> Deferred[History]:
        raise AssertionError("not here")


class RecordingOwner:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def call_stored(self, call: PendingCall) -> None:
        self.told.append(("stored", call.request))

    def call_refused(self, call: PendingCall, error: BrokerError) -> None:
        self.told.append(("refused", call.request, type(error)))

    def call_answered(self, call: PendingCall, args: bytes) -> None:
        self.told.append(("answered", call.request, args))

    def call_expired(self, call: PendingCall) -> None:
        self.told.append(("expired", call.request))

    def event(self, event: Event) -> None:
        self.told.append(("event", event.channel, event.pattern, event.args))


class HubTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = RecordingBroker()
        self.hub = Hub(caller=self.broker, pubsub=self.broker, wheel=Wheel(self.clock))
        self.owner = RecordingOwner()

    def call(self, request: str = "r", timeout_s: float = 1.0) -> str:
        self.hub.call(self.owner, request, uri="u", args=b"1", timeout_s=timeout_s)
        return self.broker.calls[-1][1]

    def event(self, channel: str, pattern: str | None = None) -> None:
        self.broker.on_event(channel, pattern, juggler.encode_event_payload("m", b"7"))

    def test_a_call_is_stored_and_then_answered(self) -> None:
        msg_uuid = self.call()
        uri, _, args, timeout_ms, stored = self.broker.calls[0]
        self.assertEqual((uri, args, timeout_ms), ("u", b"1", 1000))
        stored(None)
        self.broker.on_result(msg_uuid, b"2")
        self.assertEqual(self.owner.told, [("stored", "r"), ("answered", "r", b"2")])
        self.assertEqual(self.hub.pending_calls, 0)

    def test_a_result_that_overtakes_the_brokers_word_comes_after_stored(self) -> None:
        msg_uuid = self.call()
        self.broker.on_result(msg_uuid, b"2")
        self.broker.calls[0][4](None)
        self.assertEqual(self.owner.told, [("stored", "r"), ("answered", "r", b"2")])

    def test_same_request_twice_has_two_ids_on_the_broker(self) -> None:
        self.assertNotEqual(self.call(), self.call())

    def test_refused_call_is_forgotten(self) -> None:
        msg_uuid = self.call()
        self.broker.calls[0][4](QueueFull("u"))
        self.broker.on_result(msg_uuid, b"2")
        self.assertEqual(self.owner.told, [("refused", "r", QueueFull)])
        self.assertEqual(self.hub.pending_calls, 0)

    def test_expired_call_drops_its_late_result(self) -> None:
        msg_uuid = self.call()
        self.broker.calls[0][4](None)
        self.clock.advance(1.2)
        self.broker.on_result(msg_uuid, b"2")
        self.assertEqual(self.owner.told, [("stored", "r"), ("expired", "r")])

    def test_call_that_the_broker_never_confirms_is_refused_in_time(self) -> None:
        self.call()
        self.clock.advance(1.2)
        self.broker.calls[0][4](None)
        self.assertEqual(self.owner.told, [("refused", "r", BrokerUnavailable)])

    def test_second_result_of_a_call_is_dropped(self) -> None:
        msg_uuid = self.call()
        self.broker.on_result(msg_uuid, b"2")
        self.broker.on_result(msg_uuid, b"3")
        self.assertEqual(len(self.owner.told), 2)

    def test_calls_past_the_pending_limit_are_refused(self) -> None:
        self.hub = Hub(
            caller=self.broker, pubsub=self.broker, wheel=Wheel(self.clock), pending_limit=1
        )
        first = self.call()
        self.hub.call(self.owner, "too many", uri="u", args=b"", timeout_s=1)
        self.assertEqual(self.owner.told, [("refused", "too many", QueueFull)])
        self.broker.on_result(first, b"1")
        self.call("again")
        self.assertEqual(len(self.broker.calls), 2)

    def test_giving_up_answers_stored_calls_and_refuses_the_others(self) -> None:
        self.call("stored")
        self.broker.calls[0][4](None)
        self.call("not yet")
        self.hub.give_up("over")
        self.assertEqual(
            self.owner.told,
            [
                ("stored", "stored"),
                ("answered", "stored", b'{"error":{"message":"over"}}'),
                ("refused", "not yet", BrokerUnavailable),
            ],
        )

    def test_no_subscription_is_confirmed_while_no_events_come_in(self) -> None:
        self.hub.subscribe(self.owner, "c", pattern=False)
        self.broker.subscribed[0][2].callback(None)
        self.broker.available = False
        other = RecordingOwner()
        self.failureResultOf(self.hub.subscribe(other, "c", pattern=False), BrokerUnavailable)

    def test_two_listeners_share_one_subscription(self) -> None:
        other = RecordingOwner()
        first = self.hub.subscribe(self.owner, "c", pattern=False)
        second = self.hub.subscribe(other, "c", pattern=False)
        self.assertEqual(len(self.broker.subscribed), 1)
        self.assertNoResult(first)
        self.broker.subscribed[0][2].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.event("c")
        self.assertEqual(self.owner.told, [("event", "c", None, b"7")])
        self.assertEqual(other.told, self.owner.told)
        self.hub.unsubscribe(self.owner, "c", pattern=False)
        self.assertEqual(self.broker.unsubscribed, [])
        self.hub.unsubscribe(other, "c", pattern=False)
        self.assertEqual(self.broker.unsubscribed, [("c", False)])
        self.assertEqual(self.hub.topics, 0)

    def test_no_event_before_the_subscription_is_confirmed(self) -> None:
        self.hub.subscribe(self.owner, "c", pattern=False)
        self.event("c")
        self.assertEqual(self.owner.told, [])

    def test_plain_and_pattern_get_an_event_each(self) -> None:
        for name, pattern in (("c", False), ("c*", True)):
            self.hub.subscribe(self.owner, name, pattern=pattern)
            self.broker.subscribed[-1][2].callback(None)
        self.event("c")
        self.event("c", "c*")
        self.assertEqual(self.owner.told, [("event", "c", None, b"7"), ("event", "c", "c*", b"7")])

    def test_failed_subscription_fails_all_who_wait_and_can_be_tried_again(self) -> None:
        first = self.hub.subscribe(self.owner, "c", pattern=False)
        again = self.hub.subscribe(self.owner, "c", pattern=False)
        self.broker.subscribed[0][2].errback(BrokerUnavailable("down"))
        self.failureResultOf(first, BrokerUnavailable)
        self.failureResultOf(again, BrokerUnavailable)
        self.hub.subscribe(self.owner, "c", pattern=False)
        self.assertEqual(len(self.broker.subscribed), 2)

    def test_a_broker_that_fails_at_once_fails_the_subscription(self) -> None:
        self.broker.subscribe = lambda *_, **__: fail(  # type: ignore[method-assign]
            BrokerUnavailable("down")
        )
        self.failureResultOf(self.hub.subscribe(self.owner, "c", pattern=False), BrokerUnavailable)
        self.assertEqual(self.hub.topics, 0)

    def test_unsubscribing_before_the_confirmation_leaves_no_listener(self) -> None:
        waiting = self.hub.subscribe(self.owner, "c", pattern=False)
        self.hub.unsubscribe(self.owner, "c", pattern=False)
        self.successResultOf(waiting)
        self.broker.subscribed[0][2].callback(None)
        self.event("c")
        self.assertEqual(self.owner.told, [])
        self.assertEqual(self.broker.unsubscribed, [("c", False)])

    def test_who_unsubscribes_when_told_takes_nothing_from_those_told_later(self) -> None:
        later = RecordingOwner()
        told = self.hub.subscribe(self.owner, "c", pattern=False)
        told.addCallback(lambda _: self.hub.unsubscribe(self.owner, "c", pattern=False))
        self.hub.subscribe(later, "c", pattern=False)
        self.broker.subscribed[0][2].callback(None)
        self.event("c")
        self.assertEqual(later.told, [("event", "c", None, b"7")])
        self.assertEqual((self.owner.told, self.broker.unsubscribed), ([], []))

    def test_what_is_no_event_is_dropped(self) -> None:
        self.hub.subscribe(self.owner, "c", pattern=False)
        self.broker.subscribed[0][2].callback(None)
        for payload in (b"hello", b'{"msg_uuid":"m","args":1e999}', b"\xff", b"[]"):
            self.broker.on_event("c", None, payload)
        self.assertEqual(self.owner.told, [])
