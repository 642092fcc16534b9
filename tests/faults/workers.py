"""Faults of workers: 1 to 3, 6, 18."""

from __future__ import annotations

import random
import time

from tests.faults import crashes
from tests.faults.crashes import Tally
from tests.faults.ground import Ground, Report, certified, deliveries
from tests.faults.sample import record, sampled
from tests.faults.small import eventually


def one_crash(ground: Ground) -> Report:
    """1: kill -9 at each numbered point, by each worker that passes it; or at a sample of them, whose history is judged."""
    if ground.sample:
        tally, records = sampled(ground.folder(), ground.sample, ground.seed)
        figure = {"seed": ground.seed, "missed": tally.missed, "history_records": records}
        return Report(tally.figures() | figure, tally.runs, tally.violations)
    tally = Tally()
    points = crashes.whole(ground.folder(), tally)
    if ground.record:
        record(points)
    figure = tally.figures() | {"unreached": crashes.unreached(points), "missed": tally.missed}
    return Report(figure, tally.runs, tally.violations)


def two_crashes(ground: Ground) -> Report:
    """2: two workers at once, or one after the other: a seeded sample of pairs."""
    tally, drawn = Tally(), random.Random(20261123)
    clean, points = crashes.survey(ground.lab, {"deletion": crashes.deletion})
    several = crashes.once_each(points)
    for _ in range(max(1, round(4 * ground.scale))):
        first = drawn.choice(several)
        second = drawn.choice([one for one in several if one.worker != first.worker])
        crashes.crash(ground.lab, [first, second], crashes.deletion, clean["deletion"], tally)
    return Report(tally.figures(), tally.runs, tally.violations)


def terminated(ground: Ground) -> Report:
    """3: SIGTERM under load."""
    small, report = ground.small, Report()
    people = small.register(round(60 * ground.scale))
    requests = small.delete_all(people)
    drained: dict[str, float] = {}
    for worker in ("coordinate", "purge", "rescan"):
        began = time.monotonic()
        status = small.embedded.stop_worker(worker)
        drained[worker] = round(time.monotonic() - began, 2)
        report.expect(status == 0, f"{worker} ended with {status} on SIGTERM")
        small.restart(worker)
    took = certified(small, requests, report)
    redone = sum(deliveries(small, worker).get("duplicate", 0) for worker in drained)
    report.expect(max(drained.values()) < 10, f"a drain took 10 s or more: {drained}")
    report.figure = {"drain_s": drained, "redone_messages": redone, "requests": len(requests), "rest_s": round(took, 1)}
    return report


def rebalances(ground: Ground) -> Report:
    """6: an instance joins and leaves every two seconds."""
    small, report = ground.small, Report()
    rounds = max(2, round(3 * ground.scale))
    people = small.register(40)
    began = time.monotonic()
    calm = certified(small, [small.delete(one) for one in people[:5]], report)
    requests = []
    for number in range(rounds):
        some = people[5 + number * 30 // rounds : 5 + (number + 1) * 30 // rounds]
        requests += small.delete_all(some)
        small.embedded.start_worker("purge", "1")
        small.embedded.wait_ready("purge", "1")
        small.embedded.stop_worker("purge-1")
    took = certified(small, requests, report)
    report.figure = {
        "rounds": rounds, "requests": len(requests), "calm_s": round(calm, 1), "rest_s": round(took, 1),
        "storm_s": round(time.monotonic() - began, 1),
        "duplicate_deliveries": deliveries(small, "purge").get("duplicate", 0), "duplicate_effects": len(report.violations),
    }  # fmt: skip
    return report


def poison(ground: Ground) -> Report:
    """18: a message that kills its worker each time is quarantined, and others go on."""
    small, report = ground.small, Report()
    victim, *others = small.register(4)
    letters = len(small.letters())
    point = "intake.inserted"  # outcomes do not come by it: those not acknowledged yet come again after each death
    small.arm("coordinate", point)
    poisoned = small.delete(victim)
    deaths = 0

    def dead_letter() -> bool:
        nonlocal deaths
        if small.ended("coordinate"):
            deaths += 1
            if deaths < 3:
                small.arm("coordinate", point)
            small.restart("coordinate", ready=False)  # it may be dead again before it is ready
        return len(small.letters()) > letters

    eventually(lambda: dead_letter() or None, "the message in quarantine", 120)
    report.expect(small.letters()[-1] == "poison", f"quarantined as {small.letters()[-1]}")
    report.expect(small.state(poisoned) is None, "the poisoned request was taken all the same")
    took = certified(small, [small.delete(one) for one in others], report)
    report.figure = {"tries": deaths, "others_s": round(took, 1)}
    small.sql("delete from dead_letter")
    return report
