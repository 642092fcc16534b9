"""What the store adapters share: safe names, byte windows and scans, and fenced rewrites of one file.

Linux and a local or POSIX-true file system are assumed (`flock`, atomic rename). Importing this loads no store library:
`table.open_store` does that for the one scheme that is asked for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores.tombstones import Tombstones
from expunge.crashing import store_point
from expunge.domain.errors import FencedOff, Misconfigured, Rejected, Retryable
from expunge.domain.locators import Locators
from expunge.domain.words import Outcome
from expunge.ports import Outcomes

T = TypeVar("T")

CrashPoint = Callable[[str], None]
"""Called with the name of each inner step as it ends. Tests raise from it, or pause in it."""

FREE_BLOCKS: Final = "free blocks of the file system until reused or trimmed"
OPEN_READERS: Final = "processes that still hold the old file open, until they close it"

_SIDE_FILES: Final = (".hidden", ".state", ".lock")
_TEMP: Final = ".new-"
_LOCK_SECONDS: Final = 120.0
_LOCK_POLL_SECONDS: Final = 0.005
_REDO: Final = 4
_SCAN_CHUNK: Final = 1 << 20
"""Bytes looked at together: they and what is worked out from them stay in the cache (measured, three times as fast)."""
_FEW_NEEDLES: Final = 4
_WORD: Final = 4
_LONG_WORD: Final = 8
_SPREAD: Final = {_WORD: np.uint32(2_654_435_761), _LONG_WORD: np.uint64(11_400_714_819_323_198_485)}
"""Knuth's multiplier, 2**32 or 2**64 over the golden ratio: the high bits of a product depend on all of the word."""


def nowhere(step: str) -> None:
    """The crash point of production: nothing happens, unless a test armed it."""
    store_point(step)


def all_outcomes(count: int, outcome: Outcome) -> Outcomes:
    return np.full(count, outcome, dtype=np.uint8)


@contextmanager
def os_faults() -> Iterator[None]:
    """A fault of the operating system about the unit as a whole may pass: try again."""
    try:
        yield
    except OSError as e:  # the message may name a file, so only its number leaves
        raise Retryable(f"the file system answered {errno.errorcode.get(e.errno or 0, 'an unknown error')}") from e


# --- names

_ROOTS: Final[dict[str, tuple[int, int]]] = {}
"""Device and inode of each root as this process first saw it: an unmounted disk leaves an empty directory behind."""


def directory_of(url: str) -> str:
    """The absolute directory that a `scheme:///dir` URL names, with symbolic links resolved once, here."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise Misconfigured(f"expected {parts.scheme}:///absolute/directory, got {url!r}")
    if not os.path.isdir(path):
        raise Misconfigured(f"the directory of {url!r} does not exist")
    return os.path.realpath(path)


def refuse_hostile_names(locators: Sequence[str]) -> None:
    """Each locator must be one file name. Checked in bulk: this runs for millions."""
    try:
        names = Locators.of(locators)
    except UnicodeEncodeError:
        names = Locators.of(("",))  # as hostile as a lone surrogate, which no file name of ours has
    flat, short = names.flat, np.flatnonzero(names.lengths <= len(".."))
    if b"/" in flat or b"\0" in flat or not {"", ".", ".."}.isdisjoint(names[at] for at in short.tolist()):
        raise Rejected("hostile-locator", "expected plain file names as locators, got a path, an empty name or a NUL")


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def parts_of(unit: str) -> list[str]:
    parts = unit.split("/")
    if "\0" in unit or not _encodable(unit) or any(p in ("", ".", "..") for p in parts):
        raise Rejected("hostile-unit", "expected a relative path without empty, '.', '..' or NUL parts as the unit")
    return parts


def open_directory(root: str, unit: str) -> int:
    """A descriptor of directory `unit` below `root`, no part of which may be a symbolic link. FileNotFoundError if
    it is absent."""
    parts = [] if unit == "." else parts_of(unit)
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as e:
        # Not absence: everything in it would look erased while its disk is away.
        raise Retryable("the store's own directory is not there") from e
    found = os.fstat(fd)
    if _ROOTS.setdefault(root, (found.st_dev, found.st_ino)) != (found.st_dev, found.st_ino):
        os.close(fd)
        raise Retryable("the store's own directory is another than at first: its file system may not be mounted")
    for part in parts:
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Rejected("hostile-unit", "expected directories as the unit's path, got a link or a file") from e
            if e.errno == errno.ENAMETOOLONG:
                raise FileNotFoundError(errno.ENOENT, "name too long to exist") from e
            raise
        finally:
            os.close(fd)
        fd = inner
    return fd


# --- bytes: windows to look for, and looking for them


def windows(length: int, read: Callable[[int, int], bytes], width: int) -> tuple[bytes, ...]:
    """Up to three distinct and distinctive windows of `width` bytes (whole content if shorter, 12 at least).

    Runs of padding would be found everywhere, so windows with few distinct byte values are passed over; content with
    nothing distinctive has no needle, which the caller cannot tell from absence: `probe` tells.
    """
    width = min(width, length)
    if width < 12:  # noqa: PLR2004 - the least of the port
        return ()
    found: dict[bytes, None] = {}
    for share in (0.25, 0.5, 0.75, 0.125, 0.375, 0.625, 0.875, 0.0, 0.9375):
        window = read(int((length - width) * share), width)
        if len(window) == width and len(set(window)) * 3 >= width:
            found[window] = None
        if len(found) == 3:  # noqa: PLR2004 - three are asked for
            break
    return tuple(found)


def count_needles(paths: Iterable[str], needles: Sequence[bytes]) -> list[int]:
    """How often each needle occurs in all the files together. A file that vanishes meanwhile holds nothing.

    Reads, does not map: a file that is truncated under a map kills the process. With many needles one vectorised pass
    finds candidates by four bytes of each, so the cost hardly grows with their number.
    """
    if any(len(n) < _WORD for n in needles):
        raise Rejected("short-needle", "expected needles of 12 bytes or more")
    counts = dict.fromkeys(needles, 0)
    if counts:
        shortest = min(map(len, counts))
        # An aligned word is in every needle of twice its bytes less one, wherever it lies.
        word = next((size for size in (_LONG_WORD, _WORD) if shortest >= 2 * size - 1), None)
        few = len(counts) <= _FEW_NEEDLES or word is None
        count: Callable[[bytes, int, int], None] | None = None
        keep = max(map(len, counts)) - 1
        for path in paths:
            if count is None:  # after an erasure there is often no file, and nothing to prepare for
                count = _count_each(counts) if few else _count_by_anchor(counts, word or _WORD)
            with suppress(FileNotFoundError):
                _each_chunk(path, keep, count)
    return [counts[n] for n in needles]


def _each_chunk(path: str, keep: int, count: Callable[[bytes, int, int], None]) -> None:
    """`count` what is in each chunk of a file, and what begins in one and ends in the next."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        tail = b""
        while chunk := os.read(fd, _SCAN_CHUNK):
            if tail:
                count(tail + chunk[:keep], len(tail), len(tail))
            count(chunk, 0, len(chunk))
            tail = chunk[-keep:] if len(chunk) >= keep else (tail + chunk)[-keep:]
    finally:
        os.close(fd)


def _count_each(counts: dict[bytes, int]) -> Callable[[bytes, int, int], None]:
    def count(data: bytes, after: int, before: int) -> None:
        for needle in counts:
            at = data.find(needle, max(after - len(needle) + 1, 0))
            while 0 <= at < before:
                counts[needle] += 1
                at = data.find(needle, at + 1)

    return count


def _count_by_anchor(counts: dict[bytes, int], size: int) -> Callable[[bytes, int, int], None]:
    """`size` anchors (words of `size` bytes) per needle, one for each place that it can have relative to the data's
    aligned words: only these are looked at, in a table of one byte per hash, and then in one of other hashes."""
    by_anchor: dict[int, list[tuple[int, bytes]]] = {}
    for needle in counts:
        for place in range(size):
            # the least ordinary word: padding and exponents repeat, the rest hardly does
            words = range(place, len(needle) - size + 1, size)
            at = max(words, key=lambda i: len(set(needle[i : i + size]) - {0, 255})) if len(words) > 1 else place
            by_anchor.setdefault(int.from_bytes(needle[at : at + size], "little"), []).append((at, needle))
    kind, spread = np.dtype(f"<u{size}"), _SPREAD[size]
    anchors = np.sort(np.array(list(by_anchor), dtype=kind))
    bits = min(max((len(anchors) << 6).bit_length(), 18), 20)  # few false alarms, and it stays in the cache
    shift = kind.type(8 * size - bits)
    table, second = np.zeros((2, 1 << bits), dtype=np.bool_)
    table[(anchors * spread) >> shift] = True
    second[(anchors * spread * spread) >> shift] = True

    def count(data: bytes, after: int, before: int) -> None:
        words = np.frombuffer(data, dtype=kind, count=len(data) // size)
        hashes = words * spread
        hashes >>= shift
        near = np.flatnonzero(table.take(hashes.view(f"<i{size}")))
        near = near[second[(words[near] * spread * spread) >> shift]]
        near = near[_among(words[near], anchors)]
        for position, word in zip((near * size).tolist(), words[near].tolist(), strict=True):
            for at, needle in by_anchor.get(word, ()):
                start = position - at
                if 0 <= start < before and start + len(needle) > after and data.startswith(needle, start):
                    counts[needle] += 1

    return count


def _among(words: NDArray[np.unsignedinteger], ranked: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Which of a few words are among the `ranked` (ascending, one at least)."""
    found: NDArray[np.bool_] = ranked[np.minimum(np.searchsorted(ranked, words), len(ranked) - 1)] == words
    return found


# --- one unit held as one file, rewritten under a fence


@dataclass(frozen=True, slots=True)
class Contents:
    """Which contents a unit file has: our counter, and the file's own identity for writers that do not know of it."""

    generation: int
    inode: int
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Rewrite(Generic[T]):
    """What a rebuild made: `changed` if the temporary file is to take the unit's place."""

    changed: bool
    result: T


class UnitFile:
    """A unit that is one file below `root`, with side files beside it: `.lock`, `.state` (highest fence, generation),
    `.hidden` (tombstones, one token of `token_chars` per line) and temporary files.

    Whoever changes the file holds the lock and puts a new file in its place, so a reader that has it open reads on in
    the old contents. Tombstones are read before the file: the switch comes before they are dropped.
    """

    def __init__(self, root: str, unit: str, token_chars: int) -> None:
        *above, self.name = parts_of(unit)
        if self.name.endswith(_SIDE_FILES) or _TEMP in self.name:
            raise Rejected("hostile-unit", "expected the unit's own file, got the name of a side file")
        with os_faults(), suppress(FileNotFoundError):
            os.close(open_directory(root, "/".join(above) or "."))
        self.folder = os.path.join(root, *above)
        self.path = os.path.join(self.folder, self.name)
        self._token_chars = token_chars

    def exists(self) -> bool:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        except OSError as e:
            if e.errno == errno.ENAMETOOLONG:
                return False
            raise
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("hostile-unit", "expected a regular file as the unit, got a link or a directory")
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among writers of this unit. A lock that stays taken is `Retryable`, so no worker hangs on it."""
        fd = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + _LOCK_SECONDS
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise Retryable(f"the unit's lock was not free within {_LOCK_SECONDS:.0f} s")
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(fd)

    def contents(self) -> Contents:
        found = os.stat(self.path)
        return Contents(self._state()[1], found.st_ino, found.st_size, found.st_mtime_ns)

    def hidden(self) -> Tombstones:
        """The tombstones."""
        try:
            with open(self.path + ".hidden", "rb") as f:
                return Tombstones.read(f.read(), self._token_chars)
        except FileNotFoundError:
            return Tombstones(b"", self._token_chars)

    def hide(self, choose: Callable[[AbstractSet[str]], Collection[str]], crash_point: CrashPoint) -> None:
        """Add the tombstones that `choose` names, given those that are there, durably."""
        with self.locked():
            self._hide(choose(self.hidden()))
            crash_point("hidden")

    def _hide(self, chosen: Collection[str]) -> None:
        tokens = Tombstones.of(chosen, self._token_chars)
        if not tokens.packed:
            return
        path = self.path + ".hidden"
        fresh = not os.path.exists(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _write_all(fd, tokens.lines())
            os.fsync(fd)
        finally:
            os.close(fd)
        if fresh:
            sync_directory(self.folder)

    def unhide(self, tokens: Collection[str]) -> None:
        """Drop tombstones whose artifacts are gone. Call it locked."""
        before = self.hidden()
        after = before.without(tokens)
        if len(after.packed) < len(before.packed):
            self._put(".hidden", after.lines().removeprefix(b"\n") if after.packed else b"")

    def claim(self, fence: int) -> None:
        """Note the fence, refuse a lower one, and drop what earlier holders left half written. Call it locked."""
        self.refuse_older(fence)
        highest, generation = self._state()
        if fence > highest:
            self._put_state(fence, generation)
        for name in os.listdir(self.folder):
            if name.startswith(self.name + _TEMP):
                os.unlink(os.path.join(self.folder, name))

    def forget(self, fence: int, tokens: Collection[str]) -> None:
        """What is left to do when the unit itself is gone: leftovers and tombstones."""
        if self.own_files():
            with self.locked():
                self.claim(fence)
                self.unhide(tokens)

    def replace(self, make: Callable[[str | None, AbstractSet[str], str], None]) -> None:
        """The product's way to change the file: `make` writes new contents, from the old ones (None: there are none) and
        the tombstones, into the file that it is given; then next generation, then the switch."""
        with os_faults():
            os.makedirs(self.folder, exist_ok=True)
            with self.locked():
                temp = self.temp_path()
                make(self.path if self.exists() else None, self.hidden(), temp)
                sync_file(temp)
                self.next_generation()
                os.replace(temp, self.path)
                sync_directory(self.folder)

    def temp_path(self) -> str:
        return f"{self.path}{_TEMP}{uuid4().hex}"

    def next_generation(self) -> None:
        fence, generation = self._state()
        self._put_state(fence, generation + 1)

    def refuse_older(self, fence: int) -> None:
        if fence < self._state()[0]:
            raise FencedOff

    @contextmanager
    def reading(self) -> Iterator[str]:
        """A path under which the contents can be read. FileNotFoundError where there is no unit."""
        yield self.path

    def former(self) -> Iterator[str]:
        """Paths of contents that the store keeps of before: none, for a file is replaced."""
        return iter(())

    def count(self, needles: Sequence[bytes]) -> list[int]:
        """How often each needle occurs in the unit's file, side files and leftovers."""
        return count_needles(self.own_files(), needles)

    def rewrite(
        self, fence: int, rebuild: Callable[[str, str], Rewrite[T]], drop: Collection[str], crash_point: CrashPoint
    ) -> T:
        """See `rewrite`; `rebuild` is given the file to read and the one to write."""
        return rewrite(self, fence, lambda temp: rebuild(self.path, temp), drop, crash_point)

    def own_files(self) -> list[str]:
        """The unit's file, side files and leftovers: what a scan reads."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        mine = {self.name, *(self.name + side for side in _SIDE_FILES)}
        return [os.path.join(self.folder, n) for n in names if n in mine or n.startswith(self.name + _TEMP)]

    def _state(self) -> tuple[int, int]:
        try:
            with open(self.path + ".state", encoding="ascii") as f:
                fence, generation = f.read().split()
        except FileNotFoundError:
            return 0, 0
        return int(fence), int(generation)

    def _put_state(self, fence: int, generation: int) -> None:
        self._put(".state", b"%d %d\n" % (fence, generation))

    def _put(self, side: str, data: bytes | bytearray) -> None:
        temp = self.temp_path()
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temp, self.path + side)
        sync_directory(self.folder)


def rewrite(
    file: UnitFile, fence: int, rebuild: Callable[[str], Rewrite[T]], drop: Collection[str], crash_point: CrashPoint
) -> T:
    """Erase by rewriting, losing nothing that is inserted meanwhile.

    1. locked: refuse an old fence, drop leftovers, note the contents
    2. unlocked, the long part: rebuild into a temporary file, verified by `rebuild`, and make it durable
    3. locked: refuse an old fence; contents changed meanwhile: drop the temporary file and start again
       (the last try keeps the lock, so that a busy product cannot starve an erasure)
    4. count the generation up, switch, make the switch durable, drop the tombstones `drop`
    """
    for tries_left in reversed(range(_REDO)):
        with ExitStack() as whole:
            with ExitStack() as first:
                first.enter_context(file.locked())
                file.claim(fence)
                before = file.contents()
                if tries_left == 0:
                    whole.enter_context(first.pop_all())
            crash_point("claimed")
            temp = file.temp_path()
            try:  # a killed process leaves its temporary file to the next claim, an error does not
                made = rebuild(temp)
                crash_point("rebuilt")
                if made.changed:
                    sync_file(temp)
                crash_point("synced")
                if tries_left:
                    whole.enter_context(file.locked())
                file.refuse_older(fence)
                if file.contents() == before:
                    _switch(file, temp, drop, crash_point, changed=made.changed)
                    return made.result
            except Exception:
                _discard(temp)
                raise
            _discard(temp)
    raise Retryable("the unit was changed without its lock while it was rewritten")


def _discard(temp: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(temp)


def _switch(file: UnitFile, temp: str, drop: Collection[str], crash_point: CrashPoint, *, changed: bool) -> None:
    if changed:
        file.next_generation()
        crash_point("counted")
        os.replace(temp, file.path)
        crash_point("switched")
        sync_directory(file.folder)
        crash_point("durable")
    file.unhide(drop)
    crash_point("unhidden")


def sync_file(path: str) -> None:
    _sync(path, os.O_RDONLY)


def sync_directory(path: str) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_all(fd: int, data: bytes | bytearray) -> None:
    while data:
        data = data[os.write(fd, data) :]
