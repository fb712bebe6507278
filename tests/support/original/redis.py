"""Redis for the original's programs: blocking sockets, RESP2, and their two scripts."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

# KEYS: timeout key, list. ARGV: timeout in ms, payload, cap.
_PUSH = """
redis.call("SET", KEYS[1], ARGV[1], "PX", tonumber(ARGV[1]))
local length = redis.call("LPUSH", KEYS[2], ARGV[2])
local cap = tonumber(ARGV[3])
if cap > 0 and length > cap then
  redis.call("LPOP", KEYS[2])
  return redis.error_reply("list capacity exceeded")
end
return length
"""
# KEYS: timeout key.
_POP = """
local left = redis.call("PTTL", KEYS[1])
redis.call("DEL", KEYS[1])
return left
"""


class RedisError(Exception):
    """An error that Redis has answered."""


class Redis:
    """One connection; commands from several threads take turns."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._turn = threading.Lock()

    def command(self, *words: object) -> Any:
        """One command and its reply."""
        with self._turn:
            self.send(*words)
            return self.read()

    def send(self, *words: object) -> None:
        """One command, whose reply is for `read`."""
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded)]
        parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
        self._socket.sendall(b"".join(parts))

    def read(self) -> Any:
        """The next reply."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("Redis has gone")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        return None if rest == b"-1" else [self.read() for _ in range(int(rest))]

    def close(self) -> None:
        """Ends it, and what another thread waits for on it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # juggler's lists

    def store(self, kind: str, name: str, entry: dict[str, Any], left_ms: int, cap: int) -> None:
        """Pushes a call (`name`: its URI) or a result (`name`: a connection's uuid)."""
        if entry.get("args") is None:
            entry = {key: value for key, value in entry.items() if key != "args"}
        timeout_key = f"juggler:{kind}:timeout:{{{name}}}:{entry['msg_uuid']}"
        payload = json.dumps(entry, separators=(",", ":"))
        list_key = f"juggler:{kind}:{{{name}}}"
        self.command("EVAL", _PUSH, 2, timeout_key, list_key, left_ms, payload, cap)

    def time_left_ms(self, kind: str, name: str, msg_uuid: str) -> int:
        """What an entry that was popped has left; 0 or less: its time is over."""
        timeout_key = f"juggler:{kind}:timeout:{{{name}}}:{msg_uuid}"
        return int(self.command("EVAL", _POP, 1, timeout_key))

    def pop(self, kind: str, name: str) -> dict[str, Any]:
        """Waits for the next entry of a list."""
        _, value = self.command("BRPOP", f"juggler:{kind}:{{{name}}}", 0)
        entry: dict[str, Any] = json.loads(value)
        return entry
