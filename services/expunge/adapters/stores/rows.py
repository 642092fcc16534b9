"""Units that are files of named rows (tar shards, Parquet files), erased from by copying the survivors.

A `Format` knows how one such file is read and written; where it lies is the business of `units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import CrashPoint, Rewrite, all_outcomes, nowhere, os_faults
from expunge.adapters.stores.units import Unit, UnitFiles, Withheld
from expunge.domain.errors import Rejected
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

TOKEN_CHARS: Final = 32


class Damaged(Rejected):
    """The unit's file is not a sound file of its format."""


class Format(Protocol):
    """`method` and `damaged`: what statements say of a rewrite, and of a file that was left alone."""

    method: str
    damaged: str

    def refuse_hostile(self, locators: Sequence[str]) -> None:
        """Raises `Rejected`, code `hostile-locator`, for what can name no row."""
        ...

    def keys(self, path: str) -> frozenset[str]:
        """Of all rows. Raises `Damaged`."""
        ...

    def needles(self, path: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Byte windows of each row's content, as the file holds them."""
        ...

    def without(self, old: str, new: str, wanted: frozenset[str]) -> Rewrite[frozenset[str]]:
        """Write `new` with the rows of `old` but those wanted, and verify it; which of these there were."""
        ...


class RowReader:
    """The rescanner's view of a place of such files."""

    def __init__(self, files: UnitFiles, name: str, form: Format) -> None:
        self.name = name
        self.capabilities = Capabilities(rewrites_unit=True, max_level=files.level)
        self._files = files
        self._format = form
        self._erases = False

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        """Also in earlier contents, where the store keeps them: who knows the version reads on in it."""
        file = self._open(unit, locators)
        with os_faults():
            hidden = file.hidden()
            keys = self._keys(file).union(*map(self._format.keys, file.former()))
        found = (key in keys and token(key) not in hidden for key in locators)
        return np.fromiter(found, dtype=np.bool_, count=len(locators))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 32 bytes of each row's largest part."""
        file = self._open(unit, locators)
        with os_faults():
            if not file.exists():
                return [()] * len(locators)
            with file.reading() as path:
                return self._format.needles(path, locators)

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads the unit's file, its side files and leftovers of crashed rewrites."""
        with os_faults():
            return self._file(unit).count(needles)

    def _open(self, unit: str, locators: Sequence[str]) -> Unit:
        self._format.refuse_hostile(locators)
        file = self._file(unit)
        if not self._erases:
            self._files.check()
        return file

    def _file(self, unit: str) -> Unit:
        return self._files.unit(unit, TOKEN_CHARS)

    def _keys(self, file: Unit) -> frozenset[str]:
        if not file.exists():
            return frozenset()
        with file.reading() as path:
            return self._format.keys(path)


class RowStore(RowReader):
    """What is inserted before the switch under a key that is being erased is erased with it."""

    def __init__(self, files: UnitFiles, name: str, form: Format, *, crash_point: CrashPoint = nowhere) -> None:
        RowReader.__init__(self, files, name, form)  # not super(): a format's own reader stands between
        self._crash_point = crash_point
        self._erases = True

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        file = self._open(unit, locators)
        tokens = [token(key) for key in locators]
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)

        def choose(hidden: AbstractSet[str]) -> AbstractSet[str]:
            keys = self._keys(file)
            for index, (key, one) in enumerate(zip(locators, tokens, strict=True)):
                if key in keys or one in hidden:
                    outcomes[index] = Outcome.GONE
            return {t for t, o in zip(tokens, outcomes, strict=True) if o == Outcome.GONE} - hidden

        with os_faults():
            if file.exists():
                file.hide(choose, self._crash_point)
        return outcomes

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        file = self._open(unit, locators)
        wanted = frozenset(locators)
        tokens = {token(key) for key in wanted}
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        level, method, residue = self.capabilities.max_level, self._format.method, self._files.residue
        with os_faults():
            try:
                if not file.exists():
                    file.forget(fence, tokens)
                    return Erasure(outcomes, level, method, residue)
                gone = file.rewrite(
                    fence, lambda old, new: self._format.without(old, new, wanted), tokens, self._crash_point
                )
            except Damaged:
                outcomes[:] = Outcome.FAILED
                return Erasure(outcomes, Level.ACKNOWLEDGED, "none", (self._format.damaged,))
            except Withheld as kept:
                return kept.erasure(len(locators), method, residue)
        outcomes[np.fromiter((k in gone for k in locators), dtype=np.bool_, count=len(locators))] = Outcome.GONE
        return Erasure(outcomes, level, method, residue)


def token(key: str) -> str:
    """A tombstone names no row: a digest of fixed length, whatever the key holds."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=TOKEN_CHARS // 2).hexdigest()


def refuse_hidden(key: str, hidden: AbstractSet[str]) -> None:
    """Raises `Rejected` where the product inserts what awaits erasure."""
    if token(key) in hidden:
        raise Rejected("hidden-artifact", "expected new samples, got a key that is hidden and awaits erasure")
