"""A log's files as objects of an S3 bucket, below a prefix: what a PUT has answered for is durable (extra `s3`).

Immutable files are put only where there is none (`If-None-Match: *`); the checkpoint and the archive are compared and
swapped by their ETag (`If-Match`), which S3 does in one step. Stores that know no conditional writes will not do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from expunge.adapters.log import CHECKPOINT, check_path, replaceable
from expunge.domain.errors import Rejected, Retryable, Tampered

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS: Final = 5
TIMEOUT_SECONDS: Final = 10
_CONFLICTS: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "404", "409", "412"})
"""How S3 says that the condition of a write did not hold."""
_MISSING: Final = frozenset({"NoSuchKey", "404"})


class S3Tiles:
    """`TileStore` in a bucket. Credentials and region come from the machine, as boto3 finds them; `endpoint`: of another
    store that speaks S3. Old versions of the checkpoint may be kept by the bucket; a log needs none of them."""

    def __init__(self, bucket: str, prefix: str = "", *, endpoint: str | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                connect_timeout=TIMEOUT_SECONDS,
                read_timeout=TIMEOUT_SECONDS,
                retries={"mode": "standard", "max_attempts": ATTEMPTS},
            ),
        )

    def write(self, files: Mapping[str, bytes]) -> None:
        """As `ports.TileStore.write`. Raises `Tampered` when an immutable file holds other bytes."""
        for path in sorted(files, key=lambda path: (check_path(path) == CHECKPOINT, path)):
            if replaceable(path):
                with _translated():
                    self._put(path, files[path])
            elif not self._put_if(path, files[path], IfNoneMatch="*") and self.read(path) != files[path]:
                raise Tampered(path, "expected the bytes that are stored already, got others")

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        """As `ports.TileStore.swap`."""
        if not replaceable(check_path(path)):
            raise Rejected("bad-path", "expected a file that may be replaced")
        if old is None:
            return self._put_if(path, data, IfNoneMatch="*")
        try:
            found, tag = self._get(path)
        except FileNotFoundError:
            return False
        return found == old and self._put_if(path, data, IfMatch=tag)

    def read(self, path: str) -> bytes:
        """As `ports.TileStore.read`."""
        return self._get(path)[0]

    def _get(self, path: str) -> tuple[bytes, str]:
        with _translated():
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + check_path(path))
                return answer["Body"].read(), answer["ETag"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise FileNotFoundError(path) from error
                raise

    def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
        with _translated():
            try:
                self._put(path, data, **condition)
            except ClientError as error:
                if _code(error) in _CONFLICTS:
                    return False
                raise
        return True

    def _put(self, path: str, data: bytes, **condition: str) -> None:
        kind = "text/plain; charset=utf-8" if path == CHECKPOINT else "application/octet-stream"
        put: Callable[..., Any] = self._s3.put_object
        put(Bucket=self._bucket, Key=self._prefix + check_path(path), Body=data, ContentType=kind, **condition)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Retryable(f"the evidence log's bucket did not answer ({type(error).__name__})") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
