"""HTTP/2 for servers, chosen by ALPN under TLS: `net.http`'s factory, handlers and answers.

connection    what the streams of a connection share: reading, writing, the end
stream        one request and its answer
flow          bodies in, under the peer's windows
flood         what is good for nothing, weighed
"""

from pelotontx.net.http2.connection import HTTP2Connection

__all__ = ["HTTP2Connection"]
