"""Units that are single objects: shards, Parquet files and index files in a bucket, rewritten by a conditional PUT.

There is no lock. Who changes the object names the contents that it read (`If-Match`), and starts again when it was not
the first; the tombstones and the fence are one more object, changed in the same way. Old versions go after the switch:
until then they hold what was erased, and `former` shows them. Copies on this machine are in files without a name's
worth of meaning, removed after use.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from expunge.adapters.stores import CrashPoint, Rewrite, nowhere, parts_of
from expunge.adapters.stores.s3 import DISKS, FREED, REFUSED, S3Reader, level_of, refuse_at_start, scan_files
from expunge.adapters.stores.s3.client import (
    CONFLICTS,
    MISSING,
    OWN,
    READ,
    Place,
    S3Trouble,
    client,
    parse,
    too_long,
    translated,
    utf8,
)
from expunge.adapters.stores.s3.deleting import GONE, Deleter
from expunge.adapters.stores.s3.listing import Version, uploads, versions
from expunge.adapters.stores.s3.locks import reasons
from expunge.adapters.stores.s3.pace import pace_of
from expunge.adapters.stores.units import Withheld
from expunge.domain.errors import FencedOff, Misconfigured, Rejected, Retryable

T = TypeVar("T")

_STATE: Final = ".expunge"
"""Ends the name of the object beside a unit that holds its fence and tombstones."""
_TRIES: Final = 8
_WRITE: Final = "replace objects (s3:PutObject)"
_PART_BYTES: Final = 64 << 20
"""Larger objects are put in parts of this size: S3 takes 10,000, which is 640 GB."""


class ObjectFiles:
    """A bucket and prefix as a place of units."""

    def __init__(self, place: Place, *, erasing: bool) -> None:
        profile = place.profile if erasing else place.reader
        self.place = place
        self.level = level_of(place)
        self.residue: tuple[str, ...] = (FREED if place.files else DISKS,)
        self.s3 = client(place, profile)
        self._once = client(place, profile, attempts=1)
        self._role = S3Reader(place, "")

    def unit(self, name: str, token_chars: int) -> ObjectUnit:
        parts = parts_of(name)
        if parts[0] == OWN.strip("/") or parts[-1].endswith(_STATE) or not utf8(name):
            raise Rejected(
                "hostile-unit", "expected the unit's own object, got the name of one of ours or no Unicode text"
            )
        return ObjectUnit(self, self.place.prefix + name, token_chars)

    def check(self) -> None:
        """Raises `Misconfigured` where a reader's credentials could erase."""
        self._role.refuse_able()

    def check_at_start(self) -> None:
        refuse_at_start(self._role)

    def deleter(self) -> Deleter:
        place = self.place
        return Deleter(self._once, place, pace_of(place.endpoint or "", place.bucket, place.prefix))


@dataclass(frozen=True, slots=True)
class _State:
    """`tag` and `version`: of the object that holds it; None where there is none yet."""

    fence: int
    hidden: frozenset[str]
    tag: str | None = None
    version: str | None = None

    def dump(self) -> bytes:
        return json.dumps({"fence": self.fence, "hidden": sorted(self.hidden)}).encode()


class ObjectUnit:
    """`units.Unit` in a bucket."""

    def __init__(self, files: ObjectFiles, key: str, token_chars: int) -> None:
        self._files, self._s3, self._place = files, files.s3, files.place
        self._key = key
        self._token_chars = token_chars

    @property
    def path(self) -> str:
        return f"s3://{self._place.bucket}/{self._key}"

    def exists(self) -> bool:
        with suppress(FileNotFoundError):
            self.contents()
            return True
        return False

    def contents(self) -> Hashable:
        if too_long(self._key):
            raise FileNotFoundError
        with _absent(), translated(READ):
            found = self._s3.head_object(Bucket=self._place.bucket, Key=self._key)
        return found["ETag"], found.get("VersionId")

    @contextmanager
    def reading(self) -> Iterator[str]:
        with self._fetched(None) as (path, _):
            yield path

    def former(self) -> Iterator[str]:
        for one in self._kept():
            if not one.marker:
                with suppress(FileNotFoundError), self._fetched(one.version_id) as (path, _):
                    yield path

    def hidden(self) -> frozenset[str]:
        return self._state().hidden

    def hide(self, choose: Callable[[AbstractSet[str]], Collection[str]], crash_point: CrashPoint) -> None:
        self._change(lambda state: replace(state, hidden=state.hidden.union(choose(state.hidden))))
        crash_point("hidden")

    def replace(self, make: Callable[[str | None, AbstractSet[str], str], None]) -> None:
        for _ in range(_TRIES):
            with ExitStack() as stack:
                try:
                    old, tag = stack.enter_context(self._fetched(None))
                except FileNotFoundError:
                    old, tag = None, None
                new = stack.enter_context(_temporary())
                make(old, self.hidden(), new)
                if self._put(self._key, new, tag):
                    return
        raise Retryable("the unit was changed again and again while it was written")

    def rewrite(
        self, fence: int, rebuild: Callable[[str, str], Rewrite[T]], drop: Collection[str], crash_point: CrashPoint
    ) -> T:
        """1. note the fence; 2. read, rebuild; 3. refuse an old fence, put the new contents if nobody changed the old
        ones, else start again; 4. delete old versions and open uploads; 5. drop the tombstones."""
        for _ in range(_TRIES):
            self._claim(fence)
            crash_point("claimed")
            with ExitStack() as stack:
                try:
                    old, tag = stack.enter_context(self._fetched(None))
                except FileNotFoundError:
                    raise Retryable("the unit was deleted while it was rewritten") from None
                new = stack.enter_context(_temporary())
                made = rebuild(old, new)
                crash_point("rebuilt")
                self._refuse_older(fence)
                if made.changed and not self._put(self._key, new, tag):
                    continue
                crash_point("switched")
            self._purge(fence)
            crash_point("purged")
            self._unhide(drop)
            crash_point("unhidden")
            return made.result
        raise Retryable("the unit was changed again and again while it was rewritten")

    def forget(self, fence: int, tokens: Collection[str]) -> None:
        if too_long(self._key) or not any(True for page in versions(self._s3, self._place, self._key) for _ in page):
            return
        self._claim(fence)
        self._purge(fence)
        self._unhide(tokens)

    def count(self, needles: Sequence[bytes]) -> list[int]:
        return scan_files(self._place, needles)

    # --- contents

    @contextmanager
    def _fetched(self, version_id: str | None) -> Iterator[tuple[str, str]]:
        """A copy on this machine, and its tag. FileNotFoundError."""
        if too_long(self._key):
            raise FileNotFoundError
        which = {} if version_id is None else {"VersionId": version_id}
        with _absent(), translated(READ):
            answer = self._s3.get_object(Bucket=self._place.bucket, Key=self._key, **which)
        with _temporary() as path:
            with translated(READ), open(path, "wb") as file:
                file.writelines(answer["Body"].iter_chunks(1 << 20))
            yield path, answer["ETag"]

    def _put(self, key: str, path: str, tag: str | None) -> bool:
        """Put a file if the object still has that tag (None: if there is none)."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        where = {"Bucket": self._place.bucket, "Key": key}
        try:
            with translated(_WRITE), open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size <= _PART_BYTES:
                    self._s3.put_object(**where, Body=file, **condition)
                else:
                    self._put_parts(file, where, condition)
        except S3Trouble as trouble:
            if trouble.code in CONFLICTS | MISSING:
                return False
            raise
        return True

    def _put_parts(self, file: Any, where: dict[str, str], condition: dict[str, str]) -> None:  # noqa: ANN401
        upload = {**where, "UploadId": self._s3.create_multipart_upload(**where)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while part := file.read(_PART_BYTES):
                number = len(parts) + 1
                tag = self._s3.upload_part(**upload, PartNumber=number, Body=part)["ETag"]
                parts.append({"ETag": tag, "PartNumber": number})
            self._s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except Exception:
            with suppress(S3Trouble), translated(_WRITE):
                self._s3.abort_multipart_upload(**upload)
            raise

    # --- what a bucket keeps

    def _kept(self) -> list[Version]:
        """Versions of the unit that are not its contents now."""
        if too_long(self._key):
            return []
        found = (one for page in versions(self._s3, self._place, self._key) for one in page)
        return [one for one in found if one.key == self._key and not (one.latest and not one.marker)]

    def _purge(self, fence: int) -> None:
        """Old versions of the unit and of its state, and open uploads: what began before the switch was made of old
        contents. Raises `Withheld` where the store keeps any of them, `Retryable` where that is not settled."""

        def guard() -> None:
            self._refuse_older(fence)

        deleter = self._files.deleter()
        began = [one for one in uploads(self._s3, self._place, self._key) if one.key == self._key]
        state = f"{self._key}{_STATE}"
        old = [one for page in versions(self._s3, self._place, state) for one in page if one.key == state]
        doomed = [*self._kept(), *(one for one in old if not one.latest)]
        settled = deleter.delete(doomed, guard, nowhere)
        refused = [one for one, code in settled.items() if code in REFUSED]
        if len(deleter.abort(began)) < len(began) or set(settled.values()) - {GONE, *REFUSED}:
            raise Retryable("the unit was rewritten, but old versions of it could not be deleted now")
        if refused:
            raise Withheld(*reasons(self._s3, self._place, refused))

    # --- fence and tombstones

    def _state(self) -> _State:
        if too_long(self._key + _STATE):
            return _State(-1, frozenset())
        try:
            with translated(READ):
                answer = self._s3.get_object(Bucket=self._place.bucket, Key=f"{self._key}{_STATE}")
                held = json.loads(answer["Body"].read())
        except S3Trouble as trouble:
            if trouble.code in MISSING:
                return _State(-1, frozenset())
            raise
        hidden = frozenset(one for one in held["hidden"] if len(one) == self._token_chars)
        return _State(held["fence"], hidden, answer["ETag"], answer.get("VersionId"))

    def _change(self, change: Callable[[_State], _State]) -> None:
        for _ in range(_TRIES):
            before = self._state()
            after = change(before)
            if after == before:
                return
            with _temporary() as path:
                with open(path, "wb") as file:
                    file.write(after.dump())
                if self._put(f"{self._key}{_STATE}", path, before.tag):
                    self._drop(before.version)
                    return
        raise Retryable("others kept writing the unit's fence and tombstones")

    def _drop(self, version: str | None) -> None:
        """The state before, which held tombstones. What stays after a crash goes with the next erase."""
        if version not in {None, "null"}:
            with suppress(S3Trouble), translated("delete our own objects"):
                self._s3.delete_object(Bucket=self._place.bucket, Key=f"{self._key}{_STATE}", VersionId=version)

    def _claim(self, fence: int) -> None:
        def claimed(state: _State) -> _State:
            if state.fence > fence:
                raise FencedOff
            return replace(state, fence=fence)

        self._change(claimed)

    def _refuse_older(self, fence: int) -> None:
        if self._state().fence > fence:
            raise FencedOff

    def _unhide(self, drop: Collection[str]) -> None:
        self._change(lambda state: replace(state, hidden=state.hidden.difference(drop)))


def open_files(url: str, *, erasing: bool) -> tuple[ObjectFiles, dict[str, str]]:
    """The place of `SCHEME+s3://bucket/prefix?...`, and the parameters that are not about it. A reader is refused at
    once if its credentials could erase. Raises `Misconfigured`."""
    place, rest = parse(url)
    files = ObjectFiles(place, erasing=erasing)
    if not erasing:
        files.check_at_start()
    for directory in place.files:
        if not os.path.isdir(directory):
            raise Misconfigured("expected files= in a store's URL to name directories of this machine")
    return files, rest


@contextmanager
def _temporary() -> Iterator[str]:
    """A file of this machine without a name, by a path for this process alone: what it holds of people goes with the
    process, however that ends."""
    with tempfile.TemporaryFile(buffering=0) as file:
        yield f"/proc/self/fd/{file.fileno()}"


@contextmanager
def _absent() -> Iterator[None]:
    try:
        yield
    except S3Trouble as trouble:
        if trouble.code in MISSING:
            raise FileNotFoundError from None
        raise
