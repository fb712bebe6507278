"""WSGI applications (PEP 3333) under a path of ours: Flask, Django, anything that is one.

    app.mount("/shop", WSGI(application, threads=8, queue=64))

Each request runs in a thread of a pool that only this application has. Bodies stream both ways: a
thread waits while its client does not send or read, and is released when the client leaves.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Condition
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.net.sendfile import FileSlice, OpenFile
from pelotontx.net.threads import ThreadPool
from pelotontx.web.errors import error_page
from pelotontx.web.mount.answer import HIGH_BYTES, Answer, checked, response_head
from pelotontx.web.mount.asked import client_of, server_of
from pelotontx.web.mount.host import Host, Mounted
from pelotontx.web.mount.wsgi_body import BodyUnreadable, Errors, FileWrapper, Input
from pelotontx.web.request import Request
from pelotontx.wire.http import RefusedRequest

#: So much of a body is received before a thread is taken: short ones from slow clients hold none.
AHEAD_BYTES: Final = 64 * 1024

#: A thread that waits for its client is given up after this time. The connection's own deadlines
#: (``http.body_idle_timeout``, ``http.write_idle_timeout``) end such a wait long before.
_WAIT_S: Final = 3600.0

_RETRY_AFTER_MOST_S: Final = 60

_errors = Errors()

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ClientGone(BrokenPipeError):
    """Raised by writes of an application whose client has gone."""


class WSGI(Mounted):
    """A WSGI application.

    Args:
        application: the callable.
        threads: requests that it works on at a time.
        queue: requests that wait for a thread. Further ones get 503 and a Retry-After.
        body_limit_bytes: the longest body, 413 past it; None: the server's ``http.body_limit``.

    Raises:
        TypeError: not a callable.
        ValueError: no thread, or a negative queue.
    """

    _log = Logger()

    def __init__(
        self,
        application: Application,
        *,
        threads: int = 8,
        queue: int = 64,
        body_limit_bytes: int | None = None,
    ) -> None:
        if not callable(application):
            raise TypeError(f"a {type(application).__name__} is not a WSGI application")
        if threads < 1 or queue < 0:
            raise ValueError(f"threads={threads}, queue={queue}: at least 1 and 0")
        self.application = application
        self._threads = threads
        self._most = threads + queue
        self._body_limit_bytes = body_limit_bytes
        self._host: Host | None = None
        self._pool: ThreadPool[str]

    def prepare(self, host: Host, name: str) -> None:
        self._host = host
        self._pool = ThreadPool(host.reactor, self._threads, name=name)

    def stop(self) -> None:
        """Lets idle threads end; the others end with what they run, or with the process."""
        if self._host is not None:
            for label in self._pool.stop():
                self._log.warn("{label} still runs at the stop", label=label)

    def handle(self, request: Request) -> Any:
        """Answers a request that is under the mount's path; a Deferred or a coroutine.

        Raises:
            RefusedRequest: the body is too large, too slow or malformed.
        """
        if self._host is None:
            raise LocalProtocolError("a WSGI was not prepared by a server")
        if request.is_complete and not request.body:
            return self._run(request, io.BytesIO())
        return self._receive(request)

    async def _receive(self, request: Request) -> Response | Upgrade:
        body = request.stream
        if self._body_limit_bytes is not None:
            body.limit_bytes = self._body_limit_bytes
        pieces: list[bytes] = []
        size = 0
        if not request.framing.expects:  # else the application may not want the body at all
            async for piece in body:
                pieces.append(piece)
                size += len(piece)
                if size >= AHEAD_BYTES:
                    break
            else:
                return await self._run(request, io.BytesIO(b"".join(pieces)))
        return await self._run(request, pieces)

    def _run(
        self, request: Request, body: io.BytesIO | list[bytes]
    ) -> Deferred[Response | Upgrade]:
        """Has a thread answer; `body` is all of it, or its beginning."""
        assert self._host is not None
        pool = self._pool
        if pool.unfinished >= self._most:
            wait_s = pool.mean_run_s * pool.unfinished / self._threads
            retry_after = str(min(_RETRY_AFTER_MOST_S, max(1, round(wait_s))))
            message = "Too many requests wait. Please try again in a moment."
            return succeed(error_page(request, 503, message, headers={"Retry-After": retry_after}))
        call = _Call(self.application, request, body, self._host)
        pool.run(f"{request.method} {request.path}", call.run, call.ended)
        return call.answer.response


class _Call:
    """One request on its way through the application.

    `run`, and what it calls, belongs to a thread; `ended` and the hooks of the answer to the
    reactor's.
    """

    _log = Logger()

    def __init__(
        self,
        application: Application,
        request: Request,
        body: io.BytesIO | list[bytes],
        host: Host,
    ) -> None:
        self.answer = Answer(
            request,
            wheel=host.wheel,
            on_written=self._written,
            on_gone=self._gone,
            on_over=self._end_reading,
        )
        self._application = application
        self._request = request
        self._reactor = host.reactor
        self._environ = environ_of(request)
        if isinstance(body, list):
            raw = Input(body, self._fetch)
            self._environ["wsgi.input"] = io.BufferedReader(raw, HIGH_BYTES)
        else:
            self._environ["wsgi.input"] = body
        self._head: Response | None = None
        self._whole: bytes | None = None
        self._is_sent = False
        self._reading: Deferred[None] | None = None
        self._arrived: SimpleQueue[bytes | Exception] = SimpleQueue()
        self._refusal: RefusedRequest | None = None
        self._room = Condition()
        self._in_flight = 0
        self._is_gone = False
        self._is_read = False  # nobody needs to look for more of the body

    # In the thread.

    def run(self) -> None:
        """Calls the application and passes on what it answers."""
        if self._is_gone:
            return  # while this waited for a thread
        result: Any = self._application(self._environ, self.start_response)
        try:
            if isinstance(result, list | tuple) and len(result) == 1 and not self._is_sent:
                self._whole = checked(result[0])
            elif not (isinstance(result, FileWrapper) and self._send_file(result)):
                for piece in result:
                    self.write(piece)
                    if self._is_sent and self._request.method == "HEAD":
                        break  # there may be no end of it
            if self._head is None:
                raise LocalProtocolError("the application did not call start_response")
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's; status and fields leave with the first piece of the body.

        Raises:
            LocalProtocolError: what may not be sent, or a second call without `exc_info`.
        """
        try:
            if exc_info is not None and self._is_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        finally:
            reraised, exc_info = exc_info, None  # no cycle through the traceback
        if self._head is not None and reraised is None:
            raise LocalProtocolError("start_response was called twice")
        del reraised
        code = status[:3]
        if not (code.isascii() and code.isdigit() and status[3:4] in ("", " ")):
            raise LocalProtocolError(f"not a status: {status!r}")
        self._head = response_head(int(code), headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Sends a piece; waits while much is on its way.

        Raises:
            ClientGone: nobody reads.
            LocalProtocolError: no bytes, or no status yet.
        """
        if self._head is None:
            raise LocalProtocolError("the application wrote before it called start_response")
        data = checked(data)
        if not data:
            return
        with self._room:
            self._room.wait_for(lambda: self._is_gone or self._in_flight <= HIGH_BYTES, _WAIT_S)
            if self._is_gone or self._in_flight > HIGH_BYTES:
                raise ClientGone("the client has gone")
            self._in_flight += len(data)
        head = None if self._is_sent else self._head
        self._is_sent = True
        self._reactor.callFromThread(self._push, head, data)

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Has the kernel send a file of the disk; tells whether it is one."""
        if self._head is None or self._is_sent or self._request.method == "HEAD":
            return False
        try:
            descriptor, offset = wrapper.file.fileno(), wrapper.file.tell()
            status = os.fstat(descriptor)
        except (AttributeError, OSError):
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size <= offset:
            return False
        length = status.st_size - offset
        if self._head.length is not None:
            length = min(length, self._head.length)
        file = OpenFile(os.dup(descriptor), status)
        self._head.body, self._head.length = FileSlice(file, offset, length), length
        self._is_sent = True
        self._reactor.callFromThread(self.answer.replace, self._head)
        return True

    def _fetch(self) -> bytes:
        """The next piece of the body."""
        if not self._is_read:
            self._reactor.callFromThread(self._read)
        try:
            arrived = self._arrived.get(timeout=_WAIT_S)
        except Empty:
            arrived = BodyUnreadable("nothing came")
        if isinstance(arrived, Exception):
            self._arrived.put(arrived)  # and again for whoever asks again
            raise BodyUnreadable(str(arrived)) from arrived
        return arrived

    # In the reactor's thread.

    def _push(self, head: Response | None, data: bytes) -> None:
        if head is not None:
            self.answer.begin(head)
        self.answer.write(data)

    def _read(self) -> None:
        if not self._is_read:
            self._reading = Deferred.fromCoroutine(self._read_piece())

    async def _read_piece(self) -> None:
        try:
            self._arrived.put(await anext(self._request.stream))
        except StopAsyncIteration:
            self._arrived.put(b"")
        except RefusedRequest as error:
            self._refusal = error.with_traceback(None)  # which refers to us
            self._arrived.put(error)
        except CancelledError:  # by `_end_reading`, which says why
            pass
        except Exception as error:
            self._arrived.put(error.with_traceback(None))

    def _written(self, size: int) -> None:
        with self._room:
            self._in_flight -= size
            self._room.notify()

    def _gone(self) -> None:
        with self._room:
            self._is_gone = True
            self._room.notify()
        self._end_reading()

    def _end_reading(self) -> None:
        """Nothing more of the body will come: the client has gone, or has its answer."""
        self._is_read = True
        if self._reading is not None:
            self._reading.cancel()
        self._arrived.put(BodyUnreadable("the client has gone, or has its answer"))

    def ended(self, _: None, error: BaseException | None) -> None:
        """The thread is done."""
        self._environ = {}  # its input refers to us, and would wait for the garbage collector
        answer = self.answer
        if error is None:
            if not self._is_sent and self._head is not None:
                answer.is_held = True
                self._push(self._head, self._whole or b"")
                answer.is_held = False
            answer.finish()
        elif answer.is_gone:
            if not isinstance(error, ClientGone | BodyUnreadable):
                self._log.warn(
                    "{method} {path} failed when its client had gone: {error!r}",
                    method=self._request.method,
                    path=self._request.path,
                    error=error,
                )
        else:
            if not isinstance(error, Exception):  # a SystemExit, say: it ends its request only
                error = RuntimeError(f"the application raised {error!r}")
            answer.fail(Failure(self._refusal or error))


def environ_of(request: Request) -> dict[str, Any]:
    """The environment of a request, but for ``wsgi.input``.

    A field with an underscore in its name is left out, since it could pass for another
    (``X_Real_IP`` for ``X-Real-IP``), and so is ``Proxy``, which programs take for a setting.
    """
    root_path = request.root_path
    name, port = server_of(request)
    client, client_port = client_of(request)
    scheme = request.scheme
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": _latin1(root_path),
        "PATH_INFO": _latin1(request.path[len(root_path) :]),
        "QUERY_STRING": request.query_string,
        "REQUEST_URI": request.target,
        "RAW_URI": request.target,
        "SERVER_NAME": name,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "REMOTE_ADDR": client,
        "REMOTE_PORT": str(client_port),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": _errors,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if scheme == "https":
        environ["HTTPS"] = "on"
    for field, value in request.headers.items():
        if "_" in field or field == "proxy":
            continue
        key = field.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        if key in environ:
            value = f"{environ[key]}{'; ' if field == 'cookie' else ','}{value}"
        environ[key] = value
    return environ


def _latin1(text: str) -> str:
    """Bytes as text, as PEP 3333 wants them."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
