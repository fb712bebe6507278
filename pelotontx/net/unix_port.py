"""Listening UNIX sockets: what a dead server has left is taken away, what is another's is not.

For `net.tcp`, which says what the accepted connections are.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

_STILL_LISTENING = "another process listens there"


class UNIXPort(unix.Port):
    """A listening UNIX socket, made here or passed by systemd.

    A socket file that nobody listens to any more is removed before ours is made: asking the socket
    itself needs no lock file, which a process with the same number (in containers they are always
    the same) would take for its own. At the end our file is removed, if it still is ours; one that
    was passed to us is not.
    """

    _file: tuple[int, int] | None = None  # the device and inode of ours

    def startListening(self) -> None:
        if self._preexistingSocket is not None:
            self._adopt(self._preexistingSocket)
            return
        is_file = self._bindPath[:1] != b"\0"  # not in the abstract namespace
        if is_file:
            self._remove_stale()
        super().startListening()  # type: ignore[no-untyped-call]
        if is_file:
            self._file = _identity(self._bindPath)

    def connectionLost(self, reason: Failure) -> None:
        if self._file is not None and self._file == _identity(self._bindPath):
            os.unlink(self._bindPath)
        tcp.Port.connectionLost(self, reason)

    def _adopt(self, passed: socket.socket) -> None:
        """Listens on a socket as it is: its mode, its backlog and its file are not ours."""
        self._preexistingSocket = None
        self._shouldShutdown = False
        self.factory.doStart()  # type: ignore[union-attr]
        self.connected = True
        self.socket = passed
        self.fileno = passed.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]

    def _remove_stale(self) -> None:
        path = self._bindPath
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return  # not there, or binding tells what is wrong
        if not stat.S_ISSOCK(mode):
            raise _cannot_listen(path, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            refusal = probe.connect_ex(path)
        if refusal != errno.ECONNREFUSED:
            # Also one with a full backlog (EAGAIN), or whose users we are not among (EACCES).
            raise _cannot_listen(path, _STILL_LISTENING)
        os.unlink(path)


def _identity(path: Any) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _cannot_listen(path: bytes, reason: str) -> CannotListenError:
    return CannotListenError(None, os.fsdecode(path), OSError(errno.EADDRINUSE, reason))


__all__ = ["UNIXPort"]
