"""Merkle trees against Certificate Transparency's reference roots and a naive second implementation of RFC 6962."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.domain import hashing, merkle
from expunge.domain.errors import Tampered
from expunge.domain.merkle import EMPTY_ROOT, Frontier, Tree

CT_LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    bytes(range(0x50, 0x58)),
    bytes(range(0x60, 0x70)),
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="the extra `fast` is not installed")


@pytest.fixture(params=["hashlib", pytest.param("native", marks=needs_numba)], autouse=True, scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """All of this file twice: each way of hashing, from the first piece on."""
    with pytest.MonkeyPatch.context() as patch:
        chosen: hashing.Hasher = hashing.plain
        if request.param == "native":
            assert hashing.native() is not None
            patch.setattr(hashing, "_CALL_FROM", 1)
            chosen = hashing.Hashing(native_from=0)
        patch.setattr(hashing, "hashes", chosen)
        yield request.param


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = largest_power_below(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], whole=False), mth(leaves[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def data(count: int) -> list[bytes]:
    return [i.to_bytes(4, "big") for i in range(count)]


def tree(count: int) -> Tree:
    return Tree(merkle.leaf_hashes(b"".join(data(count)), 4))


@pytest.mark.parametrize("size", range(9))
def test_certificate_transparency_reference_roots_are_reproduced(size: int) -> None:
    hashes = b"".join(merkle.leaf_hash(one) for one in CT_LEAVES[:size])
    assert Tree(hashes).root.hex() == merkle.root(hashes).hex() == mth(CT_LEAVES[:size]).hex() == CT_ROOTS[size]


def test_leaf_hashes_of_many_are_those_of_each() -> None:
    flat = b"".join(data(10_000))
    assert merkle.leaf_hashes(memoryview(flat), 4) == b"".join(merkle.leaf_hash(one) for one in data(10_000))
    assert merkle.leaf_hashes(b"", 4) == b""


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8191, 8193, 12_289])
def test_roots_are_right_where_hashing_is_done_in_blocks(size: int) -> None:
    assert tree(size).root == merkle.root(merkle.leaf_hashes(b"".join(data(size)), 4)) == mth(data(size))


def check_inclusion(size: int) -> None:
    grown, leaves = tree(size), data(size)
    for index in range(size):
        proof = grown.inclusion_path(index)
        leaf = merkle.leaf_hash(leaves[index])
        assert [grown.subtree_root(*one) for one in merkle.inclusion_ranges(index, size)] == proof
        merkle.verify_inclusion(index, size, leaf, proof, grown.root)
        for wrong in {index ^ 1, index + 1, 0, size - 1} - {index}:
            with pytest.raises(Tampered):
                merkle.verify_inclusion(wrong, size, leaf, proof, grown.root)
        for broken in (proof[:-1], [*proof, EMPTY_ROOT], [b"", *proof]):
            if broken != proof:
                with pytest.raises(Tampered):
                    merkle.verify_inclusion(index, size, leaf, broken, grown.root)


def check_consistency(new_size: int) -> None:
    new, leaves = tree(new_size), data(new_size)
    for old_size in range(new_size + 1):
        old_root = merkle.root(merkle.leaf_hashes(b"".join(leaves[:old_size]), 4))
        proof = merkle.consistency_path(new, old_size)
        merkle.verify_consistency(old_size, new_size, old_root, new.root, proof)
        for broken in (proof[:-1], [*proof, EMPTY_ROOT]):
            if broken != proof:
                with pytest.raises(Tampered):
                    merkle.verify_consistency(old_size, new_size, old_root, new.root, broken)
        if new_size:
            wrong = sha256(old_root).digest()
            for pair in ((wrong, new.root), (old_root, wrong)):
                if old_size or pair[0] == wrong:  # nothing binds the empty tree's successor
                    with pytest.raises(Tampered):
                        merkle.verify_consistency(old_size, new_size, *pair, proof)


@pytest.mark.parametrize("size", range(1, 65))
def test_every_inclusion_path_verifies_and_only_where_it_belongs(size: int) -> None:
    check_inclusion(size)


@pytest.mark.parametrize("size", range(65))
def test_every_consistency_path_verifies_and_only_between_its_roots(size: int) -> None:
    check_consistency(size)


@pytest.mark.parametrize("size", range(1, 40))
def test_paths_are_those_of_the_naive_definition(size: int) -> None:
    leaves = data(size)
    assert [tree(size).inclusion_path(index) for index in range(size)] == [path(i, leaves) for i in range(size)]
    assert [merkle.consistency_path(tree(size), old) for old in range(1, size + 1)] == [
        subproof(old, leaves, whole=True) for old in range(1, size + 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", range(65, 301))
def test_every_path_up_to_300_leaves_verifies(size: int) -> None:
    check_inclusion(size)
    check_consistency(size)


@pytest.mark.parametrize("size", [2, 7, 8, 37])
def test_every_flipped_byte_of_an_inclusion_proof_is_refused(size: int) -> None:
    grown, index = tree(size), size // 2
    proof, leaf = grown.inclusion_path(index), merkle.leaf_hash(data(size)[index])
    whole = b"".join([leaf, *proof, grown.root])
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        parts = [flipped[start : start + 32] for start in range(0, len(flipped), 32)]
        with pytest.raises(Tampered):
            merkle.verify_inclusion(index, size, parts[0], parts[1:-1], parts[-1])


@pytest.mark.parametrize(("old_size", "size"), [(1, 2), (3, 7), (4, 7), (6, 8), (13, 37)])
def test_every_flipped_byte_of_a_consistency_proof_is_refused(old_size: int, size: int) -> None:
    whole = b"".join([tree(old_size).root, tree(size).root, *merkle.consistency_path(tree(size), old_size)])
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :]
        parts = [flipped[start : start + 32] for start in range(0, len(flipped), 32)]
        with pytest.raises(Tampered):
            merkle.verify_consistency(old_size, size, parts[0], parts[1], parts[2:])


@given(st.integers(0, 300), st.sampled_from([1, 2, 8, 64, 512]))
def test_chunk_roots_recombine_to_the_root(size: int, chunk: int) -> None:
    leaves = data(size)
    roots = tree(size).chunk_roots(chunk)
    assert roots == [mth(leaves[at : at + chunk]) for at in range(0, size, chunk)]
    assert roots == merkle.chunk_roots(b"".join(map(merkle.leaf_hash, leaves)), chunk)
    assert merkle.root_from_chunk_roots(size, roots, chunk) == mth(leaves)
    for wrong in (size + chunk, size - 1 - (size - 1) % chunk):
        if size:
            with pytest.raises(Tampered):
                merkle.root_from_chunk_roots(wrong, roots, chunk)


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2049, 3000, 5127])
def test_chunks_of_1024_are_subtrees(size: int) -> None:
    grown = tree(size)
    bounds = [(at, min(at + 1024, size)) for at in range(0, size, 1024)]
    assert grown.chunk_roots() == [grown.subtree_root(*one) for one in bounds]
    assert merkle.root_from_chunk_roots(size, grown.chunk_roots()) == grown.root


def test_a_chunk_root_that_is_no_hash_is_tampered() -> None:
    with pytest.raises(Tampered, match="expected hashes of 32 bytes, got 31"):
        merkle.root_from_chunk_roots(3, [bytes(32), bytes(31)], 2)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_multiproofs_of_any_indices_verify_and_use_every_node(case: tuple[int, set[int]]) -> None:
    size, wanted = case
    grown, leaves = tree(size), data(size)
    nodes = grown.multiproof([*wanted, *wanted])
    opened = {index: merkle.leaf_hash(leaves[index]) for index in wanted}
    assert merkle.root_from_multiproof(size, opened, nodes) == grown.root
    for broken in (nodes[:-1], [*nodes, EMPTY_ROOT]):
        if broken != nodes:
            with pytest.raises(Tampered):
                merkle.root_from_multiproof(size, opened, broken)
    victim = random.Random(size).choice(sorted(wanted))
    assert merkle.root_from_multiproof(size, {**opened, victim: EMPTY_ROOT}, nodes) != grown.root


def test_a_multiproof_of_one_leaf_is_its_inclusion_path_from_left_to_right() -> None:
    grown = tree(13)
    assert sorted(grown.multiproof([5])) == sorted(grown.inclusion_path(5))
    assert grown.multiproof(range(13)) == []
    assert len(grown.multiproof([0, 12])) == 4


@pytest.mark.parametrize(
    ("leaves", "nodes"), [({}, [bytes(32)]), ({8: bytes(32)}, []), ({-1: bytes(32)}, []), ({0: b"short"}, [])]
)
def test_multiproofs_about_impossible_leaves_are_tampered(leaves: dict[int, bytes], nodes: list[bytes]) -> None:
    with pytest.raises(Tampered):
        merkle.root_from_multiproof(8, leaves, nodes)


@pytest.mark.parametrize("size", range(1, 20))
def test_every_subtree_is_available_and_nothing_else_is(size: int) -> None:
    grown, leaves = tree(size), data(size)
    for start in range(-1, size + 2):
        for end in range(start - 1, size + 2):
            width = 1 << max(0, end - start - 1).bit_length()
            real = 0 <= start < end <= size and start % width == 0 and end in {start + width, size}
            if real:
                assert grown.subtree_root(start, end) == mth(leaves[start:end])
            else:
                with pytest.raises(ValueError, match="expected a subtree"):
                    grown.subtree_root(start, end)


def test_a_frontier_has_the_root_of_what_was_appended_and_survives_storage() -> None:
    frontier = Frontier()
    for size, one in enumerate(data(130)):
        assert frontier.root() == mth(data(size))
        frontier = Frontier.from_bytes(frontier.to_bytes())
        frontier.append(merkle.leaf_hash(one))
        assert frontier.size == size + 1
        assert Frontier(frontier.size, frontier.hashes).root() == mth(data(size + 1))


@pytest.mark.parametrize(
    ("size", "hashes"), [(1, []), (0, [bytes(32)]), (3, [bytes(32)]), (1, [b"x"]), (-1, [bytes(32)])]
)
def test_a_frontier_needs_one_hash_per_complete_subtree(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(ValueError, match="one hash per set bit"):
        Frontier(size, hashes)


def test_misuse_is_a_value_error() -> None:
    for call in (
        lambda: Tree(b"x"),
        lambda: merkle.root(b"x"),
        lambda: merkle.leaf_hashes(b"xyz", 2),
        lambda: merkle.leaf_hashes(b"xyz", 0),
        lambda: tree(3).inclusion_path(3),
        lambda: tree(3).inclusion_path(-1),
        lambda: tree(3).chunk_roots(3),
        lambda: tree(3).chunk_roots(0),
        lambda: tree(3).multiproof([]),
        lambda: tree(3).multiproof([3]),
        lambda: merkle.inclusion_ranges(0, 0),
        lambda: merkle.consistency_ranges(4, 3),
        lambda: Frontier().append(b"x"),
        lambda: Frontier.from_bytes(b"\x00" * 7 + b"\x01" + bytes(31)),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize(
    ("old_size", "size", "old_root", "root", "proof"),
    [
        (2, 1, EMPTY_ROOT, EMPTY_ROOT, []),
        (-1, 1, EMPTY_ROOT, EMPTY_ROOT, []),
        (0, 2, EMPTY_ROOT, CT_ROOTS[2], [EMPTY_ROOT]),
        (0, 2, CT_ROOTS[2], CT_ROOTS[2], []),
        (0, 0, EMPTY_ROOT, CT_ROOTS[2], []),
        (3, 5, CT_ROOTS[3], CT_ROOTS[5], []),
        (3, 5, "00", CT_ROOTS[5], []),
    ],
)
def test_impossible_consistency_claims_are_tampered(
    old_size: int, size: int, old_root: bytes | str, root: bytes | str, proof: list[bytes]
) -> None:
    as_bytes = [bytes.fromhex(one) if isinstance(one, str) else one for one in (old_root, root)]
    with pytest.raises(Tampered):
        merkle.verify_consistency(old_size, size, as_bytes[0], as_bytes[1], proof)


@needs_numba
@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=2000), st.integers(1, 200), st.integers(0, 255))
def test_both_ways_of_hashing_are_one(data: bytes, size: int, prefix: int) -> None:
    native = hashing.native()
    assert native is not None
    data = data[: len(data) // size * size] or bytes(size)
    expected = hashing.plain(prefix, data, size)
    assert native(prefix, data, size) == expected
    assert native(prefix, bytearray(data), size) == expected
    assert native(prefix, memoryview(b"odd" + data)[3:], size) == expected


def test_the_fast_way_is_loaded_once_and_only_by_who_hashes_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_CALL_FROM", 64)
    loads = []

    def load() -> hashing.Hasher | None:
        loads.append(1)
        return None

    chosen = hashing.Hashing(native_from=1000, load=load)
    assert chosen(0, bytes(32 * 999), 32) == hashing.plain(0, bytes(32 * 999), 32)
    for _ in range(100):
        assert chosen(0, bytes(32), 32) == sha256(bytes(33)).digest()
    assert not loads
    for _ in range(2):  # there is none: hashlib does it
        assert chosen(0, bytes(32 * 100), 32) == sha256(bytes(33)).digest() * 100
    assert loads == [1]


@pytest.mark.parametrize("missing", ["numba", "numpy", "llvmlite", "_hashlib"])
def test_without_what_the_fast_way_needs_hashes_are_the_same(missing: str) -> None:
    script = f"""
        import sys
        from expunge.domain import hashing
        assert not {{"numba", "numpy"}} & set(sys.modules)
        sys.modules[{missing!r}] = None  # importing it now raises
        data = bytes(32 * hashing.NATIVE_FROM)
        assert hashing.hashes(0, data, 32) == hashing.plain(0, data[:32], 32) * hashing.NATIVE_FROM
        assert hashing.native() is None
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
