"""HPACK (RFC 7541) as hpack does it, which also remembers what it has just done. Pure.

    block   *(index of a table's entry | literal, which may enter the table | new size of the table)

Most heads of a connection are blocks of indexes alone, and repeat. As long as the table has not
changed, equal blocks mean equal fields, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import hpack

#: What is remembered of one connection: a few kinds of requests and answers.
_BLOCKS: Final = 8
_BLOCK_BYTES: Final = 128

#: The largest table that is filled for a peer, whatever it allows: a search looks at each entry.
_TABLE_BYTES: Final = 4096


class _Memory:
    """What a table looked like: whenever it changes, so does one of these."""

    __slots__ = ("_first", "_maxsize", "_size", "_table")

    def __init__(self, table: Any) -> None:
        self._table = table
        self.take()

    def take(self) -> None:
        """Looks at the table."""
        entries = self._table.dynamic_entries
        self._first = entries[0] if entries else None
        self._size = len(entries)
        self._maxsize = self._table.maxsize

    def is_true(self) -> bool:
        """Whether it still looks like that; an entry that came is another, however equal."""
        entries = self._table.dynamic_entries
        return (
            self._size == len(entries)
            and self._first is (entries[0] if entries else None)
            and self._maxsize == self._table.maxsize
        )


class Encoder(hpack.Encoder):
    """Fields to blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = _Memory(self.header_table)
        self._blocks: dict[tuple[Any, ...], bytes] = {}

    @property
    def header_table_size(self) -> int:
        """The size of the table."""
        return super().header_table_size

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        size = min(value, _TABLE_BYTES)
        if size != self.header_table.maxsize:
            self.header_table.maxsize = size
            self.table_size_changes.append(size)

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        fields = tuple(headers)
        block = self._blocks.get(fields)
        if block is not None and not self.header_table.resized:
            return block
        block = super().encode(fields, huffman)
        if not self._memory.is_true() or len(self._blocks) >= _BLOCKS:
            self._memory.take()
            self._blocks.clear()
        elif len(block) <= _BLOCK_BYTES:
            self._blocks[fields] = block
        return block


class Decoder(hpack.Decoder):
    """Blocks to fields."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = _Memory(self.header_table)
        self._fields: dict[bytes, list[Any]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[Any]:
        fields = self._fields.get(data)
        if fields is not None:
            return fields
        fields = list(super().decode(data, raw))
        if not self._memory.is_true() or len(self._fields) >= _BLOCKS:
            self._memory.take()
            self._fields.clear()
        elif len(data) <= _BLOCK_BYTES:
            self._fields[bytes(data)] = fields
        return fields


__all__ = ["Decoder", "Encoder"]
