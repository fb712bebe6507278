import os
import shutil
import signal
import stat
import tempfile
from itertools import pairwise
from typing import Any

from twisted.internet.error import ConnectError
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.embedded import EmbeddedValkey, PrivateDirectory, valkey_path
from tests.support.processes import FakeProcess, ProcessReactor


class TemporaryBase(SynchronousTestCase):
    def setUp(self) -> None:
        self.base = tempfile.mkdtemp(prefix="pt-")
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)


class EmbeddedValkeyTests(TemporaryBase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = ProcessReactor()
        self.valkey = self.make()

    def make(self, **options: Any) -> EmbeddedValkey:
        options = {"base": self.base, "binary": "/bin/valkey", **options}
        return EmbeddedValkey(self.reactor, **options)

    @property
    def process(self) -> FakeProcess:
        return self.reactor.processes[-1]

    def refuse(self) -> None:
        _, factory, _, _ = self.reactor.unixClients.pop()
        factory.clientConnectionFailed(None, Failure(ConnectError("nobody there")))

    def answer(self, data: bytes) -> None:
        address, factory, _, _ = self.reactor.unixClients.pop()
        self.assertEqual(address, self.valkey.socket_path)
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        self.assertEqual(transport.value(), b"PING\r\n")
        for byte in data:
            protocol.dataReceived(bytes([byte]))
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(Failure(ConnectError()))

    def stop(self) -> None:
        stopped = self.valkey.stopService()
        self.process.end()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_the_url_is_known_before_the_start_and_nothing_was_made(self) -> None:
        self.assertTrue(self.valkey.url.startswith(f"unix://{self.base}/pelotontx-"))
        self.assertEqual(os.listdir(self.base), [])
        self.assertIsNone(self.valkey.tcp_url)

    def test_it_is_ready_when_it_has_answered(self) -> None:
        self.valkey.startService()
        ready = self.valkey.ready
        self.refuse()
        self.reactor.advance(0.01)
        self.answer(b"-LOADING wait\r\n")
        self.reactor.advance(0.02)
        self.assertNoResult(ready)
        self.assertFalse(self.valkey.is_ready)
        self.answer(b"+PONG\r\n")
        self.assertIsNone(self.successResultOf(ready))
        self.assertIsNone(self.successResultOf(self.valkey.ready))
        self.assertTrue(self.valkey.is_ready)
        self.stop()

    def test_it_listens_where_it_says_and_stores_nothing(self) -> None:
        self.valkey.startService()
        words = self.process.arguments
        options = dict(pairwise(words))
        self.assertEqual(options["--unixsocket"], self.valkey.socket_path)
        self.assertEqual(options["--port"], "0")
        self.assertEqual((options["--save"], options["--appendonly"]), ("", "no"))
        self.assertEqual(options["--maxmemory-policy"], "noeviction")
        directory = os.path.dirname(self.valkey.socket_path)
        self.assertEqual(stat.S_IMODE(os.stat(directory).st_mode), 0o700)
        self.stop()
        self.assertEqual(os.listdir(self.base), [])

    def test_tcp_is_for_loopback_only(self) -> None:
        self.valkey = self.make(tcp_port=7777)
        self.valkey.startService()
        words = self.process.arguments
        options = dict(pairwise(words))
        self.assertEqual((options["--port"], options["--bind"]), ("7777", "127.0.0.1"))
        self.assertEqual(self.valkey.tcp_url, "redis://127.0.0.1:7777")
        self.stop()

    def test_ready_fails_past_its_timeout_and_the_silent_server_is_killed(self) -> None:
        self.valkey.startService()
        ready = self.valkey.ready
        for _ in range(100):
            if self.reactor.unixClients:
                self.refuse()
            self.reactor.advance(0.11)
        self.failureResultOf(ready, BrokerUnavailable)
        self.assertEqual(self.process.signals, [signal.SIGKILL])
        self.process.kill()
        self.reactor.advance(0.1)
        self.assertEqual(len(self.reactor.processes), 2)
        self.stop()

    def test_a_connection_that_hangs_is_given_up_for_another(self) -> None:
        self.valkey.startService()
        self.assertEqual(len(self.reactor.unixClients), 1)
        self.reactor.advance(1.1)
        self.reactor.advance(0.1)
        self.assertEqual(len(self.reactor.unixClients), 2)
        self.stop()

    def test_it_comes_back_on_the_same_socket(self) -> None:
        self.valkey.startService()
        self.answer(b"+PONG\r\n")
        url, first = self.valkey.url, self.process
        first.kill()
        self.assertFalse(self.valkey.is_ready)
        again = self.valkey.ready
        self.reactor.advance(0.1)
        self.assertEqual(self.process.arguments, first.arguments)
        self.assertNoResult(again)
        self.answer(b"+PONG\r\n")
        self.successResultOf(again)
        self.assertEqual(self.valkey.url, url)
        self.assertEqual(self.valkey.state()["restarts"], 1)
        self.stop()

    def test_ready_survives_a_run_that_ends_early(self) -> None:
        self.valkey.startService()
        ready = self.valkey.ready
        self.refuse()
        self.process.end(1)
        self.reactor.advance(0.1)
        self.assertNoResult(ready)
        self.answer(b"+PONG\r\n")
        self.successResultOf(ready)
        self.stop()

    def test_stop_fails_who_waits_and_removes_the_directory_last(self) -> None:
        self.valkey.startService()
        ready = self.valkey.ready
        stopped = self.valkey.stopService()
        self.failureResultOf(ready, BrokerUnavailable)
        self.assertEqual(self.process.signals, [signal.SIGTERM])
        self.assertNoResult(stopped)
        self.assertEqual(len(os.listdir(self.base)), 1)
        self.process.end()
        self.successResultOf(stopped)
        self.assertEqual(os.listdir(self.base), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.failureResultOf(self.valkey.ready, BrokerUnavailable)

    def test_it_may_be_started_again_after_a_stop(self) -> None:
        self.valkey.startService()
        url = self.valkey.url
        self.stop()
        self.reactor.unixClients.clear()
        self.valkey.startService()
        ready = self.valkey.ready
        self.answer(b"+PONG\r\n")
        self.successResultOf(ready)
        self.assertEqual(self.valkey.url, url)
        self.stop()

    def test_a_start_that_cannot_be_is_told_by_ready(self) -> None:
        self.valkey = self.make(base=os.path.join(self.base, "missing"))
        with capturedLogs() as events:
            self.valkey.startService()
        self.failureResultOf(self.valkey.ready, BrokerUnavailable)
        self.assertFalse(self.valkey.is_ready)
        self.assertEqual(events[-1]["log_level"], LogLevel.critical)
        self.assertEqual(self.valkey.state()["state"], "stopped")
        self.successResultOf(self.valkey.stopService())

    def test_only_its_warnings_are_warnings(self) -> None:
        self.valkey.startService()
        stamp = b"17:M 21 Nov 2026 03:57:10.628 "
        with capturedLogs() as events:
            self.process.write(stamp + b"* Ready to accept connections unix\n")
            self.process.write(stamp + b"# WARNING Memory overcommit must be enabled!\n")
            self.process.write(stamp + b"# Out of memory # really\n")
            self.process.write(b"17:signal-handler (1795) Received SIGTERM\n")
        levels = [event["log_level"] for event in events]
        self.assertEqual(levels, [LogLevel.debug, LogLevel.debug, LogLevel.warn, LogLevel.debug])
        self.stop()


class PrivateDirectoryTests(TemporaryBase):
    def claimed(self) -> PrivateDirectory:
        directory = PrivateDirectory(self.base)
        directory.claim()
        self.addCleanup(directory.release)
        return directory

    def abandoned(self, name: str, *, age_s: float = 0) -> str:
        path = os.path.join(self.base, name)
        os.mkdir(path)
        with open(os.path.join(path, "valkey.sock"), "wb"):
            pass
        past = os.stat(path).st_mtime - age_s
        os.utime(path, (past, past))
        return path

    def test_the_next_owner_removes_what_dead_owners_left(self) -> None:
        path = self.abandoned("pelotontx-0badcafe")
        directory = self.claimed()
        self.assertFalse(os.path.exists(path))
        self.assertTrue(os.path.isdir(directory.path))

    def test_the_living_are_left_alone(self) -> None:
        first, second = self.claimed(), self.claimed()
        self.assertTrue(os.path.isdir(first.path))
        self.assertTrue(os.path.isdir(second.path))

    def test_one_in_the_making_is_left_alone_until_it_is_old(self) -> None:
        young = self.abandoned("pelotontx-00000001.new")
        old = self.abandoned("pelotontx-00000002.new", age_s=100)
        self.claimed()
        self.assertTrue(os.path.exists(young))
        self.assertFalse(os.path.exists(old))

    def test_files_links_and_other_names_are_left_alone(self) -> None:
        other = self.abandoned("something-else")
        link = os.path.join(self.base, "pelotontx-link")
        os.symlink(other, link)
        file = os.path.join(self.base, "pelotontx-file")
        with open(file, "wb"):
            pass
        self.claimed()
        for path in (other, link, file, os.path.join(other, "valkey.sock")):
            self.assertTrue(os.path.lexists(path))

    def test_release_removes_it_and_may_be_repeated(self) -> None:
        directory = self.claimed()
        directory.release()
        directory.release()
        self.assertEqual(os.listdir(self.base), [])

    def test_a_base_too_long_for_a_socket_is_refused(self) -> None:
        base = os.path.join(self.base, "x" * 100)
        os.mkdir(base)
        with self.assertRaisesRegex(BrokerUnavailable, "longer than"):
            _ = PrivateDirectory(base).path


class ValkeyPathTests(SynchronousTestCase):
    def test_it_names_a_program(self) -> None:
        self.assertTrue(os.access(valkey_path(), os.X_OK))

    def test_a_missing_package_and_a_missing_wheel_are_told_apart(self) -> None:
        with self.assertRaisesRegex(BrokerUnavailable, "no_such_package is not installed"):
            valkey_path("no_such_package")
        with self.assertRaisesRegex(BrokerUnavailable, "json has no Valkey for Linux"):
            valkey_path("json")
