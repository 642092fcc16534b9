"""Checks every signature of a bundle with the `openssl` command, and nothing of Expunge. The standard library only.

    python openssl.py BUNDLE-DIRECTORY POLICY.json

What DSSE signs is "DSSEv1 <length of type> <type> <length of payload> <payload>"; OpenSSL gets that, the signature and the
key as files. Time stamps beside checkpoints (`*.tsr`) are checked with `openssl ts`, where the policy pins authorities.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SPKI = bytes.fromhex("302a300506032b6570032100")
"""RFC 8410: an Ed25519 public key follows."""


def main(bundle: str, policy: str) -> None:
    """Raise on the first signature that does not verify."""
    trusted = json.loads(Path(policy).read_bytes())
    keys = {}
    for one in trusted["keys"]:
        raw = base64.b64decode(one["public"], validate=True)
        keys[hashlib.sha256(raw).hexdigest()] = SPKI + raw
    lines = Path(bundle, "sweep", "statements.jsonl").read_bytes().splitlines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for line in lines:
            _check_signature(json.loads(line)["envelope"], keys, folder)
        stamps = _check_stamps(Path(bundle), trusted.get("timestamp_authorities", []), folder)
    if not lines:
        raise ValueError("expected statements, one per line")
    sys.stdout.write(f"{len(lines)} signatures and {stamps} time stamps hold\n")


def _check_signature(envelope: dict, keys: dict, folder: Path) -> None:
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"], validate=True)
    (signature,) = envelope["signatures"]
    (folder / "signed").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload))
    (folder / "signature").write_bytes(base64.b64decode(signature["sig"], validate=True))
    (folder / "key").write_bytes(keys[signature["keyid"]])
    _openssl(
        folder, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key", "-rawin", "-in", "signed",
        "-sigfile", "signature",
    )  # fmt: skip


def _check_stamps(bundle: Path, authorities: list, folder: Path) -> int:
    if not authorities:
        return 0
    (folder / "authorities").write_text("".join(authorities), encoding="ascii")
    pairs = [(path, path.with_suffix("")) for path in bundle.glob("log/checkpoint.tsr")]
    pairs += [(path, bundle / "log" / "checkpoints" / path.stem) for path in bundle.glob("log/timestamps/*.tsr")]
    for stamp, note in pairs:
        _openssl(
            folder, "ts", "-verify", "-data", str(note.absolute()), "-in", str(stamp.absolute()), "-CAfile", "authorities",
            "-partial_chain",
        )  # fmt: skip
    return len(pairs)


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607


if __name__ == "__main__":
    main(*sys.argv[1:])
