"""What operators look at, on a real server: its figures after known events, and its health."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.client import Agent

from pelotontx.errors import CallExpired, RequestRefused
from tests.support.programs import PelotonServer
from tests.support.servers import RedisServer, eventually, redis_binary

CONFIG = """
[broker]
call_cap = 1  # so that a second call that nobody serves is refused
[[callee]]
object = "pelotontx.demo.callee:callee"
"""


def write_config(folder: Path, text: str) -> tuple[str, str]:
    (folder / "peloton.toml").write_text(text)
    return "--config", "peloton.toml"


async def scrape(server: PelotonServer) -> dict[str, float]:
    """Every sample by its name and the values of its labels: ``name`` or ``name/value``."""
    status, body = await server.get("/metrics")
    assert status == 200
    return {
        "/".join((sample.name.removeprefix("peloton_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def until_expired(server: PelotonServer) -> dict[str, float]:
    """The samples once the server has noticed the expiry, a moment after the client."""
    deadline_s = reactor.seconds() + 10  # type: ignore[attr-defined]
    while reactor.seconds() < deadline_s:  # type: ignore[attr-defined]
        samples = await scrape(server)
        if samples["calls_expired_total"]:
            return samples
    pytest.fail("no call has expired")


async def run_known_course(server: PelotonServer) -> None:
    """One result, one expiry, two refusals, and one event to two subscribers."""
    one, two, three = [await server.client() for _ in range(3)]
    assert await one.call("test.echo", "x") == "x"
    seen: list[Any] = []
    expiring = one.call("nobody.serves.this", timeout_s=1)
    await one.subscribe("news", lambda event: seen.append(event.args))  # behind the call
    with pytest.raises(RequestRefused, match="list capacity exceeded"):
        await two.call("nobody.serves.this")
    with pytest.raises(RequestRefused, match="pattern"):
        await two.subscribe("*", print, pattern=True)
    await two.subscribe("news", lambda event: seen.append(event.args))
    await three.publish("news", 1)
    await eventually(reactor, lambda: seen == [1, 1])
    with pytest.raises(CallExpired):
        await expiring


class TestMetrics:
    @pytest_twisted.ensureDeferred
    async def test_a_known_course_of_events_gives_exact_figures(self, tmp_path: Path) -> None:
        arguments = write_config(tmp_path, CONFIG)
        async with PelotonServer(reactor, *arguments, folder=tmp_path) as server:
            before = await scrape(server)
            await run_known_course(server)
            after = await until_expired(server)
            status, body = await server.get("/debug/vars")
        expected = {
            "juggler_sessions": 3,
            "juggler_sessions_opened_total": 3,
            "topics": 1,
            "websocket_connections": 3,
            "websocket_unsent_bytes": 0,
            "broker_available": 1,
            "messages_read_total/CALL": 3,
            "messages_read_total/SUB": 3,
            "messages_read_total/PUB": 1,
            "messages_read_total/UNSB": 0,
            "messages_written_total/ACK": 5,
            "messages_written_total/NACK": 2,
            "messages_written_total/RES": 1,
            "messages_written_total/EVNT": 2,
            "calls_stored_total": 2,
            "calls_refused_total": 1,
            "calls_expired_total": 1,
            "calls_pending": 0,
            "results_delivered_total": 1,
            "results_late_total": 0,
            "call_latency_seconds_count": 1,
            "call_latency_seconds_bucket/+Inf": 1,
            "events_published_total": 1,
            "events_received_total": 1,
            "events_delivered_total": 2,
            "payloads_failed_total": 0,
            "event_receivers_count": 1,
            "event_receivers_sum": 2,
            "event_receivers_bucket/1.0": 0,
            "event_receivers_bucket/2.0": 1,
            "callee_calls_run_total/callee[0]/pelotontx.demo.callee:callee": 1,
            "processes/valkey/broker/running": 1,
        }
        assert {name: after[name] for name in expected} == expected
        assert 0 < after["call_latency_seconds_sum"] < 60
        assert after["reactor_stall_seconds_count"] > before["reactor_stall_seconds_count"]
        waiting = {name: value for name, value in after.items() if "calls_waiting" in name}
        assert waiting == {"calls_waiting/test.echo": 0, "calls_waiting/": 1}
        # All but what belongs to one URI are there from the start.
        assert set(before) == set(after) - {"calls_waiting/test.echo"}
        assert {v for k, v in before.items() if "_total" in k and "process_cpu" not in k} == {0}
        self.check_debug_vars(status, json.loads(body))

    def check_debug_vars(self, status: int, variables: dict[str, Any]) -> None:
        assert (status, sorted(variables)) == (200, ["cmdline", "juggler", "memstats"])
        counts = variables["juggler"]
        expected = {
            "ActiveConns": 3,
            "TotalConns": 3,
            "Msgs": 17,
            "MsgsRead": 7,
            "MsgsWrite": 10,
            "MsgsCALL": 3,
            "MsgsSUB": 3,
            "MsgsPUB": 1,
            "MsgsUNSB": 0,
            "MsgsACK": 5,
            "MsgsNACK": 2,
            "MsgsRES": 1,
            "MsgsEVNT": 2,
            "MsgsUnknown": 0,
            "Calls": 1,
            "Results": 1,
            "Events": 2,
            "ExpiredResults": 0,
            "RecoveredPanics": 0,
        }
        assert {name: counts[name] for name in expected} == expected
        assert variables["memstats"]["Alloc"] > 0

    @pytest_twisted.ensureDeferred
    async def test_no_password_is_shown(self, tmp_path: Path) -> None:
        options = ["--requirepass", "s3cret"]
        async with RedisServer(reactor, redis_binary(), options=options) as redis:
            url = f"redis://:s3cret@127.0.0.1:{redis.port}"
            async with PelotonServer(reactor, "--broker", url, folder=tmp_path) as server:
                for path in ("/debug/vars", "/health", "/metrics"):
                    status, body = await server.get(path)
                    assert status == 200
                    assert b"s3cret" not in body
                words = json.loads((await server.get("/debug/vars"))[1])["cmdline"]
                assert f"redis://***@127.0.0.1:{redis.port}" in words

    @pytest_twisted.ensureDeferred
    async def test_an_empty_path_turns_a_page_off(self, tmp_path: Path) -> None:
        arguments = write_config(
            tmp_path, '[broker]\nurl = "memory:"\n[paths]\ndebug_vars = ""\nmetrics = ""\n'
        )
        async with PelotonServer(reactor, *arguments, folder=tmp_path) as server:
            assert (await server.get("/debug/vars"))[0] == 404
            assert (await server.get("/metrics"))[0] == 404
            assert (await server.get("/health/ready"))[0] == 200


class TestHealth:
    @pytest_twisted.ensureDeferred
    async def test_a_broker_that_hangs_is_seen_and_so_is_its_return(self, tmp_path: Path) -> None:
        async with RedisServer(reactor, redis_binary()) as redis:
            arguments = write_config(
                tmp_path, f'[broker]\nurl = "{redis.url}"\nreply_timeout = "400ms"\n'
            )
            async with PelotonServer(reactor, *arguments, folder=tmp_path) as server:
                await self.until(server, 200)
                redis.freeze()
                assert await self.until(server, 503) == {"status": "unavailable"}
                assert await server.get("/health/live") == (200, b'{"status":"ok"}')
                status, body = await server.get("/health")
                assert (status, json.loads(body)["broker"]["available"]) == (503, False)
                assert (await scrape(server))["broker_available"] == 0
                redis.thaw()
                assert await self.until(server, 200) == {"status": "ok"}

    async def until(self, server: PelotonServer, wanted: int) -> Any:
        """What ``/health/ready`` says when its status is `wanted`."""
        deadline_s = reactor.seconds() + 20  # type: ignore[attr-defined]
        while reactor.seconds() < deadline_s:  # type: ignore[attr-defined]
            status, body = await server.get("/health/ready")
            if status == wanted:
                return json.loads(body)
            await deferLater(reactor, 0.02)  # type: ignore[arg-type]
        pytest.fail(f"/health/ready is not {wanted}")

    @pytest_twisted.ensureDeferred
    async def test_head_gives_the_status_alone(self, tmp_path: Path) -> None:
        arguments = write_config(tmp_path, '[broker]\nurl = "memory:"\n')
        async with PelotonServer(reactor, *arguments, folder=tmp_path) as server:
            for path in ("/health", "/health/ready", "/health/live"):
                asking: Deferred[Any] = HTTPClient(Agent(reactor)).head(
                    server.url + path, headers={"Connection": "close"}, timeout=5
                )
                response = await asking
                assert (response.code, await response.content()) == (200, b"")
                assert response.headers.getRawHeaders("Cache-Control") == ["no-store"]
