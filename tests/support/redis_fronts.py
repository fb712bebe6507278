"""A Sentinel trio and a cluster with the face of one `RedisServer`, for tests over all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.redis_farm import RedisCluster, SentinelTrio, shared
from tests.support.redis_node import Node, together, until


class TrioServer:
    """The trio's master."""

    def __init__(self, reactor: Any, trio: SentinelTrio) -> None:
        self._reactor = reactor
        self.trio = trio
        self.url = trio.url

    @classmethod
    async def open(cls, reactor: Any) -> TrioServer:
        """The shared trio, whole and empty."""
        return cls(reactor, await shared(reactor, SentinelTrio))

    async def command(self, *words: bytes | str | int) -> Any:
        """One command to the master."""
        return await (await self.trio.master()).command(*words, timeout_s=10)

    async def kill(self) -> None:
        """kill -9 of all data nodes."""
        await together(node.kill() for node in self.trio.nodes)

    async def start(self) -> None:
        """All from nothing, on the same ports."""
        await self.trio.rebuild()

    async def stop(self) -> None:
        """Nothing: the trio is there for the next test."""

    def freeze(self) -> None:
        """SIGSTOP of all data nodes."""
        for node in self.trio.nodes:
            node.freeze()

    def thaw(self) -> None:
        """SIGCONT of all that run."""
        _thaw(self.trio.nodes)


class ClusterServer:
    """The cluster's nodes, asked as one."""

    def __init__(self, reactor: Any, cluster: RedisCluster) -> None:
        self._reactor = reactor
        self.cluster = cluster
        self.url = cluster.url

    @classmethod
    async def open(cls, reactor: Any) -> ClusterServer:
        """The shared cluster, whole and empty."""
        cluster = await shared(reactor, RedisCluster)
        await settled(reactor, cluster)
        return cls(reactor, cluster)

    async def command(self, *words: bytes | str | int) -> Any:
        """One command to the master of its key; one without a key to all nodes.

        Lists and texts from all nodes come as one.
        """
        cluster = self.cluster
        if words[0] in ("ACL", "CLIENT", "SCRIPT", "KEYS"):
            nodes = await cluster.masters() if words[0] == "KEYS" else cluster.nodes
            replies = await together(node.command(*words) for node in nodes)
            if isinstance(replies[0], list):
                return [item for reply in replies for item in reply]
            return b"".join(replies)
        key = words[3 if words[0] == "EVAL" else 1]
        assert not isinstance(key, int)
        owner = await cluster.owner(await cluster.slot_of(key))
        return await owner.command(*words, timeout_s=10)

    async def kill(self) -> None:
        """kill -9 of all nodes."""
        await together(node.kill() for node in self.cluster.nodes)

    async def start(self) -> None:
        """All on the same ports, empty; they remember each other."""
        await together(node.start() for node in self.cluster.nodes)
        await until(self._reactor, self.cluster.is_whole, timeout_s=60)

    async def stop(self) -> None:
        """Nothing: the cluster is there for the next test."""

    def freeze(self) -> None:
        """SIGSTOP of all nodes."""
        for node in self.cluster.nodes:
            node.freeze()

    def thaw(self) -> None:
        """SIGCONT of all that run."""
        _thaw(self.cluster.nodes)


async def settled(reactor: Any, cluster: RedisCluster) -> None:
    """Until all nodes say the same of who holds what since which epoch.

    A slot that moves on before that may end up with masters that send clients to each other.
    """

    async def agrees() -> bool:
        texts = await together(node.text("CLUSTER", "NODES") for node in cluster.nodes)
        lines = [[line.split() for line in text.splitlines()] for text in texts]
        views = {frozenset((words[0], words[6], *words[8:]) for words in view) for view in lines}
        return len(views) == 1

    await until(reactor, agrees)


def _thaw(nodes: Sequence[Node]) -> None:
    for node in nodes:
        if node.is_running:
            node.thaw()
