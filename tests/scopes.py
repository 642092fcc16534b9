"""Small sealed scope files, and the ports that go with them, for tests of the executors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from uuid import UUID

import numpy as np

from expunge.chunks.scopes import Scopes, Sweep
from expunge.domain import dsse, leaf, merkle, scopefile
from expunge.domain.errors import Rejected
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.words import Kind, Role

BUCKET = date(2026, 11, 22)


class MemorySealed:
    """`SealedStore` in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, name: str, blocks: Iterable[bytes]) -> bytes:
        data = b"".join(blocks)
        if self.files.setdefault(name, data) != data:
            raise FileExistsError(name)
        return hashlib.sha256(data).digest()

    def open(self, name: str) -> memoryview:
        try:
            return memoryview(self.files[name])
        except KeyError:
            raise FileNotFoundError(name) from None

    def read(self, name: str, position: int, length: int) -> bytes:
        return self.files[name][position : position + length]


class OneBucket:
    """`KeyStore` with one key."""

    def __init__(self) -> None:
        self.key: bytes | None = b"k" * 32

    def bucket(self, day: date, *, create: bool = False) -> bytes:  # noqa: ARG002 - one key for all days
        if self.key is None:
            raise Rejected("key-destroyed", "expected a key, got none")
        return self.key

    def destroy(self, day: date) -> None:  # noqa: ARG002 - see bucket
        self.key = None


class SeedSigner:
    """`Signer` of a fixed key."""

    def __init__(self, role: Role, seed: int = 1) -> None:
        self.role = role
        self._key = dsse.SigningKey.from_seed(bytes([seed]) * 32)
        self.public = self._key.public

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        return dsse.sign(payload, payload_type, self._key)


@dataclass(frozen=True)
class TreeOf:
    """Artifacts of one tree: (unit, locator), in any order. `overlaps`: places after sorting."""

    kind: Kind
    store: str
    artifacts: Sequence[tuple[str, str]]
    overlaps: Sequence[int] = ()


@dataclass
class Sealing:
    """Seals scope files into one store under one key."""

    sealed: MemorySealed = field(default_factory=MemorySealed)
    keys: OneBucket = field(default_factory=OneBucket)

    def scopes(self) -> Scopes:
        return Scopes(sealed=self.sealed, keys=self.keys)

    def seal(self, sweep_id: UUID, trees: Sequence[TreeOf], scope_index: int = 0) -> Sweep:
        key = leaf.derive_key(self.keys.bucket(BUCKET), "sweep", sweep_id.bytes)
        sections: list[tuple[str, bytes]] = []
        roots = []
        for number, tree in enumerate(trees):
            nonces_key = leaf.derive_key(key, "nonces", number.to_bytes(2, "big"))
            hashes, more = _sections(number, tree, nonces_key)
            sections += more
            roots.append(merkle.root(hashes))
        header = {
            "sweep": str(sweep_id),
            "bucket": BUCKET.isoformat(),
            "trees": [{"kind": t.kind.value, "store": t.store, "leaves": len(t.artifacts)} for t in trees],
        }
        digest = self.sealed.write(f"{sweep_id}.scope", [scopefile.write(header, sections, key)])
        scope_digest = hashlib.sha256(sweep_id.bytes).digest()
        return Sweep(sweep_id, BUCKET, scope_digest, scope_index, digest, tuple(roots))


def _sections(number: int, tree: TreeOf, nonces_key: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Leaf hashes and sections of one tree."""
    artifacts = sorted(tree.artifacts)
    count = len(artifacts)
    ids = b"".join(n.to_bytes(6, "big") for n in range(count))
    leaves = leaf.pack_leaves(leaf.nonces(nonces_key, count), ids, bytes(32 * count))
    hashes = merkle.leaf_hashes(leaves, leaf.LEAF_BYTES)
    runs = [(unit, len(list(group))) for unit, group in groupby(artifacts, key=lambda one: one[0])]
    units = [unit for unit, _ in runs]
    counts = np.array([size for _, size in runs], np.int64)
    place = np.repeat(np.arange(len(units), dtype="<u4"), counts)
    found = []
    for chunk, at in enumerate(range(0, count, CHUNK_LEAVES)):
        end = min(at + CHUNK_LEAVES, count)
        columns = {
            "artifact_id": ids[6 * at : 6 * end],
            "digest": bytes(32 * (end - at)),
            "ordinal": np.arange(at, end, dtype="<u8").tobytes(),
            "unit": place[at:end].astype("<u4").tobytes(),
            "locator": scopefile.pack_strings([locator for _, locator in artifacts[at:end]]),
            "hashes": hashes[32 * at : 32 * end],
        }
        found.append((f"{number}/{chunk}", scopefile.pack_columns(columns)))
    first = (np.cumsum(counts) - counts).astype("<u4").tobytes()
    found.append((f"{number}/units", scopefile.pack_columns({"units": scopefile.pack_strings(units), "first": first})))
    overlaps = np.array(tree.overlaps, "<u4")
    earlier = {"leaf": overlaps.tobytes(), "sweep": bytes(16 * len(overlaps)), "index": overlaps.tobytes()}
    found.append((f"{number}/overlaps", scopefile.pack_columns(earlier)))
    roots = b"".join(merkle.Tree(hashes).chunk_roots())
    found.append((f"{number}/roots", scopefile.pack_columns({"roots": roots})))
    return hashes, found
