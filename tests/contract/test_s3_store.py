"""The S3 store against the public suite on each server, and the traps of object stores."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from expunge.adapters.stores import nowhere, s3, table
from expunge.adapters.stores.s3 import S3Reader, S3Store
from expunge.adapters.stores.s3.client import parse
from expunge.adapters.stores.s3.locks import HELD
from expunge.adapters.stores.s3.pace import Pace
from expunge.conformance import CrashPoint, StoreConformance
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.domain.words import Level, Outcome
from tests.contract.test_stores import photo
from tests.s3servers import EXTERNAL, VERSITYGW, S3Server, beyond, serving


@pytest.fixture(scope="module", params=["moto", VERSITYGW, beyond("ministack"), EXTERNAL])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


class S3Suite(StoreConformance):
    """On a bucket whose versioning is as `versioning` says."""

    pause_at = "claimed"
    hostile_locators = (*StoreConformance.hostile_locators, "a/b", "/", "../", "\ud800")
    hostile_units = (*StoreConformance.hostile_units, ".expunge", ".expunge/x", "\ud800", "a//b", "a/")
    many = 120
    versioning = ""

    @pytest.fixture(autouse=True)
    def _place(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.set_environment(monkeypatch)
        monkeypatch.setattr(
            "expunge.adapters.stores.s3.pace.MAX_PAGE", 50
        )  # several requests, without thousands of keys
        monkeypatch.setattr("expunge.adapters.stores.s3.listing._PAGE", 50)
        self.server = server
        self.raw = server.client(max_pool_connections=16)
        self.bucket = server.bucket(versioning=self.versioning)
        self.numbers = count()

    @property
    def url(self) -> str:
        return self.server.url(self.bucket)

    def open_store(self, crash_point: CrashPoint | None = None) -> S3Store:
        return S3Store(parse(self.url)[0], "photos", crash_point=crash_point or nowhere, pace=Pace())

    def open_reader(self) -> S3Reader:
        return s3.open_reader(self.url, "photos")

    def fresh_unit(self) -> str:
        return f"Ł a/{next(self.numbers)}"

    def key(self, unit: str, name: str) -> str:
        return f"photos/{name}" if unit == "." else f"photos/{unit}/{name}"

    def insert(self, unit: str, artifacts: Mapping[str, bytes]) -> None:
        for name, content in artifacts.items():
            self.raw.put_object(Bucket=self.bucket, Key=self.key(unit, name), Body=content)

    def read(self, unit: str) -> dict[str, bytes]:
        found = {}
        for page in self.raw.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.key(unit, "")):
            for one in page.get("Contents", ()):
                body = self.raw.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read()
                found[one["Key"].removeprefix(self.key(unit, ""))] = body
        return found

    def locators(self, count: int, start: int = 0) -> list[str]:
        return [f"{i:06}.jpg" for i in range(start, start + count)]

    def content(self, locator: str) -> bytes:
        return photo(locator)

    # what is in the bucket, as its owner sees it

    def versions(self, prefix: str = "") -> list[str]:
        """Keys of every version, marker and open upload below the prefix, ours left out."""
        found = []
        for page in self.raw.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix):
            found += [one["Key"] for kind in ("Versions", "DeleteMarkers") for one in page.get(kind, ())]
        uploads = self.raw.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        return sorted(one for one in [*found, *(upload["Key"] for upload in uploads)] if "/.expunge/" not in one)

    def erase(self, unit: str, *locators: str) -> list[Outcome]:
        return [Outcome(one) for one in self.open_store().erase(unit, locators, 1).outcomes]


@pytest.mark.slow
class TestS3Store(S3Suite):
    """Versioning was never enabled."""


class TestS3StoreVersioned(S3Suite):
    """Versioning is on: the ordinary delete call adds a marker, and keeps everything."""

    versioning = "Enabled"

    @pytest.mark.slow
    def test_a_crash_after_any_inner_step_is_made_good_by_a_repeat(self) -> None:
        super().test_a_crash_after_any_inner_step_is_made_good_by_a_repeat()

    def test_every_version_and_marker_goes(self) -> None:
        for number in range(3):
            self.insert("u", {"a.jpg": photo(f"old {number}")})
        self.raw.delete_object(Bucket=self.bucket, Key="photos/u/a.jpg")
        assert self.read("u") == {}
        assert self.open_reader().probe("u", ["a.jpg"]).tolist() == [True], "a version behind a marker can be read"
        assert self.erase("u", "a.jpg") == [Outcome.GONE]
        assert self.versions() == []
        assert self.open_reader().probe("u", ["a.jpg"]).tolist() == [False]

    def test_a_marker_alone_holds_no_bytes_but_the_name(self) -> None:
        self.raw.delete_object(Bucket=self.bucket, Key="photos/u/a.jpg")
        assert self.open_reader().probe("u", ["a.jpg"]).tolist() == [False]
        assert self.erase("u", "a.jpg") == [Outcome.ABSENT_BEFORE]
        assert self.versions() == []

    def test_a_repeat_litters_no_markers(self) -> None:
        self.insert("u", {"a.jpg": photo("a")})
        for _ in range(2):
            self.erase("u", "a.jpg", "never-there.jpg")
        assert self.versions() == []

    def test_a_key_is_not_those_that_it_begins(self) -> None:
        others = {"a": photo("a"), "a.jpg": photo("b"), "a.jpg.bak": photo("c"), "a.jp": photo("d")}
        self.insert("u", others)
        assert self.erase("u", "a.jpg") == [Outcome.GONE]
        assert self.read("u") == {name: body for name, body in others.items() if name != "a.jpg"}
        assert self.open_reader().probe("u", ["a", "a.j", "a.jpg"]).tolist() == [True, False, False]

    def test_a_name_with_a_slash_means_all_below(self) -> None:
        self.insert("u/tiles", {"1.jpg": photo("a"), "2.jpg": photo("b")})
        self.insert("u/tiles/deep", {"3.jpg": photo("c")})
        beside = ["tiles.jpg"]
        if self.server.gateway is None:  # there an object is a file, and a file cannot be called as a directory is
            beside.append("tiles")
        self.insert("u", self._contents(beside))
        assert self.open_reader().probe("u", ["tiles/"]).tolist() == [True]
        assert self.erase("u", "tiles/", "absent/") == [Outcome.GONE, Outcome.ABSENT_BEFORE]
        assert self.versions() == sorted(f"photos/u/{name}" for name in beside)

    def test_open_uploads_hold_bytes_and_go(self) -> None:
        for name in ("a.jpg", "b.jpg"):
            upload = self.raw.create_multipart_upload(Bucket=self.bucket, Key=f"photos/u/{name}")["UploadId"]
            self.raw.upload_part(
                Bucket=self.bucket, Key=f"photos/u/{name}", UploadId=upload, PartNumber=1, Body=photo(name)
            )
        assert self.open_reader().probe("u", ["a.jpg"]).tolist() == [True]
        assert self.erase("u", "a.jpg") == [Outcome.GONE]
        assert self.versions() == ["photos/u/b.jpg"]

    def test_a_name_that_no_key_can_have_is_absent(self) -> None:
        assert self.erase("u", "n" * 1025) == [Outcome.ABSENT_BEFORE]

    def test_what_the_unit_holds_beside_is_not_read_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("expunge.adapters.stores.s3.listing._PAGE", 2)
        names = self.locators(40)
        self.insert("u", self._contents(names))
        wanted = [*names[::4], "absent"]
        assert self.open_reader().probe("u", wanted).tolist() == [True] * 10 + [False]
        assert self.erase("u", *wanted) == [Outcome.GONE] * 10 + [Outcome.ABSENT_BEFORE]
        assert len(self.versions()) == 30

    def test_windows_are_cut_by_reading_alone_where_that_gives_something(self) -> None:
        reader, listed = self.open_reader(), []
        large = b"".join(photo(str(number)) for number in range(2_000))
        assert len(large) > s3._WHOLE_BYTES
        self.insert("u", {"a.jpg": photo("old"), "b.jpg": photo("b"), "large.jpg": large, "empty.jpg": b""})
        self.insert("u", {"a.jpg": photo("a"), "behind.jpg": photo("behind"), "p/1.jpg": photo("below")})
        self.raw.delete_object(Bucket=self.bucket, Key="photos/u/behind.jpg")
        reader.probe("u", ["a.jpg"])
        reader._s3.meta.events.register("before-call.s3.ListObjectVersions", lambda **_: listed.append(1))
        for name, content in (("a.jpg", photo("a")), ("b.jpg", photo("b")), ("large.jpg", large)):
            (cut,) = reader.needles("u", [name])
            assert len(cut) == 3
            assert all(window in content for window in cut)
        assert not any(window in photo("old") for window in reader.needles("u", ["a.jpg"])[0])
        assert not listed
        names = ["behind.jpg", "b.jpg", "absent.jpg", "empty.jpg", "p/", "n" * 1025]
        behind, b, *nothing, below, never = reader.needles("u", names)
        assert listed
        for cut, content in ((behind, photo("behind")), (b, photo("b")), (below, photo("below"))):
            assert len(cut) == 3, "an old version holds bytes too"
            assert all(window in content for window in cut)
        assert [*nothing, never] == [(), (), ()]

    def test_the_servers_own_files_hold_nothing_afterwards(self) -> None:
        """Where they can be read, the level is L2."""
        if self.server.gateway is None:
            pytest.skip("NOT TESTED: the files of this server cannot be read here")
        files = ",".join(str(one) for one in self.server.gateway.files(self.bucket))
        url = self.server.url(self.bucket, files=files)
        reader, store = s3.open_reader(url, "photos"), s3.open_store(url, "photos")
        assert reader.capabilities.max_level == Level.FILE_ABSENT
        for body in ("first", "second"):
            self.insert("u", {"a.jpg": photo(body), "b.jpg": photo("b")})
        windows = [photo(one)[20:50] for one in ("first", "second")]
        assert all(reader.scan("u", windows)), "the trap is not set: the old version is in no file"
        self.raw.delete_object(Bucket=self.bucket, Key="photos/u/a.jpg")
        assert all(reader.scan("u", windows)), "the trap is not set: the ordinary call removed the bytes"
        erasure = store.erase("u", ["a.jpg"], 1)
        assert erasure.level == Level.FILE_ABSENT
        assert not any(reader.scan("u", windows))
        assert all(reader.scan("u", reader.needles("u", ["b.jpg"])[0]))

    def test_where_no_file_can_be_read_no_scan_is_claimed(self) -> None:
        assert self.open_reader().capabilities.max_level == Level.UNREACHABLE
        with pytest.raises(Rejected, match="files="):
            self.open_reader().scan("u", [bytes(range(16))])


@pytest.mark.slow
class TestS3StoreSuspended(S3Suite):
    """Versioning was on, and is suspended: old versions are kept, new objects replace version `null`."""

    versioning = "Suspended"

    def test_versions_from_before_go_too(self) -> None:
        if self.server.kind == "moto":
            pytest.skip("NOT TESTED: this server itself drops old versions while versioning is suspended")
        self.raw.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        self.insert("u", {"a.jpg": photo("before")})
        self.raw.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Suspended"})
        self.insert("u", {"a.jpg": photo("after")})
        assert self.versions() == ["photos/u/a.jpg"] * 2
        assert self.erase("u", "a.jpg") == [Outcome.GONE]
        assert self.versions() == []


class TestObjectLock:
    """What a lock keeps is blocked, with the reason and the date; never done, never an error with a key in it."""

    @pytest.fixture(autouse=True)
    def _place(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.set_environment(monkeypatch)
        self.server, self.raw = server, server.client()
        self.bucket = server.bucket(lock=True)
        self.until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)

    def put(self, name: str, **lock: Any) -> str:
        """The version."""
        found = self.raw.put_object(Bucket=self.bucket, Key=f"photos/u/{name}", Body=photo(name), **lock)
        return str(found["VersionId"])

    def store(self, **more: str) -> S3Store:
        return s3.open_store(self.server.url(self.bucket, **more), "photos")

    @pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
    def test_retention_blocks_until_its_date(self, mode: str) -> None:
        self.put("locked.jpg", ObjectLockMode=mode, ObjectLockRetainUntilDate=self.until)
        self.put("free.jpg")
        erasure = self.store().erase("u", ["locked.jpg", "free.jpg"], 1)
        assert erasure.outcomes.tolist() == [Outcome.BLOCKED, Outcome.GONE]
        if self.server.kind == "moto":
            pytest.skip(
                "NOT TESTED: the date, for this server does not answer GetObjectRetention; that it blocks is shown"
            )
        said = f"versions under object lock in {mode.lower()} mode, until {self.until:%Y-%m-%dT%H:%M:%SZ}"
        assert said in erasure.residue
        assert erasure.blocked_until == self.until
        assert s3.open_reader(self.server.url(self.bucket), "photos").probe("u", ["locked.jpg"]).all()

    def test_governance_gives_way_where_the_url_says_so(self) -> None:
        self.put("locked.jpg", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=self.until)
        assert self.store(governance="bypass").erase("u", ["locked.jpg"], 1).outcomes.tolist() == [Outcome.GONE]

    def test_a_legal_hold_blocks_until_it_is_lifted(self) -> None:
        version = self.put("held.jpg", ObjectLockLegalHoldStatus="ON")
        erasure = self.store(governance="bypass").erase("u", ["held.jpg"], 1)
        assert erasure.outcomes.tolist() == [Outcome.BLOCKED]
        assert HELD in erasure.residue
        assert erasure.blocked_until is None, "nobody knows when it is lifted"
        self.raw.put_object_legal_hold(
            Bucket=self.bucket, Key="photos/u/held.jpg", VersionId=version, LegalHold={"Status": "OFF"}
        )
        assert self.store().erase("u", ["held.jpg"], 1).outcomes.tolist() == [Outcome.GONE]


# --- the URL, and faults that are not about one key


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://b?thread=4", "s3://b?threads=many", "s3://b?threads=0", "s3://b?credentials=mine", "s3://b?x"],
)  # fmt: skip
def test_a_url_that_says_nothing_clear_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"expected|known"):
        table.open_store(url, "x")


@pytest.mark.parametrize(("threads", "at_once"), [("?threads=1", 2), ("", 4), ("?threads=6", 6), ("?threads=64", 8)])
def test_a_url_says_how_many_units_are_worked_on_at_once(threads: str, at_once: int) -> None:
    store = S3Store(parse(f"s3://b/photos{threads}")[0], "x")
    assert store.capabilities.units_at_once == at_once


def test_what_is_wrong_is_said_and_no_key_with_it(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.set_environment(monkeypatch)
    there, name = server.bucket(), "k1.person.jpg"
    wrong: dict[str, str] = {
        server.url("no-such-bucket-at-all"): "create it",
        server.url(there, endpoint="http://127.0.0.1:9"): "endpoint",
    }
    for url, words in wrong.items():
        for store in (s3.open_store(url, "x"), s3.open_reader(url, "x")):
            with pytest.raises(Retryable, match=words) as told:
                store.probe("u", [name])
            assert name not in "".join(traceback.format_exception(told.value))
        with pytest.raises(Retryable):
            s3.open_store(url, "x").erase("u", [name], 1)
    with pytest.raises(Misconfigured, match="profile"):
        s3.open_store(server.url(there, profile="nobody"), "x").probe("u", [name])


def test_wrong_credentials_are_said(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if server.kind in {"moto", "ministack"}:
        pytest.skip("NOT TESTED: this server looks at no signature")
    there = server.bucket()
    for key, secret, words in ((server.access_key, "wrong", "secret key"), ("nobody", "wrong", "access key")):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(Retryable, match=words):
            s3.open_store(server.url(there), "x").erase("u", ["a.jpg"], 1)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("PermanentRedirect", 301, "region=eu-west-3"),
        ("AuthorizationHeaderMalformed", 400, "region=eu-west-3"),
        ("RequestTimeTooSkewed", 403, "NTP"),
        ("ExpiredToken", 400, "session token"),
        ("AccessDenied", 403, "s3:ListBucketVersions"),
    ],
)
def test_what_only_a_provider_answers_is_said_too(code: str, status: int, words: str) -> None:
    """These servers do not answer so: the answer is put in the place of theirs, where botocore would hand it on."""
    reader, name = s3.open_store("s3://bucket/photos?region=us-east-1", "x"), "k1.person.jpg"
    response: Any = {
        "Error": {"Code": code, "Message": f"photos/u/{name}"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"x-amz-bucket-region": "eu-west-3"}},
    }

    def answer(**_: object) -> None:
        raise ClientError(response, "ListObjectVersions")

    reader.__dict__["_s3"] = SimpleNamespace(list_object_versions=answer)
    with pytest.raises(Retryable, match=words) as told:
        reader.probe("u", [name])
    assert name not in "".join(traceback.format_exception(told.value))
