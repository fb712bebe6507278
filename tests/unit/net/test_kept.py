import signal
from typing import Any

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.kept import Backoff, KeptProcess
from pelotontx.net.process import ChildProcess
from tests.support.processes import ProcessReactor


class KeptProcessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = ProcessReactor()
        self.reactor.advance(1000)
        self.runs: list[ChildProcess] = []
        self.exits = 0

    def make(self, **options: Any) -> KeptProcess:
        return KeptProcess(
            self.reactor,
            ["worker"],
            name="worker[0]",
            on_line=lambda line: None,
            on_start=self.runs.append,
            on_exit=self.count_exit,
            backoff=Backoff(draw=lambda: 1.0),
            **options,
        )

    def count_exit(self) -> None:
        self.exits += 1

    def test_it_is_started_again_on_the_same_command(self) -> None:
        kept = self.make()
        kept.start()
        first = self.reactor.processes[0]
        self.assertEqual(kept.state()["pid"], first.pid)
        first.kill()
        self.assertEqual(kept.state()["state"], "waiting")
        self.assertIsNone(kept.state()["pid"])
        self.reactor.advance(0.1)
        second = self.reactor.processes[1]
        self.assertEqual(second.arguments, first.arguments)
        self.assertEqual(
            kept.state(),
            {
                "name": "worker[0]",
                "pid": second.pid,
                "state": "running",
                "restarts": 1,
                "for_s": 0.0,
            },
        )
        self.assertEqual((len(self.runs), self.exits), (2, 1))

    def test_delays_double_to_the_limit(self) -> None:
        kept = self.make()
        kept.start()
        delays = []
        for _ in range(9):
            self.reactor.processes[-1].end(1)
            began = self.reactor.seconds()
            [retry] = self.reactor.getDelayedCalls()
            delays.append(round(retry.getTime() - began, 6))
            self.reactor.advance(delays[-1])
        self.assertEqual(delays, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])

    def test_a_long_run_forgets_the_delays(self) -> None:
        kept = self.make()
        kept.start()
        for _ in range(4):
            self.reactor.processes[-1].end(1)
            self.reactor.advance(5)
        self.reactor.advance(10)
        self.reactor.processes[-1].end(1)
        self.reactor.advance(0.1)
        self.assertEqual(kept.state()["state"], "running")

    def test_it_gives_up_loudly(self) -> None:
        kept = self.make(give_up_after=5)
        with capturedLogs() as events:
            kept.start()
            for _ in range(5):
                self.reactor.processes[-1].end(1)
                self.reactor.advance(1.6)
        self.assertEqual(kept.state()["state"], "failed")
        self.assertEqual(len(self.reactor.processes), 5)
        self.assertEqual(kept.state()["restarts"], 4)
        self.assertEqual(events[-1]["log_level"], LogLevel.critical)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        kept.start()
        self.assertEqual(kept.state()["state"], "running")

    def test_it_goes_on_when_the_ends_are_far_apart(self) -> None:
        kept = self.make(give_up_after=5)
        kept.start()
        for _ in range(12):
            self.reactor.advance(2.6)
            self.reactor.processes[-1].end(1)
            self.reactor.advance(5)
        self.assertEqual(kept.state()["state"], "running")

    def test_a_failing_spawn_is_tried_again(self) -> None:
        kept = self.make()
        self.reactor.fails_with = BlockingIOError("too many processes")
        kept.start()
        self.assertEqual(kept.state()["state"], "waiting")
        self.reactor.fails_with = None
        self.reactor.advance(0.1)
        self.assertEqual(kept.state()["state"], "running")

    def test_stop_ends_it_for_good(self) -> None:
        kept = self.make()
        kept.start()
        stopped = kept.stop()
        self.assertEqual(kept.state()["state"], "stopping")
        self.assertEqual(self.reactor.processes[0].signals, [signal.SIGTERM])
        self.assertNoResult(stopped)
        self.reactor.processes[0].end()
        self.successResultOf(stopped)
        self.assertEqual(kept.state()["state"], "stopped")
        self.reactor.advance(100)
        self.assertEqual(len(self.reactor.processes), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_while_it_waits_cancels_the_next_start(self) -> None:
        kept = self.make()
        kept.start()
        self.reactor.processes[0].kill()
        self.successResultOf(kept.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class BackoffTests(SynchronousTestCase):
    def test_half_of_a_delay_is_random(self) -> None:
        self.assertEqual(Backoff(first_s=1, draw=lambda: 0.0).next_s(), 0.5)
        self.assertEqual(Backoff(first_s=1, draw=lambda: 0.5).next_s(), 0.75)
