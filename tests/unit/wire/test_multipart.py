"""Forms as they arrive, honest and hostile, whole and in every split."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelotontx.wire.http import RefusedRequest
from pelotontx.wire.multipart import MultipartParser, PartHead, read_boundary, safe_filename

FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
END = b"--b--\r\n"

Parsed = list[tuple[PartHead, bytes]]


def parse(*pieces: bytes, head_limit_bytes: int = 8192, parts_limit: int = 1100) -> Parsed:
    """All parts of a body that comes in these pieces."""
    parser = MultipartParser(b"b", head_limit_bytes=head_limit_bytes, parts_limit=parts_limit)
    parts: Parsed = []
    contents: list[bytes] = []
    is_open = False
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartHead):
                parts.append((event, b""))
                is_open = True
            elif event is None:
                parts[-1] = (parts[-1][0], b"".join(contents))
                contents, is_open = [], False
            else:
                assert event
                contents.append(event)
    parser.end()
    assert not is_open
    return parts


def part(disposition: str, *headers: str, content: bytes = b"x") -> bytes:
    """A form of this one part."""
    lines = "".join(f"{line}\r\n" for line in (f"Content-Disposition: {disposition}", *headers))
    return b"--b\r\n" + lines.encode() + b"\r\n" + content + b"\r\n" + END


def head(disposition: str, *headers: str) -> PartHead:
    ((found, content),) = parse(part(disposition, *headers))
    assert content == b"x"
    return found


def status(body: bytes, **limits: int) -> int:
    """The status with which a body is refused, the same in one piece and byte by byte."""
    found = set()
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        with pytest.raises(RefusedRequest) as refused:
            parse(*pieces, **limits)
        found.add(refused.value.status)
    assert len(found) == 1
    return found.pop()


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nplain\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\r\n--a\r\n--\r\n-\x00\xff\r\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="empty"; filename=""\r\n\r\n\r\n'
    b"--b--\r\nafter"
)


def test_a_form_of_a_browser_is_read() -> None:
    text, file, empty = parse(FORM)
    assert (text[0].name, text[0].filename, text[0].content_type) == ("text", None, "text/plain")
    assert text[1] == b"plain"
    assert (file[0].filename, file[0].content_type) == ("a.bin", "application/octet-stream")
    assert file[1] == b"\r\n--a\r\n--\r\n-\x00\xff\r\r\n"
    assert (empty[0].filename, empty[1]) == ("", b"")


def test_a_split_changes_nothing() -> None:
    for cut in range(1, len(FORM)):
        assert parse(FORM[:cut], FORM[cut:]) == parse(FORM)


def test_byte_by_byte_changes_nothing() -> None:
    assert parse(*(FORM[at : at + 1] for at in range(len(FORM)))) == parse(FORM)


@settings(max_examples=300, deadline=None)
@given(
    contents=st.lists(
        st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b", b"--b", b"z"])), max_size=4
    ),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_any_content_comes_out_as_it_went_in(contents: list[list[bytes]], cuts: list[int]) -> None:
    joined = [b"".join(pieces) for pieces in contents]
    wanted = [content for content in joined if b"\r\n--b" not in b"\r\n" + content]
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + content + b"\r\n"
        for content in wanted
    )
    body += END
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    pieces = [body[start:stop] for start, stop in pairwise(edges)]
    assert [content for _, content in parse(*pieces)] == wanted


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([FIELD, END, b"--b", b"\r\n", b"--", b"\x00", b"Content-", b": "])))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    with suppress(RefusedRequest):
        parse(*pieces)


def test_a_form_without_parts_is_one() -> None:
    assert parse(END) == parse(b"--b--") == []


def test_a_line_end_may_precede_the_first_boundary() -> None:
    assert parse(b"\r\n" + FIELD + END) == parse(FIELD + END)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--",
        b"--b",
        b"--b\r\n",
        FIELD,
        FIELD[:-2],
        FIELD + b"--b",
        FIELD + b"--b-",
        b"preamble\r\n" + FIELD + END,
        b"x" + FIELD + END,
        b"\n" + FIELD + END,
        FIELD.replace(b"\r\n", b"\n") + END,
        FIELD.replace(b"--b\r\n", b"--b\n") + END,
        FIELD.replace(b"--b", b"--c") + END,
        FIELD.replace(b"--b", b"--bb") + END,
        FIELD.replace(b"--b", b"--b ") + END,
        FIELD + b"--bx\r\n",
        b"--b\r\n\r\nx\r\n" + END,
        b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
        b"--b\r\nno colon\r\n\r\nx\r\n" + END,
        b"--b\r\n: empty\r\n\r\nx\r\n" + END,
        b'--b\r\nContent-Disposition : form-data; name="a"\r\nX Y: z\r\n\r\nx\r\n' + END,
        b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n' + END,
        part('attachment; name="a"'),
        part("form-data"),
        part('form-data; filename="a"'),
        part('form-data; name="a"; name="b"'),
        part('form-data; name="a"; filename="b"; filename="c"'),
        part('form-data; name="a"; Filename="b"; FILENAME="c"'),
        part('form-data; name="a"', 'Content-Disposition: form-data; name="b"'),
        part('form-data; name="a\x00"'),
        part('form-data; name="a\rb"'),
        part('form-data; name="a"', "Content-Transfer-Encoding: base64"),
        part('form-data; name="a"', "Content-Transfer-Encoding: quoted-printable"),
        part('form-data; name="a"', "Content-Type: text/plain; charset=utf-7"),
        part('form-data; name="a"', "Content-Length: 2"),
        part('form-data; name="a"', "Content-Length: 0"),
        part('form-data; name="a"', "Content-Length: -1"),
        part("form-data; name=a; filename*=utf-8''%FF"),
        part("form-data; name=a; filename*=utf-16''a"),
        part("form-data; name=a; filename*=a"),
        part("form-data; name=a; filename*=utf-8''a%0"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    assert status(body) == 400


def test_limits_of_heads_and_parts_are_413() -> None:
    long = "x" * 500
    assert status(part(f'form-data; name="{long}"'), head_limit_bytes=400) == 413
    assert status(b"--b\r\n" + b"x" * 500, head_limit_bytes=400) == 413
    fits = 'form-data; name="a"', f"X-One: {long}", f"X-Two: {long}"
    assert status(part(*fits), head_limit_bytes=800) == 413
    assert parse(part(*fits), head_limit_bytes=1200)
    assert status(part('form-data; name="a"', *(f"X-{n}: y" for n in range(8)))) == 413
    assert status(FIELD * 3 + END, parts_limit=2) == 413
    assert len(parse(FIELD * 3 + END, parts_limit=3)) == 3


def test_a_form_inside_a_part_is_content() -> None:
    inner = FIELD.replace(b"--b", b"--c") + b"--c--\r\n"
    headers = ('form-data; name="a"', "Content-Type: multipart/mixed; boundary=c")
    ((found, content),) = parse(part(*headers, content=inner))
    assert (found.content_type, content) == ("multipart/mixed", inner)


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="a"', "a", None),
        ("form-data; name=a", "a", None),
        ('FORM-DATA; NAME="a"; FileName="b"', "a", "b"),
        ('form-data; filename="b"; name="a"', "a", "b"),
        ('form-data; name=""', "", None),
        ('form-data; name="a"; filename=""', "a", ""),
        ('form-data; name="ä"; filename="ö.png"', "ä", "ö.png"),
        ('form-data; name="a%22b"; filename="%0D%0Ac"', 'a"b', "\r\nc"),
        ('form-data; name="a;b"; filename="; name=c"', "a;b", "; name=c"),
        ('form-data; name="a"; filename="../../etc/passwd"', "a", "../../etc/passwd"),
        ("form-data; name=a; filename*=UTF-8''%e2%82%ac%20rates.txt", "a", "€ rates.txt"),
        ("form-data; name=a; filename*=iso-8859-1'en'%A3.txt", "a", "£.txt"),
        ("form-data; name=a; filename=b; filename*=utf-8''c", "a", "b"),
    ],
)
def test_names_are_read(disposition: str, name: str, filename: str | None) -> None:
    found = head(disposition)
    assert (found.name, found.filename) == (name, filename)


def test_the_charset_of_a_field_is_read() -> None:
    assert head('form-data; name="a"').charset == "utf-8"
    found = head('form-data; name="a"', "Content-Type: Text/Plain; charset=ISO-8859-1")
    assert (found.charset, found.content_type) == ("iso-8859-1", "text/plain")


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b"', b"a b"),
        ("multipart/form-data; boundary=----WebKitFormBoundary7", b"----WebKitFormBoundary7"),
        ("multipart/form-data; boundary=boundary", b"boundary"),
        ("multipart/form-data; boundary=" + "a" * 70, b"a" * 70),
    ],
)
def test_a_boundary_is_read(content_type: str, boundary: bytes) -> None:
    assert read_boundary(content_type) == boundary


@pytest.mark.parametrize(
    ("content_type", "refused_with"),
    [
        ("", 415),
        ("text/plain; boundary=b", 415),
        ("multipart/mixed; boundary=b", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ('multipart/form-data; boundary=""', 400),
        ('multipart/form-data; boundary="b "', 400),
        ('multipart/form-data; boundary="\xe4"', 400),
        ("multipart/form-data; boundary=" + "a" * 71, 400),
        ("multipart/form-data; boundary=a; boundary=b", 400),
    ],
)
def test_what_is_no_boundary_is_refused(content_type: str, refused_with: int) -> None:
    with pytest.raises(RefusedRequest) as refused:
        read_boundary(content_type)
    assert refused.value.status == refused_with


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.png", "photo.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\fakepath\\photo.png", "photo.png"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("/", "unnamed"),
        (".htaccess", "htaccess"),
        ("...", "unnamed"),
        ("a\x00b\r\nc.txt", "ab  c.txt"),
        ("photo\u202egnp.exe", "photognp.exe"),
        (" a . txt. ", "a . txt"),
        ("Caf\u0065\u0301.txt", "Café.txt"),
        ("\u2024.", "\u2024"),
    ],
)
def test_filenames_are_made_safe(name: str, safe: str) -> None:
    assert safe_filename(name) == safe


def test_long_filenames_keep_their_ending() -> None:
    assert safe_filename("ä" * 300 + ".png") == "ä" * 125 + ".png"
    assert safe_filename("a" * 300) == "a" * 255
    assert safe_filename("a." + "b" * 300) == "a." + "b" * 253


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300))
def test_a_safe_filename_is_one_in_a_folder(name: str) -> None:
    safe = safe_filename(name)
    assert safe
    assert safe not in (".", "..")
    assert not safe.startswith(".")
    assert "/" not in safe
    assert len(safe.encode()) <= 255
    assert not any(unicodedata.category(char) == "Cc" for char in safe)
    assert safe_filename(safe) == safe
