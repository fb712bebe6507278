import signal
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.process import ChildProcess, ExitStatus, Moment
from tests.support.processes import FakeProcess, ProcessReactor


class ChildProcessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = ProcessReactor()
        self.lines: list[str] = []

    def start(self, **options: Any) -> tuple[ChildProcess, FakeProcess]:
        child = ChildProcess(
            self.reactor, ["server", "--fast"], name="x", on_line=self.lines.append, **options
        )
        child.start()
        return child, self.reactor.processes[-1]

    def assert_nothing_left(self) -> None:
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_the_command_ends_the_wrapper_s_arguments(self) -> None:
        child, process = self.start(environ={"A": "b"}, cwd="/somewhere")
        self.assertEqual(process.arguments[-3:], ["/somewhere", "server", "--fast"])
        self.assertEqual(process.environ, {"A": "b"})
        self.assertEqual(child.pid, process.pid)

    def test_lines_are_cut_wherever_the_bytes_were_split(self) -> None:
        _, process = self.start()
        for data in (b"on", b"e\ntwo\r\n", b"\nthr", b"ee\xff\n"):
            process.write(data)
        self.assertEqual(self.lines, ["one", "two", "", "three\ufffd"])

    def test_both_outputs_keep_lines_of_their_own(self) -> None:
        _, process = self.start()
        process.write(b"out", fd=1)
        process.write(b"err\n", fd=2)
        process.write(b"put\n", fd=1)
        self.assertEqual(self.lines, ["err", "output"])

    def test_the_rest_of_a_long_line_is_dropped(self) -> None:
        _, process = self.start(line_limit_bytes=4)
        for data in (b"abc", b"defg", b"hij\nkl\n"):
            process.write(data)
        self.assertEqual(self.lines, ["abcd", "kl"])

    def test_a_last_line_without_an_end_is_told(self) -> None:
        _, process = self.start()
        process.write(b"bye")
        process.end()
        self.assertEqual(self.lines, ["bye"])

    def test_exited_fires_for_all_who_wait_and_who_come_later(self) -> None:
        child, process = self.start()
        first, second = child.exited, child.exited
        process.end(3)
        for waiter in (first, second, child.exited):
            self.assertEqual(self.successResultOf(waiter), ExitStatus(3, None))
        self.assertIsNone(child.pid)
        self.assert_nothing_left()

    def test_exited_waits_for_the_pipes(self) -> None:
        child, process = self.start()
        exited = child.exited
        process.exit()
        self.assertNoResult(exited)
        process.close()
        self.assertEqual(str(self.successResultOf(exited)), "exit status 0")

    def test_pipes_that_somebody_else_holds_are_closed_after_a_while(self) -> None:
        _, process = self.start()
        process.exit()
        self.reactor.advance(0.9)
        self.assertFalse(process.has_lost_pipes)
        self.reactor.advance(0.2)
        self.assertTrue(process.has_lost_pipes)
        self.assert_nothing_left()

    def test_stop_terminates_and_kills_past_the_timeout(self) -> None:
        child, process = self.start()
        stopped = child.stop(timeout_s=2)
        self.assertEqual(process.signals, [signal.SIGTERM])
        self.reactor.advance(1.9)
        self.assertEqual(process.signals, [signal.SIGTERM])
        self.reactor.advance(0.2)
        self.assertEqual(process.signals, [signal.SIGTERM, signal.SIGKILL])
        self.assertNoResult(stopped)
        process.kill()
        self.assertIsNone(self.successResultOf(stopped))
        self.assert_nothing_left()

    def test_the_earlier_timeout_of_two_stops_counts(self) -> None:
        child, process = self.start()
        first, second = child.stop(timeout_s=10), child.stop(timeout_s=1)
        child.stop(timeout_s=20)
        self.reactor.advance(1.1)
        self.assertEqual(process.signals, [signal.SIGTERM, signal.SIGKILL])
        process.kill()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_stop_without_a_timeout_kills_at_once(self) -> None:
        child, process = self.start()
        child.stop(timeout_s=10)
        child.stop(timeout_s=0)
        self.assertEqual(process.signals, [signal.SIGTERM, signal.SIGKILL])
        process.kill()
        self.assert_nothing_left()

    def test_stop_before_the_start_and_after_the_end_is_done_at_once(self) -> None:
        unborn = ChildProcess(self.reactor, ["x"], name="x", on_line=self.lines.append)
        self.successResultOf(unborn.stop())
        child, process = self.start()
        process.end()
        self.successResultOf(child.stop())
        child.signal(signal.SIGHUP)
        self.assertEqual(process.signals, [])

    def test_a_cancelled_wait_disturbs_nobody(self) -> None:
        child, process = self.start()
        waiter, stopped = child.exited, child.stop()
        waiter.cancel()
        stopped.cancel()
        self.failureResultOf(waiter, CancelledError)
        self.failureResultOf(stopped, CancelledError)
        other = child.exited
        process.end()
        self.successResultOf(other)

    def test_without_a_pidfd_it_looks_from_time_to_time(self) -> None:
        _, process = self.start()
        self.reactor.pump([0.1] * 11)
        self.assertGreaterEqual(process.reap_attempts, 3)
        process.end()
        self.assert_nothing_left()

    def test_a_failing_spawn_is_raised(self) -> None:
        self.reactor.fails_with = BlockingIOError("too many processes")
        with self.assertRaises(OSError):
            self.start()


class ExitStatusTests(SynchronousTestCase):
    def test_it_reads_well(self) -> None:
        self.assertEqual(str(ExitStatus(2, None)), "exit status 2")
        self.assertEqual(str(ExitStatus(None, signal.SIGKILL)), "killed by SIGKILL")
        self.assertEqual(str(ExitStatus(None, 40)), "killed by signal 40")


class MomentTests(SynchronousTestCase):
    def test_it_happens_once(self) -> None:
        moment: Moment[int] = Moment()
        waiter = moment.wait()
        moment.happen(1)
        moment.happen(2)
        moment.fail(ValueError())
        self.assertEqual(self.successResultOf(waiter), 1)
        self.assertEqual(self.successResultOf(moment.wait()), 1)

    def test_one_waiter_may_cancel_another(self) -> None:
        moment: Moment[int] = Moment()
        first, second = moment.wait(), moment.wait()
        first.addCallback(lambda result: second.cancel())
        moment.happen(1)
        self.failureResultOf(second, CancelledError)

    def test_a_failure_reaches_all(self) -> None:
        moment: Moment[int] = Moment()
        before = moment.wait()
        moment.fail(ValueError())
        self.failureResultOf(before, ValueError)
        self.failureResultOf(moment.wait(), ValueError)
        self.assertFalse(moment.has_happened)
