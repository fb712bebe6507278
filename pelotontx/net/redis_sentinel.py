"""A Redis whose master Sentinels choose."""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.process import Moment
from pelotontx.net.redis import SubscriberConnection
from pelotontx.net.redis_address import RedisAddress, SentinelAddress
from pelotontx.net.redis_ask import Questions
from pelotontx.net.redis_link import RedisLink, client_name
from pelotontx.net.redis_single import SingleRedis

# All Sentinels are asked at the same time, so this counts only while no good answer comes.
_ASK_S: Final = 1.0
# Attempts to reach a master are not further apart: a failover takes a second or two.
_BACKOFF_LIMIT_S: Final = 1.0
# Sentinels that are remembered beyond those of the URL.
_LEARNED_LIMIT: Final = 20
_SWITCH: Final = "+switch-master"


class SentinelRedis(SingleRedis):
    """A `RedisClient` of the master that Sentinels know; all links follow a failover at once.

    Beside its own connections it holds one to a Sentinel, which tells of failovers.

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
        self._sentinels = _Sentinels(reactor, address)
        super().__init__(
            reactor,
            self._sentinels,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
            backoff_limit_s=_BACKOFF_LIMIT_S,
        )
        self._listening = RedisLink(
            reactor,
            _OneOf(self._sentinels),
            name=client_name("sentinel"),
            connection_class=SubscriberConnection,
            on_up=self._listen,
            **self._link_options,
        )

    def start(self) -> None:
        """See `RedisClient`."""
        self._listening.start()
        super().start()

    def stop(self) -> Deferred[Any]:
        """See `RedisClient`."""
        stops = [super().stop(), self._listening.stop(), self._sentinels.stop()]
        return gatherResults(stops)

    async def _listen(self, connection: SubscriberConnection) -> None:
        connection.on_event = self._event
        await connection.subscribe_to("SUBSCRIBE", [_SWITCH.encode()])
        if self.available:  # a failover may have happened while nobody listened
            await self._look_again()

    async def _look_again(self) -> None:
        try:
            self._leave_others(await self._sentinels.locate())
        except BrokerUnavailable:
            """Nothing better is known than where the connections go now."""

    def _event(self, channel: bytes, pattern: bytes | None, payload: bytes) -> None:
        name, _, _, host, port = payload.decode().split(" ")
        if name == self._sentinels.service:
            self._leave_others(self._sentinels.switched(host, int(port)))

    def _leave_others(self, master: RedisAddress) -> None:
        for link in tuple(self._links):
            if link.address != master:
                link.moved()


class _Sentinels:
    """The `Locator` of their master."""

    def __init__(self, reactor: Any, address: SentinelAddress) -> None:
        self.service = address.service
        self._sentinels = dict.fromkeys(address.sentinels)
        self._configured = len(self._sentinels)
        self._server = address.server
        self._questions = Questions(reactor, timeout_s=_ASK_S)
        self._answer: Moment[RedisAddress] | None = None
        self._switched_to: RedisAddress | None = None

    @property
    def known(self) -> list[RedisAddress]:
        """All Sentinels that are known."""
        return list(self._sentinels)

    def switched(self, host: str, port: int) -> RedisAddress:
        """A Sentinel has told of a new master; the others may learn it later than we do."""
        self._switched_to = self._server.at(host, port)
        self._answer = None  # to questions that were asked before
        return self._switched_to

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
        switched_to, self._switched_to = self._switched_to, None
        if switched_to is not None:
            try:
                return await self._questions.first([self._master_at(switched_to)])
            except BrokerUnavailable:
                """It has changed again."""
        return await self._questions.first(self._ask_one(sentinel) for sentinel in self.known)

    async def _ask_one(self, sentinel: RedisAddress) -> RedisAddress:
        found, others = await self._questions.ask(
            sentinel,
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service),
            ("SENTINEL", "SENTINELS", self.service),
        )
        if found is None:
            raise BrokerUnavailable(f"{sentinel} knows no {self.service}")
        for other in others:
            self._learn(dict(zip(other[::2], other[1::2], strict=False)), sentinel)
        host, port = found
        return await self._master_at(self._server.at(host.decode(), int(port)))

    def _learn(self, other: dict[bytes, bytes], sentinel: RedisAddress) -> None:
        if len(self._sentinels) < self._configured + _LEARNED_LIMIT:
            self._sentinels.setdefault(sentinel.at(other[b"ip"].decode(), int(other[b"port"])))

    async def _master_at(self, address: RedisAddress) -> RedisAddress:
        """The address, if a master answers there: a Sentinel's word may be out of date."""
        (role,) = await self._questions.ask(address, ("ROLE",))
        if role[0] != b"master":
            raise BrokerUnavailable(f"{address} is no master")
        return address

    def refused(self, error: str) -> None:
        """See `Locator`; the Sentinels are asked anew each time."""

    def stop(self) -> Deferred[Any]:
        """Fires when nothing is left in the reactor."""
        return self._questions.stop()

    def __str__(self) -> str:
        return f"{self.service} of {', '.join(map(str, self._sentinels))}"


class _OneOf:
    """The `Locator` of a Sentinel, of another one each time."""

    def __init__(self, sentinels: _Sentinels) -> None:
        self._sentinels = sentinels
        self._turn = 0

    async def locate(self) -> RedisAddress:
        """See `Locator`."""
        self._turn += 1
        known = self._sentinels.known
        return known[self._turn % len(known)]

    def refused(self, error: str) -> None:
        """The next one is asked."""

    def __str__(self) -> str:
        return "a Sentinel"
