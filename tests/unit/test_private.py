"""A file with a secret that everybody can read is refused where it is named, by root too; nothing of it is shown."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from expunge.adapters.stores.s3.client import client, parse
from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.cli.keyfile import read_key
from expunge.domain.errors import Misconfigured
from expunge.private import read_secret
from expunge.witness import cosigner
from tests.guards.sources import ROOT
from tests.witnessing import new_witness

SECRET = "11" * 32


def entry() -> ModuleType:
    """What a container of the image runs."""
    spec = importlib.util.spec_from_file_location("entry", ROOT / "ops" / "images" / "entry.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "a secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def refused(path: Path, asked: Callable[[], object]) -> None:
    """Refuses each mode in which everybody can read or change it, naming the mend; and takes it mended."""
    for mode in (0o604, 0o644, 0o444, 0o606, 0o602, 0o777):
        path.chmod(mode)
        with pytest.raises(Misconfigured) as error:
            asked()
        assert f"{mode:04o}" in str(error.value)
        assert f"chmod 600 '{path}'" in str(error.value) or f"chmod 600 {path}" in str(error.value)
        assert SECRET not in str(error.value)
    for mode in (0o400, 0o440, 0o600, 0o640):
        path.chmod(mode)
        asked()


def test_a_key_that_everybody_can_read_is_refused(secret: Path) -> None:
    refused(secret, lambda: read_key(secret))


def test_so_is_a_witness_s_key(tmp_path: Path) -> None:
    new_witness(tmp_path)
    refused(tmp_path / cosigner.KEY, lambda: cosigner.Cosigner(tmp_path, []))


def test_so_are_secrets_that_are_mounted_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "expunge_database"
    path.write_text(SECRET)
    refused(path, lambda: entry().read_secrets(tmp_path))
    monkeypatch.delenv("EXPUNGE_DATABASE")
    path.chmod(0o644)
    monkeypatch.setattr("sys.argv", ["entry"])
    module = entry()
    monkeypatch.setattr(module, "SECRETS", tmp_path)
    assert module.run(["prepare"]) == Exit.CONFIGURATION
    assert "EXPUNGE_DATABASE" not in os.environ


def test_so_are_the_credentials_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    place, _ = parse("s3://bucket/photos?profile=eraser&region=us-east-1")
    for variable, section in (("AWS_SHARED_CREDENTIALS_FILE", "eraser"), ("AWS_CONFIG_FILE", "profile eraser")):
        path = tmp_path / variable
        path.write_text(f"[{section}]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\n")
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(path if name == variable else tmp_path / "absent"))
        refused(path, lambda: client(place, place.profile))


def test_a_command_says_so_and_ends(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret.chmod(0o644)
    options = ["--kafka", "127.0.0.1:9", "--audience", "expunge:test", "--regulation", "gdpr"]
    assert main(["request", "delete", f"k1.{'a' * 30}", "--key", str(secret), *options]) == Exit.CONFIGURATION
    told = capsys.readouterr().err
    assert "EXPUNGE_PUBLISHER_KEY_FILE" in told
    assert "chmod 600" in told
    assert SECRET not in told


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT CHECKED for another user: only root can become one")
def test_it_does_not_matter_who_asks() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own are root's alone
    try:
        folder.chmod(0o711)
        path = folder / "secret"
        path.write_text(SECRET)
        for user in (0, 4321):
            os.chown(path, user, user)
            os.seteuid(user)
            try:
                refused(path, lambda: read_secret(path, "x"))
            finally:
                os.seteuid(0)
    finally:
        shutil.rmtree(folder)


def test_a_pipe_has_no_mode_of_its_own() -> None:
    reading, writing = os.pipe()
    os.write(writing, SECRET.encode())
    os.close(writing)
    assert read_secret(Path(f"/dev/fd/{reading}"), "x") == SECRET.encode()
    os.close(reading)
