"""Catalogue import: whole files or nothing."""

from __future__ import annotations

import csv
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.domain import suppression
from expunge.domain.errors import Rejected
from expunge.stages.register import Registrar, bulk
from expunge.stages.register.bulk import COLUMNS, ImportRefused, import_files
from tests.lineage import AT, KEY, REGISTRAR, Catalogue, digest, image, images, source, subject


@pytest.fixture
async def catalogue(database: str) -> AsyncIterator[Catalogue]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    found = Catalogue(database, ledger)
    await found.take(source("studio"), source("partner"))
    yield found
    await ledger.close()


def registrar(catalogue: Catalogue) -> Registrar:
    return Registrar(keys=catalogue.keys, signer=REGISTRAR, suppression_key=KEY)


def row(key: str, /, *people: int, **changes: Any) -> dict[str, str]:
    return {
        "source": "studio", "key": key, "subjects": "|".join(map(subject, people)), "digest": digest(key),
        "acquired_on": "2020-01-02", "kind": "image", "store": "photos", "unit": "images", "locator": f"{key}.jpg",
        "purposes": "training|account", "artifact_digest": digest(key), **changes,
    }  # fmt: skip


def write(path: Path, rows: Iterable[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="") as stream:
        out = csv.DictWriter(stream, columns, extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    return path


async def test_csv_and_parquet_load_alike_and_a_file_is_taken_once(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = [row("a", 1, 2), row("a", 1, 2, kind="embedding", locator="7", artifact_digest=""), row("b", 2)]
    rows.append(row("a", 1, 2, kind="derivative", locator="a-small.jpg"))  # not beside its image
    text = write(tmp_path / "one.csv", rows)
    table = pa.Table.from_pylist(
        [
            {**one, "source": "partner", "purposes": one["purposes"].split("|"), "subjects": one["subjects"].split("|")}
            for one in rows
        ]
    )
    pq.write_table(table, tmp_path / "two.parquet")
    seen: list[tuple[int, int]] = []
    loaded = await import_files(
        catalogue.ledger, registrar(catalogue), [text, tmp_path / "two.parquet"], at=AT,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (loaded.images, loaded.artifacts, loaded.codes, loaded.repeated) == (4, 8, {}, 0)
    assert seen[-1] == (8, 8)
    assert catalogue.sql("select count(*) from image_subject") == [(6,)]
    assert sorted(catalogue.sql("select kind, count(*) from artifact group by 1")) == [
        ("derivative", 2),
        ("embedding", 2),
        ("image", 4),
    ]
    (said,) = catalogue.logged()
    assert (said.leaves, said.images) == (8, 4)
    again = await import_files(catalogue.ledger, registrar(catalogue), [text, text], at=AT)
    assert (again.images, again.repeated) == (0, 2)


async def test_units_are_numbered_as_their_first_images_are(catalogue: Catalogue, tmp_path: Path) -> None:
    names = [f"u{(7 * number) % 100:02d}" for number in range(100)]
    rows = [row(f"k{number:03d}", unit=names[number // 2]) for number in range(200)]
    await import_files(catalogue.ledger, registrar(catalogue), [write(tmp_path / "one.csv", rows)], at=AT)
    found = catalogue.sql(
        "select u.name from artifact a join unit u using (unit_no) group by u.unit_no, u.name order by u.unit_no"
    )
    assert [name for (name,) in found] == names


async def test_bad_rows_are_named_by_line_and_reason_and_nothing_is_loaded(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    bad = [
        ("bad-source", {"source": "No Such"}), ("bad-key", {"key": ""}), ("bad-subjects", {"subjects": "x|y"}),
        ("bad-digest", {"digest": "zz"}), ("bad-day", {"acquired_on": "2020-13-01"}), ("bad-kind", {"kind": "model"}),
        ("bad-store", {"store": "?"}), ("bad-place", {"unit": ""}), ("bad-purposes", {"purposes": ""}),
        ("bad-digest", {"artifact_digest": "0"}),
    ]  # fmt: skip
    file = write(tmp_path / "bad.csv", [row("fine"), *(row(f"x{at}", **change) for at, (_, change) in enumerate(bad))])
    with file.open("a") as stream:
        stream.write("too,short\n")
    with pytest.raises(ImportRefused) as refused:
        await import_files(catalogue.ledger, registrar(catalogue), [file], at=AT)
    assert [(one.line, one.code) for one in refused.value.rows] == [
        *((at, code) for at, (code, _) in enumerate(bad, start=3)),
        (13, "bad-columns"),
    ]
    assert "No Such" not in str(refused.value)
    assert catalogue.sql("select count(*) from image") == [(0,)]


async def test_rows_that_do_not_fit_the_catalogue_refuse_the_import(catalogue: Catalogue, tmp_path: Path) -> None:
    await catalogue.take(images(image("known")))
    file = write(
        tmp_path / "one.csv",
        [row("x"), row("y", source="nowhere"), row("known"), row("x", digest=digest("other"), kind="derivative")],
    )
    with pytest.raises(ImportRefused) as refused:
        await import_files(catalogue.ledger, registrar(catalogue), [file], at=AT)
    assert [(one.line, one.code) for one in refused.value.rows] == [
        (3, "unknown-source"),
        (4, "duplicate-image"),
        (5, "duplicate-image"),
    ]
    assert catalogue.sql("select count(*) from image") == [(1,)]


async def test_what_is_suppressed_is_left_out_and_counted(catalogue: Catalogue, tmp_path: Path) -> None:
    mac = suppression.mac(KEY, "subject", "*", subject(7).encode())
    catalogue.sql("insert into suppressed_subject (mac) values (%s)", mac)
    file = write(tmp_path / "one.csv", [row("x", 7), row("y", 1)])
    loaded = await import_files(catalogue.ledger, registrar(catalogue), [file], at=AT)
    assert (loaded.images, loaded.codes) == (1, {"suppressed": 1})


@pytest.mark.parametrize("content", [b"", b"source,key\n", b"\xff\xfe\n"])
async def test_files_of_another_shape_are_refused(catalogue: Catalogue, tmp_path: Path, content: bytes) -> None:
    for name in ("x.csv", "x.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Rejected) as refused:
            await import_files(catalogue.ledger, registrar(catalogue), [tmp_path / name], at=AT)
        assert refused.value.code == "malformed"


async def test_roots_are_cut_so_that_memory_stays_bounded(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.stages.register.registrar.ROOT_LEAVES", 3)
    monkeypatch.setattr(bulk, "PAGE_ROWS", 2)
    rows = [one for at in range(4) for one in (row(f"x{at}"), row(f"x{at}", kind="derivative"))]
    await import_files(catalogue.ledger, registrar(catalogue), [write(tmp_path / "a.csv", rows)], at=AT)
    assert [(one.leaves, one.images) for one in catalogue.logged()] == [(3, 2), (3, 1), (2, 1)]
    assert catalogue.sql("select max(log_index) from registration_batch") == [(2,)]


@pytest.mark.slow
async def test_three_hundred_thousand_rows_take_seconds(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = (
        row(f"x{at}", at % 50_000, kind=kind, locator=f"{at}")
        for at in range(100_000)
        for kind in ("image", "derivative", "embedding")
    )
    file = write(tmp_path / "many.csv", rows)
    started = time.perf_counter()
    loaded = await import_files(catalogue.ledger, registrar(catalogue), [file], at=AT)
    took = time.perf_counter() - started
    assert (loaded.images, loaded.artifacts) == (100_000, 300_000)
    assert took < 120  # measured on two busy cores; the bound only catches what is quadratic
    print(f"{took:.1f} s")
