"""Every store adapter against the public suite, and the traps of `stores.md` that each must not fall into."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, shake_256
from importlib.metadata import EntryPoint, EntryPoints
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from expunge.adapters.stores import count_needles, local, memory, nowhere, table, webdataset
from expunge.adapters.stores.local import LINKED, LINKS_SAMPLED, LocalReader, LocalStore
from expunge.adapters.stores.memory import MemoryReader, MemoryStore, Space
from expunge.adapters.stores.webdataset import WebDatasetReader, WebDatasetStore
from expunge.conformance import CrashPoint, StoreConformance
from expunge.domain.errors import FencedOff, Misconfigured, Rejected, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Store, StoreReader

DIMENSIONS = 16

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="NOT TESTED: faiss is not installed (extra `faiss`)"
)


def photo(locator: str) -> bytes:
    return shake_256(locator.encode()).digest(200)


def vector(locator: str, dimensions: int = DIMENSIONS) -> bytes:
    seed = int.from_bytes(blake2b(locator.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dimensions).astype("<f4").tobytes()


# --- memory


class TestMemoryStore(StoreConformance):
    pause_at = "called"

    @pytest.fixture(autouse=True)
    def _place(self) -> None:
        self.space = Space()
        self.numbers = count()

    def open_store(self, crash_point: CrashPoint | None = None) -> Store:
        return MemoryStore(self.space, "memory", crash_point=crash_point or nowhere)

    def open_reader(self) -> StoreReader:
        return MemoryReader(self.space, "memory")

    def fresh_unit(self) -> str:
        return f"unit-{next(self.numbers)}"

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        self.space.insert(unit, artifacts)

    def read(self, unit: str) -> dict[str, bytes]:
        return self.space.read(unit)

    def locators(self, count: int, start: int = 0) -> list[str]:
        return [f"{i:06}.jpg" for i in range(start, start + count)]

    def content(self, locator: str) -> bytes:
        return photo(locator)

    hostile_units = ()  # a dictionary has no outside

    def test_it_fails_as_often_as_asked(self) -> None:
        unit, erased, _ = self._filled(2, 1)
        self.space.failures = 2
        for _ in range(2):
            with pytest.raises(Retryable):
                self.open_store().erase(unit, erased, 1)
        assert self.open_store().erase(unit, erased, 1).outcomes.tolist() == [Outcome.GONE]

    def test_a_lie_is_seen_by_probe_and_scan(self) -> None:
        unit, erased, _ = self._filled(2, 1)
        self.space.lying = True
        needles = self.open_reader().needles(unit, erased)[0]
        assert self._hide_and_erase(self.open_store(), unit, erased, 1).outcomes.tolist() == [Outcome.GONE]
        assert self.open_reader().probe(unit, erased).all()
        assert self.open_reader().scan(unit, needles) == [1] * len(needles)

    def test_a_blocked_artifact_stays(self) -> None:
        unit, erased, _ = self._filled(4, 2)
        self.space.blocked.add((unit, erased[0]))
        outcomes = self._hide_and_erase(self.open_store(), unit, erased, 1).outcomes
        assert outcomes.tolist() == [Outcome.BLOCKED, Outcome.GONE]

    def test_a_url_names_one_space_for_stores_and_readers(self) -> None:
        url = f"memory:{id(self)}"
        memory.space_of(url).insert("u", {"a": b"x"})
        assert table.open_reader(url, "m").probe("u", ["a"]).all()
        assert table.open_store(url, "m").hide("u", ["a"]).tolist() == [Outcome.GONE]
        assert not table.open_reader(url, "m").probe("u", ["a"]).any()


# --- files


class TestLocalStore(StoreConformance):
    pause_at = "claimed"
    hostile_units = (*StoreConformance.hostile_units, ".expunge-fences", "out")

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"
        self.root.mkdir()
        (tmp_path / "outside").mkdir()
        (self.root / "out").symlink_to(tmp_path / "outside")
        self.numbers = count()

    def open_store(self, crash_point: CrashPoint | None = None) -> LocalStore:
        return LocalStore(str(self.root), "files", crash_point=crash_point or nowhere)

    def open_reader(self) -> LocalReader:
        return LocalReader(str(self.root), "files")

    def fresh_unit(self) -> str:
        return f"Ł/{next(self.numbers)}"

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        (self.root / unit).mkdir(parents=True, exist_ok=True)
        for name, content in artifacts.items():
            (self.root / unit / name).write_bytes(content)

    def read(self, unit: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.root / unit).iterdir()}

    def locators(self, count: int, start: int = 0) -> list[str]:
        return [f"{i:06}.jpg" for i in range(start, start + count)]

    def content(self, locator: str) -> bytes:
        return photo(locator)

    def test_the_root_itself_is_a_unit(self) -> None:
        self.insert(".", {"a.jpg": photo("a")})
        assert self.open_reader().probe(".", ["a.jpg"]).tolist() == [True]
        assert self.open_store().erase(".", ["a.jpg"], 1).outcomes.tolist() == [Outcome.GONE]

    def test_a_crash_between_two_batches_is_made_good_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "_BATCH", 1)
        assert "batch" in self._steps()
        self.test_a_crash_after_any_inner_step_is_made_good_by_a_repeat()

    def test_hide_is_no_step_of_this_store(self) -> None:
        with pytest.raises(NotImplementedError):
            self.open_store().hide("a", ["b"])

    def test_a_hard_link_keeps_the_bytes_and_the_level_down(self) -> None:
        unit, erased, _ = self._filled(3, 2)
        os.link(self.root / unit / erased[0], self.root / unit / "other name")
        needles = self.open_reader().needles(unit, erased[:1])[0]
        erasure = self.open_store().erase(unit, erased, 1)
        assert erasure.level == Level.UNREACHABLE
        assert LINKED in erasure.residue
        assert self.open_reader().scan(unit, needles) == [1] * len(needles)

    def test_hard_links_among_many_files_are_sampled_or_all_looked_for_as_told(self) -> None:
        unit, erased, _ = self._filled(300, 300)
        os.link(self.root / unit / erased[1], self.root / unit / "other name")
        assert LINKS_SAMPLED in self.open_store().erase(unit, erased[100:], 1).residue
        thorough = local.open_store(f"file://{self.root}?links=all", "files")
        assert LINKED in thorough.erase(unit, erased[:100], 1).residue

    def test_probe_agrees_however_dense_the_question(self) -> None:
        unit, erased, kept = self._filled(200, 100)
        self.open_store().erase(unit, erased, 1)
        assert not self.open_reader().probe(unit, erased[:1]).any()
        assert self.open_reader().probe(unit, kept[:1]).all()
        assert self.open_reader().probe(unit, erased + kept).tolist() == [False] * 100 + [True] * 100

    def test_a_directory_is_no_artifact_and_one_failure_holds_up_no_other(self) -> None:
        unit, erased, _ = self._filled(3, 2)
        (self.root / unit / "folder").mkdir()
        outcomes = self.open_store().erase(unit, [erased[0], "folder", erased[1]], 1).outcomes
        assert outcomes.tolist() == [Outcome.GONE, Outcome.FAILED, Outcome.GONE]

    def test_an_immutable_file_is_blocked(self) -> None:
        unit, erased, _ = self._filled(3, 2)
        path = self.root / unit / erased[0]
        if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
            pytest.skip("NOT TESTED: this file system or user cannot make a file immutable")
        try:
            outcomes = self.open_store().erase(unit, erased, 1).outcomes
        finally:
            subprocess.run(["chattr", "-i", path], check=True)
        assert outcomes.tolist() == [Outcome.BLOCKED, Outcome.GONE]

    def test_a_scan_that_is_too_large_is_refused_not_cut_short(self) -> None:
        unit, _, _ = self._filled(3, 0)
        reader = LocalReader(str(self.root), "files", scan_bytes=100)
        with pytest.raises(Rejected) as refusal:
            reader.scan(unit, [bytes(range(16))])
        assert refusal.value.code == "scan-too-large"


# --- shards


class TestWebDatasetStore(StoreConformance):
    pause_at = "claimed"
    hostile_units = (*StoreConformance.hostile_units, "x.tar.hidden", "x.tar.state", "x.tar.lock", "x.tar.new-1")

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.numbers = count()

    def open_store(self, crash_point: CrashPoint | None = None) -> WebDatasetStore:
        return WebDatasetStore(str(self.root), "shards", crash_point=crash_point or nowhere)

    def open_reader(self) -> WebDatasetReader:
        return WebDatasetReader(str(self.root), "shards")

    def fresh_unit(self) -> str:
        return f"train/{next(self.numbers):05}.tar"

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        samples = [(k, {"jpg": v, "json": b'{"label": 1}'}) for k, v in artifacts.items()]
        self.open_store().append(unit, samples)

    def read(self, unit: str) -> dict[str, bytes]:
        samples = dict(self.open_reader().read(unit))
        assert all(parts["json"] == b'{"label": 1}' for parts in samples.values())
        return {key: parts["jpg"] for key, parts in samples.items()}

    def locators(self, count: int, start: int = 0) -> list[str]:
        return [f"people/{i:06}" for i in range(start, start + count)]

    def content(self, locator: str) -> bytes:
        return photo(locator)

    def test_survivors_are_copied_raw_whatever_wrote_them(self) -> None:
        self._foreign_shard("x.tar", tarfile.GNU_FORMAT)
        before = self._members("x.tar")
        self.open_store().erase("x.tar", ["b" * 150], 1)
        after = self._members("x.tar")
        assert after == [m for m in before if not m[0].startswith("b")]
        assert [name for name, *_ in after] == ["a.jpg", "a.cls", "c.tar.gz"]

    def test_a_sample_is_all_members_up_to_the_first_dot(self) -> None:
        self._foreign_shard("x.tar", tarfile.PAX_FORMAT)
        assert self.open_reader().probe("x.tar", ["a", "c", "a.jpg", "c.tar"]).tolist() == [True, True, False, False]
        self.open_store().erase("x.tar", ["c"], 1)
        assert "c.tar.gz" not in [name for name, *_ in self._members("x.tar")]

    def test_a_hidden_key_cannot_come_back_before_it_is_erased(self) -> None:
        unit, erased, _ = self._filled(3, 1)
        self.open_store().hide(unit, erased)
        with pytest.raises(Rejected):
            self.insert(unit, self._contents(erased))

    def test_bytes_after_the_end_of_the_archive_go_too(self) -> None:
        unit, _, kept = self._filled(3, 0)
        path = self.root / unit
        path.write_bytes(path.read_bytes() + photo("left by another tool"))
        self.open_store().erase(unit, ["people/absent"], 1)
        assert self.open_reader().scan(unit, [photo("left by another tool")[50:80]]) == [0]
        assert self.read(unit) == self._contents(kept)

    def test_a_damaged_shard_is_left_alone(self) -> None:
        unit, erased, _ = self._filled(6, 2)
        path = self.root / unit
        damaged = bytearray(path.read_bytes())
        damaged[3 * 1024 : 3 * 1024 + 512] = bytes([255]) * 512  # the header of the fourth member
        path.write_bytes(damaged)
        erasure = self.open_store().erase(unit, erased, 1)
        assert erasure.outcomes.tolist() == [Outcome.FAILED] * 2
        assert erasure.residue == (webdataset.NOT_A_TAR,)
        assert path.read_bytes() == damaged

    def test_a_torn_tombstone_hides_nothing(self) -> None:
        unit, erased, kept = self._filled(3, 1)
        self.open_store().hide(unit, erased)
        side = self.root / f"{unit}.hidden"
        side.write_bytes(side.read_bytes()[:-5])
        assert self.read(unit) == self._contents(sorted([*erased, *kept]))
        self.open_store().hide(unit, erased)
        assert self.read(unit) == self._contents(kept)

    def test_no_leftover_stays_after_an_erase(self) -> None:
        unit, erased, _ = self._filled(3, 1)
        leftover = self.root / f"{unit}.new-dead"
        leftover.write_bytes(self.content(erased[0]))
        self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert not leftover.exists()
        assert (self.root / f"{unit}.hidden").read_bytes() == b""

    def _foreign_shard(self, unit: str, tar_format: int) -> None:
        with tarfile.open(self.root / unit, "w", format=tar_format) as tar:
            for name in ("a.jpg", "a.cls", "b" * 150 + ".jpg", "c.tar.gz"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.uname = 200, 1_700_000_000, "someone"
                with (self.root / "one").open("w+b") as content:
                    content.write(photo(name))
                    content.seek(0)
                    tar.addfile(info, content)

    def _members(self, unit: str) -> list[tuple[str, int, str, bytes]]:
        with tarfile.open(self.root / unit) as tar:
            return [(m.name, int(m.mtime), m.uname, _extracted(tar, m)) for m in tar]


def _extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None
    return content.read()


# --- vector indexes in files


class VectorLocators(StoreConformance):
    """Ids in decimal, and contents that are vectors."""

    hostile_locators = (*StoreConformance.hostile_locators, "-1", "07", "1.0", "1e3", "٣", str(1 << 63), "9" * 5000)
    unusual_locators = ()

    def locators(self, count: int, start: int = 0) -> list[str]:
        return [str(i * 7) for i in range(start, start + count)]

    def content(self, locator: str) -> bytes:
        return vector(locator)


@needs_faiss
class TestFaissStore(VectorLocators):
    pause_at = "claimed"
    hostile_units = (*StoreConformance.hostile_units, "x.hidden", "x.new-1")

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.numbers = count()

    def open_store(self, crash_point: CrashPoint | None = None) -> Any:
        from expunge.adapters.stores.faiss import FaissStore

        return FaissStore(str(self.root), "index", crash_point=crash_point or nowhere)

    def open_reader(self) -> Any:
        return table.open_reader(f"faiss://{self.root}", "index")

    def fresh_unit(self) -> str:
        return f"faces/{next(self.numbers)}.index"

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        ids = np.array([int(k) for k in artifacts], dtype=np.int64)
        self.open_store().add(unit, ids, np.array([np.frombuffer(v, "<f4") for v in artifacts.values()]))

    def read(self, unit: str) -> dict[str, bytes]:
        from expunge.adapters.stores.faiss import _hidden_ids

        reader = self.open_reader()
        file = reader._file(unit)
        index = reader._load(file)
        ids = index.ids()
        hidden = set(_hidden_ids(file).tolist())
        return {str(i): v.tobytes() for i, v in zip(ids.tolist(), index.vectors(ids), strict=True) if i not in hidden}

    def test_search_leaves_hidden_vectors_out(self) -> None:
        unit, erased, _ = self._filled(50, 3)
        query = np.array([np.frombuffer(vector(x), "<f4") for x in erased])
        store = self.open_store()
        assert store.search(unit, query, 1)[1][:, 0].tolist() == [int(x) for x in erased]
        store.hide(unit, erased)
        assert not np.isin(store.search(unit, query, 10)[1], [int(x) for x in erased]).any()

    def test_a_hidden_id_cannot_come_back_before_it_is_erased(self) -> None:
        unit, erased, _ = self._filled(3, 1)
        self.open_store().hide(unit, erased)
        with pytest.raises(Rejected):
            self.insert(unit, self._contents(erased))

    def test_adding_an_id_again_replaces_its_vector(self) -> None:
        unit, _, kept = self._filled(3, 0)
        self.insert(unit, {kept[0]: vector("another")})
        assert self.read(unit) == {**self._contents(kept), kept[0]: vector("another")}

    def test_ids_too_large_for_a_bitmap_are_erased_too(self) -> None:
        unit, large = self.fresh_unit(), str((1 << 63) - 1)
        self.insert(unit, {large: vector(large), "1": vector("1")})
        assert self._hide_and_erase(self.open_store(), unit, [large], 1).outcomes.tolist() == [Outcome.GONE]
        assert self.read(unit) == {"1": vector("1")}

    @pytest.mark.parametrize("recipe", ["HNSW8", "IDMap,HNSW8_SQ8", "IVF4,SQ8", "IVF4,PQ4x4", "SQ8"])
    def test_an_index_that_cannot_drop_vectors_is_blocked_and_left_alone(self, recipe: str) -> None:
        import faiss

        from expunge.adapters.stores.faiss import CANNOT_DROP

        index: Any = faiss.index_factory(DIMENSIONS, recipe)
        vectors = np.array([np.frombuffer(vector(str(i)), "<f4") for i in range(700)])
        index.train(vectors)
        index.add_with_ids(vectors, np.arange(700)) if "I" in recipe else index.add(vectors)
        faiss.write_index(index, str(self.root / "x.index"))
        before = (self.root / "x.index").read_bytes()
        erasure = self.open_store().erase("x.index", ["1"], 1)
        assert erasure.outcomes.tolist() == [Outcome.BLOCKED]
        assert erasure.residue == (CANNOT_DROP,)
        assert (self.root / "x.index").read_bytes() == before
        with pytest.raises(Rejected):
            self.open_reader().probe("x.index", ["1"])

    def test_a_centroid_that_is_the_face_is_told(self) -> None:
        from expunge.adapters.stores.faiss import CENTROID

        unit, erased = "tiny.index", ["3"]
        self._ivf(unit, training=8, lists=8)
        needles = self.open_reader().needles(unit, erased)[0]
        erasure = self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert erasure.level == Level.UNREACHABLE
        assert CENTROID in erasure.residue
        assert all(self.open_reader().scan(unit, needles))

    def test_search_in_lists_finds_survivors_after_an_erase(self) -> None:
        self._ivf("ivf.index", training=400, lists=4)
        before = self.read("ivf.index")
        erasure = self._hide_and_erase(self.open_store(), "ivf.index", ["3", "5"], 1)
        assert erasure.level == Level.FILE_ABSENT
        assert self.read("ivf.index") == {k: v for k, v in before.items() if k not in ("3", "5")}
        query = np.frombuffer(before["7"], "<f4").reshape(1, -1)
        assert self.open_store().search("ivf.index", query, 1)[1].tolist() == [[7]]

    def _ivf(self, unit: str, training: int, lists: int) -> None:
        import faiss

        vectors = np.array([np.frombuffer(vector(str(i)), "<f4") for i in range(training)])
        index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(DIMENSIONS), DIMENSIONS, lists)
        index.cp.min_points_per_centroid = 1
        index.train(vectors)
        index.add_with_ids(vectors, np.arange(training))
        self.open_store().create(unit, index)


@needs_faiss
class TestFaissStoreWithLists(TestFaissStore):
    """The same on IVFFlat."""

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        import faiss

        if not (self.root / unit).exists():
            training = np.random.default_rng(5).standard_normal((400, DIMENSIONS)).astype(np.float32)
            index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(DIMENSIONS), DIMENSIONS, 4)
            index.train(training)
            self.open_store().create(unit, index)
        super().insert(unit, artifacts)


@needs_faiss
@pytest.mark.parametrize("mapped", ["IDMap", "IDMap2"])
@pytest.mark.parametrize("gone", [[0], [7, 8, 9, 49], [*range(3, 50)], [*range(50)], [*range(0, 50, 2), 1000]])
def test_a_flat_index_is_rewritten_to_the_bytes_that_the_library_writes(
    gone: list[int], mapped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    from expunge.adapters.stores import faiss as adapter

    monkeypatch.setattr(adapter, "_COPIED_BYTES", 3 * 4 * DIMENSIONS)
    old, new, expected = (str(tmp_path / name) for name in ("old", "new", "expected"))
    index: Any = faiss.index_factory(DIMENSIONS, f"{mapped},Flat", faiss.METRIC_INNER_PRODUCT)
    ids = np.arange(50, dtype=np.int64)
    index.add_with_ids(np.array([np.frombuffer(vector(str(i)), "<f4") for i in ids]), ids)
    faiss.write_index(index, old)
    index.remove_ids(np.array(gone, np.int64))
    faiss.write_index(index, expected)
    made = adapter._without(old, new, np.array(gone, np.int64))
    assert made.changed
    assert made.result.ids.tolist() == [one for one in gone if one < len(ids)]
    assert Path(new).read_bytes() == Path(expected).read_bytes()


# --- PostgreSQL with pgvector


class PgVectorSuite(VectorLocators):
    pause_at = "called"
    hostile_units = (*StoreConformance.hostile_units, "a b", 'a"b', "a;drop table b", "expunge_unit", "A", "pg_class")
    dimensions = DIMENSIONS

    @pytest.fixture(autouse=True)
    def _place(self, database: str) -> Iterator[None]:
        self.dsn = database
        with psycopg.connect(database, autocommit=True) as db:
            try:
                db.execute("CREATE EXTENSION vector")
            except psycopg.errors.FeatureNotSupported:
                pytest.skip("NOT TESTED: this PostgreSQL has no pgvector")
        parts = conninfo_to_dict(database)
        self.url = "pgvector+postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**parts)
        self.reader: Any = table.open_reader(self.url, "vectors")
        self.opened: list[Any] = [self.reader]
        self.numbers = count()
        yield
        for store in self.opened:
            store.close()

    def open_store(self, crash_point: CrashPoint | None = None) -> Any:
        store: Any = table.open_store(self.url, "vectors")
        self.opened.append(store)
        store._crash_point = crash_point or nowhere
        store._settle_seconds = 0.2
        return store

    def open_reader(self) -> Any:
        return self.reader

    def fresh_unit(self) -> str:
        return f"faces_{next(self.numbers)}"

    def content(self, locator: str) -> bytes:
        return vector(locator, self.dimensions)

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        with self._connected() as db:
            if db.execute("SELECT to_regclass(%s)", (unit,)).fetchone() == (None,):
                self.open_store().create_table(unit, self.dimensions)
                self.index(db, unit)
            with db.cursor().copy(f"COPY {unit} FROM STDIN") as copy:
                for locator, content in artifacts.items():
                    copy.write_row((int(locator), str(np.frombuffer(content, "<f4").tolist())))

    def index(self, db: psycopg.Connection[Any], unit: str) -> None:
        """None: other tests make one."""

    def read(self, unit: str) -> dict[str, bytes]:
        with self._connected() as db:
            rows = db.execute(f"SELECT id, embedding::real[] FROM {unit}").fetchall()
        return {str(i): np.array(v, dtype="<f4").tobytes() for i, v in rows}

    def test_the_files_are_read_and_are_this_servers(self) -> None:
        if self.open_reader().capabilities.max_level < Level.FILE_ABSENT:
            pytest.skip("NOT TESTED: byte scans, for this server's files are not readable here")
        assert (Path(self.open_reader()._data_directory) / "PG_VERSION").exists()

    def test_where_the_files_are_not_readable_the_level_says_so(self) -> None:
        unit, erased, _ = self._filled(4, 2)
        store = self.open_store()
        store._data_directory = None
        erasure = self._hide_and_erase(store, unit, erased, 1)
        assert erasure.outcomes.tolist() == [Outcome.GONE] * 2
        assert erasure.level == Level.UNREACHABLE
        with pytest.raises(Rejected):
            store.scan(unit, [bytes(range(16))])

    def test_rows_that_an_open_transaction_still_sees_are_not_called_gone(self) -> None:
        from expunge.adapters.stores.pgvector import STILL_VISIBLE

        unit, erased, kept = self._filled(6, 3)
        with self._connected() as old, old.transaction():
            old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            old.execute(f"SELECT count(*) FROM {unit}")
            erasure = self._hide_and_erase(self.open_store(), unit, erased, 1)
            assert erasure.outcomes.tolist() == [Outcome.OPEN] * 3
            assert erasure.level == Level.UNREACHABLE
            assert STILL_VISIBLE in erasure.residue
        assert self.open_store().erase(unit, erased, 1).outcomes.tolist() == [Outcome.GONE] * 3
        assert self.read(unit) == self._contents(kept)

    def test_a_table_that_stays_locked_is_tried_again_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from expunge.adapters.stores import pgvector
        from expunge.adapters.stores.pgvector import NO_LOCK

        unit, erased, _ = self._filled(6, 3)
        monkeypatch.setattr(pgvector, "_LOCK_TIMEOUT", "100ms")
        store = self.open_store()
        with self._connected() as other, other.transaction():
            other.execute(f"LOCK TABLE {unit} IN SHARE UPDATE EXCLUSIVE MODE")
            erasure = self._hide_and_erase(store, unit, erased, 1)
        assert erasure.outcomes.tolist() == [Outcome.OPEN] * 3
        assert NO_LOCK in erasure.residue

    def test_a_writer_paused_in_a_transaction_is_overtaken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from expunge.adapters.stores import pgvector

        unit, erased, kept = self._filled(6, 3)
        within, overtaken = threading.Event(), threading.Event()

        def paused(step: str) -> None:
            if step == "deleting":
                within.set()
                overtaken.wait(60)

        monkeypatch.setattr(pgvector, "_IDLE_LIMIT", "300ms")
        store = self.open_store(paused)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(store.erase, unit, erased, 1)
            try:
                assert within.wait(60)
                assert self.open_store().erase(unit, erased, 2).outcomes.tolist() == [Outcome.GONE] * 3
            finally:
                overtaken.set()
            with pytest.raises(Retryable):
                first.result(60)
        with pytest.raises(FencedOff):
            store.erase(unit, erased, 1)
        assert self.read(unit) == self._contents(kept)

    def test_a_delete_alone_leaves_the_bytes(self) -> None:
        unit, erased, _ = self._filled(40, 3)
        needles = self._needles(unit, erased)
        self.open_store().hide(unit, erased)
        assert any(self.reader.scan(unit, needles))
        self.open_store().erase(unit, erased, 1)
        assert not any(self.reader.scan(unit, needles))

    def test_the_old_files_are_gone_and_only_the_log_keeps_the_bytes(self) -> None:
        unit, erased, _ = self._filled(40, 3)
        needles = self._needles(unit, erased)
        self._hide_and_erase(self.open_store(), unit, erased, 1)
        data = Path(self.reader._data_directory)
        assert not any(count_needles(map(str, data.glob("base/*/*")), needles))
        assert any(count_needles(map(str, data.glob("pg_wal/0*")), needles)), "then WAL need be no residue"

    def _needles(self, unit: str, locators: list[str]) -> list[bytes]:
        if self.reader.capabilities.max_level < Level.FILE_ABSENT:
            pytest.skip("NOT TESTED: byte scans, for this server's files are not readable here")
        return [n for found in self.reader.needles(unit, locators) for n in found]

    def _connected(self) -> Any:  # composed statements are no literals, so the connection goes untyped
        return psycopg.connect(self.dsn, autocommit=True)


class TestPgVectorStore(PgVectorSuite):
    """Short vectors stand in the table itself, and are small enough to be copied into statistics."""

    def test_the_planners_statistics_keep_no_vector(self) -> None:
        unit, erased, _ = self._filled(60, 30)
        with self._connected() as db:
            db.execute(f"ALTER TABLE {unit} ALTER COLUMN embedding SET STATISTICS 100")
            db.execute(f"ANALYZE {unit}")
        needles = self._needles(unit, erased)
        assert max(self.reader.scan(unit, needles)) > 1, "the trap is not set: statistics hold no vector"
        erasure = self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert erasure.level == Level.FILE_ABSENT
        assert not any(self.reader.scan(unit, needles))

    def test_a_plain_vacuum_leaves_the_vector_in_the_index_and_an_erase_does_not(self) -> None:
        unit, erased, _ = self._filled(10_000, 1)
        with self._connected() as db:
            db.execute(f"CREATE INDEX ON {unit} USING hnsw (embedding vector_l2_ops) WITH (m = 4, ef_construction = 8)")
            needles = self._needles(unit, erased)
            self.open_store().hide(unit, erased)
            db.execute(f"VACUUM {unit}")
        assert any(self.reader.scan(unit, needles)), "the trap is not set: VACUUM did not pass the index over"
        self.open_store().erase(unit, erased, 1)
        assert not any(self.reader.scan(unit, needles))


class TestPgVectorStoreOutOfLine(PgVectorSuite):
    """Vectors in TOAST, and an index of cosine distance, which keeps unit vectors."""

    dimensions = 768
    many = 300

    def index(self, db: psycopg.Connection[Any], unit: str) -> None:
        db.execute(f"CREATE INDEX ON {unit} USING hnsw (embedding vector_cosine_ops)")


# --- byte scans


@pytest.mark.parametrize("number", [3, 40])
def test_needles_are_counted_across_chunks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("expunge.adapters.stores._SCAN_CHUNK", 64)
    needles = [photo(f"n{i}")[:20] for i in range(number)]
    files = []
    for i, needle in enumerate(needles):
        content = bytes(i * 7) + needle + photo(f"between{i}") + needle + b"\0"
        files.append(tmp_path / str(i))
        files[-1].write_bytes(content)
    counts = count_needles([*map(str, files), str(tmp_path / "vanished")], [*needles, b"\1" * 16, needles[0]])
    assert counts == [2] * len(needles) + [0, 2]


@given(
    content=st.lists(st.sampled_from([b"\0", b"\1", b"ab", b"abc", b"\xff\0"]), max_size=120).map(b"".join),
    cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(4, 12)), min_size=5, max_size=12),
    chunk=st.integers(1, 64),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_are_those_of_a_naive_search(
    tmp_path: Path, content: bytes, cuts: list[tuple[int, int]], chunk: int
) -> None:
    """Overlapping occurrences too, at every alignment, across chunks, and whether or not a needle is anchored."""
    every = [bytes(7), b"\1" * 8, *(content[at : at + width] for at, width in cuts)]
    needles = [one for one in every if len(one) >= 4]
    file = tmp_path / "file"
    file.write_bytes(content)
    naive = {needle: sum(content.startswith(needle, at) for at in range(len(content))) for needle in needles}
    anchored = [needle for needle in naive if len(needle) >= 7]
    more = [bytes([n]) * 7 for n in range(9, 14)]
    with patch("expunge.adapters.stores._SCAN_CHUNK", chunk):
        assert count_needles([str(file)], needles) == [naive[one] for one in needles]
        assert count_needles([str(file)], [*anchored, *more]) == [*(naive[one] for one in anchored), *[0] * 5]


# --- the table


def test_an_unknown_scheme_names_what_there_is() -> None:
    with pytest.raises(Misconfigured, match=r"faiss, faiss\+s3, file, memory, parquet"):
        table.open_store("s4:///x", "x")
    with pytest.raises(Misconfigured, match="scheme"):
        table.open_reader("/data/images", "x")


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    monkeypatch.setattr(table, "import_module", missing)
    with pytest.raises(Misconfigured, match=r"pip install 'expunge\[faiss\]'"):
        table.open_store("faiss:///x", "x")


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("plug", "expunge.adapters.stores.memory", table.ENTRY_POINTS)
    monkeypatch.setattr(table, "entry_points", lambda **_: EntryPoints([point]))
    assert isinstance(table.open_store("plug:x", "x"), MemoryStore)


@pytest.mark.parametrize("url", ["file://host/x", "file:relative", "wds:///does/not/exist"])
def test_a_url_that_names_no_directory_here_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured):
        table.open_store(url, "x")


@needs_faiss
@settings(deadline=None, max_examples=20)
@given(ids=st.lists(st.integers(0, 400_000), max_size=8), base=st.sampled_from([0, 2**62]), dense=st.booleans())
def test_which_ids_are_among_others_is_what_numpy_says(ids: list[int], base: int, *, dense: bool) -> None:
    from expunge.adapters.stores.faiss import _among

    others = np.arange(3, 200_003, dtype=np.int64) if dense else np.array([5, 399_999, *ids[::2]], np.int64)
    asked = np.array([*ids, *range(150_000, 230_000), 2, 3], np.int64)
    assert (_among(asked + base, others + base) == np.isin(asked, others)).all()
    assert not _among(asked, np.zeros(0, np.int64)).any()
    assert not len(_among(np.zeros(0, np.int64), others))


@needs_faiss
def test_tombstones_of_many_ids_lead_back_to_them() -> None:
    from expunge.adapters.stores.faiss import _as_ids, _tokens
    from expunge.adapters.stores.tombstones import Tombstones

    ids = np.arange(2**40, 2**40 + 140_000, dtype=np.int64)
    tokens = _tokens(ids)
    assert (_as_ids(tokens) == ids).all()
    lines = bytes(tokens.lines())
    assert lines == b"\n" + b"".join(b"%016x\n" % one for one in ids.tolist())
    assert Tombstones.read(lines, 16).packed == Tombstones.read(lines[1:], 16).packed == tokens.packed
    assert Tombstones.read(lines[:-1] + b"x\n", 16).packed == tokens.packed[:-16]
    assert Tombstones(b"", 16).lines() == b"\n"
