"""Lua scripts that Redis keeps by their digest."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from pelotontx.net.redis.connection import Argument, OnReply, Reply, ResponseError, ignore_reply


class Script:
    """A Lua script that Redis keeps by its digest.

    Args:
        source: Lua; all its KEYS share a hash tag.
    """

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.digest = sha1(source).hexdigest()


def run_script(
    connection: Any,
    on_reply: OnReply,
    script: Script,
    keys: Sequence[str],
    arguments: Sequence[Argument],
    *,
    is_asking: bool = False,
) -> None:
    """Runs a script, by its digest where this connection has run it before.

    In case Redis has been made to forget it, it is sent once more.

    Args:
        connection: a `RedisConnection`.
        on_reply: called once, as by `RedisConnection.send`.
        script: what is run.
        keys: its KEYS.
        arguments: its ARGV.
        is_asking: whether ASKING comes before it.
    """

    def send(replied: OnReply, command: str, body: str | bytes) -> None:
        if is_asking:
            connection.send(ignore_reply, "ASKING")
        connection.send(replied, command, body, len(keys), *keys, *arguments)

    def replied(reply: Reply) -> None:
        if isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT"):
            send(on_reply, "EVAL", script.source)
        else:
            on_reply(reply)

    if script.digest in connection.script_hashes:
        send(replied, "EVALSHA", script.digest)
        return
    # Not by digest first: a script that is sent again comes after what was sent meanwhile.
    send(on_reply, "EVAL", script.source)
    connection.script_hashes.add(script.digest)
