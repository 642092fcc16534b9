"""`wds:///dir`: a unit is a WebDataset shard (a plain tar below the root), a locator a sample key: all members whose
name up to the first dot of its last part is the key.

Survivors are copied as raw bytes, never re-encoded. A shard is always replaced as a whole, so readers never see half of
one. `write_shard`, `append` and `read` are for the product and the trainer: `read` leaves hidden samples out.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, pairwise
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import (
    FREE_BLOCKS,
    OPEN_READERS,
    CrashPoint,
    Rewrite,
    UnitFile,
    all_outcomes,
    count_needles,
    directory_of,
    nowhere,
    os_faults,
    rewrite,
    windows,
)
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

NOT_A_TAR: Final = "the shard is no sound plain tar: nothing in it was changed"

_METHOD: Final = "rewrite of the shard"
_TOKEN_CHARS: Final = 32
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


class NotATar(Rejected):
    """The shard is not a sound plain tar."""

    def __init__(self, got: str) -> None:
        super().__init__("not-a-tar", f"expected a sound plain tar as the shard, got {got}")


class WebDatasetReader:
    capabilities = Capabilities(rewrites_unit=True, max_level=Level.FILE_ABSENT)

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self._root = root

    def read(self, shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The samples that are not hidden, in the shard's order: (key, {extension: content})."""
        file = self._file(shard)
        hidden = file.hidden()
        with open(file.path, "rb") as tar:
            for key, members in groupby(_list(tar).members, key=lambda m: m.key):
                if _token(key) not in hidden:
                    yield key, {m.extension: os.pread(tar.fileno(), m.size, m.data) for m in members}

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        _refuse_hostile_keys(locators)
        file = self._file(unit)
        with os_faults():
            hidden = file.hidden()
            keys = _keys(file)
        found = (key in keys and _token(key) not in hidden for key in locators)
        return np.fromiter(found, dtype=np.bool_, count=len(locators))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 32 bytes of the sample's largest member."""
        _refuse_hostile_keys(locators)
        file = self._file(unit)
        with os_faults():
            if not file.exists():
                return [()] * len(locators)
            with open(file.path, "rb") as tar:
                largest: dict[str, Member] = {}
                for member in _list(tar).members:
                    if member.key not in largest or member.size > largest[member.key].size:
                        largest[member.key] = member
                return [_needles(tar.fileno(), largest.get(key)) for key in locators]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads the shard, its side files and leftovers of crashed rewrites."""
        with os_faults():
            return count_needles(self._file(unit).own_files(), needles)

    def _file(self, unit: str) -> UnitFile:
        return UnitFile(self._root, unit, _TOKEN_CHARS)


class WebDatasetStore(WebDatasetReader):
    """What is inserted before the switch under a key that is being erased is erased with it; `append` refuses a key
    that is hidden."""

    def __init__(self, root: str, name: str, *, crash_point: CrashPoint = nowhere) -> None:
        super().__init__(root, name)
        self._crash_point = crash_point

    def write_shard(self, shard: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        """A new shard, or a new one in its place."""
        file = self._file(shard)
        with os_faults():
            os.makedirs(file.folder, exist_ok=True)
            with file.locked():
                file.replace(lambda temp: _write(temp, None, _refusing(file.hidden(), samples)))

    def append(self, shard: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        file = self._file(shard)
        with os_faults():
            os.makedirs(file.folder, exist_ok=True)
            with file.locked():
                before = file.path if file.exists() else None
                file.replace(lambda temp: _write(temp, before, _refusing(file.hidden(), samples)))

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        _refuse_hostile_keys(locators)
        file = self._file(unit)
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        with os_faults():
            if not file.exists():
                return outcomes
            with file.locked():
                keys, hidden = _keys(file), file.hidden()
                tokens = [_token(key) for key in locators]
                for index, (key, token) in enumerate(zip(locators, tokens, strict=True)):
                    if key in keys or token in hidden:
                        outcomes[index] = Outcome.GONE
                file.hide({t for t, o in zip(tokens, outcomes, strict=True) if o == Outcome.GONE} - hidden)
                self._crash_point("hidden")
        return outcomes

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        _refuse_hostile_keys(locators)
        file = self._file(unit)
        wanted = frozenset(locators)
        residue = (FREE_BLOCKS, OPEN_READERS)
        with os_faults():
            tokens = {_token(key) for key in wanted}
            if not file.exists():
                file.forget(fence, tokens)
                absent = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
                return Erasure(absent, Level.FILE_ABSENT, _METHOD, residue)
            try:
                gone = rewrite(file, fence, _without(file, wanted), tokens, self._crash_point)
            except NotATar:
                return Erasure(all_outcomes(len(locators), Outcome.FAILED), Level.ACKNOWLEDGED, "none", (NOT_A_TAR,))
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        outcomes[np.fromiter((k in gone for k in locators), dtype=np.bool_, count=len(locators))] = Outcome.GONE
        return Erasure(outcomes, Level.FILE_ABSENT, _METHOD, residue)


def open_store(url: str, name: str) -> WebDatasetStore:
    return WebDatasetStore(directory_of(url), name)


def open_reader(url: str, name: str) -> WebDatasetReader:
    return WebDatasetReader(directory_of(url), name)


def _refuse_hostile_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise Rejected("hostile-locator", "expected a sample key, got an empty, absolute or dotted path or a NUL")


def _token(key: str) -> str:
    """A tombstone names no sample: a digest of fixed length, whatever the key holds."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=_TOKEN_CHARS // 2).hexdigest()


def _key_of(member: str) -> tuple[str, str]:
    match = _KEY.fullmatch(member)
    key = match[1] if match else member
    return key, member[len(key) + 1 :]


def _keys(file: UnitFile) -> frozenset[str]:
    if not file.exists():
        return frozenset()
    with open(file.path, "rb") as tar:
        return frozenset(m.key for m in _list(tar).members)


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


def _without(file: UnitFile, wanted: frozenset[str]) -> Callable[[str], Rewrite[frozenset[str]]]:
    def rebuild(temp: str) -> Rewrite[frozenset[str]]:
        with open(file.path, "rb") as old:
            listing = _list(old)
            gone = frozenset(m.key for m in listing.members) & wanted
            if not gone and not _has_junk(old.fileno(), listing.end):
                return Rewrite(changed=False, result=gone)
            with open(temp, "wb") as new:
                for start, end in _kept(listing, gone):
                    _copy(old.fileno(), new.fileno(), start, end)
                new.write(_end_of_archive(os.lseek(new.fileno(), 0, os.SEEK_CUR)))
            _verify(temp, [m for m in listing.members if m.key not in gone])
            return Rewrite(changed=True, result=gone)

    return rebuild


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
    hidden: frozenset[str], samples: Iterable[tuple[str, Mapping[str, bytes]]]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    for key, parts in samples:
        _refuse_hostile_keys([key])
        if _token(key) in hidden:
            raise Rejected("hidden-artifact", "expected new samples, got a key that is hidden and awaits erasure")
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
