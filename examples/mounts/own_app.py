"""The server's own application: what is not under a mount's path."""

from pelotontx.web import App, Request, Response, html

app = App()

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Four frameworks, one server</title>
<link rel="stylesheet" href="/static/style.css">
<h1>Four frameworks, one server</h1>
<ul>
<li><a href="/klein/hello/you">Klein</a>
<li><a href="/wsgi/">WSGI</a>
<li><a href="/asgi/">Starlette</a>
</ul>
</html>
"""


@app.get(r"^/$")
def index(request: Request) -> Response:
    return html(PAGE)
