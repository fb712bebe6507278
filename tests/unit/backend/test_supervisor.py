import signal

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.backend.supervisor import Supervisor
from tests.support.processes import ProcessReactor


class SupervisorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = ProcessReactor()
        self.supervisor = Supervisor(
            self.reactor,
            command=["peloton", "callee", "shop.rpc:callee"],
            count=2,
            name="rpc",
            environ={"PATH": "/bin"},
            stop_timeout_s=3,
        )
        self.processes = self.reactor.processes

    def test_nothing_runs_before_the_start(self) -> None:
        self.assertEqual(self.processes, [])
        states = [state["state"] for state in self.supervisor.state()]
        self.assertEqual(states, ["stopped", "stopped"])

    def test_it_runs_count_processes_of_the_command(self) -> None:
        self.supervisor.startService()
        self.assertEqual(len(self.processes), 2)
        for process in self.processes:
            self.assertEqual(process.arguments[-3:], ["peloton", "callee", "shop.rpc:callee"])
            self.assertEqual(process.environ, {"PATH": "/bin"})
        state = self.supervisor.state()
        self.assertEqual([entry["name"] for entry in state], ["rpc[0]", "rpc[1]"])
        self.assertEqual([entry["pid"] for entry in state], [p.pid for p in self.processes])

    def test_one_that_ends_is_started_again_and_the_other_stays(self) -> None:
        self.supervisor.startService()
        self.processes[1].kill()
        self.reactor.advance(0.1)
        self.assertEqual(len(self.processes), 3)
        restarts = [entry["restarts"] for entry in self.supervisor.state()]
        self.assertEqual(restarts, [0, 1])
        self.assertFalse(self.supervisor.has_failed)

    def test_a_command_that_always_ends_is_given_up(self) -> None:
        self.supervisor.startService()
        survivor, broken = self.processes
        for _ in range(5):
            broken.end(1)
            self.reactor.advance(1)
            broken = self.processes[-1]
        states = [entry["state"] for entry in self.supervisor.state()]
        self.assertEqual(states, ["running", "failed"])
        self.assertTrue(self.supervisor.has_failed)
        self.assertEqual(survivor.signals, [])

    def test_lines_are_logged_with_their_process(self) -> None:
        self.supervisor.startService()
        with capturedLogs() as events:
            self.processes[1].write(b"100% {ready}\n")
        [event] = events
        self.assertEqual(
            (event["log_level"], event["label"], event["line"]),
            (LogLevel.info, "rpc[1]", "100% {ready}"),
        )

    def test_stop_is_parallel_bounded_and_awaits_all(self) -> None:
        self.supervisor.startService()
        stopped = self.supervisor.stopService()
        for process in self.processes:
            self.assertEqual(process.signals, [signal.SIGTERM])
        self.processes[0].end()
        self.assertNoResult(stopped)
        self.reactor.advance(3)
        self.assertEqual(self.processes[1].signals, [signal.SIGTERM, signal.SIGKILL])
        self.processes[1].kill()
        self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(self.reactor.getDelayedCalls(), [])
