"""Applications of other kinds under a path: `twisted.web` resources, WSGI and ASGI applications.

    app.mount("/old", TwistedWeb(resource))
    app.mount("/shop", WSGI(application))
    app.mount("/api", ASGI(application))

They are answered through `net.http`, whose limits and deadlines hold for all of them. What a
server offers them, and when it starts and stops them, is in `host`.
"""

from pelotontx.web.mount.asgi import ASGI
from pelotontx.web.mount.host import Host, Mounted
from pelotontx.web.mount.resource import TwistedWeb
from pelotontx.web.mount.wsgi import WSGI

__all__ = ["ASGI", "WSGI", "Host", "Mounted", "TwistedWeb"]
