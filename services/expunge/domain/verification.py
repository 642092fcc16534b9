"""Checking a bundle offline against the verifier's own policy: bytes in, a report out. Nothing in the bundle is
believed before something pinned has vouched for it. Needs only the light core: no database, no Kafka, no numpy.

1. Policy: the certificate is of the issuer that the policy names, and the bundle holds what a bundle holds.
2. Checkpoint: the log's signature and origin; its size and root are used from here on. Cosigned by as many pinned
   witnesses, and time-stamped by a pinned authority, as the policy asks; earlier checkpoints in the bundle are its prefix.
3. Inclusion: every statement is in the log under that checkpoint, at the index it is listed with.
4. Signatures: every statement is signed by a pinned key of the only role (and store) that may make it, valid then.
5. Order: one scope statement, the one the certificate names, logged before all else; presence before each deed on a
   chunk; an order approved by two before any deed, and its scope under a checkpoint that witnesses and authorities, as
   far as the policy asks for them, vouched for before any deed; one completion statement for the certificate's round.
6. Coverage: the chunks of each tree recombine to the tree's root; each step's attempts follow from each other, sum to
   their chunk and cover only what was left open; every chunk that the claim touches has gone through all steps.
7. Claim: it opens in the scope's tree of requests, and the certificate's indices are those it fixed.
8. Outcomes: the last outcome of step absence of every leaf of the claim, counted.
9. Completion: it opens in the round's statement; its counts are those counted, its result is the one they give, and the
   models it calls replaced or destroyed are so by statements about this sweep, and due when those say.
10. Reconciliation: of those in the bundle that followed the completion the arithmetic holds, and what was verified absent
   is not among what they found present. An order's data certificate must have one without differences, where the policy
   asks for it; "not there yet" is what this step says until the rescanner has counted.
11. Summary: what was verified, to which level, by which method, and what was not covered. The HTML page, if there is
   one, is exactly what this verifier makes of the same evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from expunge.domain import accounting, attestation, evidence, note, page
from expunge.domain import bundle as bundles
from expunge.domain.accounting import Counts
from expunge.domain.certificate import Certificate
from expunge.domain.coverage import DEEDS
from expunge.domain.errors import Tampered
from expunge.domain.evidence import Sweep
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.report import Report, Steps, StoreSummary, Summary
from expunge.domain.statement import Chunk, ReconciledCount, Scope
from expunge.domain.trust import Trust
from expunge.domain.words import FINAL_ABSENT, Level, Outcome, Step

STEPS: Final = (
    "policy",
    "checkpoint",
    "inclusion",
    "signatures",
    "order",
    "coverage",
    "claim",
    "outcomes",
    "completion",
    "reconciliation",
    "summary",
)


def verify(files: Mapping[str, bytes], trust: Trust) -> Report:
    """Check a bundle; the steps are those of this module's docstring. Never raises on what is in the bundle: the report
    ends with the first step that failed, and says where."""
    steps = Steps(STEPS)
    passed = steps.passed
    try:
        # 1. Policy
        bundle = bundles.load(files)
        certificate = bundle.certificate
        evidence.check_issuer(certificate, trust)
        passed(f"certificate by {trust.issuer}; {len(trust.keys)} keys pinned")
        # 2. Checkpoint
        checkpoint = evidence.checkpoint(bundle, trust)
        attested = evidence.attested(bundle, trust)
        stated = attestation.in_words(attested.last)
        passed(f"log {checkpoint.origin} at size {checkpoint.size}{stated}")
        # 3. Inclusion
        evidence.check_inclusion(bundle, checkpoint)
        passed(f"{len(bundle.statements)} statements are in the log")
        # 4. Signatures
        entries = evidence.signed(bundle, trust)
        passed(f"{len(entries)} statements signed under their roles")
        # 5. Order
        sweep = evidence.sorted_out(entries, certificate, trust)
        seen = evidence.check_attested(sweep.entries, (sweep.scope_entry, sweep.scope), sweep.chunks, attested, trust)
        passed(
            f"scope at index {sweep.scope_entry.index} before every deed, completion at {sweep.completion_entry.index}"
            + (f"; {seen}" if seen else "")
        )
        # 6. Coverage
        chunks = accounting.folded(sweep)
        accounting.check_roots(bundle, sweep.scope, chunks)
        covered = accounting.check_touched(certificate, sweep.scope, chunks)
        passed(covered)
        # 7. Claim
        accounting.check_claim(certificate, sweep.scope)
        passed(f"{sum(one.leaves for one in certificate.claim.trees)} artifacts, fixed with the scope")
        # 8. Outcomes
        counts = accounting.counted(certificate, chunks)
        passed(accounting.in_words(counts))
        # 9. Completion
        accounting.check_completion(certificate, sweep, counts)
        passed(f"{certificate.provision.value}: {certificate.completed.result}, as the outcomes give it")
        # 10. Reconciliation
        seen, reconciled = accounting.check_reconciled(certificate, sweep, chunks, needed=trust.reconciled_orders)
        passed(seen)
        # 11. Summary
        _check_page(bundle, sweep, checkpoint)
        summary = _summary(certificate, sweep, counts, checkpoint, reconciled)
        passed(f"{len(summary.stores)} stores, {len(summary.models)} models")
    except Tampered as error:
        return Report(steps=steps.failed(error), where=error.where, summary=None)
    return Report(steps=steps.taken, where=None, summary=summary)


def _check_page(bundle: bundles.Bundle, sweep: Sweep, checkpoint: note.Checkpoint) -> None:
    if bundle.page is None:
        return
    stated = [(entry.index, entry.predicate) for entry in sweep.entries]
    if page.render(bundle.certificate, stated, checkpoint) != bundle.page:
        raise Tampered(bundles.PAGE, "expected the page that this evidence makes, got another")


@dataclass(slots=True)
class _Seen:
    """What statements about one tree said of the claim's chunks (mutable)."""

    level: Level | None = None
    methods: set[str] = field(default_factory=set)
    erased_by: set[str] = field(default_factory=set)
    residue: set[str] = field(default_factory=set)
    at: datetime | None = None
    sampled: int = 0


def _summary(
    certificate: Certificate,
    sweep: Sweep,
    counts: Counts,
    checkpoint: note.Checkpoint,
    reconciled: tuple[ReconciledCount, ...],
) -> Summary:
    touched = {
        (claimed.tree, chunk)
        for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=True)
        for chunk in accounting.chunks_of(runs, sweep.scope.trees[claimed.tree].leaves)
    }
    seen = {tree: _Seen() for tree in counts}
    for _, chunk in sweep.chunks:
        if (chunk.tree, chunk.start // CHUNK_LEAVES) in touched and any(
            code in FINAL_ABSENT for code, _ in chunk.outcomes
        ):
            _note(seen[chunk.tree], chunk)
    stores = tuple(_store(sweep.scope, tree, counts[tree], seen[tree]) for tree in sorted(counts))
    return Summary(
        issuer=certificate.issuer,
        request=certificate.request,
        provision=certificate.provision,
        sweep=certificate.sweep,
        result=certificate.completed.result,
        images=certificate.claim.images,
        stores=stores,
        retained=certificate.claim.retained,
        erased_earlier=certificate.claim.erased_earlier,
        models=certificate.completed.models,
        not_covered=certificate.not_covered,
        log=checkpoint.origin,
        log_size=checkpoint.size,
        scope_index=sweep.scope_entry.index,
        completion_index=sweep.completion_entry.index,
        scope_at=sweep.scope.at,
        completed_at=sweep.completion.at,
        reconciled=reconciled,
    )


def _note(seen: _Seen, chunk: Chunk) -> None:
    if chunk.step is not Step.HIDE:  # what hiding leaves is what erasing is for
        seen.residue.update(chunk.residue)
    if chunk.step in DEEDS:
        seen.erased_by.add(chunk.method)
    elif chunk.step is Step.ABSENCE:
        seen.level = chunk.level if seen.level is None else min(seen.level, chunk.level)
        seen.methods.add(chunk.method)
        seen.sampled += chunk.sampled
        seen.at = chunk.at if seen.at is None else max(seen.at, chunk.at)


def _store(scope: Scope, tree: int, counts: Counter[Outcome], seen: _Seen) -> StoreSummary:
    return StoreSummary(
        kind=scope.trees[tree].kind,
        store=scope.trees[tree].store,
        outcomes={code.name.lower().replace("_", " "): number for code, number in sorted(counts.items())},
        absent=sum(number for code, number in counts.items() if code in FINAL_ABSENT),
        level=seen.level,
        methods=tuple(sorted(seen.methods)),
        erased_by=tuple(sorted(seen.erased_by)),
        residue=tuple(sorted(seen.residue)),
        sampled=seen.sampled,
        verified_at=seen.at,
    )
