"""The canonical body of a chunk statement (RFC 8785), written out.

Nearly all statements of a log are about chunks, and a reader spells each anew to see that it has one spelling. A general
encoder takes five times as long; a test holds this one against it.
"""

from __future__ import annotations

from json.encoder import encode_basestring as text
from typing import TYPE_CHECKING

from expunge.domain.words import Outcome

if TYPE_CHECKING:
    from expunge.domain.statement import Chunk

_CODES = {outcome: str(int(outcome)) for outcome in Outcome}


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
