"""The canonical body of a chunk statement (RFC 8785), written out, and what differs between two of one tree and step.

Nearly all statements of a log are about chunks, and a reader spells each anew to see that it has one spelling. A general
encoder takes five times as long; a test holds this one against it.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from json.encoder import encode_basestring as text
from typing import TYPE_CHECKING, Any, Final

from expunge.domain.words import Outcome

if TYPE_CHECKING:
    from expunge.domain.statement import Chunk

_CODES = {outcome: str(int(outcome)) for outcome in Outcome}
_COUNT: Final = rb"(0|[1-9][0-9]{0,14})"
_HEX: Final = rb"([0-9a-f]{64})"
_VARYING: Final = re.compile(
    rb'(\{"_type":"[^"\\]*","predicate":\{"at":")(.{19})Z","attempt":' + _COUNT + rb',"chunk_root":"' + _HEX
    + rb'","end":' + _COUNT + rb'(,"kind":"[^\[]*)\[([0-9,\[\]]+)\],"previous":(null|"[0-9a-f]{64}")(,"residue":\[[^\]]*\])'
    rb',"sampled":' + _COUNT + rb'(,"scope":".{64}"),"start":' + _COUNT + rb'(,"step":.*"sha256":")' + _HEX + rb'(".*)',
    re.DOTALL,
)  # fmt: skip
"""Groups, in order: what stays, then what varies, by turns as they stand. What varies is spelled in the one way: here, and
for times and outcomes in the functions that read them. What stays is compared whole and needs no more than its ends."""
_AT: Final = re.compile(rb"[0-9]{4}(?:-[0-9]{2}){2}T[0-9]{2}(?::[0-9]{2}){2}")
_OUTCOMES: Final = re.compile(rb"(?:\[[0-9],[1-9][0-9]{0,14}\],?)+")


def body(chunk: Chunk) -> str:
    """What `canonical.dumps(chunk.model_dump(mode="json"))` gives, without the type."""
    outcomes = ",".join([f"[{_CODES[code]},{count}]" for code, count in chunk.outcomes])
    previous = "null" if chunk.previous is None else f'"{chunk.previous}"'
    # Digests, ids and words of ours need no escapes: their types admit none.
    return (
        f'{{"at":"{chunk.at.isoformat()[:-6]}Z","attempt":{chunk.attempt},"chunk_root":"{chunk.chunk_root}",'
        f'"end":{chunk.end},"kind":"{chunk.kind}","level":{int(chunk.level)},"method":{text(chunk.method)},'
        f'"outcomes":[{outcomes}],"previous":{previous},"residue":[{",".join(map(text, chunk.residue))}],'
        f'"sampled":{chunk.sampled},"scope":"{chunk.scope}","start":{chunk.start},"step":"{chunk.step}",'
        f'"store":{text(chunk.store)},"sweep":"{chunk.sweep}","tree":{chunk.tree}}}'
    )


def varying(data: bytes) -> tuple[tuple[bytes, ...], dict[str, Any], str] | None:
    """What a statement as `statement.payload` spells it has in common with others of its tree and step, byte for byte; the
    fields of `Chunk` that may differ; and the digest of its last subject. None for what is spelled otherwise, and perhaps
    for others.

    Two statements of which the first are the same differ in these values alone, all of which have one spelling: if one of
    the two is a chunk statement, so is the other.
    """
    if (found := _VARYING.fullmatch(data)) is None:
        return None
    one, at, attempt, root, end, two, outcomes, previous, three, sampled, four, start, five, digest, six = (
        found.groups()
    )
    try:
        fields = {
            "at": _at(at),
            "attempt": int(attempt),
            "chunk_root": root.decode(),
            "end": int(end),
            "outcomes": _outcomes(outcomes),
            "previous": None if previous == b"null" else previous[1:-1].decode(),
            "sampled": int(sampled),
            "start": int(start),
        }
    except ValueError:
        return None
    return (one, two, three, four, five, six), fields, digest.decode()


@lru_cache(maxsize=1024)
def _at(spelled: bytes) -> datetime:
    """Raises `ValueError` for times that there are not, and those spelled otherwise."""
    if not _AT.fullmatch(spelled):
        raise ValueError("expected a time as statements spell it")
    return datetime.fromisoformat(f"{spelled.decode()}+00:00")


@lru_cache(maxsize=1024)
def _outcomes(spelled: bytes) -> tuple[tuple[Outcome, int], ...]:
    """Raises `ValueError` for codes that there are not, and lists spelled otherwise."""
    if not _OUTCOMES.fullmatch(spelled):
        raise ValueError("expected run lengths as statements spell them")
    return tuple((Outcome(code), count) for code, count in json.loads(b"[%b]" % spelled))
