"""What a restored catalogue holds though the suppression journal says it must not, and the journal's projection.

Stage plan asks for it when an order selects what is suppressed; `backup` when it looks at a restored database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain import suppression
from expunge.domain.leaf import NO_DIGEST
from expunge.domain.suppression import MAC_BYTES, Action, Record
from expunge.ports import Tx

EVERYTHING: Final = "*"
SUBJECTS: Final = 10_000
"""People asked about at once."""

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a journal says in the end: MACs of people by purpose digest, and of photos' digests (an entry about a photo is
    never lifted)."""

    people: Mapping[bytes, Action]
    digests: frozenset[bytes]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Standing:
        """Later records win."""
        people = {one.mac: one.action for one in records if one.field == "subject"}
        return cls(people, frozenset(one.mac for one in records if one.field == "digest"))

    @property
    def suppressed(self) -> set[bytes]:
        """MACs of people that stand."""
        return {mac for mac, action in self.people.items() if action is Action.ADD}


async def images(tx: Tx, key: bytes, standing: Standing) -> I64:
    """Ordinals, ascending, of images in the catalogue whose digest is suppressed, or one of whose people is, for every
    purpose; not of those that an open request has in hand, or that one left for a reason that this database knows (a
    hold, a cancelled or void order). `key`: the journal's."""
    found: list[I64] = []
    if standing.digests:
        known = BitMap64().union(*(BitMap64.deserialize(row[0]) for row in await tx.fetch("restored_known")))
        for first, end in await tx.fetch("restored_blocks"):
            ((ordinals, digests),) = await tx.fetch("restored_digests", first=first, end=end, none=NO_DIGEST)
            if ordinals:
                hits = await asyncio.to_thread(_by_digest, key, standing, ordinals, digests)
                found.append(np.frombuffer((BitMap64(hits) - known).to_array(), np.uint64).astype(np.int64))
    async for subjects in _subjects(tx):
        listed = [one for one in subjects if _mac(key, EVERYTHING, one) in standing.suppressed]
        if listed:
            ((packed,),) = await tx.fetch("plan_ordinals_of_subjects", subjects=listed)
            found.append(np.frombuffer(packed or b"", ">i8").astype(np.int64))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _by_digest(key: bytes, standing: Standing, ordinals: bytes, digests: bytes) -> I64:
    macs = suppression.macs(key, "digest", EVERYTHING, digests, MAC_BYTES)
    hits = [macs[at : at + MAC_BYTES] in standing.digests for at in range(0, len(macs), MAC_BYTES)]
    return np.frombuffer(ordinals, ">i8").astype(np.int64)[np.array(hits, np.bool_)]


async def _subjects(tx: Tx) -> AsyncIterator[list[str]]:
    """People with images and without an open request, in lots."""
    after = ""
    while rows := await tx.fetch("restored_subjects", after=after, limit=SUBJECTS):
        yield [subject for subject, has_open in rows if not has_open]
        after = rows[-1][0]


def _mac(key: bytes, purpose: str, subject: str) -> bytes:
    return suppression.mac(key, "subject", purpose, subject.encode())


async def withdrawn(tx: Tx, key: bytes, standing: Standing, purposes: Mapping[int, str]) -> dict[str, tuple[str, ...]]:
    """People of whom something is kept for purposes that they withdrew, with those purposes; not those who withdrew
    everything, nor those with an open request. `purposes`: name by bit."""
    suppressed = standing.suppressed
    found: dict[str, tuple[str, ...]] = {}
    async for subjects in _subjects(tx):
        masks = {}
        for one in subjects:
            if _mac(key, EVERYTHING, one) not in suppressed:
                masks[one] = sum(1 << bit for bit, name in purposes.items() if _mac(key, name, one) in suppressed)
        listed = [one for one, mask in masks.items() if mask]
        for one, mask in await tx.fetch("restored_kept", subjects=listed, masks=[masks[one] for one in listed]):
            found[one] = tuple(name for bit, name in purposes.items() if mask >> bit & 1)
    return found


async def project(tx: Tx, standing: Standing) -> int:
    """Make the database's projection say what the journal says; how many entries it lacked."""
    stands = sorted(standing.suppressed)
    lifted = sorted(standing.people.keys() - standing.suppressed)
    changed = await tx.execute("restored_add", macs=stands) + await tx.execute("restored_lift", macs=lifted)
    known = {
        bytes(page[at : at + MAC_BYTES])
        for (page,) in await tx.fetch("restored_pages")
        for at in range(0, len(page), MAC_BYTES)
    }
    missing = sorted(standing.digests - known)
    if missing:
        await tx.execute("restored_page", macs=b"".join(missing))
    return changed + len(missing)
