"""Catalogue import: Parquet or CSV files, one row per artifact, all of them or nothing, in one transaction.

Columns: source, key, subjects, digest, acquired_on, kind, store, unit, locator, purposes, artifact_digest (may be
empty). Lists are `|`-separated in CSV, lists or the same in Parquet; digests are hex. Rows of one image need not be
adjacent. Memory is bounded by the page. What suppression refuses is counted and left out; any other fault refuses the
whole import, by file and line, without the value.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID, uuid5

from pydantic import TypeAdapter, ValidationError

from expunge.domain import statement
from expunge.domain.errors import Rejected
from expunge.domain.leaf import NO_DIGEST
from expunge.domain.lineage import LOCATOR_CHARS, ImageKey, StoreName
from expunge.domain.request import SUBJECT_REF, Purposes, SourceName, SubjectRef
from expunge.domain.words import Kind
from expunge.ports import Ledger
from expunge.record import NAMESPACE, log
from expunge.stages.register.registrar import Offer, OfferedArtifact, Registrar

COLUMNS: Final = (
    "source", "key", "subjects", "digest", "acquired_on", "kind", "store", "unit", "locator", "purposes",
    "artifact_digest",
)  # fmt: skip
SEPARATOR: Final = "|"
PAGE_ROWS: Final = 20_000
REPORTED: Final = 1_000
"""Most bad rows reported."""

_KINDS: Final = frozenset(kind.value for kind in Kind if kind is not Kind.MODEL)
_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_IMAGE_SUBJECTS: Final = 16

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""
Row = tuple[Any, ...]
"""Values in the order of `COLUMNS`."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """`line`: as an editor counts in CSV (the header is 1); in Parquet, the row from 1."""

    file: int
    line: int
    code: str


class ImportRefused(Rejected):
    """Nothing was loaded: `rows` says why, the first thousand."""

    def __init__(self, rows: Sequence[BadRow]) -> None:
        super().__init__("bad-rows", f"expected rows that can be taken, got {len(rows)} or more that cannot")
        self.rows = tuple(rows)


@dataclass(frozen=True, slots=True)
class Imported:
    """`codes`: images and artifacts left out, by reason. `repeated`: files that were imported before, byte by byte."""

    images: int
    artifacts: int
    codes: dict[str, int]
    repeated: int


class _Image(NamedTuple):
    source: str
    key: str
    subjects: tuple[str, ...]
    digest: bytes
    acquired_on: date

    def offer(self, batch: int, line: int, artifacts: list[OfferedArtifact]) -> Offer:
        return Offer(batch, self.source, self.key, self.subjects, self.digest, self.acquired_on, artifacts, line=line)


@dataclass(slots=True)
class _Reader:
    """Rows of all files, as offers; bad rows are kept aside."""

    bad: list[BadRow] = field(default_factory=list)

    def offers(self, number: int, batch: int, rows: Iterator[tuple[int, Row]]) -> Iterator[Offer]:
        """Adjacent rows of one image make one offer."""
        head: _Image | None = None
        first = 0
        artifacts: list[OfferedArtifact] = []
        for line, row in rows:
            try:
                here, artifact = _read(row)
            except Rejected as error:
                if len(self.bad) < REPORTED:
                    self.bad.append(BadRow(number, line, error.code))
                continue
            if here != head:
                if head is not None:
                    yield head.offer(batch, _place(number, first), artifacts)
                head, first, artifacts = here, line, []
            artifacts.append(artifact)
        if head is not None:
            yield head.offer(batch, _place(number, first), artifacts)


async def import_files(
    ledger: Ledger, registrar: Registrar, files: Sequence[Path], *, at: datetime, progress: Progress | None = None
) -> Imported:
    """Load all files or none. Raises `ImportRefused`, `Rejected("malformed")` for what is no such file."""
    at = statement.instant(at)
    measured = [_measure(file) for file in files]
    total = sum(rows for _, rows in measured)
    reader = _Reader()
    done = 0
    async with ledger.transaction() as tx:
        load = await registrar.open(tx)
        ids = [batch_id for batch_id, _ in measured]
        known = {row[0] for row in await tx.fetch("register_batches_known", ids=ids)}
        taken = [at for at, batch_id in enumerate(ids) if batch_id not in known and ids.index(batch_id) == at]
        for batch, number in enumerate(taken):
            offers = reader.offers(number, batch, _rows(files[number]))
            while page := list(islice(offers, PAGE_ROWS)):
                await load.stage(page if not reader.bad else [])
                done += sum(len(offer.artifacts) for offer in page)
                if progress:
                    progress(min(done, total), total)
        if reader.bad:
            raise ImportRefused(reader.bad)
        if not taken:
            return Imported(0, 0, {}, len(files))
        settled = await load.settle([ids[number] for number in taken], at)
        faults = [(line, code) for line, code in await load.refused_lines(REPORTED) if code != "suppressed"]
        if faults:
            raise ImportRefused([BadRow(line >> _LINE_BITS, line & _LINE_MASK, code) for line, code in faults])
        await load.record(settled, await log(tx, settled.entries), at)
    codes: dict[str, int] = {}
    for one in settled.taken:
        for code, count in one.codes.items():
            codes[code] = codes.get(code, 0) + count
    images, artifacts = sum(one.images for one in settled.taken), sum(one.artifacts for one in settled.taken)
    return Imported(images, artifacts, codes, len(files) - len(taken))


_LINE_BITS: Final = 40
_LINE_MASK: Final = (1 << _LINE_BITS) - 1


def _place(number: int, line: int) -> int:
    return number << _LINE_BITS | line


def _measure(file: Path) -> tuple[UUID, int]:
    """A batch id from the file's bytes, so that a repeat is recognised, and its rows."""
    digest, lines = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
    batch_id = uuid5(NAMESPACE, f"import:{digest.hexdigest()}")
    return batch_id, _parquet(file).metadata.num_rows if file.suffix == ".parquet" else max(lines - 1, 0)


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of one file."""
    return _parquet_rows(file) if file.suffix == ".parquet" else _csv_rows(file)


def _csv_rows(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open(encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        try:
            header = next(lines, [])
            places = _places(header)
            last = len(header)
            for row in lines:
                yield lines.line_num, tuple(row[at] for at in places) if len(row) == last else ()
        except (csv.Error, UnicodeDecodeError) as error:
            raise Rejected("malformed", "expected CSV in UTF-8") from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Row]]:
    parquet = _parquet(file)
    _places(parquet.schema_arrow.names)
    line = 0
    for batch in parquet.iter_batches(PAGE_ROWS, columns=list(COLUMNS)):
        columns = [batch.column(name).to_pylist() for name in COLUMNS]
        for row in zip(*columns, strict=True):
            line += 1
            yield line, row


def _parquet(file: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except ArrowException as error:
        raise Rejected("malformed", "expected a Parquet file") from error


def _places(header: Sequence[str]) -> list[int]:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise Rejected("malformed", f"expected columns {', '.join(COLUMNS)}, without {', '.join(missing)}")
    return [list(header).index(name) for name in COLUMNS]


def _read(row: Row) -> tuple[_Image, OfferedArtifact]:
    """A row's image (source, key, subjects, digest, acquired_on) and its artifact. Raises `Rejected` with a code."""
    if len(row) != len(COLUMNS):
        raise Rejected("bad-columns", "expected as many values as columns")
    source, key, subjects, digest, acquired_on, kind, store, unit, locator, purposes, own = row
    if not _name("source", source):
        raise Rejected("bad-source", "expected a source name")
    if not _valid("key", key):
        raise Rejected("bad-key", "expected an image key")
    people = _listed(subjects)
    if len(people) > _IMAGE_SUBJECTS or len(set(people)) != len(people) or not all(map(_subject, people)):
        raise Rejected("bad-subjects", "expected subject references, none twice")
    if kind not in _KINDS:
        raise Rejected("bad-kind", "expected a kind of artifact")
    if not _name("store", store):
        raise Rejected("bad-store", "expected a store name")
    if not _place_ok(unit) or not _place_ok(locator):
        raise Rejected("bad-place", "expected a unit and a locator")
    names = _listed(purposes)
    if not _purposes(names):
        raise Rejected("bad-purposes", "expected one or more purposes, none twice")
    artifact = OfferedArtifact(kind, store, unit, locator, names, _digest(own) if own else NO_DIGEST)
    return _Image(source, key, people, _digest(digest), _day(acquired_on)), artifact


def _listed(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return tuple(value.split(SEPARATOR)) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type] # checked next


def _digest(value: object) -> bytes:
    if isinstance(value, bytes) and len(value) == len(NO_DIGEST):
        return value
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise Rejected("bad-digest", "expected SHA-256 in lower-case hex")
    return bytes.fromhex(value)


@lru_cache(4096)
def _day(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise Rejected("bad-day", "expected a calendar day")


def _place_ok(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LOCATOR_CHARS and "\0" not in value


_ADAPTERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "source": TypeAdapter(SourceName),
    "key": TypeAdapter(ImageKey),
    "store": TypeAdapter(StoreName),
    "purposes": TypeAdapter(Purposes),
    "subject": TypeAdapter(Annotated[SubjectRef, SUBJECT_REF]),
}


def _valid(what: str, value: object) -> bool:
    try:
        _ADAPTERS[what].validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@lru_cache(4096)
def _name(what: str, value: object) -> bool:
    return _valid(what, value)


@lru_cache(4096)
def _purposes(names: tuple[str, ...]) -> bool:
    return _valid("purposes", names)


@lru_cache(65_536)
def _subject(value: object) -> bool:
    return _valid("subject", value)
