"""A page that counts once a second while it is still being loaded.

    python examples/counter.py [PORT]

Each script tag is sent by itself, a second after the one before, over one response that never ends;
when the browser goes away the loop is ended where it waits.
"""

import sys

from pelotontx import httpd
from pelotontx.flow import later

PAGE = """<!doctype html>
<title>Counter</title>
<link rel="icon" href="data:,">
<h1 id="foo">1</h1>
<script>
  x = 0;
  function f(n) { document.getElementById("foo").innerHTML = "" + n; }
</script>
"""


def on_index(request):
    """A page which says "Hello from Peloton"."""
    return httpd.html('<h1>Hello from Peloton</h1><p><a href="/chunked">Count</a></p>')


def on_chunked(request):
    """A page which displays a counter that increments once a second."""
    return httpd.stream(count(), "text/html; charset=utf-8")


async def count():
    from twisted.internet import reactor

    yield PAGE
    yield " " * 1024  # browsers show nothing of the first few hundred bytes
    try:
        while True:
            await later(reactor, 1.0)
            yield "<script>x++; f(x);</script>\n"
    finally:
        print("the browser has gone", flush=True)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    httpd.serve(
        {"ports": [port], "listen_backlog": 100},
        ("GET", r"^/chunked$", on_chunked),
        ("GET", r"^/$", on_index),
    )
