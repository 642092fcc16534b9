"""Checks a bundle's checkpoint, its cosignatures and every inclusion proof with `aics-tlog`, and nothing of Expunge.

    python aics.py BUNDLE-DIRECTORY POLICY.json

Needs Python 3.12 or later and `aics-tlog`. Signatures of statements are for other tools.
"""

import json
import sys
from pathlib import Path

import aics_tlog


def main(bundle: str, policy: str) -> None:
    """Raise on the first thing that does not verify."""
    trusted = json.loads(Path(policy).read_bytes())
    note = aics_tlog.parse_note(Path(bundle, "log", "checkpoint").read_text(encoding="utf-8"))
    witnesses = [aics_tlog.parse_vkey(one) for one in trusted.get("witnesses", [])]
    quorum = trusted.get("witness_quorum")
    found = aics_tlog.verify_checkpoint(
        note, aics_tlog.parse_vkey(trusted["log_key"]), witnesses, len(witnesses) if quorum is None else quorum,
        expected_origin=trusted["origin"],
    )  # fmt: skip
    if not found.ok:
        raise ValueError(f"expected a checkpoint of the log that the policy names, with its quorum: {found}")
    point = aics_tlog.parse_checkpoint(note.text)
    lines = Path(bundle, "sweep", "statements.jsonl").read_bytes().splitlines()
    for line in lines:
        one = json.loads(line)
        # The entry is the envelope's bytes as they stand in the line.
        entry = line[len(b'{"envelope":') : line.rindex(b',"index":')]
        path = [bytes.fromhex(node) for node in one["proof"]]
        if not aics_tlog.verify_leaf_inclusion(entry, one["index"], point.size, path, point.root):
            raise ValueError(f"expected statement {one['index']} to be in the log, its proof does not hold")
    if not lines:
        raise ValueError("expected statements, one per line")
    sys.stdout.write(f"checkpoint of size {point.size} and {len(lines)} inclusion proofs hold\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
