import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.config import (
    parse_duration,
    parse_size,
    without_password,
)


class ValueTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.integers(0, 10**9))
    def test_a_duration_is_its_number_times_its_unit(self, n: int) -> None:
        self.assertEqual(parse_duration(f"{n}ms"), n / 1000)
        self.assertEqual(parse_duration(f"{n}s"), n)
        self.assertEqual(parse_duration(f"{n}m"), n * 60)
        self.assertEqual(parse_duration(f"{n}h"), n * 3600)
        self.assertEqual(parse_duration(n), parse_duration(str(n)))

    @settings(deadline=None)
    @given(st.decimals(0, 10**6, places=6))
    def test_a_duration_may_have_a_fraction(self, n: object) -> None:
        self.assertEqual(parse_duration(f"{n:f}s"), float(str(n)))

    @settings(deadline=None)
    @given(st.integers(0, 10**6))
    def test_a_size_is_its_number_times_its_unit(self, n: int) -> None:
        for unit, factor in (("B", 1), ("kB", 10**3), ("KB", 10**3), ("MB", 10**6)):
            self.assertEqual(parse_size(f"{n}{unit}"), n * factor)
        for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)):
            self.assertEqual(parse_size(f"{n}{unit}"), n * factor)
        self.assertEqual(parse_size(n), n)

    def test_a_size_must_be_whole_bytes(self) -> None:
        self.assertEqual(parse_size("1.5KiB"), 1536)
        with self.assertRaises(ValueError):
            parse_size("1.0001KiB")

    @settings(deadline=None)
    @given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
    def test_any_value_is_read_or_refused_with_value_error(self, value: object) -> None:
        for parse in (parse_duration, parse_size):
            with contextlib.suppress(ValueError):
                self.assertGreaterEqual(parse(value), 0)

    def test_what_is_no_duration_and_no_size_is_refused(self) -> None:
        for value in ("", "s", "-1s", "1 s", "1d", "1e3s", "٣s", "1s\n", True, None, -1, 1e300):
            self.assertRaises(ValueError, parse_duration, value)
        for value in ("", "KiB", "-1B", "1 B", "1TiB", "1kib", "٣B", "1B\n", True, None, -1, 1.0):
            self.assertRaises(ValueError, parse_size, value)
        for value in (float("nan"), float("inf"), 10**400):
            self.assertRaises(ValueError, parse_duration, value)

    def test_a_password_is_masked_in_urls_of_any_shape(self) -> None:
        for url, masked in (
            ("redis://user:secret@db:6379/1", "redis://***@db:6379/1"),
            ("redis://:se@cr/e#t@db", "redis://***@db"),
            ("redis//x:secret@db", "redis//***@db"),
            ("user:secret@db", "***@db"),
            ("secret//x@db", "***@db"),
            ("redis://db:secret", "redis://db:***"),
            ("redis://:secret/1", "redis://:***"),
            ("unix:///s.sock?password=secret&db=1", "unix:///s.sock?password=***&db=1"),
            ("unix://user:secret@/s.sock", "unix://***@/s.sock"),
            ("rediss://user:secret@db?ca=/ca.pem", "rediss://***@db?ca=/ca.pem"),
            ("rediss+cluster://:secret@a:1,b:2", "rediss+cluster://***@a:1,b:2"),
            ("redis+cluster://a:secret,b:2", "redis+cluster://a:***"),
            ("redis+cluster://:secret", "redis+cluster://:***"),
            (
                "redis+sentinel://:se@a,b/m/1?sentinel_user=u&sentinel_password=secret@x",
                "redis+sentinel://***@a,b/m/1?sentinel_user=u&sentinel_password=***",
            ),
        ):
            self.assertEqual(without_password(url), masked)

    def test_a_url_without_password_is_shown_as_it_is(self) -> None:
        for url in (
            *("embedded:", "redis://db:6379/1", "redis://[::1]:6379", "unix:///s?db=1", "x"),
            *("redis+cluster://a:7000,b,[::1]:7001", "rediss+sentinel://a:1,b.c:2/m/0?ca=/ca.pem"),
        ):
            self.assertEqual(without_password(url), url)
