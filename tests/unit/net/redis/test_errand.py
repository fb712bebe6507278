from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.connection import ResponseError
from pelotontx.net.redis.errand import Errands
from pelotontx.wire.slots import Node, SlotMap

A, B, C = ("a", 1), ("b", 2), ("c", 3)
SLOT = 7


class Connection:
    """Keeps what it is sent, and answers when a test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bool]] = []
        self._waiting: list[Callable[[Any], None]] = []

    def write(self, name: str, replied: Any, is_asking: bool) -> None:
        self.sent.append((name, is_asking))
        self._waiting.append(replied)

    def reply(self, reply: Any) -> None:
        self._waiting.pop(0)(reply)

    def refuse(self, error: str) -> None:
        self.reply(ResponseError(error))


class Link:
    def __init__(self) -> None:
        self.connection: Any = Connection()


class Topology:
    """A slot map that is as tests want it."""

    def __init__(self) -> None:
        self.slots = SlotMap().moved(SLOT, A)
        self.wanted = 0

    def moved(self, slot: int, node: Node) -> None:
        self.slots = self.slots.moved(slot, node)
        self.want()

    def want(self) -> None:
        self.wanted += 1


class ErrandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.topology = Topology()
        self.links = {node: Link() for node in (A, B, C)}
        self.errands = Errands(
            self.clock,
            self.topology,  # type: ignore[arg-type]
            self.links.__getitem__,  # type: ignore[arg-type]
            patience_s=5,
        )
        self.replies: list[Any] = []

    def begin(self, name: str = "x", *arguments: bytes | str | int) -> None:
        self.errands.begin(
            self.replies.append,
            SLOT,
            lambda connection, replied, is_asking: connection.write(name, replied, is_asking),
            arguments,
        )

    def at(self, node: Node) -> Any:
        return self.links[node].connection

    def test_the_master_is_asked_and_its_reply_handed_on(self) -> None:
        for reply in (b"value", None, ResponseError("WRONGTYPE no")):
            self.begin()
            self.at(A).reply(reply)
            self.assertIs(self.replies.pop(), reply)
        self.assertEqual(self.topology.wanted, 0)

    def test_without_a_master_or_a_connection_it_fails_at_once(self) -> None:
        self.links[A].connection = None
        self.begin()
        self.topology.slots = SlotMap()
        self.begin()
        self.assertEqual([type(reply) for reply in self.replies], [BrokerUnavailable] * 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_moved_is_followed_and_remembered(self) -> None:
        self.begin("one")
        self.begin("two")
        for _ in range(2):
            self.at(A).refuse(f"MOVED {SLOT} b:2")
        self.begin("three")
        self.assertEqual(self.at(B).sent, [("one", False), ("two", False), ("three", False)])
        self.assertEqual(self.topology.slots.masters[SLOT], B)

    def test_an_empty_host_is_that_of_who_says_so(self) -> None:
        self.links["a", 2] = Link()
        self.begin()
        self.at(A).refuse(f"MOVED {SLOT} :2")
        self.assertEqual(self.at(("a", 2)).sent, [("x", False)])

    def test_ask_is_followed_this_once(self) -> None:
        self.begin("one")
        self.at(A).refuse(f"ASK {SLOT} b:2")
        self.begin("two")
        self.assertEqual(self.at(B).sent, [("one", True)])
        self.assertEqual(self.at(A).sent[1:], [("two", False)])
        self.at(B).reply(1)
        self.assertEqual(self.replies, [1])

    def test_what_cannot_be_run_now_is_tried_again(self) -> None:
        for error in ("TRYAGAIN x", "CLUSTERDOWN x", "LOADING x", "MASTERDOWN x", "READONLY x"):
            self.begin()
            self.at(A).refuse(error)
            self.assertEqual(self.replies, [])
            self.clock.advance(0.02)
            self.at(A).reply(error)
            self.assertEqual(self.replies.pop(), error)
        self.assertEqual(self.topology.wanted, 5)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_given_up_in_time(self) -> None:
        self.begin()
        attempts = 0
        while not self.replies:
            self.at(A).refuse("TRYAGAIN x")
            self.clock.advance(0.5)
            attempts += 1
        self.assertIsInstance(self.replies[0], BrokerUnavailable)
        self.assertLess(attempts, 20)
        self.assertGreater(attempts, 8)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_new_master_that_is_not_connected_yet_is_waited_for(self) -> None:
        connection, self.links[B].connection = self.links[B].connection, None
        self.begin()
        self.at(A).refuse(f"MOVED {SLOT} b:2")
        self.clock.pump([0.1] * 5)
        self.assertEqual(self.replies, [])
        self.links[B].connection = connection
        self.clock.advance(0.5)
        self.assertEqual(connection.sent, [("x", False)])

    def test_masters_that_send_us_round_in_circles_are_left(self) -> None:
        self.begin()
        for node, other in ((A, B), (B, A)) * 3:
            self.at(node).refuse(f"MOVED {SLOT} {other[0]}:{other[1]}")
        self.assertEqual(len(self.at(A).sent) + len(self.at(B).sent), 6)
        self.assertEqual(str(self.replies[0]), f"slot {SLOT} was found nowhere")

    def test_a_migration_may_send_us_there_again_and_again(self) -> None:
        self.begin()
        for _ in range(8):
            self.at(A).refuse(f"ASK {SLOT} b:2")
            self.at(B).refuse("TRYAGAIN x")
            self.clock.advance(0.5)
        self.at(A).reply(1)
        self.assertEqual(self.replies, [1])

    def test_what_may_have_been_run_is_not_sent_again(self) -> None:
        self.begin()
        self.at(A).reply(BrokerUnavailable("lost"))
        self.clock.advance(60)
        self.assertEqual(len(self.at(A).sent), 1)
        self.assertEqual(str(self.replies[0]), "lost")

    def test_what_waits_is_bounded(self) -> None:
        for _ in range(5):
            self.begin("x", b"x" * (8 << 20), 1)
            self.at(A).refuse("TRYAGAIN x")
        self.assertEqual([str(reply) for reply in self.replies], ["TRYAGAIN x"] * 2)
        self.clock.advance(0.02)
        self.replies.clear()
        for _ in range(3):
            self.at(A).refuse("TRYAGAIN x")
        self.assertEqual(self.replies, [])

    def test_a_stop_gives_up_what_waits(self) -> None:
        self.begin()
        self.begin()
        self.at(A).refuse("TRYAGAIN x")
        self.errands.stop()
        self.at(A).refuse(f"MOVED {SLOT} b:2")
        self.assertIsInstance(self.replies[0], BrokerUnavailable)
        self.assertEqual(str(self.replies[1]), f"MOVED {SLOT} b:2")
        self.begin()
        self.assertIsInstance(self.replies[2], BrokerUnavailable)
        self.assertEqual(len(self.at(A).sent), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
