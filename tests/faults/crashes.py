"""Every crash point, on a real deployment: a worker kills itself there, is started again, and what came of the request is
counted and compared with a run without a crash.

Which worker passes which point, and how often, is not written down: a clean run of each scenario tells.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from expunge import crashing
from expunge.domain.words import Provision
from tests.faults.small import LIMIT, PHOTOS, Resumed, Small, eventually, name, subject

KEYS: Final = frozenset({"keys.marked", "keys.overwritten", "keys.unlinked", "certify.key-destroyed"})
"""Passed when a bucket's key is destroyed, a day later at the earliest: `test_crash_points` has them in a process of
their own."""
LARGE: Final = frozenset({"store.batch"})
"""Passed only by erasures of thousands of files: the contract suite of that store stops there."""
S3: Final = frozenset({"store.listed", "store.aborted", "store.page", "store.purged"})
"""Passed only where a store is in S3: its contract suite stops at each of them."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point as one worker passes it in one scenario, for the `number`-th time."""

    scenario: str
    worker: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.scenario}/{self.worker}/{self.name}/{self.number}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a scenario has begun. `gone`: people of whom nothing may be left; `provisions`: certificates to come."""

    request: str
    gone: Sequence[int]
    provisions: Sequence[Provision] = (Provision.DATA,)


@dataclass(slots=True)
class Tally:
    """What the runs came to (mutable)."""

    runs: int = 0
    points: set[tuple[str, str]] = field(default_factory=set)
    missed: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    resumed: Resumed = field(default_factory=Resumed)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "points": len(self.points),
            "runs": self.runs,
            "not_reached": len(self.missed),
            "violations": len(self.violations),
            "seconds": round(self.seconds, 1),
            "resume": self.resumed.figures(),
        }


Scenario = Callable[["Lab"], Asked]


class Lab:
    """A deployment in which workers are killed. `asked` runs a scenario to its end, whoever dies meanwhile.

    `first`: a point at which register dies of the very first registration, which draws the day's key.
    """

    def __init__(self, small: Small, *, reserve: int = 200, first: str = "") -> None:
        self.small = small
        self._reserve = reserve
        self._people: Iterator[int] = iter(())
        self._models = count()
        self.resumed = Resumed()
        if first:
            small.arm("register", first)
        self.bystander = small.register(1, beat=self.beat)[0]
        self.first = [] if not first or small.disarm("register") else [Point("first day", "register", first, 1)]

    def person(self) -> int:
        """Somebody registered of whom nobody asked anything yet."""
        found = next(self._people, None)
        if found is None:
            self._people = iter(self.small.register(self._reserve))
            found = next(self._people)
        return found

    def model(self) -> str:
        return f"m{next(self._models)}@1"

    def beat(self) -> None:
        """Start again whoever has ended."""
        for worker in self.small.embedded.ended():
            self.resumed.seconds.append(self.small.restart(worker))
            self.small.let_leases_end()

    def run(self, scenario: Scenario) -> tuple[Asked, Counter[str]]:
        """A scenario to its end, and its effects."""
        asked = scenario(self)
        self.small.wait(asked.request, beat=self.beat)
        self.beat()
        return asked, self.small.effects(asked.request)

    def wrong(self, asked: Asked, found: Counter[str], clean: Counter[str]) -> list[str]:
        """What differs from a run without a crash."""
        wrong = [
            f"{what}: {found[what]} instead of {clean[what]}"
            for what in sorted(found.keys() | clean.keys())
            if found[what] != clean[what]
        ]
        for person in asked.gone:
            wrong += [f"still in {store}" for store, photos in self.small.left(person).items() if photos]
        lost = [store for store, photos in self.small.left(self.bystander).items() if len(photos) != PHOTOS]
        wrong += [f"somebody else's are gone from {store}" for store in lost]
        announced = self.small.announced()
        wrong += [
            f"{announced[asked.request, provision.value]} certificates of {provision} announced"
            for provision in asked.provisions
            if announced[asked.request, provision.value] != 1
        ]
        if self.small.letters():
            wrong.append(f"dead letters: {self.small.letters()}")
        return wrong


def deletion(lab: Lab) -> Asked:
    person = lab.person()
    return Asked(lab.small.delete(person), [person])


def order(lab: Lab) -> Asked:
    """An order about one person, whose model is destroyed."""
    person, model = lab.person(), lab.model()
    eventually_trained(lab, model, person)
    request = lab.small.ordered(_about(person))
    lab.small.approve(request, beat=lab.beat)
    return Asked(request, [person], (Provision.DATA, Provision.MODELS))


def _about(person: int) -> Any:
    from expunge.domain.request import ByList

    return ByList(subjects=(subject(person),))


def eventually_trained(lab: Lab, model: str, person: int) -> None:
    """Train, with whoever dies of it started again."""
    lab.small.train(model, [person], beat=lab.beat)


def registration(lab: Lab) -> Asked:
    """A new person is registered while workers die, and deleted then."""
    (person,) = lab.small.register(1, wait=False)
    query = "select count(*) from image_subject where subject_ref = %s"
    eventually(lambda: lab.small.one(query, subject(person)) == 2 or None, "the registration", LIMIT, lab.beat)
    assert lab.small.one("select count(*) from image where key = %s", name(person, 0)) == 1
    return Asked(lab.small.delete(person), [person])


def reconciliation(lab: Lab) -> Asked:
    """A reconciliation beside a deletion."""
    before = _reconciled(lab)
    lab.small.sql("insert into task (kind, key, input) values ('reconcile', %s, '{}')", f"test {time.monotonic_ns()}")
    eventually(lambda: _reconciled(lab) > before or None, "a reconciliation in the log", LIMIT, lab.beat)
    assert _reconciled(lab) == before + 1
    return deletion(lab)


def _reconciled(lab: Lab) -> int:
    return int(lab.small.one("select count(*) from log_entry where predicate = 'urn:expunge:reconciliation:v1'"))


def parked(lab: Lab) -> Asked:
    """An order whose model cannot be destroyed at first, because the store's disk is away."""
    person, model = lab.person(), lab.model()
    eventually_trained(lab, model, person)
    folder, away = lab.small.product / "models", lab.small.product / "models-away"
    folder.rename(away)
    request = lab.small.ordered(_about(person))
    lab.small.approve(request, beat=lab.beat)
    query = "select count(*) from retry where worker = 'retrain'"
    eventually(lambda: lab.small.one(query) or None, "a parked event", LIMIT, lab.beat)
    away.rename(folder)
    lab.small.sql("update retry set not_before = clock_timestamp()")
    return Asked(request, [person], (Provision.DATA, Provision.MODELS))


INLINE: Final[dict[str, Scenario]] = {
    "deletion": deletion, "order": order, "registration": registration, "reconciliation": reconciliation,
    "parked": parked,
}  # fmt: skip
AS_TASKS: Final[dict[str, Scenario]] = {"deletion-as-tasks": deletion}
"""With executors and rescan that leave every order to task rows."""
WHOLE_TASKS: Final = {one: {"EXPUNGE_INLINE_LEAVES": "1"} for one in ("purge", "invalidate", "rescan")}


@contextmanager
def laboratory(root: Path, *, tasks: bool = False) -> Iterator[Lab]:
    """`tasks`: executors leave every order to task rows. The first registration dies where the day's key is drawn."""
    with Small(root, settings=WHOLE_TASKS if tasks else {}) as small:
        yield Lab(small, first="keys.linked" if tasks else "keys.drawn")


def survey(lab: Lab, scenarios: dict[str, Scenario]) -> tuple[dict[str, Counter[str]], list[Point]]:
    """Each scenario without a crash, twice: what it comes to, and every point that it passes."""
    clean: dict[str, Counter[str]] = {}
    points: list[Point] = []
    workers = list(lab.small.embedded._processes)
    for title, scenario in scenarios.items():
        lab.run(scenario)
        for worker in workers:
            lab.small.passed(worker)
        asked, clean[title] = lab.run(scenario)
        wrong = lab.wrong(asked, clean[title], clean[title])
        assert not wrong, wrong
        for worker in workers:
            passed = lab.small.passed(worker)
            points += [Point(title, worker, one, n + 1) for one in sorted(passed) for n in range(passed[one])]
    return clean, points


def once_each(points: Sequence[Point]) -> list[Point]:
    """The first of each (worker, point)."""
    found: dict[tuple[str, str], Point] = {}
    for one in points:
        found.setdefault((one.worker, one.name), one)
    return list(found.values())


def once_by_name(points: Sequence[Point]) -> list[Point]:
    """The first of each name, by whichever worker."""
    found: dict[str, Point] = {}
    for one in points:
        found.setdefault(one.name, one)
    return list(found.values())


def crash(lab: Lab, points: Sequence[Point], scenario: Scenario, clean: Counter[str], tally: Tally) -> None:
    """One run of a scenario in which these points kill their workers, one after another or together."""
    title = " + ".join(map(str, points))
    for point in points:
        lab.small.arm(point.worker, point.name, point.number)
    began = time.monotonic()
    tally.runs += 1
    try:
        asked, found = lab.run(scenario)
        wrong = lab.wrong(asked, found, clean)
    except AssertionError as error:
        wrong = [f"never finished: {error}"]
    for point in points:
        if lab.small.disarm(point.worker):
            tally.missed.append(str(point))
        else:
            tally.points.add((point.worker, point.name))
    tally.violations += [f"{title}: {one}" for one in wrong]
    tally.seconds += time.monotonic() - began
    tally.resumed = lab.resumed


def enumerate_all(
    lab: Lab, scenarios: dict[str, Scenario], tally: Tally, choose: Callable[[Sequence[Point]], list[Point]] = once_each
) -> list[Point]:
    """Survey, then a run per chosen point; all points that were surveyed."""
    clean, points = survey(lab, scenarios)
    for point in choose(points):
        crash(lab, [point], scenarios[point.scenario], clean[point.scenario], tally)
    return points


def whole(folder: Path, tally: Tally, choose: Callable[[Sequence[Point]], list[Point]] = once_each) -> list[Point]:
    """All chosen points of all scenarios, in two deployments; every point that was passed. In the second one executors and
    rescan leave all to task rows, and only what is about these is chosen."""
    passed: list[Point] = []
    for title, scenarios in (("inline", INLINE), ("tasks", AS_TASKS)):
        tasks = scenarios is AS_TASKS

        def chosen(points: Sequence[Point], *, tasks: bool = tasks) -> list[Point]:
            return [one for one in choose(points) if not tasks or one.name.startswith("tasks.")]

        with laboratory(folder / title, tasks=tasks) as lab:
            passed += lab.first + enumerate_all(lab, scenarios, tally, chosen)
            tally.violations += log_holds(lab)
    return passed


def log_holds(lab: Lab) -> list[str]:
    """What is wrong with the log and the stores after all of it."""
    found = lab.small.replayed()
    wrong = [f"replay differs: {one}" for one in found["differences"]]
    return wrong + [f"left behind: {one}" for one in lab.small.leftovers()]


def unreached(points: Sequence[Point]) -> list[str]:
    """Points of the list that no scenario passed, beside those that have a test of their own."""
    return sorted(set(crashing.POINTS) - {one.name for one in points} - KEYS - LARGE - S3)
