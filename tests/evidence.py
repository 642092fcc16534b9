"""A synthetic sweep with its whole evidence, pure and deterministic: what the verifier's and the replay's tests bend.

Chunks are real (1024 leaves); keys come from seeds that spell their role.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import numpy as np

from expunge.domain import bundle, certificate, challenge, dsse, merkle, note, receipt, statement
from expunge.domain.bundle import Logged
from expunge.domain.certificate import Certificate, Claim, Completed, ModelDue, Opening, OutcomeCount, TreeClaim
from expunge.domain.leaf import LEAF_BYTES, nonces, pack_leaves
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.receipt import OpenedLeaf
from expunge.domain.statement import Chunk, Predicate, ReconciledCount, ReconciledSweep, Scope, TreeScope
from expunge.domain.trust import Trust, TrustedKey
from expunge.domain.words import Kind, Level, Outcome, Provision, Remedy, Role, Step

ORIGIN = "log.example/evidence"
ISSUER = "Example GmbH"
SWEEP = "5b1f6f9e-0000-4000-8000-000000000001"
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ZERO = "0" * 64

Store = tuple[Kind, str]
IMAGES: Store = (Kind.IMAGE, "photos")
VECTORS: Store = (Kind.EMBEDDING, "faces")


def signing_key(role: Role, store: str | None = None) -> dsse.SigningKey:
    return dsse.SigningKey.from_seed(hashlib.sha256(f"{role} {store}".encode()).digest())


def trusted(role: Role, store: str | None = None, /, **changes: object) -> TrustedKey:
    values: dict[str, object] = {
        "role": role,
        "name": f"{role.value}-key",
        "store": store,
        "public": signing_key(role, store).public.to_base64(),
        "valid_from": START - timedelta(days=1),
        "valid_to": START + timedelta(days=100),
    }
    return TrustedKey.model_validate(values | changes)


def approver(number: int) -> dsse.SigningKey:
    return dsse.SigningKey.from_seed(hashlib.sha256(f"approver {number}".encode()).digest())


def trust(stores: Sequence[Store] = (IMAGES, VECTORS), /, **changes: object) -> Trust:
    roles = (Role.SCOPE, Role.RESCANNER, Role.RETRAINER, Role.CERTIFIER, Role.REGISTER)
    keys = [trusted(role) for role in roles] + [trusted(Role.EXECUTOR, store) for _, store in stores]
    keys += [
        trusted(Role.APPROVER, name=f"approver-{number}", public=approver(number).public.to_base64())
        for number in (1, 2)
    ]
    values: dict[str, object] = {
        "issuer": ISSUER,
        "origin": ORIGIN,
        "log_key": note.NoteKey.log(ORIGIN, signing_key(Role.LOG).public).encode(),
        "keys": keys,
    }
    return Trust.model_validate(values | changes)


def sign(predicate: Predicate, key: dsse.SigningKey | None = None) -> bytes:
    if key is None:
        role = statement.role_of(predicate)
        store = predicate.store if isinstance(predicate, Chunk) and role is Role.EXECUTOR else None
        key = signing_key(role, store)
    return dsse.sign(statement.payload(predicate, {"evidence": ZERO}), statement.PAYLOAD_TYPE, key)


def digest(envelope: bytes) -> str:
    return hashlib.sha256(dsse.parse(envelope).payload).hexdigest()


@dataclass
class Log:
    """Entries in order, and the tree over them."""

    entries: list[bytes] = field(default_factory=list)

    def add(self, predicate: Predicate, key: dsse.SigningKey | None = None) -> str:
        self.entries.append(sign(predicate, key))
        return digest(self.entries[-1])

    def hashes(self) -> bytes:
        return b"".join(map(merkle.leaf_hash, self.entries))

    def checkpoint(self) -> bytes:
        point = note.Checkpoint(ORIGIN, len(self.entries), merkle.root(self.hashes()))
        return note.sign_checkpoint(point, signing_key(Role.LOG), ORIGIN)

    def logged(self, indices: Iterable[int]) -> list[Logged]:
        tree = merkle.Tree(self.hashes())
        return [Logged(at, self.entries[at], tuple(tree.inclusion_path(at))) for at in indices]


@dataclass(frozen=True)
class Asked:
    """One request of the sweep: its leaves per tree."""

    indices: Mapping[int, Sequence[int]]
    retained: Mapping[str, int] = field(default_factory=dict)
    images: int = 3
    erased_earlier: int = 0

    @property
    def trees(self) -> list[int]:
        return sorted(self.indices)


Outcomes = Mapping[tuple[int, int], Outcome]
"""What is not `GONE` in step absence, by (tree, leaf)."""

Spoil = Callable[[Chunk], Chunk | None]
"""Changes a chunk statement before it is signed; None leaves it out."""


def photo(tree: int, leaf: int) -> bytes:
    """The bytes of an artifact."""
    return f"artifact {leaf} of tree {tree}".encode()


def artifact_leaves(tree: int, count: int) -> bytes:
    """Real leaves: artifact ids are dense, digests those of `photo`."""
    ids = b"".join((1_000_000 * tree + leaf).to_bytes(6, "big") for leaf in range(count))
    digests = b"".join(hashlib.sha256(photo(tree, leaf)).digest() for leaf in range(count))
    return pack_leaves(nonces(hashlib.sha256(f"tree {tree}".encode()).digest(), count), ids, digests)


def request_id(number: int) -> str:
    return str(UUID(int=0x70000000_0000_4000_8000_000000000000 + number))


def nonce(what: str, number: int) -> bytes:
    return hashlib.sha256(f"{what} {number}".encode()).digest()[:16]


@dataclass
class Synthetic:
    """A sweep from scope to completion. `build` fills the log; `certificate` and `files` read from it.

    `again`: (tree, chunk) to leaves that attempt 0 left open, which attempt 1 erases and finds absent.
    """

    trees: Sequence[tuple[Store, int]] = ((IMAGES, 2050), (VECTORS, 1500))
    asked: Sequence[Asked] = (
        Asked({0: (0, 1, 2, 1500), 1: (7, 8)}, {"account+licensed": 2}),
        Asked({0: (2, 3, 2049), 1: (9, 1499)}),  # leaf 2: a group photo that both claim
        Asked({}, {"account": 5}, images=5),
    )
    sweep_class: Literal["people", "order"] = "people"
    outcomes: Outcomes = field(default_factory=dict)
    again: Mapping[tuple[int, int], Sequence[int]] = field(default_factory=lambda: {(0, 1): (5, 6)})
    models: Sequence[tuple[str, Literal["open", "replaced", "destroyed"]]] = (("face@1", "open"), ("door@1", "open"))
    provision: Provision = Provision.DATA
    spoil: Spoil = lambda chunk: chunk
    scope_changes: Mapping[str, object] = field(default_factory=dict)
    completed_changes: Mapping[str, object] = field(default_factory=dict)
    approved: Sequence[str] | None = None
    order: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]] = lambda entries: entries
    keys: Mapping[str, dsse.SigningKey] = field(default_factory=dict)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self.leaves = [self._leaves(tree, leaves) for tree, (_, leaves) in enumerate(self.trees)]
        self.hashes = [self._hashes(tree) for tree in range(len(self.trees))]
        self.tree_roots = [merkle.Tree(one) for one in self.hashes]
        self.claims = [
            Claim(
                request=request_id(number),
                images=one.images,
                trees=tuple(
                    TreeClaim(tree=tree, leaves=len(one.indices[tree]), indices=indices_digest(one.indices[tree]))
                    for tree in one.trees
                ),
                retained=dict(one.retained),
                erased_earlier=one.erased_earlier,
            )
            for number, one in enumerate(self.asked)
        ]
        self.claim_tree = blinded_tree("claim", self.claims)
        values: dict[str, object] = {
            "sweep": SWEEP,
            "sweep_class": self.sweep_class,
            "trees": tuple(
                TreeScope(kind=kind, store=store, leaves=leaves, root=tree.root.hex())
                for ((kind, store), leaves), tree in zip(self.trees, self.tree_roots, strict=True)
            ),
            "requests": len(self.asked),
            "requests_root": self.claim_tree.root.hex(),
            "images": 11,
            "selection": ZERO,
            "catalogue_index": -1,
            "policy": "1",
            "handles_root": None,
            "excluded": 0,
            "file": ZERO,
            "at": START,
        }
        self.scope = Scope.model_validate(values | dict(self.scope_changes))
        self.build()

    def _leaves(self, tree: int, count: int) -> bytes:
        return artifact_leaves(tree, count)

    def _hashes(self, tree: int) -> bytes:
        return merkle.leaf_hashes(self.leaves[tree], LEAF_BYTES)

    # The log

    def build(self) -> None:
        """Statements in log order, named, so that a test can reorder them."""
        entries = [("noise", sign(batch()))]
        scope = self._sign("scope", self.scope)
        self.scope_digest = digest(scope)
        entries.append(("scope", scope))
        if self.sweep_class == "order" or self.approved is not None:
            approvers = self.approved or [approver(1).key_id, approver(2).key_id]
            said = statement.ScopeApproved(sweep=SWEEP, scope=self.scope_digest, approvers=tuple(approvers), at=START)
            entries.append(("approved", self._sign("approved", said)))
        entries += [(f"tainted {name}", self._sign("tainted", self.tainted(name))) for name, _ in self.models]
        for step, attempt in _STEPS:
            for tree in range(len(self.trees)):
                if step is Step.HIDE and self.trees[tree][0][0] is not Kind.EMBEDDING:
                    continue
                entries += self._chunks(tree, step, attempt)
        entries += [
            (f"resolved {name}", self._sign("resolved", self.resolved(name, resolution)))
            for name, resolution in self.models
            if resolution != "open"
        ]
        self.completed = [self._completed(number) for number in range(len(self.asked))]
        self.completed_tree = blinded_tree("completed", self.completed)
        results: dict[str, int] = {}
        for one in self.completed:
            results[one.result] = results.get(one.result, 0) + 1
        self.completion = statement.Completion(
            sweep=SWEEP,
            scope=self.scope_digest,
            round=0,
            provision=self.provision,
            requests=len(self.asked),
            root=self.completed_tree.root.hex(),
            results=results,
            at=START + timedelta(hours=2),
        )
        entries.append(("completion", self._sign("completion", self.completion)))
        entries.append(("noise", sign(batch())))
        self.names = [name for name, _ in self.order(entries)]
        self.log.entries = [envelope for _, envelope in self.order(entries)]

    def _sign(self, name: str, predicate: Predicate) -> bytes:
        return sign(predicate, self.keys.get(name))

    def tainted(self, name: str) -> statement.ModelTainted:
        return statement.ModelTainted(
            sweep=SWEEP,
            scope=self.scope_digest,
            model=name,
            images=3,
            direct=3,
            path=(name,),
            remedy=Remedy.RETRAIN,
            due=START + timedelta(days=14),
        )

    def resolved(self, name: str, resolution: str) -> Predicate:
        values = {
            "model": name,
            "weights": ZERO,
            "sweeps": (SWEEP,),
            "level": Level.FILE_ABSENT,
            "method": "unlink",
            "at": START + timedelta(hours=1),
        }
        if resolution == "destroyed":
            return statement.ModelDestroyed.model_validate(values)
        more = {"successor": f"{name}+1", "successor_weights": ZERO, "snapshots": (), "cut": 2, "exclusion": ZERO}
        return statement.ModelReplaced.model_validate(values | more)

    def _chunks(self, tree: int, step: Step, attempt: int) -> list[tuple[str, bytes]]:
        made = []
        (kind, store), leaves = self.trees[tree]
        for start in range(0, leaves, CHUNK_LEAVES):
            key = (tree, start // CHUNK_LEAVES)
            end = min(start + CHUNK_LEAVES, leaves)
            if attempt and key not in self.again:
                continue
            codes = self._codes(key, range(start, end), step, attempt)
            said = self.spoil(
                Chunk(
                    sweep=SWEEP,
                    scope=self.scope_digest,
                    tree=tree,
                    kind=kind,
                    store=store,
                    step=step,
                    attempt=attempt,
                    start=start,
                    end=end,
                    chunk_root=self.tree_roots[tree].subtree_root(start, end).hex(),
                    outcomes=statement.runs(codes),
                    previous=self._last.get((*key, step)),
                    level=Level.FILE_ABSENT,
                    method=f"{step.value} of {store}",
                    residue=("free blocks",) if step is Step.ERASE else (),
                    sampled=3 if step is Step.ABSENCE else 0,
                    at=START + timedelta(minutes=10 * (1 + list(Step).index(step)) + attempt),
                )
            )
            if said is not None:
                name = f"{said.step.value} {said.tree} {said.start} {said.attempt}"
                made.append((name, self._sign(name, said)))
                self._last[*key, step] = digest(made[-1][1])
        return made

    _last: dict[tuple[int, int, Step], str] = field(default_factory=dict)

    def _codes(self, key: tuple[int, int], leaves: range, step: Step, attempt: int) -> bytes:
        return bytes(self._outcome(key, leaves.start, leaf, step, attempt) for leaf in leaves)

    def _outcome(self, key: tuple[int, int], start: int, leaf: int, step: Step, attempt: int) -> int:
        again = leaf - start in self.again.get(key, ())
        if attempt:
            return Outcome.GONE if again else Outcome.OPEN
        special = self.outcomes.get((key[0], leaf))
        match step:
            case Step.PRESENCE:
                return Outcome.ABSENT_BEFORE if special is Outcome.ABSENT_BEFORE else Outcome.PRESENT
            case Step.HIDE:
                return Outcome.GONE
            case Step.ERASE:
                return special if special is not None else Outcome.GONE
            case Step.ABSENCE:
                return special if special is not None else Outcome.PRESENT if again else Outcome.GONE

    def _completed(self, number: int) -> Completed:
        one = self.asked[number]
        counted: dict[tuple[int, Outcome], int] = {}
        for tree in one.trees:
            for leaf in one.indices[tree]:
                code = self.outcomes.get((tree, leaf), Outcome.GONE)
                counted[tree, code] = counted.get((tree, code), 0) + 1
        totals: dict[Outcome, int] = {}
        for (_, code), amount in counted.items():
            totals[code] = totals.get(code, 0) + amount
        models = tuple(
            ModelDue(model=name, remedy=Remedy.RETRAIN, due=START + timedelta(days=14), resolution=resolution)
            for name, resolution in self.models
        )
        values: dict[str, object] = {
            "request": request_id(number),
            "provision": self.provision,
            "result": certificate.result_of(self.provision, totals, models, at=START + timedelta(hours=2)),
            "outcomes": tuple(
                OutcomeCount(tree=tree, outcome=code, artifacts=amount)
                for (tree, code), amount in sorted(counted.items())
            ),
            "models": models,
        }
        return Completed.model_validate(values | (dict(self.completed_changes) if number == 0 else {}))

    # What is handed over

    def certificate(self, number: int = 0, /, **changes: object) -> Certificate:
        one = self.asked[number]
        values: dict[str, object] = {
            "issuer": ISSUER,
            "request": request_id(number),
            "provision": self.provision,
            "sweep": SWEEP,
            "scope": self.scope_digest,
            "round": 0,
            "claim": self.claims[number],
            "claim_opening": opening("claim", self.claim_tree, number),
            "indices": tuple(runs_of(one.indices[tree]) for tree in one.trees),
            "completed": self.completed[number],
            "completed_opening": opening("completed", self.completed_tree, number),
            "not_covered": ("backups until 2026-06-01",),
        }
        return Certificate.model_validate(values | changes)

    def kept(self) -> list[int]:
        """Indices of everything but noise."""
        return [at for at, name in enumerate(self.names) if name != "noise"]

    def files(
        self, number: int = 0, /, *, roots: bool = False, leaves: bool = False, with_page: bool = True, **changes: Any
    ) -> dict[str, bytes]:  # fmt: skip
        return bundle.build(
            self.certificate(number, **changes),
            self.log.logged(self.kept()),
            self.log.checkpoint(),
            chunk_roots={at: b"".join(tree.chunk_roots()) for at, tree in enumerate(self.tree_roots)}
            if roots
            else None,
            leaf_hashes=dict(enumerate(self.hashes)) if leaves else None,
            with_page=with_page,
        )

    def opened(self, tree: int, leaf: int) -> OpenedLeaf:
        start = leaf // CHUNK_LEAVES * CHUNK_LEAVES
        chunk = merkle.Tree(self.hashes[tree][start * 32 : (start + CHUNK_LEAVES) * 32])
        raw = self.leaves[tree][leaf * LEAF_BYTES : (leaf + 1) * LEAF_BYTES]
        return OpenedLeaf(
            tree=tree,
            index=leaf,
            nonce=raw[:16].hex(),
            artifact=int.from_bytes(raw[16:22], "big"),
            digest=raw[22:].hex(),
            path=receipt.joined(chunk.inclusion_path(leaf - start)),
        )

    def receipt(self, *leaves: tuple[int, int], alone: bool = True, **changes: Any) -> bytes:
        """A receipt of some leaves; with the absence statements of their chunks, if `alone`."""
        names = {f"absence {tree} {leaf // CHUNK_LEAVES * CHUNK_LEAVES} 0" for tree, leaf in leaves}
        kept = [at for at, name in enumerate(self.names) if name in names]
        values: dict[str, Any] = {
            "issuer": ISSUER,
            "sweep": SWEEP,
            "scope": self.scope_digest,
            "leaves": [self.opened(tree, leaf) for tree, leaf in leaves],
            "statements": self.log.logged(kept) if alone else [],
            "checkpoint": self.log.checkpoint(),
        }
        return receipt.make(**(values | changes))


_STEPS = (
    (Step.PRESENCE, 0),
    (Step.HIDE, 0),
    (Step.ERASE, 0),
    (Step.ABSENCE, 0),
    (Step.ERASE, 1),
    (Step.ABSENCE, 1),
)


def batch() -> statement.RegisteredBatch:
    return statement.RegisteredBatch(
        batch="11111111-0000-4000-8000-000000000000",
        leaves=1,
        root=ZERO,
        images=1,
        counts=(statement.SourceCount(source="studio", kind=Kind.IMAGE, artifacts=1),),
        at=START,
    )


def blinded_tree(what: str, bodies: Sequence[Claim | Completed]) -> merkle.Tree:
    leaves = [certificate.leaf(nonce(what, number), certificate.body_bytes(body)) for number, body in enumerate(bodies)]
    return merkle.Tree(merkle.leaf_hashes(b"".join(leaves), certificate.OPENING_BYTES))


def opening(what: str, tree: merkle.Tree, number: int) -> Opening:
    path = tuple(node.hex() for node in tree.inclusion_path(number))
    return Opening(index=number, size=tree.size, nonce=nonce(what, number).hex(), path=path)


def indices_digest(indices: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(indices, "<u4").tobytes()).hexdigest()


def runs_of(indices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if isinstance(indices, range):
        return ((indices.start, len(indices)),)
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return tuple(runs)


def order_sweep(**changes: Any) -> Synthetic:
    """An order over 1,100 images and as many vectors: one request, everything, approved."""
    values: dict[str, Any] = {
        "trees": ((IMAGES, 1100), (VECTORS, 1100)),
        "asked": (Asked({0: range(1100), 1: range(1100)}, images=1100, erased_earlier=4),),
        "sweep_class": "order",
        "again": {(1, 1): (0, 3)},
    }
    return Synthetic(**(values | changes))


def reconciled(
    built: Synthetic, *counts: ReconciledCount, looked: Mapping[str, object] | None = None, **changes: Any
) -> bytes:
    """A reconciliation that looked for the sweep's scope, signed."""
    leaves = sum(tree.leaves for tree in built.scope.trees)
    about = {"sweep": SWEEP, "scope": built.scope_digest, "leaves": leaves, "present": 0} | dict(looked or {})
    values: dict[str, Any] = {
        "log_size": 1, "part": 0, "parts": 1, "counts": counts, "sweep": ReconciledSweep.model_validate(about),
        "at": START + timedelta(hours=3),
    }  # fmt: skip
    return sign(statement.Reconciliation.model_validate(values | changes))


def followed(*entries: bytes, **changes: Any) -> Synthetic:
    """An order's sweep with more entries after its completion."""
    return order_sweep(order=lambda before: [*before, *(("reconciled", one) for one in entries)], **changes)


def answered(built: Synthetic, count: int, **changes: Any) -> tuple[challenge.Answer, bytes]:
    """The answer to a challenge of an order by its log's newest checkpoint, and that checkpoint."""
    point = built.log.checkpoint()
    places = challenge.places(
        note.read_checkpoint(point).root, built.scope_digest, [tree.leaves for tree in built.scope.trees], count
    )
    openings = tuple(
        challenge.Opened(
            tree=one.tree, index=one.index, nonce=one.nonce, artifact=one.artifact, digest=one.digest, present=False,
            path=tuple(node.hex() for node in built.tree_roots[one.tree].inclusion_path(one.index)),
        )
        for one in (built.opened(tree, index) for tree, index in places)
    )  # fmt: skip
    values: dict[str, Any] = {
        "request": request_id(0), "sweep": SWEEP, "scope": built.scope_digest, "checkpoint": point.decode(),
        "count": count, "openings": openings, "at": START + timedelta(days=1),
    }  # fmt: skip
    return challenge.Answer.model_validate(values | changes), point


def sign_answer(answer: challenge.Answer, key: dsse.SigningKey | None = None) -> bytes:
    return dsse.sign(challenge.dump(answer), challenge.PAYLOAD_TYPE, key or signing_key(Role.RESCANNER))


def only(chunk: Chunk, **changes: object) -> Chunk:
    """The chunk statement with some fields changed."""
    return chunk.model_copy(update=changes)
