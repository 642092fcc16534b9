"""Checks every DSSE envelope of a bundle with securesystemslib (of The Update Framework and in-toto), and nothing of Expunge.

python dsse.py BUNDLE-DIRECTORY POLICY.json
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey


def main(bundle: str, policy: str) -> None:
    """Raise on the first envelope that no key of the policy signed."""
    keys = {}
    for one in json.loads(Path(policy).read_bytes())["keys"]:
        raw = base64.b64decode(one["public"], validate=True)
        key_id = hashlib.sha256(raw).hexdigest()
        keys[key_id] = SSlibKey(key_id, "ed25519", "ed25519", {"public": raw.hex()})
    lines = Path(bundle, "sweep", "statements.jsonl").read_bytes().splitlines()
    for line in lines:
        found = json.loads(line)["envelope"]
        key = keys[found["signatures"][0]["keyid"]]  # before from_dict, which takes the envelope apart
        Envelope.from_dict(found).verify([key], threshold=1)
    if not lines:
        raise ValueError("expected statements, one per line")
    sys.stdout.write(f"{len(lines)} statements are signed by keys of the policy\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
