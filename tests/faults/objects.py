"""Faults of object stores: 10 and 11. Photos are in a versioned bucket of a real S3 server; who erases reaches it through a
proxy that is too busy, answers for half of the keys, loses answers, or lies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from expunge.pipeline import WORKERS
from tests.faultproxy import Faults, faulty
from tests.faults.ground import Ground, NotHere, Report, certified
from tests.faults.small import PHOTOS, SOURCE, Small, eventually, name
from tests.s3servers import S3Server, serving
from tests.versitygw import NoVersityGateway, binary

PREFIX = "photos"
RATES = (0.0, 0.1, 0.5, 0.9)
ATTEMPTS = 3


class OnObjects(Small):
    """A deployment whose photos are objects."""

    def __init__(self, root: Path, server: S3Server, faults: Faults, endpoint: str) -> None:
        keys = {
            "AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        super().__init__(root, overrides={"attempts": ATTEMPTS}, settings=dict.fromkeys(WORKERS, keys))
        self.server, self.faults = server, faults
        self._endpoint = endpoint
        self._raw: Any = server.client()
        self._bucket = server.bucket(versioning="Enabled")

    def photos_url(self) -> str:
        return self.server.url(self._bucket, PREFIX, endpoint=self._endpoint)

    def put_photo(self, name: str, content: bytes) -> None:
        self._raw.put_object(Bucket=self._bucket, Key=f"{PREFIX}/{SOURCE}/{name}", Body=content)

    def has_photo(self, name: str) -> bool:
        """Any version or marker of it."""
        key = f"{PREFIX}/{SOURCE}/{name}"
        found = self._raw.list_object_versions(Bucket=self._bucket, Prefix=key)
        return any(one["Key"] == key for one in (*found.get("Versions", ()), *found.get("DeleteMarkers", ())))

    def objects(self, people: Sequence[int]) -> int:
        """How many of their photos are there."""
        return sum(self.has_photo(f"{name(person, number)}.jpg") for person in people for number in range(PHOTOS))

    def result(self, request: str) -> str | None:
        found: str | None = self.one("select data_result from request where request_id = %s", request)
        return found


@contextmanager
def on_objects(folder: Path) -> Iterator[OnObjects]:
    """On versitygw, whose objects are files. Raises `NotHere` where it is not and cannot be built."""
    try:
        binary()
    except NoVersityGateway as missing:
        raise NotHere(f"no versitygw: {missing}") from missing
    faults = Faults()
    with ExitStack() as stack:
        server = stack.enter_context(serving("versitygw", folder))
        endpoint = stack.enter_context(faulty(server.endpoint, faults))
        yield stack.enter_context(OnObjects(folder / "run", server, faults, endpoint))


def slow_down(ground: Ground) -> Report:
    """10: the store answers SlowDown, at several rates, and altogether: it is asked more slowly, and others go on."""
    report = Report(runs=len(RATES) + 1)
    people_each = max(20, round(60 * ground.scale))
    with on_objects(ground.folder()) as small:
        throughput: dict[str, float] = {}
        amplification: dict[str, float] = {}
        for rate in RATES:
            people = small.register(people_each)
            before = small.faults.keys
            small.faults.slow = rate
            took = certified(small, small.delete_all(people), report)
            small.faults.slow = 0.0
            title = f"{rate:.0%}"
            throughput[title] = round(people_each * PHOTOS / took, 1)
            amplification[title] = round((small.faults.keys - before) / (people_each * PHOTOS), 2)
            report.expect(not small.objects(people), f"{small.objects(people)} photos left at {title}")
        report.expect(
            amplification["0%"] == 1, f"{amplification['0%']} keys sent for each that a ready store was asked"
        )
        others = _altogether(small, report)
    report.figure = {
        "server": "versitygw", "photos": people_each * PHOTOS, "photos_per_s": throughput, "amplification": amplification,
        "other_stores_done_s": round(others, 1),
    }  # fmt: skip
    return report


def _altogether(small: OnObjects, report: Report) -> float:
    """The store takes nothing at all; seconds until the other stores have lost everything."""
    people = small.register(5)
    small.faults.slow = 1.0
    began = time.monotonic()
    requests = small.delete_all(people)
    eventually(lambda: not any(_others(small, person) for person in people) or None, "the other stores to finish")
    others = time.monotonic() - began
    report.expect(small.objects(people) == 5 * PHOTOS, "photos are gone that the store refused to delete")
    early = sum(small.done(one) for one in requests)
    report.expect(not early, f"{early} certified while the store took nothing")
    small.faults.slow = 0.0
    small.sql("update task set not_before = clock_timestamp() where done_at is null")  # as if its wait were over
    certified(small, requests, report)
    report.expect(not small.objects(people), "photos are left")
    return others


def _others(small: OnObjects, person: int) -> bool:
    return any(found for store, found in small.left(person).items() if store != "photos")


def partial(ground: Ground) -> Report:
    """11: half of a deletion's keys are left out of the answer, or are errors in it, the answer is lost, or is a lie."""
    report = Report(runs=4)
    told: dict[str, dict[str, int]] = {}
    false = 0
    people_each = max(6, round(20 * ground.scale))
    with on_objects(ground.folder()) as small:
        for kind, share in (("partial", 1.0), ("errors", 1.0), ("lost", 0.6), ("lie", 1.0)):
            setattr(small.faults, kind, share)
            photos = 0
            while not small.faults.counts[kind]:  # a share may pass a few requests by
                people = small.register(people_each)
                photos += people_each * PHOTOS
                results = _results(small, people, report, lying=kind == "lie")
                false += sum(
                    result == "complete" and small.objects([person]) > 0
                    for person, result in zip(people, results, strict=True)
                )
                expected = "partial" if kind == "lie" else "complete"
                wrong = sorted({result for result in results if result != expected})
                report.expect(not wrong, f"{kind}: results {wrong}, expected {expected}")
            setattr(small.faults, kind, 0.0)
            told[kind] = {"injected": small.faults.counts[kind], "photos": photos}
    report.expect(not false, f"{false} false completions")
    report.figure = {"server": "versitygw", "answers": told, "false_completions": false}
    return report


def _results(small: OnObjects, people: Sequence[int], report: Report, *, lying: bool) -> list[str]:
    """Of their requests. One of which something is left in spite of all is certified so, and stays open."""
    requests = small.delete_all(people)
    if not lying:
        certified(small, requests, report)
    return [eventually(lambda one=one: small.result(one), "a result") for one in requests]  # type: ignore[misc]
