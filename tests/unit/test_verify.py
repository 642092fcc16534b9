"""The verifier's edge: directories, zip files, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from expunge import verify
from expunge.domain import bundle, trust, verification
from expunge.domain.errors import Rejected
from tests import adversary, evidence
from tests.evidence import IMAGES, Asked, Synthetic


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_bytes(trust.dump(evidence.trust()))
    return path


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_bundle_is_written_and_read_back(tmp_path: Path, policy: Path, name: str) -> None:
    files = Synthetic().files(roots=True)
    verify.write_bundle(files, tmp_path / name)
    assert verify.read_bundle(tmp_path / name) == files
    assert verify.verify(tmp_path / name, verify.read_trust(policy)).ok


def test_a_zip_of_the_same_bundle_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        verify.write_bundle(Synthetic().files(), tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_one_certificate_verifies_beside_what_its_sweep_shares(tmp_path: Path, policy: Path) -> None:
    files = Synthetic().files(1)
    (tmp_path / "mine.json").write_bytes(files.pop(bundle.CERTIFICATE))
    verify.write_bundle(files, tmp_path / "sweep.zip")
    assert (
        verify.main([str(tmp_path / "mine.json"), "--trust", str(policy), "--sweep", str(tmp_path / "sweep.zip")]) == 0
    )


def test_a_persons_certificate_is_small() -> None:
    assert len(Synthetic().files()[bundle.CERTIFICATE]) <= 4096


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_line_says_what_it_found(
    tmp_path: Path,
    policy: Path,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,  # noqa: FBT001
) -> None:
    verify.write_bundle(Synthetic().files(), tmp_path / "good")
    verify.write_bundle(Synthetic().files(issuer="Someone Else"), tmp_path / "bad")
    more = ["--trust", str(policy), *(["--json"] if as_json else [])]
    assert verify.main([str(tmp_path / "good"), *more]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["ok"] if as_json else "11 summary: ok" in said
    assert verify.main([str(tmp_path / "bad"), *more]) == 1
    said = capsys.readouterr().out
    assert json.loads(said)["where"] == "policy" if as_json else "1 policy: FAILED" in said


def test_what_cannot_be_read_is_exit_code_2(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(tmp_path / "nowhere"), "--trust", str(policy)]) == 2
    assert "expected a bundle" in capsys.readouterr().err
    assert verify.main([str(tmp_path), "--trust", str(tmp_path / "nowhere")]) == 2
    assert "trust policy" in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path: Path, policy: Path) -> None:
    verify.write_bundle(Synthetic().files(), tmp_path / "good")
    done = subprocess.run(
        [sys.executable, "-m", "expunge.verify", str(tmp_path / "good"), "--trust", str(policy)], check=False
    )
    assert done.returncode == 0


def test_a_bundle_is_not_written_over_another(tmp_path: Path) -> None:
    verify.write_bundle(Synthetic().files(), tmp_path / "bundle")
    with pytest.raises(Rejected, match="empty directory"):
        verify.write_bundle(Synthetic().files(), tmp_path / "bundle")


def test_links_and_devices_in_a_bundle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"")
    for name, make in (("link", os.symlink),):
        folder = tmp_path / name
        folder.mkdir()
        make(tmp_path / "outside", folder / bundle.CERTIFICATE)
        with pytest.raises(Rejected, match="regular files"):
            verify.read_bundle(folder)


def test_every_byte_of_a_zip_file_is_vouched_for_or_none_of_its_files(tmp_path: Path, policy: Path) -> None:
    """Times, attributes and comments of a zip file are nobody's evidence; what is in it is checked as in a directory."""
    files = Synthetic(trees=((IMAGES, 3),), asked=(Asked({0: (0,)}),), again={}, models=()).files()
    verify.write_bundle(files, tmp_path / "good.zip")
    data = (tmp_path / "good.zip").read_bytes()
    spoiled, same = tmp_path / "spoiled.zip", 0
    for at in range(len(data)):
        spoiled.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            found = verify.read_bundle(spoiled)
        except Rejected:
            continue
        if found == files:
            same += 1
        elif {name: found[name] for name in found if name != bundle.README} != {
            name: files[name] for name in files if name != bundle.README
        }:
            assert not verification.verify(found, verify.read_trust(policy)).ok, at
    adversary.refused(len(data) - same)
    adversary.let_through(same, "a zip file's times and attributes")
    assert same < len(data) / 10


def test_too_many_too_large_or_doubled_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify.write_bundle(Synthetic().files(), tmp_path / "a.zip")
    verify.write_bundle(Synthetic().files(), tmp_path / "a")
    monkeypatch.setattr(verify, "BUNDLE_FILES", 2)
    for name in ("a", "a.zip"):
        with pytest.raises(Rejected, match="at most 2 files"):
            verify.read_bundle(tmp_path / name)
    monkeypatch.setattr(verify, "BUNDLE_FILES", 20)
    monkeypatch.setattr(verify, "FILE_BYTES", 10)
    for name in ("a", "a.zip"):
        with pytest.raises(Rejected, match="at most 10 bytes"):
            verify.read_bundle(tmp_path / name)
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("x", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x", b"2")
    with pytest.raises(Rejected, match="each file once"):
        verify.read_bundle(tmp_path / "twice.zip")
