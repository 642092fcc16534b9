"""Canonical JSON against RFC 8785's own examples, and what strict parsing refuses."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import canonical
from expunge.domain.canonical import JSON_DEPTH
from expunge.domain.errors import Rejected
from expunge.domain.words import Kind

RFC_8785_NUMBERS = [  # appendix B
    ("4340000000000001", "9007199254740994"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("0000000000000001", "5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("8000000000000000", "0"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
]


@pytest.mark.parametrize(("bits", "text"), RFC_8785_NUMBERS)
def test_numbers_are_written_as_rfc_8785_appendix_b_has_them(bits: str, text: str) -> None:
    value = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert canonical.dumps(value) == text.encode()


def test_the_example_of_rfc_8785_section_3_2_2_is_reproduced() -> None:
    source = (
        r'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        r'"string":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    )
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.dumps(canonical.loads(source.encode())) == expected.encode()


def test_keys_sort_by_utf_16_units_as_in_rfc_8785_section_3_2_3() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    in_order = ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical.dumps(dict.fromkeys(keys, 0)))) == in_order


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, "\ud800", {"\ud800": 1}, {1: 2}, object(), b"bytes"], ids=repr
)
def test_values_without_a_canonical_form_are_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="RFC 8785 form"):
        canonical.dumps(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 2**53 or abs(x) >= 1e21)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.sampled_from(Kind),
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner)
    ),
    max_leaves=20,
)


@given(JSON | PLAIN)
def test_the_quick_way_gives_the_same_bytes_as_the_library(value: Any) -> None:
    assert canonical.dumps(value) == rfc8785.dumps(value)


@given(JSON)
def test_canonical_bytes_parse_to_values_with_the_same_canonical_bytes(value: Any) -> None:
    data = canonical.dumps(value)
    assert canonical.dumps(canonical.loads(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b"[-Infinity]",
        b"1e999",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'[["\\ud800\\ud800"]]',
        b'"\x80"',
        b"\xef\xbb\xbf{}",
        b"{}\x00",
        '{"a":1}'.encode("utf-16"),
        b"{'a':1}",
        b"[1,]",
        b'"\n"',
        b"01",
        b"[" * 100_000,
        b"[" * (JSON_DEPTH + 1) + b"0" + b"]" * (JSON_DEPTH + 1),
        b'{"a":' * (JSON_DEPTH + 1) + b"0" + b"}" * (JSON_DEPTH + 1),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_anything_but_strict_json_is_rejected_as_malformed(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        canonical.loads(data)
    assert caught.value.code == "malformed"


def test_limits_themselves_are_accepted() -> None:
    deep: Any = canonical.loads(b"[" * JSON_DEPTH + b"0" + b"]" * JSON_DEPTH)
    for _ in range(JSON_DEPTH):
        (deep,) = deep
    assert deep == 0
    assert canonical.loads(b"[9007199254740991,-9007199254740991,1.5,-0.0]") == [2**53 - 1, 1 - 2**53, 1.5, 0]
    assert canonical.loads(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert canonical.loads(b"[" + b"[]," * 100 + b"[]]") == [[]] * 101


@given(st.binary())
def test_base64_round_trips(data: bytes) -> None:
    assert canonical.base64_decode(canonical.base64_encode(data)) == data


@pytest.mark.parametrize(
    "text",
    ["A", "AA", "AB==", "AAB=", "AA==\n", "A A=", "AA==AA==", "_-==", "=", "é===", "AAAA=", "AAAA====", "AAB=AAAA"],
)
def test_other_spellings_of_base64_are_malformed(text: str) -> None:
    with pytest.raises(Rejected):
        canonical.base64_decode(text)


@given(st.text("AQg/=", max_size=9))
def test_no_base64_is_read_that_would_be_written_otherwise(text: str) -> None:
    with suppress(Rejected):
        assert canonical.base64_encode(canonical.base64_decode(text)) == text
