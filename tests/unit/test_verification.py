"""What the verifier accepts, and the adversary's set: each of these must fail and name the step that found it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import pytest

from expunge.domain import attestation, bundle, canonical, certificate, dsse, merkle, note, statement, verification
from expunge.domain.certificate import ModelDue, OutcomeCount, TreeClaim
from expunge.domain.errors import Tampered
from expunge.domain.report import Report
from expunge.domain.statement import Chunk
from expunge.domain.words import Kind, Level, Outcome, Provision, Remedy, Role, Step
from tests import adversary, evidence
from tests.evidence import (
    IMAGES,
    ORIGIN,
    START,
    SWEEP,
    VECTORS,
    ZERO,
    Asked,
    Store,
    Synthetic,
    only,
    order_sweep,
    request_id,
    sign,
    signing_key,
    trust,
    trusted,
)

Files = dict[str, bytes]
Model = tuple[str, Literal["open", "replaced", "destroyed"]]


def check(files: Mapping[str, bytes], *stores: Store, **changes: object) -> Report:
    return verification.verify(files, trust(stores or (IMAGES, VECTORS), **changes))


def fails(files: Mapping[str, bytes], step: str, detail: str, *stores: Store, **changes: object) -> Report:
    report = check(files, *stores, **changes)
    last = report.steps[-1]
    assert (last.ok, last.name) == (False, step), "\n".join(report.lines())
    assert detail in last.detail
    assert report.where
    assert not report.ok
    with pytest.raises(Tampered):
        report.verified()
    adversary.refused()
    return report


def with_certificate(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    value = json.loads(files[bundle.CERTIFICATE])
    change(value)
    return files | {bundle.CERTIFICATE: canonical.dumps(value)}


def only_statements(built: Synthetic, keep: Callable[[str], bool], **changes: object) -> Files:
    """The bundle without some statements: those that are left still prove their inclusion."""
    kept = [at for at in built.kept() if keep(built.names[at])]
    return bundle.build(built.certificate(**changes), built.log.logged(kept), built.log.checkpoint())


def spoiled(step: Step, tree: int, first: int, of: int = 0, /, **changes: object) -> Callable[[Chunk], Chunk]:
    def spoil(chunk: Chunk) -> Chunk:
        wanted = (chunk.step, chunk.tree, chunk.start, chunk.attempt) == (step, tree, first, of)
        return only(chunk, **changes) if wanted else chunk

    return spoil


def moved(name: str, before: str) -> Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        mine = [one for one in entries if one[0] == name]
        rest = [one for one in entries if one[0] != name]
        at = next(at for at, one in enumerate(rest) if one[0] == before)
        return rest[:at] + mine + rest[at:]

    return order


# What is accepted


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("extra", [{}, {"roots": True}, {"leaves": True}, {"roots": True, "leaves": True}])
def test_a_request_of_a_shared_sweep_verifies(number: int, extra: dict[str, Any]) -> None:
    report = check(Synthetic().files(number, **extra))
    assert report.ok, list(report.lines())
    assert [step.name for step in report.steps] == list(verification.STEPS)
    assert report.verified().request == request_id(number)


def test_an_order_verifies_and_its_summary_says_what_was_seen() -> None:
    summary = check(order_sweep().files()).verified()
    assert summary.result == "complete"
    assert [(one.kind, one.store, one.absent) for one in summary.stores] == [
        (Kind.IMAGE, "photos", 1100),
        (Kind.EMBEDDING, "faces", 1100),
    ]
    assert summary.stores[1].level is Level.FILE_ABSENT
    assert summary.stores[1].methods == ("absence of faces",)
    assert summary.stores[1].erased_by == ("erase of faces", "hide of faces")
    assert summary.stores[0].residue == ("free blocks",)
    assert summary.erased_earlier == 4


def test_the_words_never_claim_more_than_was_seen() -> None:
    text = "\n".join(check(order_sweep(models=(("face@1", "open"), ("door@1", "destroyed"))).files()).lines()).lower()
    assert "verified absent at 2026-03-01t12:40:00+00:00 by absence of photos, level l2" in text
    assert "4 images erased by earlier sweeps" in text
    assert "model door@1: retrain, destroyed" in text
    for word in ("irrecoverable", "compliant", "proves"):
        assert word not in text
    assert "2 artifacts retained for account, licensed" in "\n".join(check(Synthetic().files()).lines())


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.EXCLUDED, "held"),
        (Outcome.BLOCKED, "blocked"),
        (Outcome.FAILED, "partial"),
        (Outcome.PRESENT, "unverified"),
        (Outcome.OPEN, "unverified"),
        (Outcome.ABSENT_BEFORE, "complete"),
        (Outcome.GONE_EARLIER, "complete"),
    ],
)
def test_the_result_follows_from_the_outcomes(outcome: Outcome, result: str) -> None:
    built = Synthetic(outcomes={(0, 1): outcome})
    assert built.completed[0].result == result
    assert check(built.files()).verified().result == result
    assert built.completed[1].result == "complete"  # one artifact holds up one request
    assert check(built.files(1)).ok


def test_a_store_where_nothing_is_absent_has_no_level() -> None:
    built = Synthetic(outcomes={(1, 7): Outcome.FAILED, (1, 8): Outcome.FAILED})
    summary = check(built.files()).verified()
    assert (summary.stores[1].absent, summary.stores[1].outcomes) == (0, {"failed": 2})
    assert not [line for line in summary.lines() if "in faces" in line and "verified absent" in line]


def test_cancelled_is_another_word_for_held() -> None:
    built = Synthetic(outcomes={(0, 1): Outcome.EXCLUDED}, completed_changes={"result": "cancelled"})
    assert check(built.files()).ok


@pytest.mark.parametrize("keep_counts", [True, False])
def test_a_models_certificate_closes_when_each_model_is_resolved(keep_counts: bool) -> None:  # noqa: FBT001
    models: Sequence[Model] = (("face@1", "replaced"), ("door@1", "destroyed"))
    changes: dict[str, object] = {} if keep_counts else {"outcomes": ()}
    built = Synthetic(provision=Provision.MODELS, models=models, completed_changes=changes)
    assert check(built.files()).verified().result == "complete"


def test_models_that_are_open_leave_it_unverified_or_overdue() -> None:
    dues = [ModelDue(model="m", remedy=Remedy.RETRAIN, due=START, resolution="open")]
    rule = certificate.result_of
    assert rule(Provision.MODELS, {}, dues) == "unverified"
    assert rule(Provision.MODELS, {}, dues, at=START) == "unverified"
    assert rule(Provision.MODELS, {}, dues, at=START + timedelta(seconds=1)) == "overdue"


def test_statements_after_the_completion_do_not_count() -> None:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        late = [one for one in entries if one[0].endswith(" 1") and " 0 1024 " in one[0]]
        return [one for one in entries if one not in late] + late

    assert check(Synthetic(order=order).files()).ok  # leaves 1029 and 1030 are no one's here


def test_requests_do_not_wait_for_chunks_of_others() -> None:
    built = Synthetic()

    def keep(name: str) -> bool:
        return not name.startswith("absence 0 2048")  # only request 1 has a leaf there

    assert check(only_statements(built, keep)).ok
    kept = [at for at in built.kept() if keep(built.names[at])]
    other = bundle.build(built.certificate(1), built.log.logged(kept), built.log.checkpoint())
    fails(other, "coverage", "step absence")


# 1. Policy and shape


def test_a_certificate_of_another_issuer_fails() -> None:
    fails(Synthetic().files(issuer="Someone Else"), "policy", "another issuer")


@pytest.mark.parametrize("path", [bundle.CERTIFICATE, bundle.STATEMENTS, bundle.CHECKPOINT])
def test_a_missing_file_is_named(path: str) -> None:
    files = Synthetic().files()
    del files[path]
    assert fails(files, "policy", "got none").where == path


@pytest.mark.parametrize("path", ["keys.json", "sweep/leaf-hashes/00.bin", "sweep/leaf-hashes/../x.bin", "trust.json"])
def test_an_unknown_file_is_refused(path: str) -> None:
    fails(Synthetic().files() | {path: b""}, "policy", "only files that a bundle has")


def test_a_certificate_has_one_spelling() -> None:
    files = Synthetic().files()
    data = files[bundle.CERTIFICATE]
    fails(files | {bundle.CERTIFICATE: b" " + data}, "policy", "another spelling")
    fails(files | {bundle.CERTIFICATE: b'{"version":1,' + data[1:]}, "policy", "another spelling")
    fails(files | {bundle.CERTIFICATE: b"{}"}, "policy", "got something else at")
    surrogate = data.replace(b"backups", b"\\ud800")
    fails(files | {bundle.CERTIFICATE: surrogate}, "policy", "expected")


def test_a_value_without_a_canonical_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Synthetic().files()

    def refuse(_value: object) -> bytes:
        raise ValueError("no form")

    monkeypatch.setattr(canonical, "dumps", refuse)
    fails(files, "policy", "canonical form")


def test_statements_have_one_spelling_and_ascend() -> None:
    files = Synthetic().files()
    text = files[bundle.STATEMENTS]
    lines = text.splitlines(keepends=True)
    fails(files | {bundle.STATEMENTS: text[:-1]}, "policy", "end in a newline")
    fails(files | {bundle.STATEMENTS: text.replace(b'"proof":', b'"proof": ', 1)}, "policy", "canonical JSON")
    fails(files | {bundle.STATEMENTS: lines[1] + b"".join(lines)}, "policy", "an index over")
    fails(files | {bundle.STATEMENTS: lines[0] + text}, "policy", "an index over")


# 2. Checkpoint


def test_the_checkpoint_is_the_logs_own() -> None:
    files = Synthetic().files()
    other = note.sign_checkpoint(note.Checkpoint(ORIGIN, 3, bytes(32)), signing_key(Role.SCOPE), ORIGIN)
    fails(files | {bundle.CHECKPOINT: other}, "checkpoint", "known key")
    fails(files | {bundle.CHECKPOINT: b"\xff"}, "checkpoint", "UTF-8")
    fails(files, "checkpoint", "origin", origin="log.example/other")


# 3. Inclusion


def test_a_statement_that_is_not_in_the_log_fails() -> None:
    built = Synthetic()
    logged = built.log.logged(built.kept())
    forged = bundle.Logged(logged[3].index, sign(built.scope), logged[3].path)
    files = bundle.build(built.certificate(), [*logged[:3], forged, *logged[4:]], built.log.checkpoint())
    assert fails(files, "inclusion", "lead to the root").where == f"statement {forged.index}"


def test_a_log_with_a_statement_swapped_and_rehashed_needs_the_logs_signature() -> None:
    built = Synthetic()
    files = built.files()
    built.log.entries[4] = built.log.entries[5]
    again = built.files()
    fails(again | {bundle.CHECKPOINT: files[bundle.CHECKPOINT]}, "inclusion", "root")


# 4. Signatures


def test_a_statement_under_the_wrong_role_fails() -> None:
    for name, role in (("scope", Role.CERTIFIER), ("completion", Role.SCOPE), ("tainted", Role.RESCANNER)):
        fails(Synthetic(keys={name: signing_key(role)}).files(), "signatures", "by a pinned")


def test_a_rescan_under_the_executors_key_fails() -> None:
    keys = {"absence 0 0 0": signing_key(Role.EXECUTOR, IMAGES[1])}
    fails(Synthetic(keys=keys).files(), "signatures", "by a pinned rescanner")


def test_an_executor_of_another_store_fails() -> None:
    keys = {"erase 0 0 0": signing_key(Role.EXECUTOR, VECTORS[1])}
    fails(Synthetic(keys=keys).files(), "signatures", "executor key of store photos")


def test_a_store_without_a_pinned_key_is_named() -> None:
    fails(Synthetic().files(), "signatures", "executor key of store faces, the policy has none", IMAGES)


@pytest.mark.parametrize("change", [{"valid_to": START}, {"valid_from": START + timedelta(days=50)}])
def test_an_expired_or_future_key_fails(change: dict[str, object]) -> None:
    policy = trust()
    keys = tuple(trusted(Role.SCOPE, **change) if one.role is Role.SCOPE else one for one in policy.keys)
    fails(Synthetic().files(), "signatures", "scope valid at", keys=keys)


def test_a_revoked_key_counts_only_for_what_was_logged_before() -> None:
    """Whatever time a statement states: the thief of a key dates it back, but cannot place it back in the log."""
    built = Synthetic()
    place = built.names.index("absence 0 0 0")
    for index, held in ((place, False), (len(built.names), True)):
        keys = tuple(
            trusted(Role.RESCANNER, revoked_at_index=index) if one.role is Role.RESCANNER else one
            for one in trust().keys
        )
        if held:
            assert check(built.files(), keys=keys).ok
        else:
            fails(built.files(), "signatures", f"revoked at log index {place}", keys=keys)


def test_statements_under_a_rotated_key_verify_in_its_window_only() -> None:
    after = dsse.SigningKey.from_seed(b"n" * 32)
    turn = START + timedelta(minutes=35)  # between erase and absence
    both = [
        trusted(Role.RESCANNER, valid_to=turn),
        trusted(Role.RESCANNER, name="rescanner-2", public=after.public.to_base64(), valid_from=turn),
    ]
    keys = (*(one for one in trust().keys if one.role is not Role.RESCANNER), *both)
    late = {name: after for name in Synthetic().names if name.startswith("absence")}
    assert check(Synthetic(keys=late).files(), keys=keys).ok
    fails(Synthetic().files(), "signatures", "rescanner valid at", keys=keys)  # the old key went on
    early = late | {name: after for name in Synthetic().names if name.startswith("presence")}
    fails(Synthetic(keys=early).files(), "signatures", "rescanner-2 was not", keys=keys)


@pytest.mark.parametrize(
    "odd",
    [
        statement.KeyDestroyed(bucket=START.date(), at=START),
        statement.KeyEvent(event="added", role=Role.SCOPE, store=None, key_id="1" * 64, since=START, at=START),
    ],
    ids=lambda one: type(one).__name__,
)
def test_key_statements_in_a_bundle_are_refused(odd: statement.KeyDestroyed | statement.KeyEvent) -> None:
    """A key that the bundle brings, or calls gone, is nothing to a verifier: the policy decides."""

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("odd", sign(odd))]

    fails(Synthetic(order=order).files(), "order", "another kind")


def test_a_payload_that_is_no_statement_fails() -> None:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("odd", dsse.sign(b"{}", statement.PAYLOAD_TYPE, signing_key(Role.SCOPE)))]

    fails(Synthetic(order=order).files(with_page=False), "signatures", "in-toto")


@pytest.mark.parametrize(
    "respelled",
    [
        lambda data: data.replace(b'"predicate":', b'"predicate": ', 1),
        lambda data: data.replace(b'"images":11', b'"images":11.0', 1),
        lambda data: data.replace(b'"images":11', b'"images":"11"', 1),
        lambda data: data.replace(b'"2026-03-01T12:00:00Z"', b'"2026-03-01T13:00:00+01:00"', 1),
        lambda data: data.replace(b'"2026-03-01T12:00:00Z"', b"1772366400", 1),
        lambda data: data.replace(b'"excluded":0', b'"excluded":false', 1),
    ],
)
def test_a_statement_has_one_spelling(respelled: Callable[[bytes], bytes]) -> None:
    """Signed by the right key, and yet refused: another verifier could read another value."""

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        before = dsse.parse(dict(entries)["scope"]).payload
        after = respelled(before)
        assert after != before
        odd = dsse.sign(after, statement.PAYLOAD_TYPE, signing_key(Role.SCOPE))
        return [(name, odd if name == "scope" else data) for name, data in entries]

    fails(Synthetic(order=order).files(with_page=False), "signatures", "canonical JSON")


def test_a_payload_of_another_type_fails() -> None:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        payload = dsse.parse(dict(entries)["scope"]).payload
        odd = dsse.sign(payload, "text/plain", signing_key(Role.SCOPE))
        return [(name, odd if name == "scope" else data) for name, data in entries]

    fails(Synthetic(order=order).files(), "signatures", "payload type")


def test_a_second_signature_rides_along_with_nothing() -> None:
    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        value = json.loads(dict(entries)["scope"])
        value["signatures"] *= 2
        return [(name, canonical.dumps(value) if name == "scope" else data) for name, data in entries]

    fails(Synthetic(order=order).files(), "signatures", "one signature")


def test_a_taint_without_the_scope_that_dates_it_fails() -> None:
    built = Synthetic()
    fails(only_statements(built, lambda name: name != "scope"), "signatures", "gives it a time")


# 5. Order


def test_no_scope_and_two_scopes_fail() -> None:
    built = Synthetic(models=())
    fails(only_statements(built, lambda name: name != "scope"), "order", "one scope statement, got 0")

    def twice(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("scope2", sign(built.scope.model_copy(update={"images": 12})))]

    fails(Synthetic(models=(), order=twice).files(), "order", "one scope statement, got 2")


def test_a_certificate_for_another_scope_or_sweep_fails() -> None:
    fails(Synthetic().files(scope=ZERO), "order", "that the certificate names")
    fails(Synthetic().files(sweep=SWEEP[:-1] + "2"), "order", "that the certificate names")


def test_a_scope_sealed_after_the_deed_fails() -> None:
    def late(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        scope = [one for one in entries if one[0] == "scope"]
        rest = [one for one in entries if one[0] != "scope"]
        return rest[:-2] + scope + rest[-2:]

    fails(Synthetic(order=late).files(), "order", "logged before")


@pytest.mark.parametrize("name", ["erase 0 0 0", "hide 1 0 0"])
def test_a_deed_before_presence_fails(name: str) -> None:
    _, tree, start, _ = name.split()
    fails(Synthetic(order=moved(name, f"presence {tree} {start} 0")).files(), "order", "presence to be recorded")


def strangers(built: Synthetic) -> list[tuple[statement.Predicate, str]]:
    other = SWEEP[:-1] + "9"
    void = statement.ScopeVoid(sweep=SWEEP, scope=built.scope_digest, reason="cancelled", at=START)
    metric = statement.MetricVoid(sweep=other, scope=built.scope_digest, model="m", images=1, at=START)
    tainted = built.tainted("x").model_copy(update={"scope": ZERO})
    late = statement.Overdue(sweep=other, provision=Provision.DATA, due=START, at=START)
    resolved = built.resolved("face@1", "destroyed").model_copy(update={"sweeps": (other,)})
    return [
        (void, "this one is void"),
        (metric, "this sweep's scope"),
        (tainted, "this sweep's scope"),
        (late, "about this sweep"),
        (resolved, "resolves this sweep's taint"),
        (evidence.batch(), "another kind"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_statement_about_something_else_is_refused(number: int) -> None:
    stranger, detail = strangers(Synthetic())[number]

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("stranger", sign(stranger))]

    fails(Synthetic(order=order).files(), "order", detail)


def test_statements_that_are_about_the_sweep_may_ride_along() -> None:
    built = Synthetic()
    metric = statement.MetricVoid(sweep=SWEEP, scope=built.scope_digest, model="age@1", images=1, at=START)
    late = statement.Overdue(sweep=SWEEP, provision=Provision.MODELS, due=START, at=START)

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("metric", sign(metric)), ("late", sign(late))]

    assert check(Synthetic(order=order).files()).ok


@pytest.mark.parametrize(
    ("approvers", "detail"),
    [
        ((evidence.approver(1).key_id,), "different approvers"),
        ((evidence.approver(1).key_id,) * 2, "different approvers"),
        ((evidence.approver(1).key_id, evidence.approver(3).key_id), "pinned approver"),
    ],
)
def test_an_order_needs_two_different_known_approvers(approvers: Sequence[str], detail: str) -> None:
    fails(order_sweep(approved=approvers).files(), "order", detail)


def test_an_order_approved_after_the_deed_or_not_at_all_fails() -> None:
    fails(only_statements(order_sweep(), lambda name: name != "approved"), "order", "approved before the first deed")
    late = order_sweep(order=moved("approved", "completion"))
    fails(late.files(), "order", "approved before the first deed")


def test_a_people_sweep_that_was_approved_verifies() -> None:
    approved = [evidence.approver(1).key_id, evidence.approver(2).key_id]
    assert check(Synthetic(approved=approved).files()).ok


def test_the_round_has_one_completion_of_the_provision() -> None:
    built = Synthetic()
    fails(only_statements(built, lambda name: name != "completion"), "order", "round 0, got 0")
    fails(built.files(round=1), "order", "round 1, got 0")
    again = built.completion.model_copy(update={"requests": 4})

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [*entries, ("again", sign(again))]

    fails(Synthetic(order=order).files(), "order", "round 0, got 2")
    fails(built.files(provision=Provision.MODELS), "order", "got the other")


# 6. Coverage


def test_a_chunk_missing_fails() -> None:
    for step in ("presence", "hide", "erase", "absence"):
        wanted = "presence" if step == "presence" else step
        built = order_sweep(again={})
        name = f"{step} 1 1024 0"
        files = only_statements(built, lambda one, name=name: one != name)  # type: ignore[misc] # bound per turn
        fails(files, "order" if step == "presence" else "coverage", wanted)


def test_all_statements_of_a_chunk_missing_fails() -> None:
    files = only_statements(order_sweep(), lambda name: " 1 1024 " not in name)
    fails(files, "coverage", "statement or a root")
    roots = {"sweep/chunk-roots/1.bin": order_sweep().files(roots=True)["sweep/chunk-roots/1.bin"]}
    fails(files | roots, "coverage", "step presence")


def test_a_chunk_doubled_fails() -> None:
    again = spoiled(Step.ABSENCE, 0, 1024, method="another look")(
        statement.Chunk.model_validate(_predicate(order_sweep(again={}), "absence 0 1024 0"))
    )

    def order(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        at = next(at for at, one in enumerate(entries) if one[0] == "completion")
        return [*entries[:at], ("again", sign(again)), *entries[at:]]

    fails(order_sweep(again={}, order=order).files(), "coverage", "attempt after 0")


def _predicate(built: Synthetic, name: str) -> statement.Predicate:
    entry = built.log.entries[built.names.index(name)]
    return statement.parse(dsse.parse(entry).payload).predicate


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"start": 1, "end": 1025}, "whole chunk"),
        ({"end": 1023}, "whole chunk"),
        ({"end": 1100}, "whole chunk"),
        ({"start": 2048, "end": 3072}, "whole chunk"),
        ({"tree": 7}, "a tree below 2"),
        ({"kind": Kind.DERIVATIVE}, "got derivative in photos"),
        ({"outcomes": ((Outcome.GONE, 1023),)}, "outcomes of 1024 leaves, got 1023"),
        ({"outcomes": ((Outcome.GONE, 1025),)}, "outcomes of 1024 leaves, got 1025"),
        ({"chunk_root": ZERO}, "one chunk root"),
        ({"previous": ZERO}, "which is missing"),
    ],
)
def test_a_chunk_statement_that_does_not_fit_its_tree_fails(change: dict[str, object], detail: str) -> None:
    fails(order_sweep(spoil=spoiled(Step.ABSENCE, 0, 0, **change)).files(), "coverage", detail)


def test_a_tree_of_absurd_size_is_refused_at_once() -> None:
    trees = tuple(one.model_copy(update={"leaves": 2**53 - 1}) for one in order_sweep().scope.trees)
    files = only_statements(
        order_sweep(scope_changes={"trees": trees}),
        lambda name: not name.startswith(("presence", "hide", "erase", "absence")),
    )
    fails(files, "coverage", "a statement or a root of this chunk")


def test_a_root_that_all_statements_of_a_chunk_agree_on_is_still_checked() -> None:
    def spoil(chunk: Chunk) -> Chunk:
        return only(chunk, chunk_root=ZERO) if (chunk.tree, chunk.start) == (0, 0) else chunk

    built = order_sweep(spoil=spoil)
    fails(built.files(), "coverage", "recombine")
    fails(built.files(leaves=True), "coverage", "root of that chunk")
    fails(built.files(roots=True), "coverage", "root of that chunk")


def test_swapped_roots_and_another_count_fail() -> None:
    honest = order_sweep()
    first, second = honest.scope.trees
    swapped = (
        first.model_copy(update={"root": second.root}),
        second.model_copy(update={"root": first.root}),
    )
    fails(order_sweep(scope_changes={"trees": swapped}).files(), "coverage", "recombine")
    more = (first.model_copy(update={"leaves": 1101}), second)
    fails(order_sweep(scope_changes={"trees": more}).files(), "coverage", "whole chunk of 1101 leaves")


def test_leaf_hashes_and_chunk_roots_are_of_the_scopes_trees() -> None:
    files = order_sweep().files(roots=True, leaves=True)
    leaves, roots = files["sweep/leaf-hashes/0.bin"], files["sweep/chunk-roots/0.bin"]
    fails(files | {"sweep/leaf-hashes/0.bin": leaves[:-1]}, "coverage", "1100 hashes")
    fails(files | {"sweep/chunk-roots/0.bin": roots[:-32]}, "coverage", "2 hashes")
    fails(files | {"sweep/leaf-hashes/2.bin": leaves}, "coverage", "of 2 trees")
    fails(files | {"sweep/chunk-roots/0.bin": roots[32:] + roots[:32]}, "coverage", "of the same tree")
    flipped = {"sweep/leaf-hashes/0.bin": bytes([leaves[0] ^ 1]) + leaves[1:]}
    fails(order_sweep().files(leaves=True) | flipped, "coverage", "recombine")


def test_an_attempt_that_covers_other_leaves_than_were_left_open_fails() -> None:
    runs = ((Outcome.GONE, 1), (Outcome.OPEN, 2), (Outcome.GONE, 2), (Outcome.OPEN, 71))
    for step in (Step.ERASE, Step.ABSENCE):
        fails(order_sweep(spoil=spoiled(step, 1, 1024, 1, outcomes=runs)).files(), "coverage", "only leaves left open")


def test_an_attempt_that_names_no_or_another_predecessor_fails() -> None:
    for previous in (None, ZERO):
        built = order_sweep(spoil=spoiled(Step.ABSENCE, 1, 1024, 1, previous=previous))
        fails(built.files(), "coverage", "as its predecessor")


def test_an_attempt_left_out_of_the_chain_fails() -> None:
    files = only_statements(order_sweep(), lambda name: name != "absence 1 1024 0")
    fails(files, "coverage", "only leaves left open")
    first = only_statements(order_sweep(), lambda name: name not in {"absence 1 1024 0", "erase 1 1024 1"})
    fails(first, "coverage", "which is missing")


def test_leaving_out_the_last_attempt_leaves_leaves_open() -> None:
    files = only_statements(order_sweep(), lambda name: name != "absence 1 1024 1")
    fails(files, "completion", "outcome counts")


def test_an_absence_from_before_the_last_erase_does_not_count() -> None:
    built = order_sweep(order=moved("absence 1 1024 1", "erase 1 1024 1"))
    fails(built.files(), "completion", "outcome counts")


@pytest.mark.parametrize("runs", [((0, 1101),), ((5, 5), (0, 5)), ((0, 0),), ((0, 5), (4, 2)), ((0, 5), (5, 2))])
def test_runs_that_are_not_ascending_and_apart_fail(runs: tuple[tuple[int, int], ...]) -> None:
    fails(order_sweep().files(indices=(runs, ((0, 1100),))), "coverage", "ascending separate runs")


def test_runs_per_tree_are_those_of_the_claim() -> None:
    built = order_sweep()
    fails(built.files(indices=(((0, 1100),),)), "coverage", "runs of 2 trees, got 1")
    claim = built.claims[0]
    trees = (*claim.trees[:1], claim.trees[1].model_copy(update={"tree": 2}))
    fails(built.files(claim=claim.model_copy(update={"trees": trees})), "coverage", "a tree below 2")


# 7. Claim


def test_a_certificate_for_another_request_fails() -> None:
    built = Synthetic()
    fails(built.files(0, claim=built.claims[1], indices=built.certificate(1).indices), "claim", "certificate's request")
    other: dict[str, Any] = {"claim": built.claims[1], "claim_opening": built.certificate(1).claim_opening}
    fails(built.files(0, **other, indices=built.certificate(1).indices), "claim", "another's")
    fails(built.files(0, request=request_id(1)), "claim", "another's")


def test_a_claim_with_anything_changed_does_not_open() -> None:
    built = Synthetic()
    changed = built.claims[0].model_copy(update={"retained": {}})
    fails(built.files(claim=changed), "claim", "lead to the root")


def test_a_receipt_with_another_persons_nonce_does_not_open() -> None:
    built = Synthetic()
    stolen = built.certificate().claim_opening.model_copy(update={"nonce": built.certificate(1).claim_opening.nonce})
    fails(built.files(claim_opening=stolen), "claim", "lead to the root")


@pytest.mark.parametrize("nonce", ["", "zz" * 16, "AB" * 16, "ab" * 15, "ab" * 17])
def test_a_nonce_is_16_bytes_in_lower_case_hex(nonce: str) -> None:
    built = Synthetic()
    opening = built.certificate().claim_opening.model_copy(update={"nonce": nonce})
    fails(built.files(claim_opening=opening), "claim", "nonce of 16 bytes")


def test_an_opening_is_in_a_tree_of_the_signed_size() -> None:
    built = Synthetic()
    opening = built.certificate().claim_opening.model_copy(update={"size": 4})
    fails(built.files(claim_opening=opening), "claim", "a tree of 3")


def test_a_certificate_that_leaves_a_failed_leaf_out_fails() -> None:
    built = Synthetic(outcomes={(0, 1500): Outcome.FAILED})
    shorter = (((0, 3),), ((7, 2),))
    fails(built.files(indices=shorter), "claim", "indices that the claim fixed")
    claim = built.claims[0]
    trees = (TreeClaim(tree=0, leaves=3, indices=evidence.indices_digest((0, 1, 2))), claim.trees[1])
    fails(built.files(claim=claim.model_copy(update={"trees": trees}), indices=shorter), "claim", "root")


def test_a_claim_has_each_tree_once_and_ascending() -> None:
    def turned(built: Synthetic) -> Synthetic:
        claim = built.claims[0]
        built.claims[0] = claim.model_copy(update={"trees": claim.trees[::-1]})
        built.claim_tree = evidence.blinded_tree("claim", built.claims)
        built.scope = built.scope.model_copy(update={"requests_root": built.claim_tree.root.hex()})
        built._last.clear()
        built.build()
        return built

    built = turned(Synthetic())
    fails(built.files(indices=built.certificate().indices[::-1]), "claim", "each tree once")


# 9. Completion


def test_a_completion_of_another_request_fails() -> None:
    built = Synthetic()
    other: dict[str, Any] = {
        "completed": built.completed[1],
        "completed_opening": built.certificate(1).completed_opening,
    }
    fails(built.files(**other), "completion", "request and provision")


def test_a_completion_that_was_not_logged_does_not_open() -> None:
    built = Synthetic(outcomes={(0, 1): Outcome.FAILED})
    better = built.completed[0].model_copy(update={"result": "complete", "outcomes": Synthetic().completed[0].outcomes})
    fails(built.files(completed=better), "completion", "lead to the root")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"result": "partial"}, "expected result complete"),
        ({"outcomes": (OutcomeCount(tree=0, outcome=Outcome.GONE, artifacts=6),)}, "outcome counts"),
        ({"outcomes": ()}, "outcome counts"),
        ({"models": ()}, "every model that the sweep tainted"),
    ],
)
def test_a_certifier_that_signs_wrong_sums_is_found(changes: dict[str, object], detail: str) -> None:
    alone = (Asked({0: (0, 1, 2, 1500), 1: (7, 8)}),)
    fails(Synthetic(asked=alone, completed_changes=changes).files(), "completion", detail)


def test_a_certifier_that_calls_a_failed_artifact_complete_is_found() -> None:
    built = Synthetic(outcomes={(0, 1): Outcome.FAILED}, completed_changes={"result": "complete"})
    fails(built.files(), "completion", "expected result partial")


def test_an_artifact_that_is_still_there_is_not_complete() -> None:
    built = Synthetic(outcomes={(0, 1): Outcome.PRESENT}, completed_changes={"result": "complete"})
    fails(built.files(), "completion", "expected result unverified")


def test_counts_are_told_once() -> None:
    built = Synthetic()
    twice = built.completed[0].outcomes + built.completed[0].outcomes[:1]
    fails(Synthetic(completed_changes={"outcomes": twice}).files(), "completion", "outcome counts")


def test_a_rounds_results_sum_to_its_requests() -> None:
    built = Synthetic()
    for results in ({"complete": 2}, {"partial": 3}):
        changed = built.completion.model_copy(update={"results": results})

        def order(entries: list[tuple[str, bytes]], said: statement.Completion = changed) -> list[tuple[str, bytes]]:
            return [(name, sign(said) if name == "completion" else data) for name, data in entries]

        fails(Synthetic(order=order).files(), "completion", "sum to its requests")


def due(model: str, resolution: str) -> ModelDue:
    values = {"model": model, "remedy": Remedy.RETRAIN, "due": START, "resolution": resolution}
    return ModelDue.model_validate(values)


@pytest.mark.parametrize(
    ("models", "detail"),
    [
        ((due("face@1", "replaced"),), "face@1 is tainted and replaced"),
        ((due("door@1", "destroyed"),), "door@1 is tainted and destroyed"),
        ((due("ghost@1", "open"),), "ghost@1 is tainted and open"),
        ((due("face@1", "open"), due("face@1", "open")), "each model once"),
    ],
)
def test_a_model_called_resolved_needs_the_statement(models: tuple[ModelDue, ...], detail: str) -> None:
    fails(Synthetic(completed_changes={"models": models}).files(), "completion", detail)


@pytest.mark.parametrize("change", [{"due": START + timedelta(days=400)}, {"remedy": Remedy.DROP}])
def test_a_certificate_cannot_put_off_what_was_stated_of_a_model(change: dict[str, object]) -> None:
    """A later date than the statement's would turn "overdue" into "unverified"."""
    dues = tuple(one.model_copy(update=change) for one in Synthetic().completed[0].models)
    single: dict[str, Any] = {
        "provision": Provision.MODELS,
        "completed_changes": {"models": dues, "result": "unverified"},
    }
    fails(Synthetic(**single).files(), "completion", "the remedy and date that were stated")


def test_a_resolution_after_the_completion_does_not_count() -> None:
    def late(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        mine = [one for one in entries if one[0].startswith("resolved")]
        return [one for one in entries if one not in mine] + mine

    built = Synthetic(provision=Provision.MODELS, models=(("face@1", "replaced"),), order=late)
    fails(built.files(), "completion", "is tainted and replaced")


# Every byte


def small() -> Synthetic:
    """One chunk, one person, one model: few enough bytes to flip each."""
    return Synthetic(
        trees=((IMAGES, 3),), asked=(Asked({0: (0, 2)}, {"account": 1}),), models=(("face@1", "open"),), again={}
    )


def test_every_byte_of_a_bundle_is_vouched_for_or_listed() -> None:
    files = small().files(roots=True, leaves=True)
    policy = trust()
    assert verification.verify(files, policy).ok
    passed: dict[str, set[int]] = {}
    flips = 0
    tried: Counter[str] = Counter()
    bare = {path: data for path, data in files.items() if path != bundle.PAGE}  # the page repeats what is not covered
    for path, data in files.items():
        beside = files if path == bundle.PAGE else bare
        for at in range(0, len(data), 29 if path == bundle.PAGE else 1):  # the page is compared whole
            flips += 1
            tried[path] += 1
            spoiled_file = data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]
            if verification.verify(beside | {path: spoiled_file}, policy).ok:
                passed.setdefault(path, set()).add(at)
    listed = files[bundle.CERTIFICATE]
    start = listed.index(b'"not_covered":["') + len(b'"not_covered":["')
    allowed = set(range(start, listed.index(b'"]', start)))
    assert flips > 10_000
    for path, count in tried.items():
        adversary.refused(count - len(passed.get(path, ())), f": {path}")
    for path, places in passed.items():
        adversary.let_through(len(places), path if path == bundle.README else f"{path}#not_covered")
    assert passed.pop(bundle.README) == set(range(len(files[bundle.README])))
    assert passed.pop(bundle.CERTIFICATE) <= allowed
    assert not passed
    assert set(bundle.UNAUTHENTICATED) == {
        bundle.README, f"{bundle.CERTIFICATE}#not_covered", *attestation.UNAUTHENTICATED
    }  # fmt: skip


# What it needs


def test_the_verifier_needs_only_the_light_core() -> None:
    script = textwrap.dedent(
        """
        import sys
        heavy = ["numpy", "psycopg", "psycopg_pool", "kafka", "aiokafka", "faust", "pyroaring", "faiss", "scipy"]
        for name in heavy:
            sys.modules[name] = None  # importing it now raises
        import expunge.verify
        assert not [name for name in sys.modules if name.startswith(("expunge.adapters", "expunge.ports"))]
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_chunk_roots_of_an_empty_tree_verify() -> None:
    built = Synthetic(trees=((IMAGES, 3), (VECTORS, 0)), asked=(Asked({0: (0,)}),), again={}, models=(), outcomes={})
    assert built.tree_roots[1].root == merkle.EMPTY_ROOT
    assert check(built.files()).ok
