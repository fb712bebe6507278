import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from pelotontx.config import (
    CalleeConfig,
    ChannelConfig,
    Config,
    UriConfig,
    load,
)
from pelotontx.config.sections import SECTIONS
from pelotontx.errors import ConfigError
from tests.unit.config.case import ConfigTestCase

REDIS_ALLOWED = (
    "must be one of embedded:, memory:, redis://[[user]:password@]host[:port][/db], "
    "unix:///path/to.sock[?db=N]"
)


class FileTests(ConfigTestCase):
    def test_values_of_every_kind_are_read(self) -> None:
        config = self.load("""
            [server]
            listen = ["tcp:80", "unix:/run/p.sock"]
            development = true
            [broker]
            url = "redis://:pw@db:6379/2"
            call_cap = 0
            [http]
            head_timeout = 2.5
            body_limit = "10MB"
            [paths]
            demo = ""
            [log]
            level = "debug"
        """)
        self.assertEqual(config.server.listen, ("tcp:80", "unix:/run/p.sock"))
        self.assertIs(config.server.development, True)
        self.assertEqual(config.broker.url, "redis://:pw@db:6379/2")
        self.assertEqual(config.broker.call_cap, 0)
        self.assertEqual(config.http.head_timeout_s, 2.5)
        self.assertEqual(config.http.body_limit_bytes, 10_000_000)
        self.assertEqual(config.paths.demo, "")
        self.assertEqual(config.log.level, "debug")

    def test_limits_of_some_uris_and_channels_keep_their_order(self) -> None:
        config = self.load(
            """
            [[uri]]
            glob = "shop.report.*"
            call_timeout_limit = "10m"
            [[uri]]
            glob = "shop.*"
            call_cap = 5
            args_limit = "1KiB"
            [[channel]]
            glob = "room.*"
            args_limit = "200B"
            """
        )
        self.assertEqual(
            config.uri,
            (
                UriConfig(glob="shop.report.*", call_timeout_limit_s=600.0),
                UriConfig(glob="shop.*", call_cap=5, args_limit_bytes=1024),
            ),
        )
        self.assertEqual(config.channel, (ChannelConfig(glob="room.*", args_limit_bytes=200),))

    def test_the_limits_of_a_table_stay_below_what_bounds_them(self) -> None:
        self.assertEqual(
            self.error('[[uri]]\nglob = "a"\n[[uri]]\nglob = "b"\nresult_limit = "2MiB"'),
            'peloton.toml: uri[1].result_limit: "2MiB": must be at most rpc.result_limit (1MiB)',
        )

    def test_callees_keep_their_order(self) -> None:
        config = self.load("""
            [[callee]]
            object = "shop.rpc:callee"
            [[callee]]
            object = "shop.more:a.b"
            processes = 2
            concurrency = 1
        """)
        self.assertEqual(
            config.callee,
            (
                CalleeConfig(object="shop.rpc:callee"),
                CalleeConfig(object="shop.more:a.b", processes=2, concurrency=1),
            ),
        )

    def test_a_syntax_error_gives_line_and_column(self) -> None:
        self.assertEqual(
            self.error("[server]\nlisten ==\n"),
            "peloton.toml: not TOML: Invalid value (at line 2, column 9)",
        )

    def test_a_file_that_cannot_be_read_says_why(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            load("/nowhere/peloton.toml", environ={}, overrides=None)
        self.assertEqual(
            str(caught.exception),
            "/nowhere/peloton.toml: cannot be read: No such file or directory",
        )
        self.assertIn("cannot be read", self._error_of_folder())

    def _error_of_folder(self) -> str:
        with self.assertRaises(ConfigError) as caught:
            load(self.folder, environ={}, overrides=None)
        return str(caught.exception)

    def test_strange_files_are_refused_in_one_line(self) -> None:
        self.assertEqual(self.error(b"[log]\n# \xff"), "peloton.toml: line 2: not UTF-8")
        self.assertEqual(
            self.error("x = " + "[" * 50_000), "peloton.toml: not TOML: nested too deeply"
        )
        self.assertIn("not TOML", self.error(f"x = {'9' * 5000}"))
        self.assertIn("a very long number", self.error(f"[rpc]\ncalls_limit = 0x{'f' * 9999}"))
        self.assertEqual(
            self.error('[log]\n"a\\nb" = 1'),
            'peloton.toml: log."a\\nb": unknown key; known here: level, format',
        )

    @settings(deadline=None)
    @given(st.text(max_size=60))
    def test_any_text_loads_or_is_refused_in_one_line(self, text: str) -> None:
        with contextlib.suppress(ConfigError, UnicodeEncodeError):
            self.load(text)

    def test_a_byte_order_mark_does_not_crash(self) -> None:
        self.assertIn("line 1", self.error(b"\xef\xbb\xbf[log]"))


class UnknownKeyTests(ConfigTestCase):
    def test_the_nearest_key_of_the_section_is_named(self) -> None:
        self.assertEqual(
            self.error('[websocket]\nping_intervall = "25s"'),
            "peloton.toml: websocket.ping_intervall: unknown key; did you mean ping_interval?",
        )

    def test_a_key_of_another_section_is_named_with_it(self) -> None:
        self.assertEqual(
            self.error('[server]\nhead_timeout = "5s"'),
            "peloton.toml: server.head_timeout: unknown key; did you mean http.head_timeout?",
        )

    def test_a_key_that_is_like_none_gets_the_list(self) -> None:
        self.assertEqual(
            self.error("[log]\nzzz = 1"),
            "peloton.toml: log.zzz: unknown key; known here: level, format",
        )

    def test_an_unknown_section(self) -> None:
        self.assertEqual(
            self.error("[webscoket]"),
            "peloton.toml: webscoket: unknown section; did you mean websocket?",
        )
        self.assertEqual(
            self.error("[[calee]]\nobject = 'a:b'"),
            "peloton.toml: calee: unknown section; did you mean callee?",
        )

    def test_a_key_outside_its_section(self) -> None:
        self.assertEqual(
            self.error('listen = ["tcp:80"]'),
            "peloton.toml: listen: unknown key; did you mean server.listen?",
        )

    def test_in_a_table_of_a_list(self) -> None:
        self.assertEqual(
            self.error("[[callee]]\nobject = 'a:b'\n[[callee]]\nprocess = 1"),
            "peloton.toml: callee[1].process: unknown key; did you mean processes?",
        )

    def test_a_required_key_that_is_missing(self) -> None:
        self.assertEqual(
            self.error("[[callee]]\nprocesses = 1"),
            "peloton.toml: callee[0].object: missing: must be a dotted name "
            '"module:attribute", such as "shop.rpc:callee"',
        )

    def test_a_section_of_the_wrong_shape(self) -> None:
        self.assertEqual(
            self.error("server = 5"), "peloton.toml: server: 5: must be a table: [server]"
        )
        self.assertEqual(
            self.error("[callee]\nobject = 'a:b'"),
            "peloton.toml: callee: a table: must be an array of tables: [[callee]]",
        )


class EnvironmentTests(ConfigTestCase):
    def test_a_variable_overrides_the_file(self) -> None:
        config = self.load(
            '[http]\nhead_timeout = "7s"\nidle_timeout = "8s"',
            environ={"PELOTON_HTTP__HEAD_TIMEOUT": "5s"},
        )
        self.assertEqual((config.http.head_timeout_s, config.http.idle_timeout_s), (5.0, 8.0))

    def test_every_kind_is_read_from_text(self) -> None:
        config = self.load(
            environ={
                "PELOTON_SERVER__LISTEN": "tcp:80, tcp:81",
                "PELOTON_SERVER__DEVELOPMENT": "Yes",
                "PELOTON_SERVER__DRAIN_TIMEOUT": "0",
                "PELOTON_WEBSOCKET__ORIGINS": '["https://a.example", "https://b.example"]',
                "PELOTON_HTTP__FIELDS_LIMIT": "7",
                "PELOTON_HTTP__BODY_LIMIT": "2MiB",
                "PELOTON_PATHS__DEMO": "",
            }
        )
        self.assertEqual(config.server.listen, ("tcp:80", "tcp:81"))
        self.assertIs(config.server.development, True)
        self.assertEqual(config.server.drain_timeout_s, 0.0)
        self.assertEqual(config.websocket.origins, ("https://a.example", "https://b.example"))
        self.assertEqual(config.http.fields_limit, 7)
        self.assertEqual(config.http.body_limit_bytes, 2 << 20)
        self.assertEqual(config.paths.demo, "")

    def test_an_empty_list_is_empty(self) -> None:
        config = self.load(
            '[websocket]\norigins = ["https://a.example"]',
            environ={"PELOTON_WEBSOCKET__ORIGINS": ""},
        )
        self.assertEqual(config.websocket.origins, ())

    def test_errors_name_the_variable(self) -> None:
        for variable, text, message in (
            ("PELOTON_BROKER__URL", "redis//x", f'broker.url: "redis//x": {REDIS_ALLOWED}'),
            ("PELOTON_HTTP__FIELDS_LIMIT", "7x", 'http.fields_limit: "7x": must be an integer'),
            ("PELOTON_HTTP__FIELDS_LIMIT", "9" * 5000, 'http.fields_limit: "999'),
            ("PELOTON_RPC__PATTERNS", "maybe", 'rpc.patterns: "maybe": must be true or false'),
            ("PELOTON_SERVER__LISTEN", '["tcp:80"', 'server.listen: "[\\"tcp:80\\"": must be a'),
            ("PELOTON_SERVER__LISTEN", "", "server.listen: []: must be a list of at least 1"),
            ("PELOTON_SERVER__NODE", "\udcff\n", 'server.node: "\\udcff\\n": must be a string'),
        ):
            found = self.error(environ={variable: text})
            self.assertTrue(found.startswith(f"{variable}: {message}"), found)

    def test_an_unknown_variable_names_the_nearest(self) -> None:
        self.assertEqual(
            self.error(environ={"PELOTON_HTTP__HED_TIMEOUT": "5s"}),
            "PELOTON_HTTP__HED_TIMEOUT: http.hed_timeout: unknown key; "
            "did you mean PELOTON_HTTP__HEAD_TIMEOUT?",
        )
        self.assertEqual(
            self.error(environ={"PELOTON_BROKR__URL": "memory:"}),
            "PELOTON_BROKR__URL: brokr.url: unknown key; did you mean PELOTON_BROKER__URL?",
        )
        self.assertIn("known here: level", self.error(environ={"PELOTON_LOG__ZZZ": "1"}))
        self.assertIn("known here: server", self.error(environ={"PELOTON_ZZZ__ZZZ": "1"}))

    def test_one_underscore_for_two_is_not_ignored(self) -> None:
        self.assertEqual(
            self.error(environ={"PELOTON_BROKER_URL": "memory:"}),
            "PELOTON_BROKER_URL: one underscore too few; did you mean PELOTON_BROKER__URL?",
        )

    def test_other_variables_are_let_alone(self) -> None:
        environ = {"PELOTON_HOME": "/srv", "PELOTONS__X": "1", "HOME": "/", "X__Y": "z"}
        self.assertEqual(self.load(environ=environ), Config())

    def test_lists_of_tables_are_for_the_file(self) -> None:
        self.assertEqual(
            self.error(environ={"PELOTON_CALLEE__OBJECT": "a:b"}),
            "PELOTON_CALLEE__OBJECT: [[callee]] can be set in the file only",
        )

    @settings(deadline=None)
    @given(st.text(max_size=20))
    def test_any_text_is_taken_or_refused(self, text: str) -> None:
        for name, section in SECTIONS.items():
            for key in section.keys.values():
                if not section.repeated:
                    variable = f"PELOTON_{name}__{key.name}".upper()
                    with contextlib.suppress(ConfigError):
                        self.load(environ={variable: text})


class OverrideTests(ConfigTestCase):
    def test_the_command_line_overrides_environment_and_file(self) -> None:
        config = self.load(
            '[broker]\nurl = "redis://file"\ncall_cap = 1\nresult_cap = 1',
            environ={"PELOTON_BROKER__URL": "redis://env", "PELOTON_BROKER__CALL_CAP": "2"},
            overrides={"broker.url": "memory:", "server.listen": ["tcp:81"]},
        )
        self.assertEqual(config.broker.url, "memory:")
        self.assertEqual((config.broker.call_cap, config.broker.result_cap), (2, 1))
        self.assertEqual(config.server.listen, ("tcp:81",))

    def test_an_option_that_was_not_given_changes_nothing(self) -> None:
        self.assertEqual(self.load(overrides={"broker.url": None}), Config())

    def test_text_is_read_as_from_the_environment(self) -> None:
        config = self.load(overrides={"rpc.patterns": "on", "rpc.calls_limit": "3"})
        self.assertIs(config.rpc.patterns, True)
        self.assertEqual(config.rpc.calls_limit, 3)

    def test_errors_name_the_option(self) -> None:
        self.assertIn("--listen: server.listen: ", self.error(overrides={"server.listen": ["x"]}))
        self.assertIn("--broker: broker.url: ", self.error(overrides={"broker.url": "x"}))
        self.assertEqual(
            self.error(overrides={"log.level": "loud"}),
            'command line: log.level: "loud": must be one of debug, info, warn, error',
        )
        self.assertEqual(
            self.error(overrides={"log.levl": "info"}),
            "command line: log.levl: unknown key; did you mean level?",
        )

    def test_what_an_override_replaces_is_checked_too(self) -> None:
        message = self.error('[broker]\nurl = "x"', overrides={"broker.url": "memory:"})
        self.assertIn('peloton.toml: broker.url: "x"', message)


class CrossCheckTests(ConfigTestCase):
    def test_a_key_may_not_pass_its_limit(self) -> None:
        self.assertEqual(
            self.error('[rpc]\ncall_timeout = "10m"'),
            'peloton.toml: rpc.call_timeout: "10m": must be at most rpc.call_timeout_limit (300s)',
        )
        self.assertEqual(
            self.error('[http]\nfield_limit = "32KiB"\nhead_limit = 20000'),
            'peloton.toml: http.field_limit: "32KiB": must be at most http.head_limit (20000)',
        )

    def test_the_key_that_was_set_is_blamed(self) -> None:
        self.assertEqual(
            self.error('[rpc]\ncall_timeout_limit = "30s"'),
            'peloton.toml: rpc.call_timeout_limit: "30s": must be at least rpc.call_timeout (60s)',
        )

    def test_its_source_is_named(self) -> None:
        self.assertEqual(
            self.error(environ={"PELOTON_WEBSOCKET__OUTBOUND_LIMIT": "64KiB"}),
            'PELOTON_WEBSOCKET__OUTBOUND_LIMIT: websocket.outbound_limit: "64KiB": '
            "must be at least rpc.result_limit (1MiB)",
        )

    def test_both_moved_together_pass(self) -> None:
        config = self.load('[rpc]\ncall_timeout = "10m"\ncall_timeout_limit = "10m"')
        self.assertEqual(config.rpc.call_timeout_s, 600.0)

    def test_paths_must_be_distinct(self) -> None:
        self.assertEqual(
            self.error('[paths]\nwebsocket = "/health"'),
            'peloton.toml: paths.websocket: "/health": must differ from paths.health',
        )
        self.assertEqual(
            self.error('[paths]\ndemo = "/ws"'),
            'peloton.toml: paths.demo: "/ws": must differ from paths.websocket',
        )

    def test_any_number_of_paths_may_be_off(self) -> None:
        config = self.load('[paths]\nhealth = ""\nmetrics = ""\ndemo = ""')
        self.assertEqual(config.paths.health, "")

    def test_other_processes_cannot_reach_a_broker_in_memory(self) -> None:
        text = "[[callee]]\nobject = 'a:b'\nprocesses = 2"
        self.assertEqual(
            self.error(text, overrides={"broker.url": "memory:"}),
            "peloton.toml: callee[0].processes: 2: must be 0 while broker.url is memory:, "
            "which other processes cannot reach",
        )
        self.assertEqual(self.load(text).callee[0].processes, 2)
