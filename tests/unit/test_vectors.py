"""The vectors for other languages are what the code gives now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.domain import trust, verification
from tests import vectors


def test_committed_vectors_have_not_drifted() -> None:
    assert vectors.drift() == []


def test_the_bundles_of_the_vectors_verify() -> None:
    """As another language's verifier would read them."""
    read = json.loads((vectors.FOLDER / "bundle.json").read_text(encoding="utf-8"))
    policy = trust.parse(read["policy_text"].encode())
    for one in read["bundles"]:
        files = {path: text.encode() for path, text in one["files_text"].items()}
        report = verification.verify(files, policy)
        assert report.ok, list(report.lines())
        assert report.verified().result == one["result"]


def test_vectors_are_written_where_asked_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vectors, "FOLDER", tmp_path / "vectors")
    assert vectors.main(["--check"]) == 1
    assert vectors.main([]) == 0
    assert vectors.main(["--check"]) == 0
    assert capsys.readouterr().out.endswith("vectors are up to date\n")
    (tmp_path / "vectors" / "leaf.json").write_text("{}", encoding="utf-8")
    assert vectors.drift() == ["leaf.json"]
    assert all("do not edit" in json.loads(text)["comment"] for text in vectors.files().values())
