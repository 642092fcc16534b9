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
from expunge.domain import attestation, bundle, canonical, dsse, note, scitt, trust, verification
from expunge.domain.trust import Trust
from expunge.domain.words import Provision, Role
from tests import adversary, evidence
from tests.authority import Authority
from tests.coordination import album, deployed
from tests.evidence import Synthetic, order_sweep, signing_key

pytestmark = [pytest.mark.thirdparty, pytest.mark.timeout(400)]

BY_HAND: Final = Path(__file__).parents[2] / "schemas" / "by-hand"
INSTALL_SECONDS: Final = 240
AICS: Final = "aics-tlog==0.2.1"
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


@pytest.fixture(scope="session")
def aics(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """In an environment of its own: it needs a later Python than ours."""
    folder = tmp_path_factory.mktemp("aics")
    installed(newer_python(), "-m", "venv", "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    installed(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", AICS, folder=folder)
    return lambda files, policy: run(python, BY_HAND / "aics.py", files, policy)


def newer_python() -> str:
    """A Python of 3.12 or later: on PATH, or as pyenv keeps it."""
    names = [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    names += sorted(map(str, (Path.home() / ".pyenv" / "versions").glob("3.1[2-9]*/bin/python")))
    for one in filter(None, names):
        if (
            run(one, "-c", "import sys, venv; sys.exit(sys.version_info < (3, 12))").returncode == 0
        ):  # a shim may lead nowhere
            return one
    pytest.skip("NOT CHECKED by aics-tlog: no Python 3.12 or later on this machine")


@pytest.fixture(params=["go", "node", "openssl", "securesystemslib", "aics"])
def tool(request: pytest.FixtureRequest) -> Tool:
    found: Tool = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["node", "openssl", "securesystemslib"])
def signatures(request: pytest.FixtureRequest) -> Tool:
    """Tools that check signatures."""
    found: Tool = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["go", "aics"])
def log_tool(request: pytest.FixtureRequest) -> Tool:
    """Tools that check checkpoints and inclusion."""
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
        adversary.refused()

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


WITNESS: Final = "auditor.example/w1"


def vouched(folder: Path) -> tuple[dict[str, bytes], Trust]:
    """A bundle whose checkpoint a witness cosigned and an authority stamped, and the policy that asks for both."""
    authority = Authority.found(folder / "authority")
    files = Synthetic().files()
    signed = files[bundle.CHECKPOINT]
    signed += note.sign_cosignature(signed, signing_key(Role.WITNESS), WITNESS, int(evidence.START.timestamp()))
    (authority.directory / "stamped").write_bytes(signed)
    asked = run(
        "openssl", "ts", "-query", "-data", "stamped", "-sha256", "-cert", "-out", "asked.tsq", cwd=authority.directory
    )
    assert asked.returncode == 0, asked.stderr
    stamp = authority.reply((authority.directory / "asked.tsq").read_bytes())
    key = note.NoteKey.witness(WITNESS, signing_key(Role.WITNESS).public).encode()
    policy = evidence.trust(witnesses=(key,), timestamp_authorities=(authority.root,))
    return files | {bundle.CHECKPOINT: signed, attestation.STAMP: stamp}, policy


def test_every_tool_accepts_a_bundle_that_others_vouched_for(tmp_path: Path, tool: Tool) -> None:
    needs("openssl")
    files, policy = vouched(tmp_path)
    assert verification.verify(files, policy).ok
    Written(tmp_path, files, policy).accepted(tool)


def test_a_time_stamp_over_another_checkpoint_or_by_another_authority_is_refused(tmp_path: Path, openssl: Tool) -> None:
    files, policy = vouched(tmp_path)
    other = Authority.found(tmp_path / "other", "other")
    pinned = policy.model_copy(update={"timestamp_authorities": (other.root,)})
    Written(tmp_path / "authority-2", files, pinned).refused(openssl, "")
    bare = files | {bundle.CHECKPOINT: Synthetic().files()[bundle.CHECKPOINT]}
    Written(tmp_path / "note", bare, policy).refused(openssl, "")
    token = bytearray(files[attestation.STAMP])
    token[len(token) // 2] ^= 1
    Written(tmp_path / "token", files | {attestation.STAMP: bytes(token)}, policy).refused(openssl, "")


def test_a_quorum_that_is_not_there_is_refused(tmp_path: Path, aics: Tool) -> None:
    needs("openssl")
    files, policy = vouched(tmp_path)
    bare = files | {bundle.CHECKPOINT: Synthetic().files()[bundle.CHECKPOINT]}
    Written(tmp_path / "none", bare, policy).refused(aics, "quorum")
    stranger = note.NoteKey.witness(WITNESS, signing_key(Role.SCOPE).public).encode()
    Written(tmp_path / "stranger", files, policy.model_copy(update={"witnesses": (stranger,)})).refused(aics, "quorum")


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_scitt_accepts_every_statement_of_every_kind_of_bundle(kind: str) -> None:
    scitt_cose = pytest.importorskip("scitt_cose")
    built = SYNTHETIC[kind]()
    logged, log = built.log.logged(built.kept()), signing_key(Role.LOG)
    files = scitt.export(tuple(logged), note.read_checkpoint(built.log.checkpoint()), log)
    for one, other in zip(logged, [*logged[1:], logged[0]], strict=True):
        given = {"log_public_key_pem": log.public.to_pem()}
        receipt = files[f"receipts/{one.index}.cbor"]
        assert scitt_cose.verify_receipt(receipt, leaf_entry_hex=one.envelope.hex(), **given).ok
        assert not scitt_cose.verify_receipt(receipt, leaf_entry_hex=other.envelope.hex(), **given).ok
        adversary.refused()


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
def test_a_changed_place_in_the_log_is_refused(tmp_path: Path, log_tool: Tool, change: Any, why: str) -> None:
    written = Written(tmp_path, Synthetic().files(), evidence.trust())
    written.change(bundle.STATEMENTS, statement(change)).refused(log_tool, why)


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
