"""`memory:name`: a store in this process, for tests and the simulator. It misbehaves on request.

`Space` is what would be the disk: stores and readers opened on one space see the same artifacts. Hidden artifacts keep
their bytes until erase, as in a real store that rewrites units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import CrashPoint, all_outcomes, nowhere, refuse_hostile_names, windows
from expunge.domain.errors import FencedOff, Rejected, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

_NEEDLE_BYTES: Final = 32


@dataclass(slots=True)
class Unit:
    visible: dict[str, bytes] = field(default_factory=dict)
    hidden: dict[str, bytes] = field(default_factory=dict)
    fence: int = 0


@dataclass(slots=True)
class Space:
    """The artifacts, and what goes wrong: the next `failures` calls raise `Retryable`; `blocked` artifacts cannot be
    erased (until `blocked_until`, where that is said); a `lying` store says GONE and keeps the bytes; `on_call` runs first
    in each call (to be slow, to count). `cuts_hidden`: needles are cut of hidden artifacts too, as in files, and not as in
    tables."""

    units: dict[str, Unit] = field(default_factory=dict)
    failures: int = 0
    blocked: set[tuple[str, str]] = field(default_factory=set)
    blocked_until: datetime | None = None
    lying: bool = False
    on_call: Callable[[str], None] = nowhere
    cuts_hidden: bool = False
    lock: RLock = field(default_factory=RLock)

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        with self.lock:
            held = self.units.setdefault(unit, Unit())
            if not held.hidden.keys().isdisjoint(artifacts):
                raise Rejected("hidden-artifact", "expected new locators, got one that is hidden and awaits erasure")
            held.visible.update(artifacts)

    def read(self, unit: str) -> dict[str, bytes]:
        with self.lock:
            return dict(self.units.get(unit, Unit()).visible)


class MemoryReader:
    def __init__(self, space: Space, name: str, *, rewrites_unit: bool = True) -> None:
        self.name = name
        self.capabilities = Capabilities(rewrites_unit=rewrites_unit, max_level=Level.FILE_ABSENT)
        self._space = space

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        held = self._called("probe", unit, locators)
        return np.fromiter((name in held.visible for name in locators), dtype=np.bool_, count=len(locators))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        held = self._called("needles", unit, locators)
        hidden = held.hidden if self._space.cuts_hidden else {}
        return [_needles(held.visible.get(name) or hidden.get(name, b"")) for name in locators]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        held = self._called("scan", unit, ())
        everything = [*held.visible.values(), *held.hidden.values()]
        return [sum(content.count(needle) for content in everything) for needle in needles]

    def _called(self, call: str, unit: str, locators: Sequence[str]) -> Unit:
        """The unit; a detached empty one if it does not exist."""
        self._space.on_call(call)
        refuse_hostile_names(locators)
        with self._space.lock:
            if self._space.failures:
                self._space.failures -= 1
                raise Retryable("this call was made to fail")
            return self._space.units.get(unit, Unit())


class MemoryStore(MemoryReader):
    def __init__(
        self, space: Space, name: str, *, rewrites_unit: bool = True, crash_point: CrashPoint = nowhere
    ) -> None:
        super().__init__(space, name, rewrites_unit=rewrites_unit)
        self._crash_point = crash_point

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        if not self.capabilities.rewrites_unit:
            raise NotImplementedError("erase also hides in this store")
        held = self._called("hide", unit, locators)
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        with self._space.lock:
            for index, name in enumerate(locators):
                if name in held.visible and not self._space.lying:
                    held.hidden[name] = held.visible.pop(name)
                if name in held.hidden or name in held.visible:
                    outcomes[index] = Outcome.GONE
        self._crash_point("hidden")
        return outcomes

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        held = self._called("erase", unit, locators)
        self._crash_point("called")
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        with self._space.lock:
            if fence < held.fence:
                raise FencedOff
            held.fence = fence
            for index, name in enumerate(locators):
                if name in held.visible or name in held.hidden:
                    outcomes[index] = self._erase_one(held, unit, name)
        self._crash_point("erased")
        until = self._space.blocked_until if Outcome.BLOCKED in outcomes else None
        return Erasure(outcomes, Level.FILE_ABSENT, "forget", ("memory of this process until reused",), until)

    def _erase_one(self, held: Unit, unit: str, name: str) -> Outcome:
        if (unit, name) in self._space.blocked:
            return Outcome.BLOCKED
        if not self._space.lying:
            held.visible.pop(name, None)
            held.hidden.pop(name, None)
        return Outcome.GONE


_spaces: dict[str, Space] = {}


def space_of(url: str) -> Space:
    """The space that every store and reader of this URL shares in this process."""
    return _spaces.setdefault(urlsplit(url).path, Space())


def open_store(url: str, name: str) -> MemoryStore:
    return MemoryStore(space_of(url), name)


def open_reader(url: str, name: str) -> MemoryReader:
    return MemoryReader(space_of(url), name)


def _needles(content: bytes) -> tuple[bytes, ...]:
    return windows(len(content), lambda at, width: content[at : at + width], _NEEDLE_BYTES)
