from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from pelotontx.broker.hub import Hub
from pelotontx.broker.memory import MemoryBroker
from pelotontx.gateway.juggler import (
    Gateway,
    JugglerEndpoint,
    JugglerLimits,
    RequestRefused,
    Session,
)
from tests.support.websocket_peer import CLOSE, TEXT, ServerTestCase, frame, request

SUB = b'{"meta":{"type":3,"uuid":"00000000-0000-4000-8000-000000000001"},"payload":{"channel":"c"}}'


class ConnectTests(ServerTestCase):
    """Hooks behind a real opening handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = Gateway()
        broker = MemoryBroker(self.clock)
        self.hub = Hub(caller=broker.caller, pubsub=broker.pubsub, wheel=self.wheel)
        self.endpoint = JugglerEndpoint(
            hub=self.hub,
            clock=self.clock,
            wheel=self.wheel,
            gateway=self.gateway,
            limits=JugglerLimits(hook_timeout_s=3),
        )
        self.make(accept=self.endpoint.accept)

    def ask(self, head: bytes = b"") -> str:
        """The status line of the answer, empty while there is none."""
        self.connect()
        self.receive(head or request())
        return self.status()

    def status(self) -> str:
        return self.transport.take().partition(b"\r\n")[0].decode()

    def errors(self) -> list[str]:
        return [str(failure.value) for failure in self.flushLoggedErrors()]

    def test_a_hook_refuses_with_an_http_status_before_101(self) -> None:
        @self.gateway.on_connect
        def check(session: Session) -> None:
            if session.query.get("token") != ["right"]:
                raise RequestRefused(401, "no token")

        self.assertEqual(self.ask(), "HTTP/1.1 401 Unauthorized")
        self.assertIsDropped()
        self.assertEqual(self.endpoint.connects_refused, 1)
        answer = self.ask(request("GET /ws?token=right HTTP/1.1"))
        self.assertEqual(answer, "HTTP/1.1 101 Switching Protocols")

    def test_a_code_that_is_no_http_error_becomes_403(self) -> None:
        def refuse(session: Session) -> None:
            raise RequestRefused(4001, "no")

        self.gateway.on_connect(refuse)
        self.assertEqual(self.ask(), "HTTP/1.1 403 Forbidden")

    def test_an_exception_is_500_and_logged(self) -> None:
        def fail(session: Session) -> None:
            raise ValueError("a secret")

        self.gateway.on_connect(fail)
        self.connect()
        self.receive(request())
        answer = self.transport.take()
        self.assertTrue(answer.startswith(b"HTTP/1.1 500 "))
        self.assertNotIn(b"secret", answer)
        self.assertEqual(self.errors(), ["a secret"])
        self.assertEqual(self.endpoint.panics_recovered, 1)

    def test_messages_that_came_while_a_hook_decided_are_handled_then(self) -> None:
        decision: Deferred[None] = Deferred()
        self.gateway.on_connect(lambda session: decision)
        self.assertEqual(self.ask(request() + frame(TEXT, SUB)), "")
        self.receive(frame(TEXT, SUB))
        self.assertEqual(self.hub.topics, 0)
        decision.callback(None)
        self.assertEqual(self.status(), "HTTP/1.1 101 Switching Protocols")
        self.assertEqual(self.hub.topics, 1)
        self.assertEqual(sum(self.endpoint.messages_read.values()), 2)

    def test_what_comes_while_a_hook_decides_is_bounded(self) -> None:
        self.gateway.on_connect(lambda session: Deferred())
        self.ask()
        self.receive(b"x" * 10_000, b"x" * 10_000)
        self.assertTrue(self.transport.is_aborted)

    def test_a_hook_that_takes_too_long_is_cancelled_with_the_handshake(self) -> None:
        cancelled: list[Any] = []
        self.gateway.on_connect(lambda session: Deferred(cancelled.append))
        self.ask()
        self.clock.advance(self.limits.open_timeout_s + 0.2)
        self.assertTrue(self.transport.is_aborted)
        self.lose()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.endpoint.sessions, {})

    def test_a_client_that_goes_meanwhile_cancels_the_hook(self) -> None:
        cancelled: list[Any] = []
        self.gateway.on_connect(lambda session: Deferred(cancelled.append))
        self.ask()
        self.lose()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.endpoint.sessions_total, 0)

    def test_a_foreign_origin_does_not_reach_the_hooks(self) -> None:
        asked: list[Session] = []
        self.gateway.on_connect(asked.append)
        self.assertEqual(self.ask(request(Origin="https://evil.test")), "HTTP/1.1 403 Forbidden")
        self.assertEqual(self.ask(request(Sec_WebSocket_Protocol="x")), "HTTP/1.1 400 Bad Request")
        self.assertEqual(asked, [])

    def test_a_server_that_has_begun_to_stop_refuses(self) -> None:
        decision: Deferred[None] = Deferred()
        self.gateway.on_connect(lambda session: decision)
        self.ask()
        Deferred.fromCoroutine(self.endpoint.drain(1))
        decision.callback(None)
        self.assertEqual(self.status(), "HTTP/1.1 503 Service Unavailable")

    def test_on_disconnect_is_told_the_code_and_a_failure_is_logged(self) -> None:
        gone: list[tuple[Session, int]] = []

        def fail(session: Session, code: int) -> None:
            raise ValueError("it broke")

        self.gateway.on_disconnect(fail)
        self.gateway.on_disconnect(lambda session, code: gone.append((session, code)))
        self.ask()
        self.receive(frame(CLOSE, b"\x0f\xa0"))
        self.lose()
        self.assertEqual([code for _, code in gone], [4000])
        self.assertEqual(self.errors(), ["it broke"])

    def test_stopping_waits_for_disconnect_hooks_and_not_for_ever(self) -> None:
        ends: list[Deferred[None]] = [Deferred(), Deferred()]
        waiting = iter(ends)
        self.gateway.on_disconnect(lambda session, code: next(waiting))
        self.ask()
        self.lose()
        self.ask()
        self.lose()
        drained = Deferred.fromCoroutine(self.endpoint.drain(1))
        ends[0].callback(None)
        self.assertNoResult(drained)
        self.clock.advance(4)
        self.successResultOf(drained)
        self.assertEqual(len(self.errors()), 1)
