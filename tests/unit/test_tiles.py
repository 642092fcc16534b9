"""Tiles: the spec's own examples, growth in any steps, and proofs read back from files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.domain import merkle, tiles
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.tiles import Bundle, Tile, TileTree


def hashes(start: int, end: int) -> bytes:
    return merkle.leaf_hashes(b"".join(i.to_bytes(4, "big") for i in range(start, end)), 4)


def nothing(path: str) -> bytes:
    raise KeyError(path)


def log(*sizes: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for old, new in zip((0, *sizes), sizes, strict=False):
        files.update(tiles.extend(old, hashes(old, new), files.__getitem__))
    return files


@pytest.mark.parametrize(
    ("one", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile(0, 1_234), "tile/0/x001/234"),
        (Tile(0, 1_000_000, 1), "tile/0/x001/x000/000.p/1"),
        (Tile(63, 999, 255), "tile/63/999.p/255"),
        (Bundle(0), "tile/entries/000"),
        (Bundle(12_345, 112), "tile/entries/x012/345.p/112"),
    ],
)
def test_paths_are_written_and_read_as_in_the_spec(one: Tile | Bundle, path: str) -> None:
    assert one.path == path
    assert tiles.parse_path(path) == one


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "/tile/0/000",
        "tile/0/0",
        "tile/0/1234",
        "tile/00/000",
        "tile/64/000",
        "tile/0/x000/000",
        "tile/0/001/x234",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000.p/01",
        "tile/0/000/",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/data/000",
        "tile/0/\u0660\u0660\u0660",
    ],
)
def test_any_other_path_is_malformed(path: str) -> None:
    with pytest.raises(Rejected):
        tiles.parse_path(path)


def test_a_tree_of_70_000_leaves_has_the_tiles_that_the_spec_counts() -> None:
    found = tiles.new_tiles(0, 70_000)
    assert found == [
        *(Tile(0, index) for index in range(273)),
        Tile(0, 273, 112),
        Tile(1, 0),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]
    assert tiles.new_tiles(0, 256) == [Tile(0, 0), Tile(1, 0, 1)]
    assert tiles.new_bundles(0, 300) == [Bundle(0), Bundle(1, 44)]
    assert (Bundle(1, 44).start, Bundle(1, 44).end) == (Tile(0, 1, 44).start, Tile(0, 1, 44).end) == (256, 300)


def test_nothing_is_new_when_nothing_was_added() -> None:
    assert tiles.new_tiles(300, 300) == []
    assert tiles.new_bundles(300, 300) == []
    assert tiles.extend(300, b"", nothing) == []
    assert tiles.new_tiles(255, 256) == [Tile(0, 0), Tile(1, 0, 1)]
    assert tiles.new_tiles(256, 257) == [Tile(0, 1, 1)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=5))
def test_a_log_that_grows_in_any_steps_has_the_tiles_of_the_tree(sizes: list[int]) -> None:
    steps = sorted(sizes)
    files = log(*steps)
    final = steps[-1] if steps else 0
    whole = log(final)
    assert {path: files[path] for path in whole} == whole
    added = [one.path for old, new in zip((0, *steps), steps, strict=False) for one in tiles.new_tiles(old, new)]
    assert list(dict.fromkeys(added)) == list(files)
    assert set(whole) == {one.path for one in tiles.new_tiles(0, final)}


def test_a_tree_over_three_levels_reads_back_with_its_proofs() -> None:
    size, old = 66_000, 65_537
    files, tree = log(old, size), merkle.Tree(hashes(0, size))
    read = TileTree(size, files.__getitem__)
    assert read.root == tree.root
    for index in (0, 1, 255, 256, 65_535, 65_536, size - 1):
        assert read.inclusion_path(index) == tree.inclusion_path(index)
    for smaller in (1, 255, 256, 257, old, size):
        proof = merkle.consistency_path(read, smaller)
        assert proof == merkle.consistency_path(tree, smaller)
    assert TileTree(old, files.__getitem__).root == merkle.root(hashes(0, old))
    assert TileTree(0, files.__getitem__).root == merkle.EMPTY_ROOT


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 513])
def test_small_trees_read_back(size: int) -> None:
    tree, read = merkle.Tree(hashes(0, size)), TileTree(size, log(size).__getitem__)
    assert read.root == tree.root
    assert all(read.inclusion_path(index) == tree.inclusion_path(index) for index in range(size))


def test_each_tile_is_fetched_once_per_reader() -> None:
    files, asked = log(600), list[str]()

    def fetch(path: str) -> bytes:
        asked.append(path)
        return files[path]

    read = TileTree(600, fetch)
    for index in range(600):
        read.inclusion_path(index)
    assert len(asked) == len(set(asked))


def test_a_full_tile_stands_in_for_a_partial_one_that_was_deleted() -> None:
    files = log(300, 512)
    del files["tile/0/001.p/44"]
    assert TileTree(300, files.__getitem__).root == merkle.root(hashes(0, 300))
    assert dict(tiles.extend(300, hashes(300, 301), files.__getitem__))["tile/0/001.p/45"] == hashes(256, 301)


def test_missing_and_cut_tiles_are_noticed() -> None:
    with pytest.raises(LookupError):
        TileTree(300, nothing).inclusion_path(0)
    with pytest.raises(Tampered, match=r"expected 1408 bytes at tile/0/001\.p/44, got 1407"):
        TileTree(300, lambda path: log(300)[path][: 32 * 44 - 1]).inclusion_path(299)


def test_entry_bundles_round_trip() -> None:
    entries = [b"", b"a", bytes(65_535)]
    data = tiles.bundle_bytes(entries)
    assert data[:5] == b"\x00\x00\x00\x01a"
    assert tiles.parse_bundle(data, 3) == entries
    assert tiles.parse_bundle(b"", 0) == []


@pytest.mark.parametrize(
    ("data", "width"), [(b"\x00", 1), (b"\x00\x02a", 1), (b"\x00\x01a", 2), (b"\x00\x01a", 0), (b"\x00\x01a\x00", 1)]
)
def test_entry_bundles_that_do_not_add_up_are_tampered(data: bytes, width: int) -> None:
    with pytest.raises(Tampered):
        tiles.parse_bundle(data, width)


def test_misuse_is_a_value_error() -> None:
    for call in (
        lambda: Tile(64, 0),
        lambda: Tile(-1, 0),
        lambda: Tile(0, -1),
        lambda: Tile(0, 0, 0),
        lambda: Bundle(0, 257),
        lambda: tiles.new_tiles(2, 1),
        lambda: tiles.new_bundles(-1, 1),
        lambda: tiles.extend(0, b"x", nothing),
        lambda: tiles.bundle_bytes([bytes(65_536)]),
        lambda: TileTree(3, log(3).__getitem__).subtree_root(1, 3),
        lambda: TileTree(3, log(3).__getitem__).inclusion_path(3),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_the_highest_levels_are_counted() -> None:
    assert max(one.level for one in tiles.new_tiles(2**62 - 1, 2**62)) == 7
    assert max(one.level for one in tiles.new_tiles(256**63 - 1, 256**63)) == 63
