"""Why versions could not be deleted, and until when: retention (object lock), legal hold, or no permission."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from expunge.adapters.stores.s3.client import Place, S3Trouble, translated
from expunge.adapters.stores.s3.listing import Version

HELD: Final = "versions under a legal hold of the store, until it is lifted"
DENIED: Final = "versions that the store's policy does not let these credentials delete"

_ASKED: Final = 256
"""So many of the refused versions are looked at."""


def reasons(
    s3: Any,  # noqa: ANN401 - a boto3 client
    place: Place,
    refused: Sequence[Version],
) -> tuple[tuple[str, ...], datetime | None]:
    """In fixed words, with the latest date of each mode, never a key; and when the last retention that was seen ends."""
    until: dict[str, datetime] = {}
    others: set[str] = set()
    for one in refused[:_ASKED]:
        mode, date = _retention(s3, place, one)
        if mode and date is not None:
            until[mode] = max(date, until.get(mode, date))
        if held := _held(s3, place, one):
            others.add(HELD)
        if not mode and not held:
            others.add(DENIED)
    least = "at least " if len(refused) > _ASKED else ""
    locked = (
        f"versions under object lock in {mode.lower()} mode, until {least}{date.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        for mode, date in sorted(until.items())
    )
    return (*locked, *sorted(others)), max(until.values(), default=None)


def _retention(s3: Any, place: Place, one: Version) -> tuple[str, datetime | None]:  # noqa: ANN401
    if one.version_id is None:
        return "", None
    try:
        with translated("see retention"):
            found = s3.get_object_retention(Bucket=place.bucket, Key=one.key, VersionId=one.version_id)["Retention"]
    except S3Trouble:
        return "", None
    date = found.get("RetainUntilDate")
    return (found.get("Mode", ""), date) if date is not None and date > datetime.now(UTC) else ("", None)


def _held(s3: Any, place: Place, one: Version) -> bool:  # noqa: ANN401
    if one.version_id is None:
        return False
    try:
        with translated("see legal holds"):
            found = s3.get_object_legal_hold(Bucket=place.bucket, Key=one.key, VersionId=one.version_id)
    except S3Trouble:
        return False
    return bool(found.get("LegalHold", {}).get("Status") == "ON")
