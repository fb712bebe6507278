"""A reactor that notes who wants to read and write, and lets them when a test says so."""

from __future__ import annotations

from typing import Any

from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.internet.task import Clock


class FakeReactor(_DisconnectSelectableMixin, Clock):
    """Its `dirty` is the list of `PelotonReactor`.

    Args:
        corking: whether it has one.
    """

    def __init__(self, *, corking: bool = True) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        if corking:
            self.dirty: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def flush(self) -> None:
        dirty, self.dirty = self.dirty, []
        for transport in dirty:
            transport.flush()

    def turn(self) -> None:
        """Has everybody read once and write once, and flushes: one turn of a real reactor."""
        for reader in list(self.readers):
            why = reader.doRead()
            if why:
                self._disconnectSelectable(reader, why, True)
        self.flush()
        for writer in list(self.writers):
            why = writer.doWrite()
            if why:
                self._disconnectSelectable(writer, why, False)
