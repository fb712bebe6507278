"""systemd: sockets that it has opened for us, and telling it how we are.

`activated` finds the sockets of a socket unit, `Notifier` speaks to a unit of ``Type=notify``.
Outside of systemd there are none, and nothing is told. sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from twisted.internet.endpoints import _SystemdParser
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from pelotontx.errors import ConfigError

_FAMILIES: Final = {
    socket.AF_INET: "INET",
    socket.AF_INET6: "INET6",
    socket.AF_UNIX: "UNIX",
}


def activated(description: str) -> list[str]:
    """What a short systemd endpoint stands for: an endpoint string of Twisted's for each socket.

    Args:
        description: ``systemd``, all sockets, or ``systemd:NAME``, those with this
            ``FileDescriptorName=`` (the unit's own name, such as ``peloton.socket``, by default).
            Any other endpoint string stands for itself.

    Raises:
        ConfigError: systemd has passed no such socket; its `path` is the string.
    """
    kind, _, wanted = description.partition(":")
    if kind != "systemd" or "=" in wanted:
        return [description]
    # Twisted has taken what systemd told out of the environment when it was imported.
    passed = _SystemdParser._sddaemon
    found = [
        f"systemd:domain={_family(descriptor, description)}:index={index}"
        for index, (name, descriptor) in enumerate(
            zip(passed._names, passed.inheritedDescriptors(), strict=True)
        )
        if wanted in ("", name)
    ]
    if not found:
        names = ", ".join(passed._names) or "none"
        raise ConfigError(description, f"systemd has passed no such socket; passed: {names}")
    return found


def _family(descriptor: int, description: str) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as passed:
        if passed.type != socket.SOCK_STREAM or passed.family not in _FAMILIES:
            raise ConfigError(description, "not a stream socket")
        return _FAMILIES[passed.family]


class Notifier:
    """Tells systemd that the server is ready, that it stops, and in between that it lives.

    The watchdog (``WatchdogSec=``) is fed from the reactor: one that is stuck is restarted.

    Args:
        reactor: its clock.
        environ: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are read.
    """

    _log = Logger()

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract one
            self._address = "\0" + self._address[1:]
        self._feed_s = _watchdog_s(environ) / 2
        self._feeding: IDelayedCall | None = None

    def ready(self) -> None:
        """The server listens."""
        self._tell("READY=1")
        if self._address and self._feed_s:
            self._feed()

    def stopping(self) -> None:
        """It is about to stop."""
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None
        self._tell("STOPPING=1")

    def _feed(self) -> None:
        self._feeding = self._reactor.callLater(self._feed_s, self._feed)
        self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.sendto(state.encode(), self._address)
        except OSError as error:  # the server itself is well
            self._log.warn("systemd was not told {state}: {error}", state=state, error=error)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """The time within which systemd wants to hear of this process; 0: it does not."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0


__all__ = ["Notifier", "activated"]
