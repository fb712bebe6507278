"""Redis Cluster: hash slots, the map of their masters, redirects.

=========================  =====================================================================
`key_slot`                 CRC16 (XMODEM) of the key, or of its hash tag, modulo 16384
``CLUSTER SLOTS``          ``[[first, last, [host, port, id, ...], [replica's host, ...]], ...]``
``-MOVED slot host:port``  the slot is that master's: ask there, from now on
``-ASK slot host:port``    the slot is moving there: ask there this once, after ``ASKING``
=========================  =====================================================================

Source: the Redis Cluster specification.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

SLOTS: Final = 16384

Node: TypeAlias = tuple[str, int]
"""Host and port."""

_REDIRECT: Final = re.compile(r"(MOVED|ASK) ([0-9]{1,5}) (\S*):([0-9]{1,5})", re.ASCII)


def key_slot(key: str | bytes) -> int:
    """The slot of a key: that of its hash tag, if it has one.

    The tag is what stands between the first ``{`` and the next ``}``, unless that is nothing.
    """
    data = key.encode() if isinstance(key, str) else key
    begin = data.find(b"{")
    if begin >= 0:
        end = data.find(b"}", begin)
        if end > begin + 1:
            data = data[begin + 1 : end]
    return crc_hqx(data, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a server of a cluster sends us.

    Attributes:
        slot: of the keys.
        node: who is to be asked; an empty host is that of the server which said so.
        is_asking: whether for this once, after ``ASKING``.
    """

    slot: int
    node: Node
    is_asking: bool

    @classmethod
    def parse(cls, error: str) -> Redirect | None:
        """What the text of an error reply says; None: it is another error."""
        match = _REDIRECT.fullmatch(error)
        if match is None:
            return None
        kind, slot, host, port = match.groups()
        return cls(int(slot), (host, int(port)), kind == "ASK")


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who holds which slot.

    Attributes:
        masters: 16384 of them; None: nobody holds the slot.
        holders: the masters that hold a slot.
        replicas: all nodes besides that are known.
        is_whole: whether every slot is held.
    """

    masters: tuple[Node | None, ...] = (None,) * SLOTS
    holders: frozenset[Node] = frozenset()
    replicas: frozenset[Node] = frozenset()
    is_whole: bool = False

    @classmethod
    def parse(cls, reply: Any, asked_host: str) -> SlotMap:
        """Reads a reply to ``CLUSTER SLOTS``, all text in bytes.

        Args:
            reply: as Redis gives it.
            asked_host: stands for hosts which the server does not know (null, empty, ``?``).

        Raises:
            ValueError: it is something else.
        """
        masters: list[Node | None] = [None] * SLOTS
        holders: set[Node] = set()
        replicas: set[Node] = set()
        try:
            for first, last, *nodes in reply:
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(f"no slots: {first} to {last}")
                master, *others = (_node(node, asked_host) for node in nodes)
                masters[first : last + 1] = [master] * (last + 1 - first)
                holders.add(master)
                replicas.update(others)
        except (TypeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"no reply to CLUSTER SLOTS: {error}") from error
        return cls(tuple(masters), frozenset(holders), frozenset(replicas), None not in masters)

    @property
    def nodes(self) -> frozenset[Node]:
        """Masters with slots, and replicas."""
        return self.holders | self.replicas

    def moved(self, slot: int, node: Node) -> SlotMap:
        """The same, with one slot in other hands."""
        masters = (*self.masters[:slot], node, *self.masters[slot + 1 :])
        return SlotMap(masters, self.holders | {node}, self.replicas - {node}, None not in masters)


def _node(words: Any, asked_host: str) -> Node:
    host = words[0]
    text = "" if host is None else host.decode()
    return (asked_host if text in ("", "?") else text), int(words[1])
