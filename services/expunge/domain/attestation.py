"""What others said of a log's checkpoints: cosignatures by witnesses, time stamps by authorities. Files of a bundle, and
how a verifier weighs them against its own policy.

    log/checkpoint.tsr             RFC 3161 TimeStampResp over the bytes of `log/checkpoint`
    log/checkpoints/<size>         an earlier checkpoint (C2SP signed note) that covers the scope, with its cosignatures
    log/consistency/<size>         RFC 6962 consistency proof from there to `log/checkpoint`: a base64 hash per line
    log/timestamps/<size>.tsr      RFC 3161 TimeStampResp over the bytes of `log/checkpoints/<size>`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from expunge.domain import cosigning, merkle, note, timestamp
from expunge.domain.canonical import base64_encode
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.note import Checkpoint, Cosignature
from expunge.domain.trust import Trust

STAMP: Final = "log/checkpoint.tsr"
EARLIER: Final = 16
"""Most earlier checkpoints in a bundle."""
CLOCKS: Final = timedelta(minutes=5)
"""How far apart the clocks of a witness or an authority and of an executor may be."""
_LAST: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
NOT_BEFORE: Final = "scope not attested before the first deed"
_PATH: Final = re.compile(
    r"log/(?:checkpoint\.tsr|(checkpoints|consistency)/([1-9][0-9]{0,18})|timestamps/([1-9][0-9]{0,18})\.tsr)", re.ASCII
)

UNAUTHENTICATED: Final = {
    "log/*.tsr": "read only where the policy pins authorities, and then only what the authority signed counts",
    "log/checkpoint#signatures": "signature lines by keys that the policy does not pin are ignored, as signed-note asks",
}
"""What may be changed here without failing verification, and why."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """One checkpoint and what pinned parties said of it. `stamped`: the authority's time, None where none was asked for
    and there is none, or no authority is pinned."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]
    stamped: datetime | None

    def witnesses(self) -> int:
        """How many different witnesses cosigned it."""
        return len({one.key.name for one in self.cosignatures})

    def known_by(self, trust: Trust) -> datetime | None:
        """When at the latest it existed, by the word of the quorum that the policy asks for; None without one."""
        if trust.quorum == 0 or self.witnesses() < trust.quorum:
            return None
        first: dict[str, int] = {}
        for one in self.cosignatures:
            first[one.key.name] = min(one.timestamp, first.get(one.key.name, one.timestamp))
        latest = sorted(first.values())[trust.quorum - 1]
        # A time beyond what there are dates for is as good as none: it is after every deed.
        return datetime.fromtimestamp(latest, UTC) if latest <= _LAST else datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Attested:
    """The bundle's checkpoint, and earlier ones of the same log by ascending size. All verified."""

    last: Attestation
    earlier: tuple[Attestation, ...]


def is_path(path: str) -> bool:
    """Whether a bundle may have this file."""
    return _PATH.fullmatch(path) is not None


def files(
    stamp: bytes | None, earlier: Sequence[tuple[int, bytes, bytes | None, Sequence[bytes]]] = ()
) -> dict[str, bytes]:
    """The files. `earlier`: size, note, time stamp, consistency proof to the bundle's checkpoint."""
    found = {} if stamp is None else {STAMP: stamp}
    for size, signed, token, proof in earlier:
        found[f"log/checkpoints/{size}"] = signed
        found[f"log/consistency/{size}"] = "".join(f"{base64_encode(one)}\n" for one in proof).encode()
        if token is not None:
            found[f"log/timestamps/{size}.tsr"] = token
    return found


def in_words(one: Attestation) -> str:
    """Who vouches for a checkpoint, to follow its size; empty for nobody."""
    names = sorted({cosigned.key.name for cosigned in one.cosignatures})
    seen = f", cosigned by {', '.join(names)}" if names else ""
    return seen + (f", time-stamped {one.stamped.isoformat()}" if one.stamped else "")


def check(given: Mapping[str, bytes], signed: bytes, trust: Trust) -> Attested:
    """Weigh `signed` (the bundle's checkpoint) and the files of this module. Raises `Tampered`: a bad signature by a
    pinned key, a quorum or a time stamp that the policy asks for and is not there, a checkpoint of another tree."""
    last = _attestation(signed, given.get(STAMP), trust, "log/checkpoint", STAMP)
    if last.witnesses() < trust.quorum:
        where = "log/checkpoint"
        raise Tampered(where, f"expected cosignatures by {trust.quorum} pinned witnesses, got {last.witnesses()}")
    if trust.timestamp_authorities and last.stamped is None:
        raise Tampered(STAMP, "expected a time stamp by a pinned authority, got none")
    sizes = sorted({int(match[2] or match[3]) for path in given if (match := _PATH.fullmatch(path)) and path != STAMP})
    if len(sizes) > EARLIER:
        raise Tampered("log/checkpoints", f"expected at most {EARLIER} earlier checkpoints, got {len(sizes)}")
    return Attested(last, tuple(_earlier(given, size, last.checkpoint, trust) for size in sizes))


def check_before(
    attested: Attested, scope: int, deed: tuple[int, datetime] | None, trust: Trust, *, needed: bool
) -> str:
    """Check that the scope (log index `scope`) was attested before the first `deed` (log index, stated time), as far as
    the policy asks for witnesses or time stamps and it is `needed`; what was seen, in words. Raises `Tampered`."""
    if deed is None or not (trust.quorum or trust.timestamp_authorities):
        return ""
    index, at = deed
    for one in attested.earlier:
        times = [one.known_by(trust)] if trust.quorum else []
        times += [one.stamped] if trust.timestamp_authorities else []
        if scope < one.checkpoint.size <= index and all(time is not None and time - at <= CLOCKS for time in times):
            return f"scope attested at size {one.checkpoint.size}, before the first deed"
    if needed:
        asked = f"{trust.quorum} witnesses" + (" and a time stamp" if trust.timestamp_authorities else "")
        where = "log/checkpoints"
        raise Tampered(where, f"expected {asked} on a checkpoint over an order's scope before the first deed, got none")
    return NOT_BEFORE


def _earlier(given: Mapping[str, bytes], size: int, last: Checkpoint, trust: Trust) -> Attestation:
    path, proof = f"log/checkpoints/{size}", f"log/consistency/{size}"
    for needed in (path, proof):
        if needed not in given:
            raise Tampered(needed, "expected this file in the bundle, got none")
    token = f"log/timestamps/{size}.tsr"
    one = _attestation(given[path], given.get(token), trust, path, token)
    if one.checkpoint.size != size:
        raise Tampered(path, f"expected a checkpoint of size {size}, got {one.checkpoint.size}")
    try:
        *lines, end = given[proof].decode("ascii").split("\n")
        if end:
            lines.append(end + "\n")  # no hash: every line ends in a newline
        merkle.verify_consistency(size, last.size, one.checkpoint.root, last.root, cosigning.hashes(lines))
    except (Rejected, Tampered, UnicodeDecodeError) as error:
        raise Tampered(proof, f"expected the checkpoint of size {size} to be of the same log: {error}") from error
    return one


def _attestation(signed: bytes, token: bytes | None, trust: Trust, where: str, stamp: str) -> Attestation:
    try:
        checkpoint = note.open_checkpoint(signed, trust.log_keys, trust.origin)
        opened = note.open_note(signed, trust.log_keys)
    except Rejected as error:
        raise Tampered(where, str(error)) from error
    stamped = None
    if token is not None and trust.timestamp_authorities:
        stamped = timestamp.time_of(token, signed, trust.timestamp_authorities, stamp)
    return Attestation(checkpoint, opened.cosignatures, stamped)
