"""Photos in S3 through the real stages: erased and verified; a store that answers Deleted and keeps the object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from expunge.adapters.stores import s3
from expunge.domain.words import Kind
from tests.coordination import PHOTOS, Deployment, album, content, deployed
from tests.faultproxy import Faults, faulty
from tests.s3servers import S3Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving("moto", tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.bucket(versioning="Enabled")


@pytest.fixture
async def world(
    server: S3Server, bucket: str, faults: Faults, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    """Photos are in the bucket, all else in memory. Who erases reaches it through the proxy, who looks does not."""
    server.set_environment(monkeypatch)
    with faulty(server.endpoint, faults) as endpoint:
        async with deployed(database, tmp_path) as made:
            purge, invalidate, rescan = made.executors
            store = s3.open_store(server.url(bucket, endpoint=endpoint), PHOTOS)
            for executor in (purge, invalidate):
                executor._eraser._stores = {**executor._eraser._stores, PHOTOS: store}
            reader = s3.open_reader(server.url(bucket), PHOTOS)
            rescan._readers = {**rescan._readers, PHOTOS: reader}
            await made.seed(*album(1), *album(2))
            raw = server.client()
            for photo in (*album(1), *album(2)):
                (one,) = (one for one in photo.artifacts if one.kind is Kind.IMAGE)
                body = content(f"{photo.key}/{one.kind}")
                raw.put_object(Bucket=bucket, Key=f"photos/{one.unit}/{one.locator}", Body=body)
            yield made


def kept(server: S3Server, bucket: str) -> set[str]:
    found = server.client().list_object_versions(Bucket=bucket)
    every = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
    return {one["Key"].rpartition("/")[2] for one in every if "/.expunge/" not in one["Key"]}


def of(person: int) -> set[str]:
    return {f"{photo.key}.bin" for photo in album(person)}


async def test_a_persons_photos_go_and_the_certificate_verifies(
    world: Deployment, server: S3Server, bucket: str
) -> None:
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    assert world.result(asked) == "complete"
    assert kept(server, bucket) == of(2)
    assert (await world.verify(asked)).verified().result == "complete"


async def test_a_bucket_that_lies_is_found_out_and_never_called_complete(
    world: Deployment, faults: Faults, server: S3Server, bucket: str
) -> None:
    faults.lie = 1.0
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    assert kept(server, bucket) == of(1) | of(2)
    assert world.result(asked) == "partial"
    report = (await world.verify(asked)).verified()
    assert {one.store: one.outcomes for one in report.stores}[PHOTOS] == {"failed": 4}
