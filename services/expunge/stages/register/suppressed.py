"""What must not come back: suppressed people, and content digests of what was erased.

People are rows; digests are packed pages, kept here sorted and extended by page number. Both hold MACs only. Callers
hold the suppression lock (shared), so that no entry appears between this check and their commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from expunge.domain import suppression
from expunge.domain.suppression import MAC_BYTES
from expunge.ports import Tx

EVERYTHING: Final = "*"
"""The purpose of an entry that refuses altogether."""
_ASK: Final = 20_000
"""MACs in one query."""


class Digests:
    """Sorted MACs: the first 8 bytes find the place, all 32 decide."""

    def __init__(self) -> None:
        self._page = 0
        self._heads: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._macs: NDArray[np.void] = np.zeros(0, f"V{MAC_BYTES}")

    def __len__(self) -> int:
        return len(self._heads)

    async def refresh(self, tx: Tx) -> None:
        """Take in the pages that were added since."""
        rows = await tx.fetch("register_suppressed_pages", after=self._page)
        if rows:
            self._add(b"".join(bytes(macs) for _, macs in rows))
            self._page = rows[-1][0]

    def _add(self, macs: bytes) -> None:
        fresh = np.frombuffer(macs, f"V{MAC_BYTES}")
        heads = np.ascontiguousarray(np.frombuffer(macs, ">u8")[:: MAC_BYTES // 8]).astype(np.uint64)
        heads, all_macs = np.concatenate((self._heads, heads)), np.concatenate((self._macs, fresh))
        order = np.argsort(heads, kind="stable")
        self._heads, self._macs = heads[order], all_macs[order]

    def hit(self, macs: Iterable[bytes]) -> set[bytes]:
        """Those of `macs` that are suppressed."""
        asked = list(macs)
        heads = np.array([int.from_bytes(mac[:8], "big") for mac in asked], dtype=np.uint64)
        low = np.searchsorted(self._heads, heads, "left").tolist()
        high = np.searchsorted(self._heads, heads, "right").tolist()
        return {
            mac
            for mac, start, end in zip(asked, low, high, strict=True)
            if start < end and mac in {one.tobytes() for one in self._macs[start:end]}
        }


class Suppressed:
    """Answers for one transaction: which purposes of which subjects and digests are suppressed."""

    def __init__(self, key: bytes, digests: Digests) -> None:
        self._key = key
        self._digests = digests
        self._people = False

    async def open(self, tx: Tx) -> None:
        """Read what is new. Call it under the lock."""
        await self._digests.refresh(tx)
        ((self._people,),) = await tx.fetch("register_any_suppressed")

    @property
    def empty(self) -> bool:
        """Nobody and nothing is suppressed: no need to ask."""
        return not self._people and not len(self._digests)

    async def subjects(self, tx: Tx, subjects: Iterable[str], purposes: Iterable[str]) -> dict[str, set[str]]:
        """By subject: the purposes asked about that are suppressed for them."""
        if not self._people:
            return {}
        names = (EVERYTHING, *sorted(set(purposes)))
        asked = {
            suppression.mac(self._key, "subject", purpose, subject.encode()): (subject, purpose)
            for subject in set(subjects)
            for purpose in names
        }
        found: dict[str, set[str]] = {}
        macs = list(asked)
        for at in range(0, len(macs), _ASK):
            for (mac,) in await tx.fetch("register_suppressed_subjects", macs=macs[at : at + _ASK]):
                subject, purpose = asked[bytes(mac)]
                found.setdefault(subject, set()).add(purpose)
        return found

    def digests(self, digests: Iterable[bytes], purposes: Iterable[str]) -> dict[bytes, set[str]]:
        """By digest: the purposes asked about that are suppressed for it."""
        if not len(self._digests):
            return {}
        names = (EVERYTHING, *sorted(set(purposes)))
        asked = {
            suppression.mac(self._key, "digest", purpose, digest): (digest, purpose)
            for digest in set(digests)
            for purpose in names
        }
        found: dict[bytes, set[str]] = {}
        for mac in self._digests.hit(asked):
            digest, purpose = asked[mac]
            found.setdefault(digest, set()).add(purpose)
        return found
