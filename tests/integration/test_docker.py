"""What `docker/` says, held to be true without an engine; `docker/prove` runs the image itself."""

from __future__ import annotations

import os
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.support import docker
from tests.support.docker_stack import ENTRYPOINT, Stack, Terminal
from tests.support.programs import BIN
from tests.support.servers import eventually

FILES = ["compose.1.yml", "compose.2.yml"]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The image's entry point."""
    return subprocess.run(
        [ENTRYPOINT, *arguments],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_image_has_all_that_the_wheel_is_made_of() -> None:
    setup = ConfigParser()
    setup.read(docker.REPOSITORY / "setup.cfg")
    packages = setup["options"]["packages"].split()
    modules = (docker.REPOSITORY / "pelotontx").rglob("__init__.py")
    folders = {".".join(path.parent.relative_to(docker.REPOSITORY).parts) for path in modules}
    assert folders <= set(packages)
    links = [path for path in (docker.REPOSITORY / "pelotontx").rglob("*") if path.is_symlink()]
    assert links
    needed = {name.partition(".")[0] for name in packages}
    needed |= {str(link.resolve().relative_to(docker.REPOSITORY)) for link in links}
    needed |= {"setup.cfg", "pyproject.toml", "README.md", setup["metadata"]["license_files"]}
    for path in needed:
        assert path in docker.context_patterns(), f"{path} does not pass .dockerignore"
        assert any(Path(path).is_relative_to(copied) for copied in docker.copied_paths()), path


def test_image_copies_what_exists_and_passes_dockerignore() -> None:
    for copied in docker.copied_paths():
        assert (docker.REPOSITORY / copied).exists()
        assert any(Path(path).is_relative_to(copied) for path in docker.context_patterns()), copied


def test_image_runs_as_a_user_without_rights() -> None:
    user = re.fullmatch(r"(\d+):(\d+)", docker.runtime_instructions()["USER"])
    assert user is not None
    assert "0" not in user.groups()


def test_entry_point_runs_servers_and_commands() -> None:
    assert "--listen" in run("server", "--help").stdout
    assert run("--version").stdout.startswith("pelotontx ")
    assert run("no-such-command").returncode == 2


@pytest.mark.parametrize(
    "mistake",
    ["mem_limits: 512m", "depends_on: {redis: {condition: well}}", "restart: sometimes"],
)
def test_mistake_in_a_compose_file_is_found(mistake: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        docker.parse_compose(f"services:\n  server:\n    image: x\n    {mistake}\n")


@pytest.mark.parametrize("file", FILES)
def test_settings_of_the_composition_are_known(file: str) -> None:
    service = docker.compose_services(file)["server"]
    done = run("check-config", str(docker.FOLDER / "peloton.toml"), **service["environment"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("file", FILES)
def test_what_is_waited_for_exists_and_tells_its_health(file: str) -> None:
    services = docker.compose_services(file)
    waits = [service.get("depends_on", {}) for service in services.values()]
    assert any(waits)
    for name, wait in (pair for each in waits for pair in each.items()):
        # The server has the image's check.
        check = services[name].get("healthcheck", {"test": name == "server"})
        assert wait["condition"] == "service_started" or check.get("test"), name


@pytest.mark.parametrize("file", FILES)
def test_only_the_server_can_be_reached_from_outside(file: str) -> None:
    services = docker.compose_services(file)
    assert [name for name, service in services.items() if "ports" in service] == ["server"]
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])


@pytest_twisted.ensureDeferred
async def test_one_redis_serves_the_three_functions_and_events(tmp_path: Path) -> None:
    from twisted.internet import reactor

    async with Stack(reactor, "compose.1.yml", folder=tmp_path) as stack:
        await eventually(reactor, stack.is_healthy, timeout_s=30)
        with stack.client() as terminal:
            await play(reactor, terminal)
        await stack.redises["redis"].kill()
        await eventually(reactor, lambda: not stack.is_healthy(), timeout_s=30)


@pytest_twisted.ensureDeferred
async def test_calls_and_events_go_through_a_redis_each(tmp_path: Path) -> None:
    from twisted.internet import reactor

    async with Stack(reactor, "compose.2.yml", folder=tmp_path) as stack:
        with stack.client() as terminal:
            await play(reactor, terminal)
        rpc, pubsub = stack.redises["redis-rpc"], stack.redises["redis-pubsub"]
        assert "publish" not in await commands_of(rpc)
        assert "blmpop" in await commands_of(rpc)
        assert "publish" in await commands_of(pubsub)
        assert "blmpop" not in await commands_of(pubsub)


async def play(reactor: Any, terminal: Terminal) -> None:
    """What the compose files invite to."""

    async def see(text: str) -> None:
        await eventually(reactor, lambda: terminal.shows(text), timeout_s=30)

    await see("[1] OPEN ws://")
    for line, answer in [
        ('call test.echo "hi"', 'RES test.echo "hi"'),
        ('call test.reverse "hello"', 'RES test.reverse "olleh"'),
        ("call test.delay 5", "RES test.delay 5"),
        ("sub news", "ACK SUB news"),
        ("psub n*", "ACK SUB n*"),
        ("pub news [1]", "EVNT news (n*) [1]"),
    ]:
        terminal.type(line)
        await see(answer)
    assert terminal.shows("EVNT news [1]")
    terminal.type("exit")
    await eventually(reactor, lambda: terminal.exit_status is not None, timeout_s=30)
    assert terminal.exit_status == 0


async def commands_of(redis: Any) -> set[str]:
    """The commands that a Redis has been sent, or that its scripts ran."""
    statistics = await redis.command("INFO", "commandstats")
    return set(re.findall(r"cmdstat_([\w|]+):", statistics.decode()))
