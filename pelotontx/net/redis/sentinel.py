"""A Redis whose master Sentinels choose.

An old master may live on beside the new one for seconds, and both hold the calls that were waiting:
whoever still takes calls from the old one runs what others run again. It is left early and by all:

- Every Sentinel is listened to, since the one that leads a failover tells of its end, the others of
  its middle; and one that is about to make a replica the master says so a moment before.
- From that moment on until the replica is the master, there is none.
- The Sentinels' views have an epoch, and the newest one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.process import Moment
from pelotontx.net.redis.address import RedisAddress, SentinelAddress
from pelotontx.net.redis.ask import Questions
from pelotontx.net.redis.connection import SubscriberConnection
from pelotontx.net.redis.link import Fixed, RedisLink, client_name
from pelotontx.net.redis.single import SingleRedis

# All Sentinels are asked at the same time: so long one that is silent can delay the answer.
_ASK_S: Final = 1.0
# Attempts to reach a master are not further apart: a failover takes a second or two.
_BACKOFF_LIMIT_S: Final = 1.0
# Sentinels that are remembered beyond those of the URL.
_LEARNED_LIMIT: Final = 20
# Events which tell that a master has been replaced, or is about to be; and which of their words are
# the service, and the host and the port of the new one.
_NEWS: Final = {
    b"+failover-state-send-slaveof-noone": (5, 2, 3),
    b"+promoted-slave": (5, 2, 3),
    b"+switch-master": (0, 3, 4),
}
# Steps of a failover in which a replica may have become a master and no Sentinel has noticed.
_PROMOTING: Final = (b"send_slaveof_noone", b"wait_promotion")


class SentinelRedis(SingleRedis):
    """A `RedisClient` of the master that Sentinels know; all links follow a failover at once.

    Beside its own connections it holds one to each Sentinel, which tells of failovers.

    Args:
        reactor: connects and keeps time.
        address: the Sentinels, and the master's name.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a server that is silent for so long is unavailable.
    """

    def __init__(
        self,
        reactor: Any,
        address: SentinelAddress,
        *,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
    ) -> None:
        self._sentinels = _Sentinels(reactor, address, on_learned=self._listen_to)
        self._listening: list[RedisLink] = []
        super().__init__(
            reactor,
            self._sentinels,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
            backoff_limit_s=_BACKOFF_LIMIT_S,
        )

    def start(self) -> None:
        """See `RedisClient`."""
        for sentinel in self._sentinels.known:
            self._listen_to(sentinel)
        super().start()

    def stop(self) -> Deferred[Any]:
        """See `RedisClient`."""
        stops = [self._sentinels.stop(), super().stop()]
        listening, self._listening = self._listening, []
        return gatherResults([*stops, *(link.stop() for link in listening)])

    def _listen_to(self, sentinel: RedisAddress) -> None:
        link = RedisLink(
            self._reactor,
            Fixed(sentinel),
            name=client_name("sentinel"),
            connection_class=SubscriberConnection,
            on_up=self._listen,
            **self._link_options,
        )
        self._listening.append(link)
        link.start()

    async def _listen(self, connection: SubscriberConnection) -> None:
        connection.on_event = self._event
        await connection.subscribe_to("SUBSCRIBE", list(_NEWS))
        # A failover may have happened while this one was not listened to.
        self._sentinels.forget()
        try:
            self._leave_others(await self._sentinels.locate())
        except BrokerUnavailable:
            """Nothing better is known than where the connections go now."""

    def _event(self, channel: bytes, pattern: bytes | None, payload: bytes) -> None:
        words = payload.decode().split(" ")
        name, host, port = (words[place] for place in _NEWS[channel])
        if name == self._sentinels.service:
            self._sentinels.forget()
            self._leave_others(self._sentinels.server.at(host, int(port)))

    def _leave_others(self, master: RedisAddress) -> None:
        for link in tuple(self._links):
            if link.address != master:
                link.moved()


@dataclass(frozen=True, slots=True)
class _View:
    """What a Sentinel says.

    Attributes:
        master: the master.
        epoch: of the failover that has made it the master; later ones have higher numbers.
        is_promoting: this Sentinel is just making another one the master.
    """

    master: RedisAddress
    epoch: int
    is_promoting: bool


class _Sentinels:
    """The `Locator` of their master."""

    def __init__(
        self,
        reactor: Any,
        address: SentinelAddress,
        *,
        on_learned: Callable[[RedisAddress], None],
    ) -> None:
        self.service = address.service
        self.server = address.server
        self._sentinels = dict.fromkeys(address.sentinels)
        self._configured = len(self._sentinels)
        self._on_learned = on_learned
        self._questions = Questions(reactor, timeout_s=_ASK_S)
        self._answer: Moment[RedisAddress] | None = None
        self._epoch: int | None = None

    @property
    def known(self) -> list[RedisAddress]:
        """All Sentinels that are known."""
        return list(self._sentinels)

    def forget(self) -> None:
        """There is news: what is being asked just now may have the old answer."""
        self._answer = None

    def locate(self) -> Deferred[RedisAddress]:
        """See `Locator`: the master, as it sees itself, too."""
        if self._answer is not None:
            return self._answer.wait()
        answer = self._answer = Moment()
        result = answer.wait()
        Deferred.fromCoroutine(self._ask()).addBoth(self._told, answer)
        return result

    def _told(self, outcome: Any, answer: Moment[RedisAddress]) -> None:
        if self._answer is answer:
            self._answer = None
        if isinstance(outcome, RedisAddress):
            answer.happen(outcome)
        else:
            answer.fail(BrokerUnavailable(outcome.getErrorMessage()))

    async def _ask(self) -> RedisAddress:
        views = await self._questions.until(map(self._ask_one, self.known), self._is_news)
        newest = max(views, key=lambda view: view.epoch)
        if not self._is_news(newest) and any(view.is_promoting for view in views):
            raise BrokerUnavailable(f"another master of {self.service} is being made")
        (role,) = await self._questions.ask(newest.master, ("ROLE",))
        if role[0] != b"master":
            raise BrokerUnavailable(f"{newest.master} is no master")
        self._epoch = newest.epoch
        return newest.master

    def _is_news(self, view: _View) -> bool:
        return self._epoch is not None and view.epoch > self._epoch

    async def _ask_one(self, sentinel: RedisAddress) -> _View:
        master, found, others = await self._questions.ask(
            sentinel,
            # In this order: the address must not be older than the epoch.
            ("SENTINEL", "MASTER", self.service),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service),
            ("SENTINEL", "SENTINELS", self.service),
        )
        for other in map(_fields, others):
            self._learn(sentinel.at(other[b"ip"].decode(), int(other[b"port"])))
        fields = _fields(master)
        host, port = found
        return _View(
            self.server.at(host.decode(), int(port)),
            int(fields[b"config-epoch"]),
            fields.get(b"failover-state") in _PROMOTING,
        )

    def _learn(self, other: RedisAddress) -> None:
        is_known = other in self._sentinels
        if not is_known and len(self._sentinels) < self._configured + _LEARNED_LIMIT:
            self._sentinels[other] = None
            self._on_learned(other)

    def refused(self, error: str) -> None:
        """See `Locator`; the Sentinels are asked anew each time."""

    def stop(self) -> Deferred[Any]:
        """Fires when nothing is left in the reactor."""
        return self._questions.stop()

    def __str__(self) -> str:
        return f"{self.service} of {', '.join(map(str, self._sentinels))}"


def _fields(words: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(words[::2], words[1::2], strict=False))
