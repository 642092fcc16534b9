"""The page in a bundle: for people, without scripts, saying what the evidence says and nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from expunge.domain import bundle, note, page, verification
from expunge.domain.report import ALWAYS_NOT_COVERED
from expunge.domain.words import Outcome
from tests import evidence
from tests.evidence import IMAGES, VECTORS, Asked, Synthetic, order_sweep

HOSTILE = '<script>alert("1")</script>&\'"'


class Tags(HTMLParser):
    """What elements and attributes a page has, and its text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(built: Synthetic, number: int = 0, /, **changes: Any) -> Tags:
    return Tags(built.files(number, **changes)[bundle.PAGE])


def test_a_page_says_what_the_evidence_says() -> None:
    shown = page_of(order_sweep(models=(("face@1", "open"), ("door@1", "replaced")))).text
    for text in (
        evidence.ISSUER, evidence.SWEEP, evidence.request_id(0), "complete", "L2, absent from the store's files as scanned",
        "image in photos", "embedding in faces", "1100 gone", "free blocks", "erase of faces; hide of faces",
        "Images erased by earlier sweeps4", evidence.approver(1).key_id, "backups until 2026-06-01", *ALWAYS_NOT_COVERED,
        *page.NOT_IN_EVIDENCE, "face@1", "by door@1+1", evidence.ORIGIN, "2026-03-01T12:00:00Z",
    ):  # fmt: skip
        assert text in shown, text
    assert "account, licensed" in page_of(Synthetic()).text


def test_a_page_gives_no_verdict() -> None:
    shown = page_of(order_sweep()).text.lower()
    assert "no verdict" in shown
    assert "expunge verify" in shown
    for word in ("irrecoverable", "compliant", "certified", "valid", "guarantee"):
        assert word not in shown


def test_a_page_has_no_scripts_links_or_images_and_can_be_printed() -> None:
    found = page_of(order_sweep())
    assert not found.tags & {"script", "a", "img", "link", "iframe", "form", "object", "base"}
    assert not [name for name in found.attributes if name.startswith("on") or name in {"href", "src", "style"}]
    text = order_sweep().files()[bundle.PAGE].decode()
    assert "@media print" in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("field", ["issuer", "not_covered"])
def test_what_the_issuer_writes_is_escaped(field: str) -> None:
    value: Any = HOSTILE if field == "issuer" else (HOSTILE,)
    found = page_of(Synthetic(), **{field: value})
    assert "script" not in found.tags
    assert HOSTILE in found.text


def test_store_and_model_names_are_escaped() -> None:
    store = (IMAGES[0], HOSTILE)
    built = Synthetic(
        trees=((store, 10), (VECTORS, 10)),
        asked=(Asked({0: (0,)}, {HOSTILE: 1}),),
        again={},
        models=((HOSTILE, "open"),),
    )
    found = page_of(built)
    assert "script" not in found.tags
    assert found.text.count(HOSTILE) >= 3
    assert verification.verify(built.files(), evidence.trust((store, VECTORS))).ok


def test_the_same_evidence_makes_the_same_page() -> None:
    assert Synthetic().files()[bundle.PAGE] == Synthetic().files()[bundle.PAGE]


def test_a_page_that_says_something_else_fails_and_is_named() -> None:
    built = Synthetic(outcomes={(0, 1): Outcome.FAILED})
    files = built.files()
    assert verification.verify(files, evidence.trust()).ok
    better = files[bundle.PAGE].replace(b"<strong>partial</strong>", b"<strong>complete</strong>")
    assert better != files[bundle.PAGE]
    report = verification.verify(files | {bundle.PAGE: better}, evidence.trust())
    assert (report.ok, report.where) == (False, bundle.PAGE)
    report = verification.verify(files | {bundle.PAGE: built.files(1)[bundle.PAGE]}, evidence.trust())
    assert (report.ok, report.where) == (False, bundle.PAGE)


def test_a_bundle_without_its_page_still_verifies() -> None:
    assert verification.verify(Synthetic().files(with_page=False), evidence.trust()).ok


def test_a_page_of_nothing_in_scope_says_so() -> None:
    found = page_of(Synthetic(), 2)
    assert "None in scope" in found.text
    assert "Retained for account5" in found.text


def test_a_page_without_statements_states_nothing() -> None:
    built = Synthetic()
    data = page.render(built.certificate(), [], note.Checkpoint("log", 0, bytes(32)))
    assert len(re.findall(rb"not stated|none stated", data)) > 10
