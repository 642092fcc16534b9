"""The certificate of a large order with its leaf file, checked offline by a process of its own: CPU seconds and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from expunge import verify
from expunge.domain import hashing, trust
from expunge.domain.words import Outcome, Step
from tests import evidence
from tests.evidence import IMAGES, Asked, Synthetic

_CHILD: Final = """
import json, resource, sys
from expunge import verify
from expunge.domain import hashing
bundle, policy, accelerated = sys.argv[1:]
if accelerated == "no":
    hashing.hashes = hashing.plain
report = verify.verify(verify.Path(bundle), verify.read_trust(verify.Path(policy)))
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
loaded = "numba" in sys.modules
print(json.dumps({"ok": report.ok, "where": report.where, "cpu": used.ru_utime + used.ru_stime,
                  "peak": int(peak.split()[1]) * 1024, "accelerated": loaded}))
"""
"""The peak is of this process's own memory: `ru_maxrss` would count that of the one that started it."""


class Large(Synthetic):
    """A sweep whose leaves open to nobody: their hashes are drawn, so that millions are quickly made."""

    def _leaves(self, tree: int, count: int) -> bytes:  # noqa: ARG002 - as declared
        return b""

    def _hashes(self, tree: int) -> bytes:
        return os.urandom(32 * self.trees[tree][1])

    def _codes(self, key: tuple[int, int], leaves: range, step: Step, attempt: int) -> bytes:  # noqa: ARG002 - as declared
        return bytes([Outcome.PRESENT if step is Step.PRESENCE else Outcome.GONE]) * len(leaves)


def write(folder: Path, artifacts: int) -> int:
    """A bundle of an order over so many images, with its leaf file and without a page, and the policy beside it; bytes."""
    built = Large(
        trees=((IMAGES, artifacts),),
        asked=(Asked({0: range(artifacts)}, images=artifacts),),
        sweep_class="order",
        again={},
        models=(),
    )
    files = built.files(leaves=True)
    verify.write_bundle(files, folder / "bundle")
    (folder / "trust.json").write_bytes(trust.dump(evidence.trust((IMAGES,))))
    return sum(map(len, files.values()))


def checked(folder: Path, *, accelerated: bool) -> dict[str, Any]:
    """What a fresh process needs for it: CPU seconds with start-up, peak of resident memory in bytes."""
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder / "bundle"), str(folder / "trust.json"), "yes" if accelerated else "no"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["ok"], found["where"]
    return found


def run(folder: Path, artifacts: int) -> dict[str, dict[str, Any]]:
    """By hashlib alone, and with the accelerator where it is installed."""
    size = write(folder, artifacts)
    ways = {"by hashlib": False} | ({"by libcrypto": True} if hashing.native() is not None else {})
    return {
        name: {"artifacts": artifacts, "bytes": size, **checked(folder, accelerated=accelerated)}
        for name, accelerated in ways.items()
    }
