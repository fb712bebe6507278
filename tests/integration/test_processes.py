"""Real processes: the embedded Valkey, supervised workers, and the test servers themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.task import deferLater

from pelotontx.backend.supervisor import Supervisor
from pelotontx.errors import BrokerUnavailable
from pelotontx.net.embedded import EmbeddedValkey, ping
from pelotontx.net.process import _BECOME, ChildProcess
from tests.integration.conftest import LoggedErrors
from tests.support.servers import (
    RedisServer,
    eventually,
    free_port,
    is_alive,
    redis_binary,
    redis_command,
    valkey_binary,
)

PYTHON = [sys.executable, "-c"]


@pytest_twisted.async_yield_fixture
async def reactor() -> AsyncIterator[Any]:
    """The installed reactor, running; a test may leave nothing in it."""
    from twisted.internet import reactor

    readers = {id(reader) for reader in reactor.getReaders()}
    calls = set(reactor.getDelayedCalls())
    yield reactor
    assert set(reactor.getDelayedCalls()) <= calls
    assert [r for r in reactor.getReaders() if id(r) not in readers] == []


@pytest.fixture
def base() -> Iterator[str]:
    """A short folder: it holds sockets."""
    path = tempfile.mkdtemp(prefix="pt-")
    yield path
    shutil.rmtree(path)


@pytest_twisted.async_yield_fixture
async def valkey(reactor: Any, base: str) -> AsyncIterator[EmbeddedValkey]:
    service = EmbeddedValkey(reactor, base=base)
    service.startService()
    yield service
    await service.stopService()


class Run:
    """One child and its lines; ended by `stop`."""

    def __init__(self, reactor: Any, *arguments: str, **options: Any) -> None:
        self.reactor = reactor
        self.lines: list[str] = []
        self.child = ChildProcess(
            reactor, arguments, name="run", on_line=self.lines.append, **options
        )
        self.child.start()
        self.pid = self.child.pid or 0

    async def line(self, number: int = 0) -> str:
        await eventually(self.reactor, lambda: len(self.lines) > number)
        return self.lines[number]


# ---------------------------------------------------------------------------------- one child


@pytest_twisted.ensureDeferred
async def test_child_runs_as_it_was_asked_to(reactor: Any, base: str) -> None:
    code = (
        "import os, sys, json; print(json.dumps(dict(cwd=os.getcwd(), env=dict(os.environ), "
        "stdin=sys.stdin.read(), session=os.getsid(0), pid=os.getpid())))"
    )
    environ = {"A": "b", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    run = Run(reactor, *PYTHON, code, environ=environ, cwd=base)
    assert str(await run.child.exited) == "exit status 0"
    seen = json.loads(run.lines[0])
    assert seen["cwd"] == os.path.realpath(base)
    assert seen["env"] == environ
    assert seen["stdin"] == ""
    assert seen["session"] == seen["pid"] == run.pid


@pytest_twisted.ensureDeferred
async def test_child_inherits_neither_ignored_signals_nor_a_locale(reactor: Any) -> None:
    environ = {"PATH": os.environ["PATH"]}
    run = Run(reactor, "sh", "-c", "grep SigIgn /proc/self/status; env", environ=environ)
    await run.child.exited
    ignored = int(run.lines[0].split()[1], 16)
    assert ignored & 0x7FFF_FFFF == 0  # above are the C library's own and the real-time signals
    assert not [line for line in run.lines if line.startswith("LC_")]


@pytest_twisted.ensureDeferred
async def test_command_that_cannot_run_says_so(reactor: Any, base: str) -> None:
    run = Run(reactor, f"{base}/nothing-here")
    assert str(await run.child.exited) == "exit status 127"
    assert "nothing-here" in run.lines[0]
    assert "No such file" in run.lines[0]


@pytest_twisted.ensureDeferred
async def test_child_that_ignores_sigterm_is_killed(reactor: Any) -> None:
    run = Run(reactor, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    await run.line()
    exited = run.child.exited
    await run.child.stop(timeout_s=0.2)
    assert str(await exited) == "killed by SIGKILL"
    await run.child.stop()


@pytest_twisted.ensureDeferred
async def test_stopped_at_once_after_its_start(reactor: Any) -> None:
    for timeout_s in (0, 5):
        run = Run(reactor, "sleep", "100")
        await run.child.stop(timeout_s=timeout_s)
        assert not is_alive(run.pid)


@pytest_twisted.ensureDeferred
async def test_what_a_child_leaves_behind_ends_with_it(reactor: Any) -> None:
    run = Run(reactor, "sh", "-c", "sleep 100 & echo $!; exit 3")
    assert str(await run.child.exited) == "exit status 3"
    await eventually(reactor, lambda: not is_alive(int(run.lines[0])))


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_holds_the_pipes_does_not_hold_us(reactor: Any) -> None:
    run = Run(reactor, "sh", "-c", "setsid sh -c 'echo $$; exec sleep 100' & sleep 0.3")
    daemon = int(await run.line())
    try:
        await run.child.exited
        assert is_alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_a_parent_that_died_before_prctl_is_noticed(reactor: Any) -> None:
    words = ["1", str(int(signal.SIGTERM)), "13", "", "", "echo", "still here"]
    run = Run(reactor, *PYTHON, _BECOME, *words)
    assert str(await run.child.exited) == "exit status 1"
    assert run.lines == ["the parent process is gone"]


WITHOUT_SIGNALS = """
import sys, threading
from {module} import install
install()
from twisted.internet import reactor
from pelotontx.net.process import ChildProcess

left = 20
def count(status):
    global left
    left -= 1
    if not left:
        reactor.stop()

def start():
    for _ in range(left):
        # The pipes are closed long before the end: only the end itself can tell.
        child = ChildProcess(
            reactor, ["sh", "-c", "exec >&- 2>&-; exec sleep 0.2"], name="x", on_line=print)
        child.start()
        child.exited.addCallback(count)

reactor.callWhenRunning(start)
reactor.callLater(20, sys.exit, "not reaped")
reactor.run(installSignalHandlers=False)
print("reaped")
"""


@pytest.mark.parametrize(
    "module",
    [
        "pelotontx.net.reactor",
        "twisted.internet.epollreactor",
        "twisted.internet.asyncioreactor",
        "twisted.internet.selectreactor",
    ],
)
@pytest_twisted.ensureDeferred
async def test_children_are_reaped_without_signal_handlers(reactor: Any, module: str) -> None:
    run = Run(reactor, *PYTHON, WITHOUT_SIGNALS.format(module=module))
    assert str(await run.child.exited) == "exit status 0", run.lines
    assert run.lines == ["reaped"]


# -------------------------------------------------------------------------- the embedded Valkey


async def command(reactor: Any, valkey: EmbeddedValkey, *words: str | int) -> Any:
    endpoint = UNIXClientEndpoint(reactor, valkey.socket_path)
    return await redis_command(reactor, endpoint, *words)


@pytest_twisted.ensureDeferred
async def test_valkey_answers_and_stores(reactor: Any, valkey: EmbeddedValkey) -> None:
    await valkey.ready
    assert await command(reactor, valkey, "SET", "k", "v") == b"OK"
    assert await command(reactor, valkey, "GET", "k") == b"v"
    assert valkey.url == f"unix://{valkey.socket_path}"
    limit = await command(reactor, valkey, "CONFIG", "GET", "client-output-buffer-limit")
    assert b"pubsub 67108864 16777216 60" in limit[1]


@pytest_twisted.ensureDeferred
async def test_only_we_can_reach_its_socket(reactor: Any, valkey: EmbeddedValkey) -> None:
    await valkey.ready
    assert os.stat(valkey.socket_path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(valkey.socket_path)).st_mode & 0o777 == 0o700
    with open(f"/proc/{valkey.state()['pid']}/net/tcp") as table:
        inodes = {line.split()[9] for line in table.readlines()[1:]}
    folder = f"/proc/{valkey.state()['pid']}/fd"
    files = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
    assert not inodes & {file[8:-1] for file in files if file.startswith("socket:")}


@pytest_twisted.ensureDeferred
async def test_killed_valkey_comes_back_on_the_same_socket(
    reactor: Any, valkey: EmbeddedValkey
) -> None:
    await valkey.ready
    await command(reactor, valkey, "SET", "k", "v")
    url, pid = valkey.url, valkey.state()["pid"]
    assert pid is not None
    for restarts in (1, 2):
        os.kill(valkey.state()["pid"] or 0, signal.SIGKILL)
        await eventually(reactor, lambda: not valkey.is_ready)
        await valkey.ready
        assert valkey.state()["restarts"] == restarts
    assert valkey.url == url
    assert valkey.state()["pid"] != pid
    assert await command(reactor, valkey, "GET", "k") is None
    assert await command(reactor, valkey, "SET", "k", "w") == b"OK"


@pytest_twisted.ensureDeferred
async def test_stopped_valkey_leaves_no_process_and_no_directory(reactor: Any, base: str) -> None:
    valkey = EmbeddedValkey(reactor, base=base)
    for _ in range(2):
        valkey.startService()
        await valkey.ready
        pid = valkey.state()["pid"]
        assert pid is not None
        await valkey.stopService()
        assert not is_alive(pid)
        assert os.listdir(base) == []


@pytest_twisted.ensureDeferred
async def test_valkey_stopped_while_it_starts_leaves_nothing(reactor: Any, base: str) -> None:
    for delay_s in (0, 0.005, 0.02, 0.05):
        valkey = EmbeddedValkey(reactor, base=base)
        valkey.startService()
        pid = valkey.state()["pid"]
        assert pid is not None
        await deferLater(reactor, delay_s)
        await valkey.stopService()
        assert not is_alive(pid)
        assert os.listdir(base) == []


@pytest_twisted.ensureDeferred
async def test_valkey_serves_tcp_and_debian_s_server_will_do(reactor: Any, base: str) -> None:
    valkey = EmbeddedValkey(reactor, base=base, tcp_port=free_port(), binary=redis_binary())
    valkey.startService()
    try:
        await valkey.ready
        assert valkey.tcp_url is not None
        port = int(valkey.tcp_url.rpartition(":")[2])
        assert await command(reactor, valkey, "CONFIG", "GET", "port") == [
            b"port",
            str(port).encode(),
        ]
    finally:
        await valkey.stopService()


VALKEY_PARENT = """
import sys
from pelotontx.net.reactor import install
install()
from twisted.internet import reactor
from pelotontx.net.embedded import EmbeddedValkey
valkey = EmbeddedValkey(reactor, base=sys.argv[1])
valkey.startService()
valkey.ready.addCallback(lambda _: print(valkey.state()["pid"], flush=True))
reactor.run()
"""


@pytest_twisted.ensureDeferred
async def test_valkey_dies_with_a_killed_parent_and_the_next_one_cleans_up(
    reactor: Any, base: str
) -> None:
    parent = Run(reactor, *PYTHON, VALKEY_PARENT, base)
    pid = int(await parent.line())
    [left] = os.listdir(base)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.child.exited
    await eventually(reactor, lambda: not is_alive(pid), timeout_s=5)
    assert os.listdir(base) == [left]
    heir = EmbeddedValkey(reactor, base=base)
    heir.startService()
    assert left not in os.listdir(base)
    await heir.ready
    await heir.stopService()
    assert os.listdir(base) == []


@pytest_twisted.ensureDeferred
async def test_two_servers_of_one_user_do_not_disturb_each_other(
    reactor: Any, base: str, valkey: EmbeddedValkey
) -> None:
    other = EmbeddedValkey(reactor, base=base)
    other.startService()
    await valkey.ready
    await other.ready
    await command(reactor, valkey, "SET", "k", "v")
    assert await command(reactor, other, "GET", "k") is None
    await other.stopService()
    assert await command(reactor, valkey, "GET", "k") == b"v"


# ------------------------------------------------------------------------------ the supervisor


@pytest_twisted.ensureDeferred
async def test_killed_worker_is_started_again(reactor: Any) -> None:
    supervisor = Supervisor(reactor, command=["sleep", "100"], count=2, name="sleep")
    supervisor.startService()
    first, second = (entry["pid"] or 0 for entry in supervisor.state())
    os.kill(first, signal.SIGKILL)
    await eventually(reactor, lambda: supervisor.state()[0]["restarts"] == 1)
    await eventually(reactor, lambda: supervisor.state()[0]["pid"] is not None)
    third = supervisor.state()[0]["pid"] or 0
    assert third not in (first, second)
    assert supervisor.state()[1]["pid"] == second
    await supervisor.stopService()
    assert not any(is_alive(pid) for pid in (first, second, third))


@pytest_twisted.ensureDeferred
async def test_worker_that_always_ends_is_given_up(reactor: Any, logged: LoggedErrors) -> None:
    supervisor = Supervisor(reactor, command=["false"], count=1, name="false")
    supervisor.startService()
    await eventually(reactor, lambda: supervisor.has_failed)
    assert supervisor.state()[0]["restarts"] == 4
    assert logged.flush_text("it stays down") == 1
    await supervisor.stopService()


WORKERS_PARENT = """
import sys
from pelotontx.net.reactor import install
install()
from twisted.internet import reactor
from pelotontx.backend.supervisor import Supervisor
supervisor = Supervisor(reactor, command=["sleep", "100"], count=3, name="sleep")
supervisor.startService()
print(*[entry["pid"] for entry in supervisor.state()], flush=True)
reactor.callLater(float(sys.argv[1]), lambda: print("late", flush=True))
reactor.run()
"""


@pytest.mark.parametrize("delay_s", [0, 0.5], ids=["while they start", "while they run"])
@pytest_twisted.ensureDeferred
async def test_workers_end_with_a_killed_parent(reactor: Any, delay_s: float) -> None:
    parent = Run(reactor, *PYTHON, WORKERS_PARENT, str(delay_s))
    await parent.line(1 if delay_s else 0)
    pids = [int(word) for word in parent.lines[0].split()]
    os.kill(parent.pid, signal.SIGKILL)
    await parent.child.exited
    await eventually(reactor, lambda: not any(map(is_alive, pids)), timeout_s=5)


@pytest_twisted.ensureDeferred
async def test_sigterm_to_the_parent_ends_them_in_order(reactor: Any, base: str) -> None:
    code = VALKEY_PARENT.replace(
        "reactor.run()",
        "reactor.addSystemEventTrigger('before', 'shutdown', valkey.stopService); reactor.run()",
    )
    parent = Run(reactor, *PYTHON, code, base)
    pid = int(await parent.line())
    await parent.child.stop(timeout_s=10)
    assert not is_alive(pid)
    assert os.listdir(base) == []


# ----------------------------------------------------------------------------- the test servers


@pytest.mark.parametrize("binary", [redis_binary, valkey_binary], ids=["redis", "valkey"])
@pytest_twisted.ensureDeferred
async def test_test_server_survives_what_tests_do_to_it(
    reactor: Any, binary: Callable[[], str]
) -> None:
    async with RedisServer(reactor, binary()) as server:
        url, folder = server.url, server.folder
        assert await server.command("SET", "k", "v") == b"OK"
        server.freeze()
        with pytest.raises(BrokerUnavailable):
            await ping(reactor, server.endpoint, timeout_s=0.2)
        server.thaw()
        assert await server.command("GET", "k") == b"v"
        await server.kill()
        await server.start()
        assert await server.command("GET", "k") is None
        await server.restart()
        assert server.url == url
        pid = server.pid or 0
        server.freeze()
    assert not is_alive(pid)
    assert not os.path.exists(folder)


def test_missing_server_skips_here_and_fails_in_ci() -> None:
    code = "from tests.support.servers import system_binary; system_binary('no-such-server')"
    outcomes = []
    for ci in ("", "1"):
        environ = {**os.environ, "CI": ci}
        result = subprocess.run([*PYTHON, code], env=environ, capture_output=True, text=True)
        outcomes.append(result.stderr.splitlines()[-1].partition(":")[0])
    assert outcomes == ["Skipped", "Failed"]
