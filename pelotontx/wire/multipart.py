"""multipart/form-data (RFC 7578): a form as it arrives, piece by piece.

    --BOUNDARY CRLF                 the first line of all: no preamble
    Content-Disposition: form-data; name="photo"; filename="a.png" CRLF
    Content-Type: image/png CRLF
    CRLF
    any bytes
    CRLF --BOUNDARY CRLF ...        further parts
    CRLF --BOUNDARY--               the end; whatever follows is ignored

The parser is that of the package multipart. What it lets pass and two readers could understand in
two ways is refused here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from pelotontx.wire.http import RefusedRequest

FORM_TYPE: Final = "multipart/form-data"

# RFC 2046, 5.1.1.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
# Three are defined for a part; browsers send two.
_HEADERS_LIMIT: Final = 8
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PARAMETER: Final = re.compile(r';[ \t]*([\w*-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.ASCII)
# RFC 8187: charset'language'percent-encoded.
_EXTENDED_VALUE: Final = re.compile(
    r"(utf-8|iso-8859-1)'[A-Za-z0-9-]*'((?:[\w!#$&+.^`|~-]|%[0-9A-Fa-f]{2})*)",
    re.IGNORECASE | re.ASCII,
)
_PLAIN_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1"})

# What file systems take.
_NAME_LIMIT_BYTES: Final = 255
# Longer endings are no types of files.
_SUFFIX_LIMIT: Final = 20
NAMELESS: Final = "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHead:
    """What is known of a part before its content.

    Attributes:
        name: the field's; may be empty or come again.
        filename: as the client has written it, to be trusted in nothing; None: it is no file.
            Empty with an empty content: the field of a form where no file was chosen.
        content_type: lower case, without parameters; ``text/plain`` if there is none.
        charset: of a field's text.
        headers: all fields of the head, names in title case.
    """

    name: str
    filename: str | None
    content_type: str
    charset: str
    headers: tuple[tuple[str, str], ...]


def read_boundary(content_type: str) -> bytes:
    """The boundary in the Content-Type of a request.

    Raises:
        RefusedRequest: 415 if it is another type, 400 without a boundary that can be one.
    """
    media_type, parameters = parse_options_header(content_type)
    if media_type != FORM_TYPE:
        raise RefusedRequest(415, "a form is expected: multipart/form-data")
    boundary = parameters.get("boundary", "")
    if content_type.lower().count("boundary") != 1 + boundary.lower().count("boundary"):
        raise RefusedRequest(400, "one boundary is needed")
    if not _BOUNDARY.fullmatch(boundary):
        raise RefusedRequest(400, "malformed boundary")
    return str(boundary).encode("ascii")


class MultipartParser:
    """Splits one body into the heads and contents of its parts.

    Args:
        boundary: as `read_boundary` gives it.
        head_limit_bytes: of each part.
        parts_limit: most parts.
    """

    def __init__(self, boundary: bytes, *, head_limit_bytes: int, parts_limit: int) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._start: bytes | None = b""
        self._head_limit_bytes = head_limit_bytes
        self._parser = PushMultipartParser(
            boundary,
            max_header_size=head_limit_bytes,
            max_header_count=_HEADERS_LIMIT,
            max_segment_count=parts_limit,
        )

    def feed(self, data: bytes) -> Iterator[PartHead | bytes | None]:
        """For each part its head, pieces of its content, and None: as far as `data` goes.

        To be used up before the next call.

        Raises:
            RefusedRequest: 400 for what is no such form, 413 past a limit.
        """
        if self._start is not None:
            self._start += data
            if len(self._start) < len(self._delimiter):
                return
            # What precedes the first boundary is meant for old mail readers: no client sends it.
            if not self._start.startswith((self._delimiter, self._delimiter[2:])):
                raise RefusedRequest(400, "the body does not begin with its boundary")
            data, self._start = self._start, None
        try:
            for event in self._parser.parse(data):
                yield self._read_head(event) if isinstance(event, MultipartSegment) else event
        except MultipartError as error:
            raise _refusal(error) from None

    def end(self) -> None:
        """The body has ended.

        Raises:
            RefusedRequest: 400, within a part.
        """
        try:
            self._parser.close()
        except MultipartError as error:
            raise _refusal(error) from None

    def _read_head(self, segment: MultipartSegment) -> PartHead:
        headers = [(str(name), str(value)) for name, value in segment.headerlist]
        if sum(len(name) + len(value.encode()) + 4 for name, value in headers) > (
            self._head_limit_bytes
        ):
            raise RefusedRequest(413, "the head of a part is too long")
        names = [name for name, _ in headers]
        if len(set(names)) != len(names):
            raise RefusedRequest(400, "a part has the same header twice")
        if any(_CONTROL.search(value) for _, value in headers):
            raise RefusedRequest(400, "control character in the head of a part")
        values = dict(headers)
        encoding = values.get("Content-Transfer-Encoding", "binary").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:
            raise RefusedRequest(400, "a part must not be encoded")
        parameters = _parameters(values["Content-Disposition"])
        if "name" not in parameters:
            raise RefusedRequest(400, "a part has no name")
        filename = segment.filename
        if filename is None and "filename*" in parameters:
            filename = _extended(parameters["filename*"])
        charset = (segment.charset or "utf-8").lower()
        if charset not in _CHARSETS:
            raise RefusedRequest(400, "a part has an unknown charset")
        return PartHead(
            name=str(segment.name),
            filename=filename,
            content_type=segment.content_type or "text/plain",
            charset=charset,
            headers=tuple(headers),
        )


def _refusal(error: MultipartError) -> RefusedRequest:
    status = 413 if isinstance(error, ParserLimitReached) else 400
    return RefusedRequest(status, str(error.args[0]))


def _parameters(disposition: str) -> dict[str, str]:
    """The parameters of a Content-Disposition as they stand there, names in lower case."""
    pairs = [(name.lower(), value) for name, value in _PARAMETER.findall(disposition)]
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise RefusedRequest(400, "a part has two names")
    return parameters


def _extended(value: str) -> str:
    """The file's name as RFC 8187 writes it: forms must not, some clients do.

    A plain ``filename`` beside it wins, since that is what everybody else reads.
    """
    found = _EXTENDED_VALUE.fullmatch(value.strip().strip('"'))
    if found is None:
        raise RefusedRequest(400, "malformed filename*")
    try:
        return unquote_to_bytes(found[2]).decode(found[1])
    except UnicodeDecodeError:
        raise RefusedRequest(400, "malformed filename*") from None


def safe_filename(name: str) -> str:
    """A name that can be one in a folder, whatever a client has sent.

    What precedes the last slash or backslash is dropped, and so are characters that are not
    printed, leading dots (hidden files, ``..``), and dots and spaces at the end. At most 255 bytes
    of UTF-8; the ending is kept. ``unnamed`` if nothing is left.
    """
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    printed = "".join(" " if char.isspace() else char for char in name)
    printed = "".join(char for char in printed if unicodedata.category(char)[0] != "C")
    cleaned = printed.strip().lstrip(".").strip().rstrip(". ")
    stem, dot, suffix = cleaned.rpartition(".")
    if not dot or len(suffix) > _SUFFIX_LIMIT:
        stem, suffix = cleaned, ""
    else:
        suffix = dot + suffix
    room = _NAME_LIMIT_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix or NAMELESS
