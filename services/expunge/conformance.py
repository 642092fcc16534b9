"""What makes a store adapter an adapter: a suite that any adapter subclasses, inside this project or outside it.

    class TestMyStore(StoreConformance):
        pause_at = "rebuilt"
        def open_store(self, crash_point=None): ...

It needs no test framework: methods named `test_...` assert. Give the subclass fresh, empty surroundings for each test.
Contents must be incompressible, or the byte scans see nothing.
"""

# ruff: noqa: S101 - assert is how a test speaks

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Thread
from typing import ClassVar

import numpy as np

from expunge.domain.errors import FencedOff, Rejected
from expunge.domain.words import Level, Outcome
from expunge.ports import Erasure, Store, StoreReader

CrashPoint = Callable[[str], None]

_STUCK_SECONDS = 60.0


class Crash(BaseException):
    """The process died here. Not an `Exception`, so no handler of the adapter tidies up after it."""


class StoreConformance:
    """`pause_at`: an inner step of erase that holds no lock, before the last look at the fence, at which a product can
    insert and a newer holder can erase. `unusual_locators`: legal, but not plain ASCII (empty if there are none)."""

    pause_at: ClassVar[str]
    hostile_locators: ClassVar[tuple[str, ...]] = ("", "..", "../x", "/etc/passwd", "a\0b")
    hostile_units: ClassVar[tuple[str, ...]] = ("", "..", "../x", "/etc", "a\0b", "a/../../b")
    unusual_locators: ClassVar[tuple[str, ...]] = ("Zoë-Łukasz", "顔写真", "cafe\u0301", "caf\u00e9", "a b'c\"%s;--")
    many: ClassVar[int] = 10_000

    # what the adapter's subclass gives

    def open_store(self, crash_point: CrashPoint | None = None) -> Store:
        """The store, opened anew each time on the same place, as after a restart."""
        raise NotImplementedError

    def open_reader(self) -> StoreReader:
        raise NotImplementedError

    def fresh_unit(self) -> str:
        """The name of a unit that does not exist; `insert` makes it."""
        raise NotImplementedError

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        """As the product would, from any thread, at any time."""
        raise NotImplementedError

    def read(self, unit: str) -> dict[str, bytes]:
        """All that the product reaches in the unit."""
        raise NotImplementedError

    def locators(self, count: int, start: int = 0) -> list[str]:
        raise NotImplementedError

    def content(self, locator: str) -> bytes:
        """Always the same for a locator, and different for each."""
        raise NotImplementedError

    # the suite

    def test_a_reader_has_nothing_that_changes_anything(self) -> None:
        reader = self.open_reader()
        assert not hasattr(reader, "hide")
        assert not hasattr(reader, "erase")

    def test_an_artifact_is_seen_before_and_not_after(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        store, reader = self.open_store(), self.open_reader()
        assert reader.probe(unit, [*erased, *kept]).all()
        needles = [n for found in reader.needles(unit, erased) for n in found]
        assert len(needles) >= len(erased)
        assert all(12 <= len(n) <= 32 for n in needles)  # noqa: PLR2004 - the port's words
        self._assert_scans(reader, unit, needles, found=True)

        if store.capabilities.rewrites_unit:
            assert _all(store.hide(unit, erased), Outcome.GONE)
            assert not reader.probe(unit, erased).any()
            assert reader.probe(unit, kept).all()
            assert self.read(unit) == self._contents(kept)
            # What can be cut of what is hidden is there, and what is not there yet is not cut.
            self._assert_scans(reader, unit, [n for found in reader.needles(unit, erased) for n in found], found=True)
            assert _all(store.hide(unit, erased), Outcome.GONE)
        erasure = store.erase(unit, erased, 1)

        assert _all(erasure.outcomes, Outcome.GONE)
        assert erasure.method
        assert erasure.residue
        assert erasure.level <= store.capabilities.max_level
        assert not reader.probe(unit, erased).any()
        assert reader.needles(unit, erased) == [()] * len(erased)
        self._assert_scans(reader, unit, needles, found=False)

    def test_survivors_stay_byte_for_byte(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert self.read(unit) == self._contents(kept)
        needles = [n for found in self.open_reader().needles(unit, kept) for n in found]
        self._assert_scans(self.open_reader(), unit, needles, found=True)

    def test_erase_without_hide_removes_too(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        assert _all(self.open_store().erase(unit, erased, 1).outcomes, Outcome.GONE)
        assert self.read(unit) == self._contents(kept)

    def test_a_repeated_erase_changes_nothing(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        self._hide_and_erase(self.open_store(), unit, erased, 1)
        again = self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert _all(again.outcomes, Outcome.ABSENT_BEFORE)
        assert self.read(unit) == self._contents(kept)

    def test_a_whole_unit_can_be_erased_and_used_again(self) -> None:
        unit, erased, _ = self._filled(4, 4)
        self._hide_and_erase(self.open_store(), unit, erased, 1)
        assert self.read(unit) == {}
        self.insert(unit, self._contents(erased[:1]))
        assert self.read(unit) == self._contents(erased[:1])

    def test_outcomes_come_in_the_order_of_the_locators(self) -> None:
        unit, erased, _ = self._filled(4, 2)
        absent = self.locators(2, start=100)
        outcomes = self.open_store().erase(unit, [absent[0], erased[1], absent[1], erased[0]], 1).outcomes
        assert outcomes.tolist() == [Outcome.ABSENT_BEFORE, Outcome.GONE, Outcome.ABSENT_BEFORE, Outcome.GONE]

    def test_what_is_not_there_was_absent_before(self) -> None:
        unit, _, kept = self._filled(4, 0)
        absent = self.locators(2, start=100)
        store = self.open_store()
        if store.capabilities.rewrites_unit:
            assert _all(store.hide(unit, absent), Outcome.ABSENT_BEFORE)
        assert _all(store.erase(unit, absent, 1).outcomes, Outcome.ABSENT_BEFORE)
        assert self.read(unit) == self._contents(kept)
        self.insert(unit, self._contents(absent))
        assert self.open_reader().probe(unit, absent).all()

    def test_an_unknown_unit_holds_nothing(self) -> None:
        unit, locators = self.fresh_unit(), self.locators(3)
        store = self.open_store()
        assert not store.probe(unit, locators).any()
        assert store.needles(unit, locators) == [()] * 3
        if store.capabilities.max_level >= Level.FILE_ABSENT:
            assert store.scan(unit, [bytes(range(16))]) == [0]
        if store.capabilities.rewrites_unit:
            assert _all(store.hide(unit, locators), Outcome.ABSENT_BEFORE)
        assert _all(store.erase(unit, locators, 1).outcomes, Outcome.ABSENT_BEFORE)

    def test_an_empty_list_is_nothing_to_do(self) -> None:
        unit, _, kept = self._filled(2, 0)
        store = self.open_store()
        assert store.probe(unit, []).shape == (0,)
        assert store.needles(unit, []) == []
        assert self._hide_and_erase(store, unit, [], 1).outcomes.shape == (0,)
        assert self.read(unit) == self._contents(kept)

    def test_hostile_locators_are_refused_before_anything_changes(self) -> None:
        unit, erased, kept = self._filled(4, 2)
        store = self.open_store()
        for hostile in self.hostile_locators:
            locators = [erased[0], hostile]
            _assert_rejected(hostile, store.probe, unit, locators)
            _assert_rejected(hostile, store.needles, unit, locators)
            if store.capabilities.rewrites_unit:
                _assert_rejected(hostile, store.hide, unit, locators)
            _assert_rejected(hostile, store.erase, unit, locators, 1)
        assert self.read(unit) == self._contents([*erased, *kept])

    def test_hostile_units_are_refused(self) -> None:
        store, locators = self.open_store(), self.locators(1)
        for hostile in self.hostile_units:
            _assert_rejected(hostile, store.probe, hostile, locators)
            _assert_rejected(hostile, store.needles, hostile, locators)
            _assert_rejected(hostile, store.erase, hostile, locators, 1)

    def test_unusual_names_are_names(self) -> None:
        unit, erased = self.fresh_unit(), list(self.unusual_locators)
        if erased:
            kept = self.locators(2)
            self.insert(unit, self._contents([*erased, *kept]))
            assert self.open_reader().probe(unit, erased).all()
            assert _all(self._hide_and_erase(self.open_store(), unit, erased[:-1], 1).outcomes, Outcome.GONE)
            assert self.read(unit) == self._contents([erased[-1], *kept])

    def test_many_artifacts_go_in_one_call(self) -> None:
        unit, erased, kept = self._filled(self.many + 10, self.many)
        assert _all(self._hide_and_erase(self.open_store(), unit, erased, 1).outcomes, Outcome.GONE)
        assert self.read(unit) == self._contents(kept)

    def test_what_the_product_inserts_meanwhile_is_kept(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        fresh = iter(self.locators(1000, start=100))
        inserted: list[str] = []
        threads: list[Thread] = []
        seen: Counter[str] = Counter()

        def insert_at(step: str) -> None:
            seen[step] += 1
            if seen[step] > 1:
                return
            inserted.append(next(fresh))
            threads.append(Thread(target=self.insert, args=(unit, self._contents(inserted[-1:]))))
            threads[-1].start()
            if step == self.pause_at:
                threads[-1].join(_STUCK_SECONDS)
                assert not threads[-1].is_alive(), "the product is locked out at the step that should let it in"

        self._hide_and_erase(self.open_store(insert_at), unit, erased, 1)
        for thread in threads:
            thread.join(_STUCK_SECONDS)
        assert self.pause_at in seen
        assert self.read(unit) == self._contents([*kept, *inserted])

    def test_a_paused_holder_of_an_old_fence_is_refused_and_changes_nothing(self) -> None:
        unit, erased, kept = self._filled(8, 5)
        newer = self.open_store()
        overtaken = False

        def overtake(step: str) -> None:
            nonlocal overtaken
            if step == self.pause_at and not overtaken:
                overtaken = True
                assert _all(newer.erase(unit, erased[:1], 8).outcomes, Outcome.GONE)

        older = self.open_store(overtake)
        _assert_fenced_off(lambda: older.erase(unit, erased[1:], 7))
        assert overtaken
        assert self.read(unit) == self._contents([*erased[1:], *kept])
        _assert_fenced_off(lambda: self.open_store().erase(unit, erased[1:], 7))
        assert self.read(unit) == self._contents([*erased[1:], *kept])
        assert _all(self.open_store().erase(unit, erased[1:], 8).outcomes, Outcome.GONE)

    def test_a_crash_after_any_inner_step_is_made_good_by_a_repeat(self) -> None:
        for crash_at in range(len(self._steps())):
            unit, erased, kept = self._filled(8, 5)
            needles = [n for found in self.open_reader().needles(unit, erased) for n in found]
            self._crash(unit, erased, crash_at)
            assert set(kept) <= set(self.read(unit))
            again = self._hide_and_erase(self.open_store(), unit, erased, 2)

            assert set(again.outcomes.tolist()) <= {Outcome.GONE, Outcome.ABSENT_BEFORE}
            assert not self.open_reader().probe(unit, erased).any()
            assert self.read(unit) == self._contents(kept)
            self._assert_scans(self.open_reader(), unit, needles, found=False)
            self.insert(unit, self._contents(erased))  # no tombstone is left behind
            assert self.read(unit) == self._contents([*kept, *erased])

    # how the suite speaks

    def _crash(self, unit: str, erased: list[str], crash_at: int) -> None:
        steps_left = iter(range(crash_at))

        def crash(step: str) -> None:
            if next(steps_left, None) is None:
                raise Crash(step)

        try:
            self._hide_and_erase(self.open_store(crash), unit, erased, 1)
        except Crash:
            return
        raise AssertionError("expected a crash at this step, and the step did not come")

    def _filled(self, count: int, to_erase: int) -> tuple[str, list[str], list[str]]:
        """A unit with artifacts in it: its name, every other locator to erase, as far as they reach, and the rest."""
        unit, locators = self.fresh_unit(), self.locators(count)
        self.insert(unit, self._contents(locators))
        erased = [*locators[::2], *locators[1::2]][:to_erase]
        gone = set(erased)
        return unit, erased, [x for x in locators if x not in gone]

    def _contents(self, locators: list[str]) -> dict[str, bytes]:
        return {locator: self.content(locator) for locator in locators}

    def _hide_and_erase(self, store: Store, unit: str, locators: list[str], fence: int) -> Erasure:
        if store.capabilities.rewrites_unit:
            store.hide(unit, locators)
        return store.erase(unit, locators, fence)

    def _steps(self) -> list[str]:
        steps: list[str] = []
        unit, erased, _ = self._filled(8, 5)
        self._hide_and_erase(self.open_store(steps.append), unit, erased, 1)
        return steps

    def _assert_scans(self, reader: StoreReader, unit: str, needles: list[bytes], *, found: bool) -> None:
        if reader.capabilities.max_level >= Level.FILE_ABSENT:
            assert [count > 0 for count in reader.scan(unit, needles)] == [found] * len(needles)


def _all(outcomes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], expected: Outcome) -> bool:
    return outcomes.size > 0 and bool((outcomes == expected).all())


def _assert_rejected(what: str, call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except Rejected:
        return
    raise AssertionError(f"expected Rejected for {what!r}, and it was taken")


def _assert_fenced_off(call: Callable[[], object]) -> None:
    try:
        call()
    except FencedOff:
        return
    raise AssertionError("expected FencedOff, and the old fence was taken")
