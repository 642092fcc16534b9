"""What only keys open: the leaves of one image, for its person's receipt. Reads sealed scope files; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Final
from uuid import UUID

import numpy as np

from expunge.domain import accounting, dsse, merkle, receipt, statement
from expunge.domain.bundle import Bundle, Logged
from expunge.domain.errors import Rejected
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.receipt import OpenedLeaf
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.statement import Chunk
from expunge.domain.words import Outcome, Step
from expunge.ports import KeyStore, SealedStore

Place = tuple[int, int]
"""Tree and leaf index."""

_ID_BYTES: Final = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which image: one of its artifacts' locators, or its SHA-256 (hex)."""

    name: str

    @classmethod
    def copy(cls, photo: bytes) -> Wanted:
        """The image whose bytes these are."""
        return cls(sha256(photo).hexdigest())


def receipt_of(
    made: Bundle, wanted: Wanted | Place, *, bucket: date, sealed: SealedStore, keys: KeyStore
) -> bytes:  # fmt: skip
    """The receipt of one image, or of one leaf. `made`: the request's data certificate; `bucket`: its sweep's. Blocking.

    Raises `Rejected`: `unknown-image`, `ambiguous-image`, `unknown-leaf` (also for a leaf that is another's),
    `too-large`, `key-destroyed`.
    """
    sweep_id = UUID(made.certificate.sweep)
    key = derive_key(keys.bucket(bucket), "sweep", sweep_id.bytes)
    file = ScopeFile.open(sealed.open(f"{sweep_id}.scope"), key)
    places = _named(made, file, wanted) if isinstance(wanted, Wanted) else [_claimed(made, wanted)]
    return receipt.make(
        issuer=made.certificate.issuer,
        sweep=made.certificate.sweep,
        scope=made.certificate.scope,
        leaves=[_opened(file, key, tree, index) for tree, index in places],
        statements=_absences(made.statements, places),
        checkpoint=made.checkpoint,
    )


def _chunks(made: Bundle, file: ScopeFile) -> Iterator[tuple[int, list[int], dict[str, bytes]]]:
    """Per chunk that the request has leaves in: the tree, those leaves, and the chunk's columns."""
    for claimed, runs in zip(made.certificate.claim.trees, made.certificate.indices, strict=True):
        for chunk in accounting.chunks_of(runs, 2**32):
            yield claimed.tree, list(_within(runs, chunk)), unpack_columns(file.section(f"{claimed.tree}/{chunk}"))


def _within(runs: Iterable[tuple[int, int]], chunk: int) -> Iterator[int]:
    start, end = chunk * CHUNK_LEAVES, (chunk + 1) * CHUNK_LEAVES
    for first, count in runs:
        yield from range(max(first, start), min(first + count, end))


def _named(made: Bundle, file: ScopeFile, wanted: Wanted) -> list[Place]:
    """All leaves of the one image that has an artifact of this name."""
    images: set[int] = set()
    for _, mine, columns in _chunks(made, file):
        locators, ordinals = unpack_strings(columns["locator"]), np.frombuffer(columns["ordinal"], "<u8")
        for at in (index % CHUNK_LEAVES for index in mine):
            digest = columns["digest"][at * HASH_BYTES : (at + 1) * HASH_BYTES].hex()
            if wanted.name in {locators[at], digest}:
                images.add(int(ordinals[at]))
    if not images:
        raise Rejected("unknown-image", "expected a locator or SHA-256 of one of the request's images, got another")
    if len(images) > 1:
        raise Rejected("ambiguous-image", f"expected the name of one image, {len(images)} have it: give its SHA-256")
    return [
        (tree, index)
        for tree, mine, columns in _chunks(made, file)
        for ordinals in (np.frombuffer(columns["ordinal"], "<u8"),)
        for index in mine
        if int(ordinals[index % CHUNK_LEAVES]) in images
    ]


def _claimed(made: Bundle, place: Place) -> Place:
    for claimed, runs in zip(made.certificate.claim.trees, made.certificate.indices, strict=True):
        if claimed.tree == place[0] and any(first <= place[1] < first + count for first, count in runs):
            return place
    raise Rejected("unknown-leaf", "expected a leaf that the request claims, got another")


def _opened(file: ScopeFile, key: bytes, tree: int, index: int) -> OpenedLeaf:
    chunk, at = divmod(index, CHUNK_LEAVES)
    columns = unpack_columns(file.section(f"{tree}/{chunk}"))
    nonce = nonces(derive_key(key, "nonces", tree.to_bytes(2, "big")), 1, index)
    return OpenedLeaf(
        tree=tree,
        index=index,
        nonce=nonce.hex(),
        artifact=int.from_bytes(columns["artifact_id"][at * _ID_BYTES : (at + 1) * _ID_BYTES], "big"),
        digest=columns["digest"][at * HASH_BYTES : (at + 1) * HASH_BYTES].hex(),
        path=receipt.joined(merkle.Tree(columns["hashes"]).inclusion_path(at)),
    )


def _absences(logged: Iterable[Logged], places: Iterable[Place]) -> list[Logged]:
    """The rescanner's last statements about these leaves."""
    last: dict[Place, Logged] = {}
    wanted = list(places)
    for one in logged:
        said = statement.parse(dsse.parse(one.envelope).payload).predicate
        if not isinstance(said, Chunk) or said.step is not Step.ABSENCE:
            continue
        for tree, index in wanted:
            if tree == said.tree and said.start <= index < said.end:
                outcomes = statement.expand(said.outcomes)
                if outcomes[index - said.start] != Outcome.OPEN:
                    last[tree, index] = one
    return sorted(set(last.values()), key=lambda one: one.index)
