"""Takes files and keeps them in the folder ``kept``: a page with a form, and what it sends to."""

from pathlib import Path
from secrets import token_hex

from pelotontx.web import App, Request, Response, html, json

KEPT = Path("kept")

PAGE = """<!doctype html>
<title>Upload</title>
<form method="post" action="/files" enctype="multipart/form-data">
  <p><label>What is it? <input name="title" required></label></p>
  <p><label>Files <input name="file" type="file" multiple required></label></p>
  <p><button>Keep</button></p>
</form>
"""

app = App()


@app.get("/")
def page(request: Request) -> Response:
    return html(PAGE)


@app.post("/files", stream=True)
async def keep(request: Request) -> Response:
    KEPT.mkdir(exist_ok=True)
    kept = []
    async with request.read_form() as form:
        for file in form.files.get("file", []):
            # A name of our own: two clients may send the same one.
            name = f"{token_hex(8)}-{file.filename[-100:]}"
            await file.store(KEPT / name)
            kept.append({"name": name, "bytes": file.size_bytes, "type": file.content_type})
        title = form.field("title")
    return json({"title": title, "kept": kept}, 201)


@app.post("/count", stream=True)
async def count(request: Request) -> dict[str, int]:
    """Works on parts as they arrive and keeps nothing."""
    sizes = {}
    async for part in request.parts():
        sizes[part.name] = sum([len(piece) async for piece in part])
    return sizes
