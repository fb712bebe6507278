import os
import sys

from pelotontx.config import (
    load_object,
)
from pelotontx.errors import ConfigError
from tests.unit.config.case import ConfigTestCase


class ObjectTests(ConfigTestCase):
    def setUp(self) -> None:
        super().setUp()
        sys.path.insert(0, self.folder)
        self.addCleanup(sys.path.remove, self.folder)
        self.addCleanup(self._forget, set(sys.modules))
        dont_write = sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        self.addCleanup(setattr, sys, "dont_write_bytecode", dont_write)
        os.mkdir(os.path.join(self.folder, "peloton_shop"))
        self.write("", "peloton_shop/__init__.py")
        self.write("class Shop:\n    callee = 7\napp = Shop()\n", "peloton_shop/rpc.py")
        self.write("import peloton_missing\n", "peloton_shop/needy.py")
        self.write("{}['stock']\n", "peloton_shop/broken.py")
        self.write("def f(:\n", "peloton_shop/odd.py")

    def _forget(self, known: set[str]) -> None:
        for name in set(sys.modules) - known:
            if name.startswith("peloton_shop"):
                del sys.modules[name]

    def refusal(self, dotted: str) -> str:
        with self.assertRaises(ConfigError) as caught:
            load_object(dotted, "web.app")
        return str(caught.exception)

    def test_the_object_is_found(self) -> None:
        self.assertEqual(load_object("peloton_shop.rpc:app.callee", "web.app"), 7)

    def test_a_missing_attribute_names_the_nearest(self) -> None:
        self.assertEqual(
            self.refusal("peloton_shop.rpc:ap"),
            'web.app: "peloton_shop.rpc:ap": there is no ap in peloton_shop.rpc; did you mean app?',
        )
        self.assertEqual(
            self.refusal("peloton_shop.rpc:app.zzzz"),
            'web.app: "peloton_shop.rpc:app.zzzz": there is no zzzz in Shop',
        )

    def test_a_missing_module_is_named(self) -> None:
        self.assertEqual(
            self.refusal("peloton_shop.rcp:app"),
            'web.app: "peloton_shop.rcp:app": there is no module peloton_shop.rcp',
        )
        self.assertEqual(
            self.refusal("peloton_shopp.rpc:app"),
            'web.app: "peloton_shopp.rpc:app": there is no module peloton_shopp',
        )

    def test_what_is_no_dotted_name_is_refused(self) -> None:
        for dotted in ("", "shop", "shop:", ":app"):
            self.assertIn("must be a dotted name", self.refusal(dotted))

    def test_the_modules_own_exception_shows_itself(self) -> None:
        for name, kind in (
            ("needy", ModuleNotFoundError),
            ("broken", KeyError),
            ("odd", SyntaxError),
        ):
            with self.assertRaises(kind) as caught:
                load_object(f"peloton_shop.{name}:app", "callee[0].object")
            self.assertEqual(
                caught.exception.__notes__,
                [f"while peloton_shop.{name} was imported for callee[0].object"],
            )
