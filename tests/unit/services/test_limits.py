from pelotontx.config import ChannelConfig, HttpConfig, RpcConfig, UriConfig, WebSocketConfig
from pelotontx.net.http import HTTPLimits
from pelotontx.services.limits import (
    call_cap_of,
    channel_limits,
    http_limits,
    json_limits,
    juggler_limits,
    uri_limits,
)

LIMITS = juggler_limits(RpcConfig(call_timeout_s=20.0, calls_limit=7), WebSocketConfig())


def test_without_tables_there_is_nothing_to_look_up() -> None:
    assert uri_limits(LIMITS, ()) is None
    assert channel_limits(LIMITS, ()) is None
    assert call_cap_of(9, ())("any") == 9


def test_a_uri_inherits_what_its_table_leaves_out() -> None:
    table = uri_limits(LIMITS, [UriConfig(glob="a.*", calls_limit=2, args_limit_bytes=5)])
    assert table is not None
    own = table.find("a.b")
    assert (own.calls_limit, own.args_limit_bytes, own.call_timeout_s) == (2, 5, 20.0)
    assert own.result_limit_bytes == LIMITS.result_limit_bytes
    assert table.find("b") is LIMITS


def test_the_default_time_of_a_call_never_passes_the_longest() -> None:
    table = uri_limits(LIMITS, [UriConfig(glob="*", call_timeout_limit_s=5.0)])
    assert table is not None
    own = table.find("a")
    assert (own.call_timeout_s, own.call_timeout_limit_s) == (5.0, 5.0)


def test_a_channel_has_its_own_limit_of_args() -> None:
    table = channel_limits(LIMITS, [ChannelConfig(glob="room.*", args_limit_bytes=5)])
    assert table is not None
    assert table.find("room.1").args_limit_bytes == 5
    assert table.find("other") is LIMITS


def test_a_cap_is_that_of_the_first_table_that_matches() -> None:
    tables = [UriConfig(glob="a.b", call_cap=0), UriConfig(glob="c")]
    caps = call_cap_of(9, [*tables, UriConfig(glob="a.*", call_cap=3)])
    assert [caps(uri) for uri in ("a.b", "a.c", "c", "d")] == [0, 3, 9, 9]


def test_the_limits_of_json_are_configurable() -> None:
    limits = json_limits(RpcConfig(json_depth_limit=5, json_keys_limit=6))
    assert (limits.depth, limits.keys) == (5, 6)


def test_the_limits_of_http_are_those_of_its_section() -> None:
    limits = http_limits(HttpConfig(body_limit_bytes=7, unread_body_limit_bytes=5))
    assert (limits.body_limit_bytes, limits.unread_body_bytes) == (7, 5)
    assert http_limits(HttpConfig()) == HTTPLimits()
