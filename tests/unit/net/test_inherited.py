"""Listening sockets that stay open for the program that comes next."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from pelotontx.net.inherited import close_inherited, keep_open, take_inherited


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELOTON_SOCKETS", "")


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def test_a_kept_socket_still_accepts_when_its_first_owner_has_closed_it(
    listening: socket.socket,
) -> None:
    port = listening.getsockname()[1]
    keep_open([SimpleNamespace(socket=listening)])
    listening.close()
    with socket.create_connection(("127.0.0.1", port), 5):
        taken = take_inherited("127.0.0.1", port)
        assert taken is not None
        with taken, taken.accept()[0]:
            assert not taken.get_inheritable()


def test_a_socket_is_taken_once_and_only_by_its_own_address(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    keep_open([SimpleNamespace(socket=listening)])
    assert take_inherited("127.0.0.2", port) is None
    assert take_inherited("127.0.0.1", port + 1) is None
    taken = take_inherited("127.0.0.1", port)
    assert taken is not None
    taken.close()
    assert take_inherited("127.0.0.1", port) is None


def test_what_nobody_takes_is_closed(listening: socket.socket) -> None:
    keep_open([SimpleNamespace(socket=listening)])
    descriptor = int(os.environ["PELOTON_SOCKETS"])
    close_inherited()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_without_anything_kept_nothing_is_found() -> None:
    assert take_inherited("", 80) is None
    close_inherited()
