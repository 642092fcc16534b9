"""Sealed scope files: only the named section opens, only with its key, and no changed byte goes unnoticed."""

from __future__ import annotations

import mmap
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import scopefile
from expunge.domain.errors import Tampered
from expunge.domain.scopefile import ScopeFile

KEY = bytes(range(32))
HEADER: dict[str, object] = {
    "bucket": "2026-11-01",
    "sweep": "3f0e1d7c-0000-4000-8000-000000000000",
    "trees": [{"kind": "image", "store": "photos", "n": 3}],
}
SECTIONS = [("image/photos/0", b"first section"), ("image/photos/1", b""), ("requests", bytes(1000))]
FILE = scopefile.write(HEADER, SECTIONS, KEY)


def opens(data: bytes, key: bytes = KEY) -> list[tuple[str, bytes]]:
    found = ScopeFile.open(data, key)
    return [(name, found.section(name)) for name in found.names]


def test_sections_come_back_by_name() -> None:
    assert ScopeFile.open(FILE, KEY).header == HEADER
    assert opens(FILE) == SECTIONS
    assert opens(scopefile.write({}, [], KEY)) == []


def test_the_same_values_give_the_same_bytes_piece_by_piece() -> None:
    assert b"".join(scopefile.blocks(dict(reversed(HEADER.items())), iter(SECTIONS), KEY)) == FILE


@given(st.lists(st.binary(max_size=70), max_size=6), st.sampled_from([0, 1, 5 << 18]))
def test_a_section_in_pieces_is_sealed_as_one_that_is_whole(pieces: list[bytes], more: int) -> None:
    pieces = [*pieces, b"x" * more]
    parts: list[tuple[str, scopefile.Section]] = [("one", iter(pieces)), ("two", b"after")]
    whole = [("one", b"".join(pieces)), ("two", b"after")]
    assert scopefile.write(HEADER, parts, KEY) == scopefile.write(HEADER, whole, KEY)
    assert opens(scopefile.write(HEADER, [("one", iter(pieces))], KEY)) == whole[:1]


@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=40), max_size=4))
def test_large_columns_are_packed_as_others(columns: dict[str, bytes]) -> None:
    made = {name: partial(bytes, column) for name, column in columns.items()}
    assert b"".join(scopefile.pack_large(made)) == scopefile.pack_columns(columns)


def test_of_a_section_of_large_columns_one_is_in_memory_at_a_time() -> None:
    columns = {str(number): partial(bytes, 4 << 20) for number in range(6)}
    tracemalloc.start()
    try:
        length = sum(map(len, scopefile.blocks(HEADER, [("claims", scopefile.pack_large(columns))], KEY)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length > 24 << 20
    assert peak < 12 << 20


def test_a_mapped_file_and_a_view_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "scope"
    path.write_bytes(FILE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert ScopeFile.open(mapped, KEY).section("requests") == bytes(1000)
    assert ScopeFile.open(memoryview(FILE), KEY).section("requests") == bytes(1000)


def test_only_the_needed_section_is_decrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = scopefile._Seal.decrypt

    def spy(self: scopefile._Seal, name: str, nonce: bytes, sealed: bytes | memoryview) -> bytes:
        asked.append(name)
        return original(self, name, nonce, sealed)

    monkeypatch.setattr(scopefile._Seal, "decrypt", spy)
    ScopeFile.open(FILE, KEY).section("image/photos/0")
    assert asked == ["table", "image/photos/0"]


def test_every_flipped_byte_is_refused() -> None:
    for at in range(len(FILE)):
        flipped = FILE[:at] + bytes([FILE[at] ^ 1]) + FILE[at + 1 :]
        with pytest.raises(Tampered):
            opens(flipped)


def test_every_cut_is_refused() -> None:
    for end in range(len(FILE)):
        with pytest.raises(Tampered):
            opens(FILE[:end])


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Tampered, match="another key"):
        ScopeFile.open(FILE, bytes(32))


def test_sections_of_another_file_or_place_do_not_authenticate() -> None:
    swapped = scopefile.write(HEADER, [("image/photos/1", b"first section"), ("image/photos/0", b"")], KEY)
    other = scopefile.write({**HEADER, "sweep": "another"}, SECTIONS, KEY)
    start = FILE.index(b"]}") + 2
    sealed = FILE[start : start + len(b"first section") + 16]
    for donor in (swapped, other):
        at = donor.index(b"]}") + 2
        moved = donor[:at] + sealed + donor[at + len(sealed) :]
        assert len(moved) == len(donor)
        found = ScopeFile.open(moved, KEY)
        with pytest.raises(Tampered, match="to authenticate"):
            found.section(found.names[0])


def test_files_with_different_headers_share_no_keystream() -> None:
    one = scopefile.write({"a": 1}, [("s", bytes(64))], KEY)
    other = scopefile.write({"a": 2}, [("s", bytes(64))], KEY)
    assert one[21:85] != other[21:85]


def test_a_section_that_was_never_written_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected one of 3 sections, got nothing"):
        ScopeFile.open(FILE, KEY).section("nothing")


def test_a_section_is_written_once() -> None:
    with pytest.raises(ValueError, match="got s twice"):
        scopefile.write({}, [("s", b""), ("s", b"")], KEY)


def raw(header: bytes, *, magic: bytes = b"EXPSCOPE", version: int = 1) -> bytes:
    return magic + version.to_bytes(2, "little") + len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        raw(b"{}", magic=b"EXPSCOPX"),
        raw(b"{}", version=2),
        raw(b"{"),
        raw(b"[]"),
        raw(b"{}"),
        raw(b"{}") + bytes(20),
    ],
)
def test_what_is_not_a_scope_file_is_tampered(data: bytes) -> None:
    with pytest.raises(Tampered):
        ScopeFile.open(data, KEY)


def test_the_cipher_is_the_standard_one_with_the_documented_inputs() -> None:
    from hashlib import sha256

    from expunge.domain.leaf import derive_key

    data = scopefile.write({}, [("s", b"plain")], KEY)
    digest = sha256(data[:16]).digest()
    cipher = ChaCha20Poly1305(derive_key(KEY, "section", digest))
    assert cipher.decrypt(bytes(12), data[16 : 16 + 21], digest + b"s") == b"plain"


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=50), max_size=6))
def test_columns_round_trip(columns: dict[str, bytes]) -> None:
    packed = scopefile.pack_columns(columns)
    assert scopefile.unpack_columns(packed) == columns
    assert list(scopefile.unpack_columns(packed)) == list(columns)
    for broken in (packed[:-1], packed + b"\x00"):
        with pytest.raises(Tampered):
            scopefile.unpack_columns(broken)


@given(st.lists(st.text(max_size=8), max_size=8))
def test_strings_round_trip(strings: list[str]) -> None:
    packed = scopefile.pack_strings(strings)
    assert scopefile.unpack_strings(packed) == strings
    for broken in (packed[:-1], packed + b"x"):
        with pytest.raises(Tampered):
            scopefile.unpack_strings(broken)


def test_columns_refuse_two_of_one_name_and_names_that_are_no_text() -> None:
    two = scopefile.pack_columns({"a": b"1", "b": b"2"})
    with pytest.raises(Tampered, match="each name once"):
        scopefile.unpack_columns(two.replace(b"b2", b"a2"))
    with pytest.raises(Tampered, match="UTF-8"):
        scopefile.unpack_columns(two.replace(b"a1", b"\xff1"))
