"""Apps and other objects below prefixes, and the URLs of their routes."""

from __future__ import annotations

import pytest

from pelotontx.net.http import Response
from pelotontx.web import App, Request
from tests.support.app_case import AppCase


class Place:
    """Says where it was called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def handle(self, request: Request) -> Response:
        where = f"{self.name} {request.method} {request.root_path} {request.path_info}"
        return Response(200, where.encode())


class SubAppTests(AppCase):
    def test_routes_are_found_below_the_prefix(self) -> None:
        shop = App()
        shop.get("^/$")(lambda _: "index")
        shop.get(r"^/item/(\d+)$|^/old/(\d+)$")(lambda _, n, old: n or old)
        shop.get("/{name}/{n:int}")(lambda _, name, n: f"{name}{n}")
        self.app.mount("/shop/", shop)
        for target, body in (
            ("/shop/", "index"),
            ("/shop", "index"),
            ("/shop/item/7", "7"),
            ("/shop/old/8", "8"),
            ("/shop/a/1", "a1"),
        ):
            self.assertEqual(self.body("GET", target), body)
        for target in ("/", "/item/7", "/shopping", "/shop//"):
            self.assertEqual(self.ask("GET", target).status, 404)

    def test_apps_are_mounted_in_mounted_apps(self) -> None:
        inner, outer = App(), App()
        outer.mount("/b", inner)
        self.app.mount("/a", outer)
        inner.get("/c")(lambda _: "late")
        self.assertEqual(self.body("GET", "/a/b/c"), "late")
        self.assertRaises(ValueError, inner.mount, "/x", self.app)
        self.assertRaises(ValueError, inner.mount, "/x", inner)

    def test_whatever_matches_the_bare_slash_answers_at_the_bare_prefix(self) -> None:
        files = App()
        files.post(r"^/(?P<rest>.*)$", "extra", stream=True)(lambda _, word, rest: word + rest)
        self.app.mount("/files", files)
        self.assertEqual(self.body("POST", "/files"), "extra")
        self.assertEqual(self.body("POST", "/files/x/y"), "extrax/y")

    def test_what_an_app_does_not_have_may_be_another_ones(self) -> None:
        one, two = App(), App()
        one.get("/x")(lambda _: "one")
        two.get("/{any}")(lambda _, any: f"two {any}")
        self.app.mount("/a", one)
        self.app.mount("/a", two)
        self.assertEqual(self.body("GET", "/a/x"), "one")
        self.assertEqual(self.body("GET", "/a/y"), "two y")

    def test_methods_are_counted_across_apps(self) -> None:
        one, two = App(), App()
        one.get("/x")(lambda _: "")
        two.put("/x")(lambda _: "")
        self.app.mount("/a", one)
        self.app.mount("/a", two)
        answer = self.ask("POST", "/a/x")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, OPTIONS, PUT"))
        self.assertEqual(self.ask("OPTIONS", "/a/x").headers["allow"], "GET, HEAD, OPTIONS, PUT")

    def test_prefix_that_is_none_is_refused(self) -> None:
        for prefix in ("shop", "/a//b", "/{name}", "/../shop", "/a/."):
            with pytest.raises(ValueError, match="is not a prefix"):
                self.app.mount(prefix, App())


class ObjectTests(AppCase):
    def test_object_is_told_where_it_is(self) -> None:
        self.app.mount("/st.tic", Place("files"))
        for target, said in (
            ("/st.tic/css/a%20b.css?x", "/css/a b.css"),
            ("/st.tic/", "/"),
            ("/st.tic", "/"),
        ):
            self.assertEqual(self.body("GET", target), f"files GET /st.tic {said}")
        for target in ("/statics", "/st.tica", "/stxtic/a"):
            self.assertEqual(self.ask("GET", target).status, 404)

    def test_prefixes_of_apps_around_it_are_part_of_the_place(self) -> None:
        shop = App()
        shop.mount("/static", Place("files"))
        self.app.mount("/shop", shop)
        self.assertEqual(self.body("POST", "/shop/static/x"), "files POST /shop/static /x")

    def test_object_at_the_root_gets_the_rest_of_every_method(self) -> None:
        self.app.mount("/", Place("root"))
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE"):
            self.assertEqual(self.body(method, "/x"), f"root {method}  /x")

    def test_own_routes_come_first_then_the_longer_prefix_then_the_first(self) -> None:
        self.app.mount("", Place("root"))
        self.app.mount("/a", Place("short"))
        self.app.mount("/a/b", Place("long"))
        self.app.mount("/a", Place("second"))
        self.app.get("/a/b/c")(lambda _: "route")
        for target, name in (("/a/b/c", "route"), ("/a/b/d", "long"), ("/a/c", "short")):
            self.assertTrue(self.body("GET", target).startswith(name))
        self.assertTrue(self.body("GET", "/ab").startswith("root"))

    def test_other_methods_of_a_route_do_not_fall_into_an_object_behind_it(self) -> None:
        self.app.get("/a/{n:int}")(lambda _, n: "")
        self.app.route("HEAD", "/only-head")(lambda _: "")
        self.app.mount("/", Place("root"))
        answer = self.ask("POST", "/a/1")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
        self.assertEqual(self.ask("OPTIONS", "/a/1").status, 204)
        self.assertEqual(self.ask("HEAD", "/a/1").status, 200)
        self.assertEqual(self.body("POST", "/a/x"), "root POST  /a/x")
        self.assertEqual(self.body("HEAD", "/only-head"), "")
        self.assertEqual(self.body("GET", "/only-head"), "root GET  /only-head")

    def test_coroutine_of_an_object_is_awaited(self) -> None:
        class Later:
            async def handle(self, request: Request) -> Response:
                return Response(200, b"later")

        self.app.mount("/x", Later())
        self.assertEqual(self.body("GET", "/x"), "later")


class URLTests(AppCase):
    def setUp(self) -> None:
        super().setUp()
        self.shop = App()
        self.app.mount("/our shop", self.shop)
        self.app.mount("/static", Place("files"), name="static")

        @self.shop.get("/item/{number:int}")
        def item(request: Request, number: int) -> str:
            return self.shop.url_for("item", number=number + 1)

        @self.app.get("^/$")
        def index(request: Request) -> str:
            return ""

    def test_prefixes_belong_to_it_wherever_it_is_asked(self) -> None:
        self.assertEqual(self.shop.url_for("item", number=3), "/our%20shop/item/3")
        self.assertEqual(self.app.url_for("item", number=3), "/our%20shop/item/3")
        self.assertEqual(self.body("GET", "/our%20shop/item/3"), "/our%20shop/item/4")
        self.assertEqual(self.app.url_for("index"), "/")

    def test_any_word_may_be_a_capture(self) -> None:
        @self.app.post("/{name}/{self}", "extra", name="odd", stream=True)
        def odd(_: Request, extra: str, /, **named: str) -> str:
            return f"{extra} {named}"

        path = self.app.url_for("odd", name="a", self="b")
        self.assertEqual(path, "/a/b")
        self.assertEqual(self.body("POST", path), "extra {'name': 'a', 'self': 'b'}")
        self.app.mount("/", Place("root"))
        self.assertEqual(self.ask("GET", path).status, 405)

    def test_query_is_quoted(self) -> None:
        query = {"q": "a&b", "n": [1, 2]}
        self.assertEqual(self.app.url_for("index", query=query), "/?q=a%26b&n=1&n=2")
        self.assertEqual(self.app.url_for("index", query=[("q", "é")]), "/?q=%C3%A9")

    def test_named_mounts_are_rooms_of_names(self) -> None:
        room = App()
        room.get("/x", name="index")(lambda _: "")
        self.app.mount("/room", room, name="room")
        self.assertEqual(self.app.url_for("room.index"), "/room/x")
        self.assertEqual(self.app.url_for("index"), "/")
        self.assertEqual(self.app.url_for("static", path="css/a b.css"), "/static/css/a%20b.css")
        self.assertRaises(ValueError, self.app.url_for, "static")

    def test_of_routes_with_one_name_the_one_that_fits_is_taken(self) -> None:
        self.app.get("/p", name="page")(lambda _: "")
        self.app.get("/p/{n:int}", name="page")(lambda _, n: "")
        self.assertEqual(self.app.url_for("page"), "/p")
        self.assertEqual(self.app.url_for("page", n=2), "/p/2")
        with self.assertRaisesRegex(ValueError, "no place for x"):
            self.app.url_for("page", x=2)

    def test_unknown_name_is_told_with_what_may_be_meant(self) -> None:
        with self.assertRaisesRegex(LookupError, "no route 'itme'; did you mean item?"):
            self.app.url_for("itme", number=1)
        self.assertRaises(LookupError, self.app.url_for, "item.x")
