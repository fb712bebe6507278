"""Commands to a Redis Cluster on their way: to the right master, through redirects and retries.

A command that was not run (``MOVED``, ``ASK``, ``TRYAGAIN`` ...) is sent again; one whose outcome
is not known never is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.kept import Backoff
from pelotontx.net.redis.connection import Argument, OnReply, Reply, ResponseError
from pelotontx.net.redis.link import WRONG_MOMENT, WRONG_SERVER, RedisLink, first_word
from pelotontx.net.redis.topology import Topology
from pelotontx.wire.slots import Node, Redirect

# A slot that moves while we ask costs two redirects; more is a cluster at odds with itself.
_REDIRECTS_LIMIT: Final = 5
# Between attempts while a slot is being moved or has no master: at first, at most.
_FIRST_RETRY_S: Final = 0.02
_RETRY_LIMIT_S: Final = 0.5
# What may wait for its next attempt: as much as may wait to be sent to one Redis.
_RETRIES_LIMIT_BYTES: Final = 32 * 1024 * 1024

Write: TypeAlias = Callable[[Any, OnReply, bool], None]
"""Sends a command on a connection; the last argument: whether ASKING comes before it."""


class _Errand:
    """One command that has not been replied to."""

    __slots__ = ("arguments", "backoff", "on_reply", "redirects", "slot", "until_s", "write")

    def __init__(
        self, on_reply: OnReply, slot: int, write: Write, arguments: tuple[Argument, ...]
    ) -> None:
        self.on_reply = on_reply
        self.slot = slot
        self.write = write
        self.arguments = arguments
        self.redirects = 0
        self.backoff: Backoff | None = None
        self.until_s = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(8 if isinstance(each, int) else len(each) for each in self.arguments)


class Errands:
    """Sends commands to the masters of their slots.

    Args:
        clock: keeps time.
        topology: knows the masters.
        link: the connection for commands to a node, made where there is none.
        patience_s: a command that finds its slot without a master for so long is given up.
    """

    def __init__(
        self,
        clock: IReactorTime,
        topology: Topology,
        link: Callable[[Node], RedisLink],
        *,
        patience_s: float,
    ) -> None:
        self._clock = clock
        self._topology = topology
        self._link = link
        self._patience_s = patience_s
        self._is_stopped = False
        self._waiting: dict[_Errand, IDelayedCall] = {}
        self._waiting_bytes = 0

    def begin(
        self, on_reply: OnReply, slot: int, write: Write, arguments: tuple[Argument, ...]
    ) -> None:
        """Sends a command to the master of a slot; `BrokerUnavailable` at once while that is down.

        Args:
            on_reply: called once.
            slot: of its keys.
            write: sends it.
            arguments: what makes it large.
        """
        errand = _Errand(on_reply, slot, write, arguments)
        if self._is_stopped or not self._go(errand):
            on_reply(BrokerUnavailable(f"no connection to the master of slot {slot}"))

    def stop(self) -> None:
        """Gives up what waits; nothing is left in the reactor."""
        self._is_stopped = True
        waiting, self._waiting = self._waiting, {}
        for errand, call in waiting.items():
            call.cancel()
            errand.on_reply(BrokerUnavailable("the connections to Redis are closed"))

    def _go(self, errand: _Errand) -> bool:
        node = self._topology.slots.masters[errand.slot]
        return node is not None and self._send(errand, node, is_asking=False)

    def _send(self, errand: _Errand, node: Node, *, is_asking: bool) -> bool:
        connection = self._link(node).connection
        if connection is None:
            return False
        errand.write(connection, lambda reply: self._replied(errand, node, reply), is_asking)
        return True

    def _replied(self, errand: _Errand, node: Node, reply: Reply) -> None:
        if isinstance(reply, ResponseError) and not self._is_stopped:
            redirect = Redirect.parse(str(reply))
            if redirect is not None:
                self._redirect(errand, node, redirect)
                return
            word = first_word(reply)
            if word in WRONG_MOMENT or word in WRONG_SERVER:
                self._retry(errand, str(reply))
                return
        errand.on_reply(reply)

    def _redirect(self, errand: _Errand, asked: Node, redirect: Redirect) -> None:
        errand.redirects += 1
        if errand.redirects > _REDIRECTS_LIMIT:
            errand.on_reply(BrokerUnavailable(f"slot {errand.slot} was found nowhere"))
            return
        node = (redirect.node[0] or asked[0], redirect.node[1])
        if not redirect.is_asking:
            self._topology.moved(errand.slot, node)
        if not self._send(errand, node, is_asking=redirect.is_asking):
            self._retry(errand, f"no connection to {node[0]}:{node[1]}")

    def _retry(self, errand: _Errand, reason: str) -> None:
        """Has another attempt made soon, unless that went on for too long or too many wait."""
        self._topology.want()
        now_s = self._clock.seconds()
        if errand.backoff is None:
            errand.backoff = Backoff(first_s=_FIRST_RETRY_S, limit_s=_RETRY_LIMIT_S)
            errand.until_s = now_s + self._patience_s
        size_bytes = errand.size_bytes
        if now_s > errand.until_s or self._waiting_bytes + size_bytes > _RETRIES_LIMIT_BYTES:
            errand.on_reply(BrokerUnavailable(reason))
            return
        errand.redirects = 0
        self._waiting_bytes += size_bytes
        delay_s = errand.backoff.next_s()
        self._waiting[errand] = self._clock.callLater(delay_s, self._try_again, errand, reason)

    def _try_again(self, errand: _Errand, reason: str) -> None:
        del self._waiting[errand]
        self._waiting_bytes -= errand.size_bytes
        if not self._go(errand):
            self._retry(errand, reason)
