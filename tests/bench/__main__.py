"""`make bench`: the real workers on real servers, as ratios to the same work done bare in the same run.

python -m tests.bench [--quick] [--only orders|requests|micro] [--sizes 3000,30000] [--requests 1000] [--profile]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.console import Console

from expunge.wiring.up import Embedded
from tests.bench import beside, micro, objects, orders, people, report, scale
from tests.bench.corpus import PER_PERSON, PHOTOS, Corpus, import_rows, store_urls
from tests.bench.rig import AUDIENCE, WORKERS, Rig

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a tmpfs is the point
COPIES_UP_TO: Final = 30_000
"""Larger orders have one copy for the floor, smaller ones three, because their floor is over in a moment."""
PEOPLE_VECTORS: Final = 50_000
"""Least vectors in the index that people's vectors are removed from."""
QUICK_VECTORS: Final = 5_000
PACED_SECONDS: Final = 10.0
UNCAPPED: Final = {"breaker_artifacts": 10**9, "breaker_share": 1.0, "breaker_floor": 10**9}
"""All is erased within the hour, which the blast-radius breaker is there to stop."""


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes, within a minute")
    parser.add_argument("--only", choices=("orders", "requests", "micro"), action="append", help="may be repeated")
    parser.add_argument("--sizes", default="3000,30000", help="images per order")
    parser.add_argument("--requests", type=int, default=3000, help="people who ask at once")
    parser.add_argument("--publishers", type=int, default=16)
    parser.add_argument(
        "--beside", type=int, default=3000, help="people whose pgvector rows go, by us and by another; 0: none"
    )
    parser.add_argument("--scale", default="", help="workers per stage to compare, ascending: 1,2,4")
    parser.add_argument("--backlog", type=int, default=0, help="requests that wait in Kafka before coordinate starts")
    parser.add_argument(
        "--sweep", type=int, default=1024, help="most requests in a sweep: more, where a backlog is worked off"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="of each worker that touches stores, and of the floor of orders"
    )
    parser.add_argument("--disk", type=Path, help="keep files and indexes in a folder below this one, not in memory")
    parser.add_argument(
        "--s3", action="store_true", help="photos of orders are objects of a versitygw (with --only orders)"
    )
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="where results and history go")
    parser.add_argument("--profile", action="store_true", help="py-spy each worker, into OUTPUT/profiles")
    parser.add_argument("--keep-logs", action="store_true", help="copy the logs of workers and servers to OUTPUT/logs")
    found = parser.parse_args(given)
    found.sizes = [int(one) for one in found.sizes.split(",")]
    found.scale = [int(one) for one in found.scale.split(",") if one]
    if found.quick:
        found.sizes, found.requests, found.beside = [1000], 100, 0
    found.only = found.only or ["orders", "requests", "micro"]
    if found.s3 and "requests" in found.only:
        parser.error("--s3 is for orders: add --only orders")
    return found


def main(given: list[str]) -> int:
    options = arguments(given)
    console = Console(stderr=True)
    result: dict[str, Any] = {"options": {name: str(value) for name, value in vars(options).items()}}
    if "micro" in options.only:
        result["micro"] = micro.run(quick=options.quick)
    if {"orders", "requests"} & set(options.only):
        memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
        files = Path(tempfile.mkdtemp(prefix="expunge-bench-", dir=options.disk or (MEMORY if memory else None)))
        servers = Path(tempfile.mkdtemp(prefix="expunge-bench-"))
        files.chmod(0o755)
        servers.chmod(0o755)
        try:
            result |= _deployment(options, files, servers, console)
        finally:
            if options.keep_logs or options.profile:
                shutil.copytree(servers / "up" / "logs", options.output / "logs", dirs_exist_ok=True)
                shutil.copy(servers / "up" / "postgres" / "postgres.log", options.output / "logs")
            shutil.rmtree(files, ignore_errors=True)
            shutil.rmtree(servers, ignore_errors=True)
    path = report.keep(result, options.output)
    report.show(result, Console())
    console.print(f"written to {path}")
    return 0


def _deployment(options: argparse.Namespace, files: Path, servers: Path, console: Console) -> dict[str, Any]:
    """Everything that needs servers. One deployment serves all runs; a first, unmeasured one warms it."""
    begun = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"{time.monotonic() - begun:6.1f} s  {text}")

    corpora = _corpora(options)
    live = files / "live"
    for corpus in corpora.every:
        corpus.write(live)
    profiles = options.output / "profiles" if options.profile else None
    with ExitStack() as stack:
        s3 = stack.enter_context(objects.serve(files / "s3")) if options.s3 else None
        stores = store_urls(live) | ({PHOTOS: s3.url(s3.filled(live))} if s3 else {})
        tell("files and indexes are written")
        embedded = stack.enter_context(
            Embedded(
                servers / "up",
                audience=AUDIENCE,
                workers=WORKERS,
                stores=stores,
                overrides=UNCAPPED | {"sweep_requests": options.sweep},
            )
        )
        rig = Rig(embedded, profiles, options.processes)
        if corpora.rows.images:
            vectors = embedded.postgres.create_database("vectors")
            beside.fill(vectors, corpora.rows.images)
            stores[beside.STORE] = f"pgvector+{vectors}"
        embedded.use_stores(stores)
        tell("servers are up")
        import_rows(embedded.settings, corpora.every, servers)
        tell("rows are imported")
        copies = _copies(rig, 3)
        if options.profile:
            _log_slow(rig)
        rig.start(stores)
        tell("workers are ready")
        people.run(rig, corpora.warm_people, range(50), publishers=2, rate=None, name="warm")
        orders.run(rig, corpora.warm, "warm-order")
        tell("warm")
        rig.settle()
        result: dict[str, Any] = {"idle": rig.idle(1.0 if options.quick else 4.0)}
        if corpora.crowd.images:
            result |= _people(rig, options, corpora, files, servers, copies[0], tell)
        for images, corpus in corpora.sources.items():
            result.setdefault("orders", []).append(_order(rig, options, corpus, images, copies, files, s3, tell))
    return result


@dataclass(frozen=True, slots=True)
class _Corpora:
    """What each part of a run erases; empty where it is not asked for."""

    warm: Corpus
    warm_people: Corpus
    crowd: Corpus
    more: Corpus
    queued: Corpus
    rows: beside.Rows
    sources: dict[int, Corpus]

    @property
    def every(self) -> list[Corpus]:
        people_ = (self.crowd, self.more, self.queued, self.rows)
        return [self.warm, self.warm_people, *(one for one in people_ if one.images), *self.sources.values()]


def _corpora(options: argparse.Namespace) -> _Corpora:
    asked = options.requests if "requests" in options.only else 0
    least = QUICK_VECTORS if options.quick else PEOPLE_VECTORS
    return _Corpora(
        warm=Corpus("warm", 1_000, 0),
        warm_people=Corpus("warm-people", 1_000, 0),
        crowd=Corpus("people", 2 * asked * PER_PERSON, max(0, least - 2 * asked * PER_PERSON)),
        more=Corpus("more", asked * len(options.scale) * PER_PERSON, 0),
        queued=Corpus("queued", options.backlog if asked else 0, 0, per_person=1),  # a million are to fit
        rows=beside.Rows("rows", options.beside * PER_PERSON if asked else 0, 0),
        sources={n: Corpus(f"order-{n}", n, n) for n in (options.sizes if "orders" in options.only else ())},
    )


def _order(
    rig: Rig, options: argparse.Namespace, corpus: Corpus, images: int, copies: list[str], files: Path,
    s3: objects.Objects | None, tell: Any,
) -> dict[str, Any]:  # fmt: skip
    rig.settle()
    system = orders.run(rig, corpus, f"order-{images}")
    tell(f"order of {images} done")
    copied = []
    for number, dsn in enumerate(copies if images <= COPIES_UP_TO else copies[:1]):
        root = files / f"floor-{images}-{number}"
        corpus.write(root)
        copied.append(orders.Copy(root, dsn, s3.filled(root) if s3 else None))
    os.sync()  # on a disk, what was never written is cheaply unlinked: the order's files have been there for a while
    floor = orders.floors(copied, corpus, options.processes)
    tell(f"its floor done: {system['wall']:.2f} s against {floor['wall']:.3f} s")
    for one in copied:
        shutil.rmtree(one.root)
    return {"system": system, "floor": floor, "ratio": system["wall"] / floor["wall"]}


def _people(
    rig: Rig, options: argparse.Namespace, corpora: _Corpora, files: Path, servers: Path, copy: str, tell: Any
) -> dict[str, Any]:  # fmt: skip
    """All that is measured with people's requests."""
    found: dict[str, Any] = {"requests": _requests(rig, options, corpora.crowd, files, copy, tell)}
    if corpora.rows.images:
        found["beside"] = _beside(rig, corpora.rows, servers / "lethe", options.publishers, tell)
    if corpora.queued.images:
        waiting = range(options.backlog)
        found["backlog"] = scale.backlog(rig, corpora.queued, waiting, publishers=options.publishers, tell=tell)
    if corpora.more.images:
        found["scale"] = scale.out(rig, corpora.more, options.scale, options.requests, options.publishers, tell)
    return found


def _requests(
    rig: Rig, options: argparse.Namespace, crowd: Corpus, files: Path, copy: str, tell: Any
) -> dict[str, Any]:  # fmt: skip
    asked, publishers = options.requests, options.publishers
    burst = people.run(rig, crowd, range(asked), publishers=publishers, rate=None, name="requests")
    tell(f"{asked} requests done, {burst['rate']:.0f} per second")
    rate = burst["rate"] / 2
    paced_people = range(asked, asked + min(asked, max(20, int(rate * (2 if options.quick else PACED_SECONDS)))))
    paced = people.run(rig, crowd, paced_people, publishers=publishers, rate=rate, name="paced")
    tell(f"at half that rate: p99 {paced['p99'] * 1e3:.0f} ms")
    root = files / "floor-people"
    crowd.write(root)
    sweep = max(1, round(burst["requests_per_sweep"]))
    floor = people.floor(rig, crowd, range(asked), root=root, dsn=copy, publishers=publishers, sweep=sweep)
    tell(f"their floor done, {floor['rate']:.0f} per second")
    shutil.rmtree(root)
    shares = {"ratio": burst["rate"] / floor["rate"], "cpu_ratio": floor["cpu_each"] / burst["cpu_each"]}
    return {"burst": burst, "paced": paced, "floor": floor} | shares


def _beside(rig: Rig, rows: beside.Rows, folder: Path, publishers: int, tell: Any) -> dict[str, Any]:
    """The same deletions by us and by another."""
    people_ = range(rows.images // PER_PERSON)
    ours = people.run(rig, rows, people_, publishers=publishers, rate=None, name="beside")
    tell(f"{len(people_)} people's pgvector rows deleted, {ours['rate']:.0f} people per second")
    if (why := beside.install(folder)) is not None:
        return {"ours": ours, "theirs": {"skipped": why}}
    dsn = rig.embedded.postgres.create_database("lethe")
    beside.fill(dsn, rows.images)
    with rig.measured("beside-theirs") as measured:
        theirs = beside.run(folder, dsn, [rows.subject(one) for one in people_], publishers)
    if "cpu" in theirs:
        theirs["cpu_each"] = (theirs["cpu"] + measured["cpu"].get("postgres", 0.0)) / len(people_)
    tell(f"the same by {beside.PACKAGE}: {theirs.get('rate', 0):.0f} per second")
    found: dict[str, Any] = {"ours": ours, "theirs": theirs}
    return found | ({"ratio": ours["rate"] / theirs["rate"]} if theirs.get("rate") else {})


def _copies(rig: Rig, count: int) -> list[str]:
    """Copies of the database as it is now, for floors."""
    names = [f"floor_{number}" for number in range(count)]
    with psycopg.connect(rig.embedded.postgres.dsn, autocommit=True) as admin:
        for name in names:
            admin.execute(sql.SQL("create database {} template expunge").format(sql.Identifier(name)))
        admin.execute("checkpoint")
    return [make_conninfo(rig.database, dbname=name) for name in names]


def _log_slow(rig: Rig) -> None:
    with psycopg.connect(rig.embedded.postgres.dsn, autocommit=True) as admin:
        admin.execute("alter database expunge set log_min_duration_statement = 10")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
