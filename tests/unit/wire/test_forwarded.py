"""Which address a request is from, by what proxies say and who of them is believed."""

from __future__ import annotations

import pytest

from pelotontx.wire.forwarded import FORWARDED, Origin, Proxies

NETWORKS = ("10.0.0.0/8", "192.168.0.7", "fd00::/8")
DIRECT = Origin("10.0.0.1", "http", "inside")


def seen(proxies: Proxies, direct: Origin = DIRECT, **fields: str | list[str]) -> Origin:
    def get_all(name: str) -> list[str]:
        value = fields.get(name.replace("-", "_"), [])
        return [value] if isinstance(value, str) else value

    return proxies.origin(direct, get_all)


@pytest.mark.parametrize(
    ("line", "client"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4, 10.0.0.2,192.168.0.7", "1.2.3.4"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, unknown", "10.0.0.1"),
        ("6.6.6.6, 10.0.0.2, rubbish", "10.0.0.1"),
        ("6.6.6.6, rubbish, 10.0.0.2", "10.0.0.2"),
        ("", "10.0.0.1"),
    ],
)
def test_addresses_are_believed_from_the_right(line: str, client: str) -> None:
    assert seen(Proxies(NETWORKS), x_forwarded_for=line).client == client


def test_lines_are_one_list() -> None:
    proxies = Proxies(NETWORKS)
    assert seen(proxies, x_forwarded_for=["6.6.6.6", "1.2.3.4, 10.0.0.9"]).client == "1.2.3.4"


@pytest.mark.parametrize(
    ("addresses", "protos", "hosts", "origin"),
    [
        ("1.2.3.4", "https", "a.example", ("1.2.3.4", "https", "a.example")),
        ("1.2.3.4", "https, http", "x, b.example:8443", ("1.2.3.4", "http", "b.example:8443")),
        ("1.2.3.4, 10.0.0.2", "https, http", "a, b", ("1.2.3.4", "https", "a")),
        ("1.2.3.4, 10.0.0.2", "HTTPS", "a", ("1.2.3.4", "https", "a")),
        ("1.2.3.4", "gopher", "a/b", ("1.2.3.4", "http", "inside")),
        ("", "https", "a", ("10.0.0.1", "https", "a")),
    ],
)
def test_scheme_and_host_stand_beside_the_address(
    addresses: str, protos: str, hosts: str, origin: tuple[str, str, str]
) -> None:
    fields = {"x_forwarded_for": addresses, "x_forwarded_proto": protos, "x_forwarded_host": hosts}
    assert seen(Proxies(NETWORKS), **fields) == origin


@pytest.mark.parametrize(
    ("line", "origin"),
    [
        ("for=1.2.3.4", ("1.2.3.4", "http", "inside")),
        ("For=1.2.3.4;PROTO=https; host=a.example", ("1.2.3.4", "https", "a.example")),
        (
            'for="[2001:db8::1]:47011";host="a.example:8443"',
            ("2001:db8::1", "http", "a.example:8443"),
        ),
        (
            "for=6.6.6.6, for=1.2.3.4;proto=https, for=10.0.0.2;proto=http",
            ("1.2.3.4", "https", "inside"),
        ),
        ("for=_hidden;proto=https", ("10.0.0.1", "https", "inside")),
        ("for=unknown", ("10.0.0.1", "http", "inside")),
        ('for="a\\"b', ("10.0.0.1", "http", "inside")),
        ("for=1.2.3.4 rubbish", ("10.0.0.1", "http", "inside")),
        ("", ("10.0.0.1", "http", "inside")),
    ],
)
def test_forwarded_is_read_as_rfc_7239_says(line: str, origin: tuple[str, str, str]) -> None:
    assert seen(Proxies(NETWORKS, header=FORWARDED), forwarded=line) == origin


def test_only_the_fields_that_were_chosen_are_read() -> None:
    fields = {"forwarded": "for=1.1.1.1", "x_forwarded_for": "2.2.2.2"}
    assert seen(Proxies(NETWORKS), **fields).client == "2.2.2.2"
    assert seen(Proxies(NETWORKS, header=FORWARDED), **fields).client == "1.1.1.1"


def test_strangers_are_not_believed() -> None:
    stranger = Origin("11.0.0.1", "http", "inside")
    assert seen(Proxies(NETWORKS), stranger, x_forwarded_for="1.2.3.4") == stranger
    assert not Proxies()
    assert "127.0.0.1" not in Proxies()
    assert "unix" not in Proxies(NETWORKS)
    assert "unix" in Proxies(["unix"])
    assert "::ffff:10.0.0.1" in Proxies(NETWORKS)
    with pytest.raises(ValueError, match="does not appear"):
        Proxies(["example.com"])
