"""Posts a small JSON document and prints the answer: ``http_client.py http://localhost:8080/``."""

import sys

from twisted.internet.task import react

from pelotontx.net.http.client import fetch


async def program(reactor, url: str) -> None:
    answer = await fetch(
        reactor,
        "POST",
        url,
        params={"page": "2"},
        headers={"Accept": "application/json"},
        json={"name": "apple", "count": 3},
        head_timeout_s=5,
        timeout_s=15,
        limit_bytes=100_000,
    )
    print("status", answer.status)
    print(answer.body.decode())


if __name__ == "__main__":
    react(program, sys.argv[1:])
