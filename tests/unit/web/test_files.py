"""Files as answers: which are found, and which are kept; no connection."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from pelotontx.errors import ConfigError
from pelotontx.net.sendfile import FileSlice, OpenFile
from pelotontx.web import file_cache
from pelotontx.web.errors import HTTPError
from pelotontx.web.file_cache import Found, Representation, Version
from pelotontx.web.files import Files
from pelotontx.wire.http import RefusedRequest
from tests.support.app_case import request
from tests.unit.web.files_case import LARGE, ColdFile, FilesCase, body


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
