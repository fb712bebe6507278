"""What files are as answers, where they come from, and which of them are kept at hand.

A `Folder` (on disk) or `ResourceFolder` (inside a zipped package) finds files by the path below it;
a `FileCache` keeps what was found. Small files are kept in memory and larger ones open, and a file
that changed is found out within `FRESH_S`. For `web.files` only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources.abc import Traversable
from typing import NamedTuple

from pelotontx.net.sendfile import FileSlice, OpenFile
from pelotontx.wire.conditional import Validators

#: A file up to this size is kept in memory: past it a copy costs more than `sendfile` saves.
KEPT_BYTES = 64 * 1024

#: For so long a file is taken for unchanged.
FRESH_S = 1.0

#: Files that a cache holds open: a few of the descriptors that a server leaves free.
OPEN_FILES = 64

#: What an entry costs beside the bytes of its file.
_ENTRY_BYTES = 2048

#: How the system says that there is no file for us: a name too long, a loop of links, a socket ...
_ABSENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.ENXIO, errno.EINVAL}
)

#: Content codings of files that lie beside a file, the best first.
SIBLINGS = {"br": ".br", "gzip": ".gz"}


class Version(NamedTuple):
    """What differs when a file was replaced or written.

    Deployments that set the same times again and again are told apart by the time of the change,
    which nobody can set; it is also another one when the owner or permissions are.
    """

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        """Of what `os.stat` says."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def validators(self) -> Validators:
        """The strong entity tag and date of the file."""
        etag = f'"{self.inode:x}-{self.size:x}-{self.changed_ns:x}"'
        return Validators(etag, self.modified_ns // 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Representation:
    """A file as it can be sent: either `data` or `file` is there.

    Attributes:
        size: its bytes.
        validators: its version.
        coding: its content coding; empty for none.
        content_type: the header's value.
        data: all of it.
        file: open.
    """

    size: int
    validators: Validators
    coding: str
    content_type: str
    data: bytes | None = None
    file: OpenFile | None = None

    @classmethod
    def of_file(cls, file: OpenFile, content_type: str, coding: str = "") -> Representation:
        """Of an open file; a small one that can be read without a wait is read."""
        size = file.size
        data = file.read_cached(size, 0) if size <= KEPT_BYTES else None
        if data is not None and len(data) != size:
            data = None
        validators = Version.of(file.status).validators
        kept = None if data is not None else file
        return cls(size, validators, coding, content_type, data, kept)

    @classmethod
    def of_bytes(cls, data: bytes, content_type: str, coding: str = "") -> Representation:
        """Of bytes; what they are is their version."""
        validators = Validators(f'"{sha256(data).hexdigest()[:32]}"')
        return cls(len(data), validators, coding, content_type, data)

    def part(self, first: int, length: int) -> bytes | FileSlice:
        """Some of its bytes, as a body."""
        if self.data is not None:
            return self.data if length == self.size else self.data[first : first + length]
        assert self.file is not None
        return FileSlice(self.file, first, length)


class Found(NamedTuple):
    """A file, with those that say the same in a content coding.

    Attributes:
        representations: the file itself first.
        versions: of each path that was looked at; None where there was nothing.
    """

    representations: tuple[Representation, ...]
    versions: dict[str, Version | None]

    def is_fresh(self) -> bool:
        """Whether all files are what they were, and are kept as they should be."""
        if any(each.file and each.size <= KEPT_BYTES for each in self.representations):
            return False  # it was not in memory: by now it may be
        return all(_version(path) == version for path, version in self.versions.items())


def _version(path: str) -> Version | None:
    try:
        return Version.of(os.stat(path))
    except OSError:
        return None


class Folder:
    """Files below a directory, and nothing else.

    Symbolic links are followed as long as they lead to something below it.

    Args:
        path: of the directory.
        content_type: of a file's name.
        codings: siblings to look for.
    """

    def __init__(
        self, path: str, content_type: Callable[[str], str], codings: tuple[str, ...]
    ) -> None:
        self.path = os.path.abspath(path)
        self._content_type = content_type
        self._codings = codings

    def find(self, name: str) -> Found:
        """Opens a file and its siblings.

        Args:
            name: the path below the directory, without empty parts, ``.`` and ``..``.

        Raises:
            IsADirectoryError: it is a folder.
            FileNotFoundError: there is no such file, or it is not to be seen.
            OSError: it cannot be read now.
        """
        path = f"{self.path}/{name}"
        file = self._open(path)
        media_type = self._content_type(name)
        representations = [Representation.of_file(file, media_type)]
        versions: dict[str, Version | None] = {path: Version.of(file.status)}
        for coding in self._codings:
            beside = path + SIBLINGS[coding]
            versions[beside] = None
            try:
                file = self._open(beside)
            except (FileNotFoundError, IsADirectoryError):
                continue
            versions[beside] = Version.of(file.status)
            representations.append(Representation.of_file(file, media_type, coding))
        return Found(tuple(representations), versions)

    def _open(self, path: str) -> OpenFile:
        try:
            file = OpenFile.open(path)
        except IsADirectoryError:
            self._check(os.path.realpath(path), path)
            raise
        except ValueError:  # no name for a file
            raise _absent(path) from None
        except OSError as error:
            if error.errno in _ABSENT:
                raise _absent(path) from None
            raise
        try:
            # Of what was opened: the path may lead elsewhere by now.
            real = os.readlink(f"/proc/self/fd/{file.descriptor}")
        except OSError:
            real = os.path.realpath(path)
        self._check(real, path)
        return file

    def _check(self, real: str, path: str) -> None:
        """Raises FileNotFoundError for what lies outside, or is hidden."""
        root = os.path.realpath(self.path).rstrip("/") + "/"
        if not f"{real}/".startswith(root) or "/." in f"/{real[len(root) :]}":
            raise _absent(path)


def _absent(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


class ResourceFolder:
    """Files of a package that is not on disk; the same surface as `Folder`.

    They are read whole, and never change.
    """

    def __init__(
        self, root: Traversable, content_type: Callable[[str], str], codings: tuple[str, ...]
    ) -> None:
        self._root = root
        self._content_type = content_type
        self._codings = codings

    def find(self, name: str) -> Found:
        """Reads a file and its siblings; as `Folder.find`."""
        media_type = self._content_type(name)
        data = self._read(name)
        representations = [Representation.of_bytes(data, media_type)]
        for coding in self._codings:
            try:
                data = self._read(name + SIBLINGS[coding])
            except (FileNotFoundError, IsADirectoryError):
                continue
            representations.append(Representation.of_bytes(data, media_type, coding))
        return Found(tuple(representations), {})

    def _read(self, name: str) -> bytes:
        resource = self._root.joinpath(*name.split("/"))
        if resource.is_file():
            return resource.read_bytes()
        if resource.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        raise _absent(name)


class Entry:
    """What a cache keeps of a path.

    Attributes:
        found: the file.
        data: the file, if it is in memory and every client gets the same.
        heads: header lines of each representation, made by who answers.
        due_s: when it must be looked at again.
    """

    __slots__ = ("cost_bytes", "data", "due_s", "found", "heads", "open_files")

    def __init__(self, found: Found, heads: list[bytes]) -> None:
        self.found = found
        self.heads = heads
        first, *others = found.representations
        self.data = None if others else first.data
        self.due_s = 0.0
        kept = [len(each.data) for each in found.representations if each.data is not None]
        self.cost_bytes = _ENTRY_BYTES + sum(kept)
        self.open_files = len(found.representations) - len(kept)


class FileCache:
    """Entries by path, bounded by memory and by open files: those looked at longest ago go.

    Args:
        memory_bytes: what they may cost.
        seconds: a clock.
    """

    def __init__(self, *, memory_bytes: int, seconds: Callable[[], float]) -> None:
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._entries: dict[str, Entry] = {}
        self._cost_bytes = 0
        self._open_files = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, path: str) -> Entry | None:
        """What is kept of a path, if it is still true."""
        entry = self._entries.get(path)
        if entry is None or self._seconds() < entry.due_s:
            return entry
        self._drop(path)
        if not entry.found.is_fresh():
            return None
        self.keep(path, entry)
        return entry

    def keep(self, path: str, entry: Entry) -> None:
        """Keeps what was found just now, if it fits."""
        if entry.cost_bytes > self._memory_bytes:
            return
        entry.due_s = self._seconds() + FRESH_S
        self._entries[path] = entry
        self._cost_bytes += entry.cost_bytes
        self._open_files += entry.open_files
        while self._cost_bytes > self._memory_bytes or self._open_files > OPEN_FILES:
            self._drop(next(iter(self._entries)))

    def _drop(self, path: str) -> None:
        entry = self._entries.pop(path)
        self._cost_bytes -= entry.cost_bytes
        self._open_files -= entry.open_files
