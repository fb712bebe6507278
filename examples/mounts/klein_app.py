"""A Klein application: `twisted.web` resources as they are."""

from typing import Any

from klein import Klein
from twisted.internet.task import deferLater

app = Klein()


@app.route("/hello/<name>")
def hello(request: Any, name: str) -> str:
    return f"Hello, {name}, from Klein\n"


@app.route("/slow")
async def slow(request: Any) -> str:
    from twisted.internet import reactor

    await deferLater(reactor, 0.1)
    return "Worth the wait\n"


resource = app.resource()
