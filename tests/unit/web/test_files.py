"""Files as answers; no connection."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError
from pelotontx.net.http import Response
from pelotontx.net.sendfile import FileSlice, OpenFile
from pelotontx.web import file_cache
from pelotontx.web.content_types import content_type
from pelotontx.web.errors import HTTPError
from pelotontx.web.file_cache import Found, Representation, Version
from pelotontx.web.files import Files, send_file
from pelotontx.wire.http import RefusedRequest
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


class TreeTests(FilesCase):
    def test_small_file_comes_from_memory(self) -> None:
        response = self.ask("/a.txt")
        self.assertEqual((response.status, response.body), (200, b"hello"))
        headers = response.headers
        self.assertEqual(headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(headers["last-modified"], "Sun, 09 Sep 2001 01:46:40 GMT")
        self.assertEqual(headers["accept-ranges"], "bytes")
        self.assertRegex(headers["etag"], r'^"[0-9a-f]+-5-[0-9a-f]+"$')
        self.assertNotIn("vary", headers)
        self.assertNotIn("cache-control", headers)

    def test_large_file_is_a_slice(self) -> None:
        response = self.ask("/large.bin")
        self.assertIsInstance(response.body, FileSlice)
        self.assertEqual(response.length, len(LARGE))
        self.assertEqual(body(response), LARGE)
        self.assertEqual(response.headers["content-type"], "application/octet-stream")

    def test_answers_from_memory_are_not_shared(self) -> None:
        for _ in range(2):
            response = self.ask("/a.txt")
            self.assertNotIn("x-more", response.headers)
            response.add_header("X-More", "1")

    def test_empty_file(self) -> None:
        self.write("empty", b"")
        self.assertEqual(self.ask("/empty").body, b"")
        self.assertEqual(self.refusal("/empty", Range="bytes=0-").status, 416)

    def test_head(self) -> None:
        for path, size in (("/a.txt", 5), ("/large.bin", len(LARGE))):
            response = self.ask(path, "HEAD", Range="bytes=0-1")
            self.assertEqual((response.status, response.body), (200, b""))
            self.assertEqual(response.length, size)

    def test_only_get_and_head(self) -> None:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            refusal = self.refusal("/a.txt", method)
            self.assertEqual(refusal.status, 405)
            self.assertEqual(refusal.headers, {"Allow": "GET, HEAD, OPTIONS"})

    def test_options_tell_what_is_allowed(self) -> None:
        self.ask("/a.txt")
        for path in ("/a.txt", "/large.bin"):  # the one is kept already
            answer = self.ask(path, "OPTIONS")
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.headers["allow"], "GET, HEAD, OPTIONS")

    def test_index_of_a_folder(self) -> None:
        self.write("index.html", b"<p>root")
        self.write("docs/index.html", b"<p>docs")
        self.assertEqual(self.ask("/").body, b"<p>root")
        self.assertEqual(self.ask("/docs/").body, b"<p>docs")
        self.assertEqual(self.ask("/docs/").headers["content-type"], "text/html; charset=utf-8")

    def test_folder_without_its_slash(self) -> None:
        self.write("a folder/index.html", b"")
        response = self.ask("/a%20folder?x=%201")
        self.assertEqual(response.status, 308)
        self.assertEqual(response.headers["location"], "/a%20folder/?x=%201")

    def test_mount_without_its_slash(self) -> None:
        self.write("index.html", b"")
        asked = request("GET", "/static")
        asked.root_path = "/static"
        self.assertEqual(self.files.handle(asked).headers["location"], "/static/")
        asked = request("GET", "/static/a.txt")
        asked.root_path = "/static"
        self.assertEqual(self.files.handle(asked).body, b"hello")

    def test_no_index_no_folders(self) -> None:
        self.write("docs/index.html", b"<p>docs")
        self.files = self.make(index="")
        for path in ("/", "/docs", "/docs/"):
            self.assertNotFound(path)
        self.assertEqual(self.ask("/docs/index.html").body, b"<p>docs")

    def test_folders_are_not_listed(self) -> None:
        self.write("docs/b.txt", b"")
        self.assertNotFound("/docs/")
        self.assertNotFound("/")
        self.write("odd/index.html/x", b"")
        self.assertNotFound("/odd/")

    def test_cache_control(self) -> None:
        self.write("app.0a1b2c3d.js", b"")
        for options, path, value in (
            ({"max_age_s": 60}, "/a.txt", "public, max-age=60"),
            ({"max_age_s": 0}, "/a.txt", "no-cache"),
            ({"immutable": r"\.[0-9a-f]{8}\."}, "/a.txt", ""),
            (
                {"max_age_s": 60, "immutable": r"\.[0-9a-f]{8}\."},
                "/app.0a1b2c3d.js",
                "public, max-age=31536000, immutable",
            ),
        ):
            self.files = self.make(**options)
            self.assertEqual(self.ask(path).headers.get("cache-control"), value)
        with self.assertRaises(ConfigError):
            self.make(immutable="(")

    def test_further_fields(self) -> None:
        self.files = self.make(headers={"X-Content-Type-Options": "nosniff"})
        self.assertEqual(self.ask("/a.txt").headers["x-content-type-options"], "nosniff")

    def test_file_of_the_tree_for_a_handler(self) -> None:
        asked = request("GET", "/anything")
        response = self.files.send(asked, "a.txt", download_name="b.txt")
        self.assertEqual(response.body, b"hello")
        disposition = response.headers["content-disposition"]
        self.assertEqual(disposition, 'attachment; filename="b.txt"')
        self.assertNotIn("content-disposition", self.ask("/a.txt").headers)
        for path in ("../root/a.txt", "/../root/a.txt", "missing", "", "/"):
            with self.assertRaises(HTTPError):
                self.files.send(asked, path)


class ContainmentTests(FilesCase):
    def setUp(self) -> None:
        super().setUp()
        (self.folder / "secret.txt").write_bytes(b"secret")
        (self.folder / "root-twin").mkdir()
        (self.folder / "root-twin" / "b.txt").write_bytes(b"secret")

    def test_nothing_leads_out(self) -> None:
        for path in (
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/%2E%2E%2Fsecret.txt",
            "/..%2fsecret.txt",
            "/..%5csecret.txt",
            "/a%5c..%5csecret.txt",
            "/./a.txt",
            "/x/../a.txt",
            "/x/../../secret.txt",
            "/..",
            "/.",
            "/../root-twin/b.txt",
            "/%252e%252e/secret.txt",
            "//a.txt",
            "//secret.txt/..",
            "/a.txt/",
            "/a.txt/b",
            "/..;/secret.txt",
            f"/{self.folder.resolve()}/secret.txt",
            f"/%2f{self.folder.resolve()}/secret.txt",
            "/" + "x" * 300,
            "/" + "x/" * 3000,
            "/%F0%9F%98%80",
        ):
            self.assertNotFound(path)

    def test_nul_is_no_path(self) -> None:
        with self.assertRaises(RefusedRequest):  # by who reads the request
            self.ask("/a.txt%00.png")
        asked = request("GET", "/a.txt")
        asked.path = "/a.txt\0.png"  # and if it did not
        with self.assertRaises(HTTPError) as caught:
            self.files.handle(asked)
        self.assertEqual(caught.exception.status, 400)

    def test_symbolic_links_stay_inside(self) -> None:
        for name, target in (
            ("out.txt", "../secret.txt"),
            ("absolute.txt", str((self.folder / "secret.txt").resolve())),
            ("twin", "../root-twin"),
            ("up", ".."),
            ("chain.txt", "out.txt"),
            ("broken.txt", "nothing"),
            ("loop.txt", "loop.txt"),
            ("device", "/dev/zero"),
        ):
            (self.root / name).symlink_to(target)
        for path in (
            *("/out.txt", "/absolute.txt", "/twin/b.txt", "/twin", "/twin/", "/up/secret.txt"),
            *("/up", "/up/root/a.txt/../../secret.txt", "/chain.txt", "/broken.txt", "/loop.txt"),
            "/device",
        ):
            self.assertNotFound(path)
        (self.root / "again.txt").symlink_to("a.txt")
        self.assertEqual(self.ask("/again.txt").body, b"hello")

    def test_hidden_files_are_not_there(self) -> None:
        self.write(".env", b"secret")
        self.write(".git/config", b"secret")
        self.write("docs/.htpasswd", b"secret")
        (self.root / "plain.txt").symlink_to(".env")
        (self.root / "git").symlink_to(".git")
        for path in (
            *("/.env", "/%2eenv", "/.git/config", "/docs/.htpasswd", "/plain.txt"),
            *("/git/config", "/.env/", "/.git"),
        ):
            self.assertNotFound(path)

    def test_sibling_that_leads_out_is_not_there(self) -> None:
        (self.root / "a.txt.gz").symlink_to("../secret.txt")
        response = self.ask("/a.txt", Accept_Encoding="gzip")
        self.assertEqual(response.body, b"hello")

    def test_what_is_no_file_is_not_there(self) -> None:
        os.mkfifo(self.root / "fifo")
        self.assertNotFound("/fifo")

    def test_root_may_be_a_link(self) -> None:
        link = self.folder / "current"
        link.symlink_to("root")
        self.files = Files(link, seconds=self.clock.seconds)
        self.assertEqual(self.ask("/a.txt").body, b"hello")
        other = self.folder / "next"
        other.mkdir()
        (other / "a.txt").write_bytes(b"newer")
        link.unlink()
        link.symlink_to("next")
        self.clock.advance(1)
        self.assertEqual(self.ask("/a.txt").body, b"newer")

    def test_root_that_is_not_there(self) -> None:
        self.files = Files(self.folder / "nothing")
        self.assertNotFound("/a.txt")

    def test_trouble_of_ours_is_not_an_absence(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with self.assertRaises(OSError) as caught:
            self.ask("/a.txt")
        self.assertEqual(caught.exception.errno, errno.EMFILE)


class CacheTests(FilesCase):
    def test_change_is_seen_within_a_second(self) -> None:
        self.ask("/a.txt")
        tag = self.ask("/a.txt").headers["etag"]
        (self.root / "a.txt").write_bytes(b"other")
        self.assertEqual(self.ask("/a.txt").body, b"hello")
        self.clock.advance(1)
        response = self.ask("/a.txt")
        self.assertEqual(response.body, b"other")
        self.assertNotEqual(response.headers["etag"], tag)
        (self.root / "a.txt").unlink()
        self.clock.advance(1)
        self.assertNotFound("/a.txt")

    def test_unchanged_file_is_not_read_again(self) -> None:
        self.ask("/a.txt")
        entry = self.files._cache.get("/a.txt")
        self.clock.advance(1)
        self.ask("/a.txt")
        self.assertIs(self.files._cache.get("/a.txt"), entry)

    def test_new_sibling_is_seen(self) -> None:
        self.ask("/a.txt")
        self.write("a.txt.gz", b"gz")
        self.clock.advance(1)
        self.assertEqual(self.ask("/a.txt", Accept_Encoding="gzip").body, b"gz")

    def test_file_that_was_rewritten_in_place_at_the_same_time_is_another(self) -> None:
        before = self.ask("/a.txt")
        path = self.root / "a.txt"
        changed_ns = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns == changed_ns:  # some kernels count in milliseconds
            self.write("a.txt", b"HELLO")  # same size, and `write` sets the same time
        self.clock.advance(1)
        after = self.ask("/a.txt", If_None_Match=before.headers["etag"])
        self.assertEqual((after.status, after.body), (200, b"HELLO"))
        self.assertEqual(after.headers["last-modified"], before.headers["last-modified"])

    def test_memory_is_bounded(self) -> None:
        self.files = self.make(memory_bytes=100_000)
        for number in range(20):
            self.write(f"{number}.txt", b"x" * 20_000)
            self.assertEqual(len(self.ask(f"/{number}.txt").body), 20_000)  # type: ignore[arg-type]
        cache = self.files._cache
        self.assertEqual(len(cache), 4)
        self.assertLessEqual(cache._cost_bytes, 100_000)

    def test_what_does_not_fit_is_not_kept(self) -> None:
        self.files = self.make(memory_bytes=10)
        self.assertEqual(self.ask("/a.txt").body, b"hello")
        self.assertEqual(len(self.files._cache), 0)

    def test_open_files_are_bounded(self) -> None:
        for number in range(file_cache.OPEN_FILES + 20):
            self.write(f"{number}.bin", LARGE)
            self.ask(f"/{number}.bin")
        opened = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # a thread of another test has closed it
                opened.append(os.readlink(f"/proc/self/fd/{number}"))
        ours = [path for path in opened if path.startswith(f"{self.root.resolve()}/")]
        self.assertEqual(len(ours), file_cache.OPEN_FILES)

    def test_evicted_file_is_still_sent(self) -> None:
        response = self.ask("/large.bin")
        self.files._cache._drop("/large.bin")
        (self.root / "large.bin").unlink()
        self.assertEqual(body(response), LARGE)

    def test_file_that_was_not_in_memory_is_tried_again(self) -> None:
        path = self.root / "a.txt"
        versions: dict[str, Version | None] = {str(path): Version.of(path.stat())}
        cold = Representation.of_file(ColdFile.open(path), "text/plain")
        self.assertIsInstance(cold.part(0, 5), FileSlice)
        self.assertFalse(Found((cold,), versions).is_fresh())
        warm = Representation.of_file(OpenFile.open(path), "text/plain")
        self.assertEqual(warm.part(0, 5), b"hello")
        self.assertTrue(Found((warm,), versions).is_fresh())


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
