"""A Redis Cluster: commands go to the master of their key's slot, and links follow their key."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, gatherResults

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.address import ClusterAddress, RedisAddress
from pelotontx.net.redis.connection import Argument, OnReply, RedisConnection, ignore_reply
from pelotontx.net.redis.errand import Errands
from pelotontx.net.redis.link import Fixed, Locator, RedisLink, client_name
from pelotontx.net.redis.script import Script, run_script
from pelotontx.net.redis.topology import Topology
from pelotontx.wire.slots import SLOTS, Node, Redirect, key_slot

# Attempts to reach a node are not further apart: a failover takes a second or two.
_BACKOFF_LIMIT_S: Final = 1.0


class RedisCluster:
    """A `RedisClient` of a cluster: one connection for commands to each master.

    Args:
        reactor: connects and keeps time.
        address: some of the nodes.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a node that is silent for so long is unavailable, and a command that finds
            its slot without a master is given up.
    """

    spread = 3

    def __init__(
        self,
        reactor: Any,
        address: ClusterAddress,
        *,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
    ) -> None:
        self._reactor = reactor
        self._login = address.seeds[0]
        self._link_options: dict[str, Any] = {
            "connect_timeout_s": connect_timeout_s,
            "reply_timeout_s": reply_timeout_s,
            "backoff_limit_s": _BACKOFF_LIMIT_S,
        }
        self._topology = Topology(
            reactor, address.seeds, on_change=self._changed, is_troubled=self._is_troubled
        )
        self._errands = Errands(
            reactor, self._topology, self._node_link, patience_s=reply_timeout_s
        )
        self._nodes: dict[Node, RedisLink] = {}
        self._links: WeakKeyDictionary[RedisLink, _Place] = WeakKeyDictionary()
        self._stopping: set[Deferred[None]] = set()

    def start(self) -> None:
        """See `RedisClient`."""
        self._topology.start()

    def stop(self) -> Deferred[Any]:
        """See `RedisClient`."""
        stopping = self._topology.stop()
        self._errands.stop()
        for node in tuple(self._nodes):
            self._leave(node)
        return gatherResults([stopping, *self._stopping])

    # Where things are

    @property
    def available(self) -> bool:
        """Whether every slot has a master and all masters answer at this moment."""
        return self._topology.slots.is_whole and not self._is_troubled()

    def slot(self, key: str) -> int:
        """See `RedisClient`."""
        return key_slot(key)

    def part(self, key: str) -> int:
        """See `RedisClient`."""
        return key_slot(key) * self.spread // SLOTS

    def is_up(self, key: str) -> bool:
        """See `RedisClient`."""
        return self._connection(key) is not None

    def ahead_s(self, key: str) -> float | None:
        """See `RedisClient`."""
        connection = self._connection(key)
        return None if connection is None else connection.ahead_s

    def _connection(self, key: str) -> RedisConnection | None:
        node = self._topology.slots.masters[key_slot(key)]
        link = None if node is None else self._nodes.get(node)
        return None if link is None else link.connection

    # Commands

    def send(self, on_reply: OnReply, key: str, *command: Argument) -> None:
        """See `RedisClient`."""

        def write(connection: RedisConnection, replied: OnReply, is_asking: bool) -> None:
            if is_asking:
                connection.send(ignore_reply, "ASKING")
            connection.send(replied, *command)

        self._errands.begin(on_reply, key_slot(key), write, command)

    def run(
        self, on_reply: OnReply, script: Script, keys: Sequence[str], *arguments: Argument
    ) -> None:
        """See `RedisClient`."""

        def write(connection: RedisConnection, replied: OnReply, is_asking: bool) -> None:
            run_script(connection, replied, script, keys, arguments, is_asking=is_asking)

        self._errands.begin(on_reply, key_slot(keys[0]), write, arguments)

    # Connections

    def link(
        self,
        role: str,
        key: str | None,
        *,
        connection_class: type[RedisConnection] = RedisConnection,
        on_up: Callable[[Any], Any] = lambda connection: None,
    ) -> RedisLink:
        """See `RedisClient`."""
        place: _Place
        if key is None:
            place = _AnyNode(self._topology, self._login)
        else:
            place = _MasterOf(key_slot(key), self._topology, self._login)
        link = self._link(role, place, connection_class=connection_class, on_up=on_up)
        self._links[link] = place
        return link

    def _link(self, role: str, locator: Locator, **options: Any) -> RedisLink:
        return RedisLink(
            self._reactor, locator, name=client_name(role), **options, **self._link_options
        )

    def _node_link(self, node: Node) -> RedisLink:
        """The connection for commands to a node."""
        link = self._nodes.get(node)
        if link is None:
            link = self._nodes[node] = self._link(
                "commands",
                Fixed(self._login.at(*node)),
                on_up=_hand_on_errors,
                on_down=self._topology.want,
            )
            link.start()
        return link

    def _changed(self) -> None:
        """There is a new slot map."""
        holders = self._topology.slots.holders
        for node in holders:
            self._node_link(node)
        for node, link in tuple(self._nodes.items()):
            # What is under way on a node that has no slots any more may end well.
            if node not in holders and (link.connection is None or not link.connection.waiting):
                self._leave(node)
        for follower, place in tuple(self._links.items()):
            # A node that is still a master tells by itself which slots have left it; a pop that is
            # under way there may have brought something, which must not be lost.
            if not place.is_right and (follower.connection is None or place.node not in holders):
                follower.moved()

    def _leave(self, node: Node) -> None:
        stopping = self._nodes.pop(node).stop()
        self._stopping.add(stopping)
        stopping.addBoth(lambda _: self._stopping.discard(stopping))

    def _is_troubled(self) -> bool:
        """Whether some master does not answer, or a node is still to be left."""
        nodes = self._nodes
        return (
            not nodes
            or nodes.keys() != self._topology.slots.holders
            or any(link.connection is None for link in nodes.values())
        )


def _hand_on_errors(connection: RedisConnection) -> None:
    """Redirects are for `Errands`, and concern one command, not the connection."""
    connection.on_error = lambda error: error


class _Place(ABC):
    """The `Locator` of something in a cluster."""

    def __init__(self, topology: Topology, login: RedisAddress) -> None:
        self._topology = topology
        self._login = login
        self._at: RedisAddress | None = None

    @property
    def node(self) -> Node | None:
        """Where it was last found."""
        return None if self._at is None else (self._at.host, self._at.port)

    @property
    @abstractmethod
    def is_right(self) -> bool:
        """Whether the newest slot map agrees with that."""

    async def locate(self) -> RedisAddress:
        """See `Locator`."""
        self._at = None
        await self._topology.first_look()
        self._at = self._find()
        if self._at is None:
            self._topology.want()
            raise BrokerUnavailable(f"{self} is not known")
        return self._at

    @abstractmethod
    def _find(self) -> RedisAddress | None:
        """Where it is by the newest slot map; None: nobody knows."""

    def refused(self, error: str) -> None:
        """See `Locator`."""
        self._topology.want()


class _MasterOf(_Place):
    """Where the master of a slot is."""

    def __init__(self, slot: int, topology: Topology, login: RedisAddress) -> None:
        super().__init__(topology, login)
        self._slot = slot
        self._asked: RedisAddress | None = None  # where the slot is moving to

    def __str__(self) -> str:
        return f"the master of slot {self._slot}"

    @property
    def is_right(self) -> bool:
        if self._at is None:
            return False
        return self._at.is_asking or self.node == self._topology.slots.masters[self._slot]

    def _find(self) -> RedisAddress | None:
        asked, self._asked = self._asked, None
        master = self._topology.slots.masters[self._slot]
        return asked or (None if master is None else self._login.at(*master))

    def refused(self, error: str) -> None:
        redirect = Redirect.parse(error)
        if redirect is None or self._at is None:
            self._topology.want()
            return
        node = (redirect.node[0] or self._at.host, redirect.node[1])
        if redirect.is_asking:
            self._asked = replace(self._login.at(*node), is_asking=True)
        else:
            self._topology.moved(self._slot, node)


class _AnyNode(_Place):
    """Some node; another one each time."""

    def __init__(self, topology: Topology, login: RedisAddress) -> None:
        super().__init__(topology, login)
        self._latest: Node | None = None

    def __str__(self) -> str:
        return "any node of the cluster"

    @property
    def is_right(self) -> bool:
        return self.node in self._topology.slots.nodes

    def _find(self) -> RedisAddress | None:
        nodes = sorted(self._topology.slots.holders)
        if not nodes:
            return None
        others = [node for node in nodes if node != self._latest]
        self._latest = random.choice(others or nodes)
        return self._login.at(*self._latest)
