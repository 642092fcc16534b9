"""`s3://bucket/prefix`: a unit is a prefix below the store's ('.' is that itself), a locator a name in it, or a name with
a slash after it for all that is below.

Erasing deletes every version and every delete marker of exactly these keys and aborts their open uploads, so it hides
too. What the store's own disks keep no reader of S3 can see: the level is L1, and L2 only where the server's files can
be read here (`files=`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import CrashPoint, all_outcomes, count_needles, nowhere, os_faults, parts_of, windows
from expunge.adapters.stores.s3 import roles
from expunge.adapters.stores.s3.client import (
    EMPTY,
    MISSING,
    OWN,
    READ,
    Place,
    S3Trouble,
    client,
    parse,
    refuse_hostile_keys,
    refuse_rest,
    too_long,
    translated,
    utf8,
)
from expunge.adapters.stores.s3.deleting import GONE, Deleter
from expunge.adapters.stores.s3.fences import Fences
from expunge.adapters.stores.s3.listing import Held, Version, find
from expunge.adapters.stores.s3.locks import reasons
from expunge.adapters.stores.s3.pace import Pace, pace_of
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

DISKS: Final = "the provider's disks until it reuses them: its interface shows no version, upload or part any more"
FREED: Final = "free blocks of the server's file system until reused or trimmed"
MARKED: Final = "versions behind delete markers: the bucket keeps versions that its server does not list"

_METHOD: Final = "deletion of all versions"
_NEEDLE_BYTES: Final = 32
_WHOLE_BYTES: Final = 1 << 18
"""Objects up to this size are read whole for needles, of larger ones ranges."""
REFUSED: Final = frozenset({"AccessDenied", "ObjectLocked", "InvalidRequest"})


class S3Reader:
    """The rescanner's view. Its credentials are asked once whether they could erase; `Misconfigured` if so."""

    def __init__(self, place: Place, name: str) -> None:
        self.name = name
        self._place = place
        self.capabilities = Capabilities(
            rewrites_unit=False, max_level=level_of(place), units_at_once=place.units_at_once
        )
        self._may_read = False
        self._checking = Lock()

    @cached_property
    def _s3(self) -> Any:  # noqa: ANN401 - boto3 makes its classes as it runs
        return client(self._place, self._place.reader)

    def refuse_able(self) -> None:
        """Raises `Misconfigured` if its credentials could erase, `Retryable` if that cannot be found out now."""
        with self._checking:
            if not self._may_read:
                roles.refuse_able(self._s3, self._place)
                self._may_read = True

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        """A noncurrent version and an open upload count as there: their bytes can be had by who knows the id."""
        self._refuse(unit, locators)
        held = find(self._s3, self._place, unit, locators)
        return np.fromiter((held[one].bytes_held for one in locators), dtype=np.bool_, count=len(locators))

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 32 bytes of each object's newest version; of a prefix, of its first."""
        self._refuse(unit, locators)
        base = self._place.key(unit)
        plain = [one for one in locators if not one.endswith("/") and not too_long(base + one)]
        with ThreadPoolExecutor(self._place.threads) as pool:
            read = dict(zip(plain, pool.map(lambda one: self._windows_of(base + one), plain), strict=True))
            # Of prefixes, and where the newest is a marker or nothing, only a listing tells what there is.
            unread = [one for one in dict.fromkeys(locators) if read.get(one) is None]
            held = find(self._s3, self._place, unit, unread) if unread else {}
            found = read | dict(zip(unread, pool.map(lambda one: self._windows(held[one]), unread), strict=True))
        return [found[one] or () for one in locators]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads the server's own files (`files=`), all of the bucket: which of them are a unit's, a server does not
        say. `Rejected`, code `no-file-access`, where they cannot be read here."""
        check_unit(unit)
        return scan_files(self._place, needles)

    def _refuse(self, unit: str, locators: Sequence[str]) -> None:
        check_unit(unit)
        refuse_hostile_keys(locators)
        self.refuse_able()

    def _windows_of(self, key: str) -> tuple[bytes, ...] | None:
        """Windows of what reading this key gives: one call, where listing its versions first makes it two. None where that
        is nothing."""
        try:
            with translated(READ):
                answer = self._s3.get_object(Bucket=self._place.bucket, Key=key, Range=f"bytes=0-{_WHOLE_BYTES - 1}")
                whole = bytes(answer["Body"].read())
        except S3Trouble as trouble:
            if trouble.code in MISSING | EMPTY:
                return None
            raise
        size = int(answer.get("ContentRange", "").rpartition("/")[2] or len(whole))
        if size <= len(whole):
            return windows(size, lambda at, width: whole[at : at + width], _NEEDLE_BYTES)
        return self._windows(Held([Version(key, answer.get("VersionId"), size, latest=True, marker=False)]))

    def _windows(self, held: Held) -> tuple[bytes, ...]:
        newest = held.newest
        if newest is None or newest.size == 0:
            return ()
        try:
            if newest.size <= _WHOLE_BYTES:
                whole = self._get(newest)
                return windows(len(whole), lambda at, width: whole[at : at + width], _NEEDLE_BYTES)
            return windows(newest.size, lambda at, width: self._get(newest, at, width), _NEEDLE_BYTES)
        except S3Trouble as trouble:
            if trouble.code in MISSING:
                return ()
            raise

    def _get(self, version: Version, at: int = 0, width: int = 0) -> bytes:
        which = {} if version.version_id in {None, "null"} else {"VersionId": version.version_id}
        part = {"Range": f"bytes={at}-{at + width - 1}"} if width else {}
        with translated(READ):
            answer = self._s3.get_object(Bucket=self._place.bucket, Key=version.key, **which, **part)
            return bytes(answer["Body"].read())


class S3Store(S3Reader):
    """Who erases: its credentials may delete, and need not be able to read an object."""

    def __init__(self, place: Place, name: str, *, crash_point: CrashPoint = nowhere, pace: Pace | None = None) -> None:
        super().__init__(place, name)
        self._crash_point = crash_point
        self.pace = pace or pace_of(place.endpoint or "", place.bucket, place.prefix)

    @cached_property
    def _s3(self) -> Any:  # noqa: ANN401
        return client(self._place, self._place.profile)

    @cached_property
    def _deleter(self) -> Deleter:
        return Deleter(client(self._place, self._place.profile, attempts=1), self._place, self.pace)

    @cached_property
    def _fences(self) -> Fences:
        return Fences(self._s3, self._place)

    def refuse_able(self) -> None:
        """Nothing: it is to be able."""

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        raise NotImplementedError("erase also hides in this store")

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        """Erase in these steps, each of which may be repeated:

        1. note the fence; list every version, marker and upload of exactly these keys
        2. abort the uploads, delete by version: what is put meanwhile under another version stays
        3. ask about retention and holds of what was refused
        """
        check_unit(unit)
        refuse_hostile_keys(locators)
        self._fences.claim(unit, fence)
        self._crash_point("claimed")
        held = find(self._s3, self._place, unit, locators)
        self._crash_point("listed")

        def guard() -> None:
            self._fences.refuse_older(unit, fence)

        guard()
        uploads = [upload for one in held.values() for upload in one.uploads]
        aborted = self._deleter.abort(uploads)
        self._crash_point("aborted")
        doomed = [version for one in held.values() for version in one.versions]
        settled = self._deleter.delete(doomed, guard, self._crash_point)
        self._crash_point("deleted")
        outcomes = all_outcomes(len(locators), Outcome.GONE)
        for index, locator in enumerate(locators):
            outcomes[index] = _outcome(held[locator], settled, all_aborted=aborted.issuperset(held[locator].uploads))
        refused = [one for one, code in settled.items() if code in REFUSED]
        why, until = reasons(self._s3, self._place, refused)
        residue = (*why, *([MARKED] if "marked" in settled.values() else ()), FREED if self._place.files else DISKS)
        return Erasure(outcomes, self.capabilities.max_level, _METHOD, residue, until)


def open_store(url: str, name: str) -> S3Store:
    """As the module says. The credentials are those of `profile=`, or boto3's own choice."""
    place, rest = parse(url)
    refuse_rest(rest)
    return S3Store(place, name)


def open_reader(url: str, name: str) -> S3Reader:
    """Refused at once if its credentials could erase; at its first use if the store does not answer now."""
    place, rest = parse(url)
    refuse_rest(rest)
    reader = S3Reader(place, name)
    refuse_at_start(reader)
    return reader


def refuse_at_start(reader: S3Reader) -> None:
    try:
        reader.refuse_able()
    except Retryable:
        return  # a store that is away stops no worker that has others; the next call asks again


def check_unit(unit: str) -> None:
    """Raises `Rejected` for what is no prefix of the product."""
    if unit != "." and (parts_of(unit)[0] == OWN.strip("/") or not utf8(unit)):
        raise Rejected("hostile-unit", "expected a unit of the product, got the store's own prefix or no Unicode text")


def level_of(place: Place) -> Level:
    return Level.FILE_ABSENT if place.files else Level.UNREACHABLE


def scan_files(place: Place, needles: Sequence[bytes]) -> list[int]:
    """How often each needle occurs in the server's own files. Raises `Rejected` where they are not to be read here."""
    if not place.files:
        raise Rejected("no-file-access", "expected the server's files to be readable here (files=), they are not")
    with os_faults():
        return count_needles(_files(place.files), needles)


def _files(directories: Sequence[str]) -> Iterator[str]:
    for directory in directories:
        if not os.path.isdir(directory):
            raise Misconfigured("expected files= in a store's URL to name directories of this machine")
        for folder, _, names in os.walk(directory):
            yield from (os.path.join(folder, name) for name in names)


def _outcome(held: Held, settled: dict[Version, str], *, all_aborted: bool) -> Outcome:
    codes = {settled[one] for one in held.versions}
    if codes & REFUSED:
        return Outcome.BLOCKED
    if codes - {GONE} or not all_aborted:
        return Outcome.OPEN
    return Outcome.GONE if held.bytes_held else Outcome.ABSENT_BEFORE
