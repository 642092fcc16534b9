"""What an auditor is given: one certificate, the sweep's statements with their inclusion proofs, one checkpoint. Files
in, files out, as mappings of path to bytes; nothing is verified here (`domain.verification`).

    certificate.json              domain.certificate.Certificate, canonical JSON
    sweep/statements.jsonl        {"envelope": <DSSE>, "index": n, "proof": [hex, ...]}, canonical JSON, ascending index
    sweep/chunk-roots/<tree>.bin  32 bytes per chunk; may be left out where the statements cover every chunk of the tree
    sweep/leaf-hashes/<tree>.bin  optional: 32 bytes per leaf, so that the tree is hashed anew from its leaves
    log/checkpoint                C2SP signed note that covers every index
    log/...                       optional: time stamps, earlier checkpoints (`domain.attestation`)
    certificate.html              optional, for people and printers: `domain.page` makes it of the files above, and a
                                  verifier makes it anew and compares, so that it says nothing of its own
    README.txt                    for people
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from expunge.domain import attestation, canonical, dsse, note, page, statement
from expunge.domain.certificate import Certificate
from expunge.domain.errors import Tampered

CERTIFICATE: Final = "certificate.json"
STATEMENTS: Final = "sweep/statements.jsonl"
CHECKPOINT: Final = "log/checkpoint"
PAGE: Final = "certificate.html"
README: Final = "README.txt"

UNAUTHENTICATED: Final = {
    README: "for people; a verifier never reads it",
    **attestation.UNAUTHENTICATED,
    f"{CERTIFICATE}#not_covered": "the issuer's own words, reported as such; the page repeats them",
}
"""What may be changed in a bundle without failing verification, and why. The rest is signed, hashed or refused."""

_LINE: Final = re.compile(
    rb'\{"envelope":(\{[^\n]*\}),"index":(0|[1-9][0-9]{0,15}),"proof":\[((?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*)?)\]\}'
)
"""One line of statements, in its only spelling: the envelope's bytes are the log entry."""

_HASHES: Final = re.compile(r"sweep/(chunk-roots|leaf-hashes)/(0|[1-9][0-9]{0,4})\.bin", re.ASCII)


@dataclass(frozen=True, slots=True)
class Logged:
    """One log entry with its RFC 6962 inclusion path under the bundle's checkpoint. Not verified."""

    index: int
    envelope: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all certificates and receipts of a sweep have in common, of the right shape and nothing more. `chunk_roots`,
    `leaf_hashes`: by tree, where given; `attestations`: the files of `domain.attestation`."""

    statements: tuple[Logged, ...]
    checkpoint: bytes
    chunk_roots: Mapping[int, bytes]
    leaf_hashes: Mapping[int, bytes]
    attestations: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Bundle(Shared):
    """A bundle's parts, of the right shape and nothing more. `page`: the HTML page, if there is one."""

    certificate: Certificate
    page: bytes | None


def build(
    certificate: Certificate,
    statements: Iterable[Logged],
    checkpoint: bytes,
    *,
    chunk_roots: Mapping[int, bytes] | None = None,
    leaf_hashes: Mapping[int, bytes] | None = None,
    with_page: bool = True,
) -> dict[str, bytes]:
    """The files of a bundle. `statements` in any order. Same values, same bytes."""
    statements = sorted(statements, key=lambda one: one.index)
    files = {
        CERTIFICATE: canonical.dumps(certificate.model_dump(mode="json")),
        README: readme(certificate).encode(),
    }
    if with_page:
        files[PAGE] = page.render(certificate, map(_stated, statements), note.read_checkpoint(checkpoint))
    return files | shared(statements, checkpoint, chunk_roots=chunk_roots, leaf_hashes=leaf_hashes)


def _stated(one: Logged) -> page.Stated:
    return one.index, statement.parse(dsse.parse(one.envelope).payload).predicate


def shared(
    statements: Iterable[Logged],
    checkpoint: bytes,
    *,
    chunk_roots: Mapping[int, bytes] | None = None,
    leaf_hashes: Mapping[int, bytes] | None = None,
) -> dict[str, bytes]:
    """The files that all certificates of a sweep have in common."""
    files = {
        STATEMENTS: b"".join(line(one) for one in sorted(statements, key=lambda one: one.index)),
        CHECKPOINT: checkpoint,
    }
    files |= {f"sweep/chunk-roots/{tree}.bin": roots for tree, roots in (chunk_roots or {}).items()}
    files |= {f"sweep/leaf-hashes/{tree}.bin": hashes for tree, hashes in (leaf_hashes or {}).items()}
    return files


def line(one: Logged) -> bytes:
    """One line of `sweep/statements.jsonl`. The envelope must be canonical JSON, as `dsse.sign` makes it."""
    proof = ",".join(f'"{node.hex()}"' for node in one.path)
    return b'{"envelope":%b,"index":%d,"proof":[%b]}\n' % (one.envelope, one.index, proof.encode())


def load(files: Mapping[str, bytes]) -> Bundle:
    """Take a bundle apart. Raises `Tampered` naming the file that is missing, unknown or of the wrong shape."""
    if CERTIFICATE not in files:
        raise Tampered(CERTIFICATE, "expected this file in the bundle, got none")
    common = load_shared(files)
    return Bundle(
        certificate=_certificate(files[CERTIFICATE]),
        statements=common.statements,
        checkpoint=common.checkpoint,
        chunk_roots=common.chunk_roots,
        leaf_hashes=common.leaf_hashes,
        attestations=common.attestations,
        page=files.get(PAGE),
    )


def load_shared(files: Mapping[str, bytes]) -> Shared:
    """What a sweep's certificates share, out of a bundle or alone; a certificate is not looked at. Raises `Tampered`."""
    needed = (STATEMENTS, CHECKPOINT)
    for path in needed:
        if path not in files:
            raise Tampered(path, "expected this file in the bundle, got none")
    hashes: dict[str, dict[int, bytes]] = {"chunk-roots": {}, "leaf-hashes": {}}
    attestations: dict[str, bytes] = {}
    for path in files:
        if path in {*needed, CERTIFICATE, PAGE, README}:
            continue
        if attestation.is_path(path):
            attestations[path] = files[path]
            continue
        match = _HASHES.fullmatch(path)
        if match is None:
            raise Tampered(path[:200], "expected only files that a bundle has, got this one")
        hashes[match[1]][int(match[2])] = files[path]
    return Shared(
        statements=_statements(files[STATEMENTS]),
        checkpoint=files[CHECKPOINT],
        chunk_roots=hashes["chunk-roots"],
        leaf_hashes=hashes["leaf-hashes"],
        attestations=attestations,
    )


def _certificate(data: bytes) -> Certificate:
    try:
        found = Certificate.model_validate_json(data)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, one["loc"])) or "whole" for one in error.errors()})[:8])
        raise Tampered(CERTIFICATE, f"expected a certificate, got something else at {fields}") from error
    # One spelling only: no duplicate keys, no stray bytes that someone could read differently.
    if _canonical(found) != data:
        raise Tampered(CERTIFICATE, "expected canonical JSON (RFC 8785), got another spelling")
    return found


def _canonical(certificate: Certificate) -> bytes:
    try:
        return canonical.dumps(certificate.model_dump(mode="json"))
    except ValueError as error:
        raise Tampered(CERTIFICATE, "expected values with a canonical form") from error


def _statements(data: bytes) -> tuple[Logged, ...]:
    if not data.endswith(b"\n"):
        raise Tampered(STATEMENTS, "expected lines that each end in a newline")
    found: list[Logged] = []
    before = -1
    for number, text in enumerate(data[:-1].split(b"\n"), start=1):
        match = _LINE.fullmatch(text)
        if match is None:
            raise Tampered(f"{STATEMENTS} line {number}", "expected envelope, index and proof in canonical JSON")
        index = int(match[2])
        if index <= before:
            raise Tampered(f"{STATEMENTS} line {number}", f"expected an index over {before}, got {index}")
        before = index
        path = tuple(bytes.fromhex(node.decode()) for node in match[3].replace(b'"', b"").split(b",") if node)
        found.append(Logged(index, match[1], path))
    return tuple(found)


def readme(certificate: Certificate) -> str:
    """How to check this bundle by hand, and what it proves. It states no verdict: a bundle cannot vouch for itself."""
    return _README.format(
        request=certificate.request,
        provision=certificate.provision.value,
        sweep=certificate.sweep,
        scope=certificate.scope,
        round=certificate.round,
    )


_README: Final = """\
Expunge evidence bundle

request    {request}
provision  {provision}
sweep      {sweep}
scope      {scope}
round      {round}

To check it:

    expunge verify <this directory or zip> --trust <your policy file>

The policy file is yours: the issuer's name, the log's verifier key and the signing keys by role, which you had from the
issuer some other way and keep. Keys that come with a bundle prove nothing.

To check it by hand, with public tools only:

1. log/checkpoint is a C2SP signed note: origin, size, root hash, then the log's signature.
2. Each line of sweep/statements.jsonl holds a DSSE envelope, its index in the log and its RFC 6962 inclusion proof
   against that checkpoint. The leaf is SHA-256(0x00 || the envelope's bytes as they stand in the line).
3. Each envelope holds an in-toto v1 statement, signed with Ed25519 by the key of its role: scope (scope, approvals),
   executor of that store (hide, erase), rescanner (presence, absence), retrainer (models), certifier (completions).
4. The scope statement names one RFC 6962 tree per kind and store, and a tree of requests. Its index is below that of
   every hide and erase. Its SHA-256 (of the payload) is the scope above.
5. Statements of step presence, erase and absence cover chunks of 1024 leaves of those trees; the roots of all chunks
   (in sweep/chunk-roots, or in the statements) recombine to the tree's root.
6. In certificate.json: `claim` opens in the tree of requests with leaf nonce || SHA-256(canonical claim), and fixes
   which leaves the request has; `completed` opens in the completion statement of the round in the same way.
7. Count the outcomes of step absence at those leaves: they are the counts in `completed`.

certificate.html is the same in words, to read and print. It follows from the other files; the verifier compares it.

What this shows: who stated what, when, about a scope fixed before anything was erased, and that two different keys, one
of them only allowed to look, stated it. What it does not show: that no copy exists elsewhere (backups until they
expire, recipients, caches, freed disk blocks), or what a model remembers. `not_covered` in certificate.json is the
issuer's own list, and the one part of that file that nothing signs.
"""
