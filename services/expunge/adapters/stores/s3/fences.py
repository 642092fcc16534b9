"""Which holder of a unit's lease came last, as an object that is replaced only by who has seen it (conditional writes)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from expunge.adapters.stores.s3.client import CONFLICTS, MISSING, OWN, Place, S3Trouble, translated
from expunge.domain.errors import FencedOff, Retryable

_TRIES: Final = 10


class Fences:
    """Objects `.expunge/HASH.fence` below the store's prefix, which only who erases may write."""

    def __init__(self, s3: Any, place: Place) -> None:  # noqa: ANN401 - a boto3 client
        self._s3, self._place = s3, place

    def claim(self, unit: str, fence: int) -> None:
        """Note the fence. Raises `FencedOff` when a higher one is there."""
        for _ in range(_TRIES):
            highest, tag, version = self._read(unit)
            if highest > fence:
                raise FencedOff
            if highest == fence or self._put(unit, fence, tag):
                if highest != fence and version not in {None, "null"}:
                    self._drop(unit, version)
                return
        raise Retryable("others kept writing the unit's fence")

    def refuse_older(self, unit: str, fence: int) -> None:
        """Raises `FencedOff` when a higher fence is there."""
        if self._read(unit)[0] > fence:
            raise FencedOff

    def _key(self, unit: str) -> str:
        return f"{self._place.prefix}{OWN}{blake2b(unit.encode(), digest_size=16).hexdigest()}.fence"

    def _read(self, unit: str) -> tuple[int, str | None, str | None]:
        try:
            with translated("read our own objects (s3:GetObject on .expunge/)"):
                answer = self._s3.get_object(Bucket=self._place.bucket, Key=self._key(unit))
                return int(answer["Body"].read()), answer["ETag"], answer.get("VersionId")
        except S3Trouble as trouble:
            if trouble.code in MISSING:
                return -1, None, None
            raise

    def _put(self, unit: str, fence: int, tag: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            with translated("write our own objects (s3:PutObject on .expunge/)"):
                self._s3.put_object(Bucket=self._place.bucket, Key=self._key(unit), Body=b"%d" % fence, **condition)
        except S3Trouble as trouble:
            if trouble.code in CONFLICTS | MISSING:
                return False
            raise
        return True

    def _drop(self, unit: str, version: str | None) -> None:
        """The version before: it says nothing about anybody, so nothing is lost where it has to stay."""
        try:
            with translated("delete our own objects"):
                self._s3.delete_object(Bucket=self._place.bucket, Key=self._key(unit), VersionId=version)
        except S3Trouble:
            return
