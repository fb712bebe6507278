"""Files as answers: conditions, ranges, codings, packages and names; no connection."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import Response
from pelotontx.web.content_types import content_type
from pelotontx.web.errors import HTTPError
from pelotontx.web.files import Files, send_file
from tests.support.app_case import request
from tests.unit.web.files_case import LARGE, FilesCase, body


class ConditionTests(FilesCase):
    def test_not_modified(self) -> None:
        self.files = self.make(max_age_s=60)
        headers = self.ask("/a.txt").headers
        for path in ("/a.txt", "/large.bin"):
            tag = self.ask(path).headers["etag"]
            response = self.ask(path, If_None_Match=tag)
            self.assertEqual((response.status, response.body), (304, b""))
            names = {name for name, _ in response.headers.items()}
            self.assertEqual(names, {"etag", "last-modified", "cache-control"})
        since = headers["last-modified"]
        self.assertEqual(self.ask("/a.txt", If_Modified_Since=since).status, 304)
        self.assertEqual(self.ask("/a.txt", "HEAD", If_Modified_Since=since).status, 304)
        self.assertEqual(self.ask("/a.txt", If_None_Match='"other"').status, 200)

    def test_precondition_failed(self) -> None:
        self.assertEqual(self.refusal("/a.txt", If_Match='"other"').status, 412)
        old = "Sun, 09 Sep 2000 01:46:40 GMT"
        self.assertEqual(self.refusal("/a.txt", If_Unmodified_Since=old).status, 412)

    def test_conditions_come_before_ranges(self) -> None:
        tag = self.ask("/a.txt").headers["etag"]
        response = self.ask("/a.txt", If_None_Match=tag, Range="bytes=0-1")
        self.assertEqual(response.status, 304)

    def test_if_range(self) -> None:
        tag = self.ask("/a.txt").headers["etag"]
        self.assertEqual(self.ask("/a.txt", If_Range=tag, Range="bytes=0-1").status, 206)
        self.assertEqual(self.ask("/a.txt", If_Range='"x"', Range="bytes=0-1").status, 200)


class RangeTests(FilesCase):
    def test_one_range(self) -> None:
        for path, content in (("/a.txt", b"hello"), ("/large.bin", LARGE)):
            size = len(content)
            for asked, first, last in (
                ("1-3", 1, 3),
                ("0-", 0, size - 1),
                ("-2", size - 2, size - 1),
                ("2-999999999", 2, size - 1),
            ):
                response = self.ask(path, Range=f"bytes={asked}")
                self.assertEqual(response.status, 206)
                self.assertEqual(body(response), content[first : last + 1])
                self.assertEqual(response.length, last + 1 - first)
                field = response.headers["content-range"]
                self.assertEqual(field, f"bytes {first}-{last}/{size}")
                self.assertIn("etag", response.headers)

    def test_range_that_is_not_there(self) -> None:
        refusal = self.refusal("/a.txt", Range="bytes=5-")
        self.assertEqual(refusal.status, 416)
        self.assertEqual(refusal.headers["Content-Range"], "bytes */5")

    def test_malformed_range_is_the_whole(self) -> None:
        self.assertEqual(self.ask("/a.txt", Range="bytes=3-1").status, 200)
        self.assertEqual(self.ask("/a.txt", Range="lines=1-2").status, 200)

    def parts(self, response: Response) -> Iterator[tuple[str, str, bytes]]:
        """Type, range and content of each part, read by another program's parser."""
        data = body(response)
        self.assertEqual(len(data), response.length)
        kind = response.headers["content-type"]
        message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
        for part in message.get_payload():
            payload = part.get_payload(decode=True)  # type: ignore[union-attr]
            yield part["Content-Type"], part["Content-Range"], payload  # type: ignore[index,misc]

    def test_several_ranges(self) -> None:
        response = self.ask("/a.txt", Range="bytes=0-0,-2")
        self.assertEqual(response.status, 206)
        self.assertNotIn("content-range", response.headers)
        kind = "text/plain; charset=utf-8"
        self.assertEqual(
            list(self.parts(response)),
            [(kind, "bytes 0-0/5", b"h"), (kind, "bytes 3-4/5", b"lo")],
        )
        self.write("large.txt", b"x" * 100_000 + b"y" * 100_000)
        response = self.ask("/large.txt", Range="bytes=0-3,99999-100000,-3")
        contents = [content for _, _, content in self.parts(response)]
        self.assertEqual(contents, [b"xxxx", b"xy", b"yyy"])

    def test_five_hundred_overlapping_ranges_are_no_more_than_the_file(self) -> None:
        overlapping = ",".join(f"{start}-" for start in range(500))
        response = self.ask("/large.bin", Range=f"bytes={overlapping}")
        self.assertEqual(body(response), LARGE)
        apart = ",".join(f"{start}-{start}" for start in range(0, 1000, 2))
        response = self.ask("/large.bin", Range=f"bytes={apart}")
        self.assertEqual((response.status, body(response)), (200, LARGE))
        halves = ",".join(["0-1000", "2000-"] * 250)
        response = self.ask("/large.bin", Range=f"bytes={halves}")
        self.assertLess(len(body(response)), len(LARGE) + 500)


class CodingTests(FilesCase):
    def setUp(self) -> None:
        super().setUp()
        self.write("app.js", b"plain")
        self.write("app.js.gz", b"gzipped")
        self.write("app.js.br", LARGE)

    def test_client_gets_what_it_takes(self) -> None:
        for accept, coding, content in (
            ("gzip, br", "br", LARGE),
            ("gzip", "gzip", b"gzipped"),
            ("br;q=0.1, gzip", "gzip", b"gzipped"),
            ("br;q=0, gzip;q=0", "", b"plain"),
            ("identity", "", b"plain"),
            ("*", "br", LARGE),
            ("", "", b"plain"),
        ):
            response = self.ask("/app.js", Accept_Encoding=accept)
            self.assertEqual(body(response), content)
            self.assertEqual(response.headers.get("content-encoding"), coding)
            self.assertEqual(response.headers["vary"], "Accept-Encoding")
            self.assertEqual(response.headers["content-type"], "text/javascript; charset=utf-8")

    def test_each_coding_has_its_own_tag_and_ranges(self) -> None:
        accepts = ("gzip", "br", "identity")
        tags = {self.ask("/app.js", Accept_Encoding=each).headers["etag"] for each in accepts}
        self.assertEqual(len(tags), 3)
        tag = self.ask("/app.js", Accept_Encoding="gzip").headers["etag"]
        response = self.ask("/app.js", Accept_Encoding="gzip", If_None_Match=tag)
        self.assertEqual(response.status, 304)
        self.assertEqual(response.headers["vary"], "Accept-Encoding")
        self.assertEqual(self.ask("/app.js", If_None_Match=tag).status, 200)
        response = self.ask("/app.js", Accept_Encoding="gzip", Range="bytes=0-3")
        self.assertEqual(body(response), b"gzip")
        self.assertEqual(response.headers["content-encoding"], "gzip")

    def test_sibling_by_its_own_name(self) -> None:
        response = self.ask("/app.js.gz", Accept_Encoding="gzip")
        self.assertEqual(response.headers["content-type"], "application/gzip")
        self.assertNotIn("content-encoding", response.headers)

    def test_can_be_turned_off(self) -> None:
        self.files = self.make(precompressed=False)
        response = self.ask("/app.js", Accept_Encoding="gzip")
        self.assertEqual(response.body, b"plain")
        self.assertNotIn("vary", response.headers)


class PackageTests(FilesCase):
    def test_package_on_disk(self) -> None:
        self.files = Files("static", package="pelotontx.demo")
        self.assertEqual(self.ask("/").headers["content-type"], "text/html; charset=utf-8")
        self.assertIn("last-modified", self.ask("/").headers)
        with self.assertRaises(ModuleNotFoundError):
            Files("static", package="there.is.no.such.package")

    def test_package_in_a_zip_file(self) -> None:
        archive = self.folder / "shop.zip"
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr("zipped_shop/__init__.py", "")
            package.writestr("zipped_shop/static/a.txt", "hello")
            package.writestr("zipped_shop/static/a.txt.gz", "gz")
            package.writestr("zipped_shop/static/docs/index.html", "<p>docs")
        sys.path.insert(0, str(archive))
        self.addCleanup(sys.path.remove, str(archive))
        self.addCleanup(sys.modules.pop, "zipped_shop", None)
        self.files = Files("static", package="zipped_shop")
        self.assertEqual(self.ask("/a.txt").body, b"hello")
        self.assertEqual(self.ask("/a.txt", Accept_Encoding="gzip").body, b"gz")
        self.assertEqual(self.ask("/docs/").body, b"<p>docs")
        self.assertEqual(self.ask("/docs").status, 308)
        tag = self.ask("/a.txt").headers["etag"]
        self.assertEqual(self.ask("/a.txt", If_None_Match=tag).status, 304)
        self.assertEqual(self.ask("/a.txt", Range="bytes=1-2").body, b"el")
        for path in ("/missing", "/../__init__.py", "/a.txt/b", "/"):
            self.assertNotFound(path)


class SendFileTests(FilesCase):
    def send(self, name: str, *, asked: dict[str, str] | None = None, **options: Any) -> Response:
        return send_file(request("GET", "/report", asked), self.root / name, **options)

    def test_handler_sends_one_file(self) -> None:
        response = self.send("a.txt")
        self.assertEqual(body(response), b"hello")
        self.assertEqual(response.headers["content-type"], "text/plain; charset=utf-8")
        self.assertNotIn("content-disposition", response.headers)
        self.assertEqual(body(self.send("large.bin")), LARGE)

    def test_options(self) -> None:
        response = self.send("large.bin", download_name="x.pdf", max_age_s=5, headers={"X-A": "b"})
        headers = response.headers
        self.assertEqual(headers["content-disposition"], 'attachment; filename="x.pdf"')
        self.assertEqual(headers["content-type"], "application/pdf")
        self.assertEqual(headers["cache-control"], "public, max-age=5")
        self.assertEqual(headers["x-a"], "b")
        response = self.send("a.txt", download_name="Ä\r\nB: c.txt")
        disposition = response.headers["content-disposition"]
        self.assertTrue(disposition.endswith("filename*=UTF-8''%C3%84%0D%0AB%3A%20c.txt"))
        response = self.send("large.bin", content_type="video/mp4")
        self.assertEqual(response.headers["content-type"], "video/mp4")

    def test_conditions_and_ranges_count(self) -> None:
        tag = self.send("a.txt").headers["etag"]
        self.assertEqual(self.send("a.txt", asked={"If-None-Match": tag}).status, 304)
        response = self.send("large.bin", asked={"Range": "bytes=-5"})
        self.assertEqual(body(response), LARGE[-5:])

    def test_ranges_are_for_get(self) -> None:
        asked = request("POST", "/report", {"Range": "bytes=0-1"})
        response = send_file(asked, self.root / "a.txt")
        self.assertEqual((response.status, body(response)), (200, b"hello"))

    def test_missing_file(self) -> None:
        with self.assertRaises(HTTPError) as caught:
            self.send("missing")
        self.assertEqual(caught.exception.status, 404)


class NameTests(SynchronousTestCase):
    def test_content_types_do_not_depend_on_the_machine(self) -> None:
        for name, kind in (
            ("a.html", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.JS", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.jpeg", "image/jpeg"),
            ("a.webp", "image/webp"),
            ("a.avif", "image/avif"),
            ("a.ico", "image/vnd.microsoft.icon"),
            ("a.woff2", "font/woff2"),
            ("a.wasm", "application/wasm"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.mp4", "video/mp4"),
            ("a.pdf", "application/pdf"),
            ("a.tar.gz", "application/gzip"),
            ("a.unheardof", "application/octet-stream"),
            ("folder.css/a", "application/octet-stream"),
            ("LICENSE", "application/octet-stream"),
        ):
            self.assertEqual(content_type(name), kind)
