"""The juggler endpoint: opens sessions, and ends them all when the server stops."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.python.failure import Failure

from pelotontx.errors import RequestRefused
from pelotontx.gateway.juggler.chained import ChainedSession, HookedSession
from pelotontx.gateway.juggler.gateway import Gateway, Session, run_hook
from pelotontx.gateway.juggler.limits import ALLOWED_HEADER, allowed_messages
from pelotontx.gateway.juggler.session import EndpointState, JugglerSession
from pelotontx.net.websocket import Accepted, Connection, Handshake, Refused
from pelotontx.net.wheel import Timer
from pelotontx.wire import juggler


class JugglerEndpoint(EndpointState):
    """Opens sessions, and counts what they do.

    Args:
        allow_empty_subprotocol: whether a client that offers no subprotocol at all is taken for one
            that speaks juggler.0.
        gateway: the application's middlewares and hooks.
        state: see `EndpointState`.

    Attributes:
        connects_refused: opening requests that were refused here.
    """

    def __init__(
        self,
        *,
        allow_empty_subprotocol: bool = False,
        gateway: Gateway | None = None,
        **state: Any,
    ) -> None:
        super().__init__(**state)
        self.connects_refused = 0
        self._allow_empty_subprotocol = allow_empty_subprotocol
        self._gateway = gateway
        self._farewells: dict[Deferred[None], None] = {}
        self._all_ended: Deferred[None] | None = None

    def accept(self, handshake: Handshake) -> Accepted | Deferred[Accepted]:
        """Decides about an opening request: a `pelotontx.net.websocket.Accept`."""
        try:
            subprotocol = self._subprotocol(handshake)
        except Refused:
            self.connects_refused += 1
            raise
        allowed = allowed_messages(handshake.headers.get(ALLOWED_HEADER))
        gateway = self._gateway
        if gateway is None:
            return subprotocol, lambda peer: self._opened(JugglerSession(self, peer, allowed))
        session_class = ChainedSession if gateway.middlewares else HookedSession
        session = Session(handshake, self.next_id())

        def open_session(peer: Connection) -> JugglerSession:
            return self._opened(
                session_class(self, peer, allowed, session=session, gateway=gateway)
            )

        if not gateway.connect_hooks:
            return subprotocol, open_session
        asking = Deferred.fromCoroutine(self._ask(gateway, session))
        return asking.addCallback(lambda _: (subprotocol, open_session))

    def _subprotocol(self, handshake: Handshake) -> str | None:
        subprotocol = None
        if juggler.SUBPROTOCOL in handshake.subprotocols:
            subprotocol = juggler.SUBPROTOCOL
        elif handshake.subprotocols or not self._allow_empty_subprotocol:
            raise Refused(400, f"The subprotocol {juggler.SUBPROTOCOL} is needed")
        if self.is_draining:
            raise Refused(503, "The server is stopping")
        return subprotocol

    async def _ask(self, gateway: Gateway, session: Session) -> None:
        """Whether the application takes the client; bounded by the opening handshake's time."""
        try:
            for hook in gateway.connect_hooks:
                await run_hook(hook, session)
            if self.is_draining:
                raise RequestRefused(503, "The server is stopping")
        except CancelledError:
            raise
        except RequestRefused as refusal:
            self.connects_refused += 1
            status = refusal.code if 400 <= refusal.code < 600 else 403
            raise Refused(status, refusal.message) from None
        except Exception:  # the application's code
            self.connects_refused += 1
            self.recover(Failure())
            raise Refused(500, "internal error") from None

    def _opened(self, session: JugglerSession) -> JugglerSession:
        self.sessions[session] = None
        self.sessions_total += 1
        return session

    def session_ended(self, session: JugglerSession, code: int) -> None:
        """Told by the session."""
        super().session_ended(session, code)
        if isinstance(session, HookedSession) and self._gateway is not None:
            for hook in self._gateway.disconnect_hooks:
                self._say_farewell(run_hook(hook, session.session, code))
        if self._all_ended is not None and not self.sessions:
            ended, self._all_ended = self._all_ended, None
            ended.callback(None)

    def _say_farewell(self, hook: Any) -> None:
        farewell = Deferred.fromCoroutine(hook).addErrback(self.recover)
        if not farewell.called:
            self._farewells[farewell] = None
            deadline = self.wheel.call_later(self.limits.hook_timeout_s, farewell.cancel)
            farewell.addBoth(self._farewell_said, farewell, deadline)

    def _farewell_said(self, _: object, farewell: Deferred[None], deadline: Timer) -> None:
        deadline.cancel()
        del self._farewells[farewell]

    async def drain(self, timeout_s: float) -> None:
        """Takes no more calls; each session is closed with 1001 when nothing of it is in flight.

        After `timeout_s` calls that have not ended are answered with an error, and all sessions
        closed. Ends when the last session is gone (the WebSocket's close timeout sees to that) and
        the last `on_disconnect` (`hook_timeout_s` to that).
        """
        self.is_draining = True
        for session in tuple(self.sessions):
            session.close_when_idle()
        if self.sessions:
            self._all_ended = Deferred()
            deadline = self.wheel.call_later(timeout_s, self._give_up)
            await self._all_ended
            deadline.cancel()
        await DeferredList(list(self._farewells))

    def _give_up(self) -> None:
        self.hub.give_up("the server is stopping")
        for session in tuple(self.sessions):
            session.say_goodbye()


__all__ = ["JugglerEndpoint"]
