"""A certificate as a page that a person can read and print: HTML without scripts, all text escaped.

The page is a function of the certificate, the statements and the checkpoint, so that a verifier makes it anew and
compares bytes. It repeats what the issuer states and gives no verdict: what is printed cannot vouch for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from html import escape
from typing import Final

from expunge.domain import canonical
from expunge.domain.certificate import Certificate
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.note import Checkpoint
from expunge.domain.report import ALWAYS_NOT_COVERED
from expunge.domain.statement import (
    Chunk,
    Completion,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Predicate,
    Scope,
    ScopeApproved,
)
from expunge.domain.words import Level, Step

Stated = tuple[int, Predicate]
"""A statement's log index and what it says."""

NOT_IN_EVIDENCE: Final = (
    "who the person is, how their identity was checked and by which channel they asked",
    "the legal basis cited, the jurisdiction, and extensions of a time limit",
    "recipients of the data, when they were told and what they answered",
    "where each artifact was: locators are sealed, and a receipt opens those of one image",
)
"""What a deletion certificate may be asked for and the evidence log leaves out, because it would be about people."""

LEVELS: Final = {
    Level.ACKNOWLEDGED: "L0, the store acknowledged it",
    Level.UNREACHABLE: "L1, unreachable through the store",
    Level.FILE_ABSENT: "L2, absent from the store's files as scanned",
    Level.MEDIA: "L3, absent from the media",
}

_HEAD: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Statement of deletion</title>
<style>
body { font: 15px/1.45 Georgia, serif; margin: 2.5em auto; max-width: 52em; padding: 0 1em; color: #111; }
h1 { font-size: 1.6em; } h2 { font-size: 1.15em; margin: 1.8em 0 .4em; border-bottom: 1px solid #999; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; }
th { font-weight: normal; color: #555; } tr.body td { border-top: 1px solid #ddd; }
code { font: 12px/1.3 monospace; overflow-wrap: anywhere; } aside { border: 1px solid #999; padding: .1em 1em; }
@media print { body { margin: 0; font-size: 11px; } h2, tr { break-inside: avoid; } }
</style>
</head>
<body>
"""


@dataclass(slots=True)
class _Store:
    """What was stated of one tree's chunks that the claim touches (mutable)."""

    levels: set[Level] = field(default_factory=set)
    erased_by: set[str] = field(default_factory=set)
    verified_by: set[str] = field(default_factory=set)
    residue: set[str] = field(default_factory=set)
    sampled: int = 0
    times: dict[Step, list[datetime]] = field(default_factory=dict)


def render(certificate: Certificate, statements: Iterable[Stated], checkpoint: Checkpoint) -> bytes:
    """The page. `statements`: ascending by index, those of the bundle. Same values, same bytes."""
    stated = list(statements)
    body = "".join(
        (
            _HEAD,
            _opening(certificate),
            _request(certificate, stated),
            _scope(certificate, stated),
            _artifacts(certificate, stated),
            _models(certificate, stated),
            _list("What this does not cover", (*certificate.not_covered, *ALWAYS_NOT_COVERED)),
            _list("What is not in this evidence", NOT_IN_EVIDENCE),
            _log(certificate, stated, checkpoint),
            "</body>\n</html>\n",
        )
    )
    return body.encode()


def _opening(certificate: Certificate) -> str:
    said = (
        f"{_e(certificate.issuer)} states that, for this request, the provision <em>{_e(certificate.provision.value)}</em>"
        f" ended as: <strong>{_e(certificate.completed.result)}</strong>."
    )
    return (
        "<h1>Statement of deletion</h1>\n"
        f"<p>{said}</p>\n"
        "<aside><p>This page only repeats what the issuer states. It is no verdict and proves nothing by itself. Check "
        "the bundle that it came in, with keys that you had some other way: <code>expunge verify BUNDLE --trust POLICY"
        "</code>. That also compares this page, byte for byte, with the evidence.</p></aside>\n"
    )


def _request(certificate: Certificate, stated: Sequence[Stated]) -> str:
    completion = _completion(certificate, stated)
    digest = sha256(canonical.dumps(certificate.model_dump(mode="json"))).hexdigest()
    return _section(
        "Certificate",
        [
            ("Certificate (SHA-256)", _code(digest)),
            ("Format", f"version {certificate.version}"),
            ("Issuer", _e(certificate.issuer)),
            ("Request", _code(certificate.request)),
            ("Provision", _e(certificate.provision.value)),
            ("Stated on", "not stated" if completion is None else _time(completion[1].at)),
            ("Round", str(certificate.round)),
        ],
    )


def _scope(certificate: Certificate, stated: Sequence[Stated]) -> str:
    claim = certificate.claim
    rows = [("Sweep", _code(certificate.sweep)), ("Scope statement (SHA-256)", _code(certificate.scope))]
    for index, said in stated:
        if isinstance(said, Scope):
            rows += [
                ("Fixed on", f"{_time(said.at)}, log entry {index}, before anything was erased"),
                ("Class", _e(said.sweep_class)),
                ("Policy", _e(said.policy)),
                ("Selection (SHA-256)", _code(said.selection)),
                ("Catalogue as of log entry", str(said.catalogue_index)),
            ]
        elif isinstance(said, ScopeApproved):
            keys = ", ".join(_code(one) for one in said.approvers)
            rows.append(("Approved on", f"{_time(said.at)}, log entry {index}, by keys {keys}"))
    rows += [("Images", str(claim.images)), ("Artifacts", str(sum(one.leaves for one in claim.trees)))]
    rows += [
        (f"Retained for {_e(why.replace('+', ', '))}", str(count)) for why, count in sorted(claim.retained.items())
    ]
    if claim.erased_earlier:
        rows.append(("Images erased by earlier sweeps", str(claim.erased_earlier)))
    return _section("Scope", rows)


def _artifacts(certificate: Certificate, stated: Sequence[Stated]) -> str:
    scope = next((said for _, said in stated if isinstance(said, Scope)), None)
    found = _stores(certificate, stated)
    text = ["<h2>Artifacts</h2>\n"]
    for claimed in certificate.claim.trees:
        one = found[claimed.tree]
        known = scope is not None and claimed.tree < len(scope.trees)
        name = (
            f"{scope.trees[claimed.tree].kind.value} in {scope.trees[claimed.tree].store}"
            if known and scope
            else "tree"
        )
        counts = [
            f"{count.artifacts} {count.outcome.name.lower().replace('_', ' ')}"
            for count in certificate.completed.outcomes
            if count.tree == claimed.tree
        ]
        rows = [
            ("Artifacts in scope", str(claimed.leaves)),
            ("Last outcomes", ", ".join(counts) or "in the data certificate"),
            ("Seen in the store before", _span(one.times.get(Step.PRESENCE))),
            ("Hidden", _span(one.times.get(Step.HIDE))),
            ("Erased", _span(one.times.get(Step.ERASE))),
            ("Method of erasing", _many(one.erased_by)),
            ("Looked for again", _span(one.times.get(Step.ABSENCE))),
            ("Method of looking", _many(one.verified_by)),
            ("Level reached", LEVELS[min(one.levels)] if one.levels else "none stated"),
            ("Artifacts whose bytes were looked for in these chunks", str(one.sampled)),
            ("May remain in", _many(one.residue)),
        ]
        text.append(f"<h3>{_e(name)}</h3>\n{_table(rows)}")
    if not certificate.claim.trees:
        text.append("<p>None in scope.</p>\n")
    return "".join(text)


def _stores(certificate: Certificate, stated: Sequence[Stated]) -> dict[int, _Store]:
    completion = _completion(certificate, stated)
    touched = {
        (claimed.tree, chunk)
        for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=False)
        for first, count in runs
        for chunk in range(first // CHUNK_LEAVES, (first + count - 1) // CHUNK_LEAVES + 1)
    }
    found = {claimed.tree: _Store() for claimed in certificate.claim.trees}
    for index, said in stated:
        if not isinstance(said, Chunk) or (said.tree, said.start // CHUNK_LEAVES) not in touched:
            continue
        if completion is not None and index > completion[0]:
            continue
        one = found[said.tree]
        one.times.setdefault(said.step, []).append(said.at)
        one.residue.update(said.residue)
        if said.step in {Step.HIDE, Step.ERASE}:
            one.erased_by.add(said.method)
        elif said.step is Step.ABSENCE:
            one.verified_by.add(said.method)
            one.levels.add(said.level)
            one.sampled += said.sampled
    return found


def _models(certificate: Certificate, stated: Sequence[Stated]) -> str:
    if not certificate.completed.models:
        return _section("Models", [("Affected by this request", "none stated")])
    text = ["<h2>Models</h2>\n"]
    for model in certificate.completed.models:
        rows = [
            ("Remedy", _e(model.remedy.value)),
            ("Due", _time(model.due)),
            ("Stated as", _e(model.resolution)),
            *_model_rows(model.model, stated),
        ]
        text.append(f"<h3>{_e(model.model)}</h3>\n{_table(rows)}")
    return "".join(text)


def _model_rows(name: str, stated: Sequence[Stated]) -> Iterator[tuple[str, str]]:
    for index, said in stated:
        match said:
            case ModelTainted() if said.model == name:
                path = " from ".join(_e(one) for one in said.path)
                yield (
                    f"Affected (log entry {index})",
                    f"{said.images} images of the sweep, {said.direct} direct; {path}",
                )
            case ModelReplaced() if said.model == name:
                yield f"Replaced (log entry {index})", f"{_time(said.at)} by {_e(said.successor)}; {_e(said.method)}"
                yield "Weights (SHA-256)", f"{_code(said.weights)}, successor {_code(said.successor_weights)}"
                yield "Images shared by successor and exclusion", str(said.overlap)
            case ModelDestroyed() if said.model == name:
                yield f"Destroyed (log entry {index})", f"{_time(said.at)}; {_e(said.method)}; {_code(said.weights)}"
            case MetricVoid() if said.model == name:
                yield f"Metrics void (log entry {index})", _time(said.at)
            case _:
                pass


def _log(certificate: Certificate, stated: Sequence[Stated], checkpoint: Checkpoint) -> str:
    completion = _completion(certificate, stated)
    rows = [
        ("Log", _e(checkpoint.origin)),
        ("Size of the checkpoint", str(checkpoint.size)),
        ("Root (SHA-256)", _code(checkpoint.root.hex())),
        ("Statements in this bundle", str(len(stated))),
        ("Completion at log entry", "none" if completion is None else str(completion[0])),
    ]
    rows += [
        (
            f"Overdue (log entry {index})",
            f"{_e(said.provision.value)} was due {_time(said.due)}, stated {_time(said.at)}",
        )
        for index, said in stated
        if isinstance(said, Overdue)
    ]
    return _section("Evidence log", rows)


def _completion(certificate: Certificate, stated: Sequence[Stated]) -> tuple[int, Completion] | None:
    for index, said in stated:
        if isinstance(said, Completion) and said.round == certificate.round:
            return index, said
    return None


def _section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return f"<h2>{title}</h2>\n{_table(rows)}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """`rows`: HTML, escaped by the caller."""
    lines = [f'<tr class="body"><th>{name}</th><td>{value}</td></tr>\n' for name, value in rows]
    return f"<table>\n{''.join(lines)}</table>\n"


def _list(title: str, items: Iterable[str]) -> str:
    return f"<h2>{title}</h2>\n<ul>\n" + "".join(f"<li>{_e(one)}</li>\n" for one in items) + "</ul>\n"


def _many(values: Iterable[str]) -> str:
    return "; ".join(_e(one) for one in sorted(values)) or "none stated"


def _span(times: Sequence[datetime] | None) -> str:
    if not times:
        return "not stated"
    first, last = min(times), max(times)
    return _time(first) if first == last else f"{_time(first)} to {_time(last)}"


def _time(at: datetime) -> str:
    return _e(at.isoformat().replace("+00:00", "Z"))


def _code(text: str) -> str:
    return f"<code>{_e(text)}</code>"


def _e(text: str) -> str:
    return escape(text, quote=True)
