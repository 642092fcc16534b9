"""`file:///dir`: artifacts are files, a unit is a directory below the root ('.' is the root), a locator a file name.

Made for millions of files: one system call per file, no path objects, names checked in bulk. An unlink removes a name;
the bytes stay in free blocks until the file system reuses them, and the residue says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import (
    FREE_BLOCKS,
    CrashPoint,
    all_outcomes,
    count_needles,
    directory_of,
    nowhere,
    open_directory,
    os_faults,
    refuse_hostile_names,
    windows,
)
from expunge.domain.errors import FencedOff, Misconfigured, Rejected
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

LINKED: Final = "another hard link, or the target of a symbolic link, held the bytes of an erased name"
LINKS_SAMPLED: Final = "hard links under other names: looked for on a sample of the files"

_FENCES: Final = ".expunge-fences"
_FENCE_CHARS: Final = 20
_BATCH: Final = 4096
_LINK_SAMPLE: Final = 64
"""A stat costs half an unlink on a memory file system: bulk erasures look at this many files, evenly spread."""
_NEEDLE_BYTES: Final = 32
_SCAN_BYTES: Final = 16 << 30
_LISTED_ENTRY_BYTES: Final = 20
"""Least directory bytes per entry (tmpfs 20, ext4 more): directory size over this bounds the number of entries."""
_LISTING_GAIN: Final = 4
"""Listing an entry costs about a quarter of a stat."""

_BY_ERRNO: Final = {
    errno.ENOENT: Outcome.ABSENT_BEFORE,
    errno.ENAMETOOLONG: Outcome.ABSENT_BEFORE,
    errno.EPERM: Outcome.BLOCKED,
    errno.EACCES: Outcome.BLOCKED,
    errno.EROFS: Outcome.BLOCKED,
    errno.EISDIR: Outcome.FAILED,
}


class LocalReader:
    """The rescanner's view: listings, byte windows, scans."""

    capabilities = Capabilities(rewrites_unit=False, max_level=Level.FILE_ABSENT)

    def __init__(self, root: str, name: str, *, scan_bytes: int = _SCAN_BYTES) -> None:
        self.name = name
        self._root = root
        self._scan_bytes = scan_bytes

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        refuse_hostile_names(locators)
        with os_faults(), self._directory(unit) as directory:
            if directory is None:
                return np.zeros(len(locators), dtype=np.bool_)
            if _is_dense(directory, len(locators)):
                names = set(os.listdir(directory))
                found: Iterator[bool] = map(names.__contains__, locators)
            else:
                found = (_exists(directory, name) for name in locators)
            return np.fromiter(found, dtype=np.bool_, count=len(locators))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 32 bytes of each file. Files without 12 distinctive bytes have none."""
        refuse_hostile_names(locators)
        with os_faults(), self._directory(unit) as directory:
            if directory is None:
                return [()] * len(locators)
            return [_file_needles(directory, name) for name in locators]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads every regular file directly in the directory: a copy under another name is a hit. `Rejected`, code
        `scan-too-large`, above `scan_bytes` (16 GiB): then the listing is the evidence, and the level is L1."""
        with os_faults(), self._directory(unit) as directory:
            if directory is None:
                return [0] * len(needles)
            with os.scandir(directory) as entries:
                files = [(e.name, e.stat(follow_symlinks=False)) for e in entries if e.is_file(follow_symlinks=False)]
            total = sum(found.st_size for _, found in files)
            if total > self._scan_bytes:
                raise Rejected("scan-too-large", f"expected at most {self._scan_bytes} bytes to scan, got {total}")
            files.sort(key=lambda f: f[1].st_ino)  # near disk order
            base = self._root if unit == "." else os.path.join(self._root, unit)
            return count_needles((os.path.join(base, name) for name, _ in files), needles)

    @contextmanager
    def _directory(self, unit: str) -> Iterator[int | None]:
        if unit.split("/", 1)[0] == _FENCES:
            raise Rejected("hostile-unit", "expected a unit of the product, got the store's own directory")
        try:
            directory = open_directory(self._root, unit)
        except FileNotFoundError:
            yield None
            return
        try:
            yield directory
        finally:
            os.close(directory)


class LocalStore(LocalReader):
    """Erase unlinks, in the given order, and so also hides. `check_all_links` looks for hard links of every file
    rather than of a sample when many go at once."""

    def __init__(
        self, root: str, name: str, *, check_all_links: bool = False, crash_point: CrashPoint = nowhere
    ) -> None:
        super().__init__(root, name)
        self._check_all_links = check_all_links
        self._crash_point = crash_point

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        raise NotImplementedError("erase also hides in this store")

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        refuse_hostile_names(locators)
        with os_faults(), self._directory(unit) as directory:
            if directory is None:
                absent = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
                return Erasure(absent, Level.FILE_ABSENT, "unlink", (FREE_BLOCKS,))
            with self._claimed(unit, fence) as highest:
                sample = self._link_sample(locators)
                linked = any(_has_other_link(directory, name) for name in sample)
                outcomes = all_outcomes(len(locators), Outcome.GONE)
                for start in range(0, len(locators), _BATCH):
                    self._crash_point("claimed" if start == 0 else "batch")
                    if _read_fence(highest) > fence:
                        raise FencedOff
                    _unlink(directory, locators[start : start + _BATCH], outcomes[start : start + _BATCH])
                self._crash_point("unlinked")
                os.fsync(directory)
                self._crash_point("synced")
        level = Level.UNREACHABLE if linked else Level.FILE_ABSENT
        links = (LINKED,) if linked else (LINKS_SAMPLED,) if len(sample) < len(locators) else ()
        return Erasure(outcomes, level, "unlink", (*links, FREE_BLOCKS))

    def _link_sample(self, locators: Sequence[str]) -> Sequence[str]:
        if self._check_all_links or len(locators) <= _LINK_SAMPLE:
            return locators
        return locators[:: -(-len(locators) // _LINK_SAMPLE)]

    @contextmanager
    def _claimed(self, unit: str, fence: int) -> Iterator[int]:
        """A descriptor of the unit's fence file, which holds `fence` or more."""
        folder = os.path.join(self._root, _FENCES)
        path = os.path.join(folder, blake2b(os.fsencode(unit), digest_size=16).hexdigest())
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            fd = os.open(path, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for two system calls
            highest = _read_fence(fd)
            if fence > highest:
                os.pwrite(fd, b"%0*d" % (_FENCE_CHARS, fence), 0)
            fcntl.flock(fd, fcntl.LOCK_UN)
            if fence < highest:
                raise FencedOff
            yield fd
        finally:
            os.close(fd)


def open_store(url: str, name: str) -> LocalStore:
    """`file:///dir`, with `?links=all` to look for other hard links of every file."""
    links = parse_qs(urlsplit(url).query).get("links", ["sample"])[-1]
    if links not in ("sample", "all"):
        raise Misconfigured(f"expected links=sample or links=all, got {url!r}")
    return LocalStore(directory_of(url), name, check_all_links=links == "all")


def open_reader(url: str, name: str) -> LocalReader:
    return LocalReader(directory_of(url), name)


def _unlink(directory: int, names: Sequence[str], outcomes: Outcomes) -> None:
    unlink = os.unlink
    for index, name in enumerate(names):
        try:
            unlink(name, dir_fd=directory)
        except OSError as e:
            outcomes[index] = _BY_ERRNO.get(e.errno or 0, Outcome.OPEN)


def _has_other_link(directory: int, name: str) -> bool:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False  # the unlink that follows meets the same fault and records it
    return found.st_nlink > 1 or stat.S_ISLNK(found.st_mode)


def _read_fence(fd: int) -> int:
    return int(os.pread(fd, _FENCE_CHARS, 0) or b"0")


def _is_dense(directory: int, wanted: int) -> bool:
    return wanted * _LISTING_GAIN >= os.fstat(directory).st_size // _LISTED_ENTRY_BYTES


def _exists(directory: int, name: str) -> bool:
    """By stat, not access: access answers no to every fault, and a fault is no absence."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return False
        raise
    return True


def _file_needles(directory: int, name: str) -> tuple[bytes, ...]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
            return ()
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ()
        return windows(found.st_size, lambda at, width: os.pread(fd, width, at), _NEEDLE_BYTES)
    finally:
        os.close(fd)
