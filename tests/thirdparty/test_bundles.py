"""Public tools that know nothing of Expunge accept our bundles and refuse changed ones. They are the very programs that an
auditor runs: `schemas/by-hand`. A tool that is not on this machine is skipped aloud.

`THIRDPARTY_BUNDLES`: a directory of bundles (`*.zip`) with their policy, `trust.json`, to check as well: the demo's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from expunge import verify
from expunge.domain import bundle, canonical, dsse, note, trust
from expunge.domain.trust import Trust
from expunge.domain.words import Provision, Role
from tests import evidence
from tests.coordination import album, deployed
from tests.evidence import Synthetic, order_sweep, signing_key

pytestmark = [pytest.mark.thirdparty, pytest.mark.timeout(400)]

BY_HAND: Final = Path(__file__).parents[2] / "schemas" / "by-hand"
INSTALL_SECONDS: Final = 240
DEMO: Final = os.environ.get("THIRDPARTY_BUNDLES")

Tool = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]


def run(*command: str | Path, seconds: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, check=False, timeout=seconds,
        stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip


def needs(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: its layer is not checked by a third party")
    return found


def installed(*command: str | Path, folder: Path) -> None:
    """Run an installer. Without the network its tool is skipped, but not in CI, where it would be forgotten."""
    done = run(*command, seconds=INSTALL_SECONDS, cwd=folder)
    if done.returncode:
        said = f"{command[0]} could not install: {done.stderr[-400:]}"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    needs("go")
    built = tmp_path_factory.mktemp("go") / "byhand"
    installed("go", "build", "-o", built, ".", folder=BY_HAND / "go")
    return lambda files, policy: run(built, files, policy)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    needs("npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "verify.mjs"):
        shutil.copy(BY_HAND / "node" / name, folder)
    quiet = ("--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    installed("npm", "install", *quiet, folder=folder)
    return lambda files, policy: run("node", folder / "verify.mjs", files, policy)


@pytest.fixture(scope="session")
def openssl() -> Tool:
    needs("openssl")
    return lambda files, policy: run(sys.executable, BY_HAND / "openssl.py", files, policy)


@pytest.fixture(scope="session")
def securesystemslib() -> Tool:
    pytest.importorskip("securesystemslib")
    return lambda files, policy: run(sys.executable, BY_HAND / "dsse.py", files, policy)


@pytest.fixture(params=["go", "node", "openssl", "securesystemslib"])
def tool(request: pytest.FixtureRequest) -> Tool:
    found: Tool = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["node", "openssl", "securesystemslib"])
def signatures(request: pytest.FixtureRequest) -> Tool:
    """Tools that check signatures."""
    found: Tool = request.getfixturevalue(request.param)
    return found


class Written:
    """A bundle as a directory, and the policy beside it."""

    def __init__(self, folder: Path, files: dict[str, bytes], policy: Trust) -> None:
        self.folder = folder / "bundle"
        self.policy = folder / "trust.json"
        verify.write_bundle(files, self.folder)
        self.policy.write_bytes(trust.dump(policy))

    def accepted(self, tool: Tool) -> None:
        done = tool(self.folder, self.policy)
        assert done.returncode == 0, done.stderr

    def refused(self, tool: Tool, why: str) -> None:
        done = tool(self.folder, self.policy)
        assert done.returncode != 0, done.stdout
        assert why in done.stderr.lower(), done.stderr

    def change(self, path: str, change: Callable[[bytes], bytes]) -> Written:
        before = (self.folder / path).read_bytes()
        after = change(before)
        assert after != before
        (self.folder / path).write_bytes(after)
        return self


SYNTHETIC: Final[dict[str, Callable[[], Synthetic]]] = {
    "people": Synthetic,
    "order": order_sweep,
    "models": lambda: Synthetic(provision=Provision.MODELS, models=(("face@1", "replaced"), ("door@1", "destroyed"))),
}


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_every_tool_accepts_every_kind_of_bundle(tmp_path: Path, tool: Tool, kind: str) -> None:
    files = SYNTHETIC[kind]().files(roots=True, leaves=True)
    Written(tmp_path, files, evidence.trust()).accepted(tool)


async def test_every_tool_accepts_a_bundle_of_the_real_stages(tmp_path: Path, tool: Tool, database: str) -> None:
    async with deployed(database, tmp_path) as world:
        await world.seed(*album(1), *album(2))
        await world.trained("face@1", album(1))
        asked = world.deletion(1)
        world.ask(asked, world.deletion(2))
        await world.settle()
        files = await world.reader.certificate(UUID(asked.id), Provision.DATA)
        written = Written(tmp_path / "out", files, world.trust)
    assert verify.verify(written.folder, verify.read_trust(written.policy)).ok
    written.accepted(tool)


@pytest.mark.skipif(DEMO is None, reason="THIRDPARTY_BUNDLES names no directory of the demo's bundles")
def test_every_tool_accepts_every_bundle_of_the_demo(tmp_path: Path, tool: Tool) -> None:
    folder = Path(DEMO or "")
    found = sorted(folder.glob("*.zip"))
    assert found
    for path in found:
        Written(tmp_path / path.stem, verify.read_bundle(path), verify.read_trust(folder / "trust.json")).accepted(tool)


def statement(change: Callable[[dict[str, Any]], object], number: int = 3) -> Callable[[bytes], bytes]:
    """Change one line of the statements."""

    def changed(data: bytes) -> bytes:
        lines = data.splitlines()
        value = json.loads(lines[number])
        change(value)
        lines[number] = canonical.dumps(value)
        return b"\n".join(lines) + b"\n"

    return changed


def flipped(text: str) -> str:
    return ("B" if text[8] == "A" else "A").join((text[:8], text[9:]))


def test_a_changed_payload_is_refused_by_every_tool(tmp_path: Path, tool: Tool) -> None:
    def change(value: dict[str, Any]) -> None:
        payload = json.loads(dsse.parse(canonical.dumps(value["envelope"])).payload)
        payload["predicate"]["at"] = "2020-01-01T00:00:00Z"
        value["envelope"]["payload"] = canonical.base64_encode(canonical.dumps(payload))

    Written(tmp_path, Synthetic().files(), evidence.trust()).change(bundle.STATEMENTS, statement(change)).refused(
        tool, ""
    )


def test_a_changed_signature_is_refused_by_every_tool(tmp_path: Path, tool: Tool) -> None:
    def change(value: dict[str, Any]) -> None:
        value["envelope"]["signatures"][0]["sig"] = flipped(value["envelope"]["signatures"][0]["sig"])

    Written(tmp_path, Synthetic().files(), evidence.trust()).change(bundle.STATEMENTS, statement(change)).refused(
        tool, ""
    )


def test_a_key_that_the_policy_does_not_pin_is_refused(tmp_path: Path, signatures: Tool) -> None:
    rogue = Synthetic(keys={"scope": dsse.SigningKey.from_seed(b"r" * 32)})
    Written(tmp_path, rogue.files(), evidence.trust()).refused(signatures, "")


def test_a_statement_under_another_role_is_refused(tmp_path: Path, node: Tool) -> None:
    rogue = Synthetic(keys={"absence 0 0 0": signing_key(Role.EXECUTOR, "photos")})
    Written(tmp_path, rogue.files(), evidence.trust()).refused(node, "expected a rescanner key")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda value: value.update(index=value["index"] + 1), "proof"),
        (lambda value: value.update(proof=value["proof"][:-1]), "proof"),
        (lambda value: value.update(proof=["0" * 64, *value["proof"][1:]]), "proof"),
        (lambda value: value.update(proof=value["proof"][::-1]), "proof"),
    ],
)
def test_a_changed_place_in_the_log_is_refused(tmp_path: Path, go: Tool, change: Any, why: str) -> None:
    written = Written(tmp_path, Synthetic().files(), evidence.trust())
    written.change(bundle.STATEMENTS, statement(change)).refused(go, why)


def test_a_checkpoint_of_another_tree_key_or_log_is_refused(tmp_path: Path, go: Tool) -> None:
    built = Synthetic()
    forked = evidence.Log([*built.log.entries[:-1], b"another"])
    other = note.Checkpoint("log.example/other", 25, bytes(32))
    key = signing_key(Role.LOG)
    cases = {
        "fork": (forked.checkpoint(), "proof"),
        "size": (built.log.checkpoint().replace(b"\n25\n", b"\n26\n"), "invalid signature"),
        "key": (
            built.log.checkpoint().replace(b"log.example/evidence ", b"log.example/evident "),
            "no verifiable signatures",
        ),
        "origin": (note.sign_checkpoint(other, key, evidence.ORIGIN), "the log that the policy names"),
    }
    for name, (checkpoint, why) in cases.items():
        written = Written(tmp_path / name, built.files(), evidence.trust())
        written.change(bundle.CHECKPOINT, lambda _, new=checkpoint: new).refused(go, why)  # type: ignore[misc] # bound now


def test_an_empty_bundle_is_refused_by_every_tool(tmp_path: Path, tool: Tool) -> None:
    Written(tmp_path, Synthetic().files(), evidence.trust()).change(bundle.STATEMENTS, lambda _: b"").refused(
        tool, "expected"
    )


def test_the_script_for_auditors_runs_them_all(tmp_path: Path, go: Tool, node: Tool, openssl: Tool) -> None:
    written = Written(tmp_path, Synthetic().files(), evidence.trust())
    verify.write_bundle(Synthetic().files(), tmp_path / "bundle.zip")
    script = BY_HAND / "verify.sh"
    for name in ("bundle", "bundle.zip"):
        done = run(script, tmp_path / name, written.policy, seconds=INSTALL_SECONDS)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3
    written.change(bundle.CHECKPOINT, lambda data: data.replace(b"\n25\n", b"\n24\n"))
    assert run(script, tmp_path / "bundle", written.policy, seconds=INSTALL_SECONDS).returncode == 1
