"""What fault scenarios share: one deployment that most of them break, made when the first asks, and what a run reports."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tests.faults.crashes import Lab
from tests.faults.small import Small

_DELIVERIES: Final = re.compile(
    r'^expunge_deliveries_total\{outcome="(\w+)",topic="([^"]+)",worker="(\w+)"\} (\S+)$', re.MULTILINE
)


class NotHere(Exception):  # noqa: N818 - said, not a fault
    """What the scenario needs is not on this machine: said aloud, and no result."""


@dataclass(slots=True)
class Report:
    """What a scenario found (mutable). `figure`: what the matrix asks for; `violations`: in words."""

    figure: dict[str, Any] = field(default_factory=dict)
    runs: int = 1
    violations: list[str] = field(default_factory=list)

    def expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.violations.append(otherwise)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the matrix. `long`: for `make soak`, not for the slow tier."""

    number: int
    title: str
    run: Callable[[Ground], Report]
    long: bool = False


class Ground:
    """`scale`: 1 for the slow tier; more makes scenarios longer (soak). `sample`: seconds that crash points may take, drawn
    by `seed`; 0: all of them, which `record` writes down. A context manager."""

    def __init__(self, scale: float = 1.0, *, sample: float = 0.0, seed: int = 0, record: bool = False) -> None:
        self.scale, self.sample, self.seed, self.record = scale, sample, seed, record
        self._stack = ExitStack()
        self._lab: Lab | None = None
        self.root = Path(tempfile.mkdtemp(prefix="expunge-faults-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root))

    def own(self, **options: Any) -> Small:
        """A deployment of one's own, up; the caller's with-block ends it."""
        return Small(self.folder(), **options)

    @property
    def lab(self) -> Lab:
        """The shared one."""
        if self._lab is None:
            self._lab = Lab(self._stack.enter_context(Small(self.folder())))
        return self._lab

    @property
    def small(self) -> Small:
        return self.lab.small


class Beating:
    """Starts again who ended, in a thread, as a service manager would."""

    def __init__(self, small: Small) -> None:
        self._small = small
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.said: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self._small.embedded.revive(self.said.append)


def certified(small: Small, requests: Sequence[str], report: Report, seconds: float = 180.0) -> float:
    """Waits for all; seconds. Every one is announced once, and nothing is left of nobody's asking."""
    began = time.monotonic()
    try:
        small.wait(*requests, seconds=seconds)
    except AssertionError as error:
        states = [small.state(one) for one in requests]
        report.violations.append(f"{error}: states { ({one: states.count(one) for one in set(states)}) }")
        return time.monotonic() - began
    announced = small.announced()
    twice = [one for one in requests if announced[one, "data"] != 1]
    report.expect(not twice, f"{len(twice)} requests without exactly one data certificate announced")
    return time.monotonic() - began


def scraped(small: Small, worker: str) -> str:
    url = small.embedded.health_url(worker)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 - loopback, our own worker
        text: str = answer.read().decode()
    return text


def deliveries(small: Small, worker: str) -> dict[str, int]:
    """Messages of a worker by what became of them, since it started."""
    found: dict[str, int] = {}
    for outcome, _topic, _worker, value in _DELIVERIES.findall(scraped(small, worker)):
        found[outcome] = found.get(outcome, 0) + int(float(value))
    return found


def ahead(small: Small) -> float:
    """Offsets that Kafka holds committed beyond what Postgres holds handled, over all workers."""
    total = 0.0
    for worker in ("register", "coordinate", "purge", "invalidate", "retrain", "rescan"):
        for line in scraped(small, worker).splitlines():
            if line.startswith("expunge_committed_above_handled{"):
                total += float(line.rpartition(" ")[2])
    return total


def to_json(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=2, default=str) + "\n", encoding="utf-8")
