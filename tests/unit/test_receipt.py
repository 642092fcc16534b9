"""Receipts: what one accepts, what it reveals, and what an adversary changes in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from expunge import verify
from expunge.domain import bundle, canonical, dsse, merkle, opening, receipt, statement, trust
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.opening import ReceiptReport
from expunge.domain.words import Kind, Outcome, Role
from tests import adversary, evidence
from tests.evidence import IMAGES, START, SWEEP, Asked, Synthetic, order_sweep, sign, signing_key, trusted

MINE, ALSO_MINE, ANOTHERS = (0, 0), (0, 1), (0, 3)
"""Leaves of one chunk: request 0 claims the first two, request 1 the last."""


def check(data: bytes, files: Mapping[str, bytes] | None = None, **more: Any) -> ReceiptReport:
    return opening.verify(data, evidence.trust(), sweep=files, **more)


def fails(data: bytes, step: str, detail: str, files: Mapping[str, bytes] | None = None, **more: Any) -> None:
    report = check(data, files, **more)
    last = report.steps[-1]
    assert (last.ok, last.name) == (False, step), "\n".join(report.lines())
    assert detail in last.detail
    assert not report.ok
    with pytest.raises(Tampered):
        report.verified()
    adversary.refused()


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(data)
    change(value)
    return canonical.dumps(value)


# What is accepted


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_a_receipt_verifies_alone_or_beside_the_sweeps_files(alone: bool, beside: bool) -> None:  # noqa: FBT001
    built = Synthetic()
    data = built.receipt(MINE, alone=alone)
    if not alone and not beside:
        fails(data, "policy", "sweep's files")
        return
    report = check(data, built.files() if beside else None)
    assert [step.name for step in report.steps] == list(opening.STEPS)
    found = report.verified()
    assert found.scope_checked == beside
    assert [(one.kind, one.store, one.absent) for one in found.leaves] == [(Kind.IMAGE, "photos", True)]
    text = "\n".join(report.lines())
    assert "image in photos: verified absent at 2026-03-01T12:40:00+00:00 by absence of photos, level L2" in text
    assert ("that the scope was fixed before" in text) == (not beside)


def test_the_holder_computes_the_leaf_from_their_own_copy() -> None:
    data = Synthetic().receipt(MINE, (1, 7), alone=False)
    files = Synthetic().files()
    copy = hashlib.sha256(evidence.photo(*MINE)).digest()
    found = check(data, files, copy=copy).verified()
    assert [one.copy_matches for one in found.leaves] == [True, False]
    fails(data, "leaves", "digest of the copy given", files, copy=hashlib.sha256(b"another photo").digest())


@pytest.mark.parametrize("leaf", [(0, 2049), (1, 1499), (0, 1500)])
def test_leaves_of_short_chunks_open_too(leaf: tuple[int, int]) -> None:
    assert check(Synthetic().receipt(leaf)).ok
    assert check(Synthetic().receipt(leaf), Synthetic().files(roots=True)).ok


def test_one_image_is_at_most_4_kb_whatever_the_log_holds() -> None:
    built = Synthetic()
    data = built.receipt(MINE)
    assert json.loads(data)["statements"]
    assert len(data) <= receipt.RECEIPT_BYTES
    more = built.receipt(MINE, (1, 7))
    assert len(more) <= receipt.RECEIPT_BYTES
    assert check(more, built.files()).ok
    with pytest.raises(Rejected, match="name one leaf"):
        built.receipt(*[(0, at) for at in range(12)], alone=False)


def test_a_leaf_of_a_large_sweep_and_a_large_log_still_fits() -> None:
    built = Synthetic()
    one = built.log.logged([built.names.index("absence 0 0 0")])[0]
    deep = bundle.Logged(2**30, one.envelope, tuple(bytes([n]) * 32 for n in range(30)))
    data = built.receipt(MINE, statements=[deep])
    assert json.loads(data)["statements"]


# What it reveals


def test_two_receipts_of_one_person_share_no_more_than_two_of_strangers() -> None:
    built = Synthetic()
    first, second, other = (built.receipt(one) for one in (MINE, ALSO_MINE, ANOTHERS))

    def words(data: bytes) -> set[str]:
        texts: set[str] = set()

        def walk(value: Any) -> None:
            if isinstance(value, dict):
                for inner in value.values():
                    walk(inner)
            elif isinstance(value, list):
                for inner in value:
                    walk(inner)
            else:
                texts.add(str(value))

        walk({name: value for name, value in json.loads(data).items() if name != "leaves"})
        walk([{name: one[name] for name in ("nonce", "digest", "artifact")} for one in json.loads(data)["leaves"]])
        return texts

    assert words(first) & words(second) == words(first) & words(other)
    for data in (first, second):
        assert evidence.request_id(0).encode() not in data
        assert b"request" not in data


def test_a_receipt_opens_no_other_leaf_of_its_person() -> None:
    built = Synthetic()
    data = built.receipt(MINE)
    for leaf in (ALSO_MINE, (0, 2), (1, 7)):
        hidden = built.opened(*leaf)
        assert hidden.nonce.encode() not in data
        assert hidden.digest.encode() not in data


def test_a_receipt_names_no_photo_without_its_nonce() -> None:
    """Who has every photo of the world, and one receipt, finds no other leaf: nonces have 128 bits."""
    built = Synthetic()
    hashes = {built.hashes[0][at : at + 32] for at in range(0, len(built.hashes[0]), 32)}
    nonce = built.opened(*MINE)
    for leaf in range(1, 10):
        guess = built.opened(0, leaf).model_copy(update={"nonce": nonce.nonce})
        assert merkle.leaf_hash(guess.leaf()) not in hashes


# What an adversary tries


def test_a_receipt_opened_with_another_persons_nonce_fails() -> None:
    built = Synthetic()
    stolen = built.opened(*ANOTHERS).nonce
    data = changed(built.receipt(MINE), lambda value: value["leaves"][0].update(nonce=stolen))
    fails(data, "leaves", "lead to the root")
    fails(data, "leaves", "lead to the root", built.files())


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"artifact": 5}, "lead to the root"),
        ({"digest": "0" * 64}, "lead to the root"),
        ({"index": 1}, "lead to the root"),
        ({"tree": 1}, "that covers it"),
        ({"index": 1024}, "that covers it"),
        ({"index": 2**40}, "that covers it"),
        ({"path": ""}, "more than 0 hashes"),
        ({"path": "AAAA"}, "whole hashes"),
        ({"path": "A"}, "base64"),
    ],
)
def test_a_leaf_that_is_not_the_one_opened_fails(change: dict[str, Any], detail: str) -> None:
    fails(changed(Synthetic().receipt(MINE), lambda value: value["leaves"][0].update(change)), "leaves", detail)


def test_an_artifact_that_is_still_there_fails() -> None:
    for outcome, word in ((Outcome.FAILED, "failed"), (Outcome.BLOCKED, "blocked"), (Outcome.PRESENT, "present")):
        built = Synthetic(outcomes={MINE: outcome})
        fails(built.receipt(MINE), "outcome", word)
        fails(built.receipt(MINE), "outcome", word, built.files())
        assert check(built.receipt(ALSO_MINE)).ok


def test_a_leaf_that_only_the_second_attempt_found_absent_needs_that_statement() -> None:
    built = Synthetic()
    leaf = (0, 1029)
    fails(built.receipt(leaf), "outcome", "present")
    again = built.log.logged([built.names.index("absence 0 1024 1")])
    assert check(built.receipt(leaf, statements=again)).ok
    assert check(built.receipt(leaf, statements=again), built.files()).ok


def test_statements_of_another_step_sweep_or_role_are_refused() -> None:
    built = Synthetic()
    erased = built.log.logged([built.names.index("erase 0 0 0")])
    fails(built.receipt(MINE, statements=erased), "signatures", "step absence")
    fails(built.receipt(MINE, scope="0" * 64), "signatures", "another's")
    fails(built.receipt(MINE, sweep="5b1f6f9e-0000-4000-8000-000000000002"), "signatures", "another's")
    rogue = Synthetic(keys={"absence 0 0 0": signing_key(Role.EXECUTOR, "photos")})
    fails(rogue.receipt(MINE), "signatures", "rescanner")


def test_a_receipt_of_another_issuer_log_or_time_is_refused() -> None:
    built = Synthetic()
    fails(built.receipt(MINE, issuer="Someone Else"), "policy", "another issuer")
    truncated = evidence.Log(built.log.entries[:-1])
    fails(built.receipt(MINE, checkpoint=truncated.checkpoint()), "inclusion", "inclusion-path")
    late = [one for one in evidence.trust().keys if one.role is not Role.RESCANNER]
    expired = trusted(Role.RESCANNER, valid_to=evidence.START)
    policy = evidence.trust().model_copy(update={"keys": (*late, expired)})
    report = opening.verify(built.receipt(MINE), trust.Trust.model_validate(policy.model_dump()))
    assert (report.ok, report.steps[-1].name) == (False, "signatures")


def test_beside_files_of_another_sweep_it_fails() -> None:
    data = Synthetic().receipt(MINE, alone=False)
    fails(data, "signatures", "another's", Synthetic(scope_changes={"policy": "2"}).files())


def test_scope_after_the_deed_is_found_beside_the_sweeps_files() -> None:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [one for one in entries if one[0] != "scope"] + [one for one in entries if one[0] == "scope"]

    built = Synthetic(order=order)
    assert check(built.receipt(MINE)).ok
    fails(built.receipt(MINE), "leaves", "before any deed", built.files())


def test_beside_an_orders_files_the_order_was_approved_and_stands() -> None:
    built = order_sweep()
    bare = [at for at in built.kept() if built.names[at] != "approved"]
    files = bundle.build(built.certificate(), built.log.logged(bare), built.log.checkpoint())
    assert check(built.receipt(MINE), built.files()).ok
    fails(built.receipt(MINE), "leaves", "approved before the first deed", files)
    void = statement.ScopeVoid(sweep=SWEEP, scope=built.scope_digest, reason="cancelled", at=START)
    fails(built.receipt(MINE), "signatures", "this one is void", evidence.followed(sign(void)).files())


def test_every_byte_of_a_receipt_is_vouched_for() -> None:
    data = Synthetic(
        trees=((IMAGES, 40),), asked=(Asked({0: (0, 1)}), Asked({0: (2,)})), again={}, models=()
    ).receipt(MINE)  # fmt: skip
    policy = evidence.trust()
    assert opening.verify(data, policy).ok
    passed = [
        at for at in range(len(data))
        if opening.verify(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :], policy).ok
    ]  # fmt: skip
    assert passed == []
    assert len(data) > 1_000
    adversary.refused(len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"format":"urn:expunge:receipt:v2"}',
        b" " * (receipt.READ_BYTES + 1),
        Synthetic().receipt(MINE) + b"\n",
        changed(Synthetic().receipt(MINE), lambda value: value.update(extra=1)),
        changed(Synthetic().receipt(MINE), lambda value: value.update(checkpoint="")),
        changed(Synthetic().receipt(MINE), lambda value: value["leaves"].extend(value["leaves"])),
        changed(Synthetic().receipt(MINE), lambda value: value.update(leaves=[])),
        changed(Synthetic().receipt(MINE), lambda value: value["statements"][0].update(proof="=")),
    ],
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    report = opening.verify(data, evidence.trust())
    assert (report.ok, len(report.steps)) == (False, 1)


# The edge


def test_the_command_line_knows_a_receipt_when_it_sees_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = Synthetic()
    (tmp_path / "receipt.json").write_bytes(built.receipt(MINE, alone=False))
    (tmp_path / "trust.json").write_bytes(trust.dump(evidence.trust()))
    (tmp_path / "photo").write_bytes(evidence.photo(*MINE))
    (tmp_path / "other").write_bytes(b"another")
    verify.write_bundle(built.files(), tmp_path / "sweep.zip")
    command = [str(tmp_path / "receipt.json"), "--trust", str(tmp_path / "trust.json")]
    beside = [*command, "--sweep", str(tmp_path / "sweep.zip")]
    assert verify.main([*beside, "--photo", str(tmp_path / "photo")]) == 0
    assert "its content was that of the copy given" in capsys.readouterr().out
    assert verify.main([*beside, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert verify.main([*beside, "--photo", str(tmp_path / "other")]) == 1
    assert verify.main(command) == 1
    assert verify.main([*beside, "--photo", str(tmp_path / "nowhere")]) == 2


def test_a_receipt_is_readable_by_the_tools_that_read_a_bundle() -> None:
    data = order_sweep().receipt((0, 5))
    (attached,) = json.loads(data)["statements"]
    envelope = dsse.parse(canonical.dumps(attached["envelope"]))
    assert dsse.verify(envelope, signing_key(Role.RESCANNER).public, "application/vnd.in-toto+json")
    assert re.match(r"log\.example/evidence\n\d+\n", json.loads(data)["checkpoint"])
