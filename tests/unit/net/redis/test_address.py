from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError
from pelotontx.net.redis.address import (
    TLS,
    ClusterAddress,
    RedisAddress,
    SentinelAddress,
    parse_redis_url,
)


class SingleTests(SynchronousTestCase):
    def test_the_parts_are_read_and_unquoted(self) -> None:
        for url, address in (
            ("redis://h", RedisAddress("h")),
            ("redis://H:7000/", RedisAddress("h", 7000)),
            ("redis://[::1]/3", RedisAddress("::1", db=3)),
            (
                "redis://me:p%40w@h:7000/3",
                RedisAddress("h", 7000, username="me", password="p@w", db=3),
            ),
            ("redis://:@h", RedisAddress("h", password="")),
            ("rediss://h", RedisAddress("h", tls=TLS())),
            ("rediss://h?ca=/a%20b", RedisAddress("h", tls=TLS(ca="/a b"))),
            ("rediss://h?cert=/c&key=/k", RedisAddress("h", tls=TLS(cert="/c", key="/k"))),
            ("unix:///run/r%20s.sock?db=2", RedisAddress(path="/run/r s.sock", db=2)),
            ("unix://:pw@/s", RedisAddress(path="/s", password="pw")),
        ):
            self.assertEqual(parse_redis_url(url), address)

    def test_no_password_shows_in_its_name(self) -> None:
        for url, name in (
            ("redis://:secret@h", "redis://h:6379"),
            ("rediss://me:secret@[::1]:7/2", "rediss://[::1]:7"),
            ("unix://:secret@/s?db=1", "unix:///s"),
        ):
            self.assertEqual(str(parse_redis_url(url)), name)


class SeveralTests(SynchronousTestCase):
    def test_sentinels(self) -> None:
        found = parse_redis_url(
            "rediss+sentinel://me:pw@a:1,[::1],b.c/m%2F1/2?sentinel_password=x%26y&ca=/ca"
        )
        tls = TLS(ca="/ca")
        self.assertEqual(
            found,
            SentinelAddress(
                tuple(
                    RedisAddress(host, port, password="x&y", tls=tls)
                    for host, port in (("a", 1), ("::1", 26379), ("b.c", 26379))
                ),
                "m/1",
                RedisAddress(username="me", password="pw", db=2, tls=tls),
            ),
        )

    def test_sentinels_do_not_get_the_masters_password(self) -> None:
        found = parse_redis_url("redis+sentinel://me:pw@a/m?sentinel_user=s&sentinel_password=x")
        assert isinstance(found, SentinelAddress)
        self.assertEqual(found.sentinels, (RedisAddress("a", 26379, username="s", password="x"),))
        found = parse_redis_url("redis+sentinel://:pw@a/m")
        assert isinstance(found, SentinelAddress)
        self.assertEqual(found.sentinels, (RedisAddress("a", 26379),))

    def test_a_cluster(self) -> None:
        self.assertEqual(
            parse_redis_url("redis+cluster://:pw@a:1,b/0"),
            ClusterAddress((RedisAddress("a", 1, password="pw"), RedisAddress("b", password="pw"))),
        )
        self.assertEqual(
            parse_redis_url("rediss+cluster://a"), ClusterAddress((RedisAddress("a", tls=TLS()),))
        )


class UnusableTests(SynchronousTestCase):
    def test_what_is_wrong_is_said_and_no_secret(self) -> None:
        for url, reason in (
            ("http://:secret@h", "its scheme is unknown"),
            ("redis+other://:secret@h", "its scheme is unknown"),
            ("rediss+unix://:secret@h", "its scheme is unknown"),
            ("redis://:secret@", "a host is missing, or its port is none"),
            ("redis://:secret@h:port", "a host is missing, or its port is none"),
            ("redis://secret@h", "a user without a password: [user]:password@"),
            ("redis://:secret@h:0", "a host is missing, or its port is none"),
            ("redis://:secret@h:65536", "a host is missing, or its port is none"),
            ("redis://:secret@a,b", "1 host at most"),
            ("redis://:secret@h/x", "the database is no number"),
            ("redis://:se#cret@h", "a # in a password is written %23"),
            ("redis://:se cret@h", "it holds spaces or control characters"),
            ("redis://:secret@[::1", "a host is missing, or its port is none"),
            ("secret", "it is no URL"),
            ("redis://:secret@h?db=1", "a key after the ? is unknown here"),
            ("redis://:secret@h?ca=/ca", "a key after the ? is unknown here"),
            ("rediss://h?verify=secret", "a key after the ? is unknown here"),
            ("rediss://h?ca=secret&ca=x", "a key after the ? is there twice"),
            ("rediss://h?secret", "what follows the ? is not key=value&key=value"),
            ("rediss://:secret@h?key=/k", "a key without a cert"),
            ("unix:relative", "the path of a UNIX socket begins with a third slash"),
            ("unix://:secret@", "the path of a UNIX socket begins with a third slash"),
            ("unix://host/secret", "the path of a UNIX socket begins with a third slash"),
            ("redis+sentinel://:secret@a,b", "the master's name is missing"),
            ("redis+sentinel://a,,b/m", "a host is missing, or its port is none"),
            ("redis+sentinel://a/m?password=secret", "a key after the ? is unknown here"),
            ("redis+cluster://:secret@a/1", "a cluster has database 0 only"),
            ("redis+cluster://" + ",".join("a" * 101), "too many hosts"),
        ):
            with self.assertRaises(ConfigError) as caught:
                parse_redis_url(url)
            self.assertTrue(caught.exception.reason.startswith(reason), caught.exception)
            self.assertNotIn("secret", str(caught.exception))
            self.assertIsNone(caught.exception.__cause__)
