"""What a regulator is given of an order: the key that opens its sealed scope file. With both they recompute every leaf and
root themselves, and read every locator.

The key opens one sweep. It is disclosed only of a sweep with one request: another sweep's key would open strangers too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from pydantic import ValidationError

from expunge.domain import canonical, merkle
from expunge.domain.errors import Tampered
from expunge.domain.leaf import DIGEST_BYTES, LEAF_BYTES, derive_key, nonces, pack_leaves
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.scopefile import Buffer, ScopeFile, unpack_columns, unpack_strings
from expunge.domain.statement import Frozen, Hex32, Scope, Uuid
from expunge.domain.words import Kind

FORMAT: Final = "urn:expunge:disclosure:v1"


class Disclosure(Frozen):
    """The plain text, before it is encrypted to somebody. `scope`: SHA-256 of the scope statement's payload; `file`: of the
    sealed scope file; `key`: the sweep's key."""

    format: Literal["urn:expunge:disclosure:v1"] = FORMAT
    issuer: str
    sweep: Uuid
    scope: Hex32
    file: Hex32
    key: Hex32


@dataclass(frozen=True, slots=True)
class Opened:
    """One artifact of an order. `digest`: of its content at ingest, None where none was taken."""

    tree: int
    index: int
    kind: Kind
    store: str
    unit: str
    locator: str
    artifact: int
    digest: str | None


def dump(disclosure: Disclosure) -> bytes:
    """Canonical JSON."""
    return canonical.dumps(disclosure.model_dump(mode="json"))


def parse(data: bytes) -> Disclosure:
    """Read a decrypted disclosure. Raises `Tampered("disclosure")`."""
    try:
        return Disclosure.model_validate_json(data)
    except ValidationError as error:
        raise Tampered("disclosure", "expected a disclosure, got something else") from error


def openings(disclosure: Disclosure, buffer: Buffer, scope: Scope) -> Iterator[Opened]:
    """Every artifact of the sweep, checked against a verified `scope`: leaves are computed anew, and each tree's root is the
    one that was signed before anything was erased. Raises `Tampered`, at the latest at the end of a tree."""
    digest = sha256(buffer).hexdigest()
    if not digest == scope.file == disclosure.file or disclosure.sweep != scope.sweep:
        raise Tampered("scope-file", "expected the scope file that the scope statement names, got another")
    key = bytes.fromhex(disclosure.key)
    file = ScopeFile.open(buffer, key)
    for number, tree in enumerate(scope.trees):
        nonce_key = derive_key(key, "nonces", number.to_bytes(2, "big"))
        units = unpack_strings(unpack_columns(file.section(f"{number}/units"))["units"])
        roots = []
        for start in range(0, tree.leaves, CHUNK_LEAVES):
            columns = unpack_columns(file.section(f"{number}/{start // CHUNK_LEAVES}"))
            count = len(columns["digest"]) // DIGEST_BYTES
            leaves = pack_leaves(nonces(nonce_key, count, start), columns["artifact_id"], columns["digest"])
            roots.append(merkle.root(merkle.leaf_hashes(leaves, LEAF_BYTES)))
            locators = unpack_strings(columns["locator"])
            for at in range(count):
                taken = columns["digest"][at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
                yield Opened(
                    tree=number,
                    index=start + at,
                    kind=tree.kind,
                    store=tree.store,
                    unit=units[int.from_bytes(columns["unit"][at * 4 : at * 4 + 4], "little")],
                    locator=locators[at],
                    artifact=int.from_bytes(columns["artifact_id"][at * 6 : at * 6 + 6], "big"),
                    digest=taken.hex() if any(taken) else None,
                )
        if merkle.root_from_chunk_roots(tree.leaves, roots).hex() != tree.root:
            raise Tampered(f"tree {number}", "expected leaves that hash to the root in the scope, got others")
