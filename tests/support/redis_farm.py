"""Several Redis servers that belong together: a Sentinel trio and a cluster.

    trio = await shared(reactor, SentinelTrio)
    ... trio.url ...
    master = await trio.master()
    await master.kill()
    await trio.wait_for_new_master(master)

    cluster = await shared(reactor, RedisCluster)
    ... cluster.url ...
    await cluster.migrate_slot(slot, await cluster.another_master(await cluster.owner(slot)))

`shared` (and the fixtures `sentinel_trio` and `redis_cluster`) starts each kind once a test run,
which takes two seconds, and hands it out whole and empty: whatever the last test has broken is
built anew, on the same ports. The servers end with the test process, by kill -9 too.
"""

from __future__ import annotations

import atexit
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hiredis
import pytest
import pytest_twisted
from twisted.internet.error import ConnectError, ConnectionClosed

from pelotontx.net.embedded import PrivateDirectory
from tests.support.redis_node import Node, free_ports, together, until
from tests.support.servers import system_binary

SLOTS = 16384


class _Farm(ABC):
    """What both kinds have in common: build, hand out, end."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._directory = PrivateDirectory()  # swept by the next run if we are killed
        self._is_built = False

    @property
    @abstractmethod
    def _all(self) -> list[Node]:
        """Every server."""

    @abstractmethod
    async def _build(self) -> None:
        """Starts all servers and makes one farm of them."""

    @abstractmethod
    async def is_whole(self) -> bool:
        """Whether it is as it was when it was built."""

    async def prepare(self) -> None:
        """Makes it whole and empty."""
        for node in self._all:
            if node.is_running:
                node.thaw()
        if not self._is_built or not await self.is_whole():
            await self.rebuild()
        await self.flush()

    async def rebuild(self) -> None:
        """Ends all servers and starts them from nothing, on the same ports."""
        self.end()
        self._directory.claim()
        await self._build()
        await until(self._reactor, self.is_whole, timeout_s=60)
        self._is_built = True

    @abstractmethod
    async def flush(self) -> None:
        """Removes all keys."""

    def end(self) -> None:
        """Ends all servers, by kill -9, and removes their folder."""
        for node in self._all:
            node.end()
        self._directory.release()


_FarmT = TypeVar("_FarmT", bound=_Farm)
_shared: dict[type[_Farm], _Farm] = {}


async def shared(reactor: Any, kind: type[_FarmT]) -> _FarmT:
    """The one of this kind of the test run, whole and empty; ended at the run's end."""
    system_binary("redis-server")
    farm = _shared.get(kind)
    if farm is None:
        farm = _shared[kind] = kind(reactor)
        atexit.register(farm.end)
    assert isinstance(farm, kind)
    await farm.prepare()
    return farm


class SentinelTrio(_Farm):
    """One master, two replicas and three Sentinels (quorum 2) that know it as `name`.

    A master that is silent for 800 ms is replaced within another second or two.
    """

    name = "peloton"

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        ports = free_ports(6)
        folder = Path(self._directory.path)
        data_options = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        self.nodes = [
            Node(reactor, port, folder / f"data{n}", data_options)
            for n, port in enumerate(ports[:3])
        ]
        config = (
            f"sentinel monitor {self.name} 127.0.0.1 {ports[0]} 2\n"
            f"sentinel down-after-milliseconds {self.name} 800\n"
            f"sentinel failover-timeout {self.name} 3000\n"
            f"sentinel parallel-syncs {self.name} 2\n"
        )
        self.sentinels = [
            Node(reactor, port, folder / f"sentinel{n}", ["--sentinel"], config)
            for n, port in enumerate(ports[3:])
        ]

    @property
    def url(self) -> str:
        """``redis+sentinel://host:port,host:port,host:port/name``."""
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}"

    @property
    def _all(self) -> list[Node]:
        return [*self.nodes, *self.sentinels]

    async def _build(self) -> None:
        await together(node.start() for node in self._all)
        master, *replicas = self.nodes
        await together(n.command("REPLICAOF", "127.0.0.1", master.port) for n in replicas)
        await together(self._hurry(sentinel) for sentinel in self.sentinels)

    async def _hurry(self, sentinel: Node) -> None:
        """Its own rhythm is one of seconds: hellos each 2 s, INFO each 10 s."""
        faster = ("publish-period", 300, "info-period", 500, "ping-period", 200)
        await sentinel.command("SENTINEL", "DEBUG", *faster, "tilt-period", 2000)

    async def start_sentinel(self, sentinel: Node) -> None:
        """Starts one that was killed."""
        await sentinel.start()
        await self._hurry(sentinel)

    async def master(self) -> Node:
        """The master that the Sentinels agree on; waits until they do."""
        ports: set[int] = set()

        async def agree() -> bool:
            ports.clear()
            for sentinel in self.sentinels:
                if sentinel.is_running:
                    ports.add(await self._master_port(sentinel))
            return len(ports) == 1 and ports != {0}

        await until(self._reactor, agree)
        return next(node for node in self.nodes if node.port in ports)

    async def replicas(self) -> list[Node]:
        """The other nodes."""
        master = await self.master()
        return [node for node in self.nodes if node is not master]

    async def failover(self, sentinel: Node | None = None) -> Node:
        """Asks a Sentinel, or the first, for a failover and waits for it; the new master."""
        old = await self.master()
        sentinel = sentinel or self.sentinels[0]

        async def is_accepted() -> bool:  # not while it thinks that no replica is fit
            return await sentinel.text("SENTINEL", "FAILOVER", self.name) == "OK"

        await until(self._reactor, is_accepted)
        return await self.wait_for_new_master(old)

    async def wait_for_new_master(self, old: Node) -> Node:
        """Until the Sentinels agree on another master and it takes writes."""

        async def has_changed() -> bool:
            master = await self.master()
            return master is not old and await _role(master) == "master"

        await until(self._reactor, has_changed)
        return await self.master()

    async def is_whole(self) -> bool:
        """All run, both replicas follow the master, the Sentinels know all of that."""
        if not all(node.is_running for node in self._all):
            return False
        port = await self._master_port(self.sentinels[0])
        for node in self.nodes:
            if node.port == port:
                text = await node.text("INFO", "replication")
                if "role:master" not in text or text.count("state=online") != 2:
                    return False
        views = [await self._view(sentinel) for sentinel in self.sentinels]
        return all(
            view.get("flags") == "master"
            and view.get("port") == str(port)
            and view.get("num-other-sentinels") == "2"
            and view.get("linked-replicas") == "2"
            for view in views
        )

    async def flush(self) -> None:
        await (await self.master()).command("FLUSHALL")

    async def _master_port(self, sentinel: Node) -> int:
        with suppress(ConnectError, ConnectionClosed, hiredis.HiredisError):
            reply = await sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
            return int(reply[1]) if reply else 0
        return 0

    async def _view(self, sentinel: Node) -> dict[str, str]:
        with suppress(ConnectError, ConnectionClosed, hiredis.HiredisError):
            words = await sentinel.command("SENTINEL", "MASTER", self.name)
            view = {
                name.decode(): value.decode()
                for name, value in zip(words[::2], words[1::2], strict=True)
            }
            replicas = await sentinel.command("SENTINEL", "REPLICAS", self.name)
            linked = [fields for fields in replicas if b"ok" in fields and b"slave" in fields]
            return {**view, "linked-replicas": str(len(linked))}
        return {}


async def _role(node: Node) -> str:
    with suppress(ConnectError, ConnectionClosed, hiredis.HiredisError):
        reply = await node.command("ROLE")
        return reply[0].decode() if reply else ""
    return ""


@dataclass(frozen=True)
class Member:
    """A line of CLUSTER NODES."""

    id: str
    port: int
    flags: frozenset[str]
    master_id: str
    is_linked: bool
    slots: tuple[range, ...]


def _members(text: str) -> Iterator[Member]:
    for line in text.splitlines():
        id_, address, flags, master_id, _, _, _, state, *slots = line.split()
        yield Member(
            id=id_,
            port=int(address.partition("@")[0].rpartition(":")[2]),
            flags=frozenset(flags.split(",")),
            master_id=master_id,
            is_linked=state == "connected",
            slots=tuple(_slot_range(word) for word in slots if word[0] != "["),
        )


def _slot_range(word: str) -> range:
    first, _, last = word.partition("-")
    return range(int(first), int(last or first) + 1)


class RedisCluster(_Farm):
    """Three masters with a replica each; a dead master is replaced about two seconds later."""

    node_timeout_ms = 1500

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        folder = Path(self._directory.path)
        options = [
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(self.node_timeout_ms)),
            *("--cluster-announce-ip", "127.0.0.1", "--repl-diskless-sync-delay", "0"),
            *("--cluster-allow-replica-migration", "no", "--repl-ping-replica-period", "1"),
            *("--cluster-replica-validity-factor", "0"),  # however long a test had paused it
        ]
        self.nodes = [
            Node(reactor, port, folder / f"node{n}", options)
            for n, port in enumerate(free_ports(6))
        ]

    @property
    def url(self) -> str:
        """``redis+cluster://host:port,...`` with three of the six."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[:3])

    @property
    def _all(self) -> list[Node]:
        return self.nodes

    async def _build(self) -> None:
        await together(node.start() for node in self.nodes)
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for n, node in enumerate(self.nodes):
            await node.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for n, node in enumerate(masters):
            first, end = SLOTS * n // 3, SLOTS * (n + 1) // 3
            await node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            await self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)

        async def have_met() -> bool:
            views = await together(node.text("CLUSTER", "NODES") for node in self.nodes)
            return all(len(view.splitlines()) == 6 and "handshake" not in view for view in views)

        await until(self._reactor, have_met)
        for master, replica in zip(masters, replicas, strict=True):
            await replica.command("CLUSTER", "REPLICATE", await self.id_of(master))

    async def id_of(self, node: Node) -> str:
        """The node's name within the cluster."""
        return (await node.command("CLUSTER", "MYID")).decode()

    async def members(self, *, seen_by: Node | None = None) -> list[Member]:
        """The cluster as one of its running nodes sees it."""
        viewer = seen_by or next(node for node in self.nodes if node.is_running)
        return list(_members(await viewer.text("CLUSTER", "NODES")))

    async def masters(self) -> list[Node]:
        """The nodes that hold slots, in the order of their first slot."""
        members = [m for m in await self.members() if m.slots and "fail" not in m.flags]
        members.sort(key=lambda member: member.slots[0].start)
        return [self._node(member.port) for member in members]

    async def slot_of(self, key: str | bytes) -> int:
        """The slot of a key, by its hash tag."""
        node = next(node for node in self.nodes if node.is_running)
        return int(await node.command("CLUSTER", "KEYSLOT", key))

    async def owner(self, slot: int) -> Node:
        """The master that holds a slot."""
        for member in await self.members():
            if any(slot in slots for slots in member.slots):
                return self._node(member.port)
        pytest.fail(f"nobody holds slot {slot}")

    async def another_master(self, node: Node) -> Node:
        """Some other master."""
        return next(master for master in await self.masters() if master is not node)

    async def replica_of(self, master: Node) -> Node:
        """A replica of a running master."""
        id_ = await self.id_of(master)
        member = next(m for m in await self.members() if m.master_id == id_)
        return self._node(member.port)

    async def wait_for_failover(self, old: Node) -> Node:
        """Until all running nodes but `old` see another master in its place; that master."""
        viewers = [node for node in self.nodes if node.is_running and node is not old]
        masters: set[int] = set()

        async def has_changed() -> bool:
            masters.clear()
            for viewer in viewers:
                members = await self.members(seen_by=viewer)
                holders = {m.port for m in members if m.slots and "fail" not in m.flags}
                covered = sum(len(s) for m in members if m.port in holders for s in m.slots)
                if covered != SLOTS or old.port in holders:
                    return False
                if "cluster_state:ok" not in await viewer.text("CLUSTER", "INFO"):
                    return False
                masters.update(m.port for m in members if m.port in holders)
            return len(masters) == 3

        before = {m.port for m in await self.members(seen_by=viewers[0]) if m.slots}
        await until(self._reactor, has_changed)
        return self._node(next(iter(masters - before or masters)))

    async def failover(self, old: Node) -> Node:
        """Lets the replica of a master take over, without a loss; the new master."""
        replica = await self.replica_of(old)
        await replica.command("CLUSTER", "FAILOVER")
        await self.wait_for_failover(old)
        return replica

    async def migrate_slot(self, slot: int, target: Node, *, batch: int = 10) -> None:
        """Moves a slot while it is in use, in the steps of ``redis-cli --cluster reshard``."""
        await self.begin_migration(slot, target)
        while await self.migrate_keys(slot, target, batch):
            pass
        await self.end_migration(slot, target)

    async def begin_migration(self, slot: int, target: Node) -> None:
        """From now on keys of the slot may be with either: ASK and TRYAGAIN are answered."""
        source = await self.owner(slot)
        source_id, target_id = await self.id_of(source), await self.id_of(target)
        await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)

    async def migrate_keys(self, slot: int, target: Node, count: int) -> int:
        """Moves some keys; how many there were."""
        source = await self.owner(slot)
        keys = await source.command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            words = ("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            await source.command(*words, timeout_s=15)
        return len(keys)

    async def end_migration(self, slot: int, target: Node) -> None:
        """Gives the slot to its new owner, and tells everybody."""
        source, target_id = await self.owner(slot), await self.id_of(target)
        others = [m for m in await self.masters() if m is not source and m is not target]
        for node in (target, source, *others):
            await node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def check(self) -> str:
        """What ``redis-cli --cluster check`` prints; fails where it finds fault."""
        node = next(node for node in self.nodes if node.is_running)
        run = subprocess.run(
            [system_binary("redis-cli"), "--cluster", "check", node.address],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    async def is_whole(self) -> bool:
        """All run and agree: slots are held, none is moving, each master has a linked replica."""
        if not all(node.is_running for node in self.nodes):
            return False
        views = await together(self._whole_view(node) for node in self.nodes)
        return views[0] is not None and all(view == views[0] for view in views)

    async def _whole_view(self, viewer: Node) -> set[tuple[str, str, tuple[range, ...]]] | None:
        """Who is whose replica and holds what, or None if that is not as it should be."""
        text = await viewer.text("CLUSTER", "NODES")
        members = list(_members(text))
        masters = {m.id for m in members if m.slots}
        is_whole = (
            len(members) == 6
            and "[" not in text
            and all(m.is_linked and not m.flags & {"fail", "fail?"} for m in members)
            and sum(len(slots) for m in members for slots in m.slots) == SLOTS
            and masters == {m.master_id for m in members if "slave" in m.flags}
            and len(masters) == 3
            and "cluster_state:ok" in await viewer.text("CLUSTER", "INFO")
            and "master_link_status:down" not in await viewer.text("INFO", "replication")
        )
        return {(m.id, m.master_id, m.slots) for m in members} if is_whole else None

    async def flush(self) -> None:
        await together(master.command("FLUSHALL") for master in await self.masters())

    def _node(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)


@pytest_twisted.async_fixture
async def sentinel_trio() -> SentinelTrio:
    """The shared trio, whole and empty."""
    from twisted.internet import reactor  # not before one has been chosen

    return await shared(reactor, SentinelTrio)


@pytest_twisted.async_fixture
async def redis_cluster() -> RedisCluster:
    """The shared cluster, whole and empty."""
    from twisted.internet import reactor

    return await shared(reactor, RedisCluster)
