"""What only keys open: the leaves of one image, for its person's receipt, and those that a challenge of an order asks for.
Reads sealed scope files, and stores by readers; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

import numpy as np

from expunge.chunks.scopes import open_scope
from expunge.domain import accounting, challenge, dsse, merkle, note, receipt, statement
from expunge.domain.bundle import Bundle, Logged
from expunge.domain.errors import Rejected
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.receipt import OpenedLeaf
from expunge.domain.scopefile import ScopeFile, chunk_roots, unpack_columns, unpack_strings
from expunge.domain.statement import Chunk, Scope
from expunge.domain.words import Outcome, Step
from expunge.ports import KeyStore, SealedStore, StoreReader

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
    file, key = open_scope(keys, sealed, sweep_id, bucket)
    places = _named(made, file, wanted) if isinstance(wanted, Wanted) else [_claimed(made, wanted)]
    return receipt.make(
        issuer=made.certificate.issuer,
        sweep=made.certificate.sweep,
        scope=made.certificate.scope,
        leaves=[_opened(file, key, tree, index) for tree, index in places],
        statements=_absences(made.statements, places),
        checkpoint=made.checkpoint,
    )


def answer_of(
    made: Bundle, scope: Scope, checkpoint: bytes, count: int, *, bucket: date, sealed: SealedStore, keys: KeyStore,
    readers: Mapping[str, StoreReader], at: datetime,
) -> challenge.Answer:  # fmt: skip
    """The answer to a challenge of an order: its leaves opened, and looked for in the stores now. Blocking.

    Raises `Rejected`: `shared-sweep` (other people's leaves are not opened), `too-many`, `no-reader`, `key-destroyed`.
    """
    if scope.requests != 1:
        raise Rejected("shared-sweep", f"expected an order, this sweep has {scope.requests} requests")
    if not 0 < count <= challenge.MOST:
        raise Rejected("too-many", f"expected a count from 1 to {challenge.MOST}, got {count}")
    sweep_id = UUID(made.certificate.sweep)
    file, key = open_scope(keys, sealed, sweep_id, bucket)
    root = note.read_checkpoint(checkpoint).root
    wanted = challenge.places(root, made.certificate.scope, [tree.leaves for tree in scope.trees], count)
    here = _present(file, scope, wanted, readers)
    roots = [merkle.Tree(b"".join(chunk_roots(file, tree))) for tree in range(len(scope.trees))]
    opened = []
    for tree, index in wanted:
        one = _opened(file, key, tree, index)
        path = [*one.nodes(), *roots[tree].inclusion_path(index // CHUNK_LEAVES)]
        opened.append(
            challenge.Opened(
                tree=tree,
                index=index,
                nonce=one.nonce,
                artifact=one.artifact,
                digest=one.digest,
                path=tuple(node.hex() for node in path),
                present=(tree, index) in here,
            )
        )
    return challenge.Answer(
        request=made.certificate.request, sweep=made.certificate.sweep, scope=made.certificate.scope,
        checkpoint=checkpoint.decode(), count=count, openings=tuple(opened), at=at,
    )  # fmt: skip


def _present(
    file: ScopeFile, scope: Scope, wanted: Sequence[Place], readers: Mapping[str, StoreReader]
) -> set[Place]:  # fmt: skip
    """Those whose artifact a reader of its store finds; one question per unit."""
    units: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for tree, index in wanted:
        columns = unpack_columns(file.section(f"{tree}/{index // CHUNK_LEAVES}"))
        names = unpack_strings(unpack_columns(file.section(f"{tree}/units"))["units"])
        at = index % CHUNK_LEAVES
        unit = names[int.from_bytes(columns["unit"][at * 4 : at * 4 + 4], "little")]
        units.setdefault((tree, unit), []).append((index, unpack_strings(columns["locator"])[at]))
    found: set[Place] = set()
    for (tree, unit), inside in units.items():
        reader = readers.get(scope.trees[tree].store)
        if reader is None:
            raise Rejected("no-reader", f"expected a reader of store {scope.trees[tree].store}, there is none")
        there = reader.probe(unit, [locator for _, locator in inside])
        found.update((tree, index) for (index, _), seen in zip(inside, there.tolist(), strict=True) if seen)
    return found


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
