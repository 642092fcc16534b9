"""A deployment under measurement: real servers, real workers, publishers in a process of their own, and what they cost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from kafka import KafkaConsumer, TopicPartition

from expunge.client import Publisher
from expunge.domain import dsse, topics
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.request import Regulation, RequestId, SubjectRef
from expunge.wiring.up import Embedded, register_key

AUDIENCE: Final = "bench"
WORKERS: Final = ("register", "coordinate", "purge", "invalidate", "retrain", "rescan")
SCALED: Final = ("purge", "invalidate", "rescan")
"""Those that touch stores. What a floor with so many processes is compared with has so many of each of these."""
FLOOR_IN: Final = topics.Topic("bench.floor.requests", 12, topics.DAY_MS, public=False)
WARM: Final = topics.Topic("bench.warm", 1, topics.DAY_MS, public=False)
FLOOR_OUT: Final = topics.Topic("bench.floor.proofs", 12, topics.DAY_MS, public=False)

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SPAWN: Final = multiprocessing.get_context("spawn")
_SAMPLE: Final = re.compile(
    r'^expunge_batch_seconds_(sum|count)\{topic="([^"]+)",worker="([^"]+)"\} (\S+)$', re.MULTILINE
)


def seed_of(name: str) -> bytes:
    return name.encode().ljust(32, b".")


class Rig:
    """`embedded` with its servers up. `start` registers keys and starts workers: `processes` of each of `SCALED`."""

    def __init__(self, embedded: Embedded, profiles: Path | None, processes: int = 1) -> None:
        self.embedded = embedded
        self.processes = processes
        self._profiles = profiles

    @property
    def kafka(self) -> str:
        return self.embedded.settings.kafka

    @property
    def database(self) -> str:
        return self.embedded.settings.database

    def start(self, stores: Mapping[str, str]) -> None:
        self.embedded.use_stores(stores)
        self.embedded.kafka.create_topics({one.name: one.partitions for one in (WARM, FLOOR_IN, FLOOR_OUT)})
        self.embedded.start_workers()
        more = [(name, str(number)) for number in range(1, self.processes) for name in SCALED]
        for name, instance in more:
            self.embedded.start_worker(name, instance)
        for name, instance in more:
            self.embedded.wait_ready(name, instance)
        for role, names in (("publisher", ("publisher",)), ("approver", ("approver-0", "approver-1"))):
            for name in names:
                public = dsse.SigningKey.from_seed(seed_of(name)).public
                key_id = dsse.SigningKey.from_seed(seed_of(name)).key_id
                register_key(self.database, role=role, name=name, public=public.raw, key_id=key_id)

    def publisher(self, name: str = "publisher") -> Publisher:
        return Publisher(self.kafka, dsse.SigningKey.from_seed(seed_of(name)), AUDIENCE, name)

    def pids(self) -> dict[str, int]:
        servers = (("postgres", self.embedded.postgres.pid), ("kafka", self.embedded.kafka.pid))
        workers = ((name, process.pid) for name, process in self.embedded._processes.items())
        return {name: pid for name, pid in (*workers, *servers) if pid is not None}

    def cpu(self, others: Mapping[str, int] | None = None) -> dict[str, float]:
        """CPU seconds so far, by worker and server, and of `others` by process id."""
        children = _children()
        return {name: tree_seconds(pid, children) for name, pid in (self.pids() | dict(others or {})).items()}

    def handling(self) -> dict[str, float]:
        """Seconds that each worker's handlers have been busy, by topic (from /metrics); tasks are not in it."""
        found: dict[str, float] = {}
        for name in WORKERS:
            url = self.embedded.health_url(name)
            if url is None:
                continue
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310 - loopback
                text = answer.read().decode()
            for what, topic, worker, value in _SAMPLE.findall(text):
                key = f"{worker} {topic.removeprefix('expunge.')}" + (" batches" if what == "count" else "")
                found[key] = float(value)
        return found

    def settle(self, seconds: float = 600.0) -> None:
        """Until no task is left to run: after an order the stores are counted, which would be measured with what comes next."""
        deadline = time.monotonic() + seconds
        with psycopg.connect(self.database, autocommit=True) as connection:
            while connection.execute(
                "select 1 from task where done_at is null and not_before <= clock_timestamp() limit 1"
            ).fetchall():
                self.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"tasks are still under way after {seconds} s")
                time.sleep(0.1)

    def idle(self, seconds: float) -> dict[str, float]:
        """Share of a core that each takes when there is nothing to do."""
        cpu, at = self.cpu(), time.perf_counter()
        time.sleep(seconds)
        taken = time.perf_counter() - at
        return {name: round(used / taken, 4) for name, used in _less(self.cpu(), cpu).items()}

    def forget_peaks(self) -> None:
        """What `peaks` tells begins anew."""
        for pid in self._worker_pids().values():
            Path(f"/proc/{pid}/clear_refs").write_text(
                "5", encoding="ascii"
            )  # proc_pid_clear_refs(5): VmHWM from now on

    def peaks(self) -> dict[str, float]:
        """Most memory that each worker has had resident since it was last measured, MiB."""
        return {name: round(_kib(pid, "VmHWM:") / 1024, 1) for name, pid in self._worker_pids().items()}

    def resident(self) -> dict[str, int]:
        """Memory that each worker has resident now, MiB."""
        return {name: _kib(pid, "VmRSS:") >> 10 for name, pid in self._worker_pids().items()}

    def _worker_pids(self) -> dict[str, int]:
        return {name: pid for name, pid in self.pids().items() if name in self.embedded._processes}

    def check(self) -> None:
        """Raises when a worker has ended."""
        if ended := self.embedded.ended():
            raise RuntimeError(f"workers ended: {', '.join(ended)}; see {self.embedded.directory / 'logs'}")

    @contextmanager
    def measured(self, name: str, others: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """Fills the dictionary with `wall`, `cpu` and `handling` of the body. `others`: process ids to count beside ours."""
        self.forget_peaks()
        cpu, handling, at = self.cpu(others), self.handling(), time.perf_counter()
        found: dict[str, Any] = {}
        with self._profiled(name):
            yield found
        found["wall"] = time.perf_counter() - at
        found["cpu"] = _less(self.cpu(others), cpu)
        found["handling"] = _less(self.handling(), handling)
        found["peak_mib"] = self.peaks()

    @contextmanager
    def _profiled(self, name: str) -> Iterator[None]:
        spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
        if self._profiles is None or spy is None:
            yield
            return
        self._profiles.mkdir(parents=True, exist_ok=True)
        running = []
        for worker, process in self.embedded._processes.items():
            out = self._profiles / f"{name}-{worker}.folded"
            command = [
                spy,
                "record",
                "--pid",
                str(process.pid),
                "--rate",
                "100",
                "--format",
                "raw",
                "--output",
                str(out),
            ]
            running.append(subprocess.Popen([*command, "--duration", "3600", "--nonblocking"], stdout=-3, stderr=-3))
        time.sleep(1.0)
        try:
            yield
        finally:
            for one in running:
                one.send_signal(2)
            for one in running:
                one.wait(30)


def _less(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value - before.get(name, 0.0), 4) for name, value in now.items() if value != before.get(name)}


def _kib(pid: int, field_: str) -> int:
    """A line of /proc/PID/status."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition(field_)[2].split(maxsplit=1)[0])


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are wanted, not paths
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            found.setdefault(int(stat[1]), []).append(int(name))
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on (state, ppid, ...)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def tree_seconds(pid: int, children: Mapping[int, Sequence[int]]) -> float:
    """Of a process, those it waited for, and all below it."""
    stat = _stat(pid)
    own = sum(map(int, stat[11:15])) / _TICKS if stat else 0.0
    return own + sum(tree_seconds(child, children) for child in children.get(pid, ()))


class Proofs:
    """What comes out, and when: a thread that reads a topic from its end on."""

    def __init__(self, bootstrap: str, topic: topics.Topic) -> None:
        self.certified: dict[str, tuple[float, str]] = {}
        self.awaited: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._consumer = KafkaConsumer(
            # The broker answers as soon as there is something, whatever the longest wait: a short one only keeps it busy.
            bootstrap_servers=bootstrap,
            enable_auto_commit=False,
            fetch_max_wait_ms=200,
            max_poll_records=2000,
        )
        parts = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        self._consumer.assign(parts)
        self._consumer.seek_to_end(*parts)
        for part in parts:
            self._consumer.position(part)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            polled = self._consumer.poll(timeout_ms=50)
            at = time.time()
            if not polled:
                continue
            with self._changed:
                for records in polled.values():
                    for record in records:
                        self._take(record, at)
                self._changed.notify_all()

    def _take(self, record: Any, at: float) -> None:
        kind = dict(record.headers).get("ce_type", b"").decode()
        if kind == "expunge.proof.certificate-issued.v1":
            event = json.loads(record.value)
            if event["provision"] == "data":
                self.certified.setdefault(event["request_id"], (at, event["result"]))
        elif kind == "expunge.proof.approval-awaited.v1":
            event = json.loads(record.value)
            self.awaited[event["request_id"]] = event["scope_root"]
        elif kind == "expunge.proof.request-rejected.v1":
            event = json.loads(record.value)
            self.refused[event["request_id"]] = event["code"]
        elif not kind:  # the floor's
            self.certified.setdefault(record.key.decode(), (at, "complete"))

    def wait(self, wanted: Sequence[str], *, rig: Rig, seconds: float) -> None:
        """Until all of `wanted` are certified, or `seconds` have passed: who asks counts what is missing."""
        missing = list(wanted)

        def done() -> bool:
            while missing and missing[-1] in self.certified:
                missing.pop()
            return not missing

        with suppress(TimeoutError):
            self._wait(done, rig, seconds, wanted)

    def wait_scope(self, request_id: str, *, rig: Rig, seconds: float) -> str:
        self._wait(lambda: request_id in self.awaited, rig, seconds, [])
        return self.awaited[request_id]

    def _wait(self, done: Any, rig: Rig, seconds: float, wanted: Sequence[str]) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not done():
                if self.refused and any(one in self.refused for one in wanted):
                    raise RuntimeError(f"refused: {set(self.refused.values())}")
                if not self._changed.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
                    rig.check()
                    if time.monotonic() > deadline:
                        missing = sum(one not in self.certified for one in wanted)
                        raise TimeoutError(f"{missing} of {len(wanted)} requests have no certificate after {seconds} s")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()


class FloorPublisher(Publisher):
    """Publishes the same requests where only the floor reads them."""

    def _send(self, topic: topics.Topic, event: CloudEvent) -> None:
        super()._send(replace(topic, name=FLOOR_IN.name), event)


@dataclass(slots=True)
class Publishing:
    """`publishers` threads in one process of their own, waiting to be told to `go`."""

    bootstrap: str
    publishers: int
    floor: bool = False
    _process: Any = None
    _end: Any = field(default=None)

    def __enter__(self) -> Self:
        self._end, other = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_publish, args=(other, self.bootstrap, self.publishers, self.floor), daemon=True
        )
        self._process.start()
        if self._end.recv() != "ready":
            raise RuntimeError("the publishers did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send(None)
        self._process.join(30)

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self._process.pid)

    def send(self, subjects: Sequence[str], rate: float | None = None) -> None:
        """Publish one deletion for each; at once, or paced to `rate` per second in all."""
        self._end.send((list(subjects), rate))

    def sent(self) -> dict[str, float]:
        """When each was published, or was to be if there is a rate, by request id: a publisher that falls behind its
        schedule makes its requests no younger. Raises `RuntimeError` where a publisher failed."""
        found: dict[str, float] | str = self._end.recv()
        if isinstance(found, str):
            raise RuntimeError(found)  # noqa: TRY004 - it is what went wrong, not a wrong type
        return found


def _publish(end: Connection, bootstrap: str, publishers: int, floor: bool) -> None:  # noqa: FBT001 - spawned
    key = dsse.SigningKey.from_seed(seed_of("publisher"))
    kind = FloorPublisher if floor else Publisher
    made = [kind(bootstrap, key, AUDIENCE, f"bench-{number}") for number in range(publishers)]
    for one in made:  # connections and producer ids are not what is measured
        one._producer.send(WARM.name, b"warm")
        one.flush()
    end.send("ready")
    with ThreadPoolExecutor(publishers) as pool:
        while (job := end.recv()) is not None:
            subjects, rate = job
            start = time.time()
            publish = partial(_published, made, subjects, rate, start)
            try:
                end.send({one: at for sent in pool.map(publish, range(publishers)) for one, at in sent.items()})
            except Exception as error:  # noqa: BLE001 - told to who measures
                end.send(f"a publisher failed: {error!r}")
    for one in made:
        one.close()


def _published(
    made: Sequence[Publisher], subjects: Sequence[str], rate: float | None, start: float, number: int
) -> dict[str, float]:
    """Every so-many-th of `subjects`, by publisher `number`: when each was due, by request id."""
    sent: dict[str, float] = {}
    for at in range(number, len(subjects), len(made)):
        due = time.time()
        if rate is not None:
            due = start + at / rate
            time.sleep(max(0.0, due - time.time()))
        request_id: RequestId = made[number].delete(SubjectRef(subjects[at]), regulation=Regulation.GDPR)
        sent[request_id] = due
    made[number].flush()
    return sent
