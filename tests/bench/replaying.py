"""The log of one sweep's scope and chunk statements, and checking it as `expunge replay` does, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from expunge.domain import dsse, replay, statement
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.statement import Chunk, Predicate, Scope, TreeScope
from expunge.domain.words import Kind, Level, Outcome, Role, Step
from expunge.replay import apply
from tests.evidence import IMAGES, START, SWEEP, ZERO, signing_key, trust

STEPS = {Step.PRESENCE: Outcome.PRESENT, Step.ERASE: Outcome.GONE, Step.ABSENCE: Outcome.GONE}


def entries(chunks: int) -> list[bytes]:
    """One scope statement and three statements per chunk, signed."""
    kind, store = IMAGES
    scope = Scope(
        sweep=SWEEP, sweep_class="people", trees=(TreeScope(kind=kind, store=store, leaves=chunks * CHUNK_LEAVES, root=ZERO),),
        requests=1, requests_root=ZERO, images=chunks * CHUNK_LEAVES, selection=ZERO, catalogue_index=-1, policy="bench",
        handles_root=None, excluded=0, file=ZERO, at=START,
    )  # fmt: skip
    sealed = statement.payload(scope, {"scope-file": ZERO})
    made = [dsse.sign(sealed, statement.PAYLOAD_TYPE, signing_key(Role.SCOPE))]
    digest = sha256(sealed).hexdigest()
    return made + [_signed(one, store) for one in _chunks(chunks, kind, store, digest)]


def _chunks(chunks: int, kind: Kind, store: str, scope: str) -> Iterator[Chunk]:
    for chunk in range(chunks):
        for step, outcome in STEPS.items():
            yield Chunk(
                sweep=SWEEP, scope=scope, tree=0, kind=kind, store=store, step=step, attempt=0,
                start=chunk * CHUNK_LEAVES, end=(chunk + 1) * CHUNK_LEAVES, chunk_root=ZERO,
                outcomes=((outcome, CHUNK_LEAVES),), previous=None, level=Level.FILE_ABSENT, method="unlink",
                residue=("free blocks of the file system until reused or trimmed",), sampled=0, at=START,
            )  # fmt: skip


def _signed(predicate: Predicate, store: str) -> bytes:
    role = statement.role_of(predicate)
    key = signing_key(role, store if role is Role.EXECUTOR else None)
    return dsse.sign(statement.payload(predicate, {"leaf-hashes": ZERO}), statement.PAYLOAD_TYPE, key)


def check(logged: list[bytes]) -> replay.State:
    """Verify and fold all of them, on one core."""
    state, trusted = replay.State(), trust()
    for index, entry in enumerate(logged):
        apply(state, index, entry, trusted)
    return state
