"""The reactor's polling and flushing, on pipes of its own; it is never run."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.reactor import PelotonReactor


class Pipe(FileDescriptor):
    """One end of a pipe that notes what the reactor does with it."""

    def __init__(self, reactor: PelotonReactor, descriptor: int) -> None:
        super().__init__(reactor)
        self.descriptor = descriptor
        self.connected = 1
        self.seen: list[object] = []
        self.answer: Any = None

    def fileno(self) -> int:
        return self.descriptor

    def doRead(self) -> Any:
        self.seen.append(os.read(self.descriptor, 100))
        return self._answered()

    def doWrite(self) -> Any:
        self.seen.append("write")
        return self._answered()

    def _answered(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return self.answer()
        return self.answer

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.seen.append(reason.type.__name__)


class Recorder:
    """A dirty transport."""

    def __init__(self, action: Any = None) -> None:
        self.flushed = 0
        self.action = action

    def flush(self) -> None:
        self.flushed += 1
        if self.action is not None:
            self.action()


class PelotonReactorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = PelotonReactor()
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        self.addCleanup(self.close_reactor)
        self.write_end = write
        self.pipe = Pipe(self.reactor, read)

    def close_reactor(self) -> None:
        self.reactor.removeAll()
        for waker in self.reactor._internalReaders:
            waker.connectionLost(Failure(CONNECTION_DONE))
        self.reactor._poller.close()

    def test_readable_descriptor_is_read(self) -> None:
        self.pipe.startReading()
        os.write(self.write_end, b"x")
        self.reactor.doPoll(0)
        self.assertEqual(self.pipe.seen, [b"x"])

    def test_writable_descriptor_is_written(self) -> None:
        pipe = Pipe(self.reactor, self.write_end)
        pipe.startWriting()
        self.reactor.doPoll(0)
        self.assertEqual(pipe.seen, ["write"])

    def test_error_is_logged_and_disconnects(self) -> None:
        self.pipe.answer = ValueError("no")
        self.pipe.startReading()
        os.write(self.write_end, b"x")
        self.reactor.doPoll(0)
        self.assertEqual(self.pipe.seen, [b"x", "ValueError"])
        self.assertNotIn(self.pipe, self.reactor.getReaders())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_returned_reason_disconnects(self) -> None:
        self.pipe.answer = lambda: CONNECTION_DONE
        self.pipe.startReading()
        os.write(self.write_end, b"x")
        self.reactor.doPoll(0)
        self.assertEqual(self.pipe.seen, [b"x", "ConnectionDone"])

    def test_failing_connection_lost_is_logged_and_hurts_nobody_else(self) -> None:
        dirty = Recorder()

        def answer() -> object:
            self.reactor.dirty.append(dirty)
            return CONNECTION_DONE

        def connection_lost(_: Failure) -> None:
            raise ValueError("no")

        self.pipe.answer = answer
        self.pipe.connectionLost = connection_lost  # type: ignore[method-assign]
        self.pipe.startReading()
        os.write(self.write_end, b"x")
        self.reactor.doPoll(0)
        self.assertEqual(dirty.flushed, 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_hangup_ends_the_descriptor(self) -> None:
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        pipe = Pipe(self.reactor, read)
        pipe.startReading()
        os.close(write)
        self.reactor.doPoll(0)
        self.assertEqual(pipe.seen, ["ConnectionDone"])

    def test_transport_dirtied_by_an_event_is_flushed_after_it(self) -> None:
        dirty = Recorder()
        self.pipe.answer = lambda: self.reactor.dirty.append(dirty)
        self.pipe.startReading()
        os.write(self.write_end, b"x")
        self.reactor.doPoll(0)
        self.assertEqual(dirty.flushed, 1)
        self.assertEqual(self.reactor.dirty, [])

    def test_transport_dirtied_by_a_timer_is_flushed_before_the_poll(self) -> None:
        dirty = Recorder()
        self.reactor.callLater(0, self.reactor.dirty.append, dirty)
        self.reactor.runUntilCurrent()
        self.reactor.doPoll(0)
        self.assertEqual(dirty.flushed, 1)

    def test_call_scheduled_by_a_flush_shortens_the_poll(self) -> None:
        self.reactor.dirty.append(Recorder(lambda: self.reactor.callLater(0, int)))
        self.assertEqual(self.reactor._flush_before(None), 0)
        self.reactor.dirty.append(Recorder())
        self.assertEqual(self.reactor._flush_before(5), 0)

    def test_poll_does_not_sleep_over_what_a_flush_made_dirty(self) -> None:
        again = Recorder()
        self.reactor.dirty.append(Recorder(lambda: self.reactor.dirty.append(again)))
        self.assertEqual(self.reactor._flush_before(None), 0)
        self.assertEqual(again.flushed, 0)
        self.reactor.doPoll(0)
        self.assertEqual(again.flushed, 1)

    def test_poll_does_not_sleep_over_a_stop(self) -> None:
        def stop() -> None:
            self.reactor._justStopped = True

        self.reactor.dirty.append(Recorder(stop))
        self.assertEqual(self.reactor._flush_before(None), 0)

    def test_sleep_is_kept_when_a_flush_changes_nothing(self) -> None:
        self.reactor.dirty.append(Recorder())
        self.assertIsNone(self.reactor._flush_before(None))
        self.reactor.dirty.append(Recorder())
        self.assertEqual(self.reactor._flush_before(5), 5)

    def test_a_step_of_the_wall_clock_is_no_time(self) -> None:
        self.assertIs(PelotonReactor.seconds, monotonic)

    def test_failing_flush_does_not_stop_the_others(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        last = Recorder()
        self.reactor.dirty += [Recorder(fail), last]
        self.reactor.flush()
        self.assertEqual(last.flushed, 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_twistd_knows_it_by_name(self) -> None:
        from twisted.application.reactors import getReactorTypes

        modules = {kind.shortName: kind.moduleName for kind in getReactorTypes()}
        self.assertEqual(modules["peloton"], "pelotontx.net.reactor")
