"""``twistd peloton``: options and makeService, for twistd and twist alike.

Importing this module installs our reactor, unless another one is there already: a plain
``twistd peloton`` has loaded none yet at this point.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn

if "twisted.internet.reactor" not in sys.modules:
    from pelotontx.net import reactor as _reactor_module

    _reactor_module.install()

from twisted.application.service import IService, MultiService
from twisted.internet import reactor
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized

import pelotontx
from pelotontx import config as configuration
from pelotontx import services
from pelotontx.errors import ConfigError
from pelotontx.flow import spare_collector
from pelotontx.net.process import end_at_next_signal
from pelotontx.ops.logging import observer
from pelotontx.services.limits import RESERVED_FILES

_DEMO_CALLEE = configuration.CalleeConfig(object="pelotontx.demo.callee:callee")

_log = Logger(namespace="pelotontx")


class Options(usage.Options):
    """What the command line offers."""

    synopsis = "[--config FILE] [options]"
    longdesc = (
        "Serves HTTP, WebSocket RPC and pub/sub on one broker. Without --config it serves a demo "
        "on http://127.0.0.1:8080/ with a broker of its own."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "The configuration, a TOML file; see `peloton default-config`."],
        [
            *("broker", "b", None),
            "Overrides broker.url: embedded:, memory:, redis://, unix://. A password belongs into "
            "the file or PELOTON_BROKER__URL: other users can read a command line.",
        ],
    ]
    compData = usage.Completions(optActions={"config": usage.CompleteFiles("*.toml")})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []

    def opt_listen(self, description: str) -> None:
        """Overrides server.listen: an endpoint string such as tcp:8080; may be repeated."""
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_version(self) -> NoReturn:
        """Shows the version."""
        print(f"pelotontx {pelotontx.__version__}")
        sys.exit(0)

    def postOptions(self) -> None:
        """Loads the configuration: what is wrong with it shows before twistd forks."""
        try:
            self["loaded"] = self.load()
        except ConfigError as error:
            _exit(str(error))

    def load(self) -> configuration.Config:
        """The configuration, read now; raises `ConfigError`."""
        overrides: dict[str, Any] = {}
        if self["listen"]:
            overrides["server.listen"] = self["listen"]
        if self["broker"]:
            overrides["broker.url"] = self["broker"]
        return configuration.load(self["config"], environ=os.environ, overrides=overrides)


def _exit(line: str) -> NoReturn:
    print(f"peloton: {line}", file=sys.stderr)
    sys.exit(1)


def makeService(options: Options) -> IService:
    """The server that the options ask for."""
    config = options["loaded"]
    _raise_descriptor_limit(config.server.connections_limit + RESERVED_FILES)
    if options["config"] is None:
        config = replace(config, callee=(_DEMO_CALLEE,))
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        server = _build(options)(
            config,
            reactor=reactor,
            on_failure=partial(_start_failed, options),
            on_stopping=end_at_next_signal,
        )
    except ConfigError as error:
        _exit(_located(error, options))
    _refresh_on_hangup(server)
    spare_collector()
    return _Logged(server, config.log) if _logs_to_terminal(options) else server


def _build(options: Options) -> Callable[..., services.Server]:
    """In development, on a terminal: with what starts the server again when a file has changed."""
    parent = getattr(options, "parent", None) or {}
    if options["loaded"].server.development and parent.get("nodaemon"):
        files = [os.path.abspath(options["config"])] if options["config"] else []
        return partial(services.build_reloading, files=files, check=options.load)
    return services.build


def _raise_descriptor_limit(wanted: int) -> None:
    """Lets the process open `wanted` descriptors, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted > soft:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _logs_to_terminal(options: Options) -> bool:
    """Whether twistd would log to standard output: other ways of logging are its own affair."""
    parent = getattr(options, "parent", None) or {}
    asked = ("logfile", "syslog", "logger")
    return bool(parent.get("nodaemon")) and not any(parent.get(name) for name in asked)


class _Logged(MultiService):
    """Carries our log observer to the application that it is put into."""

    def __init__(self, server: MultiService, config: configuration.LogConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer(sys.stdout, level=config.level, format=config.format)
        server.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized):  # twistd's Application
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]


def _refresh_on_hangup(server: services.Server) -> None:
    """SIGHUP: certificates are loaded anew, and the access log's file is opened anew.

    On a terminal it means, as ever, that the terminal was closed.
    """
    if not os.isatty(0):
        signal.signal(
            signal.SIGHUP,
            lambda *_: reactor.callFromThread(server.refresh),  # type: ignore[attr-defined]
        )


def _located(error: ConfigError, options: Options) -> str:
    """An error that is found when everything is read, with where its key was written.

    Tables stand in the file only; what the environment may have set is let alone.
    """
    tables = ("listener[", "mount[", "server.listen[")
    if options["config"] is None or not error.path.startswith(tables):
        return str(error)
    if options["listen"] and error.path.startswith("server."):
        return f"--listen: {error}"
    return f"{options['config']}: {error}"


def _start_failed(options: Options, error: BaseException) -> None:
    """A server that cannot start ends, with one line and exit status 1."""
    if isinstance(error, ConfigError):
        print(f"peloton: {_located(error, options)}", file=sys.stderr)
    else:
        _log.failure("The server cannot start")
    atexit.register(_exit_with_failure)
    # It may not run yet: without a broker to be waited for, all is started before it is.
    reactor.callWhenRunning(reactor.stop)


def _exit_with_failure() -> None:
    """Twistd has no exit status of its own for a service that fails: this runs after it is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
