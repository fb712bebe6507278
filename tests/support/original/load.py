"""The original's client and load tester: many connections that call one URI, each at a rate.

    python -m tests.support.original.load --url URL [-c CLIENTS] [-n CALLS] [-p PAYLOAD]
                                          [-r RATE_MS] [-t TIMEOUT_MS] [-u URI]

Each client makes `-n` calls, `-r` ms apart, and waits until each has ended: by RES, NACK, or
its own EXP when the time is over. Prints one JSON object. Unlike the original it notes a call
before it sends it, so that no answer can come too early.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from collections import Counter
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

CALL, NACK, ACK, RES = 1, 7, 8, 9
NAMES = {NACK: "nacks", ACK: "acks", RES: "results"}


class Client:
    """One connection; `count` is what it has seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._pending: dict[str, float] = {}
        self._has_changed = threading.Condition()
        self.count: Counter[str] = Counter()
        self.answers: set[str] = set()

    def run(self) -> None:
        """Makes its calls and waits for their ends."""
        options = self._options
        with connect(options.url, subprotocols=[Subprotocol("juggler.0")]) as socket:
            reader = threading.Thread(target=self._read, args=(socket,), daemon=True)
            reader.start()
            for _ in range(options.n):
                self._call(socket)
                time.sleep(options.r / 1000)
            self._wait()
        reader.join()

    def _call(self, socket: ClientConnection) -> None:
        options = self._options
        id_ = str(uuid.uuid4())
        payload = {"uri": options.u, "timeout": options.t * 1_000_000, "args": options.p}
        with self._has_changed:
            self._pending[id_] = time.monotonic() + options.t / 1000
            self.count["calls"] += 1
        socket.send(json.dumps({"meta": {"type": CALL, "uuid": id_}, "payload": payload}) + "\n")

    def _read(self, socket: ClientConnection) -> None:
        try:
            for frame in socket:
                self._note(json.loads(frame))
        except ConnectionClosed:
            return

    def _note(self, message: dict[str, Any]) -> None:
        type_, for_ = message["meta"]["type"], message["payload"]["for"]
        with self._has_changed:
            self.count[NAMES[type_]] += 1
            if type_ == RES:
                self.answers.add(json.dumps(message["payload"]["args"]))
            if type_ != ACK:
                self._pending.pop(for_, None)
            self._has_changed.notify()

    def _wait(self) -> None:
        with self._has_changed:
            while self._pending:
                left_s = max(self._pending.values()) - time.monotonic()
                if left_s <= 0:
                    self.count["expired"] += len(self._pending)
                    return
                self._has_changed.wait(left_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("-c", type=int, default=100)
    parser.add_argument("-n", type=int, default=10)
    parser.add_argument("-p", default="100")
    parser.add_argument("-r", type=int, default=100)
    parser.add_argument("-t", type=int, default=1000)
    parser.add_argument("-u", default="test.delay")
    options = parser.parse_args()
    clients = [Client(options) for _ in range(options.c)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = ("calls", "acks", "nacks", "results", "expired")
    told: dict[str, Any] = {name: sum(client.count[name] for client in clients) for name in names}
    told["answers"] = sorted({answer for client in clients for answer in client.answers})
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
