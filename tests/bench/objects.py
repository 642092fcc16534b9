"""Photos as objects of an S3 server (`versitygw`), and the floor of their erasure: DeleteObjects, bare."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.bench.corpus import PHOTOS
from tests.s3servers import S3Server, serving
from tests.versitygw import NoVersityGateway, binary

THREADS: Final = 4
"""Of the floor, of what fills a bucket, and of the store's adapter (its default)."""
PAGE: Final = 1_000
"""Keys of one DeleteObjects, the most that S3 takes."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where photos are, as a process of the floor is told it."""

    server: S3Server
    name: str

    def client(self) -> Any:
        """With a connection for each thread."""
        return self.server.client(max_pool_connections=THREADS)

    def put(self, root: Path) -> None:
        """Every photo below `root`, which is taken away there."""
        client = self.client()

        def one(path: Path) -> None:
            client.put_object(Bucket=self.name, Key=str(path.relative_to(root)), Body=path.read_bytes())
            path.unlink()

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(
                one, (Path(folder, name) for folder, _, names in os.walk(root / PHOTOS) for name in names)
            ):
                pass

    def delete(self, client: Any, places: Sequence[tuple[str, str]]) -> None:
        """Objects by (unit, locator). Raises `RuntimeError` for what the server did not delete."""

        def page(first: int) -> int:
            answer = client.delete_objects(
                Bucket=self.name, Delete={"Objects": keys[first : first + PAGE], "Quiet": True}
            )
            return len(answer.get("Errors", ()))

        keys = [{"Key": f"{PHOTOS}/{unit}/{locator}"} for unit, locator in places]
        with ThreadPoolExecutor(THREADS) as pool:
            if failed := sum(pool.map(page, range(0, len(keys), PAGE))):
                raise RuntimeError(f"expected {len(keys)} objects to be deleted, {failed} were not")


@dataclass(frozen=True, slots=True)
class Objects:
    """A running server. Its keys are in this process's environment, where workers that it starts find them."""

    server: S3Server

    def filled(self, root: Path) -> Bucket:
        """A new bucket with the photos below `root`."""
        made = Bucket(replace(self.server, gateway=None), self.server.bucket())  # another process has no use for ours
        made.put(root)
        return made

    def url(self, bucket: Bucket) -> str:
        """For EXPUNGE_STORES."""
        return self.server.url(bucket.name, PHOTOS, threads=str(THREADS))


@contextmanager
def serve(directory: Path) -> Iterator[Objects]:
    """Its objects are files below `directory`. Ends the run, aloud, where the program is not and Go cannot build it."""
    try:
        binary()
    except NoVersityGateway as why:
        raise SystemExit(f"error: --s3: {why}") from None
    directory.mkdir()
    with serving("versitygw", directory) as server:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield Objects(server)
