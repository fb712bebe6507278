"""The commands of `peloton client`, over any number of numbered connections.

Knows nothing of terminals: `terminal` reads the lines and shows what comes out.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import msgspec
from twisted.internet.defer import Deferred

from pelotontx.cli.texts import printable, with_hint
from pelotontx.client import Client, State, Subscription
from pelotontx.errors import (
    CallExpired,
    CallFailed,
    Disconnected,
    PelotonError,
    RemoteProtocolError,
    RequestRefused,
)
from pelotontx.wire import juggler

# How long a frame of the user's own is waited for.
_SEND_TIMEOUT_S: Final = 5.0
# Names that completion remembers, and frames sent by hand whose result is still shown.
_SEEN_LIMIT: Final = 1000

_NUMBER = re.compile(r"\d{1,9}\Z").match

HELP: Final = """\
connect [URL]                  open another connection, with a number of its own
disconnect [N]                 cut it: no closing handshake
close [N]                      close it with code 1000
call [N] URI [[TIMEOUT] JSON]  call a function; TIMEOUT in milliseconds, only before JSON
pub [N] CHANNEL [JSON]         publish an event
sub [N] CHANNEL                subscribe to a channel
psub [N] PATTERN               subscribe to all channels that match, as news.*
unsb [N] CHANNEL               end sub
punsb [N] PATTERN              end psub
send [N] TEXT                  send a text frame as it is
rand                           print a random uuid, for send
help                           this
exit                           close everything and leave
N is a connection's number; without it the newest one is meant."""

Show = Callable[[str, str, str], object]


class Refusal(Exception):
    """A command that was not understood or did not succeed.

    The text is for the user, and empty when what happened has been shown already.
    """


class Exit(Exception):  # a decision, not an error
    """The user wants to leave."""


@dataclass(slots=True, eq=False)
class _Link:
    """One numbered connection."""

    number: int
    client: Client
    is_lost: bool = False
    subscriptions: dict[tuple[str, bool], Subscription] = field(default_factory=dict)
    # Ids of frames sent by hand, and who waits for their answer.
    by_hand: OrderedDict[str, Deferred[None]] = field(default_factory=OrderedDict)


class Shell:
    """Runs command lines.

    Args:
        reactor: for the connections.
        show: called with the head of a line (time and connection), its kind (RES, OPEN, error...)
            and the text; nothing in them needs escaping.
        url: what ``connect`` opens without an argument.
        raw: show what the servers send as it came.
        timestamp: put the time into the head.
        now: the time.
    """

    def __init__(
        self,
        *,
        reactor: Any,
        show: Show,
        url: str,
        raw: bool = False,
        timestamp: bool = False,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._reactor = reactor
        self._show = show
        self._url = url
        self._raw = raw
        self._timestamp = timestamp
        self._now = now
        self._links: dict[int, _Link] = {}
        self._last_number = 0
        self._is_leaving = False
        self.seen: OrderedDict[str, None] = OrderedDict()
        self.commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "connect": self._connect,
            "disconnect": self._disconnect,
            "close": self._close,
            "call": self._call,
            "pub": self._pub,
            "sub": lambda rest: self._sub(rest, pattern=False),
            "psub": lambda rest: self._sub(rest, pattern=True),
            "unsb": lambda rest: self._unsb(rest, pattern=False),
            "punsb": lambda rest: self._unsb(rest, pattern=True),
            "send": self._send,
            "rand": self._rand,
            "help": self._help,
            "exit": self._exit,
        }

    @property
    def states(self) -> list[tuple[int, str, str]]:
        """Number, state and URL of each connection."""
        return [(n, str(link.client.state), link.client.url) for n, link in self._links.items()]

    @property
    def is_subscribed(self) -> bool:
        """Whether events may still come."""
        return any(link.subscriptions for link in self._links.values())

    async def run(self, line: str) -> bool:
        """Runs one command and waits for its answer.

        Returns:
            whether it succeeded; if not, that was shown.

        Raises:
            Exit: for ``exit``.
        """
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#"):
            return True
        command = self.commands.get(words[0].lower())
        try:
            if command is None:
                raise Refusal(f"no command {words[0]}; try help")
            await command(words[1].strip() if len(words) > 1 else "")
        except RequestRefused:
            return False  # the NACK was shown
        except (Refusal, PelotonError) as error:
            if str(error) and not self._is_leaving:
                self._say(None, "error", str(error))
            return False
        return True

    async def close_all(self) -> None:
        """Closes every connection; commands that wait end without a word."""
        self._is_leaving = True
        for link in list(self._links.values()):
            await link.client.close()

    # Connections.

    async def _connect(self, rest: str) -> None:
        url = rest or self._url
        number = self._last_number + 1
        client = Client(
            url,
            reactor=self._reactor,
            on_state=lambda state, cause: self._state(number, state, cause),
            on_message=lambda frame: self._received(number, frame),
        )
        self._last_number = number
        self._links[number] = _Link(number, client)
        self._remember(url)
        try:
            await client.connect(retry=False)
        except Disconnected:
            raise Refusal("")  # _state has shown it

    async def _disconnect(self, rest: str) -> None:
        link, rest = self._take_link(rest)
        _nothing_left(rest)
        await link.client.close(abort=True)

    async def _close(self, rest: str) -> None:
        link, rest = self._take_link(rest)
        _nothing_left(rest)
        await link.client.close()

    def _state(self, number: int, state: State, cause: Disconnected | None) -> None:
        link = self._links[number]
        if state is State.OPEN:
            link.is_lost = False
            self._say(number, "OPEN", link.client.url)
        elif state is State.WAITING:
            if not link.is_lost:  # further attempts that fail say nothing new
                self._say(number, "LOST", f"{cause}; connecting again")
            link.is_lost = True
        elif state is State.CLOSED:
            self._say(number, "CLOSED", "" if cause is None else with_hint(cause))
            del self._links[number]
        if state is not State.OPEN:
            while link.by_hand:
                _, waiting = link.by_hand.popitem()
                if not waiting.called:
                    waiting.errback(cause or Disconnected("closed"))

    def _take_link(self, rest: str) -> tuple[_Link, str]:
        """The connection that a line means, by its number or as the newest, and what follows."""
        first, _, others = rest.partition(" ")
        if _NUMBER(first) is not None:
            link = self._links.get(int(first))
            if link is None:
                raise Refusal(f"no connection {first}")
            return link, others.strip()
        if not self._links:
            raise Refusal("no connection; open one with connect")
        return self._links[max(self._links)], rest

    # Messages out.

    async def _call(self, rest: str) -> None:
        link, rest = self._take_link(rest)
        uri, rest = self._take_name(rest, "URI")
        first, _, others = rest.partition(" ")
        timeout_s = None
        if _NUMBER(first) is not None and others.strip():
            timeout_s, rest = int(first) / 1000, others.strip()
        await self._calling(link, uri, _json(rest), timeout_s)

    async def _calling(self, link: _Link, uri: str, args: Any, timeout_s: float | None) -> None:
        try:
            result = await link.client.call(uri, args, timeout_s=timeout_s)
        except CallExpired:
            self._say(link.number, "EXP", uri)
            raise Refusal("")
        except CallFailed as error:
            self._tell(link.number, "RES", uri, {"error": error.payload})
            raise Refusal("")
        self._tell(link.number, "RES", uri, result)

    async def _pub(self, rest: str) -> None:
        link, rest = self._take_link(rest)
        channel, rest = self._take_name(rest, "CHANNEL")
        await link.client.publish(channel, _json(rest))

    async def _sub(self, rest: str, *, pattern: bool) -> None:
        link, channel = self._take_only_name(rest, pattern)
        if (channel, pattern) in link.subscriptions:
            raise Refusal(f"already subscribed to {channel}")
        # What it gets is shown as it comes in, by _received.
        subscription = await link.client.subscribe(channel, _ignore, pattern=pattern)
        link.subscriptions[subscription.key] = subscription

    async def _unsb(self, rest: str, *, pattern: bool) -> None:
        link, channel = self._take_only_name(rest, pattern)
        subscription = link.subscriptions.pop((channel, pattern), None)
        if subscription is not None:
            await link.client.unsubscribe(subscription)
            return
        # The server has the last word on what it knows.
        uuid = str(uuid4())
        await self._by_hand(link, uuid, juggler.encode_unsb(uuid, channel, pattern=pattern))

    async def _send(self, rest: str) -> None:
        link, frame = self._take_link(rest)
        if not frame:
            raise Refusal("send what?")
        await self._by_hand(link, _uuid_of(frame), frame.encode())

    async def _by_hand(self, link: _Link, uuid: str, frame: bytes) -> None:
        """Sends a frame that `Client` knows nothing of, and waits for its answer."""
        link.client.send(frame)
        answered: Deferred[None] = Deferred()
        link.by_hand[uuid] = answered
        if len(link.by_hand) > _SEEN_LIMIT:
            link.by_hand.popitem(last=False)
        try:
            await answered.addTimeout(_SEND_TIMEOUT_S, self._reactor)
        except TimeoutError:
            raise Refusal("no answer")

    async def _rand(self, rest: str) -> None:
        _nothing_left(rest)
        self._say(None, "", str(uuid4()))

    async def _help(self, rest: str) -> None:
        for line in HELP.splitlines():
            self._say(None, "", line)

    async def _exit(self, rest: str) -> None:
        raise Exit

    def _take_name(self, rest: str, what: str) -> tuple[str, str]:
        name, _, others = rest.partition(" ")
        if not name:
            raise Refusal(f"{what} is missing; try help")
        self._remember(name)
        return name, others.strip()

    def _take_only_name(self, rest: str, pattern: bool) -> tuple[_Link, str]:
        link, rest = self._take_link(rest)
        name, rest = self._take_name(rest, "PATTERN" if pattern else "CHANNEL")
        _nothing_left(rest)
        return link, name

    def _remember(self, name: str) -> None:
        self.seen[name] = None
        self.seen.move_to_end(name)
        if len(self.seen) > _SEEN_LIMIT:
            self.seen.popitem(last=False)

    # Messages in.

    def _received(self, number: int, frame: bytes) -> None:
        link = self._links.get(number)
        if self._raw:
            self._say(number, "", frame.decode().rstrip("\n"))
        try:
            message = juggler.decode_response(frame)
        except RemoteProtocolError as error:
            self._say(number, "BAD", error.reason)
            return
        if not self._raw:
            self._explain(number, link, message)
        is_final = message.meta.type != juggler.ACK or message.payload.for_type != juggler.CALL
        if link is not None and is_final:
            waiting = link.by_hand.get(message.payload.for_)
            if waiting is not None and not waiting.called:
                waiting.callback(None)

    def _explain(self, number: int, link: _Link | None, message: juggler.Message) -> None:
        payload = message.payload
        kind = juggler.NAMES[message.meta.type]
        subject = payload.uri or payload.channel
        if message.meta.type in (juggler.ACK, juggler.NACK):
            request = juggler.NAMES.get(payload.for_type, str(payload.for_type))
            reason = f" {payload.code} {payload.message}" if payload.code else ""
            self._say(number, kind, f"{request} {subject}{reason}")
        elif message.meta.type == juggler.EVNT:
            pattern = f" ({payload.pattern})" if payload.pattern else ""
            self._say(number, kind, f"{subject}{pattern} {_text(payload.args)}")
        elif link is not None and payload.for_ in link.by_hand:
            self._say(number, kind, f"{subject} {_text(payload.args)}")

    def _tell(self, number: int, kind: str, subject: str, value: Any) -> None:
        if not self._raw:
            self._say(number, kind, f"{subject} {msgspec.json.encode(value).decode()}")

    def _say(self, number: int | None, kind: str, text: str) -> None:
        head = f"{self._now().isoformat(timespec='milliseconds')} " if self._timestamp else ""
        if number is not None:
            head += f"[{number}] "
        self._show(head, kind, printable(text))


def _ignore(_: object) -> None:
    """The handler of subscriptions whose events are shown elsewhere."""


def _nothing_left(rest: str) -> None:
    if rest:
        raise Refusal(f"what is {rest!r}? try help")


def _text(args: msgspec.Raw) -> str:
    return bytes(args).decode() or "null"


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text or "null")
    except (msgspec.DecodeError, UnicodeError) as error:
        hint = f"; a string needs quotes: {json.dumps(text)}" if text[0].isalpha() else ""
        if text[0] == "'":
            hint = "; there is no shell here that would take single quotes away"
        raise Refusal(f"{text!r} is not JSON: {error}{hint}")


def _uuid_of(frame: str) -> str:
    """The id of a frame sent by hand; one that no answer has, when it is not understood."""
    try:
        return str(msgspec.json.decode(frame)["meta"]["uuid"])
    except (msgspec.DecodeError, UnicodeError, LookupError, TypeError):
        return str(uuid4())
