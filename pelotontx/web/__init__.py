"""What a user's HTTP code sees; import from here."""

from pelotontx.net.http import BodyWriter, Headers, Response, Upgrade
from pelotontx.web.app import App
from pelotontx.web.compress import Compress
from pelotontx.web.errors import HTTPError, error_page
from pelotontx.web.files import Files, send_file
from pelotontx.web.forms import Form, FormLimits
from pelotontx.web.request import Request
from pelotontx.web.responses import (
    attachment,
    html,
    json,
    not_found,
    redirect,
    respond,
    stream,
    text,
)
from pelotontx.web.session import Session, Sessions
from pelotontx.web.tree import Mountable
from pelotontx.web.uploads import Upload

__all__ = [
    "App",
    "BodyWriter",
    "Compress",
    "Files",
    "Form",
    "FormLimits",
    "HTTPError",
    "Headers",
    "Mountable",
    "Request",
    "Response",
    "Session",
    "Sessions",
    "Upgrade",
    "Upload",
    "attachment",
    "error_page",
    "html",
    "json",
    "not_found",
    "redirect",
    "respond",
    "send_file",
    "stream",
    "text",
]
