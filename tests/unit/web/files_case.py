"""A folder of files, and requests to it; no connection."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import Response
from pelotontx.net.sendfile import OpenFile
from pelotontx.web import file_cache
from pelotontx.web.errors import HTTPError
from pelotontx.web.files import Files
from tests.support.app_case import request

LARGE = os.urandom(file_cache.KEPT_BYTES + 1000)


class ColdFile(OpenFile):
    """Never in memory."""

    def read_cached(self, count: int, offset: int) -> None:
        return None


def body(response: Response) -> bytes:
    """All of a response's body."""
    if isinstance(response.body, bytes):
        return response.body

    async def read() -> bytes:
        return b"".join([piece async for piece in response.body])  # type: ignore[union-attr]

    results: list[Any] = []
    Deferred.fromCoroutine(read()).addBoth(results.append)
    assert isinstance(results[0], bytes), results
    return results[0]


class FilesCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.root = self.folder / "root"
        self.root.mkdir()
        self.clock = Clock()
        self.files = self.make()
        self.write("a.txt", b"hello")
        self.write("large.bin", LARGE)

    def make(self, **options: Any) -> Files:
        return Files(self.root, seconds=self.clock.seconds, **options)

    def write(self, name: str, data: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(0, 1_000_000_000_000_000_000))
        return path

    def ask(self, path: str, method: str = "GET", **fields: str) -> Response:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        return self.files.handle(request(method, path, headers))

    def refusal(self, path: str, method: str = "GET", **fields: str) -> HTTPError:
        with self.assertRaises(HTTPError) as caught:
            self.ask(path, method, **fields)
        return caught.exception

    def assertNotFound(self, path: str) -> None:
        self.assertEqual(self.refusal(path).status, 404, path)
