"""Suppression MACs and their journal: unambiguous inputs, torn tails, damage in the middle."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import suppression
from expunge.domain.errors import Tampered
from expunge.domain.suppression import RECORD_BYTES, Action, Field, Record, purpose_digest

KEY = bytes(range(32))
FIELDS: tuple[Field, ...] = ("subject", "locator", "digest")


def record(number: int, action: Action = Action.ADD) -> Record:
    field = FIELDS[number % 3]
    return Record(field, action, purpose_digest("training"), suppression.mac(KEY, field, "training", b"%d" % number))


RECORDS = [record(0), record(1, Action.LIFT), record(2), record(3)]
JOURNAL = suppression.encode(RECORDS)


def test_a_mac_is_hmac_sha_256_over_length_prefixed_parts() -> None:
    message = b"\x00\x00\x00\x16expunge/suppression/v1\x00\x00\x00\x07subject\x00\x00\x00\x01pvalue"
    assert suppression.mac(KEY, "subject", "p", b"value") == hmac.new(KEY, message, sha256).digest()


@given(
    st.tuples(st.sampled_from(FIELDS), st.text(max_size=3), st.binary(max_size=3)),
    st.tuples(st.sampled_from(FIELDS), st.text(max_size=3), st.binary(max_size=3)),
)
def test_two_values_never_share_a_mac(one: tuple[Field, str, bytes], other: tuple[Field, str, bytes]) -> None:
    assert (suppression.mac(KEY, *one) == suppression.mac(KEY, *other)) == (one == other)


@given(st.binary(min_size=32, max_size=32), st.sampled_from(FIELDS), st.text(max_size=5), st.integers(1, 40), st.data())
def test_macs_in_bulk_are_those_made_one_by_one(
    key: bytes, field: Field, purpose: str, size: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.binary(min_size=size, max_size=size), max_size=4))
    expected = [suppression.mac(key, field, purpose, value) for value in values]
    assert suppression.macs(key, field, purpose, b"".join(values), size) == b"".join(expected)


def test_macs_in_bulk_have_known_answers() -> None:
    macs = suppression.macs(KEY, "digest", "*", bytes(32) + b"\xff" * 32, 32)
    assert macs.hex() == (
        "225bfaa3e2f7239e397f8866b1732e2d91d6efdb6b0fc331e4d004e64aba85d1"
        "7ed975ea78d7c138a39daecfb06646fc21a9d8f34a67f8bb9578cb82e96fd95d"
    )


@pytest.mark.parametrize("action", Action)
def test_records_in_bulk_are_those_made_one_by_one(action: Action) -> None:
    macs = suppression.macs(KEY, "digest", "p", bytes(range(96)), 32)
    records = [Record("digest", action, purpose_digest("p"), macs[at : at + 32]) for at in range(0, 96, 32)]
    assert suppression.encode_many("digest", action, purpose_digest("p"), macs) == suppression.encode(records)
    assert suppression.encode_many("digest", action, purpose_digest("p"), b"") == b""


def test_another_key_gives_another_mac() -> None:
    assert suppression.mac(KEY, "digest", "p", b"v") != suppression.mac(bytes(32), "digest", "p", b"v")


def test_misuse_is_a_value_error() -> None:
    name: Any = "name"
    cases: list[tuple[Any, int, int]] = [(name, 16, 32), ("subject", 15, 32), ("subject", 16, 31)]
    with pytest.raises(ValueError, match="expected a key of 32 bytes"):
        suppression.mac(b"short", "subject", "p", b"")
    with pytest.raises(ValueError, match="known field"):
        suppression.mac(KEY, name, "p", b"")
    with pytest.raises(ValueError, match="expected a key of 32 bytes"):
        suppression.macs(b"short", "subject", "p", b"", 1)
    for size in (0, 3):
        with pytest.raises(ValueError, match="expected whole values"):
            suppression.macs(KEY, "subject", "p", bytes(32), size)
    with pytest.raises(ValueError, match="expected whole MACs"):
        suppression.encode_many("subject", Action.ADD, bytes(16), bytes(33))
    for field, purpose, value in cases:
        with pytest.raises(ValueError, match="expected a known field"):
            Record(field, Action.ADD, bytes(purpose), bytes(value))


def test_records_round_trip_and_never_straddle_a_sector() -> None:
    assert suppression.decode(JOURNAL) == (RECORDS, 0)
    assert suppression.decode(b"") == ([], 0)
    assert len(JOURNAL) == 4 * RECORD_BYTES
    assert 512 % RECORD_BYTES == 0


def test_a_record_has_the_documented_layout() -> None:
    first = JOURNAL[:RECORD_BYTES]
    assert first[:4] == b"\x01\x01\x01\x00"
    assert first[4:20] == sha256(b"training").digest()[:16]
    assert first[20:52] == RECORDS[0].mac
    assert first[52:] == sha256(first[:52]).digest()[:12]


@pytest.mark.parametrize("length", range(len(JOURNAL)))
def test_a_tail_torn_anywhere_leaves_the_whole_records(length: int) -> None:
    whole = length // RECORD_BYTES
    assert suppression.decode(JOURNAL[:length]) == (RECORDS[:whole], length % RECORD_BYTES)


def test_a_tail_that_was_allocated_but_not_written_is_torn() -> None:
    assert suppression.decode(JOURNAL + bytes(200)) == (RECORDS, 200)
    half = JOURNAL[:-30] + bytes(30)
    assert suppression.decode(half) == (RECORDS[:3], RECORD_BYTES)


@pytest.mark.parametrize("at", range(3 * RECORD_BYTES))
def test_every_flipped_byte_before_the_last_record_is_tampered(at: int) -> None:
    with pytest.raises(Tampered):
        suppression.decode(JOURNAL[:at] + bytes([JOURNAL[at] ^ 1]) + JOURNAL[at + 1 :])


@pytest.mark.parametrize(("at", "value"), [(0, 0), (0, 2), (1, 0), (1, 4), (2, 0), (2, 3), (3, 1)])
def test_a_whole_record_that_says_what_no_version_1_record_says_is_tampered(at: int, value: int) -> None:
    body = bytearray(JOURNAL[:52])
    body[at] = value
    with pytest.raises(Tampered, match="record 0"):
        suppression.decode(bytes(body) + sha256(body).digest()[:12])
