from tests.unit.config.case import ConfigTestCase

KINDS = "app, resource, wsgi, asgi, directory, package"


class MountTests(ConfigTestCase):
    def mount_error(self, text: str) -> str:
        return self.error("[[mount]]\n" + text)

    def test_a_mount_is_one_thing_with_its_options(self) -> None:
        first, second = self.load("""
            [[mount]]
            path = "/shop"
            wsgi = "shop.wsgi:application"
            threads = 4
            body_limit = "1GiB"
            [[mount]]
            path = "/"
            package = "shop:static/files"
            max_age = "1h"
        """).mount
        self.assertEqual((first.path, first.wsgi), ("/shop", "shop.wsgi:application"))
        self.assertEqual((first.threads, first.queue), (4, 64))
        self.assertEqual(first.body_limit_bytes, 1 << 30)
        self.assertEqual((second.package, second.max_age_s), ("shop:static/files", 3600))
        self.assertIsNone(second.body_limit_bytes)

    def test_it_is_exactly_one_thing(self) -> None:
        self.assertEqual(
            self.mount_error('path = "/a"'),
            f"peloton.toml: mount[0]: must have exactly one of {KINDS}",
        )
        self.assertEqual(
            self.mount_error('path = "/a"\nasgi = "a:b"\nwsgi = "c:d"'),
            'peloton.toml: mount[0].asgi: "a:b": must not stand beside mount[0].wsgi',
        )

    def test_a_name_that_is_nearly_right_is_told(self) -> None:
        self.assertEqual(
            self.mount_error('path = "/a"\nwsgl = "a:b"'),
            "peloton.toml: mount[0].wsgl: unknown key; did you mean wsgi?",
        )

    def test_options_of_other_kinds_are_refused(self) -> None:
        for option, users in (
            ("threads = 2", "wsgi"),
            ("queue = 2", "wsgi"),
            ('message_limit = "2MiB"', "asgi"),
            ('body_limit = "2MiB"', "resource and wsgi and asgi"),
        ):
            error = self.mount_error(f'path = "/a"\ndirectory = "static"\n{option}')
            self.assertTrue(error.endswith(f": is for {users} only"), error)
            self.assertIn(f"mount[0].{option.split()[0]}", error)
        error = self.mount_error('path = "/a"\nwsgi = "a:b"\nmax_age = "1h"')
        self.assertTrue(error.endswith(': "1h": is for directory and package only'), error)

    def test_but_not_what_they_are_anyway(self) -> None:
        self.load('[[mount]]\npath = "/a"\nasgi = "a:b"\nthreads = 8\nmax_age = 0')

    def test_paths_are_paths_and_differ(self) -> None:
        self.assertEqual(
            self.mount_error('wsgi = "a:b"'),
            'peloton.toml: mount[0].path: missing: must be a path that starts with "/", such as '
            '"/shop"',
        )
        for bad in ("", "shop", "/a//b", "/a b", "/a?b"):
            self.assertIn("must be a path", self.mount_error(f'path = "{bad}"\nwsgi = "a:b"'), bad)
        self.assertEqual(
            self.error(
                '[[mount]]\npath = "/a"\nwsgi = "a:b"\n[[mount]]\npath = "/a/"\nwsgi = "a:b"'
            ),
            'peloton.toml: mount[1].path: "/a/": must differ from mount[0].path',
        )
        for path in ("/health", "/ws/"):  # it would never be seen there
            error = self.mount_error(f'path = "{path}"\nwsgi = "a:b"')
            self.assertIn(f'"{path}": must differ from paths.', error)
        self.load('[[mount]]\npath = "/"\nwsgi = "a:b"')
        self.load('[paths]\nhealth = ""\n[[mount]]\npath = "/health"\nwsgi = "a:b"')

    def test_a_package_has_a_folder_inside_or_none(self) -> None:
        for good in ("shop", "shop.web:static", "shop:static/css"):
            self.load(f'[[mount]]\npath = "/a"\npackage = "{good}"')
        for bad in ("a-b", "shop:", "shop:../x", "shop:/x", ":x"):
            error = self.mount_error(f'path = "/a"\npackage = "{bad}"')
            self.assertIn("must be a package and a folder in it", error)
