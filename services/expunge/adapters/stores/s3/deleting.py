"""DeleteObjects, as far as it really deleted: errors inside a 200, answers that leave keys out, answers that are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from expunge.adapters.stores import CrashPoint
from expunge.adapters.stores.s3.client import MISSING, PASSING, SLOW, Place, S3Trouble, translated
from expunge.adapters.stores.s3.listing import Upload, Version
from expunge.adapters.stores.s3.pace import Pace
from expunge.domain.errors import Overloaded

_TRIES: Final = 40
"""Requests in a row, of all threads together, that settle nothing, before the rest is left for another attempt. About 20 s:
what is in the same batch for other stores waits for it."""
_FIRST_PRINTABLE: Final = " "
_WHAT: Final = "delete versions (s3:DeleteObject, s3:DeleteObjectVersion)"

GONE: Final = ""
LATER: Final = "later"
"""What became of a version, beside S3's own code: it is gone; it was not settled."""


class Deleter:
    """`s3` repeats nothing by itself: every repeat is paced and counted here."""

    def __init__(self, s3: Any, place: Place, pace: Pace) -> None:  # noqa: ANN401 - a boto3 client
        self._s3, self._place, self._pace = s3, place, pace

    def delete(
        self, doomed: Sequence[Version], guard: Callable[[], None], crash_point: CrashPoint
    ) -> dict[Version, str]:
        """What became of each. `guard` is called before each request, and may raise. Raises `Overloaded` when the store
        carried nothing out."""
        page = self._pace.page
        pages = [doomed[at : at + page] for at in range(0, len(doomed), page)]
        settled: dict[Version, str] = {}
        barren = [0]

        def work(one: Sequence[Version]) -> dict[Version, str]:
            done = self._page(list(one), guard, barren)
            crash_point("page")
            return done

        if len(pages) > 1:
            with ThreadPoolExecutor(min(self._place.threads, len(pages))) as pool:
                for done in pool.map(work, pages):
                    settled |= done
        elif pages:
            settled = work(pages[0])
        if settled and set(settled.values()) == {LATER}:
            raise Overloaded("the store took no deletion, though asked again and again")
        return settled

    def abort(self, uploads: Sequence[Upload]) -> set[Upload]:
        """End uploads; those that are gone."""
        gone = set()
        for one in uploads:
            try:
                with translated("abort uploads (s3:AbortMultipartUpload)"):
                    self._s3.abort_multipart_upload(Bucket=self._place.bucket, Key=one.key, UploadId=one.upload_id)
            except S3Trouble as trouble:
                if trouble.code in MISSING:
                    gone.add(one)
                elif trouble.code not in PASSING:
                    raise
            else:
                gone.add(one)
        return gone

    def _page(self, pending: list[Version], guard: Callable[[], None], barren: list[int]) -> dict[Version, str]:
        """`barren`: how many requests in a row settled nothing, for all threads of a call."""
        settled: dict[Version, str] = {}
        tries = 0
        while pending and barren[0] < _TRIES:
            sending = pending[: self._pace.page]
            guard()
            self._pace.take(len(sending))
            told = self._send(sending)
            if any(code in SLOW for code in told.values()):
                self._pace.slowed()
            done = {one: code for one, code in told.items() if code not in PASSING}
            self._pace.settled(len(done))
            settled |= done
            pending = [one for one in pending if one not in done]
            tries = 0 if done else tries + 1
            barren[0] = 0 if done else barren[0] + 1
            if len(done) < len(sending):
                self._pace.back_off(tries)
        return settled | dict.fromkeys(pending, LATER)

    def _send(self, sending: Sequence[Version]) -> dict[Version, str]:
        """What the store says of each; `no-answer` of those it says nothing about."""
        try:
            if any(_beyond_xml(one.key) for one in sending):
                return {one: self._alone(one) for one in sending}
            with translated(_WHAT):
                answer = self._s3.delete_objects(
                    Bucket=self._place.bucket,
                    Delete={"Objects": [_named(one) for one in sending], "Quiet": False},
                    **self._bypass,
                )
        except S3Trouble as trouble:
            if trouble.code not in PASSING:
                raise
            return dict.fromkeys(sending, trouble.code)
        by_name = {(one.key, one.version_id): one for one in sending}
        told = dict.fromkeys(sending, "no-answer")
        for one in answer.get("Deleted", ()):
            if (version := by_name.get((one["Key"], one.get("VersionId")))) is not None:
                # without a version id, a marker in the answer is a new one: everything is still there
                marked = version.version_id is None and one.get("DeleteMarker", False)
                told[version] = "marked" if marked else GONE
        for one in answer.get("Errors", ()):
            code = GONE if one.get("Code") in MISSING else str(one.get("Code", "unknown"))
            if (version := by_name.get((one.get("Key"), one.get("VersionId") or None))) is not None:
                told[version] = code
            elif code != GONE:  # some servers name the key alone: it is about what they did not delete of it
                told |= {each: code for each in sending if each.key == one.get("Key") and told[each] == "no-answer"}
        return told

    def _alone(self, one: Version) -> str:
        """Keys with control characters cannot stand in XML, only in an address."""
        try:
            with translated(_WHAT):
                self._s3.delete_object(Bucket=self._place.bucket, **_named(one), **self._bypass)
        except S3Trouble as trouble:
            if trouble.code in MISSING:
                return GONE
            if trouble.code in PASSING | {"AccessDenied"}:
                return trouble.code
            raise
        return GONE

    @property
    def _bypass(self) -> dict[str, bool]:
        return {"BypassGovernanceRetention": True} if self._place.bypass else {}


def _named(one: Version) -> dict[str, str]:
    return {"Key": one.key} if one.version_id is None else {"Key": one.key, "VersionId": one.version_id}


def _beyond_xml(key: str) -> bool:
    return any(character < _FIRST_PRINTABLE or character in "\ufffe\uffff" for character in key)
