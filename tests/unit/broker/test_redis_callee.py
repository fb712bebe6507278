from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.redis_callee import RedisCallee
from pelotontx.errors import BrokerUnavailable
from pelotontx.wire import juggler


class Connection:
    """Keeps the pops that it is sent."""

    is_lost = False

    def __init__(self) -> None:
        self.pops: list[tuple[Callable[[Any], None], tuple[Any, ...]]] = []

    def execute_command(self, *command: Any) -> Deferred[int]:
        return succeed(7)

    def send(self, on_reply: Callable[[Any], None], *command: Any) -> None:
        self.pops.append((on_reply, command))


class Link:
    def __init__(self, on_up: Any) -> None:
        self.connection: Connection | None = None
        self._on_up = on_up

    def start(self) -> None: ...

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def up(self) -> Connection:
        connection = Connection()
        Deferred.fromCoroutine(self._on_up(connection))
        self.connection = connection
        return connection


class Cluster:
    """A client to which each URI is a slot of its own."""

    def __init__(self) -> None:
        self.links: dict[str | None, Link] = {}
        self.down: set[str] = set()
        self.sent: list[tuple[Any, ...]] = []

    def slot(self, key: str) -> int:
        return hash(key)

    def is_up(self, key: str) -> bool:
        return key not in self.down

    def ahead_s(self, key: str) -> float | None:
        return 0.0

    def link(self, role: str, key: str | None, *, on_up: Any) -> Link:
        self.links[key] = Link(on_up)
        return self.links[key]

    def send(self, on_reply: Any, key: str, *command: Any) -> None:
        self.sent.append(command)


class Store:
    def stop(self) -> None: ...


A, B = juggler.calls_key("a"), juggler.calls_key("b")


class TakingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.client: Any = Cluster()
        store: Any = Store()
        self.callee = RedisCallee(self.clock, self.client, store, block_s=2, settle_s=1)

    def connected(self) -> tuple[Connection, Connection]:
        """Both slots' connections; a first attempt to take calls has asked for them."""
        self.failureResultOf(self.callee.take_calls(("a", "b"), 4), BrokerUnavailable)
        return self.client.links[A].up(), self.client.links[B].up()

    def call(self, uri: str, args: bytes) -> bytes:
        deadline_ms = int(self.clock.seconds() * 1000) + 1000
        return juggler.encode_call_payload("c", f"m{args.decode()}", uri, args, deadline_ms)

    def test_every_slot_is_waited_on_for_a_share(self) -> None:
        one, two = self.connected()
        self.assertNoResult(self.callee.take_calls(("a", "b"), 4))
        self.assertEqual(one.pops[0][1], ("BLMPOP", "2", 1, A, "RIGHT", "COUNT", 2))
        self.assertEqual(two.pops[0][1], ("BLMPOP", "2", 1, B, "RIGHT", "COUNT", 2))

    def test_what_one_slot_brings_ends_the_wait_and_the_other_is_not_asked_twice(self) -> None:
        one, two = self.connected()
        taking = self.callee.take_calls(("a", "b"), 4)
        one.pops[0][0]([A.encode(), [self.call("a", b"1")]])
        self.assertEqual([call.args for call in self.successResultOf(taking)], [b"1"])
        taking = self.callee.take_calls(("a", "b"), 4)
        self.assertEqual((len(one.pops), len(two.pops)), (2, 1))
        two.pops[0][0]([B.encode(), [self.call("b", b"2")]])
        self.assertEqual([call.args for call in self.successResultOf(taking)], [b"2"])

    def test_a_slot_that_comes_back_joins_the_wait(self) -> None:
        one, _ = self.connected()
        taking = self.callee.take_calls(("a", "b"), 4)
        self.client.links[A].connection = None
        one.pops[0][0](BrokerUnavailable("moved"))
        self.assertNoResult(taking)
        again = self.client.links[A].up()
        self.assertEqual(len(again.pops), 1)
        again.pops[0][0]([A.encode(), [self.call("a", b"1")]])
        self.assertEqual([call.args for call in self.successResultOf(taking)], [b"1"])

    def test_a_slot_that_comes_back_before_results_can_be_stored_does_not(self) -> None:
        one, _ = self.connected()
        self.callee.take_calls(("a", "b"), 4)
        one.pops[0][0](BrokerUnavailable("moved"))
        self.client.down.add(A)
        self.assertEqual(self.client.links[A].up().pops, [])

    def test_the_loss_of_all_ends_the_wait(self) -> None:
        one, two = self.connected()
        taking = self.callee.take_calls(("a", "b"), 4)
        one.pops[0][0](BrokerUnavailable("lost"))
        two.pops[0][0](BrokerUnavailable("lost"))
        self.failureResultOf(taking, BrokerUnavailable)

    def test_nobody_waits_before_calls_are_wanted(self) -> None:
        one, two = self.connected()
        self.assertEqual((one.pops, two.pops), ([], []))
