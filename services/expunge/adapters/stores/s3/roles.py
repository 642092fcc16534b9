"""Whether credentials could erase: asked of the store itself, by calls that would change nothing if they were let through.

Two calls, in the store's prefix and in ours. Deleting version `null` of a key that does not exist deletes nothing and,
because a version is named, makes no marker. A PUT under a condition that cannot hold (`If-Match` of no object's tag)
writes nothing. A store looks at permissions before either, so that `AccessDenied` is the only answer of a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import uuid4

from expunge.adapters.stores.s3.client import OWN, Place, S3Trouble, translated
from expunge.domain.errors import Misconfigured

_NO_TAG: Final = f'"{"0" * 32}"'


def able(s3: Any, place: Place) -> list[str]:  # noqa: ANN401 - a boto3 client
    """What these credentials may do that changes the store: of `delete`, `write`. Raises `Retryable` when it cannot
    be found out."""
    names = [f"{place.prefix}{below}expunge-probe-{uuid4().hex}" for below in ("", OWN)]
    allowed = []
    if any(_may(partial(s3.delete_object, Bucket=place.bucket, Key=name, VersionId="null")) for name in names):
        allowed.append("delete")
    if any(_may(partial(s3.put_object, Bucket=place.bucket, Key=name, Body=b"", IfMatch=_NO_TAG)) for name in names):
        allowed.append("write")
    return allowed


def refuse_able(s3: Any, place: Place) -> None:  # noqa: ANN401
    """Raises `Misconfigured` when a reader's credentials could erase."""
    if not place.shared and (found := able(s3, place)):
        raise Misconfigured(
            f"expected credentials that can only read for looking into an S3 store, got some that may {' and '.join(found)}: "
            "give this worker a role without (ops/stores/s3.md), or say credentials=shared in the URL for a trial"
        )


def _may(call: Callable[[], object]) -> bool:
    try:
        with translated("change it"):
            call()
    except S3Trouble as trouble:
        if trouble.code == "AccessDenied":
            return False
        if trouble.code in _ALLOWED:
            return True
        raise
    return True


_ALLOWED: Final = frozenset({"PreconditionFailed", "412", "NoSuchKey", "NoSuchVersion", "404", "InvalidArgument"})
"""Answers about the call's content: the permission was there."""
