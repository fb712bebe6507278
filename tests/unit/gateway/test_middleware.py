from __future__ import annotations

import contextlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from pelotontx.errors import LocalProtocolError
from pelotontx.gateway.juggler import (
    JugglerLimits,
    Message,
    Next,
    RequestRefused,
    Session,
    logging_middleware,
)
from pelotontx.wire import juggler
from pelotontx.wire.glob import GlobTable
from tests.unit.gateway.case import MiddlewareTestCase, SlowPubSub, pass_on


class ChainTests(MiddlewareTestCase):
    def test_every_message_of_both_directions_passes_in_order(self) -> None:
        seen: list[tuple[str, str, str]] = []

        async def note(session: Session, message: Message, next: Next) -> None:
            seen.append((message.direction, message.name, message.uri or message.channel))
            await next(message)

        self.use(note)
        self.send(3, channel="c")
        self.send(2, channel="c", args=1)
        self.send(1, uri="u")
        self.answer()
        self.send(3, channel="c*", pattern=True)
        self.assertEqual(
            seen,
            [
                *(("in", "SUB", "c"), ("out", "ACK", "c")),
                *(("in", "PUB", "c"), ("out", "ACK", "c")),
                *(("in", "CALL", "u"), ("out", "ACK", "u")),
                *(("out", "EVNT", "c"), ("out", "RES", "u")),
                *(("in", "SUB", "c*"), ("out", "NACK", "c*")),
            ],
        )

    def test_with_middleware_the_client_sees_the_same_messages(self) -> None:
        def talk() -> list[dict[str, Any]]:
            self.count = 0
            for type_, payload in (
                (3, {"channel": "c"}),
                (3, {"channel": "c*", "pattern": True}),
                (2, {"channel": "c", "args": ["0012", 1.50]}),
                (4, {"channel": "c"}),
                (1, {"uri": "u", "args": {"é": None}}),
                (1, {"uri": "u" * 300}),
            ):
                self.send(type_, **payload)
                self.clock.advance(0)
            self.answer()
            return [
                {"type": message["meta"]["type"], **message["payload"]}
                for message in self.connection.sent
            ]

        self.open(options={}, patterns=True)
        plain = talk()
        self.session.connection_lost(1000)
        self.use(pass_on, patterns=True)
        self.assertEqual(talk(), plain)
        self.assertEqual(self.endpoint.messages_written[juggler.ACK], 5)

    def test_the_first_added_is_outermost(self) -> None:
        order: list[str] = []

        def named(name: str) -> Any:
            async def middleware(session: Session, message: Message, next: Next) -> None:
                order.append(f"{name} {message.direction}")
                await next(message)
                order.append(f"{name} done")

            return middleware

        self.use(named("one"))
        self.use(named("two"))
        self.send(4, channel="c")
        self.assertEqual(order[:2], ["one in", "two in"])
        self.assertEqual(order[-2:], ["two done", "one done"])

    def test_a_message_that_is_not_passed_on_is_dropped(self) -> None:
        async def drop_calls(session: Session, message: Message, next: Next) -> None:
            if message.type != juggler.CALL:
                await next(message)

        self.use(drop_calls)
        self.send(1, uri="u")
        self.send(4, channel="c")
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.broker.waiting_calls, 0)

    def test_what_a_middleware_assigns_counts(self) -> None:
        async def rewrite(session: Session, message: Message, next: Next) -> None:
            if message.name == "CALL":
                message.args = {"by": "ann", "was": message.args}
                message.timeout_s = 0.5
                message.uri = f"v2.{message.uri}"
            elif message.name == "RES":
                message.uri = message.uri.removeprefix("v2.")
                message.args = [*message.args, "more"]
            await next(message)

        self.use(rewrite)
        sent = self.send(1, uri="u", args=7)
        (call,) = self.successResultOf(self.callee.take_calls(("v2.u",), 1))
        self.assertEqual(call.args, b'{"by":"ann","was":7}')
        self.assertEqual(call.expires_at_s, 0.5)
        self.callee.store_result(call, b"[1]", self.assertIsNone)
        self.clock.advance(0)
        self.assertEqual(
            self.connection.sent[-1]["payload"], {"for": sent, "uri": "u", "args": [1, "more"]}
        )

    def test_args_that_are_not_assigned_are_kept_byte_for_byte(self) -> None:
        async def read(session: Session, message: Message, next: Next) -> None:
            _ = message.args
            await next(message)

        self.use(read)
        frame = (
            b'{"meta":{"type":1,"uuid":"00000000-0000-4000-8000-000000000001"},'
            b'"payload":{"uri":"u","args":[1.50,"\\u00e9" ]}}'
        )
        self.session.text_received(frame)
        (call,) = self.successResultOf(self.callee.take_calls(("u",), 1))
        self.assertEqual(call.args, b'[1.50,"\\u00e9" ]')

    def test_passing_on_twice_is_an_error_and_happens_once(self) -> None:
        async def twice(session: Session, message: Message, next: Next) -> None:
            await next(message)
            if message.direction == "in":
                await next(message)

        self.use(twice)
        self.send(1, uri="u")
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.broker.waiting_calls, 1)
        self.assertEqual(self.errors(), ["a message was passed on twice"])

    def test_passing_on_twice_at_once_happens_once(self) -> None:
        gate: Deferred[None] = Deferred()

        async def wait(session: Session, message: Message) -> None:
            await gate

        async def twice(session: Session, message: Message, next: Next) -> None:
            if message.direction == "out":
                await next(message)
                return
            for passing in [Deferred.fromCoroutine(next(message)) for _ in range(2)]:
                await passing

        self.gateway.on_call(wait)
        self.use(twice)
        self.send(1, uri="u")
        gate.callback(None)
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.broker.waiting_calls, 1)
        self.assertEqual(self.errors(), ["a message was passed on twice"])

    def test_a_refused_message_is_not_performed_later(self) -> None:
        gate: Deferred[None] = Deferred()
        passing: list[Deferred[None]] = []

        async def wait(session: Session, message: Message) -> None:
            await gate

        async def refuse(session: Session, message: Message, next: Next) -> None:
            if message.direction == "out":
                await next(message)
                return
            passing.append(Deferred.fromCoroutine(next(message)))
            raise RequestRefused(403, "on second thoughts")

        self.gateway.on_call(wait)
        self.use(refuse)
        self.send(1, uri="u")
        gate.callback(None)
        self.assertEqual(self.connection.types(), ["NACK"])
        self.assertEqual(self.broker.waiting_calls, 0)
        self.failureResultOf(passing[0], LocalProtocolError)

    def test_an_answer_that_went_out_as_it_was_is_not_sent_again(self) -> None:
        gate: Deferred[None] = Deferred()
        passing: list[Deferred[None]] = []

        async def pass_on_later(message: Message, next: Next) -> None:
            await gate
            await next(message)

        async def fail(session: Session, message: Message, next: Next) -> None:
            if message.direction == "in":
                await next(message)
                return
            passing.append(Deferred.fromCoroutine(pass_on_later(message, next)))
            raise RequestRefused(500, "it broke")

        self.use(fail)
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.clock.advance(0)
        gate.callback(None)
        self.assertEqual(self.connection.types(), ["ACK", "ACK"])
        for passed in passing:
            self.failureResultOf(passed, LocalProtocolError)

    def test_a_call_counts_by_the_uri_that_was_called(self) -> None:
        async def alias(session: Session, message: Message, next: Next) -> None:
            public = message.uri
            if message.direction == "in":
                message.uri = f"inner.{public}"
            await next(message)
            message.uri = public  # what stands in ACK and RES

        own = JugglerLimits(calls_limit=1, result_limit_bytes=4)
        table = GlobTable([("inner.*", own)], JugglerLimits())
        self.gateway.middleware(alias)
        self.open(options={"gateway": self.gateway, "uri_limits": table})
        for _ in range(3):
            self.send(1, uri="u")
            self.answer(b'"12345"', uri="inner.u")
        self.assertEqual(self.connection.types(), ["ACK", "RES"] * 3)
        self.assertEqual(self.connection.sent[-1]["payload"]["uri"], "u")
        self.assertEqual(self.endpoint.limits_exceeded, 3)

    def test_what_waited_behind_an_own_event_comes_after_it(self) -> None:
        pubsub = SlowPubSub(self.broker)
        self.make_hub(pubsub)
        self.use(pass_on)
        pubsub.is_quick = True
        self.send(3, channel="c")
        pubsub.is_quick = False
        self.send(2, channel="c")
        self.send(3, channel="d")
        self.send(4, channel="c")
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "EVNT", "ACK"])

    def test_what_comes_while_others_that_waited_go_on_is_not_lost(self) -> None:
        pubsub = SlowPubSub(self.broker)
        self.make_hub(pubsub)
        gate: Deferred[None] = Deferred()

        async def hold_z(session: Session, message: Message, next: Next) -> None:
            if message.name == "PUB" and message.channel == "z":
                await gate
            await next(message)
            if message.name == "ACK" and message.channel == "y":
                gate.callback(None)

        self.use(hold_z)
        sent = [
            self.send(2, channel="a"),
            self.send(3, channel="x"),
            self.send(4, channel="y"),
            self.send(2, channel="z"),
        ]
        pubsub.publishing[0].callback(None)
        pubsub.subscribing[0].callback(None)
        pubsub.publishing[1].callback(None)
        self.assertEqual(sorted(self.connection.answers()), [("ACK", uuid) for uuid in sent])


class FailureTests(MiddlewareTestCase):
    def test_an_error_of_ours_closes_with_1011_whatever_middleware_does(self) -> None:
        async def swallow(session: Session, message: Message, next: Next) -> None:
            with contextlib.suppress(Exception):
                await next(message)

        self.use(swallow)
        self.hub.call = None  # type: ignore[assignment, method-assign]
        self.send(1, uri="u")
        self.assertEqual(self.connection.closed, (1011, "internal error"))
        self.assertEqual(self.endpoint.panics_recovered, 1)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_a_refusal_is_a_nack_with_its_code(self) -> None:
        async def refuse(session: Session, message: Message, next: Next) -> None:
            if message.name == "CALL":
                raise RequestRefused(401, "who are you?")
            await next(message)

        self.use(refuse)
        self.send(1, uri="u")
        self.assertEqual(self.nacks(), [(401, "who are you?")])
        self.assertEqual(self.endpoint.panics_recovered, 0)

    def test_an_exception_is_nack_500_logged_counted_and_survived(self) -> None:
        async def fail(session: Session, message: Message, next: Next) -> None:
            if message.name == "CALL":
                raise ValueError("a secret")
            await next(message)

        self.use(fail)
        self.send(1, uri="u")
        self.send(4, channel="c")
        self.assertEqual(self.nacks(), [(500, "internal error")])
        self.assertEqual(self.connection.types(), ["NACK", "ACK"])
        self.assertEqual((self.errors(), self.endpoint.panics_recovered), (["a secret"], 1))
        self.assertIsNone(self.connection.closed)

    def test_an_exception_after_passing_on_is_logged_only(self) -> None:
        async def fail_late(session: Session, message: Message, next: Next) -> None:
            await next(message)
            if message.direction == "in":
                raise RequestRefused(403, "too late")

        self.use(fail_late)
        self.send(1, uri="u")
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.errors(), ["403 too late"])

    def test_on_the_way_out_an_event_is_withheld_and_answers_arrive(self) -> None:
        async def fail(session: Session, message: Message, next: Next) -> None:
            if message.direction == "out":
                raise ValueError(message.name)
            await next(message)

        self.use(fail)
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.send(1, uri="u")
        self.answer(b'"secret"')
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "ACK", "RES"])
        error = self.connection.sent[-1]["payload"]["args"]
        self.assertEqual(error, {"error": {"message": "internal error"}})
        self.assertEqual(self.errors(), ["ACK", "ACK", "ACK", "EVNT", "RES"])

    def test_a_refused_event_is_withheld_and_a_refused_result_says_why(self) -> None:
        async def refuse(session: Session, message: Message, next: Next) -> None:
            if message.name in ("EVNT", "RES"):
                raise RequestRefused(403, "not for you")
            await next(message)

        self.use(refuse)
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.send(1, uri="u")
        self.answer()
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "ACK", "RES"])
        error = self.connection.sent[-1]["payload"]["args"]
        self.assertEqual(error, {"error": {"message": "not for you"}})


class HookTests(MiddlewareTestCase):
    def test_each_request_has_its_hook(self) -> None:
        seen: list[str] = []
        for add in (self.gateway.on_call, self.gateway.on_publish, self.gateway.on_subscribe):
            add(lambda session, message: seen.append(message.name))
        self.open()
        self.send(1, uri="u")
        self.send(2, channel="c")
        self.send(3, channel="c")
        self.send(4, channel="c")
        self.assertEqual(seen, ["CALL", "PUB", "SUB"])

    def test_plain_functions_coroutines_and_deferreds_may_refuse(self) -> None:
        def plain(session: Session, message: Message) -> None:
            if message.channel == "plain":
                raise RequestRefused(403, "plain")

        async def coroutine(session: Session, message: Message) -> None:
            if message.channel == "coroutine":
                raise RequestRefused(429, "coroutine")

        waiting: Deferred[None] = Deferred()

        def deferred(session: Session, message: Message) -> Deferred[None] | None:
            return waiting if message.channel == "deferred" else None

        for hook in (plain, coroutine, deferred):
            self.gateway.on_subscribe(hook)
        self.open()
        for channel in ("plain", "coroutine", "deferred", "other"):
            self.send(3, channel=channel)
        waiting.errback(RequestRefused(401, "deferred"))
        self.assertEqual(self.nacks(), [(403, "plain"), (429, "coroutine"), (401, "deferred")])
        self.assertEqual(self.connection.types()[-1], "ACK")
        self.assertEqual(self.hub.topics, 1)

    def test_a_hook_that_returns_something_refuses(self) -> None:
        self.gateway.on_call(lambda session, message: False)
        self.open()
        self.send(1, uri="u")
        self.assertEqual(self.nacks(), [(500, "internal error")])
        self.assertEqual(len(self.errors()), 1)

    def test_with_hooks_alone_an_event_is_encoded_once_for_all(self) -> None:
        self.gateway.on_subscribe(lambda session, message: None)
        connections = []
        for _ in range(2):
            self.open()
            self.send(3, channel="c")
            connections.append(self.connection)
        self.send(2, channel="c")
        self.clock.advance(0)
        one, two = (connection.sent[-1] for connection in connections)
        self.assertEqual(one, two)  # the message's own uuid too

    def test_hooks_come_after_the_middlewares(self) -> None:
        async def enter(session: Session, message: Message, next: Next) -> None:
            session.state.user = "ann"
            await next(message)

        def check(session: Session, message: Message) -> None:
            if session.state.user != message.channel:
                raise RequestRefused(403, "not yours")

        self.gateway.on_publish(check)
        self.use(enter)
        self.send(2, channel="ann")
        self.send(2, channel="bob")
        self.assertEqual(self.connection.types(), ["ACK", "NACK"])


class ApplicationTypeTests(MiddlewareTestCase):
    def test_a_middleware_may_handle_types_of_its_own(self) -> None:
        async def greet(session: Session, message: Message, next: Next) -> None:
            if message.type == 300:
                session.acknowledge(message)
                session.answer(message, {"hello": message.args})
            else:
                await next(message)

        self.use(greet)
        sent = self.send(300, args="ann")
        self.send(4, channel="c")
        ack, res, _ = (message["payload"] for message in self.connection.sent)
        self.assertEqual(ack, {"for": sent, "for_type": 300})
        self.assertEqual(res, {"for": sent, "args": {"hello": "ann"}})
        self.assertEqual(self.endpoint.messages_read, {juggler.APPLICATION: 1, juggler.UNSB: 1})

    def test_at_the_end_of_the_chain_they_are_refused(self) -> None:
        for type_, closed in (
            (300, (1008, "unknown message type 300")),
            (256, (1002, "EXP is not for a client to send")),
            (200, (1008, "unknown message type 200")),
            (8, (1002, "ACK is not for a client to send")),
        ):
            self.use(pass_on)
            self.send(type_)
            self.assertEqual(self.connection.closed, closed)

    def test_a_flood_of_them_is_limited_too(self) -> None:
        self.use(pass_on, message_rate=1, message_burst=1)
        for _ in range(2):
            self.send(300)
        self.assertEqual(self.nacks(), [(429, "too many messages")])


class SessionObjectTests(MiddlewareTestCase):
    def test_a_session_knows_its_opening_request(self) -> None:
        sessions: list[Session] = []
        self.gateway.on_connect(sessions.append)
        headers = {"cookie": 'a=1; b="2"; c', "origin": "https://shop.example"}
        self.open(headers, {"gateway": self.gateway})
        session = sessions[0]
        self.assertEqual((session.path, session.query), ("/ws", {"token": ["a b", "c"]}))
        self.assertEqual(session.cookies, {"a": "1", "b": "2"})
        self.assertEqual((session.origin, session.peer), ("https://shop.example", "p"))
        self.assertEqual(session.subprotocols, ("juggler.0",))
        session.close(4000, "bye")
        self.assertEqual(self.connection.closed, (4000, "bye"))

    def test_two_sessions_share_nothing(self) -> None:
        sessions: list[Session] = []
        self.gateway.on_connect(sessions.append)
        self.open()
        self.open()
        sessions[0].state.user = "ann"
        self.assertFalse(hasattr(sessions[1].state, "user"))
        self.assertNotEqual(sessions[0].id, sessions[1].id)


class LoggingTests(MiddlewareTestCase):
    def test_messages_are_logged_without_their_args(self) -> None:
        with capturedLogs() as events:
            self.use(logging_middleware())
            self.send(1, uri="u", args="secret")
        logged = [(event["direction"], event["name"], event["subject"]) for event in events]
        self.assertEqual(logged, [("out", "ACK", "u"), ("in", "CALL", "u")])
        self.assertTrue(all(event["log_level"] == LogLevel.debug for event in events))
        self.assertNotIn("secret", str(events))

    def test_a_slow_one_is_a_warning(self) -> None:
        with capturedLogs() as events:
            self.use(logging_middleware(slow_s=-1))
            self.send(4, channel="c")
        self.assertEqual({event["log_level"] for event in events}, {LogLevel.warn})
