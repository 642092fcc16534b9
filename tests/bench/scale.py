"""More workers per stage, and a backlog: what a request costs with each, and what memory does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg

from expunge.domain import topics
from expunge.pipeline import WORKERS
from tests.bench import people
from tests.bench.corpus import PER_PERSON, Corpus
from tests.bench.rig import Proofs, Publishing, Rig

SCALED: Final = ("coordinate", "purge", "invalidate", "retrain", "rescan")
"""Workers with a part in people's requests."""
SAMPLE_SECONDS: Final = 5.0
TELL_SECONDS: Final = 60.0
PUBLISHING: Final = 2
"""Processes that publish a backlog: one is bound by its interpreter."""


def out(rig: Rig, corpus: Corpus, counts: Sequence[int], each: int, publishers: int, tell: Any) -> list[dict[str, Any]]:
    """`each` requests with each number of workers per stage, ascending; a topic with fewer partitions has as many workers."""
    found = []
    for turn, count in enumerate(counts):
        _grow(rig, count)
        ran = people.run(
            rig, corpus, range(turn * each, (turn + 1) * each), publishers=publishers, rate=None, name=f"scale-{count}"
        )
        tell(f"{count} workers per stage: {ran['rate']:.0f} per second")
        ran["workers"] = count
        ran["cpu_per_image"] = ran["cpu_each"] / PER_PERSON
        ran["partitions"] = _spread(rig)
        found.append(ran)
    return found


def _grow(rig: Rig, count: int) -> None:
    """Start what lacks to `count` instances of each stage."""
    started = []
    for name in SCALED:
        most = min(topic.partitions for topic in WORKERS[name].consumes)
        for number in range(1, min(count, most)):
            if f"{name}-{number}" not in rig.embedded._processes:
                rig.embedded.start_worker(name, str(number))
                started.append((name, str(number)))
    for name, instance in started:
        rig.embedded.wait_ready(name, instance)


def _spread(rig: Rig) -> dict[str, list[int]]:
    """How many partitions each member of each group has, fewest first."""
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=rig.kafka)
    try:
        groups = admin.describe_groups([f"expunge-{name}" for name in SCALED])
    finally:
        admin.close()
    return {
        name: sorted(
            sum(len(topic["partitions"]) for topic in member["member_assignment"]["assigned_partitions"])
            for member in groups[f"expunge-{name}"]["members"]
        )
        for name in SCALED
    }


def backlog(rig: Rig, corpus: Corpus, people_: range, *, publishers: int, tell: Any) -> dict[str, Any]:
    """Requests of one image each that wait in Kafka when coordinate starts: memory of every worker meanwhile, and how
    they end."""
    rig.embedded.stop_worker("coordinate")
    subjects = [corpus.subject(person) for person in people_]
    proofs = Proofs(rig.kafka, topics.PROOFS)
    samples: list[Sample] = []
    stop = threading.Event()
    try:
        sent = _published(rig, subjects, publishers)
        tell(f"{len(sent)} requests wait")
        rig.embedded.start_worker("coordinate")
        rig.embedded.wait_ready("coordinate")
        rig.forget_peaks()
        begun = time.time()
        watch = threading.Thread(target=_watch, args=(rig, proofs, begun, samples, tell, stop.is_set))
        watch.start()
        proofs.wait(list(sent), rig=rig, seconds=120 + len(sent) / 20)
    finally:
        stop.set()
        proofs.close()
    watch.join()
    done = {one: at for one, (at, _) in proofs.certified.items() if one in sent}
    wall = max(done.values()) - begun
    resident = [sample.resident["coordinate"] for sample in samples]
    return {
        "requests": len(sent), "lost": len(sent) - len(done), "wall": wall, "rate": len(done) / wall,
        "rss_mib_first": resident[0], "rss_mib_most": max(resident), "rss_mib_last": resident[-1],
        "peak_mib": rig.peaks(), "samples": [asdict(one) for one in samples],
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds since coordinate was ready, requests accepted and not completed, certificates, and MiB resident by worker."""

    at: float
    open: int
    certified: int
    resident: dict[str, int]


def _published(rig: Rig, subjects: Sequence[str], publishers: int) -> dict[str, float]:
    """When each request was published, by id."""
    with ExitStack() as stack:
        each = -(-publishers // PUBLISHING)
        every = [stack.enter_context(Publishing(rig.kafka, each)) for _ in range(PUBLISHING)]
        for number, one in enumerate(every):
            one.send(subjects[number::PUBLISHING])
        sent: dict[str, float] = {}
        for one in every:
            sent |= one.sent()
    return sent


def _watch(
    rig: Rig, proofs: Proofs, begun: float, samples: list[Sample], tell: Any, stopped: Callable[[], bool]
) -> None:  # fmt: skip
    told = begun
    with psycopg.connect(rig.database, autocommit=True) as connection:
        while not stopped():
            ((waiting,),) = connection.execute("select count(*) from request where state <> 'completed'").fetchall()
            now = time.time()
            samples.append(Sample(round(now - begun, 2), waiting, len(proofs.certified), rig.resident()))
            if now - told >= TELL_SECONDS:
                told = now
                tell(f"{len(proofs.certified)} certified, {waiting} accepted and open, MiB {samples[-1].resident}")
            time.sleep(SAMPLE_SECONDS)
