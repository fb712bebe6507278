import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from pelotontx.cli.shell import Shell
from tests.integration.test_client import Server
from tests.support.certificates import Authority
from tests.support.programs import PelotonServer
from tests.support.servers import eventually, free_port

PELOTON = str(Path(sys.executable).parent / "peloton")


@pytest.fixture(scope="module")
def url():
    server = Server()
    yield server.url
    server.kill()


def peloton(*arguments, stdin="", **environment):
    return subprocess.run(
        [PELOTON, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def script(url, *lines, options=()):
    return peloton("client", "--url", url, *options, stdin="".join(f"{line}\n" for line in lines))


def unread_status(*arguments, **environment):
    """The exit status with an output that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [PELOTON, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            timeout=60,
            env=os.environ | environment,
        ).returncode
    finally:
        os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [
        ["call", "test.echo"],
        ["call", "fail"],
        ["client"],
        ["load", "-u", "test.echo", "-c", "1", "-r", "10/s", "-n", "15", "--metrics", "none"],
        ["load", "-u", "test.echo", "-n", "1", "--metrics", "http://127.0.0.1:1/"],
    ],
)
def test_output_that_nobody_reads_ends_a_command_with_1(url, words, unbuffered):
    assert unread_status(*words, "--url", url, PYTHONUNBUFFERED=unbuffered) == 1


def test_output_that_nobody_reads_is_no_error_of_pythons_own():
    assert unread_status("default-config") == 1
    reader, writer = os.pipe()
    os.close(reader)
    command = [PELOTON, "default-config"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_client_ends_when_nobody_reads_its_events_though_its_input_goes_on(url):
    command = [PELOTON, "client", "--url", url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write("sub chat\n")
        process.stdin.flush()
        while "ACK    SUB chat" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        assert script(url, "pub chat 1").returncode == 0
        assert process.wait(timeout=60) == 1
        assert process.stderr.read() == ""


def test_call_prints_the_result(url):
    done = peloton("call", "test.echo", '{"a": [1]}', "--url", url)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"a": [1]}, "")


def test_raw_result_is_one_line(url):
    done = peloton("call", "test.echo", '{"a": [1, "ü"]}', "--url", url, "--raw")
    assert done.stdout == '{"a":[1,"ü"]}\n'


def test_call_without_an_argument_sends_null(url):
    assert peloton("call", "test.echo", "--url", url).stdout == "null\n"


def test_call_reads_stdin(url):
    assert peloton("call", "test.echo", "-", "--url", url, stdin='"in"\n').stdout == '"in"\n'


@pytest.mark.parametrize(
    ("uri", "text"),
    [("fail", "it broke\\x1b"), ("refuse", "list capacity exceeded"), ("cut", "dropped")],
)
def test_failed_call_is_told_on_stderr(url, uri, text):
    done = peloton("call", uri, "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_call_expires(url):
    done = peloton("call", "silent", "--url", url, "--timeout", "200ms")
    assert (done.returncode, done.stderr) == (1, "peloton call: silent: no result in time\n")


def test_server_that_is_not_there_is_told():
    server = Server()
    server.kill()
    done = peloton("call", "test.echo", "--url", server.url)
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "hint: is the server running?" in done.stderr


@pytest.mark.parametrize("text", ["{a: 1}", "hi", '"hi'])
def test_bad_json_is_told_with_a_hint_about_the_shell(url, text):
    done = peloton("call", "test.echo", text, "--url", url)
    assert done.returncode == 1
    assert "is not JSON" in done.stderr
    assert "hint:" in done.stderr


def test_wrong_usage_is_2():
    assert peloton().returncode == 2
    assert peloton("call").returncode == 2
    assert peloton("call", "u", "--timeout", "soon").returncode == 2
    assert peloton("callee", "m:o", "--concurrency", "0").returncode == 2


def test_version_is_printed():
    assert peloton("--version").stdout.startswith("pelotontx ")


def test_script_runs_commands_in_order(url):
    done = script(
        url,
        "sub chat",
        'pub chat {"x": 1}',
        "unsb chat",
        'call test.echo "hi there"',
        "# a comment",
        "call 1 test.echo 5000 [1]",
        "close",
    )
    assert done.stdout.splitlines() == [
        f"[1] OPEN   {url}",
        "[1] ACK    SUB chat",
        "[1] ACK    PUB chat",
        '[1] EVNT   chat {"x": 1}',
        "[1] ACK    UNSB chat",
        "[1] ACK    CALL test.echo",
        '[1] RES    test.echo "hi there"',
        "[1] ACK    CALL test.echo",
        "[1] RES    test.echo [1]",
        "[1] CLOSED",
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_script_with_a_failed_command_ends_with_1(url):
    done = script(url, "call refuse", "call silent 100 1", "call test.echo 1")
    assert done.returncode == 1
    assert "NACK   CALL refuse 500 list capacity exceeded" in done.stdout
    assert "EXP    silent" in done.stdout
    assert "RES    test.echo 1" in done.stdout


def test_script_ends_after_the_events_that_it_caused(url):
    done = script(url, "sub late", "pub late 1")
    assert done.stdout.splitlines()[-2:] == ["[1] EVNT   late 1", "[1] CLOSED"]


def test_text_without_quotes_gets_a_hint(url):
    done = script(url, "call test.echo hi", "call test.echo '{}'")
    assert 'a string needs quotes: "hi"' in done.stdout
    assert "there is no shell here" in done.stdout


@pytest_twisted.ensureDeferred
async def test_call_that_waits_at_the_end_is_not_told_of(url):
    lines = []
    shell = Shell(reactor=reactor, show=lambda *parts: lines.append(parts), url=url)
    await shell.run("connect")
    waiting = Deferred.fromCoroutine(shell.run("call silent"))
    await eventually(reactor, lambda: "ACK" in [kind for _, kind, _ in lines])
    await shell.close_all()
    assert await waiting is False
    assert lines[-1][1] == "CLOSED"


@pytest_twisted.ensureDeferred
async def test_tls_that_only_one_side_speaks_gets_a_hint(tmp_path):
    certificate, key = Authority(tmp_path).issue("server", "127.0.0.1")
    port = free_port()
    listen = f"ssl:{port}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    words = ["--broker", "memory:", "--listen", listen]
    async with PelotonServer(reactor, *words, folder=tmp_path) as server:
        await eventually(
            reactor, lambda: f"Listening on https://127.0.0.1:{port}/" in server.output
        )
        assert f"Listening on {server.url}/" in server.output
        for address, hint in (
            (f"ws://127.0.0.1:{port}/ws", "does this port speak TLS?"),
            (server.websocket_url.replace("ws:", "wss:"), "does this port speak no TLS?"),
            (f"{server.websocket_url}/x", "which path is the server's WebSocket at?"),
        ):
            done = await deferToThread(peloton, "call", "test.echo", "--url", address)
            assert (done.returncode, done.stdout) == (1, "")
            assert hint in done.stderr


def test_script_ends_at_exit(url):
    done = script(url, "exit", "call test.echo 1")
    assert "test.echo" not in done.stdout
    assert done.returncode == 0


def test_script_may_be_a_file(url, tmp_path):
    file = tmp_path / "script"
    file.write_text("call test.echo 1")
    with file.open() as stdin:
        command = [PELOTON, "client", "--url", url]
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60)
    assert "[1] RES    test.echo 1" in done.stdout


def test_raw_output_is_what_the_server_sent(url):
    done = script(url, "call test.echo [1]", options=["--raw", "--timestamp"])
    frames = [json.loads(line.split("[1] ", 1)[1]) for line in done.stdout.splitlines()[1:-1]]
    assert [frame["meta"]["type"] for frame in frames] == [8, 9]
    assert all(line[:2] == "20" for line in done.stdout.splitlines())


def test_several_connections_have_numbers(url):
    done = script(url, "connect", "call 1 test.echo 1", "disconnect 1", "call test.echo 2")
    lines = done.stdout.splitlines()
    assert "[1] RES    test.echo 1" in lines
    assert "[1] CLOSED" in lines
    assert "[2] RES    test.echo 2" in lines


def test_callee_that_cannot_be_found_is_told():
    done = peloton("callee", "no_such_module:callee")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


def test_object_that_is_no_callee_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("callee = 1\n")
    command = [PELOTON, "callee", "mine:callee"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert '"mine:callee" is not a pelotontx.backend.callee.Callee' in done.stderr


def test_callee_waits_for_its_broker_and_ends_at_sigterm(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pelotontx.backend.callee import Callee\ncallee = Callee()\n"
        "@callee.function('mine')\ndef mine(args):\n    return args\n"
    )
    # Port 1 is nobody's, and the password must not be printed.
    command = [PELOTON, "callee", "mine:callee", "--broker", "redis://:secret@127.0.0.1:1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        log = process.stderr.readline()
        assert "Serving mine:callee from redis://" in log
        assert log.endswith(": mine\n")
        process.send_signal(signal.SIGTERM)
        log += process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "secret" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("broker", ["memory:", "embedded:"])
def test_callee_needs_a_broker_that_it_can_reach(tmp_path, broker):
    done = peloton("callee", "pelotontx.demo.callee:callee", "--broker", broker)
    assert done.returncode == 1
    assert f"{broker} is inside a server" in done.stderr


def test_callee_without_functions_is_warned_of(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pelotontx.backend.callee import Callee\ncallee = Callee()\n"
    )
    command = [PELOTON, "callee", "mine:callee", "--broker", "redis://127.0.0.1:1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert "mine:callee has no functions" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_configuration_commands_are_there(tmp_path):
    done = peloton("default-config")
    assert done.returncode == 0
    file = tmp_path / "peloton.toml"
    file.write_text(done.stdout)
    assert peloton("check-config", str(file)).returncode == 0
    file.write_text("nonsense = 1\n")
    assert peloton("check-config", str(file)).returncode == 1


def test_interrupted_call_is_130():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [PELOTON, "call", "u", "--url", f"ws://127.0.0.1:{listener.getsockname()[1]}/"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A background job of a shell, as a test run may be, hands on an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with listener.accept()[0] as connection:
            assert connection.recv(4096).startswith(b"GET / ")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
