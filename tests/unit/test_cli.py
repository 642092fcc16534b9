"""The command line: help, exit codes, machine output, and how little it imports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.cli.keyfile import read_key
from expunge.domain import trust
from expunge.domain.dsse import SigningKey
from expunge.domain.errors import Misconfigured
from expunge.verify import write_bundle
from tests import evidence
from tests.evidence import Synthetic

SUBJECT = "k1.AbCdEfGhIjKlMnOpQrStUv"

COMMANDS = [
    *(["request", name] for name in (
        "delete", "withdraw", "consent", "order", "hold", "release", "cancel", "approve", "retention",
    )),
    *([name] for name in ("status", "certificate", "verify", "replay", "worker", "up", "demo", "migrate", "schemas")),
    *(["models", name] for name in ("list", "show", "gate")),
    *(["keys", name] for name in ("generate", "register")),
    *(["dead-letter", name] for name in ("list", "retry", "drop")),
    ["topics", "create"],
    ["catalogue", "import"],
    ["stores", "check"],
]  # fmt: skip
WITHOUT_JSON = {("worker",), ("schemas",)}
"""A worker logs JSON lines anyway; `schemas` writes files."""

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
from expunge.cli.app import main
sys.exit(main({arguments!r}))
"""
HEAVY = ("aiohttp", "aiokafka", "faiss", "faust", "numpy", "prometheus_client", "psycopg", "psycopg_pool", "pyroaring",
         "sklearn", "structlog", "tenacity")  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("EXPUNGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.key"
    path.write_text("11" * 32 + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.zip"
    write_bundle(Synthetic().files(roots=True), path)
    (tmp_path / "trust.json").write_bytes(trust.dump(evidence.trust()))
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "Usage: expunge " + " ".join(command) in shown
    assert ("--json" in shown) == (tuple(command) not in WITHOUT_JSON)


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == Exit.OK
    shown = " ".join(capsys.readouterr().out.split())
    for code in Exit:
        assert f"{code:d} " in shown


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == Exit.USAGE
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "variable"),
    [
        ("key", "EXPUNGE_PUBLISHER_KEY_FILE"),
        ("kafka", "EXPUNGE_KAFKA"),
        ("audience", "EXPUNGE_AUDIENCE"),
    ],
)
def test_a_missing_setting_of_a_request_is_named(
    missing: str, variable: str, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"key": str(key), "kafka": "127.0.0.1:9", "audience": "expunge:test"}
    options = [part for name, value in given.items() if name != missing for part in (f"--{name}", value)]
    assert main(["request", "delete", SUBJECT, *options]) == Exit.CONFIGURATION
    assert variable in _one_line(capsys)


@pytest.mark.parametrize(
    ("wrong", "right"), [("EXPUNGE_DATABSE", "EXPUNGE_DATABASE"), ("EXPUNGE_STORE", "EXPUNGE_STORES")]
)
@pytest.mark.parametrize(
    "command", [["models", "list"], ["worker", "purge"], ["serve-api"], ["stores", "check"]], ids=" ".join
)
def test_a_variable_that_does_not_exist_is_named_with_the_one_that_was_meant(
    command: list[str], wrong: str, right: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(wrong, "postgresql://user:a-password@somewhere/expunge")
    assert main(command) == Exit.CONFIGURATION
    told = _one_line(capsys)
    assert f"{wrong} is not a setting; did you mean {right}?" in told
    assert "a-password" not in told


@pytest.mark.parametrize("command", [["status", "0" * 8], ["models", "list"], ["stores", "check"], ["worker", "audit"]])
def test_a_missing_setting_of_the_deployment_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "status":
        command = ["status", "00000000-0000-4000-8000-000000000000"]
    assert main(command) == Exit.CONFIGURATION
    assert "EXPUNGE_DATABASE" in _one_line(capsys)
    monkeypatch.setenv("EXPUNGE_NONSENSE", "1")
    assert main(command) == Exit.CONFIGURATION
    assert "EXPUNGE_NONSENSE" in _one_line(capsys)


def test_a_request_to_nobody_may_be_tried_again(key: Path, nobody: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--key", str(key), "--kafka", nobody, "--audience", "expunge:test"]
    assert main(["request", "withdraw", SUBJECT, "-p", "training", *options]) == Exit.UNREACHABLE
    assert "EXPUNGE_KAFKA" in _one_line(capsys)


def test_a_name_instead_of_a_pseudonym_is_refused_and_not_repeated(
    key: Path, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--key", str(key), "--kafka", nobody, "--audience", "expunge:test"]
    assert main(["request", "delete", "Jane Doe", *options]) == Exit.USAGE
    assert "Jane" not in _one_line(capsys)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--from", "2020-01-01"],
        ["--source", "studio", "--from", "2020-01-01"],
        ["--from", "2020-01-02", "--before", "2020-01-01"],
        ["--source", "No Such Name"],
    ],
)
def test_an_order_needs_one_sound_selection(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    order = ["request", "order", "--reference", "file 1", "--data-deadline", "2030-01-01"]
    assert main([*order, *options]) == Exit.USAGE
    assert capsys.readouterr().err


def test_a_database_that_does_not_answer_may_be_tried_again(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE", f"postgresql://nobody@{nobody}/none")
    monkeypatch.setenv("EXPUNGE_KAFKA", nobody)
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    monkeypatch.setenv("EXPUNGE_AUDIENCE", "expunge:test")
    assert main(["models", "list"]) == Exit.UNREACHABLE
    assert "EXPUNGE_DATABASE" in _one_line(capsys)


def test_verify_says_yes_in_words_and_in_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(bundle), "--trust", str(bundle.with_name("trust.json"))]
    assert main(command) == Exit.OK
    assert "not covered" in capsys.readouterr().out
    assert main([*command, "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_verify_of_several_bundles_says_no_if_one_does_not_hold(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Synthetic().files(roots=True)
    files["log/checkpoint"] = files["log/checkpoint"].replace(b"\n\n", b"0\n\n", 1)
    write_bundle(files, tmp_path / "other.zip")
    command = ["verify", str(bundle), str(tmp_path / "other.zip"), "--trust", str(tmp_path / "trust.json"), "--json"]
    assert main(command) == Exit.NEGATIVE
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["ok"] for one in reports] == [True, False]


def test_verify_of_what_is_no_bundle_is_bad_input(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--trust", str(bundle)]) == Exit.USAGE
    assert "trust policy" in _one_line(capsys)


def test_debug_shows_where_it_went_wrong() -> None:
    with pytest.raises(Misconfigured):
        main(["--debug", "models", "list"])


def test_keys_are_drawn_once_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["keys", "generate", "--dir", str(tmp_path / "keys"), "--audience", "expunge:test", "--store", "photos"]
    assert main([*command, "--json"]) == Exit.OK
    drawn = json.loads(capsys.readouterr().out)["keys"]
    for name, key_id in drawn.items():
        path = tmp_path / "keys" / f"{name}.key"
        assert read_key(path).key_id == key_id
        assert path.stat().st_mode & 0o077 == 0
    policy = trust.parse((tmp_path / "keys" / "trust.json").read_bytes())
    assert policy.origin == "expunge:test/log"
    assert sorted(one.role.value for one in policy.keys).count("approver") == 2
    assert main(command) == Exit.CONFIGURATION
    assert "empty directory" in _one_line(capsys)


def test_key_files_are_read_in_three_spellings(tmp_path: Path) -> None:
    from base64 import b64encode

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    seed = bytes(range(32))
    pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key").touch(mode=0o600)
    for spelling in (seed.hex().encode(), b64encode(seed), pem):
        (tmp_path / "key").write_bytes(spelling + b"\n")
        assert read_key(tmp_path / "key").key_id == SigningKey.from_seed(seed).key_id


@pytest.mark.parametrize("content", [b"", b"secret", b"zz" * 32, b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"11" * 31])
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(Misconfigured) as refused:
        read_key(tmp_path / "key")
    assert "EXPUNGE_PUBLISHER_KEY_FILE" in str(refused.value)
    assert not content or content.decode() not in str(refused.value)


def test_verify_needs_only_the_core_dependencies(bundle: Path) -> None:
    ran = _blocked(["verify", str(bundle), "--trust", str(bundle.with_name("trust.json")), "--json"], (*HEAVY, "kafka"))
    assert ran.returncode == Exit.OK, ran.stderr
    assert json.loads(ran.stdout)["ok"] is True


def test_a_request_needs_only_the_core_dependencies(key: Path, nobody: str) -> None:
    options = ["--key", str(key), "--kafka", nobody, "--audience", "expunge:test"]
    code = "import expunge.client"  # what the command goes on to, once a broker answers
    assert _blocked_code(code, HEAVY).returncode == 0
    ran = _blocked(["request", "delete", SUBJECT, *options], HEAVY)
    assert ran.returncode == Exit.UNREACHABLE, ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_command_without_its_libraries_says_how_to_get_them() -> None:
    settings = {
        "EXPUNGE_DATABASE": "postgresql://x",
        "EXPUNGE_KAFKA": "x:1",
        "EXPUNGE_DATA": "/x",
        "EXPUNGE_AUDIENCE": "x",
    }
    ran = _blocked(["models", "list"], HEAVY, settings)
    assert ran.returncode == Exit.CONFIGURATION
    assert "pip install" in ran.stderr


def test_help_imports_nothing_heavy() -> None:
    ran = _blocked(["--help"], (*HEAVY, "kafka", "nacl", "cryptography", "pydantic"))
    assert ran.returncode == Exit.OK, ran.stderr


def _blocked(
    arguments: list[str], modules: tuple[str, ...], settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return _run(BLOCK.format(blocked=set(modules), arguments=arguments), settings)


def _blocked_code(code: str, modules: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    blocked = BLOCK.format(blocked=set(modules), arguments=[]).partition("from expunge")[0]
    return _run(blocked + code, None)


def _run(code: str, settings: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("EXPUNGE_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=plain | (settings or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err
