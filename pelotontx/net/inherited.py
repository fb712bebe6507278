"""Listening sockets that outlive their program: kept open over an `exec`, and taken up after it.

Connections that come in between wait in the socket's backlog instead of being refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any, Final

#: Which descriptors a program has inherited: numbers, separated by commas.
_VARIABLE: Final = "PELOTON_SOCKETS"


def keep_open(ports: Iterable[Any]) -> None:
    """Has the TCP sockets of listening ports stay open for the program that this one becomes.

    Call it before the ports stop. Anything else that listens is left alone.
    """
    kept = []
    for port in ports:
        listening = getattr(port, "socket", None)
        if isinstance(listening, socket.socket) and listening.family != socket.AF_UNIX:
            descriptor = os.dup(listening.fileno())
            os.set_inheritable(descriptor, True)
            kept.append(str(descriptor))
            port._shouldShutdown = False  # Twisted's: else the end of the port ends the socket too
    os.environ[_VARIABLE] = ",".join(kept)


def take_inherited(interface: str, port: int) -> socket.socket | None:
    """The inherited socket that listens there, or None; it is the caller's from now on."""
    kept = [int(number) for number in os.environ.get(_VARIABLE, "").split(",") if number]
    for descriptor in kept:
        listening = socket.socket(fileno=descriptor)
        host, bound = listening.getsockname()[:2]
        if bound == port and host == (interface or _ANY[listening.family]):
            kept.remove(descriptor)
            os.environ[_VARIABLE] = ",".join(map(str, kept))
            os.set_inheritable(descriptor, False)
            return listening
        listening.detach()
    return None


def close_inherited() -> None:
    """Closes what nobody has taken up: a listener that was taken out of the configuration."""
    for number in os.environ.pop(_VARIABLE, "").split(","):
        if number:
            os.close(int(number))


_ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
