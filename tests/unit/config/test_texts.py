from pelotontx.errors import ConfigError
from pelotontx.net.redis.address import FORMS
from tests.unit.config.case import ConfigTestCase

REDIS_ALLOWED = f"must be one of embedded:, memory:, {FORMS}"


class UnusableValueTests(ConfigTestCase):
    def test_the_value_and_what_is_allowed_are_named(self) -> None:
        for body, message in (
            ('[broker]\nurl = "redis//x"', f'broker.url: "redis//x": {REDIS_ALLOWED}'),
            (
                '[http]\nhead_timeout = "5 parsecs"',
                'http.head_timeout: "5 parsecs": must be a duration from 1ms to 1h, '
                'such as "25s", "500ms" or "2m"',
            ),
            (
                "[http]\nhead_timeout = 0",
                "http.head_timeout: 0: must be a duration from 1ms to 1h, "
                'such as "25s", "500ms" or "2m"',
            ),
            (
                '[http]\nbody_limit = "1Mib"',
                'http.body_limit: "1Mib": must be a size from 0B to 1024GiB, '
                'such as "8190B", "64KiB" or "1MiB"',
            ),
            (
                '[http]\nfields_limit = "many"',
                'http.fields_limit: "many": must be an integer from 1 to 10000',
            ),
            ("[http]\nfields_limit = true", "http.fields_limit: true: must be an integer from 1"),
            ("[http]\nfields_limit = 1.5", "http.fields_limit: 1.5: must be an integer from 1"),
            ("[http]\nfields_limit = 0", "http.fields_limit: 0: must be an integer from 1"),
            ("[rpc]\npatterns = 1", "rpc.patterns: 1: must be true or false"),
            ('[rpc]\npatterns = "true"', 'rpc.patterns: "true": must be true or false'),
            ("[log]\nlevel = 2", "log.level: 2: must be one of debug, info, warn, error"),
            ('[log]\nlevel = "Info"', 'log.level: "Info": must be one of debug, info, warn'),
            ("[log]\nlevel = 2026-01-02", "log.level: 2026-01-02: must be one of debug"),
            ("[log]\nlevel = {}", "log.level: a table: must be one of debug"),
            ('[server]\nlisten = "tcp:80"', 'server.listen: "tcp:80": must be a list of at least'),
            ("[server]\nlisten = []", "server.listen: []: must be a list of at least 1, each a"),
            (
                '[server]\nlisten = ["tcp:80", "8080"]',
                'server.listen: "8080": must be a Twisted endpoint such as "tcp:8080',
            ),
            ('[server]\nlisten = ["tcp:99999"]', 'server.listen: "tcp:99999": must be a Twisted'),
            ('[server]\nproxies = ["host"]', 'server.proxies: "host": must be an address or a'),
            (
                '[server]\nhosts = ["shop.example:80"]',
                'server.hosts: "shop.example:80": must be a host name such as "shop.example" or',
            ),
            ('[server]\nhosts = ["*"]', 'server.hosts: "*": must be a host name such as'),
            ('[server]\nhosts = ["Shop.example"]', 'server.hosts: "Shop.example": must be a host'),
            ('[server]\nhosts = ["a.*.b"]', 'server.hosts: "a.*.b": must be a host name'),
            ('[paths]\nhealth = "health"', 'paths.health: "health": must be a path that starts'),
            ('[web]\napp = "shop.web"', 'web.app: "shop.web": must be a dotted name "module:'),
            ('[[callee]]\nobject = ""', 'callee[0].object: "": must be a dotted name "module:'),
            ('[[callee]]\nobject = "a-b:c"', 'callee[0].object: "a-b:c": must be a dotted name'),
        ):
            self.assertTrue(
                (found := self.error(body)).startswith(f"peloton.toml: {message}"), found
            )

    def test_a_long_value_is_cut(self) -> None:
        message = self.error(f'[log]\nlevel = "{"x" * 5000}"')
        self.assertLess(len(message), 200)

    def test_the_parts_of_the_error_are_fields(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.load("[log]\nformat = 1")
        self.assertEqual(caught.exception.path, f"{self.folder}/peloton.toml: log.format")
        self.assertEqual(caught.exception.reason, "1: must be one of text, json")

    def test_broker_urls(self) -> None:
        for url in (
            "embedded:",
            "memory:",
            "redis://db",
            "redis://db/",
            "redis://db:6379/15",
            "redis://:pw@db",
            "redis://user:p%40w@[::1]:6379/0",
            "unix:///run/redis.sock",
            "unix:///run/redis.sock?db=3",
            "unix://user:pw@/run/redis.sock",
            "rediss://db?ca=/ca.pem&cert=/c.pem&key=/k.pem",
            "redis+sentinel://:pw@a:26379,b/main/1?sentinel_password=x",
            "redis+cluster://a:7000,b:7001",
        ):
            config = self.load(overrides={"broker.url": url})
            self.assertEqual(config.broker.url, url)
        for url in (
            "",
            "embedded",
            "memory",
            "redis:",
            "redis://",
            "redis://:pw@/0",
            "redis://db:0",
            "redis://db:port",
            "redis://db:65536",
            "redis://db/x",
            "redis://db/-1",
            "redis://db/0?x=1",
            "redis://db/0#x",
            "redis://d b",
            "redis://[::1",
            "rediss://db?verify=no",
            "redis://db?ca=/ca.pem",
            "redis+cluster://a/1",
            "redis+sentinel://a,b",
            "redis+other://a",
            "http://db",
            "unix://",
            "unix://run/redis.sock",
            "unix:///s.sock?db=x",
            "unix:///s.sock?db=1&db=2",
            "unix:///s.sock?db",
            "unix:///s.sock?name=1",
        ):
            self.assertIn(REDIS_ALLOWED, self.error(overrides={"broker.url": url}))

    def test_origins(self) -> None:
        good = ["https://shop.example", "http://localhost:3000", "http://[::1]:8080"]
        config = self.load(overrides={"websocket.origins": good})
        self.assertEqual(config.websocket.origins, tuple(good))
        for origin in (
            "null",
            "*",
            "shop.example",
            "https://Shop.example",
            "https://shop.example/",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://*.example",
            "ftp://shop.example",
        ):
            message = self.error(overrides={"websocket.origins": [origin]})
            self.assertIn("must be an origin as browsers send it", message)

    def test_endpoints_of_plugins_are_left_to_twisted(self) -> None:
        endpoints = ("tcp:0", "tcp:port=80:interface=\\:\\:1", "systemd:domain=INET:index=0", "x:y")
        config = self.load(overrides={"server.listen": endpoints})
        self.assertEqual(config.server.listen, endpoints)

    def test_paths(self) -> None:
        for path in ("ws", "/a b", "/a?b", "/a#b", "//a", "/a\n", "/é"):
            message = self.error(overrides={"paths.websocket": path})
            self.assertIn("must be a path that starts with", message)


class SecretTests(ConfigTestCase):
    def test_no_error_holds_the_password(self) -> None:
        for url in (
            "redis//user:secret@db",
            "rediss://user:secret@db?verify=no",
            "redis+sentinel://user:secret@a,b",
            "redis+sentinel://a?sentinel_password=secret",
            "redis://user:secret",
            "redis://:se secret@db",
            "redis://:#secret@db",
            "unix:///s?password=secret",
        ):
            for message in (
                self.error(f'[broker]\nurl = "{url}"'),
                self.error(f'[broker]\nurl = ["{url}"]'),
                self.error(environ={"PELOTON_BROKER__URL": url}),
                self.error(overrides={"broker.url": url}),
                self.error(f'[broker]\nurls = "{url}"'),
            ):
                self.assertNotIn("secret", message)

    def test_the_refused_exception_drags_no_password_along(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.load(overrides={"broker.url": "rediss://:secret@db/x"})
        error: BaseException | None = caught.exception
        while error is not None:
            self.assertNotIn("secret", repr(error))
            error = error.__cause__ or error.__context__

    def test_the_repr_does_not_hold_the_password(self) -> None:
        config = self.load(overrides={"broker.url": "redis://:secret@db"})
        self.assertNotIn("secret", repr(config))

    def test_no_error_shows_a_part_of_a_hidden_secret(self) -> None:
        for value in ("short-4711", "with a space in it, yet 4711 4711 4711", "4711" * 300):
            for message in (
                self.error(f'[session]\nsecret = "{value}"'),
                self.error(f'[session]\nsecret = ["{value}"]'),
                self.error(f'[session]\nold_secrets = "{value}"'),
                self.error(f'[session]\nold_secrets = ["{value}"]'),
                self.error(f'[session]\nold_secrets = [["{value}"]]'),
                self.error(environ={"PELOTON_SESSION__SECRET": value}),
                self.error(environ={"PELOTON_SESSION__OLD_SECRETS": f"[{value}"}),
            ):
                self.assertNotIn("4711", message)
                self.assertIn("at least 32 characters", message)

    def test_a_hidden_secret_is_read_and_not_in_the_repr(self) -> None:
        old = [f"old-secret-{n}-of-at-least-32-characters" for n in range(2)]
        config = self.load(
            environ={
                "PELOTON_SESSION__SECRET": "4711" * 8,
                "PELOTON_SESSION__OLD_SECRETS": ",".join(old),
            }
        )
        self.assertEqual(config.session.secret, "4711" * 8)
        self.assertEqual(config.session.old_secrets, tuple(old))
        self.assertNotIn("4711", repr(config))
        self.assertNotIn("old-secret", repr(config))

    def test_a_cookie_name_is_a_plain_word(self) -> None:
        self.assertEqual(self.load('[session]\ncookie = "shop-1_id"').session.cookie, "shop-1_id")
        for name in ("", "a b", "a=b", "a;b", "\u00e9", "__Host-" + "x" * 64):
            message = self.error(overrides={"session.cookie": name})
            self.assertIn('must be letters, digits, "-" and "_"', message)

    def test_a_session_is_not_idle_for_longer_than_it_lives(self) -> None:
        message = self.error('[session]\nlifetime = "10m"')
        self.assertIn("must be at least session.idle_timeout", message)
