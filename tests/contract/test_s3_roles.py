"""Who erases and who reads, by credentials of their own on a server that keeps them apart; and what `stores check` says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.adapters.stores import s3, table
from expunge.adapters.stores.table import Severity
from expunge.cli.stores import looked_at
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.words import Outcome
from tests.s3servers import VERSITYGW, S3Server, serving

ERASER, READER = "eraser", "reader"
PAGE = Path(__file__).parents[2] / "ops/stores/s3.md"


@pytest.fixture(scope="module", params=[VERSITYGW])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving("moto", tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture(scope="module")
def secrets(server: S3Server) -> dict[str, str]:
    assert server.gateway is not None
    return {name: server.gateway.add_user(name) for name in (ERASER, READER)}


def policies(bucket: str, users: tuple[str, str]) -> str:
    """The two policies of the operations page, as one policy of the bucket."""
    statements = []
    for user, block in zip(users, re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL), strict=True):
        text = block.replace("acme-photos", bucket).replace("originals", "photos")
        statements += [{**one, "Principal": {"AWS": [user]}} for one in json.loads(text)["Statement"]]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@pytest.fixture
def bucket(server: S3Server, secrets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a photo in it, old version and all; each role has a profile."""
    made = server.bucket(versioning="Enabled")
    raw = server.client()
    raw.put_bucket_policy(Bucket=made, Policy=policies(made, (ERASER, READER)))
    for body in (b"an old photo of somebody", b"a new photo of somebody"):
        raw.put_object(Bucket=made, Key="photos/u/a.jpg", Body=body)
    profiles = [
        f"[{name}]\naws_access_key_id={name}\naws_secret_access_key={secret}\n" for name, secret in secrets.items()
    ]
    credentials = tmp_path / "credentials"
    credentials.touch(mode=0o600)  # a file that everybody can read is refused
    credentials.write_text("".join(profiles))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return made


def url(server: S3Server, bucket: str, profile: str = ERASER, reader: str = READER) -> str:
    return server.url(bucket, credentials="separate", profile=profile, reader=reader)


def test_each_does_its_own_work(server: S3Server, bucket: str) -> None:
    reader, store = s3.open_reader(url(server, bucket), "photos"), s3.open_store(url(server, bucket), "photos")
    assert reader.probe("u", ["a.jpg"]).tolist() == [True]
    assert all(b"a new photo of somebody".find(one) >= 0 for one in reader.needles("u", ["a.jpg"])[0])
    assert store.erase("u", ["a.jpg"], 1).outcomes.tolist() == [Outcome.GONE]
    assert reader.probe("u", ["a.jpg"]).tolist() == [False]


def test_who_erases_cannot_read_a_photo(server: S3Server, bucket: str) -> None:
    with pytest.raises(Retryable, match="s3:GetObject"):
        s3.open_store(url(server, bucket), "photos").needles("u", ["a.jpg"])


def test_who_reads_cannot_erase_and_nothing_is_lost(server: S3Server, bucket: str) -> None:
    as_reader = s3.open_store(url(server, bucket, profile=READER), "photos")
    with pytest.raises(Retryable, match=r"s3:PutObject on \.expunge"):
        as_reader.erase("u", ["a.jpg"], 1)
    listed = server.client().list_object_versions(Bucket=bucket, Prefix="photos/u/")
    assert len(listed["Versions"]) == 2


def test_a_reader_that_could_erase_is_refused_at_start_and_changes_nothing_by_asking(
    server: S3Server, bucket: str
) -> None:
    before = server.client().list_object_versions(Bucket=bucket)
    with pytest.raises(Misconfigured, match="may delete"):
        s3.open_reader(url(server, bucket, reader=ERASER), "photos")
    after = server.client().list_object_versions(Bucket=bucket)
    for kind in ("Versions", "DeleteMarkers"):
        assert len(before.get(kind, ())) == len(after.get(kind, ()))
    with pytest.raises(Misconfigured, match="may delete"):
        table.open_reader(url(server, bucket, reader=ERASER).replace("s3:", "wds+s3:", 1), "shards")


def test_check_is_content_with_these_roles(server: S3Server, bucket: str) -> None:
    (row,) = looked_at({"photos": url(server, bucket)})
    assert row["max_level"] == "L1"
    assert [one for one in row["remarks"] if one["severity"] == "wrong"] == []


@pytest.mark.parametrize(
    ("profile", "reader", "code"),
    [(READER, READER, "cannot-delete"), (READER, READER, "cannot-fence"), (ERASER, ERASER, "reader-can-erase")],
)
def test_check_names_a_role_that_is_wrong(server: S3Server, bucket: str, profile: str, reader: str, code: str) -> None:
    assert code in codes({"photos": url(server, bucket, profile, reader)}, "photos")


def test_check_names_what_cannot_be_reached(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes({"x": url(server, "there-is-no-such")}, "x") == {"NoSuchBucket"}
    nowhere = url(server, bucket).replace(server.endpoint.rpartition(":")[2], "9")
    assert codes({"x": nowhere}, "x") == {"no-answer"}
    assert codes({"x": url(server, bucket, profile="nobody")}, "x") == {"misconfigured"}
    assert {one["severity"] for one in looked_at({"x": nowhere})[0]["remarks"]} == {"wrong"}


def codes(urls: dict[str, str], name: str) -> set[str]:
    return {one.code for one in table.check(name, urls) if one.severity is not Severity.NOTE}


class TestFeatures:
    """What a bucket may be told to do; moto keeps such settings, though it does nothing about them."""

    @pytest.fixture(autouse=True)
    def _place(self, moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        moto.set_environment(monkeypatch)
        self.server, self.raw = moto, moto.client()
        self.bucket = moto.bucket(versioning="Enabled")

    def said(self, **others: str) -> dict[str, Severity]:
        found = table.check("photos", {"photos": self.server.url(self.bucket), **others})
        return {one.code: one.severity for one in found}

    def test_a_plain_bucket_has_nothing_but_notes(self) -> None:
        assert self.said() == {"versioning": Severity.NOTE, "shared-credentials": Severity.WARNING}

    def test_a_replica_keeps_what_is_erased_unless_it_is_a_store_too(self) -> None:
        replica = self.server.bucket(versioning="Enabled")
        rule: Any = {
            "ID": "all", "Status": "Enabled", "Priority": 1, "Filter": {"Prefix": ""},
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": f"arn:aws:s3:::{replica}"},
        }  # fmt: skip
        self.raw.put_bucket_replication(
            Bucket=self.bucket,
            ReplicationConfiguration={"Role": "arn:aws:iam::123456789012:role/replicate", "Rules": [rule]},
        )
        assert self.said()["replication"] is Severity.WRONG
        assert self.said(copy=self.server.url(replica))["replication"] is Severity.WARNING

    def test_lifecycle_logs_and_inventory_are_told(self) -> None:
        target = self.server.bucket()
        grants = [{"Grantee": {"Type": "Group", "URI": "http://acs.amazonaws.com/groups/s3/LogDelivery"}, "Permission": one}
                  for one in ("WRITE", "READ_ACP")]  # fmt: skip
        owner = self.raw.get_bucket_acl(Bucket=target)["Owner"]
        self.raw.put_bucket_acl(Bucket=target, AccessControlPolicy={"Grants": grants, "Owner": owner})
        self.raw.put_bucket_logging(
            Bucket=self.bucket,
            BucketLoggingStatus={"LoggingEnabled": {"TargetBucket": target, "TargetPrefix": "logs/"}},
        )
        rule: Any = {
            "ID": "archive", "Status": "Enabled", "Filter": {"Prefix": ""},
            "Transitions": [{"Days": 30, "StorageClass": "GLACIER"}], "Expiration": {"Days": 900},
        }  # fmt: skip
        self.raw.put_bucket_lifecycle_configuration(Bucket=self.bucket, LifecycleConfiguration={"Rules": [rule]})
        self.raw.put_bucket_inventory_configuration(
            Bucket=self.bucket, Id="weekly",
            InventoryConfiguration={
                "Id": "weekly", "IsEnabled": True, "IncludedObjectVersions": "All", "Schedule": {"Frequency": "Weekly"},
                "Destination": {"S3BucketDestination": {"Bucket": f"arn:aws:s3:::{target}", "Format": "CSV"}},
            },
        )  # fmt: skip
        said = self.said()
        assert {code: said[code] for code in ("access-logs", "transitions", "expiration", "inventory")} == {
            "access-logs": Severity.WARNING, "transitions": Severity.WARNING, "expiration": Severity.NOTE,
            "inventory": Severity.WARNING,
        }  # fmt: skip

    def test_default_retention_is_wrong_and_a_lock_without_it_a_note(self) -> None:
        self.bucket = self.server.bucket(lock=True)
        assert self.said()["object-lock"] is Severity.NOTE
        self.raw.put_object_lock_configuration(
            Bucket=self.bucket,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}},
            },
        )  # fmt: skip
        assert self.said()["default-retention"] is Severity.WRONG

    def test_suspended_versioning_is_told(self) -> None:
        self.raw.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Suspended"})
        (told,) = (one for one in table.check("x", {"x": self.server.url(self.bucket)}) if one.code == "versioning")
        assert "suspended" in told.words


def test_other_stores_are_opened_and_say_why_they_cannot_be(tmp_path: Path) -> None:
    rows = looked_at({"photos": f"file://{tmp_path}", "gone": "file:///does/not/exist"})
    assert [[one["code"] for one in row["remarks"]] for row in rows] == [[], ["cannot-open"]]
