"""COSE receipts of our log, read by an implementation that is not ours."""

from __future__ import annotations

import cbor2
import pytest
import scitt_cose

from expunge.domain import note, scitt
from expunge.domain.bundle import Logged
from expunge.domain.dsse import SigningKey
from expunge.domain.errors import Tampered
from expunge.domain.words import Role
from tests.evidence import Synthetic, signing_key

LOG = signing_key(Role.LOG)


def logged() -> tuple[list[Logged], note.Checkpoint]:
    built = Synthetic()
    return built.log.logged(built.kept()), note.read_checkpoint(built.log.checkpoint())


def accepted(receipt: bytes, entry: bytes, key: SigningKey = LOG) -> bool:
    found = scitt_cose.verify_receipt(receipt, leaf_entry_hex=entry.hex(), log_public_key_pem=key.public.to_pem())
    return bool(found.ok)


def proof_of(receipt: bytes) -> tuple[int, int, tuple[bytes, ...]]:
    size, index, path = cbor2.loads(cbor2.loads(receipt).value[1][396][-1][0])
    return size, index, tuple(path)


def test_another_implementation_accepts_every_receipt() -> None:
    entries, checkpoint = logged()
    files = scitt.export(tuple(entries), checkpoint, LOG)
    assert len(files) == 2 * len(entries) > 40
    for one in entries:
        receipt = files[f"receipts/{one.index}.cbor"]
        assert accepted(receipt, files[f"statements/{one.index}.json"])
        assert len(receipt) < 600
        assert scitt.receipt(one, checkpoint, LOG) == receipt


def test_a_receipt_is_of_its_entry_and_its_log() -> None:
    entries, checkpoint = logged()
    receipt = scitt.receipt(entries[3], checkpoint, LOG)
    assert not accepted(receipt, entries[4].envelope)
    assert not accepted(receipt, entries[3].envelope + b" ")
    assert not accepted(receipt, entries[3].envelope, signing_key(Role.SCOPE))


def test_every_byte_of_a_receipt_is_vouched_for_but_the_tree_size() -> None:
    """A COSE receipt signs the root alone, so a size in which the same path leads there is as good (RFC 9942)."""
    entries, checkpoint = logged()
    receipt = scitt.receipt(entries[3], checkpoint, LOG)
    for at in range(len(receipt)):
        changed = receipt[:at] + bytes([receipt[at] ^ 0x01]) + receipt[at + 1 :]
        if accepted(changed, entries[3].envelope):
            size, index, path = proof_of(changed)
            assert size != checkpoint.size
            assert (index, path) == (entries[3].index, entries[3].path)


def test_the_headers_are_those_of_the_specification() -> None:
    entries, checkpoint = logged()
    tag = cbor2.loads(scitt.receipt(entries[3], checkpoint, LOG))
    protected, unprotected, payload, signature = tag.value
    assert (tag.tag, payload, len(signature)) == (18, None, 64)
    headers = cbor2.loads(protected)
    assert (headers[1], headers[395]) == (-8, 1)
    assert headers[15][1] == checkpoint.origin
    assert list(unprotected) == [396]
    assert proof_of(scitt.receipt(entries[3], checkpoint, LOG)) == (checkpoint.size, entries[3].index, entries[3].path)


def test_no_root_is_signed_that_the_checkpoint_does_not_have() -> None:
    entries, checkpoint = logged()
    with pytest.raises(Tampered):
        scitt.receipt(entries[3], note.Checkpoint(checkpoint.origin, checkpoint.size, bytes(32)), LOG)
