"""Faults of servers: 4, 5, 7 to 9, 19."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg

from expunge.domain.errors import Retryable
from tests.faults.ground import Beating, Ground, NotHere, Report, ahead, certified
from tests.faults.small import Small, eventually
from tests.faults.standby import Pair, WithStandby


def broker_down(ground: Ground) -> Report:
    """4: the broker is away; what it acknowledged before is done, what it did not the publisher is told."""
    small, report = ground.small, Report()
    seconds = 10.0 if ground.scale <= 1 else min(600.0, 30.0 * ground.scale)
    people = small.register(24)
    before = small.delete_all(people[:12])
    small.embedded.kafka.kill()
    refused, settings = 0, small.publisher._producer.config
    patience, settings["delivery_timeout_ms"] = settings["delivery_timeout_ms"], 5_000
    for person in people[12:15]:
        try:
            small.delete(person)
        except Retryable:
            refused += 1
    settings["delivery_timeout_ms"] = patience
    time.sleep(seconds)  # how long it is away is the fault itself
    began = time.monotonic()
    with Beating(small):  # brings the broker back, and workers that gave up meanwhile
        certified(small, before, report)
        caught_up = time.monotonic() - began
        with suppress(Retryable):  # what timed out meanwhile is told at the next flush
            small.publisher.flush()
        later = small.delete_all(people[15:])
        certified(small, later, report)
    everybody = small.sql("select count(*) from request where state not in ('completed', 'cancelled')")
    report.figure = {
        "away_s": seconds, "accepted_then_lost": len(report.violations), "publisher_told": refused,
        "catch_up_s": round(caught_up, 1), "open_after": everybody[0][0],
    }  # fmt: skip
    return report


def truncated(ground: Ground) -> Report:
    """5: the broker is killed and comes back without the tail of a topic, which it had acknowledged: an unclean election on
    one broker. Work orders are ordered again from rows."""
    report = Report()
    with ground.own() as small:
        people = small.register(8)
        certified(small, [small.delete(people[0])], report)
        small.embedded.stop_worker("purge")
        kept = _sizes(small)
        requests = small.delete_all(people[1:])
        query = "select count(*) from work where step in ('hide', 'erase')"
        eventually(lambda: small.one(query) or None, "work orders for purge")
        eventually(lambda: small.one("select count(*) from outbox") == 0 or None, "the outbox to be published")
        eventually(lambda: sum(_sizes(small).values()) > sum(kept.values()) or None, "the orders in the broker's files")
        small.embedded.kafka.kill()
        lost = sum(_sizes(small).values()) - sum(kept.values())
        for path, size in kept.items():
            os.truncate(path, size)
        small.embedded.kafka.restart()
        began = time.monotonic()
        small.embedded.start_worker("purge")
        small.embedded.wait_ready("purge")
        with Beating(small):
            certified(small, requests, report)
        report.expect(lost > 0, "nothing was truncated")
        report.figure = {
            "bytes_truncated": lost, "requests": len(requests), "restored": sum(map(small.done, requests)),
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
    return report


def _sizes(small: Small) -> dict[Path, int]:
    """Of the segments of purge's topic, by file."""
    folders = (small.embedded.directory / "kafka" / "data").glob("expunge.purge-*")
    return {path: path.stat().st_size for folder in folders for path in folder.glob("*.log")}


def database_restarted(ground: Ground) -> Report:
    """7: PostgreSQL restarts while a worker is about to commit; whether it did is looked up, never assumed."""
    small, report = ground.small, Report()
    runs = max(2, round(3 * ground.scale))
    points = ("delivery.recorded", "prove.recorded", "plan.recorded", "delivery.acted")
    resolved = 0
    people = small.register(runs)
    with Beating(small):
        for number, person in enumerate(people):
            small.arm("coordinate", points[number % len(points)], how="stop")
            request = small.delete(person)
            eventually(lambda: small.stopped("coordinate") or None, "the worker about to commit")
            small.embedded.postgres.kill()
            eventually(lambda: small.embedded.postgres.running or None, "PostgreSQL to be started again")
            small.signal("coordinate", signal.SIGCONT)
            certified(small, [request], report)
            resolved += small.done(request)
    report.expect(resolved == runs, f"{runs - resolved} commits stayed unresolved")
    report.runs = runs + 1
    report.figure = {"indeterminate": runs, "resolved": resolved, "failover": _failed_over(ground, report)}
    return report


def _failed_over(ground: Ground, report: Report) -> dict[str, float]:
    """The first of two servers is killed while requests are under way; its synchronous standby is promoted."""
    with ground.own(embedded=WithStandby) as small:
        pair = small.embedded.postgres
        assert isinstance(pair, Pair)
        people = small.register(20)
        requests = small.delete_all(people[:10])
        eventually(lambda: small.one("select count(*) from sweep") or None, "requests to be under way")
        held = {row[0] for row in small.sql("select leaf_hash from log_entry")}
        pair.fail_over()
        began = time.monotonic()
        with Beating(small):
            requests += small.delete_all(people[10:])
            certified(small, requests, report)
            took = time.monotonic() - began
        lost = held - {row[0] for row in small.sql("select leaf_hash from log_entry")}
        report.expect(not lost, f"{len(lost)} committed log entries are not on the standby")
        report.expect(small.replayed()["differences"] == [], "replay and rows differ after the failover")
        report.expect(not any(any(small.left(one).values()) for one in people), "something is left")
    return {
        "requests": len(requests),
        "entries_before": len(held),
        "entries_lost": len(lost),
        "seconds": round(took, 1),
    }


def database_paused(ground: Ground) -> Report:
    """8: PostgreSQL stands still; nothing is committed to Kafka that it does not have."""
    small, report = ground.small, Report()
    seconds = 15.0 if ground.scale <= 1 else 60.0
    people = small.register(20)
    requests = small.delete_all(people[:10])
    pid = small.embedded.postgres.pid
    assert pid is not None
    stopped = descendants(pid)
    with Beating(small):
        for one in stopped:
            os.kill(one, signal.SIGSTOP)
        requests += small.delete_all(people[10:])
        time.sleep(seconds)  # how long it stands still is the fault itself
        for one in stopped:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)
        took = certified(small, requests, report)
        beyond = ahead(small)
    report.expect(beyond == 0, f"{beyond} offsets committed beyond what was handled")
    report.figure = {"paused_s": seconds, "offsets_ahead": beyond, "catch_up_s": round(took, 1)}
    return report


def database_crowded(ground: Ground) -> Report:
    """9: no connection free, and rows and tables locked by others, deadlocks included."""
    small, report = ground.small, Report()
    people = small.register(16)
    requests = small.delete_all(people[:8])
    with Beating(small), ExitStack() as held:
        hoard: list[object] = []
        with suppress(psycopg.OperationalError):
            hoard.extend(held.enter_context(psycopg.connect(small.dsn)) for _ in range(250))
        report.expect(len(hoard) > 100, f"only {len(hoard)} connections could be taken")
        requests += small.delete_all(people[8:])
        time.sleep(3)
    with Beating(small):
        deadlocks = _deadlock(small)
        certified(small, requests, report)
    tries = [row[0] for row in small.sql("select attempts from retry order by 1")]
    attempts = int(tries[int(len(tries) * 0.99)]) if tries else 0
    report.figure = {
        "connections_taken": len(hoard),
        "locks_crossed": deadlocks,
        "parked_now": len(tries),
        "retries_p99": attempts,
    }
    return report


def _deadlock(small: Small) -> int:
    """Two sessions take the tables that every worker uses, in opposite order, for a second; how often."""
    times = 2

    def cross(first: str, second: str) -> None:
        for _ in range(times):
            with suppress(psycopg.errors.DeadlockDetected), psycopg.connect(small.dsn) as connection:
                connection.execute(f"lock table {first} in exclusive mode".encode())
                time.sleep(0.3)
                connection.execute(f"lock table {second} in exclusive mode".encode())
                time.sleep(0.3)

    threads = [threading.Thread(target=cross, args=pair) for pair in (("work", "request"), ("request", "work"))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return times


def disk_full(ground: Ground) -> Report:
    """19: no space left for PostgreSQL, then Kafka, then workers (evidence log, scope files, journal, keys), then the stores;
    freed, all go on by themselves."""
    report = Report()
    if os.geteuid() != 0:
        raise NotHere("mounting a tmpfs of limited size needs root")
    folder = ground.folder()
    with ExitStack() as mounts:
        places = {name: folder / "deployment" / name for name in ("postgres", "kafka", "data")}
        places |= {"stores": folder / "product"}
        for name, size in (("postgres", "220m"), ("kafka", "120m"), ("data", "40m"), ("stores", "40m")):
            mounts.enter_context(_limited(places[name], size))
        small = mounts.enter_context(Small(folder))
        people = iter(small.register(16))
        stalled: dict[str, float] = {}
        done_while_full: dict[str, int] = {}
        restarts: dict[str, int] = {}
        for name, place in places.items():
            certified(small, [small.delete(next(people))], report)
            filler = place / "filler"
            with Beating(small) as beating:
                _fill(filler)
                requests: list[str] = []
                for _ in range(2):
                    with suppress(Retryable):
                        requests.append(small.delete(next(people)))
                time.sleep(8)  # how long it is full is the fault itself
                if name != "postgres":  # which does not answer now
                    done_while_full[name] = sum(map(small.done, requests))
                filler.unlink()
                began = time.monotonic()
                certified(small, requests, report)
                certified(small, [small.delete(next(people))], report)
                stalled[name] = round(time.monotonic() - began, 1)
            restarts[name] = len(beating.said)
        report.figure = {
            "manual_steps": 0 if not report.violations else "see violations", "recovered_s": stalled,
            "certified_while_full": done_while_full, "restarts": restarts,
        }  # fmt: skip
        report.runs = len(stalled)
    return report


@contextmanager
def _limited(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotHere(f"mount refused a tmpfs: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        block = bytes(1 << 20)
        while True:
            file.write(block)
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found
