"""`[[listener]]` tables: what goes together, and what becomes of `server.listen`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pelotontx.config import Config, ListenerConfig, as_environment, load
from pelotontx.errors import ConfigError

TABLE = '[[listener]]\nendpoint = "tcp:443"\n'


class ListenerTests(SynchronousTestCase):
    def load(self, text: str, environ: Mapping[str, str] | None = None) -> Config:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "p.toml"
        path.write_text(text)
        return load(str(path), environ=environ or {}, overrides=None)

    def refusal(self, text: str) -> str:
        with self.assertRaises(ConfigError) as caught:
            self.load(text)
        return str(caught.exception).partition("p.toml: ")[2]

    def test_an_endpoint_is_enough(self) -> None:
        (listener,) = self.load(TABLE).listener
        self.assertEqual(listener, ListenerConfig(endpoint="tcp:443"))
        self.assertEqual(
            (listener.serves, listener.certificate, listener.redirect), ("all", (), "")
        )
        for endpoint in ("systemd", "systemd:web", "unix:/run/p.sock:mode=600", "tcp6:443"):
            (listener,) = self.load(f'[[listener]]\nendpoint = "{endpoint}"\n').listener
            self.assertEqual(listener.endpoint, endpoint)

    def test_somebody_must_be_allowed_to_send_a_proxy_header(self) -> None:
        self.assertEqual(
            self.refusal(f"{TABLE}proxy_protocol = true\n"),
            "listener[0].proxy_protocol: true: server.proxies must say who may send such a header",
        )
        self.load(f'[server]\nproxies = ["10.0.0.1"]\n{TABLE}proxy_protocol = true\n')
        for endpoint in ("unix:/run/p.sock", "systemd:web"):
            self.load(f'[[listener]]\nendpoint = "{endpoint}"\nproxy_protocol = true\n')

    def test_one_certificate_needs_no_list(self) -> None:
        one = self.load(f'{TABLE}certificate = "a.pem"\nprivate_key = "a.key"\n').listener[0]
        self.assertEqual((one.certificate, one.private_key), (("a.pem",), ("a.key",)))
        two = self.load(f'{TABLE}certificate = ["a.pem", "b.pem"]\n').listener[0]
        self.assertEqual((two.certificate, two.private_key), (("a.pem", "b.pem"), ()))

    def test_tables_take_the_place_of_the_default_only(self) -> None:
        self.assertEqual(self.load(TABLE).server.listen, ())
        self.assertEqual(self.load("").server.listen, ("tcp:8080:interface=127.0.0.1",))
        both = f'[server]\nlisten = ["tcp:80"]\n{TABLE}'
        self.assertEqual(self.load(both).server.listen, ("tcp:80",))
        by_variable = self.load(TABLE, {"PELOTON_SERVER__LISTEN": "tcp:81"})
        self.assertEqual(by_variable.server.listen, ("tcp:81",))

    def test_other_processes_of_such_a_server_can_read_their_variables(self) -> None:
        config = self.load(TABLE)
        self.assertEqual(load(None, environ=as_environment(config), overrides=None).listener, ())

    def test_what_does_not_go_together_is_refused(self) -> None:
        for text, reason in (
            ("[[listener]]\n", "listener[0].endpoint: missing: must be a Twisted endpoint"),
            (f'{TABLE}serves = "some"\n', 'listener[0].serves: "some": must be one of all, appl'),
            (f'{TABLE}certificate = ""\n', 'listener[0].certificate: "": must be a file such as'),
            (f"{TABLE}certificate = 1\n", "listener[0].certificate: 1: must be a file such as"),
            (f'{TABLE}redirect = "http"\n', 'listener[0].redirect: "http": must be "https", "htt'),
            (f'{TABLE}redirect = "https:0"\n', 'listener[0].redirect: "https:0": must be'),
            (f"{TABLE}backlog = 0\n", "listener[0].backlog: 0: must be an integer from 1"),
            (
                f'{TABLE}private_key = "a.key"\n',
                'listener[0].private_key: "a.key": needs a certificate beside it',
            ),
            (
                f'{TABLE}certificate = ["a", "b"]\nprivate_key = "a.key"\n',
                'listener[0].private_key: "a.key": must be one for each certificate (2)',
            ),
            (f'{TABLE}client_ca = "a"\n', 'listener[0].client_ca: "a": needs a certificate'),
            (
                f'{TABLE}certificate = "a"\nredirect = "https"\n',
                'listener[0].redirect: "https": this listener speaks https itself',
            ),
            (
                '[[listener]]\nendpoint = "ssl:443:privateKey=a"\ncertificate = "a"\n',
                'listener[0].certificate: "a": the endpoint has one already: write tcp:',
            ),
            ('[access_log]\nformat = "text"\n', 'access_log.format: "text": must be one of comb'),
            ('[access_log]\npath = "logs/"\n', 'access_log.path: "logs/": must be a file such as'),
        ):
            with self.subTest(text=text):
                self.assertIn(reason, self.refusal(text))
