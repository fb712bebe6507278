import os
import shutil
import tempfile
from collections.abc import Mapping

from twisted.trial.unittest import SynchronousTestCase

from pelotontx.config import (
    Config,
    load,
)
from pelotontx.errors import ConfigError


class ConfigTestCase(SynchronousTestCase):
    """Files are named without their folder in the messages that tests compare."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def write(self, text: str | bytes, name: str = "peloton.toml") -> str:
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path

    def load(
        self,
        text: str | bytes | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Config:
        path = None if text is None else self.write(text)
        return load(path, environ=environ or {}, overrides=overrides)

    def error(self, text: str | bytes | None = None, **more: Mapping[str, object]) -> str:
        with self.assertRaises(ConfigError) as caught:
            self.load(text, **more)  # type: ignore[arg-type]
        message = str(caught.exception)
        self.assertEqual(len(message.splitlines()), 1)
        return message.replace(f"{self.folder}{os.sep}", "")
