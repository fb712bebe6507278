import contextlib
import dataclasses
import io
import re
import tomllib

from pelotontx.cli.config import check_config, default_config
from pelotontx.config import (
    CalleeConfig,
    Config,
    as_environment,
    load,
    render_default,
)
from pelotontx.config.sections import SECTIONS
from tests.unit.config.case import ConfigTestCase


class DefaultTests(ConfigTestCase):
    def test_no_file_is_the_defaults(self) -> None:
        config = self.load()
        self.assertEqual(config, Config())
        self.assertEqual(config.server.listen, ("tcp:8080:interface=127.0.0.1",))
        self.assertEqual(config.http.head_timeout_s, 10.0)
        self.assertEqual(config.websocket.message_limit_bytes, 65536)
        self.assertEqual(config.callee, ())

    def test_the_environment_carries_a_whole_configuration(self) -> None:
        changed = self.load(
            '[server]\nlisten = ["tcp:1", "unix:/a,b"]\ndevelopment = true\n'
            '[broker]\nurl = "redis://:p%40w@h/3"\nreply_timeout = "1500ms"\n'
            '[http]\nbody_limit = "3KiB"\n[websocket]\norigins = []\n[rpc]\nclose_uri = ""'
        )
        for config in (changed, Config()):
            self.assertEqual(load(None, environ=as_environment(config), overrides=None), config)

    def test_the_default_file_loads_to_exactly_the_defaults(self) -> None:
        self.assertEqual(self.load(render_default()), Config())

    def test_the_default_file_holds_every_key_with_its_help(self) -> None:
        text = render_default()
        unwrapped = re.sub(r"\n# ?", " ", text)
        document = tomllib.loads(re.sub(r"(?m)^#(?=\S)", "", text))
        for name, section in SECTIONS.items():
            table = document[name][0] if section.repeated else document[name]
            self.assertEqual(list(table), list(section.keys))
            for key in section.keys.values():
                self.assertIn(key.help, unwrapped)
                self.assertIn(key.kind.sort, unwrapped)

    def test_the_examples_of_the_default_file_load_when_uncommented(self) -> None:
        text = re.sub(r"(?m)^#(?=\S)", "", render_default())
        # A mount is exactly one of six things: its example leaves it to the reader which.
        config = self.load(text.replace('\nwsgi = ""', '\nwsgi = "shop.web:application"'))
        self.assertEqual(config.callee, (CalleeConfig(object="shop.rpc:callee"),))

    def test_a_fields_name_is_its_key_and_unit(self) -> None:
        for section in SECTIONS.values():
            for key in section.keys.values():
                self.assertEqual(key.attribute, f"{key.name}{key.kind.unit}")

    def test_every_default_passes_every_check_when_it_is_written_out(self) -> None:
        overrides = {
            f"{name}.{key.name}": key.default
            for name, section in SECTIONS.items()
            if not section.repeated
            for key in section.keys.values()
        }
        self.assertEqual(self.load(overrides=overrides), Config())

    def test_the_dataclasses_are_frozen_and_for_keywords_only(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            self.load().log.level = "debug"  # type: ignore[misc]
        with self.assertRaises(TypeError):
            CalleeConfig("shop.rpc:callee")  # type: ignore[call-arg]


class CommandTests(ConfigTestCase):
    def run_command(self, text: str) -> tuple[int, str, str]:
        path = self.write(text)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = check_config(path)
        printed, complained = (s.getvalue().replace(f"{self.folder}/", "") for s in (out, err))
        return status, printed, complained

    def test_a_good_file_is_ok(self) -> None:
        self.assertEqual(self.run_command("[log]"), (0, "peloton.toml: ok\n", ""))

    def test_a_bad_file_is_one_line_and_status_1(self) -> None:
        self.assertEqual(
            self.run_command("[log]\nlevel = 1"),
            (1, "", "peloton.toml: log.level: 1: must be one of debug, info, warn, error\n"),
        )

    def test_default_config_is_printed(self) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(default_config(), 0)
        self.assertEqual(out.getvalue(), render_default())
