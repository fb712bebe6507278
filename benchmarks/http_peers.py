"""Peers for `http_server.py`: the same five answers by other servers. Also ours, as an application.

    python http_peers.py twisted 9001 FOLDER     # servers that are programs of this file
    uvicorn http_peers:starlette                 # applications for servers that are commands

Every server answers ``/hello`` (27 bytes), ``/json``, ``/section99/WORD`` behind 99 other patterns,
and the files of FOLDER below ``/files/``, each in the way that its documentation has it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

BODY = b"Hello, this is 27 bytes ok."
DOCUMENT = {"message": "Hello, World!", "number": 42, "items": ["a", "b", "c"]}
SECTIONS = 100
FOLDER = os.environ.get("FILES", ".")

NODE = """
const http = require("http"), fs = require("fs"), path = require("path");
const [port, folder] = process.argv.slice(2);
const body = "%(body)s", sections = [];
for (let n = 0; n < %(sections)d; n++) sections.push(new RegExp(`^/section${n}/(\\\\w+)$`));
function text(answer, value, type) {
  answer.writeHead(200, {"Content-Type": type, "Content-Length": value.length});
  answer.end(value);
}
http.createServer((request, answer) => {
  const url = request.url;
  if (url === "/hello") return text(answer, body, "text/plain");
  if (url === "/json") return text(answer, JSON.stringify(%(document)s), "application/json");
  if (url.startsWith("/files/")) {
    const name = path.join(folder, path.basename(url));
    return fs.stat(name, (error, stat) => {
      if (error) { answer.writeHead(404); return answer.end(); }
      answer.writeHead(200, {"Content-Type": "application/octet-stream",
                             "Content-Length": stat.size});
      fs.createReadStream(name).pipe(answer);
    });
  }
  for (const section of sections) {
    const found = section.exec(url);
    if (found) return text(answer, found[1], "text/plain");
  }
  answer.writeHead(404); answer.end();
}).listen(+port, "127.0.0.1");
"""

NGINX = """
daemon off; master_process off; worker_processes 1; pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; default_type application/octet-stream;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  {cache}
  server {{
    listen 127.0.0.1:{port};
    location = /hello {{ default_type text/plain; return 200 "{body}"; }}
    location = /json {{ default_type application/json; return 200 '{document}'; }}
    {sections}
    location /files/ {{ alias {folder}/; }}
  }}
}}
"""
FILE_CACHE = "open_file_cache max=1000 inactive=60s; open_file_cache_valid 30s;"


def node_program() -> str:
    """The program of the Node peer."""
    document = json.dumps(DOCUMENT)
    return NODE % {"body": BODY.decode(), "sections": SECTIONS, "document": document}


def nginx_configuration(home: str, port: int, folder: str, *, cached: bool) -> str:
    """The configuration of the nginx peer; `cached`: with its cache of open files."""
    sections = "\n    ".join(
        f"location ~ ^/section{n}/(\\w+)$ {{ default_type text/plain; return 200 $1; }}"
        for n in range(SECTIONS)
    )
    return NGINX.format(
        home=home,
        port=port,
        folder=folder,
        body=BODY.decode(),
        document=json.dumps(DOCUMENT),
        sections=sections,
        cache=FILE_CACHE if cached else "",
    )


def ours() -> Any:
    """Our application: what a user would write."""
    from pelotontx.web import App, Response
    from pelotontx.web.files import Files

    app = App()
    for number in range(SECTIONS):
        app.get(rf"^/section{number}/(\w+)$")(lambda request, word: word)

    @app.get(r"^/hello$")
    def hello(request: Any) -> Response:
        return Response(200, BODY, content_type="text/plain")

    @app.get(r"^/json$")
    def document(request: Any) -> dict[str, Any]:
        return DOCUMENT

    app.mount("/files", Files(FOLDER))
    return app


def starlette() -> Any:
    """The application for uvicorn and granian."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    async def section(request: Any) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["word"])

    async def document(request: Any) -> JSONResponse:
        return JSONResponse(DOCUMENT)

    routes: list[Any] = [Route("/json", document)]
    routes += [Route(f"/section{n}/{{word}}", section) for n in range(SECTIONS)]
    routes.append(Mount("/files", StaticFiles(directory=FOLDER)))
    application = Starlette(routes=routes)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        """``/hello`` without any framework: the server alone."""
        if scope["type"] != "http" or scope["path"] != "/hello":
            await application(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    return serve


def serve_aiohttp(port: int) -> None:
    import uvloop
    from aiohttp import web

    async def hello(request: Any) -> Any:
        return web.Response(body=BODY, content_type="text/plain")

    async def document(request: Any) -> Any:
        return web.json_response(DOCUMENT)

    async def section(request: Any) -> Any:
        return web.Response(text=request.match_info["word"])

    application = web.Application()
    application.router.add_get("/hello", hello)
    application.router.add_get("/json", document)
    for number in range(SECTIONS):
        application.router.add_get(f"/section{number}/{{word}}", section)
    application.router.add_static("/files/", FOLDER)
    uvloop.install()
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None)


def serve_twisted(port: int) -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor
    from twisted.web.resource import Resource
    from twisted.web.server import Site
    from twisted.web.static import File

    class Answer(Resource):
        def __init__(self, body: Any, content_type: bytes) -> None:
            super().__init__()
            self._body = body
            self._content_type = content_type

        def getChild(self, path: bytes, request: Any) -> Resource:
            return Answer(lambda: path, b"text/plain")

        def render_GET(self, request: Any) -> bytes:
            request.setHeader(b"content-type", self._content_type)
            answer: bytes = self._body()
            return answer

    root = Resource()
    root.putChild(b"hello", Answer(lambda: BODY, b"text/plain"))
    root.putChild(b"json", Answer(lambda: json.dumps(DOCUMENT).encode(), b"application/json"))
    for number in range(SECTIONS):
        root.putChild(b"section%d" % number, Answer(lambda: b"", b"text/plain"))
    root.putChild(b"files", File(FOLDER))
    reactor.listenTCP(port, Site(root), interface="127.0.0.1")  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    """``http_peers:app``: our application, made when somebody asks for it."""
    if name == "app":
        return ours()
    raise AttributeError(name)


if __name__ == "__main__":
    gc.freeze()
    servers = {"aiohttp": serve_aiohttp, "twisted.web": serve_twisted}
    servers[sys.argv[1]](int(sys.argv[2]))
