"""What a bucket holds of given keys: every version, every delete marker, every open multipart upload.

Nothing here depends on the order in which a server lists, but that a key comes before those that it begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from expunge.adapters.stores.s3.client import UNSUPPORTED, Place, S3Trouble, too_long, translated

_FEW: Final = 8
"""So many keys are looked up one by one."""
_PAGE: Final = 1000
_LISTED_PER_LOOKUP: Final = 8
"""A page of a listing costs about as much as this many single look-ups."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one object. `version_id` is None only where the server has no versions at all."""

    key: str
    version_id: str | None
    size: int
    latest: bool
    marker: bool


@dataclass(frozen=True, slots=True)
class Upload:
    key: str
    upload_id: str


@dataclass(slots=True)
class Held:
    """What is there of one locator (mutable while it is listed)."""

    versions: list[Version] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)

    @property
    def bytes_held(self) -> bool:
        """Whether any content can be reached: an old version, or parts of an upload, can as well as the newest."""
        return bool(self.uploads) or any(not one.marker for one in self.versions)

    @property
    def newest(self) -> Version | None:
        found = [one for one in self.versions if not one.marker]
        return next((one for one in found if one.latest), found[0] if found else None)


def find(s3: Any, place: Place, unit: str, locators: Sequence[str]) -> dict[str, Held]:  # noqa: ANN401 - a boto3 client
    """What is there of each locator of a unit. Raises `Retryable`.

    Many are found by listing the unit, unless it turns out to be much larger than what is asked for.
    """
    base = place.key(unit)
    held = {locator: Held() for locator in locators}
    folders = [one for one in held if one.endswith("/")]
    names = {base + one: one for one in held if not one.endswith("/") and not too_long(base + one)}
    if len(names) > _FEW:
        names = _by_listing(s3, place, base, names, held)
    for found in _looked_up(s3, place, list(names)):
        for one in found:
            held[names[one.key]].versions.append(one)
    for folder in folders:
        for page in versions(s3, place, base + folder):
            held[folder].versions.extend(page)
        held[folder].uploads.extend(uploads(s3, place, base + folder))
    if len(folders) < len(held):
        for upload in uploads(s3, place, base, delimiter="/"):
            if (name := upload.key[len(base) :]) in held:
                held[name].uploads.append(upload)
    return held


def _looked_up(s3: Any, place: Place, keys: Sequence[str]) -> list[list[Version]]:  # noqa: ANN401
    if len(keys) <= 1:
        return [_exactly(s3, place, key) for key in keys]
    with ThreadPoolExecutor(min(place.threads, len(keys))) as pool:
        return list(pool.map(lambda key: _exactly(s3, place, key), keys))


def _by_listing(
    s3: Any,  # noqa: ANN401
    place: Place,
    base: str,
    names: dict[str, str],
    held: dict[str, Held],
) -> dict[str, str]:
    """Fill `held` from the unit's listing; the keys still to be looked up, if it was too long to read to its end."""
    for pages, page in enumerate(versions(s3, place, base, delimiter="/"), 1):
        for one in page:
            if one.key in names:
                held[names[one.key]].versions.append(one)
        if pages * _LISTED_PER_LOOKUP > max(len(names), _FEW * _LISTED_PER_LOOKUP):
            for locator in names.values():
                held[locator].versions.clear()
            return names
    return {}


def _exactly(s3: Any, place: Place, key: str) -> list[Version]:  # noqa: ANN401
    """Versions of this key and of no other that it begins: `photo` is not `photo.jpg`."""
    found: list[Version] = []
    for page in versions(s3, place, key, page_size=_FEW):
        found += [one for one in page if one.key == key]
        if any(one.key != key for one in page):
            break
    return found


def versions(
    s3: Any,  # noqa: ANN401
    place: Place,
    prefix: str,
    *,
    delimiter: str = "",
    page_size: int = _PAGE,
) -> Iterator[list[Version]]:
    """Versions and markers below a prefix, by pages."""
    markers: dict[str, str] = {}
    while True:
        try:
            with translated("list versions (s3:ListBucketVersions)"):
                answer = s3.list_object_versions(
                    Bucket=place.bucket, Prefix=prefix, MaxKeys=page_size, Delimiter=delimiter, **markers
                )
        except S3Trouble as trouble:
            if trouble.code not in UNSUPPORTED:
                raise
            yield from _without_versions(s3, place, prefix, delimiter)
            return
        listed = ((one, False) for one in answer.get("Versions", ()))
        marked = ((one, True) for one in answer.get("DeleteMarkers", ()))
        yield [
            Version(one["Key"], one.get("VersionId", "null"), one.get("Size", 0), one.get("IsLatest", False), marker)
            for one, marker in (*listed, *marked)
        ]
        if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
            return
        markers = {"KeyMarker": answer["NextKeyMarker"]}
        if answer.get("NextVersionIdMarker"):
            markers["VersionIdMarker"] = answer["NextVersionIdMarker"]


def _without_versions(s3: Any, place: Place, prefix: str, delimiter: str) -> Iterator[list[Version]]:  # noqa: ANN401
    more: dict[str, str] = {}
    while True:
        with translated("list objects (s3:ListBucket)"):
            answer = s3.list_objects_v2(Bucket=place.bucket, Prefix=prefix, Delimiter=delimiter, **more)
        yield [Version(one["Key"], None, one["Size"], latest=True, marker=False) for one in answer.get("Contents", ())]
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


def uploads(s3: Any, place: Place, prefix: str, *, delimiter: str = "") -> list[Upload]:  # noqa: ANN401
    """Multipart uploads that were begun and not ended: their parts are in no other listing."""
    found: list[Upload] = []
    markers: dict[str, str] = {}
    while True:
        try:
            with translated("list uploads (s3:ListBucketMultipartUploads)"):
                answer = s3.list_multipart_uploads(Bucket=place.bucket, Prefix=prefix, Delimiter=delimiter, **markers)
        except S3Trouble as trouble:
            if trouble.code in UNSUPPORTED:
                return found
            raise
        found += _within(answer.get("Uploads", ()), prefix)
        if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
            return found
        markers = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


def _within(listed: Iterable[dict[str, Any]], prefix: str) -> Iterator[Upload]:
    """Some servers do not look at the prefix here."""
    return (Upload(one["Key"], one["UploadId"]) for one in listed if one["Key"].startswith(prefix))
