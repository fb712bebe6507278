"""Apps without a connection: requests are made here and answered on the spot."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import Response
from pelotontx.net.http.body import RequestBody
from pelotontx.web import App, Request
from pelotontx.web.testing import make_request
from pelotontx.wire.http import CHUNKED


def request(
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    kind: type[Request] = Request,
) -> Request:
    """A request to host a whose body is there."""
    return make_request(method, target, {"Host": "a", **(headers or {})}, body, kind=kind)


def arriving(
    method: str, target: str, *, length: int | None = None, limit_bytes: int = 1000
) -> tuple[Request, RequestBody]:
    """A request whose body is still to come, in chunks if `length` is None, and that body."""
    name, value = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", length)
    asked = request(method, target, {name: str(value)})
    assert asked.framing.length == (CHUNKED if length is None else length)
    body = RequestBody(None, length, limit_bytes=limit_bytes)
    asked.expect(body)
    return asked, body


class AppCase(SynchronousTestCase):
    """One app, which answers at once.

    Attributes:
        app: what `ask` asks.
    """

    def setUp(self) -> None:
        self.app = App()

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        """The app's answer, which waits for nothing."""
        return self.answer(request(method, target, headers, body))

    def answer(self, asked: Request) -> Response:
        """Likewise, to a request that was made before."""
        result = self.app.handle(asked)
        if isinstance(result, Deferred):
            result = self.successResultOf(result)
        assert isinstance(result, Response)
        return result

    def body(self, method: str, target: str) -> str:
        """The text of an answer."""
        answer = self.ask(method, target)
        assert isinstance(answer.body, bytes)
        return answer.body.decode()
