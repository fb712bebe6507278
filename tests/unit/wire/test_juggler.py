import contextlib
import json
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelotontx.errors import LocalProtocolError, RemoteProtocolError
from pelotontx.wire import juggler

U1 = "11111111-1111-4111-8111-111111111111"
U2 = "22222222-2222-4222-8222-222222222222"


def request(type_: int, **payload: object) -> bytes:
    return json.dumps({"meta": {"type": type_, "uuid": U1}, "payload": payload}).encode()


class TestGoldenBytes:
    def test_call(self) -> None:
        assert juggler.encode_call(U1, "test.delay", b'"100"', 1.5) == (
            b'{"meta":{"type":1,"uuid":"11111111-1111-4111-8111-111111111111"},'
            b'"payload":{"uri":"test.delay","timeout":1500000000,"args":"100"}}'
        )

    def test_pub(self) -> None:
        assert juggler.encode_pub(U1, "room", b"[1,2]") == (
            b'{"meta":{"type":2,"uuid":"11111111-1111-4111-8111-111111111111"},'
            b'"payload":{"channel":"room","args":[1,2]}}'
        )

    def test_sub_and_unsb(self) -> None:
        assert juggler.encode_sub(U1, "r*", pattern=True) == (
            b'{"meta":{"type":3,"uuid":"11111111-1111-4111-8111-111111111111"},'
            b'"payload":{"channel":"r*","pattern":true}}'
        )
        assert juggler.encode_unsb(U1, "room", pattern=False) == (
            b'{"meta":{"type":4,"uuid":"11111111-1111-4111-8111-111111111111"},'
            b'"payload":{"channel":"room","pattern":false}}'
        )

    def test_ack_names_the_uri_of_a_call_and_the_channel_of_the_rest(self) -> None:
        call = juggler.decode_request(request(1, uri="test.echo"))
        assert juggler.encode_ack(U2, call) == (
            b'{"meta":{"type":8,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","for_type":1,"uri":"test.echo"}}'
        )
        sub = juggler.decode_request(request(3, channel="room"))
        assert juggler.encode_ack(U2, sub) == (
            b'{"meta":{"type":8,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","for_type":3,"channel":"room"}}'
        )

    def test_nack(self) -> None:
        call = juggler.decode_request(request(1, uri="test.echo"))
        assert juggler.encode_nack(U2, call, 500, "list capacity exceeded") == (
            b'{"meta":{"type":7,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","for_type":1,"uri":"test.echo",'
            b'"code":500,"message":"list capacity exceeded"}}'
        )

    def test_res_and_evnt(self) -> None:
        assert juggler.encode_res(U2, U1, "test.echo", b'"x"') == (
            b'{"meta":{"type":9,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","uri":"test.echo","args":"x"}}'
        )
        assert juggler.encode_evnt(U2, U1, "room", b"1") == (
            b'{"meta":{"type":10,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","channel":"room","args":1}}'
        )
        assert juggler.encode_evnt(U2, U1, "room", b"1", "r*") == (
            b'{"meta":{"type":10,"uuid":"22222222-2222-4222-8222-222222222222"},"payload":'
            b'{"for":"11111111-1111-4111-8111-111111111111","channel":"room","pattern":"r*",'
            b'"args":1}}'
        )

    @pytest.mark.parametrize(
        "encoded",
        [
            juggler.encode_res(U2, U1, "test.echo", b'"0012"'),
            juggler.encode_res(U2, U1, "test.echo", b""),
            juggler.encode_evnt(U2, U1, "room", b"[1.50]"),
            juggler.encode_evnt(U2, U1, "room", b"1", "r*"),
            juggler.encode_ack(U2, juggler.decode_request(request(1, uri="test.echo"))),
            juggler.encode_nack(U2, juggler.decode_request(request(3, channel="é")), 403, 'no "'),
        ],
    )
    def test_a_response_by_its_fields_is_the_same(self, encoded: bytes) -> None:
        assert juggler.encode_response(juggler.decode_response(encoded)) == encoded

    def test_broker_payloads_leave_out_empty_args(self) -> None:
        assert juggler.encode_call_payload(U1, U2, "a.b", b'"0012"') == (
            b'{"conn_uuid":"11111111-1111-4111-8111-111111111111",'
            b'"msg_uuid":"22222222-2222-4222-8222-222222222222","uri":"a.b","args":"0012"}'
        )
        assert juggler.encode_call_payload(U1, U2, "a.b", b"").endswith(b'"uri":"a.b"}')
        assert juggler.encode_event_payload(U1, b"") == (
            b'{"msg_uuid":"11111111-1111-4111-8111-111111111111"}'
        )

    @pytest.mark.parametrize("dl", ["1e3", "1.5", "null", '"x"', "9" * 400, "-1"])
    def test_a_deadline_in_another_programs_form_loses_no_payload(self, dl: str) -> None:
        encoded = juggler.encode_call_payload(U1, U2, "u", b"1", 5)
        other = encoded.replace(b'"dl":5', b'"dl":' + dl.encode())
        assert juggler.decode_call_payload(encoded).dl == 5
        assert bytes(juggler.decode_call_payload(other).args) == b"1"

    def test_keys(self) -> None:
        assert juggler.calls_key("a.b") == "juggler:calls:{a.b}"
        assert juggler.call_timeout_key("a.b", U1) == f"juggler:calls:timeout:{{a.b}}:{U1}"
        assert juggler.results_key(U1) == f"juggler:results:{{{U1}}}"
        assert juggler.result_timeout_key(U1, U2) == f"juggler:results:timeout:{{{U1}}}:{U2}"


class TestDecoding:
    def test_a_trailing_newline_is_fine(self) -> None:
        assert juggler.decode_request(request(2, channel="x") + b"\n").payload.channel == "x"

    @pytest.mark.parametrize(
        "args",
        ['"0012"', "12345678901234567", "1.50", '{"b":1,"a":[ 1 , 2]}', '"\\u00e9\\/"', "-0.0"],
    )
    def test_args_are_kept_byte_for_byte(self, args: str) -> None:
        frame = b'{"meta":{"type":1,"uuid":"%b"},"payload":{"uri":"u","args":%b}}' % (
            U1.encode(),
            args.encode(),
        )
        assert bytes(juggler.decode_request(frame).payload.args) == args.encode()

    @pytest.mark.parametrize(
        ("frame", "code", "told"),
        [
            (b"{", 1007, "bad JSON"),
            (b"\xff", 1007, "bad JSON"),
            (b"[]", 1008, "object"),
            (b'{"meta":{"type":1,"uuid":"x"},"payload":{"uri":"u"}}', 1008, "uuid"),
            (request(1), 1008, "uri"),
            (request(2), 1008, "channel"),
            (request(3, channel="c", pattern="yes"), 1008, "pattern"),
            (request(3, channel=4), 1008, "payload.channel"),
            (b'{"meta":{"type":1,"uuid":"' + U1.encode() + b'"}}', 1008, "payload"),
            (request(8, **{"for": U2}), 1002, "ACK"),
            (request(10), 1002, "EVNT"),
            (request(300), 1008, "300"),
            (request(0), 1008, "0"),
            (request(1, uri="u", args=float("inf")), 1007, "bad JSON"),
            (request(1, uri="u", timeout="1s"), 1008, "timeout"),
            (request(1, uri="u", timeout=10**400), 1008, "timeout"),
            (request(1 << 70, uri="u"), 1008, "type"),
        ],
    )
    def test_what_a_client_may_not_send_names_code_and_fault(
        self, frame: bytes, code: int, told: str
    ) -> None:
        with pytest.raises(RemoteProtocolError, match=re.escape(told)) as caught:
            juggler.decode_request(frame)
        assert caught.value.close_code == code

    @pytest.mark.parametrize(
        "args",
        [
            b"1e400",
            b"-1e400",
            b"123456789012345678901234567890",
            b'"\\ud800"',
            b"[" * 33 + b"]" * 33,
            b"[" * 100_000 + b"]" * 100_000,
            b"{" + b",".join(b'"k%d":1' % n for n in range(1025)) + b"}",
        ],
    )
    def test_json_past_the_limits_is_1007(self, args: bytes) -> None:
        frame = b'{"meta":{"type":1,"uuid":"%b"},"payload":{"uri":"u","args":%b}}' % (
            U1.encode(),
            args,
        )
        with pytest.raises(RemoteProtocolError) as caught:
            juggler.decode_request(frame)
        assert caught.value.close_code == 1007

    @pytest.mark.parametrize(
        "args",
        [
            b"1e300",
            b"18446744073709551615",
            b"-9223372036854775808",
            b'"\\ud83d\\ude00"',
            b"[" * 32 + b"]" * 32,
            b"[" + b",".join([b"[]"] * 500) + b"]",
            b'"{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{"',
        ],
    )
    def test_json_at_the_limits_passes(self, args: bytes) -> None:
        juggler.check_json(args)

    def test_the_limits_can_be_others(self) -> None:
        wide = juggler.JsonLimits(depth=40, keys=2000)
        juggler.check_json(b"[" * 40 + b"]" * 40, wide)
        keys = b"{" + b",".join(b'"k%d":1' % n for n in range(1025)) + b"}"
        juggler.check_json(keys, wide)
        for encoded in (b"[[[]]]", b'{"a":{"b":[]}}', b'[{"a":1,"b":2}]'):
            with pytest.raises(RemoteProtocolError):
                juggler.check_json(encoded, juggler.JsonLimits(depth=2, keys=1))

    @pytest.mark.parametrize("type_", [256, 300, 2**40])
    def test_types_of_applications_are_taken_when_they_are_wanted(self, type_: int) -> None:
        message = juggler.decode_request(request(type_, args=[1]), applications=True)
        assert (message.meta.type, bytes(message.payload.args)) == (type_, b"[1]")
        with pytest.raises(RemoteProtocolError):
            juggler.decode_request(request(type_))
        for other in (0, 5, 6, 8, 11, 255, -1):
            with pytest.raises(RemoteProtocolError):
                juggler.decode_request(request(other), applications=True)

    def test_server_messages_decode(self) -> None:
        message = juggler.decode_response(juggler.encode_res(U2, U1, "a", b'{"x":1}') + b"\n")
        assert message.meta.type == juggler.RES
        assert message.payload.for_ == U1
        assert bytes(message.payload.args) == b'{"x":1}'

    def test_a_client_refuses_a_request(self) -> None:
        with pytest.raises(RemoteProtocolError):
            juggler.decode_response(request(1, uri="u"))

    @given(st.binary(max_size=200))
    def test_no_bytes_do_more_than_refuse(self, frame: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            juggler.decode_request(frame)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        )
    )
    def test_any_value_goes_round(self, value: object) -> None:
        args = json.dumps(value).encode()
        decoded = juggler.decode_request(juggler.encode_call(U1, "u", args, 1))
        assert json.loads(bytes(decoded.payload.args)) == value


class TestTimeouts:
    @pytest.mark.parametrize(
        ("nanoseconds", "seconds"),
        [(0, 60), (999_999, 60), (1_000_000, 0.001), (2_000_000_000, 2), (10**18, 300), (-5, 60)],
    )
    def test_nanoseconds_become_bounded_seconds(self, nanoseconds: int, seconds: float) -> None:
        message = juggler.decode_request(request(1, uri="u", timeout=nanoseconds))
        assert juggler.timeout_s(message, default_s=60, limit_s=300) == seconds


class TestMessageIds:
    def test_ids_are_distinct_version_4_uuids(self) -> None:
        ids = juggler.MessageIds(bytes(range(16)))
        made = [ids.next() for _ in range(1000)]
        assert len(set(made)) == 1000
        parsed = uuid.UUID(made[0])
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)
        assert str(parsed) == made[0]

    def test_entropy_of_another_length_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError):
            juggler.MessageIds(b"short")
