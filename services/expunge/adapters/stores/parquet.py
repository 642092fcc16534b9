"""`parquet:///dir?key=COLUMN`, `parquet+s3://bucket/prefix?key=COLUMN`: a unit is a Parquet file, a locator the value of
its key column (`key` by default), as text.

A row group cannot lose a row in place, so the file is written anew, with its schema, row group sizes and compression.
Dictionaries are built anew too: a filtered Arrow dictionary keeps values that no row uses, and Parquet would write them.
`append` and `read` are for the product: `read` leaves hidden rows out. Extra `import` (pyarrow).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.adapters.stores import CrashPoint, Rewrite, nowhere, windows
from expunge.adapters.stores.rows import Damaged, RowReader, RowStore, refuse_hidden, token
from expunge.adapters.stores.units import LocalFiles, UnitFiles, files_of, refuse_rest
from expunge.domain.errors import Misconfigured, Rejected, Retryable

NOT_PARQUET: Final = "the file is no sound Parquet file with the key column: nothing in it was changed"

_NEEDLE_BYTES: Final = 32


class NotParquet(Damaged):
    """The file is not Parquet, or has no such key column."""

    def __init__(self, got: str) -> None:
        super().__init__("not-parquet", f"expected a sound Parquet file with the store's key column, got {got}")


class ParquetReader(RowReader):
    def __init__(self, root: str | UnitFiles, name: str, key: str = "key") -> None:
        super().__init__(_place(root), name, ParquetRows(key))
        self._column = key

    def read(self, unit: str) -> Iterator[dict[str, Any]]:
        """The rows that are not hidden, in the file's order."""
        file = self._file(unit)
        hidden = file.hidden()
        with file.reading() as path, _opened(path) as parquet:
            for batch in parquet.iter_batches():
                yield from (row for row in batch.to_pylist() if token(str(row[self._column])) not in hidden)


class ParquetStore(RowStore, ParquetReader):
    """`append` refuses a key that is hidden."""

    def __init__(
        self, root: str | UnitFiles, name: str, key: str = "key", *, crash_point: CrashPoint = nowhere
    ) -> None:
        RowStore.__init__(self, _place(root), name, ParquetRows(key), crash_point=crash_point)
        self._column = key

    def append(self, unit: str, rows: Sequence[Mapping[str, Any]], *, schema: Any = None) -> None:  # noqa: ANN401
        """Add rows. A missing file is made, of `schema` or of what the rows look like."""

        def with_them(old: str | None, hidden: AbstractSet[str], new: str) -> None:
            for row in rows:
                refuse_hidden(str(row[self._column]), hidden)
            before = _table(old) if old is not None else None
            added = pa.Table.from_pylist(list(rows), schema=schema if before is None else before.schema)
            pq.write_table(added if before is None else pa.concat_tables([before, added]), new)

        self._file(unit).replace(with_them)


class ParquetRows:
    """The format: rows by the text of a key column."""

    method = "rewrite of the Parquet file"
    damaged = NOT_PARQUET

    def __init__(self, key: str) -> None:
        self._key = key

    def refuse_hostile(self, locators: Sequence[str]) -> None:
        for one in locators:
            if "\0" in one or not {"", ".", ".."}.isdisjoint(one.split("/")):
                raise Rejected("hostile-locator", "expected the key of a row, got an empty or dotted path or a NUL")

    def keys(self, path: str) -> frozenset[str]:
        with _opened(path) as parquet:
            return frozenset(one for group in self._groups(parquet) for one in group)

    def needles(self, path: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Of the largest value of the row that is bytes, text or numbers in a list. What the file compresses is in no
        window: what is counted before says so."""
        wanted, found = frozenset(locators), dict.fromkeys(locators, b"")
        with _opened(path) as parquet:
            for number, names in enumerate(self._groups(parquet)):
                at = [n for n, one in enumerate(names) if one in wanted]
                if at:
                    for n, row in zip(at, parquet.read_row_group(number).take(at).to_pylist(), strict=True):
                        found[names[n]] = max((_bytes(value) for value in row.values()), key=len)
        return [
            windows(len(found[one]), lambda at, width, content=found[one]: content[at : at + width], _NEEDLE_BYTES)  # type: ignore[misc]
            for one in locators
        ]

    def without(self, old: str, new: str, wanted: frozenset[str]) -> Rewrite[frozenset[str]]:
        with _opened(old) as parquet:
            kept: list[list[str]] = []
            gone: set[str] = set()
            for names in self._groups(parquet):
                gone.update(wanted.intersection(names))
                kept.append([one for one in names if one not in wanted])
            if not gone:
                return Rewrite(changed=False, result=frozenset())
            self._write(parquet, new, wanted)
        with _opened(new) as written:
            left = [one for group in self._groups(written) for one in group]
        if left != [one for names in kept for one in names]:
            raise Retryable("the new file does not hold exactly the survivors; the old one was left in place")
        return Rewrite(changed=True, result=frozenset(gone))

    def _write(self, parquet: Any, new: str, wanted: frozenset[str]) -> None:  # noqa: ANN401
        schema = parquet.schema_arrow
        if any(_nested_dictionary(field.type) for field in schema):
            raise NotParquet("a dictionary inside another type, which cannot be built anew")
        with pq.ParquetWriter(new, schema, compression=_compression(parquet.metadata)) as writer:
            for number, names in enumerate(self._groups(parquet)):
                stay = pa.array([one not in wanted for one in names], pa.bool_())
                group = parquet.read_row_group(number).filter(stay)
                if group.num_rows:
                    writer.write_table(_fresh(group), row_group_size=group.num_rows)

    def _groups(self, parquet: Any) -> Iterator[list[str]]:  # noqa: ANN401
        """The keys of each row group, in order."""
        if self._key not in parquet.schema_arrow.names:
            raise NotParquet("another")
        for number in range(parquet.num_row_groups):
            column = parquet.read_row_group(number, columns=[self._key]).column(0)
            yield [str(one) for one in column.to_pylist()]


def open_store(url: str, name: str) -> ParquetStore:
    files, rest = files_of(url, erasing=True)
    return ParquetStore(files, name, _key(rest))


def open_reader(url: str, name: str) -> ParquetReader:
    files, rest = files_of(url, erasing=False)
    return ParquetReader(files, name, _key(rest))


def _key(rest: dict[str, str]) -> str:
    key = rest.pop("key", "key")
    refuse_rest(rest)
    if not key:
        raise Misconfigured("expected key=COLUMN in a Parquet store's URL")
    return key


def _place(root: str | UnitFiles) -> UnitFiles:
    return LocalFiles(root) if isinstance(root, str) else root


def _opened(path: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    if os.path.getsize(path) == 0:
        raise NotParquet("an empty file")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise NotParquet("another") from None
    except OSError as e:
        if e.errno is not None:  # the operating system's own
            raise
        raise NotParquet("a damaged footer") from None


def _table(path: str) -> Any:  # noqa: ANN401
    with _opened(path) as parquet:
        return parquet.read()


def _fresh(table: Any) -> Any:  # noqa: ANN401
    """With dictionaries of the values that are used."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = pc.cast(table.column(number), field.type.value_type)
            table = table.set_column(number, field, pc.cast(plain.dictionary_encode(), field.type))
    return table.combine_chunks()


def _nested_dictionary(kind: Any) -> bool:  # noqa: ANN401
    inner = [kind.field(n).type for n in range(kind.num_fields)]
    return any(pa.types.is_dictionary(one) or _nested_dictionary(one) for one in inner)


def _compression(metadata: Any) -> dict[str, str] | str:  # noqa: ANN401
    if metadata.num_row_groups == 0:
        return "NONE"
    group = metadata.row_group(0)
    columns = (group.column(n) for n in range(group.num_columns))
    return {one.path_in_schema: "NONE" if one.compression == "UNCOMPRESSED" else one.compression for one in columns}


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - any value of a row
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case dict():
            return max((_bytes(one) for one in value.values()), key=len, default=b"")
        case [float(), *_]:
            return bytes(pa.array(value, pa.float32()).buffers()[1])[: 4 * len(value)]
        case _:
            return b""
