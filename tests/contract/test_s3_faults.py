"""Deleting from a store that is busy, gives half an answer or none, or lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from expunge.adapters.stores import s3
from expunge.adapters.stores.s3 import S3Store
from expunge.adapters.stores.s3.client import parse
from expunge.adapters.stores.s3.pace import MAX_PAGE, MIN_PAGE, MIN_RATE, Pace
from expunge.domain.errors import Retryable
from expunge.domain.words import Outcome
from tests.faultproxy import Faults, faulty
from tests.s3servers import VERSITYGW, S3Server, beyond, serving

KEYS = 60


@pytest.fixture(scope="module", params=[VERSITYGW, beyond("moto")])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


class Behind:
    """A store behind a proxy with faults, and photos in it."""

    def __init__(self, server: S3Server, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        server.set_environment(monkeypatch)
        monkeypatch.setattr("expunge.adapters.stores.s3.pace.MAX_PAGE", 10)
        monkeypatch.setattr("expunge.adapters.stores.s3.pace.MIN_PAGE", 5)
        self.raw, self.bucket = server.client(), server.bucket(versioning="Enabled")
        self.names = [f"{n:04}.jpg" for n in range(KEYS)]
        for name in self.names:
            self.raw.put_object(Bucket=self.bucket, Key=f"photos/u/{name}", Body=name.encode())
        self.pace = Pace()
        self.store = S3Store(parse(server.url(self.bucket, endpoint=endpoint))[0], "x", pace=self.pace)
        self.reader = s3.open_reader(server.url(self.bucket), "x")

    def left(self) -> int:
        found = self.raw.list_object_versions(Bucket=self.bucket, Prefix="photos/u/")
        return len(found.get("Versions", ())) + len(found.get("DeleteMarkers", ()))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def behind(server: S3Server, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    with faulty(server.endpoint, faults) as endpoint:
        yield Behind(server, endpoint, monkeypatch)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_busy_store_is_asked_more_slowly_until_all_is_gone(behind: Behind, faults: Faults, share: float) -> None:
    faults.slow = share
    outcomes = behind.store.erase("u", behind.names, 1).outcomes
    assert set(outcomes.tolist()) == {Outcome.GONE}
    assert behind.left() == 0
    tally = behind.pace.tally
    assert tally.slowed == faults.counts["slow"]
    assert (behind.pace.rate is None) == (tally.slowed == 0)
    # a refused page is sent again, and nothing else: a geometric series, with room for luck
    assert tally.amplification < 3 / (1 - share)


def test_what_half_an_answer_leaves_out_is_asked_again(behind: Behind, faults: Faults) -> None:
    faults.partial = 0.5
    assert set(behind.store.erase("u", behind.names, 1).outcomes.tolist()) == {Outcome.GONE}
    assert faults.counts["partial"]
    assert behind.left() == 0


def test_errors_inside_a_200_are_asked_again_for_their_keys_alone(behind: Behind, faults: Faults) -> None:
    faults.errors = 0.5
    assert set(behind.store.erase("u", behind.names, 1).outcomes.tolist()) == {Outcome.GONE}
    assert faults.counts["errors"]
    assert behind.left() == 0
    assert behind.pace.tally.settled == KEYS


def test_an_answer_that_is_lost_is_got_again(behind: Behind, faults: Faults) -> None:
    faults.lost = 0.5
    assert set(behind.store.erase("u", behind.names, 1).outcomes.tolist()) == {Outcome.GONE}
    assert faults.counts["lost"]
    assert behind.left() == 0


def test_a_store_that_takes_nothing_is_for_later_and_nothing_is_lost(
    behind: Behind, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.adapters.stores.s3.deleting._TRIES", 2)
    faults.slow = 1.0
    with pytest.raises(Retryable, match="took no deletion"):
        behind.store.erase("u", behind.names[:3], 1)
    faults.slow = 0.0
    assert set(behind.store.erase("u", behind.names, 1).outcomes.tolist()) == {Outcome.GONE}


def test_a_store_that_lies_is_seen_through_by_the_reader(behind: Behind, faults: Faults) -> None:
    faults.lie = 1.0
    assert set(behind.store.erase("u", behind.names, 1).outcomes.tolist()) == {Outcome.GONE}
    assert behind.reader.probe("u", behind.names).all()


class Time:
    """Passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_pace_is_halved_counted_in_keys_and_comes_back() -> None:
    time = Time()
    pace = Pace(clock=time, sleep=time.sleep)
    assert (pace.rate, pace.page) == (None, MAX_PAGE)
    for _ in range(4):  # 4,000 keys in a second, before anybody complains
        pace.take(1000)
        time.now += 0.25
        pace.settled(1000)
    pace.slowed()
    assert pace.rate == pytest.approx(2000, rel=0.01)
    assert pace.page == 500
    pace.slowed()  # of the same burst
    assert pace.rate == pytest.approx(2000, rel=0.01)
    began = time.now
    for _ in range(10):
        pace.take(500)
    assert time.now - began == pytest.approx(9 * 500 / 2000, rel=0.01)
    pace.settled(500)
    assert pace.rate == pytest.approx(2100, rel=0.01)
    for _ in range(60):
        time.now += 1
        pace.slowed()
    assert (pace.rate, pace.page) == (MIN_RATE, MIN_PAGE)


def test_one_pace_serves_all_who_open_the_same_prefix() -> None:
    url = "s3://bucket/photos?region=us-east-1&endpoint=http://127.0.0.1:9"
    one, same = s3.open_store(url, "a"), s3.open_store(url, "b")
    other: Any = s3.open_store(url.replace("photos", "faces"), "c")
    assert one.pace is same.pace is not other.pace
