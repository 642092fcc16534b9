"""Blinded leaves: published keystream and key derivation vectors, columns, offsets."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import leaf, merkle

# RFC 8439 appendix A.1, test vectors 1 to 3: key, block counter, keystream (nonce zero).
KEYSTREAM = [
    (
        "00" * 32,
        0,
        (
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        ),
    ),
    (
        "00" * 32,
        1,
        (
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
            "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
        ),
    ),
    (
        "00" * 31 + "01",
        1,
        (
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
            "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"
        ),
    ),
]
KEY = bytes(range(32))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 sections 2.2 and 2.3, a second implementation."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    block = output = b""
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


def test_the_second_implementation_gives_rfc_5869_vectors() -> None:
    secret, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    assert hkdf(secret, salt, info, 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert hkdf(secret, b"", b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_derived_keys_are_hkdf_over_length_prefixed_parts() -> None:
    info = b"\x00\x00\x00\x0aexpunge/v1\x00\x00\x00\x07section\x00\x00\x00\x01a\x00\x00\x00\x00"
    assert leaf.derive_key(KEY, "section", b"a", b"") == hkdf(KEY, b"", info, 32)


@given(
    st.tuples(st.text(max_size=3), st.lists(st.binary(max_size=3), max_size=3)),
    st.tuples(st.text(max_size=3), st.lists(st.binary(max_size=3), max_size=3)),
)
def test_two_argument_lists_never_give_the_same_key(
    one: tuple[str, list[bytes]], other: tuple[str, list[bytes]]
) -> None:
    same = leaf.derive_key(KEY, one[0], *one[1]) == leaf.derive_key(KEY, other[0], *other[1])
    assert same == (one == other)


@pytest.mark.parametrize(("key", "block", "stream"), KEYSTREAM)
def test_nonces_are_the_keystream_of_rfc_8439(key: str, block: int, stream: str) -> None:
    assert leaf.nonces(bytes.fromhex(key), 4, start=4 * block).hex() == stream


@given(st.integers(0, 40), st.integers(0, 20))
def test_nonces_from_any_start_are_those_of_the_whole(start: int, count: int) -> None:
    assert leaf.nonces(KEY, count, start) == leaf.nonces(KEY, 60)[16 * start : 16 * (start + count)]


def test_nonces_reach_the_counters_end_and_no_further() -> None:
    assert len(leaf.nonces(KEY, 5, 2**34 - 5)) == 80
    for count, start in ((1, 2**34), (5, 2**34 - 4), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="expected nonces within"):
            leaf.nonces(KEY, count, start)


@pytest.mark.parametrize("count", [0, 1, 3, 1023, 1024, 1025, 2500])
def test_leaves_are_the_rows_of_three_columns(count: int) -> None:
    blinds = leaf.nonces(KEY, count)
    ids = b"".join((2**40 + i).to_bytes(6, "big") for i in range(count))
    digests = b"".join(hashlib.sha256(bytes([i % 256])).digest() for i in range(count))
    packed = leaf.pack_leaves(blinds, ids, digests)
    assert packed == b"".join(
        blinds[16 * i : 16 * i + 16] + ids[6 * i : 6 * i + 6] + digests[32 * i : 32 * i + 32] for i in range(count)
    )
    assert len(merkle.leaf_hashes(packed, leaf.LEAF_BYTES)) == 32 * count


def test_a_leaf_with_its_prefix_is_one_sha_256_block() -> None:
    assert leaf.LEAF_BYTES == 54
    assert 1 + leaf.LEAF_BYTES + 1 + 8 == 64  # prefix, leaf, padding bit, length
    assert bytes(32) == leaf.NO_DIGEST


@pytest.mark.parametrize(("blinds", "ids", "digests"), [(17, 6, 32), (16, 7, 32), (16, 6, 64)])
def test_columns_that_disagree_are_a_value_error(blinds: int, ids: int, digests: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        leaf.pack_leaves(bytes(blinds), bytes(ids), bytes(digests))


def test_keys_of_another_length_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected 32 bytes of secret"):
        leaf.derive_key(b"short", "p")
    with pytest.raises(ValueError, match="expected 32 bytes of key"):
        leaf.nonces(b"short", 1)
