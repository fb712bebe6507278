"""Media types by a file's name: the same on every machine, whatever its ``mime.types`` says."""

from __future__ import annotations

from mimetypes import MimeTypes

#: What a file is if its name does not tell.
UNKNOWN = "application/octet-stream"

#: What browsers need, where Python's table is silent or differs between its versions.
_OURS = {
    ".7z": "application/x-7z-compressed",
    ".apng": "image/apng",
    ".atom": "application/atom+xml",
    ".avif": "image/avif",
    ".br": UNKNOWN,
    ".bz2": "application/x-bzip2",
    ".flac": "audio/flac",
    ".geojson": "application/geo+json",
    ".gz": "application/gzip",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript",
    ".jsonld": "application/ld+json",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".m4a": "audio/mp4",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".otf": "font/otf",
    ".rss": "application/rss+xml",
    ".rtf": "application/rtf",
    ".toml": "application/toml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}

_TYPES = MimeTypes().types_map[True] | _OURS


def content_type(name: str) -> str:
    """The Content-Type of a file by the end of its name; text is said to be UTF-8."""
    dot = name.rfind(".")
    media_type = _TYPES.get(name[dot:].lower(), UNKNOWN) if dot > name.rfind("/") else UNKNOWN
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
