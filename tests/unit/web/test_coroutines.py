"""Coroutines that are begun at once."""

from __future__ import annotations

from contextvars import ContextVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.web.coroutines import begin

variable: ContextVar[str] = ContextVar("variable", default="outside")


class BeginTests(SynchronousTestCase):
    def test_value_of_one_that_need_not_wait(self) -> None:
        async def answer() -> int:
            return 7

        async def fail() -> int:
            raise KeyError("x")

        self.assertEqual(begin(answer()), 7)
        with self.assertRaises(KeyError):
            begin(fail())

    def test_one_that_waits_goes_on_with_values_and_errors(self) -> None:
        first, second, third = Deferred[int](), Deferred[int](), Deferred[int]()

        async def answer() -> int:
            total = await first
            try:
                await second
            except KeyError:
                total += 10
            return total + await third

        waiting = begin(answer())
        assert isinstance(waiting, Deferred)
        first.callback(1)
        second.errback(KeyError("x"))
        self.assertNoResult(waiting)
        third.callback(100)
        self.assertEqual(self.successResultOf(waiting), 111)

    def test_failure_after_waiting_is_the_deferreds(self) -> None:
        first: Deferred[int] = Deferred()

        async def fail() -> None:
            await first
            raise KeyError("x")

        waiting = begin(fail())
        first.callback(1)
        assert isinstance(waiting, Deferred)
        self.failureResultOf(waiting, KeyError)

    def test_cancelling_reaches_what_it_waits_for(self) -> None:
        ended: list[str] = []

        async def wait() -> None:
            try:
                await Deferred[None](lambda _: ended.append("inner"))
            finally:
                ended.append("outer")

        waiting = begin(wait())
        assert isinstance(waiting, Deferred)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(ended, ["inner", "outer"])

    def test_context_is_its_own_and_one_from_beginning_to_end(self) -> None:
        first: Deferred[None] = Deferred()

        async def remember() -> str:
            token = variable.set("inside")
            await first
            seen = variable.get()
            variable.reset(token)
            return seen

        waiting = begin(remember())
        assert isinstance(waiting, Deferred)
        self.assertEqual(variable.get(), "outside")
        first.callback(None)
        self.assertEqual(self.successResultOf(waiting), "inside")
        self.assertEqual(variable.get(), "outside")
