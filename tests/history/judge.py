"""The six invariants over a history. Every violation names its invariant, a code, a line and what was expected."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.history import evidence
from tests.history.evidence import ABSENT, CHUNK, EXCLUDED, FILE_ABSENT, BadEvidenceError, ChunkSaid
from tests.history.log import Log, verified
from tests.history.reading import History, read
from tests.history.verdict import Violation
from tests.history.world import PLANNED, Artifact, Request, World, build

FINAL: Final = frozenset({"completed", "rejected", "cancelled", "void"})
_ANSWERED: Final = ("hold", "hold-release", "cancel", "approval", "consent-given")
"""Requests that leave no row: an answer shows that they were taken."""


def check(lines: Any, *, partial: bool = False) -> list[Violation]:
    """Judge a history. `partial`: do not complain of what was not recorded. Raises `MisreadError`."""
    history = read(lines)
    world = build(history)
    found: list[Violation] = []
    log = verified(history, found)
    certificates = _certificates(history, found)
    if not partial:
        found += _incomplete(history, world, log, certificates)
    found += _lost(world)
    found += _out_of_scope(world)
    found += _unproven(world, log, certificates)
    found += _proofs(world, log, certificates)
    if world.ended >= 0:
        found += _unsettled(world, certificates)
    return sorted(found, key=lambda one: (one.invariant, one.line))


# Certificates


@dataclass(frozen=True, slots=True)
class Opened:
    """A certificate that was opened. `digest`: SHA-256 of its text."""

    line: int
    digest: str
    body: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """request, provision, sweep, round."""
        return self.body["request"], self.body["provision"], self.body["sweep"], self.body["round"]

    @property
    def result(self) -> str:
        return str(self.body["completed"]["result"])


def _certificates(history: History, found: list[Violation]) -> dict[tuple[str, str, str, int], Opened]:
    opened: dict[tuple[str, str, str, int], Opened] = {}
    for record in history.of("certificate"):
        one = Opened(record.at + 1, hashlib.sha256(record["text"].encode()).hexdigest(), json.loads(record["text"]))
        if opened.setdefault(one.key, one).digest != one.digest:
            found.append(Violation("I4", "two-texts", one.line, f"certificate of {one.key[0]} is not what it was"))
    return opened


# I1


def _lost(world: World) -> Iterator[Violation]:
    for one in world.requests.values():
        if one.gone >= 0:
            yield Violation("I1", "vanished", one.gone + 1, f"request {one.name} was in the ledger and is not any more")
        yield from _moves(one)
        known = one.sound and (one.acknowledged >= 0 or one.taken)
        if not known or world.ended < 0 or one.dead or one.rejected or one.accepted >= 0:
            continue
        if one.type in PLANNED and not one.states:
            yield Violation(
                "I1", "lost", one.published + 1, f"{one.type} {one.name} was acknowledged and left no trace"
            )
        if one.type in _ANSWERED:
            yield Violation("I1", "unanswered", one.published + 1, f"{one.type} {one.name} was never answered")


def _moves(one: Request) -> Iterator[Violation]:
    for (_, before, result, _m), (at, after, later, _n) in zip(one.states, one.states[1:], strict=False):
        if before != after and (before in FINAL or (before == "data-certified" and after != "completed")):
            yield Violation("I1", "move", at + 1, f"request {one.name} went from {before} to {after}")
        if result == "complete" and later != result:
            yield Violation("I1", "result", at + 1, f"request {one.name} was complete and is {later}")


# I2


def _out_of_scope(world: World) -> Iterator[Violation]:
    for at, name, text in world.came_back:
        yield Violation("I3" if text == "came back" else "I2", text.split()[0], at + 1, f"artifact {name} {text}")
    for one in world.requests.values():
        if not one.sound and one.taken:
            yield Violation(
                "I2", "unsound", one.published + 1, f"{one.type} {one.name} was taken, and had to be refused"
            )
    for artifact in world.artifacts.values():
        for at, what, _by in artifact.moves:
            if what != "insert":
                yield from _effect(world, artifact, at, what)


def _effect(world: World, artifact: Artifact, at: int, what: str) -> Iterator[Violation]:
    done = f"artifact {artifact.name} ({artifact.kind} in {artifact.store}) met with {what}"
    if artifact.kind == "model":
        trained = [one for one in world.artifacts.values() if one.image in artifact.images]
        # Taint outlives a cancel: what was ordered of a model once its sweep was sealed is carried out.
        asked = [
            one
            for one in world.of_type(*PLANNED)
            if world.justifies(one, at) or (one.sound and 0 <= one.first("planned") < at)
        ]
        if not any(one.touches(image) for one in asked for image in trained):
            yield Violation("I2", "unasked", at + 1, f"{done}, and no request touches what it was trained on")
        return
    asked = [one for one in world.of_type(*PLANNED) if one.touches(artifact) and world.justifies(one, at)]
    withdrawn: set[str] = set()
    # Who is not known yet withdraws all the same: what is registered later is not kept for that purpose from the start.
    early = [one for one in world.of_type(*PLANNED) if "unknown-subject" in one.rejected and one.touches(artifact)]
    for request in [*asked, *(one for one in early if one.sound and one.published < artifact.registered)]:
        withdrawn |= artifact.purposes if request.purposes is None else request.purposes
    if not asked or not artifact.purposes <= withdrawn:
        kept = ", ".join(sorted(artifact.purposes - withdrawn))
        yield Violation("I2", "unasked", at + 1, f"{done}, and nobody had asked that it be kept no more for {kept}")
        return
    for hold in world.of_type("hold"):
        if not (0 <= hold.accepted < at and hold.holds(artifact)) or hold.body.get("until") or world.released(hold, at):
            continue
        if not any(_under_way(world, request, hold.accepted) for request in asked):
            yield Violation("I2", "held", at + 1, f"{done} under hold {hold.name}")


def _under_way(world: World, request: Request, at: int) -> bool:
    """Whether the request may have been in a sweep before `at`: then what had begun is not stopped by a hold."""
    if not world.every_step:
        return request.published < at
    return 0 <= request.first("planned", "data-certified", "completed") < at


# I3


def _unproven(world: World, log: Log, certificates: dict[tuple[str, str, str, int], Opened]) -> Iterator[Violation]:
    for request in world.of_type(*PLANNED):
        said = [at for at, _state, result, _m in request.states if result == "complete"]
        said += [
            one.at
            for one in world.events
            if one["type"] == "expunge.proof.certificate-issued.v1"
            and (one["data"]["request_id"], one["data"]["provision"]) == (request.name, "data")
            and one["data"]["result"] == "complete"
        ]
        if said:
            yield from _still_there(world, request, min(said), _levels(request, log, certificates))
    for opened in certificates.values():
        try:
            _verify(opened, log)
        except (BadEvidenceError, KeyError, TypeError, ValueError, IndexError) as error:
            yield Violation("I3", "certificate", opened.line, f"certificate of {opened.key[0]}: {error}")


def _levels(
    request: Request, log: Log, certificates: dict[tuple[str, str, str, int], Opened]
) -> dict[tuple[str, str], int]:
    """How far erasing is known to have reached by (kind, store), as the log says of the sweep that completed the request, and
    of those that had it wait for a hold: what they erased is in no later one.

    Where bytes were looked for in a sample alone, a store that said "gone" of the rest is believed."""
    found: dict[tuple[str, str], int] = {}
    for one in certificates.values():
        if one.key[:2] != (request.name, "data") or one.key[2] not in log.sweeps:
            continue
        believed = {place["tree"] for place in one.body["claim"]["trees"]}
        if one.result == "held":
            believed -= {
                told["tree"] for told in one.body["completed"]["outcomes"] if told["outcome"] not in ABSENT | {EXCLUDED}
            }
        elif one.result != "complete":
            continue
        sweep = log.sweeps[one.key[2]]
        for (tree, _), chunk in sweep.then.get(one.key[3], {}).items():
            if tree in believed:
                place = sweep.scope.body["trees"][tree]
                key = (place["kind"], place["store"])
                level = chunk.level if chunk.looked else min(chunk.level, FILE_ABSENT - 1)
                found[key] = min(found.get(key, level), level)
    return found


def _still_there(world: World, request: Request, at: int, levels: dict[tuple[str, str], int]) -> Iterator[Violation]:
    for artifact in world.artifacts.values():
        if artifact.kind == "model" or not request.covers(artifact) or artifact.registered >= request.published:
            continue
        state = artifact.state(at)
        if state == "absent" or (artifact.moves and not world.every_step and _gone_unseen(artifact, at)):
            continue
        if state == "hidden" and levels.get((artifact.kind, artifact.store), FILE_ABSENT) < FILE_ABSENT:
            continue  # the proof claims no more than that it cannot be reached
        yield Violation(
            "I3", "still-there", at + 1,
            f"request {request.name} is said to be complete and artifact {artifact.name} is {state} in {artifact.store}",
        )  # fmt: skip


def _gone_unseen(artifact: Artifact, at: int) -> bool:
    """Whether the store's next listing shows that it had gone at some time that nobody watched."""
    return any(position >= at and what == "missing" for position, what, _by in artifact.moves[-1:])


def _verify(opened: Opened, log: Log) -> None:
    body, (name, provision, sweep_id, number) = opened.body, opened.key
    sweep = log.sweeps.get(sweep_id)
    if sweep is None or number not in sweep.completions or body["scope"] != sweep.scope.digest:
        raise BadEvidenceError("expected its sweep and round in the log")
    completion, claim, completed = sweep.completions[number], body["claim"], body["completed"]
    if {claim["request"], completed["request"]} != {name}:
        raise BadEvidenceError("expected claim and result of its own request")
    if (completion.body["provision"], completed["provision"]) != (provision, provision):
        raise BadEvidenceError("expected one provision throughout")
    if not evidence.opens(claim, body["claim_opening"], sweep.scope.body["requests_root"]):
        raise BadEvidenceError("expected a claim under the scope's root")
    if not evidence.opens(completed, body["completed_opening"], completion.body["root"]):
        raise BadEvidenceError("expected a result under the round's root")
    if provision == "data":
        _verify_counts(body, sweep.then[number])
    elif any(one["resolution"] == "open" for one in completed["models"]) and completed["result"] == "complete":
        raise BadEvidenceError("expected every model replaced or destroyed")


def _verify_counts(body: dict[str, Any], chunks: dict[tuple[int, int], ChunkSaid]) -> None:
    """Each claimed leaf was erased (or looked at) by its executor, and looked for by the rescanner, whose last word before
    the round counts."""
    counted: Counter[tuple[int, int]] = Counter()
    for claimed, runs in zip(body["claim"]["trees"], body["indices"], strict=True):
        leaves = [leaf for first, count in runs for leaf in range(first, first + count)]
        packed = b"".join(leaf.to_bytes(4, "little") for leaf in leaves)
        if (len(leaves), hashlib.sha256(packed).hexdigest()) != (claimed["leaves"], claimed["indices"]):
            raise BadEvidenceError("expected the leaves that the claim fixed")
        for leaf in leaves:
            chunk = chunks.get((claimed["tree"], leaf // CHUNK))
            if chunk is None or {"presence", "erase", "absence"} - chunk.steps.keys():
                raise BadEvidenceError(f"expected presence, erase and absence of leaf {leaf} of tree {claimed['tree']}")
            counted[claimed["tree"], chunk.steps["absence"][leaf % CHUNK]] += 1
    told = {(one["tree"], one["outcome"]): one["artifacts"] for one in body["completed"]["outcomes"]}
    if told != dict(counted):
        raise BadEvidenceError(f"expected outcomes {dict(counted)} as the rescanner said last, got {told}")
    if body["completed"]["result"] == "complete" and {code for _, code in counted} - ABSENT:
        raise BadEvidenceError("expected every leaf absent where the result is complete")


# I4


def _proofs(world: World, log: Log, certificates: dict[tuple[str, str, str, int], Opened]) -> Iterator[Violation]:
    yield from _announced(world, certificates)
    for opened in certificates.values():
        if opened.key[0] not in world.requests:
            yield Violation("I4", "unknown", opened.line, f"certificate of {opened.key[0]}, which nobody asked for")
    for request in world.of_type(*PLANNED):
        mine = [one for one in certificates.values() if one.key[0] == request.name and one.result != "held"]
        data = [one for one in mine if one.key[1] == "data"]
        models = [one for one in mine if one.key[1] == "models"]
        for many in (data, models):
            if len(many) > 1:
                yield Violation(
                    "I4", "twice", many[1].line, f"request {request.name} has {len(many)} {many[0].key[1]} proofs"
                )
        if request.state == "completed" and world.ended >= 0:
            if not data:
                yield Violation(
                    "I4", "none", request.states[-1][0] + 1, f"request {request.name} completed without a proof"
                )
            elif data[0].body["completed"]["models"] and not models:
                yield Violation("I4", "none", data[0].line, f"request {request.name} has no proof for its models")
        if data and request.state not in {"completed", "data-certified", None}:
            yield Violation("I4", "early", data[0].line, f"request {request.name} is {request.state} and has a proof")
    yield from _paired(log, certificates)


def _announced(world: World, certificates: dict[tuple[str, str, str, int], Opened]) -> Iterator[Violation]:
    seen: dict[tuple[Any, ...], str] = {}
    key: tuple[Any, ...]
    for one in world.events:
        data = one["data"]
        if one["type"] == "expunge.proof.certificate-issued.v1":
            key = announced = (data["request_id"], data["provision"], data["sweep_id"], data["round"])
            opened = certificates.get(announced)
            if opened is not None and (opened.digest, opened.result) != (data["certificate_digest"], data["result"]):
                yield Violation(
                    "I4", "other", one.at + 1, f"the certificate announced for {key[0]} is not the one opened"
                )
        elif one["type"] == "expunge.proof.request-completed.v1":
            key = (data["request_id"], "completed")
        else:
            continue
        if data["request_id"] not in world.requests:
            yield Violation("I4", "unknown", one.at + 1, f"a proof for {data['request_id']}, which nobody asked for")
        if seen.setdefault(key, one["id"]) != one["id"]:
            yield Violation("I4", "announced-twice", one.at + 1, f"two announcements of one thing for {key[0]}")


def _paired(log: Log, certificates: dict[tuple[str, str, str, int], Opened]) -> Iterator[Violation]:
    by_round: dict[tuple[str, int], list[Opened]] = {}
    for one in certificates.values():
        by_round.setdefault((one.key[2], one.key[3]), []).append(one)
    for name, sweep in log.sweeps.items():
        for number, said in sweep.completions.items():
            mine = by_round.get((name, number), [])
            places = {one.body["completed_opening"]["index"] for one in mine}
            results = Counter(one.result for one in mine)
            if len(places) != said.body["requests"] or results != Counter(said.body["results"]):
                yield Violation(
                    "I4", "unpaired", 0,
                    f"round {number} of sweep {name} completes {said.body['requests']}, and {len(places)} have a certificate",
                )  # fmt: skip


# I6


def _unsettled(world: World, certificates: dict[tuple[str, str, str, int], Opened]) -> Iterator[Violation]:
    for request in world.of_type(*PLANNED):
        if request.taken and request.state not in FINAL and not _explained(world, request, certificates):
            line = request.states[-1][0] + 1 if request.states else 0
            yield Violation("I6", "unsettled", line, f"{request.type} {request.name} is {request.state} at the end")


def _explained(world: World, request: Request, certificates: dict[tuple[str, str, str, int], Opened]) -> bool:
    match request.state:
        case None:
            return bool(request.rejected)
        case "held":
            mine = [one for one in world.artifacts.values() if request.touches(one)]
            # One that came too late for what was under way stands for what comes later.
            holds = [
                one for one in world.of_type("hold") if one.sound and (not one.refused or "too-late" in one.rejected)
            ]
            holds = [one for one in holds if not world.released(one, 1 << 62)]
            return any(hold.holds(one) for hold in holds for one in mine) or any(
                hold.body["target"].get("subject_ref") == request.body.get("subject_ref", "") for hold in holds
            )
        case "planned":
            awaited = [
                one["data"]["scope_root"]
                for one in world.events
                if one["type"] == "expunge.proof.approval-awaited.v1" and one["data"]["request_id"] == request.name
            ]
            given = {
                one.signer
                for one in world.of_type("approval")
                if one.sound and not (one.rejected or one.dead) and awaited and one.body["scope_root"] == awaited[-1]
            }
            return bool(awaited) and len(given - {request.signer}) < world.approvals
        case "data-certified":
            data = [one for one in certificates.values() if one.key[0] == request.name and one.key[1] == "data"]
            tainted = any(one["resolution"] == "open" for opened in data for one in opened.body["completed"]["models"])
            return request.result != "complete" or tainted
        case _:
            return False


# What could not be judged


def _incomplete(
    history: History, world: World, log: Log, certificates: dict[tuple[str, str, str, int], Opened]
) -> Iterator[Violation]:
    lacks = {
        "phase end": world.ended < 0,
        "a complete ledger after the end": not any(
            one.at > world.ended and one["complete"] for one in history.of("ledger")
        ),
        "dead letters after the end": not any(one.at > world.ended for one in history.of("dead")),
        "trust": not any(history.of("trust")),
        "a checkpoint over every entry": max(log.sizes, default=0) < len(log.statements),
        "the log": not log.statements and any(one.first("planned") >= 0 for one in world.requests.values()),
    }
    for store in sorted({one.store for one in world.artifacts.values()}):
        lacks[f"contents of {store} after the end"] = store not in world.contents
    for one in world.events:
        data = one["data"]
        if one["type"] == "expunge.proof.certificate-issued.v1":
            key = (data["request_id"], data["provision"], data["sweep_id"], data["round"])
            lacks[f"the certificate that was announced for {key[0]} in round {key[3]}"] = key not in certificates
    for what, lacking in lacks.items():
        if lacking:
            yield Violation("incomplete", "lacking", 0, f"expected {what} in a complete history, got none")
