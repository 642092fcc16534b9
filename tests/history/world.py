"""What the test knows without asking the product: what there is, who asked for what, what a request covers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.history.reading import History, MisreadError, Record

PLANNED: Final = frozenset({"deletion", "retention", "consent-withdrawal", "order"})
"""Requests that end in an erasure."""

_NEVER: Final = 1 << 62


@dataclass(slots=True)
class Artifact:
    """One artifact and what became of it: `moves` are (position, what), what one of insert, hide, erase, missing."""

    name: str
    store: str
    kind: str
    image: str
    source: str
    day: str
    subjects: frozenset[str]
    purposes: frozenset[str]
    images: tuple[str, ...]
    registered: int = _NEVER
    moves: list[tuple[int, str, str]] = field(default_factory=list)

    def state(self, at: int) -> str:
        """absent, present or hidden, just before position `at`."""
        state = "absent"
        for position, what, _by in self.moves:
            if position >= at:
                break
            state = {"insert": "present", "hide": "hidden"}.get(what, "absent")
        return state


@dataclass(slots=True)
class Request:
    """One signed request and what was heard of it. Positions; -1 for never."""

    name: str
    type: str
    body: dict[str, Any]
    signer: str
    sound: bool
    published: int
    acknowledged: int = -1
    accepted: int = -1
    rejected: list[str] = field(default_factory=list)
    dead: bool = False
    states: list[tuple[int, str, str | None, str | None]] = field(default_factory=list)
    """What the ledger said, where it changed: position, state, data result, models result."""
    gone: int = -1
    """Where a complete ledger had it no more."""

    @property
    def state(self) -> str | None:
        """The last one seen."""
        return self.states[-1][1] if self.states else None

    @property
    def result(self) -> str | None:
        """The last data result seen."""
        return self.states[-1][2] if self.states else None

    @property
    def taken(self) -> bool:
        """Whether the product took it, as far as was seen."""
        return bool(self.states) or self.accepted >= 0

    @property
    def refused(self) -> bool:
        """Whether it was turned away, and never taken."""
        return not self.taken and (bool(self.rejected) or self.dead)

    def first(self, *states: str) -> int:
        """Where one of these states was first seen; -1 for never."""
        return next((at for at, state, *_ in self.states if state in states), -1)

    @property
    def purposes(self) -> frozenset[str] | None:
        """What it withdraws; None for everything."""
        named = self.body.get("purposes")
        return None if named is None else frozenset(named)

    def touches(self, one: Artifact) -> bool:
        """Whether the artifact's image is one of those that the request is about."""
        if self.type in {"deletion", "retention", "consent-withdrawal"}:
            return self.body["subject_ref"] in one.subjects
        if self.type != "order":
            return False
        selection = self.body["selection"]
        match selection["by"]:
            case "source":
                return bool(selection["source"] == one.source)
            case "period":
                inside = selection["start"] <= one.day < selection["end"]
                return inside and selection.get("source") in {None, one.source}
            case "list":
                return not one.subjects.isdisjoint(selection["subjects"])
            case _:
                raise MisreadError(f"expected a selection that is known, got {selection['by']}")

    def holds(self, one: Artifact) -> bool:
        """For holds: whether the artifact's image is kept."""
        target = self.body["target"]
        return target["subject_ref"] in one.subjects if target["by"] == "subject" else target["source"] == one.source

    def covers(self, one: Artifact) -> bool:
        """Whether this request alone has the artifact erased: nothing that it is kept for remains."""
        return self.touches(one) and (self.purposes is None or one.purposes <= self.purposes)


@dataclass(slots=True)
class World:
    """Everything by name."""

    artifacts: dict[str, Artifact]
    requests: dict[str, Request]
    events: list[Record]
    every_step: bool
    approvals: int
    ended: int
    """Position of the phase `end`, -1 if there is none."""
    contents: dict[str, Record]
    """The last listing of each store after the end."""
    came_back: list[tuple[int, str, str]]
    """Artifacts that were listed although they were gone, or missing although nobody took them: position, name, what."""

    def of_type(self, *types: str) -> Iterator[Request]:
        return (one for one in self.requests.values() if one.type in types)

    def approvers(self, request: Request, before: int) -> set[str]:
        """Who had approved by then, the requester aside."""
        return {
            one.signer
            for one in self.of_type("approval")
            if one.sound and one.body["request_id"] == request.name and one.published < before
        } - {request.signer}

    def cancelled(self, request: Request) -> int:
        """Where a cancel of the request was seen to be accepted; -1 for never."""
        found = [one.accepted for one in self.of_type("cancel") if one.body["request_id"] == request.name]
        return min((at for at in found if at >= 0), default=-1)

    def released(self, hold: Request, before: int) -> bool:
        """Whether it may have been released by then: somebody had asked, and was not turned away."""
        return any(
            one.sound and not one.refused and one.body["hold_id"] == hold.name and one.published < before
            for one in self.of_type("hold-release")
        )

    def justifies(self, request: Request, at: int) -> bool:
        """Whether the request may have effects at this position."""
        if request.type not in PLANNED or not request.sound or request.published >= at or request.refused:
            return False
        if request.type == "order" and len(self.approvers(request, at)) < self.approvals:
            return False
        if (void := request.first("void")) >= 0 and void < at:
            return False
        cancelled = self.cancelled(request)
        if cancelled >= 0:
            # Nothing may have been done to it, unless a hold had stopped it half way.
            return at < cancelled and (not self.every_step or 0 <= request.first("held") < cancelled)
        return True


def build(history: History) -> World:
    """Raises `MisreadError` where records contradict each other in what only the test can know."""
    meta, artifacts, requests = history.records[0], _artifacts(history), _requests(history)
    _hear(history, requests)
    ended = next((one.at for one in history.of("phase") if one["phase"] == "end"), -1)
    return World(
        artifacts=artifacts,
        requests=requests,
        events=list(history.of("event")),
        every_step=bool(meta["every_step"]),
        approvals=next((one["approvals"] for one in history.of("trust")), 2),
        ended=ended,
        contents={one["store"]: one for one in history.of("contents") if one.at > ended >= 0},
        came_back=_follow(history, artifacts),
    )


def _artifacts(history: History) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for one in history.of("artifact"):
        if one["artifact"] in found:
            raise MisreadError(f"line {one.at + 1}: expected a new artifact id, got {one['artifact']} again")
        found[one["artifact"]] = Artifact(
            one["artifact"], one["store"], one["artifact_kind"], one["image"], one["source"], one["day"],
            frozenset(one["subjects"]), frozenset(one["purposes"]), tuple(one["images"]),
        )  # fmt: skip
    for one in history.of("registered"):
        for name in one["artifacts"]:
            _named(found, name, one).registered = min(one.at, found[name].registered)
    return found


def _named(artifacts: dict[str, Artifact], name: str, record: Record) -> Artifact:
    if name not in artifacts:
        raise MisreadError(f"line {record.at + 1}: expected an artifact that was described, got {name}")
    return artifacts[name]


def _follow(history: History, artifacts: dict[str, Artifact]) -> list[tuple[int, str, str]]:
    """Fill in each artifact's moves; what the stores' listings contradict."""
    wrong: list[tuple[int, str, str]] = []
    state: dict[str, str] = {}
    by_store: dict[str, list[str]] = {}
    for name, one in artifacts.items():
        by_store.setdefault(one.store, []).append(name)
    for record in history.of("insert", "effect", "contents"):
        if record.kind == "contents":
            wrong += _listed(record, by_store.get(record["store"], []), artifacts, state)
            continue
        what = "insert" if record.kind == "insert" else record["op"]
        for name in record["artifacts"]:
            one = _named(artifacts, name, record)
            before = state.get(name, "absent")
            if what != "insert" and before == "absent":
                wrong.append((record.at, name, f"was the object of {what} although it was gone"))
            state[name] = {"insert": "present", "hide": "hidden", "erase": "absent"}[what]
            one.moves.append((record.at, what, "product" if what == "insert" else record["by"]))
    return wrong


def _listed(
    record: Record, names: Iterable[str], artifacts: dict[str, Artifact], state: dict[str, str]
) -> list[tuple[int, str, str]]:
    wrong = []
    now = dict.fromkeys(record["hidden"], "hidden") | dict.fromkeys(record["present"], "present")
    for name in names:
        before, after = state.get(name, "absent"), now.get(name, "absent")
        if before == after:
            continue
        if before == "absent" or (before == "hidden" and after == "present"):
            wrong.append((record.at, name, "came back"))
        what = {"present": "insert", "hidden": "hide", "absent": "missing"}[after]
        artifacts[name].moves.append((record.at, what, "unseen"))
        state[name] = after
    for name in now:
        _named(artifacts, name, record)
    return wrong


def _requests(history: History) -> dict[str, Request]:
    found: dict[str, Request] = {}
    for one in history.of("published"):
        body = one["body"]
        name = body["id"]
        # A forged twin of a sound request says nothing about it; a repeat says nothing new.
        if name in found and (found[name].sound or not one["sound"]):
            continue
        type_ = body["type"].removeprefix("expunge.request.").rpartition(".v")[0]
        found[name] = Request(name, type_, body, one["signer"], one["sound"], one.at)
    return found


def _hear(history: History, requests: dict[str, Request]) -> None:
    """Fill in what became of the requests. What is about others is for the judge to see."""
    for one in history.of("acknowledged"):
        if one["request"] in requests and requests[one["request"]].acknowledged < 0:
            requests[one["request"]].acknowledged = one.at
    for one in history.of("event"):
        if (request := requests.get(str(one["data"].get("request_id")))) is not None:
            _answered(request, one)
    for one in history.of("ledger"):
        _rows(requests, one)
    for one in history.of("dead"):
        for row in one["rows"]:
            if row["event"] in requests:
                requests[row["event"]].dead = True


def _answered(request: Request, event: Record) -> None:
    if event["type"] == "expunge.proof.request-accepted.v1" and request.accepted < 0:
        request.accepted = event.at
    elif event["type"] == "expunge.proof.request-rejected.v1":
        request.rejected.append(event["data"]["code"])


def _rows(requests: dict[str, Request], ledger: Record) -> None:
    listed = set()
    for row in ledger["rows"]:
        listed.add(row["request"])
        if row["request"] in requests:
            now = (row["state"], row["data_result"], row["models_result"])
            states = requests[row["request"]].states
            if not states or states[-1][1:] != now:
                states.append((ledger.at, *now))
    for request in requests.values() if ledger["complete"] else ():
        if request.states and request.name not in listed and request.gone < 0:
            request.gone = ledger.at
