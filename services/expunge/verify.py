"""The offline verifier's edge: bundles as directories or zip files, receipts and policies as files. Imports only the
domain.

    python -m expunge.verify BUNDLE --trust POLICY [--json]
    python -m expunge.verify RECEIPT --trust POLICY [--sweep BUNDLE] [--photo FILE] [--json]

Exit codes: 0 every step held, 1 one did not, 2 a file could not be read.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from expunge.domain import bundle, canonical, challenge, opening, receipt, trust, verification
from expunge.domain.errors import ExpungeError, Rejected
from expunge.domain.opening import ReceiptReport
from expunge.domain.report import Report
from expunge.domain.trust import Trust

BUNDLE_FILES: Final = 512
"""Most files in a bundle."""
FILE_BYTES: Final = 1 << 32
"""Largest file in a bundle, and all of one in a zip file, unpacked, bytes."""

_BAD_ZIP: Final = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError)
"""What the standard library raises on a zip file that is damaged, encrypted or packed in a way it does not know."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every zip member, so that the same bundle is the same bytes."""


def read_bundle(path: Path, sweep: Path | None = None) -> dict[str, bytes]:
    """The files of a bundle: a directory, a zip file, or one certificate file beside the files that its `sweep` shares
    (a directory or zip). Raises `Rejected("unreadable-bundle")`."""
    try:
        files = dict(bundle_files(sweep)) if sweep else {}
        if sweep and path.is_file() and not zipfile.is_zipfile(path):
            return files | {bundle.CERTIFICATE: _limited(path.read_bytes(), path.name)}
        return files | bundle_files(path)
    except OSError as error:
        raise Rejected("unreadable-bundle", f"expected a bundle, got {type(error).__name__}") from error


def bundle_files(path: Path) -> dict[str, bytes]:
    """The files in one directory or zip file, by their path inside. Raises `Rejected("unreadable-bundle")`, `OSError`."""
    if path.is_dir():
        return _in_directory(path)
    try:
        return _in_zip(path)
    except _BAD_ZIP as error:
        raise Rejected("unreadable-bundle", f"expected a bundle, got {type(error).__name__}") from error


def write_bundle(files: Mapping[str, bytes], path: Path) -> None:
    """Write a bundle: a zip file if `path` ends in .zip, else a directory that must not exist or be empty. Raises
    `Rejected("not-empty")`, and `OSError` when it cannot be written: nothing of it is left behind then."""
    if path.suffix == ".zip":
        write_whole(path, zip_bundle(files))
        return
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise Rejected("not-empty", "expected an empty directory for the bundle, got one with files")
    try:
        for name, data in files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    except OSError:
        for part in path.iterdir():
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a new file, or none. Raises `OSError`, also for one that is there."""
    with path.open("xb", buffering=0) as file:
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            path.unlink()
            raise


def zip_bundle(files: Mapping[str, bytes]) -> bytes:
    """A bundle as a zip file. The same files give the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def read_trust(path: Path) -> Trust:
    """The verifier's policy file. Raises `Rejected("bad-policy")`."""
    try:
        return trust.parse(path.read_bytes())
    except OSError as error:
        raise Rejected("bad-policy", f"expected a trust policy file, got {type(error).__name__}") from error


def verify(path: Path, policy: Trust, sweep: Path | None = None) -> Report:
    """Check the bundle at `path` (`domain.verification`)."""
    return verification.verify(read_bundle(path, sweep), policy)


def verify_any(
    path: Path, policy: Trust, sweep: Path | None = None, photo: Path | None = None
) -> Report | ReceiptReport:
    """Check the bundle (`domain.verification`) or receipt (`domain.opening`) at `path`. `photo`: the holder's own copy,
    for a receipt."""
    data = read_receipt(path)
    if data is None:
        return verify(path, policy, sweep)
    try:
        files = bundle_files(sweep) if sweep else None
        copy = hashlib.sha256(photo.read_bytes()).digest() if photo else None
    except OSError as error:
        raise Rejected("unreadable-bundle", f"expected --sweep and --photo, got {type(error).__name__}") from error
    return opening.verify(data, policy, sweep=files, copy=copy)


def verify_challenge(
    answer: bytes, files: Mapping[str, bytes], policy: Trust, checkpoint: bytes, count: int
) -> challenge.Answered:  # fmt: skip
    """Check the answer to a challenge (`domain.challenge`). Raises `Tampered` naming the first thing that is wrong."""
    return challenge.verify(answer, files, policy, checkpoint, count)


def read_receipt(path: Path) -> bytes | None:
    """The bytes of a receipt, None for anything else."""
    try:
        if (
            path.is_file()
            and path.stat().st_size <= receipt.READ_BYTES
            and receipt.is_receipt(data := path.read_bytes())
        ):
            return data
    except OSError:
        pass  # said by who reads it as a bundle
    return None


def as_json(report: Report | ReceiptReport) -> bytes:
    """The report for machines, canonical JSON."""
    return canonical.dumps({"ok": report.ok, **report.model_dump(mode="json")})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m expunge.verify", description="Check an evidence bundle offline.")
    parser.add_argument("bundle", type=Path, help="directory, zip file, receipt, or a certificate with --sweep")
    parser.add_argument("--trust", type=Path, required=True, help="your own policy file")
    parser.add_argument("--sweep", type=Path, help="directory or zip with the files that a sweep's certificates share")
    parser.add_argument("--photo", type=Path, help="your own copy of the photo, to compare with a receipt")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(arguments)
    try:
        report = verify_any(chosen.bundle, read_trust(chosen.trust), chosen.sweep, chosen.photo)
    except ExpungeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    text = as_json(report).decode() if chosen.json else "\n".join(report.lines())
    sys.stdout.write(text + "\n")
    return 0 if report.ok else 1


def _in_directory(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for folder, folders, names in os.walk(path):
        for name in [*names, *folders]:
            one = Path(folder, name)
            if one.is_symlink() or not (one.is_dir() or one.is_file()):
                raise Rejected("unreadable-bundle", "expected regular files in a bundle, got a link or a device")
        for name in names:
            one = Path(folder, name)
            found[one.relative_to(path).as_posix()] = _limited(one.read_bytes(), name)
        _check_count(len(found))
    return found


def _in_zip(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
        _check_count(len(members))
        if sum(one.file_size for one in members) > FILE_BYTES:
            raise Rejected("unreadable-bundle", f"expected at most {FILE_BYTES} bytes unpacked")
        for one in members:
            if one.filename in found:
                raise Rejected("unreadable-bundle", "expected each file once")
            found[one.filename] = archive.read(one)
    return found


def _check_count(files: int) -> None:
    if files > BUNDLE_FILES:
        raise Rejected("unreadable-bundle", f"expected at most {BUNDLE_FILES} files, got {files}")


def _limited(data: bytes, name: str) -> bytes:
    if len(data) > FILE_BYTES:
        raise Rejected("unreadable-bundle", f"expected at most {FILE_BYTES} bytes in {name}, got {len(data)}")
    return data


if __name__ == "__main__":
    sys.exit(main())
