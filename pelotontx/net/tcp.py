"""TCP and UNIX stream transports that send once a reactor turn, and the ports that accept them.

`listen` and `connect` take Twisted's endpoint strings; for ``tcp:``, ``tcp6:`` and ``unix:`` the
transports are ours, everything else (``ssl:``, ``systemd:`` ...) is Twisted's own. `corked` gives a
reactor whose `listenTCP`, `connectTCP`, `listenUNIX` and `connectUNIX` do the same, for libraries
that want a reactor.

`write` appends to the transport's buffer and marks the transport dirty. The flush at the end of the
turn is one `send`; what the kernel refuses goes the stock way, so producers, `loseConnection`,
half-close and `abortConnection` are Twisted's. `startTLS` brings back the stock path whole.

`send_file` puts a part of a file into the same order: after what was written before, ahead of what
is written later.
"""

from __future__ import annotations

import fcntl
import re
import select
import socket
import sys
import termios
from collections.abc import Iterable
from typing import Any, ClassVar

from twisted.internet import address, tcp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import (
    IFileDescriptorReceiver,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import ConfigError, LocalProtocolError, TruncatedFile
from pelotontx.net import unix_port
from pelotontx.net.inherited import take_inherited
from pelotontx.net.sendfile import READERS, FileSlice

#: One read. The kernel gives less unless a peer uploads; larger reads only cost memory.
READ_BYTES = 65536

#: Of a file, sent to one peer in a turn: more would have the others wait for a fast one.
FILE_BYTES = 4 * 1024 * 1024

#: Connections that may wait to be accepted: a burst of reconnecting clients arrives within one
#: turn. The kernel cuts it to net.core.somaxconn.
BACKLOG = 1024

_STOCK_BACKLOG = 50  # what an endpoint passes when its string says nothing

#: When and how often a silent peer is probed: seconds, seconds, times.
_PROBES = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}

_IP_ADDRESSES = address.IPv4Address, address.IPv6Address

_log = Logger()


class _Cork:
    """Flushes transports of a reactor that has no `dirty` list, by one `callLater(0)` a turn."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._transports: list[Corked] = []

    def append(self, transport: Corked) -> None:
        if not self._transports:
            self._reactor.callLater(0, self._flush)
        self._transports.append(transport)

    def _flush(self) -> None:
        transports, self._transports = self._transports, []
        for transport in transports:
            try:
                transport.flush()
            except Exception:  # producers resumed by a flush are foreign code
                _log.failure("A producer failed")


class Corked:
    """Mixed into Twisted's stream transports, before them: see the module."""

    _dirty = False
    # Twisted's attributes that are used here
    TLS: bool
    connected: bool
    producer: Any
    producerPaused: bool
    streamingProducer: bool
    dataBuffer: bytes
    offset: int
    bufferSize: int
    socket: Any
    reactor: Any
    protocol: Any
    _writeDisconnected: bool
    _tempDataBuffer: list[bytes]
    _tempDataLen: int
    _aborting: bool
    _sendmsgQueue: ClassVar[Any] = ()
    _file: FileSlice | None = None  # goes between `dataBuffer` and `_tempDataBuffer`
    _warming: Deferred[None] | None = None  # a thread reads it, or is about to

    @property
    def unsent_bytes(self) -> int:
        """What was written and not yet given to the kernel, files included."""
        unsent = len(self.dataBuffer) - self.offset + self._tempDataLen
        return unsent if self._file is None else unsent + self._file.left

    def write(self, data: bytes) -> None:
        if self.TLS:
            super().write(data)  # type: ignore[misc]
            return
        if type(data) is not bytes:
            if isinstance(data, str):
                raise TypeError("Data must be bytes, not str")
            data = bytes(data)
        if not data or not self.connected or self._writeDisconnected:
            return
        self._tempDataBuffer.append(data)
        self._tempDataLen += len(data)
        if not self._dirty:
            self._dirty = True
            try:
                self.reactor.dirty.append(self)
            except AttributeError:  # not our reactor
                self._cork()
        if self.producer is not None and (self._tempDataLen > self.bufferSize or self.dataBuffer):
            self._maybePauseProducer()  # type: ignore[attr-defined]

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def _cork(self) -> None:
        """Has a turn of any reactor end with a flush."""
        cork = getattr(self.reactor, "_peloton_cork", None)
        if cork is None:
            cork = self.reactor._peloton_cork = _Cork(self.reactor)
        cork.append(self)

    def flush(self) -> None:
        """One `send` of all that was written; called by the reactor at the end of its turn."""
        self._dirty = False
        if self._file is not None:
            self._flush_file()
            return
        pieces = self._tempDataBuffer
        if not pieces or not self.connected or self._aborting:
            return
        if self.dataBuffer or self.TLS or self._sendmsgQueue:
            self.startWriting()  # type: ignore[attr-defined]  # the stock path is at work already
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            sent = self.socket.send(data)
        except OSError:
            sent = 0  # full, or broken: doWrite meets the same error and knows what to do
        self._tempDataBuffer = []
        self._tempDataLen = 0
        if sent != len(data):
            self.dataBuffer = data
            self.offset = sent
            self.startWriting()  # type: ignore[attr-defined]
        elif self.producer is not None and (self.producerPaused or not self.streamingProducer):
            self.producerPaused = False
            self.producer.resumeProducing()

    def send_file(self, part: FileSlice) -> None:
        """Sends a part of a file after what was written so far, with no copy of it in memory.

        A producer is paused until all is sent. The slice is let go of in every end; a file that
        became shorter aborts the connection.

        Raises:
            LocalProtocolError: under TLS, or a file or descriptor is being sent already.
        """
        if self.TLS or self._file is not None or self._sendmsgQueue:
            raise LocalProtocolError("a file cannot be sent now")
        if not part.left or not self.connected or self._writeDisconnected:
            part.close()
            return
        self._file = part
        pieces, self._tempDataBuffer, self._tempDataLen = self._tempDataBuffer, [], 0
        self.dataBuffer = b"".join([self.dataBuffer[self.offset :], *pieces])
        self.offset = 0
        if self.producer is not None and self.streamingProducer:
            self.producerPaused = True
            self.producer.pauseProducing()
        if not self._dirty:  # else the flush begins with it
            self.startWriting()  # type: ignore[attr-defined]

    def _flush_file(self) -> None:
        if not self.connected or self._aborting:
            return
        why = self.doWrite()
        if why or not (self._file is None or self._warming or self._aborting):
            self.startWriting()  # type: ignore[attr-defined]  # which meets a failure once more

    def doWrite(self) -> Any:
        if self._file is None:
            return super().doWrite()  # type: ignore[misc]
        try:
            if not self._send_file(self._file):
                return None
        except BlockingIOError:
            return None
        except TruncatedFile:
            _log.warn("A file became shorter while it was sent to {peer}", peer=self.getPeer())  # type: ignore[attr-defined]
            self.abortConnection()  # type: ignore[attr-defined]
            return None
        except OSError:
            return CONNECTION_LOST
        self._file = None
        # Stock writes what came after, resumes the producer, and ends what is to be ended.
        return super().doWrite()  # type: ignore[misc]

    def _send_file(self, part: FileSlice) -> bool:
        """What goes into the socket now: bytes, then the file; returns whether that was all."""
        if self.dataBuffer:
            rest = memoryview(self.dataBuffer)[self.offset :]
            self.offset += self.socket.send(rest, socket.MSG_MORE)
            if self.offset < len(self.dataBuffer):
                return False
            self.dataBuffer = b""
            self.offset = 0
        if not self._warming and part.is_warm():
            part.send(self.fileno(), FILE_BYTES)  # type: ignore[attr-defined]
            return not part.left
        self.stopWriting()  # type: ignore[attr-defined]
        if not self._warming:
            self._warming = READERS.run(part.warm, self.reactor)
            self._warming.addBoth(self._warmed)
        return False

    def _warmed(self, outcome: object) -> None:
        self._warming = None
        if self._file is None or self._aborting:
            return
        if isinstance(outcome, Failure):
            _log.warn("A file is not sent to {peer}: {why}", peer=self.getPeer(), why=outcome.value)  # type: ignore[attr-defined]
            self.abortConnection()  # type: ignore[attr-defined]
        else:
            self.startWriting()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._warming is not None:
            self._warming.cancel()
        super().connectionLost(reason)  # type: ignore[misc]

    def doRead(self) -> Any:
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None


class Server(Corked, tcp.Server):  # type: ignore[misc]
    """An accepted TCP connection."""

    def __init__(self, sock: socket.socket, *arguments: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp.Server.__init__(self, sock, *arguments)


class Port(tcp.Port):
    """A listening TCP socket that accepts `Server` connections."""

    transport = Server  # type: ignore[assignment]


class UNIXServer(Corked, unix.Server):  # type: ignore[misc]
    """An accepted connection of a UNIX socket.

    File descriptors are received only by a protocol that provided `IFileDescriptorReceiver` when
    the connection was made, and then the reads are Twisted's.
    """

    _sendmsgQueue: list[int]  # type: ignore[misc]

    def __init__(self, sock: socket.socket, protocol: IProtocol, *arguments: Any) -> None:
        unix.Server.__init__(self, sock, protocol, *arguments)
        if IFileDescriptorReceiver.providedBy(protocol):
            self.__dict__["doRead"] = super(Corked, self).doRead


class UNIXPort(unix_port.UNIXPort):
    """A listening UNIX socket that accepts `UNIXServer` connections."""

    transport = UNIXServer  # type: ignore[assignment]


class Client(Corked, tcp.Client):  # type: ignore[misc]
    """An outgoing TCP connection."""

    def _connectDone(self) -> None:
        self.setTcpNoDelay(True)
        tcp.Client._connectDone(self)


class UNIXClient(Corked, unix.Client):  # type: ignore[misc]
    """An outgoing connection to a UNIX socket."""

    _sendmsgQueue: list[int]  # type: ignore[misc]


class _Connector(tcp.Connector):
    def _makeTransport(self) -> tcp.Client:
        return Client(self.host, self.port, self.bindAddress, self, self.reactor)  # type: ignore[no-untyped-call]


class _UNIXConnector(unix.Connector):
    def _makeTransport(self) -> unix.Client:  # type: ignore[override]
        return UNIXClient(self.address, self, self.reactor, self.checkPID)  # type: ignore[no-untyped-call]


class CorkedReactor:
    """A reactor's face whose stream connections are ours; everything else is the reactor's own.

    Args:
        reactor: the one that does the work.
        backlog: replaces Twisted's default of 50 where a caller does not ask for another number.
    """

    def __init__(self, reactor: Any, *, backlog: int = BACKLOG) -> None:
        self._reactor = reactor
        self._backlog = backlog

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: Any, backlog: int = _STOCK_BACKLOG, interface: Any = ""
    ) -> IListeningPort:
        listening = Port(port, factory, self._deeper(backlog), interface, self._reactor)
        listening._preexistingSocket = take_inherited(interface, port)
        listening.startListening()
        return listening

    def listenUNIX(
        self,
        address: Any,
        factory: Any,
        backlog: int = _STOCK_BACKLOG,
        mode: int = 0o666,
        wantPID: int = 0,
    ) -> IListeningPort:
        # wantPID asks for a lock file, which `UNIXPort` does better without.
        listening = UNIXPort(address, factory, self._deeper(backlog), mode, self._reactor)
        listening.startListening()
        return listening

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        listening: Any
        if addressFamily == socket.AF_UNIX:
            listening = UNIXPort._fromListeningDescriptor(self._reactor, fileDescriptor, factory)  # type: ignore[no-untyped-call]
        else:
            listening = Port._fromListeningDescriptor(  # type: ignore[no-untyped-call]
                self._reactor, fileDescriptor, addressFamily, factory
            )
        listening.startListening()
        return listening

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> Any:
        connector = _Connector(host, port, factory, timeout, bindAddress, self._reactor)
        connector.connect()
        return connector

    def connectUNIX(
        self, address: Any, factory: Any, timeout: float = 30, checkPID: int = 0
    ) -> Any:
        connector = _UNIXConnector(address, factory, timeout, self._reactor, checkPID)  # type: ignore[no-untyped-call]
        connector.connect()
        return connector

    def _deeper(self, backlog: int) -> int:
        return self._backlog if backlog == _STOCK_BACKLOG else backlog


def corked(reactor: Any) -> Any:
    """The same reactor with our TCP and UNIX stream transports, for any library that takes one."""
    return CorkedReactor(reactor)


def listen(
    reactor: Any, description: str, factory: IProtocolFactory, *, backlog: int = BACKLOG
) -> Deferred[IListeningPort]:
    """Listens where an endpoint string says.

    Args:
        reactor: any Twisted reactor; on `PelotonReactor` it is fastest.
        description: as for `twisted.internet.endpoints.serverFromString`, every option included:
            ``tcp:8080:interface=127.0.0.1``, ``unix:/run/peloton.sock:mode=660:lockfile=0``.
        factory: builds the protocols.
        backlog: connections that may wait; a ``backlog=`` in the string wins.

    Returns:
        The port; its `stopListening` returns a Deferred. Errbacks with `CannotListenError` when
        the address cannot be had.

    Raises:
        ConfigError: the string is not an endpoint; its `path` is the string.
    """
    explicit = re.search(r"(?<!\\):backlog=(\d+)", description)
    ours = CorkedReactor(reactor, backlog=int(explicit[1]) if explicit else backlog)
    endpoint = _parsed(serverFromString, ours, description)
    listening: Deferred[IListeningPort] = endpoint.listen(factory)
    return listening


def connect(reactor: Any, description: str, factory: IProtocolFactory) -> Deferred[IProtocol]:
    """Connects to a client endpoint string (``tcp:host:port``, ``unix:path``, ``tls:host:port``).

    Returns:
        The connected protocol; cancelling ends the attempt. Errbacks with `ConnectError`.

    Raises:
        ConfigError: the string is not an endpoint.
    """
    endpoint = _parsed(clientFromString, CorkedReactor(reactor), description)
    connecting: Deferred[IProtocol] = endpoint.connect(factory)
    return connecting


def _parsed(parse: Any, reactor: CorkedReactor, description: str) -> Any:
    try:
        endpoint = parse(reactor, description)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError) as error:
        reason = f"not an endpoint string such as tcp:8080:interface=127.0.0.1 ({error})"
        raise ConfigError(description, reason) from error
    port = getattr(endpoint, "_port", 0)
    if isinstance(port, int) and not 0 <= port <= 65535:
        raise ConfigError(description, f"{port} is not a port: 0 to 65535")
    return endpoint


def unsent_bytes(transport: Any) -> int:
    """What was written to a transport and has not reached the kernel.

    Looks through TLS to the socket's own transport. 0 for a transport that cannot tell.
    """
    ours = _descriptor(transport)
    if ours is None:
        return 0
    if isinstance(ours, Corked):
        return ours.unsent_bytes
    unsent: int = len(ours.dataBuffer) - ours.offset + ours._tempDataLen
    return unsent


def untaken_bytes(transport: Any) -> int:
    """What was written to a transport and has not reached the peer's kernel.

    Ours may hold megabytes, and takes more only when much of that has gone: a reader that is slow
    and steady moves this all the time, and `unsent_bytes` now and then. 0 if it cannot be told.
    """
    ours = _descriptor(transport)
    if ours is None or not ours.connected:
        return 0
    queued = fcntl.ioctl(ours.fileno(), termios.TIOCOUTQ, bytes(4))
    return unsent_bytes(transport) + int.from_bytes(queued, sys.byteorder)


def keep_unread(transport: Any, timeout_s: float) -> None:
    """How long the kernel keeps data for a peer that takes none, beyond our `loseConnection`.

    Else that is some ten minutes. For TCP on Linux; nothing elsewhere.
    """
    ours = _descriptor(transport)
    if isinstance(ours, tcp.Connection) and ours.socket.family != socket.AF_UNIX:
        timeout_ms = int(timeout_s * 1000)
        ours.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def sends_files(transport: Any) -> bool:
    """Whether `Corked.send_file` can be used; where not, a `FileSlice` is read and written."""
    return isinstance(transport, Corked) and not transport.TLS


def is_gone(transport: Any) -> bool:
    """Whether the peer has reset the connection or closed both directions of it.

    For transports that do not read, as the reactor tells nothing of them. A TCP peer's close looks
    like a half-close until it answers something with a reset: see `probe_peer`. False for a
    transport that cannot tell.
    """
    ours = _descriptor(transport)
    if ours is None or not ours.connected:
        return False
    poll = select.poll()
    poll.register(ours.fileno(), 0)  # errors and hang-ups are always reported
    return bool(poll.poll(0))


def has_input(transport: Any) -> bool:
    """Whether the peer has sent something that was not read yet, or has ended its sending.

    False for a transport that cannot tell, and where TLS keeps it.
    """
    ours = _descriptor(transport)
    if ours is None or not ours.connected:
        return False
    poll = select.poll()
    poll.register(ours.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def lose_ended(transport: Any) -> None:
    """`loseConnection` for a transport whose peer has ended: at once if all was sent.

    There is nothing to wait for then, and most connections end like this: a turn of the reactor
    and two system calls are saved.
    """
    if isinstance(transport, tcp.Connection) and not unsent_bytes(transport):
        transport.connectionLost(connectionDone)
    else:
        transport.loseConnection()


def probe_peer(transport: Any) -> None:
    """Has the kernel ask a silent TCP peer whether it is there, so that `is_gone` comes to know.

    A host that vanished is found after some 40 s; a socket that was closed after about 60 s, when
    the peer's kernel has forgotten it (Linux: net.ipv4.tcp_fin_timeout).
    """
    ours = _descriptor(transport)
    if isinstance(ours, tcp.Connection) and ours.socket.family != socket.AF_UNIX:
        ours.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES.items():
            ours.socket.setsockopt(socket.IPPROTO_TCP, option, value)


def socket_peer(transport: Any) -> Any:
    """Who is at the other end of the socket: a proxy's own address, if one tells another.

    The same as long as the transport exists. None for a transport without a socket.
    """
    ours = _descriptor(transport)
    return None if ours is None else ours.getPeer()


def _descriptor(transport: Any) -> Any:
    """The socket's own transport, below TLS and wrappers; None if there is no socket."""
    while not isinstance(transport, FileDescriptor):
        transport = getattr(transport, "transport", None) or getattr(transport, "_connection", None)
        if transport is None:
            return None
    return transport


def peer_name(peer: Any) -> str:
    """A peer's address for logs and limits: the IP address, or ``unix``.

    An IPv4 address that came by an IPv6 socket (``::ffff:192.0.2.7``) is written like any other.
    """
    if isinstance(peer, _IP_ADDRESSES):
        host = str(peer.host)
        return host[7:] if host.startswith("::ffff:") and "." in host else host
    return "unix" if isinstance(peer, address.UNIXAddress) else str(peer)
