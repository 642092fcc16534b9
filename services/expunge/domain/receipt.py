"""A receipt: what a person keeps of one photo. It opens that photo's leaves and says nothing else.

One JSON object (RFC 8785), at most 4 KB. It names no request and no person; two receipts of one sweep share the sweep,
its scope and public statements, which all receipts of the sweep share. With the nonce and their own copy of the photo
the holder computes the leaf; nobody without the nonce can, even holding the photo.

Alone it holds the rescanner's statement about its leaf's chunk with its proof in the log. Where that would exceed the
limit, it holds the openings only and is checked beside the files that the sweep's certificates share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from expunge.domain import canonical
from expunge.domain.bundle import Logged, Shared
from expunge.domain.canonical import base64_decode, base64_encode
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.leaf import pack_leaves
from expunge.domain.limits import ARTIFACT_ID_BITS
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.statement import Count, Frozen, Hex32, Uuid

FORMAT: Final = "urn:expunge:receipt:v1"
RECEIPT_BYTES: Final = 4096
"""Largest receipt that is made, bytes."""
READ_BYTES: Final = 65_536
"""Largest receipt that is read, bytes."""

_MARK: Final = b'"format":"urn:expunge:receipt:'


class OpenedLeaf(Frozen):
    """One artifact of the photo. `path`: RFC 6962 inclusion path within its chunk, hashes joined, base64; `index`: in the
    whole tree; `digest`: SHA-256 of the artifact at ingest, zeros where none was taken."""

    tree: Count
    index: Count
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    artifact: Annotated[int, Field(ge=0, lt=2**ARTIFACT_ID_BITS)]
    digest: Hex32
    path: str

    def leaf(self, digest: bytes | None = None) -> bytes:
        """The 54 bytes of the leaf; with the digest of the holder's own copy, if given."""
        return pack_leaves(
            bytes.fromhex(self.nonce), self.artifact.to_bytes(6, "big"), digest or bytes.fromhex(self.digest)
        )

    def nodes(self) -> list[bytes]:
        """The path's hashes. Raises `Tampered`."""
        return _unjoined(self.path, f"leaf {self.index} of tree {self.tree}")


class _Signature(Frozen):
    keyid: str
    sig: str


class _Envelope(Frozen):
    payload: str
    payloadType: str  # noqa: N815 - the field's name in DSSE
    signatures: tuple[_Signature, ...]


class Attached(Frozen):
    """A statement with its place in the log. `proof`: RFC 6962 inclusion path, hashes joined, base64."""

    envelope: _Envelope
    index: Count
    proof: str

    def logged(self) -> Logged:
        """As in a bundle. The log entry is the envelope's canonical JSON. Raises `Tampered`."""
        entry = canonical.dumps(self.envelope.model_dump(mode="json"))
        return Logged(self.index, entry, tuple(_unjoined(self.proof, f"statement {self.index}")))


class Receipt(Frozen):
    """See the module. `statements` and `checkpoint` (a C2SP signed note) are both there, or both empty."""

    format: Literal["urn:expunge:receipt:v1"] = FORMAT
    issuer: str
    sweep: Uuid
    scope: Hex32
    leaves: tuple[OpenedLeaf, ...] = Field(min_length=1, max_length=32)
    statements: tuple[Attached, ...] = Field(default=(), max_length=32)
    checkpoint: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.statements) != bool(self.checkpoint):
            raise ValueError("expected statements with a checkpoint, or neither")
        places = [(one.tree, one.index) for one in self.leaves]
        if places != sorted(set(places)):
            raise ValueError("expected each leaf once, ascending")
        return self

    @property
    def alone(self) -> bool:
        """Whether it can be checked without the sweep's files."""
        return bool(self.statements)

    def shared(self) -> Shared:
        """Its own evidence, as a bundle holds it. Raises `Tampered`."""
        logged = tuple(sorted((one.logged() for one in self.statements), key=lambda one: one.index))
        return Shared(
            statements=logged, checkpoint=self.checkpoint.encode(), chunk_roots={}, leaf_hashes={}, attestations={}
        )  # fmt: skip


def make(
    *, issuer: str, sweep: str, scope: str, leaves: Iterable[OpenedLeaf], statements: Sequence[Logged], checkpoint: bytes
) -> bytes:  # fmt: skip
    """A receipt, with the statements if they fit. Raises `Rejected("too-large")` when the openings alone do not."""
    opened = tuple(sorted(leaves, key=lambda one: (one.tree, one.index)))
    bare = Receipt(issuer=issuer, sweep=sweep, scope=scope, leaves=opened)
    if statements:
        whole = bare.model_copy(
            update={"statements": tuple(map(_attached, statements)), "checkpoint": checkpoint.decode()}
        )
        if len(data := _dump(whole)) <= RECEIPT_BYTES:
            return data
    if len(data := _dump(bare)) <= RECEIPT_BYTES:
        return data
    raise Rejected("too-large", f"expected leaves that open in {RECEIPT_BYTES} bytes, got {len(data)}: name one leaf")


def is_receipt(data: bytes) -> bool:
    """Whether a file means to be a receipt."""
    return data.startswith(b"{") and _MARK in data[:READ_BYTES]


def parse(data: bytes) -> Receipt:
    """Read a receipt; nothing is verified. Raises `Tampered("receipt")`."""
    if len(data) > READ_BYTES:
        raise Tampered("receipt", f"expected at most {READ_BYTES} bytes, got {len(data)}")
    try:
        found = Receipt.model_validate_json(data)
        if _dump(found) == data:
            return found
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, one["loc"])) or "whole" for one in error.errors()})[:8])
        raise Tampered("receipt", f"expected a receipt, got something else at {fields}") from error
    except ValueError as error:
        raise Tampered("receipt", "expected values with a canonical form") from error
    raise Tampered("receipt", "expected canonical JSON (RFC 8785), got another spelling")


def joined(nodes: Iterable[bytes]) -> str:
    """Hashes as `path` and `proof` hold them."""
    return base64_encode(b"".join(nodes))


def _dump(receipt: Receipt) -> bytes:
    return canonical.dumps(receipt.model_dump(mode="json"))


def _attached(one: Logged) -> Attached:
    return Attached(envelope=_Envelope.model_validate_json(one.envelope), index=one.index, proof=joined(one.path))


def _unjoined(text: str, where: str) -> list[bytes]:
    try:
        data = base64_decode(text)
    except Rejected as error:
        raise Tampered(where, str(error)) from error
    if len(data) % HASH_BYTES:
        raise Tampered(where, f"expected whole hashes of {HASH_BYTES} bytes, got {len(data)} bytes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
