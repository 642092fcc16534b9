"""What a regulator opens with an order's key, and what they refuse."""

from __future__ import annotations

from uuid import UUID

import pytest

from expunge.domain import disclosure
from expunge.domain.disclosure import Disclosure
from expunge.domain.errors import Tampered
from expunge.domain.leaf import derive_key
from expunge.domain.statement import Scope, TreeScope
from expunge.domain.words import Kind
from tests.evidence import ISSUER, ZERO, order_sweep
from tests.scopes import BUCKET, Sealing, TreeOf

SWEEP = UUID("5b1f6f9e-0000-4000-8000-000000000001")
TREES = (
    TreeOf(Kind.IMAGE, "photos", [("album-a", "1.jpg"), ("album-b", "2.jpg")]),
    TreeOf(Kind.EMBEDDING, "faces", [("index", str(number)) for number in range(1030)]),
)


def sealed() -> tuple[Disclosure, memoryview, Scope]:
    """A disclosure, the sealed file, and the scope statement that was signed over both."""
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, TREES)
    key = derive_key(sealing.keys.bucket(BUCKET), "sweep", SWEEP.bytes)
    trees = tuple(
        TreeScope(kind=tree.kind, store=tree.store, leaves=len(tree.artifacts), root=root.hex())
        for tree, root in zip(TREES, sweep.roots, strict=True)
    )
    scope = order_sweep().scope.model_copy(
        update={"sweep": str(SWEEP), "trees": trees, "file": sweep.file_digest.hex(), "requests": 1}
    )
    made = Disclosure(issuer=ISSUER, sweep=str(SWEEP), scope=ZERO, file=scope.file, key=key.hex())
    return made, sealing.sealed.open(f"{SWEEP}.scope"), scope


def test_every_locator_opens_and_every_root_is_the_signed_one() -> None:
    made, file, scope = sealed()
    assert disclosure.parse(disclosure.dump(made)) == made
    found = list(disclosure.openings(made, file, scope))
    assert [(one.store, one.unit, one.locator) for one in found[:2]] == [
        ("photos", "album-a", "1.jpg"),
        ("photos", "album-b", "2.jpg"),
    ]
    assert len(found) == 1032
    assert (found[-1].tree, found[-1].index, found[-1].digest) == (1, 1029, None)


def test_a_file_or_sweep_that_the_scope_does_not_name_is_refused() -> None:
    made, file, scope = sealed()
    for wrong, of in (
        (made.model_copy(update={"file": "1" * 64}), scope),
        (made.model_copy(update={"sweep": str(UUID(int=1))}), scope),
        (made, scope.model_copy(update={"file": "1" * 64})),
    ):
        with pytest.raises(Tampered, match="the scope file that the scope statement names"):
            list(disclosure.openings(wrong, file, of))


def test_leaves_that_were_not_signed_are_refused() -> None:
    made, file, scope = sealed()
    other = (scope.trees[0].model_copy(update={"root": ZERO}), scope.trees[1])
    with pytest.raises(Tampered, match="hash to the root in the scope"):
        list(disclosure.openings(made, file, scope.model_copy(update={"trees": other})))


def test_another_key_opens_nothing() -> None:
    made, file, scope = sealed()
    with pytest.raises(Tampered):
        list(disclosure.openings(made.model_copy(update={"key": "2" * 64}), file, scope))
    with pytest.raises(Tampered, match="expected a disclosure"):
        disclosure.parse(b"{}")
