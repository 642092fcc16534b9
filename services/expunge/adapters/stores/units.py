"""A unit that is one file, wherever the file is: what shard and index adapters need of a directory or of a bucket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final, Protocol, TypeVar

from expunge.adapters.stores import (
    FREE_BLOCKS,
    OPEN_READERS,
    CrashPoint,
    Rewrite,
    UnitFile,
    all_outcomes,
    directory_of,
)
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Erasure

T = TypeVar("T")


class Withheld(Retryable):
    """The unit has its new contents, but the store keeps old ones: `why` in fixed words, and until when if it says so."""

    def __init__(self, why: tuple[str, ...], until: datetime | None) -> None:
        super().__init__("the unit was rewritten, but the store keeps old versions of it (object lock, hold or policy)")
        self.why, self.until = why, until

    def erasure(self, count: int, method: str, residue: tuple[str, ...]) -> Erasure:
        """What came of erasing `count` artifacts of the unit: any of them may be in what is kept."""
        blocked = all_outcomes(count, Outcome.BLOCKED)
        return Erasure(blocked, Level.ACKNOWLEDGED, method, (*self.why, *residue), self.until)


class Unit(Protocol):
    """One unit. `path` is its identity in this process. All calls raise `Retryable` when the store cannot be reached."""

    @property
    def path(self) -> str: ...

    def exists(self) -> bool:
        """Whether it is there. Raises `Rejected` for what is no file."""
        ...

    def contents(self) -> Hashable:
        """Which contents it has: equal as long as nobody changed it. FileNotFoundError where there is none."""
        ...

    def reading(self) -> AbstractContextManager[str]:
        """A local path under which the contents can be read. FileNotFoundError where there is none."""
        ...

    def former(self) -> Iterator[str]:
        """Local paths, each until the next, of earlier contents that the store still keeps."""
        ...

    def hidden(self) -> AbstractSet[str]:
        """The tombstones."""
        ...

    def hide(self, choose: Callable[[AbstractSet[str]], Collection[str]], crash_point: CrashPoint) -> None:
        """Add the tombstones that `choose` names, given those that are there, durably."""
        ...

    def replace(self, make: Callable[[str | None, AbstractSet[str], str], None]) -> None:
        """The product's way to change it: `make(old, tombstones, new)` writes the file `new`, from `old` if there is
        one. It may be called again when somebody else was first."""
        ...

    def rewrite(
        self, fence: int, rebuild: Callable[[str, str], Rewrite[T]], drop: Collection[str], crash_point: CrashPoint
    ) -> T:
        """Erase by `rebuild(old, new)`, losing nothing that is inserted meanwhile; then drop tombstones. Raises
        `FencedOff`, `Withheld`."""
        ...

    def forget(self, fence: int, tokens: Collection[str]) -> None:
        """What is left to do where the unit itself is gone: what the store keeps of it, and tombstones. Raises
        `FencedOff`, `Withheld`."""
        ...

    def count(self, needles: Sequence[bytes]) -> list[int]:
        """How often each needle occurs in all files of the unit."""
        ...


class UnitFiles(Protocol):
    """A place with units. `level` and `residue`: what a rewrite there comes to."""

    level: Level
    residue: tuple[str, ...]

    def unit(self, name: str, token_chars: int) -> Unit:
        """The unit of that name; its tombstones have so many characters. Raises `Rejected` for a hostile name."""
        ...

    def check(self) -> None:
        """Raises `Misconfigured` where a reader could erase."""
        ...


class LocalFiles:
    """A directory."""

    level: Level = Level.FILE_ABSENT
    residue: tuple[str, ...] = (FREE_BLOCKS, OPEN_READERS)

    def __init__(self, root: str) -> None:
        self._root = root

    def unit(self, name: str, token_chars: int) -> UnitFile:
        return UnitFile(self._root, name, token_chars)

    def check(self) -> None:
        """A file system's permissions are not ours to look at: mounts are (docker-compose.yml)."""


def files_of(url: str, *, erasing: bool) -> tuple[UnitFiles, dict[str, str]]:
    """The place that `SCHEME:///dir` or `SCHEME+s3://bucket/prefix` names, and the parameters that are not about it.
    Raises `Misconfigured`."""
    if url.partition(":")[0].endswith(_ON_S3):
        from expunge.adapters.stores.s3.units import open_files

        return open_files(url, erasing=erasing)
    from urllib.parse import parse_qsl, urlsplit

    return LocalFiles(directory_of(url)), dict(parse_qsl(urlsplit(url).query))


def refuse_rest(rest: dict[str, str]) -> None:
    """Raises `Misconfigured` for a parameter that nobody took."""
    if rest:
        raise Misconfigured(f"{min(rest)} is no parameter of this kind of store's URL")


_ON_S3: Final = "+s3"
