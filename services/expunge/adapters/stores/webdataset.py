"""`wds:///dir`, `wds+s3://bucket/prefix`: a unit is a WebDataset shard (a plain tar), a locator a sample key: all members whose
name up to the first dot of its last part is the key.

Survivors are copied as raw bytes, never re-encoded. A shard is always replaced as a whole, so readers never see half of
one. `write_shard`, `append` and `read` are for the product and the trainer: `read` leaves hidden samples out.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import BinaryIO, Final

from expunge.adapters.stores import CrashPoint, Rewrite, nowhere, windows
from expunge.adapters.stores.rows import Damaged, RowReader, RowStore, refuse_hidden, token
from expunge.adapters.stores.units import LocalFiles, UnitFiles, files_of, refuse_rest
from expunge.domain.errors import Rejected, Retryable

NOT_A_TAR: Final = "the shard is no sound plain tar: nothing in it was changed"

_NEEDLE_BYTES: Final = 32
_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_KEY: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.[^/]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """`start` to `end` is everything of it in the file, long-name headers and padding included."""

    key: str
    extension: str
    start: int
    data: int
    size: int
    end: int


@dataclass(frozen=True, slots=True)
class Listing:
    """`end`: where the archive ends; what the file holds after it no reader sees, but a scan does."""

    members: list[Member]
    end: int


class NotATar(Damaged):
    """The shard is not a sound plain tar."""

    def __init__(self, got: str) -> None:
        super().__init__("not-a-tar", f"expected a sound plain tar as the shard, got {got}")


class WebDatasetReader(RowReader):
    def __init__(self, root: str | UnitFiles, name: str) -> None:
        super().__init__(_place(root), name, Shards())

    def read(self, shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The samples that are not hidden, in the shard's order: (key, {extension: content})."""
        file = self._file(shard)
        hidden = file.hidden()
        with file.reading() as path, open(path, "rb") as tar:
            for key, members in groupby(_list(tar).members, key=lambda m: m.key):
                if token(key) not in hidden:
                    yield key, {m.extension: os.pread(tar.fileno(), m.size, m.data) for m in members}


class WebDatasetStore(RowStore, WebDatasetReader):
    """`append` refuses a key that is hidden."""

    def __init__(self, root: str | UnitFiles, name: str, *, crash_point: CrashPoint = nowhere) -> None:
        RowStore.__init__(self, _place(root), name, Shards(), crash_point=crash_point)

    def write_shard(self, shard: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        """A new shard, or a new one in its place."""
        held = list(samples)
        self._file(shard).replace(lambda _, hidden, new: _write(new, None, _refusing(hidden, held)))

    def append(self, shard: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        held = list(samples)
        self._file(shard).replace(lambda old, hidden, new: _write(new, old, _refusing(hidden, held)))


class Shards:
    """The format: plain tar, samples by key."""

    method = "rewrite of the shard"
    damaged = NOT_A_TAR

    def refuse_hostile(self, locators: Sequence[str]) -> None:
        _refuse_hostile_keys(locators)

    def keys(self, path: str) -> frozenset[str]:
        with open(path, "rb") as tar:
            return frozenset(m.key for m in _list(tar).members)

    def needles(self, path: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        with open(path, "rb") as tar:
            largest: dict[str, Member] = {}
            for member in _list(tar).members:
                if member.key not in largest or member.size > largest[member.key].size:
                    largest[member.key] = member
            return [_needles(tar.fileno(), largest.get(key)) for key in locators]

    def without(self, old: str, new: str, wanted: frozenset[str]) -> Rewrite[frozenset[str]]:
        with open(old, "rb") as before:
            listing = _list(before)
            gone = frozenset(m.key for m in listing.members) & wanted
            if not gone and not _has_junk(before.fileno(), listing.end):
                return Rewrite(changed=False, result=gone)
            with open(new, "wb") as after:
                for start, end in _kept(listing, gone):
                    _copy(before.fileno(), after.fileno(), start, end)
                after.write(_end_of_archive(os.lseek(after.fileno(), 0, os.SEEK_CUR)))
            _verify(new, [m for m in listing.members if m.key not in gone])
            return Rewrite(changed=True, result=gone)


def open_store(url: str, name: str) -> WebDatasetStore:
    files, rest = files_of(url, erasing=True)
    refuse_rest(rest)
    return WebDatasetStore(files, name)


def open_reader(url: str, name: str) -> WebDatasetReader:
    files, rest = files_of(url, erasing=False)
    refuse_rest(rest)
    return WebDatasetReader(files, name)


def _place(root: str | UnitFiles) -> UnitFiles:
    return LocalFiles(root) if isinstance(root, str) else root


def _refuse_hostile_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise Rejected("hostile-locator", "expected a sample key, got an empty, absolute or dotted path or a NUL")


def _key_of(member: str) -> tuple[str, str]:
    match = _KEY.fullmatch(member)
    key = match[1] if match else member
    return key, member[len(key) + 1 :]


def _list(file: BinaryIO) -> Listing:
    """Every member with its place. A damaged header in the middle is an error: `tarfile` takes it for the end, and a
    rewrite would lose what follows."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return Listing([], 0)
    try:
        listing = _read_headers(file)
    except tarfile.TarError as e:
        raise NotATar("unreadable headers") from e
    if listing.end > size or os.pread(file.fileno(), _BLOCK, listing.end).strip(b"\0"):
        raise NotATar("a damaged header or a short file")
    return listing


def _read_headers(file: BinaryIO) -> Listing:
    members = []
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # an archive of a million members needs no list of them
            if info.isfile():
                key, extension = _key_of(info.name)
                end = tar.offset  # where the next header is
                members.append(Member(key, extension, info.offset, info.offset_data, info.size, end))
            elif info.islnk() or info.issym():
                raise NotATar("links between members")
        return Listing(members, tar.offset)


def _kept(listing: Listing, gone: frozenset[str]) -> Iterator[tuple[int, int]]:
    """The byte ranges between what goes: global headers and directories stay."""
    cuts = [(0, 0), *((m.start, m.end) for m in listing.members if m.key in gone), (listing.end, listing.end)]
    return ((before[1], after[0]) for before, after in pairwise(cuts) if before[1] < after[0])


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if sent == 0:
            raise Retryable("the shard became shorter while it was copied")
        start += sent


def _verify(temp: str, survivors: list[Member]) -> None:
    with open(temp, "rb") as new:
        found = [(m.key, m.extension, m.size) for m in _list(new).members]
    if found != [(m.key, m.extension, m.size) for m in survivors]:
        raise Retryable("the new shard does not hold exactly the survivors; the old one was left in place")


def _has_junk(fd: int, end: int) -> bool:
    """Bytes after the end of the archive, as an erasure in place by another tool leaves them."""
    while chunk := os.pread(fd, 1 << 20, end):
        if chunk.strip(b"\0"):
            return True
        end += len(chunk)
    return False


def _end_of_archive(at: int) -> bytes:
    return bytes(2 * _BLOCK + -(at + 2 * _BLOCK) % _RECORD)


def _refusing(
    hidden: AbstractSet[str], samples: Iterable[tuple[str, Mapping[str, bytes]]]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for key, parts in samples:
        _refuse_hostile_keys([key])
        refuse_hidden(key, hidden)
        yield key, parts


def _write(temp: str, before: str | None, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    with open(temp, "wb", buffering=0) as raw, io.BufferedWriter(raw) as new:
        if before is not None:
            with open(before, "rb") as old:
                _copy(old.fileno(), raw.fileno(), 0, _list(old).end)
        for key, parts in samples:
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}" if extension else key)
                if _key_of(info.name) != (key, extension):
                    raise Rejected("hostile-locator", "expected a sample key without dots in its last part")
                info.size = len(content)
                header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                new.write(header + content + bytes(-len(content) % _BLOCK))
        new.write(_end_of_archive(new.tell()))


def _needles(fd: int, member: Member | None) -> tuple[bytes, ...]:
    if member is None:
        return ()
    at = member.data
    return windows(member.size, lambda offset, width: os.pread(fd, width, at + offset), _NEEDLE_BYTES)
