"""What about a bucket would defeat erasure, found before the first deletion: `expunge stores check`.

Nothing here changes the bucket; what the roles may do is asked as `roles` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from expunge.adapters.stores.s3.client import UNSUPPORTED, Place, S3Trouble, client, parse, translated
from expunge.adapters.stores.s3.listing import versions
from expunge.adapters.stores.s3.roles import able
from expunge.adapters.stores.table import Remark, Severity
from expunge.domain.errors import Misconfigured, Retryable

_SKEW_SECONDS: Final = 60
_NOT_THERE: Final = frozenset(
    {
        "ReplicationConfigurationNotFoundError",
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchConfiguration",
        "404",
    }
)


def check(url: str, others: Mapping[str, str]) -> list[Remark]:
    """Every remark about the bucket of one store. `others`: URLs of the deployment's other stores, by name."""
    place, _ = parse(url)
    try:
        s3 = client(place, place.profile)
        found = list(_reached(s3, place))
        if any(one.severity is Severity.WRONG for one in found):
            return found
        found += _roles(s3, place)
    except (S3Trouble, Misconfigured) as trouble:
        return [Remark(Severity.WRONG, getattr(trouble, "code", "misconfigured"), str(trouble))]
    return found + [remark for look in _LOOKS for remark in _asked(partial(look, s3, place, others))]


def _reached(s3: Any, place: Place) -> Iterator[Remark]:  # noqa: ANN401 - a boto3 client
    """Bucket, credentials, region, clock."""
    with translated("look at the bucket (s3:ListBucket)"):
        head = s3.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
    next(versions(s3, place, place.prefix, page_size=1), None)
    headers = head["ResponseMetadata"]["HTTPHeaders"]
    region = headers.get("x-amz-bucket-region")
    if region and region != s3.meta.region_name:
        words = f"the bucket is in {region}, the store's URL says {s3.meta.region_name}: set region={region}"
        yield Remark(Severity.WRONG, "other-region", words)
    if date := headers.get("date"):
        skew = abs((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds())
        if skew > _SKEW_SECONDS:
            words = f"this machine's clock is {skew:.0f} s from the store's: set it by NTP, S3 refuses from 900 s on"
            yield Remark(Severity.WARNING, "clock-skew", words)


def _roles(s3: Any, place: Place) -> Iterator[Remark]:  # noqa: ANN401
    """Who erases can, who reads cannot."""
    allowed = able(s3, place)
    if "delete" not in allowed:
        words = (
            "these credentials may not delete versions (s3:DeleteObject, s3:DeleteObjectVersion): give them to purge"
        )
        yield Remark(Severity.WRONG, "cannot-delete", words)
    if "write" not in allowed:
        words = "these credentials may not write our own objects (s3:PutObject on .expunge/): give it to purge"
        yield Remark(Severity.WRONG, "cannot-fence", words)
    reading = client(place, place.reader)
    with translated("look at the bucket (s3:ListBucket)"):
        reading.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
    if could := able(reading, place):
        words = f"the credentials of readers may {' and '.join(could)}"
        if place.shared:
            yield Remark(Severity.WARNING, "shared-credentials", f"{words}: credentials=shared is for a trial")
        else:
            yield Remark(
                Severity.WRONG, "reader-can-erase", f"{words}: rescan will not start, give it a role of its own"
            )


def _versioning(s3: Any, place: Place, _: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetBucketVersioning"):
        found = s3.get_bucket_versioning(Bucket=place.bucket)
    status = found.get("Status", "never enabled").lower()
    yield Remark(Severity.NOTE, "versioning", f"versioning is {status}: every version and delete marker is erased")
    if found.get("MFADelete") == "Enabled":
        words = "MFA delete is on: no version can be deleted without a device. Turn it off, or nothing here is erased"
        yield Remark(Severity.WRONG, "mfa-delete", words)


def _lock(s3: Any, place: Place, _: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetBucketObjectLockConfiguration"):
        found = s3.get_object_lock_configuration(Bucket=place.bucket)["ObjectLockConfiguration"]
    if found.get("ObjectLockEnabled") != "Enabled":
        return
    kept = found.get("Rule", {}).get("DefaultRetention")
    if kept is None:
        words = "object lock is on, without default retention: what is locked is answered `blocked`, with its date"
        yield Remark(Severity.NOTE, "object-lock", words)
        return
    how_long = f"{kept['Days']} days" if "Days" in kept else f"{kept.get('Years')} years"
    words = (
        f"every new object is locked for {how_long} in {kept['Mode'].lower()} mode: its erasure is answered `blocked` until"
        " then. Shorten it, or keep personal data in another bucket"
    )
    yield Remark(Severity.WRONG, "default-retention", words)


def _replication(s3: Any, place: Place, others: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetReplicationConfiguration"):
        rules = s3.get_bucket_replication(Bucket=place.bucket)["ReplicationConfiguration"]["Rules"]
    known = {parse(url)[0].bucket for url in others.values() if url.partition(":")[0].split("+")[-1] == "s3"}
    for bucket in sorted(
        {one["Destination"]["Bucket"].rpartition(":")[2] for one in rules if one["Status"] == "Enabled"}
    ):
        if bucket in known:
            words = f"it is replicated to {bucket}, which is a store of this deployment: register its objects there too"
            yield Remark(Severity.WARNING, "replication", words)
        else:
            words = f"it is replicated to {bucket}, which keeps what is erased here: deletions by version are not"
            yield Remark(Severity.WRONG, "replication", f"{words} replicated. Make it a store of EXPUNGE_STORES")


def _lifecycle(s3: Any, place: Place, _: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetLifecycleConfiguration"):
        rules = s3.get_bucket_lifecycle_configuration(Bucket=place.bucket)["Rules"]
    rules = [one for one in rules if one["Status"] == "Enabled"]
    moved = {
        step["StorageClass"]
        for one in rules
        for step in (*one.get("Transitions", ()), *one.get("NoncurrentVersionTransitions", ()))
    }
    if moved:
        words = (
            f"a lifecycle rule moves objects to {', '.join(sorted(moved))}: rescan cannot read archived bytes before"
        )
        yield Remark(Severity.WARNING, "transitions", f"{words} they are erased, and early deletion may cost")
    if any("Expiration" in one or "NoncurrentVersionExpiration" in one for one in rules):
        words = "a lifecycle rule expires objects: what it removes is absent without evidence of ours"
        yield Remark(Severity.NOTE, "expiration", words)


def _logging(s3: Any, place: Place, _: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetBucketLogging"):
        found = s3.get_bucket_logging(Bucket=place.bucket).get("LoggingEnabled")
    if found:
        words = f"access logs go to {found['TargetBucket']} and hold every key: let them expire there, or turn them off"
        yield Remark(Severity.WARNING, "access-logs", words)


def _inventory(s3: Any, place: Place, _: Mapping[str, str]) -> Iterator[Remark]:  # noqa: ANN401
    with translated("see s3:GetInventoryConfiguration"):
        found = s3.list_bucket_inventory_configurations(Bucket=place.bucket).get("InventoryConfigurationList", ())
    for one in (each for each in found if each.get("IsEnabled")):
        bucket = one["Destination"]["S3BucketDestination"]["Bucket"].rpartition(":")[2]
        words = f"an inventory goes to {bucket} and holds every key: let it expire there, or turn it off"
        yield Remark(Severity.WARNING, "inventory", words)


_Look = Callable[[Any, Place, Mapping[str, str]], Iterator[Remark]]
_LOOKS: Final[tuple[_Look, ...]] = (_versioning, _lock, _replication, _lifecycle, _logging, _inventory)


def _asked(look: Callable[[], Iterator[Remark]]) -> list[Remark]:
    """What one look shows: nothing where the feature is not configured or the server has none of the kind."""
    try:
        return list(look())
    except S3Trouble as trouble:
        if trouble.code in _NOT_THERE | UNSUPPORTED | {"MethodNotAllowed"}:
            return []
        return [Remark(Severity.WARNING, "not-looked-at", f"one feature could not be looked at: {trouble}")]
    except Retryable as trouble:
        return [Remark(Severity.WARNING, "not-looked-at", f"one feature could not be looked at: {trouble}")]
