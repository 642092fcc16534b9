"""Single primitives against what they cannot be faster than."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey as RawKey

from expunge.domain import dsse, hashing, merkle
from expunge.domain.leaf import LEAF_BYTES, nonces, pack_leaves
from tests.bench import certificates, replaying, taint

LEAVES = 1 << 17
SIGNED = 2_000
PATHS = 5_000
TREE_LEAVES = 3_000_000
"""A large order's scope."""
BLOCK = 8192
REPLAYED_CHUNKS = 800
"""Three statements each: presence, erase, absence."""


def best(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of a few runs, seconds."""
    taken = []
    for _ in range(repeats):
        at = time.perf_counter()
        call()
        taken.append(time.perf_counter() - at)
    return min(taken)


def run(*, quick: bool) -> dict[str, Any]:
    """Each: seconds per unit, floor per unit, ratio; or units per second where there is no floor."""
    count = LEAVES >> 3 if quick else LEAVES
    key, digests, ids = os.urandom(32), os.urandom(32 * count), os.urandom(6 * count)
    leaves = pack_leaves(nonces(key, count, 0), ids, digests)
    hashes = merkle.leaf_hashes(leaves, LEAF_BYTES)
    blocks = [leaves[at : at + LEAF_BYTES] for at in range(0, len(leaves), LEAF_BYTES)]
    nodes = [hashes[at : at + 64] for at in range(0, len(hashes) - 32, 32)]

    def floor() -> None:
        sha = hashlib.sha256
        for one in blocks:
            sha(one).digest()
        for one in nodes[: count - 1]:
            sha(one).digest()

    def tree() -> None:
        merkle.root(merkle.leaf_hashes(pack_leaves(nonces(key, count, 0), ids, digests), LEAF_BYTES))

    native = hashing.native()
    trees = {"tree of 3M by hashlib": _tree(hashing.plain, quick=quick)}
    if native is not None:
        trees["tree of 3M by libcrypto"] = _tree(native, quick=quick)

    signing = dsse.SigningKey.from_seed(key)
    raw = RawKey(key)
    body = os.urandom(900)
    envelope = dsse.parse(dsse.sign(body, "text/plain", signing))
    signature = raw.sign(body).signature
    signs = SIGNED >> 2 if quick else SIGNED
    built = merkle.Tree(hashes)
    paths = [(index, built.inclusion_path(index)) for index in range(0, count, max(1, count // PATHS))]
    opened = {index: hashes[index * 32 : index * 32 + 32] for index, _ in paths}

    logged = replaying.entries(REPLAYED_CHUNKS >> 3 if quick else REPLAYED_CHUNKS)

    def check() -> None:
        for index, path in paths:
            merkle.verify_inclusion(index, count, opened[index], path, built.root)

    return {
        "tree": _ratio(best(tree) / count, best(floor) / count),
        **trees,
        "dsse sign": _ratio(
            best(lambda: [dsse.sign(body, "text/plain", signing) for _ in range(signs)]) / signs,
            best(lambda: [raw.sign(body) for _ in range(signs)]) / signs,
        ),
        "dsse verify": _ratio(
            best(lambda: [dsse.verify(envelope, signing.public, "text/plain") for _ in range(signs)]) / signs,
            best(lambda: [raw.verify_key.verify(body, signature) for _ in range(signs)]) / signs,
        ),
        "inclusion proofs made": {
            "per_second": len(paths) / best(lambda: [built.inclusion_path(at) for at, _ in paths])
        },
        **{name: {"microseconds": best(call) * 1e6} for name, call in taint.cases(quick=quick).items()},
        "statements replayed": {"per_second": len(logged) / best(lambda: replaying.check(logged))},
        "inclusion proofs verified": {"per_second": len(paths) / best(check)},
        **_certificate(quick=quick),
    }


def _certificate(*, quick: bool) -> dict[str, dict[str, Any]]:
    """A large order's certificate with its leaf file, checked by a process of its own: as a ratio to SHA-256 alone over
    the tree's compressions, in CPU seconds, and the peak of memory."""
    artifacts = TREE_LEAVES >> 5 if quick else TREE_LEAVES
    least = best(_compressions(artifacts))
    with tempfile.TemporaryDirectory(prefix="expunge-bench-") as folder:
        found = certificates.run(Path(folder), artifacts)
    return {
        f"certificate of {artifacts:,} {way}": {
            **_ratio(one["cpu"] / artifacts, least / artifacts), "cpu_seconds": one["cpu"], "peak_mb": one["peak"] / 1e6
        }
        for way, one in found.items()
    }  # fmt: skip


def _tree(way: hashing.Hasher, *, quick: bool) -> dict[str, float]:
    """All levels over leaves of 32 bytes, per leaf, as `share` of what SHA-256 alone needs for their 3n compressions,
    at OpenSSL's speed on long blocks: the goals are of this share.
    """
    count = TREE_LEAVES >> 5 if quick else TREE_LEAVES
    leaves, floor = os.urandom(32 * count), _compressions(count)
    usual = hashing.hashes
    hashing.hashes = way
    try:
        least = best(floor)
        taken = best(lambda: merkle.Tree(merkle.leaf_hashes(leaves, 32)))
        least = min(least, best(floor))
    finally:
        hashing.hashes = usual
    return {**_ratio(taken / count, least / count), "share": least / taken}


def _compressions(count: int) -> Callable[[], None]:
    """SHA-256 of long blocks, as many compressions as a tree of `count` leaves takes."""
    block, blocks = os.urandom(BLOCK), range(3 * count * 64 // BLOCK)

    def floor() -> None:
        for _ in blocks:
            hashlib.sha256(block).digest()

    return floor


def _ratio(seconds: float, floor: float) -> dict[str, float]:
    return {"microseconds": seconds * 1e6, "floor_microseconds": floor * 1e6, "ratio": seconds / floor}
