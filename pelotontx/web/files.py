r"""Files as answers: static trees of a directory or a package, and single files from handlers.

    app.mount("/static", Files("static", max_age_s=3600))
    app.mount("/assets", Files("assets", package="shop"))

    @app.get(r"^/report$")
    def report(request):
        return send_file(request, "/var/reports/may.pdf", download_name="Report May.pdf")

Conditions (If-*) and ranges are those of RFC 9110; a file that lies beside another as ``.br`` or
``.gz`` goes to clients that take it. Nothing hidden and nothing outside the directory is served, by
symbolic links neither.

The reactor waits for a file's `stat` and `open`, and for nothing else on the disk: what is not in
memory is read by a thread (with the exceptions of `net.sendfile`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from time import monotonic, time
from urllib.parse import quote

from pelotontx.errors import ConfigError
from pelotontx.net.http import Response
from pelotontx.net.sendfile import OpenFile
from pelotontx.web.content_types import content_type as content_type_of
from pelotontx.web.errors import HTTPError
from pelotontx.web.file_answer import answer, head_of
from pelotontx.web.file_cache import (
    SIBLINGS,
    Entry,
    FileCache,
    Folder,
    Found,
    Representation,
    ResourceFolder,
)
from pelotontx.web.request import Request
from pelotontx.web.responses import content_disposition, redirect
from pelotontx.wire.http import response_field
from pelotontx.wire.negotiation import choose_coding

#: Memory for small files of one tree: a thousand of 32 KiB.
MEMORY_BYTES = 32 * 1024 * 1024

#: For a name that tells of the content. A year is as long as caches go.
_IMMUTABLE = response_field("Cache-Control", "public, max-age=31536000, immutable")

#: Fields without which every client gets the same.
_SPECIAL = re.compile(rb"\r\n(?:if-|range:)", re.I)


class Files:
    r"""A tree of files, to be mounted: `App.mount`.

    Args:
        directory: of the files; with `package`, a folder inside it.
        package: the package that has them as resources; also one in a zip file, from memory then.
        index: what a folder's address shows; empty: nothing, like an address that is not there.
        max_age_s: how long clients may use a file without asking; 0: they ask each time. None
            leaves it to them, and most guess from the file's age.
        immutable: a regular expression; a name in which it is found has its content's hash in it
            (``r"\.[0-9a-f]{8,}\."``) and may be used for a year without asking.
        precompressed: send ``name.br`` and ``name.gz`` where they are and the client takes them.
        headers: further fields for every file.
        memory_bytes: for small files, which are kept.
        seconds: a clock.
        wall_clock: seconds since the epoch.

    Raises:
        ConfigError: `immutable` is not a regular expression.
        ModuleNotFoundError: there is no such package.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] = "",
        *,
        package: str = "",
        index: str = "index.html",
        max_age_s: int | None = None,
        immutable: str = "",
        precompressed: bool = True,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        memory_bytes: int = MEMORY_BYTES,
        seconds: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._index = index
        self._max_age_s = max_age_s
        try:
            self._immutable = re.compile(immutable) if immutable else None
        except re.error as error:
            raise ConfigError("immutable", f"not a regular expression: {error}") from None
        self._fields = _lines(headers)
        self._codings = tuple(SIBLINGS) if precompressed else ()
        self._source = _source(directory, package, self._codings)
        self._cache = FileCache(memory_bytes=memory_bytes, seconds=seconds)
        self._wall_clock = wall_clock

    def handle(self, request: Request) -> Response:
        """Answers with the file at `Request.path_info`.

        Raises:
            HTTPError: 404, also for whatever must not be seen; 400 for NUL in the path; 405, 412
                and 416.
        """
        # By the whole path, which costs less to know than the part below the mount.
        entry = self._cache.get(request.path)
        if entry is None:
            return self._first(request)
        if (
            request.method == "GET"
            and entry.data is not None
            and not _SPECIAL.search(request.raw_head)
        ):
            response = Response(200, entry.data)
            response.fields = entry.heads[0]
            return response
        return _of_method(request) or self._answer(request, entry)

    def _first(self, request: Request) -> Response:
        """Answers at an address of which nothing is kept."""
        early = _of_method(request)
        if early is not None:
            return early
        path = request.path_info
        if path == "/" and not request.path.endswith("/"):
            return _to_folder(request)
        try:
            entry = self._look(request.path, _name(path, self._index))
        except IsADirectoryError:
            if not self._index or path.endswith("/"):
                raise HTTPError(404) from None
            return _to_folder(request)
        return self._answer(request, entry)

    def send(self, request: Request, path: str, *, download_name: str = "") -> Response:
        """Answers with a file of the tree, whatever address was asked for.

        Args:
            request: whose conditions and ranges count; a GET or HEAD.
            path: below the directory; it may come from a client.
            download_name: see `send_file`.

        Raises:
            HTTPError: as `handle`.
        """
        name = _name(path, "")
        try:
            entry = self._cache.get(name) or self._look(name, name)
        except IsADirectoryError:
            raise HTTPError(404) from None
        return self._answer(request, entry, _disposition(download_name))

    def _look(self, key: str, name: str) -> Entry:
        """Finds a file, and keeps it.

        Raises:
            IsADirectoryError: it is a folder.
            HTTPError: 404.
        """
        try:
            found = self._source.find(name)
        except FileNotFoundError:
            raise HTTPError(404) from None
        entry = Entry(found, self._heads(name, found))
        self._cache.keep(key, entry)
        return entry

    def _heads(self, name: str, found: Found) -> list[bytes]:
        is_immutable = self._immutable is not None and self._immutable.search(name)
        shared = _IMMUTABLE if is_immutable else _cache_control(self._max_age_s)
        if len(found.representations) > 1:
            shared += b"Vary: Accept-Encoding\r\n"
        return [head_of(each, shared + self._fields) for each in found.representations]

    def _answer(self, request: Request, entry: Entry, extra: bytes = b"") -> Response:
        representations = entry.found.representations
        which = 0
        if len(representations) > 1:
            offered = tuple(each.coding for each in representations[1:])
            accepted = ", ".join(request.headers.get_all("accept-encoding"))
            coding = choose_coding(accepted, offered)
            which = offered.index(coding) + 1 if coding else 0
        head = entry.heads[which] + extra
        return answer(request, representations[which], head, now_s=self._wall_clock())


def send_file(
    request: Request,
    path: str | os.PathLike[str],
    *,
    download_name: str = "",
    content_type: str = "",
    max_age_s: int | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Response:
    """A handler's answer that is one file, with conditions and ranges as for `Files`.

    Args:
        request: a GET or HEAD.
        path: of the file. It is opened as it is: one that a client has a say in is for
            `Files.send`.
        download_name: the name it is saved under, of any characters; empty: it is shown.
        content_type: by the name of the file if empty.
        max_age_s: as of `Files`.
        headers: further fields.

    Raises:
        HTTPError: 404 if there is no such file; 412 and 416.
        OSError: it cannot be opened.
    """
    try:
        file = OpenFile.open(path)
    except FileNotFoundError:
        raise HTTPError(404) from None
    kind = content_type or content_type_of(download_name or os.fspath(path))
    found = Representation.of_file(file, kind)
    fields = _cache_control(max_age_s) + _disposition(download_name) + _lines(headers)
    return answer(request, found, head_of(found, fields), now_s=time())


def _disposition(download_name: str) -> bytes:
    if not download_name:
        return b""
    return response_field("Content-Disposition", content_disposition(download_name))


def _source(
    directory: str | os.PathLike[str], package: str, codings: tuple[str, ...]
) -> Folder | ResourceFolder:
    if not package:
        return Folder(os.fspath(directory), content_type_of, codings)
    root = package_files(package)
    for name in filter(None, os.fspath(directory).split("/")):
        root = root.joinpath(name)
    if isinstance(root, Path):
        return Folder(os.fspath(root), content_type_of, codings)
    return ResourceFolder(root, content_type_of, codings)


def _name(path: str, index: str) -> str:
    """The path of a file below its directory.

    Raises:
        HTTPError: 400 or 404 for a path that names no file that may be seen.
    """
    if "\0" in path:
        raise HTTPError(400, "There is a NUL in the path.")
    *folders, last = path.removeprefix("/").split("/")
    parts = [*folders, last or index]
    if "\\" in path or any(not part or part.startswith(".") for part in parts):
        raise HTTPError(404)
    return "/".join(parts)


def _of_method(request: Request) -> Response | None:
    """What OPTIONS asks for, of any address; None for GET and HEAD; raises 405 for the others."""
    if request.method in ("GET", "HEAD"):
        return None
    allow = {"Allow": "GET, HEAD, OPTIONS"}
    if request.method == "OPTIONS":
        return Response(204, headers=allow)
    raise HTTPError(405, "Files can only be read.", allow)


def _to_folder(request: Request) -> Response:
    """Adds the slash without which a folder's relative links would lead astray."""
    query = f"?{request.query_string}" if request.query_string else ""
    return redirect(f"{quote(request.path)}/{query}", 308)


def _cache_control(max_age_s: int | None) -> bytes:
    if max_age_s is None:
        return b""
    return response_field(
        "Cache-Control", f"public, max-age={max_age_s}" if max_age_s else "no-cache"
    )


def _lines(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    return Response(headers=headers).fields
