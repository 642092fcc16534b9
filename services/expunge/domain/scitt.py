"""Log entries as COSE Receipts (RFC 9942, verifiable data structure 1: RFC9162_SHA256), for those who read COSE and SCITT.

The same inclusion path as in a bundle, signed once more by the log: a COSE_Sign1 (RFC 9052) whose detached payload is the
tree's root. The signed statement is the DSSE envelope; its bytes are the leaf. Needs `cbor2`: extra `scitt`.
"""

from __future__ import annotations

from typing import Final

import cbor2

from expunge.domain import dsse, merkle
from expunge.domain.bundle import Logged
from expunge.domain.note import Checkpoint

_ALG, _KID, _CWT, _VDS, _VDP = 1, 4, 15, 395, 396
_EDDSA: Final = -8
_RFC9162_SHA256: Final = 1
_INCLUSION: Final = -1
_ISS, _SUB = 1, 2
_SIGN1: Final = 18


def receipt(one: Logged, checkpoint: Checkpoint, key: dsse.SigningKey) -> bytes:
    """The receipt of one entry under a checkpoint that the log has signed before. `key`: the log's.

    Same arguments, same bytes. Raises `Tampered` when the entry is not in that tree: the root signed is the checkpoint's.
    """
    merkle.verify_inclusion(one.index, checkpoint.size, merkle.leaf_hash(one.envelope), one.path, checkpoint.root)
    protected = cbor2.dumps(
        {
            _ALG: _EDDSA,
            _KID: bytes.fromhex(key.key_id),
            _CWT: {_ISS: checkpoint.origin, _SUB: f"leaf:{merkle.leaf_hash(one.envelope).hex()}"},
            _VDS: _RFC9162_SHA256,
        },
        canonical=True,
    )
    proof = cbor2.dumps([checkpoint.size, one.index, list(one.path)])
    signed = cbor2.dumps(["Signature1", protected, b"", checkpoint.root])
    body = [protected, {_VDP: {_INCLUSION: [proof]}}, None, key.sign(signed)]
    return bytes(cbor2.dumps(cbor2.CBORTag(_SIGN1, body)))


def export(logged: tuple[Logged, ...], checkpoint: Checkpoint, key: dsse.SigningKey) -> dict[str, bytes]:
    """Files: each statement as it is logged, and its receipt."""
    files = {}
    for one in logged:
        files[f"statements/{one.index}.json"] = one.envelope
        files[f"receipts/{one.index}.cbor"] = receipt(one, checkpoint, key)
    return files
