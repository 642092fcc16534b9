"""Reports by command line, on a deployment whose story is known: what each says, in every form."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from expunge.adapters.journal.memory import MemoryJournal
from expunge.adapters.ledger.postgres import migrate
from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.domain import lineage, request, trust
from expunge.domain.request import BySource
from expunge.reports import document
from expunge.reports.document import Section, Table
from expunge.settings import Settings
from expunge.wiring import Deployment
from tests.coordination import ANN, BOB, ORIGIN, START, album, batch, deployed, subject

Ask = Callable[..., Any]


@pytest.fixture
def deployment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    settings = Settings(
        database=database, kafka="127.0.0.1:9", data=tmp_path / "data", audience=ORIGIN.removesuffix("/log"),
        issuer="Acme Ltd", stores={"photos": "file:///x"},
    )  # fmt: skip
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    migrate(database)
    found = Deployment(settings)
    found.prepare()
    return found


@dataclass
class Story:
    """A source is ordered gone with the models made of it, a person's deletion is done, another person stays."""

    folder: Path
    order: str
    person: str

    @property
    def trust(self) -> tuple[str, Path]:
        return "--trust", self.folder / "trust.json"


async def _live(found: Deployment, folder: Path) -> Story:
    files: dict[str, Any] = {"keys": found.keys, "sealed": found.sealed, "tiles": found.tiles}
    journal = MemoryJournal(found.journal.key)
    async with deployed(found.settings.database, folder, journal=journal, **files) as world:
        world._log_key = found.signers.log_key()
        await world.register(
            lineage.SourceRegistered(
                source="web", supplier="unknown", agreement="A-2", licence="None recorded",
                consent_basis=lineage.ConsentBasis.NONE_RECORDED, acquired_on=START.date(), approved_by="role:data",
                declared_interests=("=the approver holds shares of the supplier",),
            ),
            lineage.SourceRegistered(
                source="left", supplier="S", agreement="A-3", licence="None recorded",
                consent_basis=lineage.ConsentBasis.EXPLICIT_CONSENT, acquired_on=START.date(), approved_by="role:data",
            ),
        )  # fmt: skip
        studio, web = [*album(1), *album(2)], [replace(one, key=f"w{one.key}", source="web") for one in album(3)]
        left = [replace(one, key=f"l{one.key}", source="left") for one in (*album(4), *album(5, 1))]
        await world.seed(*studio)
        for photos in (web, left):
            await world.register(batch(*photos))
            world.fill(*photos)
        await world.trained("face@1", [*studio, *web])
        await world.trained("gate@1", left)
        consent = {"subject_ref": subject(4), "purposes": ("training",)}
        asked, order = world.deletion(1), world.order(BySource(source="web"))
        world.ask(request.ConsentGiven(**world.common(**consent)), asked)
        await world.settle()
        world.ask(order)
        await world.settle()
        for approver in (ANN, BOB):
            await world.take(world.approval(order), by=approver)
        await world.settle()
        (folder / "trust.json").write_bytes(trust.dump(world.trust))
        return Story(folder, str(order.id), str(asked.id))


@pytest.fixture
def story(deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Story:
    made = asyncio.run(_live(deployment, tmp_path))
    capsys.readouterr()
    return made


@pytest.fixture
def audit(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*arguments: object, code: Exit = Exit.OK) -> Any:
        assert main(["audit", *map(str, arguments), "--json"]) == code, capsys.readouterr().err
        shown = capsys.readouterr().out
        return json.loads(shown) if shown else None

    return run


def rows(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A table's rows, by column."""
    (found,) = [one for section in report["sections"] for one in section["tables"] if one["name"] == name]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def notes(report: dict[str, Any], title: str) -> str:
    return "\n".join(one for section in report["sections"] if section["title"] == title for one in section["notes"])


def facts(report: dict[str, Any], title: str) -> dict[str, Any]:
    return dict(pair for section in report["sections"] if section["title"] == title for pair in section["facts"])


def test_an_order_is_reported_with_its_clocks_counts_exceptions_and_models(audit: Ask, story: Story) -> None:
    report = audit("order", story.order, *story.trust)
    said = facts(report, "The order")
    assert (said["Authority"], said["Reference"], said["Selection"]) == ("regulator", "file 1", "by source: source web")
    assert (said["Images"], said["Artifacts"], said["Submitted by"]) == (4, 16, "backend")
    assert "ann" in said["Approved"]
    assert "bob" in said["Approved"]
    (provision,) = rows(report, "provisions")
    assert (provision["result"], provision["days late"], provision["closed"]) == ("complete", 0, provision["closed"])
    assert {(one["kind"], one["in scope"], one["present before"], one["verified absent"], one["not"])
            for one in rows(report, "data")} == {(kind, 4, 4, 4, 0) for kind in
            ("image", "derivative", "shard-row", "embedding")}  # fmt: skip
    assert {one["step"] for one in rows(report, "steps")} == {"presence", "hide", "erase", "absence"}
    (model,) = rows(report, "affected-models")
    assert (model["model"], model["images of the order"], model["fate"]) == ("face@1", 4, "open: tainted")
    assert [one["model"] for one in rows(report, "other-models")] == ["gate@1"]
    assert rows(report, "exceptions") == []
    assert len(rows(report, "certificates")) == 1
    assert "backups of the stores" in notes(report, "What this report does not cover")
    form = facts(report, "Form of a sworn statement, provision 1 (data)")
    assert set(form["Signature"]) == {"_"}
    assert form["Exhibits (SHA-256)"] == rows(report, "certificates")[0]["SHA-256"]


def test_an_order_half_done_says_what_is_open(audit: Ask, story: Story) -> None:
    whole = audit("order", story.order, *story.trust)
    scope = int(facts(whole, "Data: counts by kind and store")[
        next(iter(facts(whole, "Data: counts by kind and store")))].split()[2].rstrip(","))  # fmt: skip
    early = audit("order", story.order, *story.trust, "--until", scope + 1)
    assert early["log"]["folded"] == scope + 1
    assert {(one["in scope"], one["present before"], one["not"]) for one in rows(early, "data")} == {(4, None, 4)}
    nothing = audit("order", story.order, *story.trust, "--until", 0)
    assert "No scope is fixed yet" in notes(nothing, "Data: counts by kind and store")


def test_people_of_an_order_are_counted_and_not_named(
    deployment: Deployment, tmp_path: Path, audit: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    async def live() -> str:
        files: dict[str, Any] = {"keys": deployment.keys, "sealed": deployment.sealed, "tiles": deployment.tiles}
        async with deployed(deployment.settings.database, tmp_path, **files) as world:
            world._log_key = deployment.signers.log_key()
            await world.seed(*album(1), *album(2))
            order = world.order(request.ByList(subjects=(subject(1), subject(2))))
            world.ask(order)
            await world.settle()
            await world.approve(order)
            await world.settle()
            (tmp_path / "trust.json").write_bytes(trust.dump(world.trust))
            return str(order.id)

    order = asyncio.run(live())
    capsys.readouterr()
    report = audit("order", order, "--trust", tmp_path / "trust.json")
    assert facts(report, "The order")["Selection"] == "by list: people 2"
    assert facts(report, "The order")["State"] == "completed"
    with psycopg.connect(deployment.settings.database) as connection:
        ((body,),) = connection.execute("select body from request where request_id = %s", [order]).fetchall()
    assert b"subject0" not in bytes(body)


def test_sources_are_reported_with_their_debt_and_who_depends_on_them(audit: Ask, story: Story) -> None:
    report = audit("sources", *story.trust)
    assert [(one["source"], one["images now"]) for one in rows(report, "sources")] == [
        ("left", 5), ("studio", 4), ("web", 0),
    ]  # fmt: skip
    owed = {one["source"]: one for one in rows(report, "debt")}
    assert owed.keys() == {"left", "web"}
    # Person 4 consented, person 5 did not; both are without a licence.
    assert (owed["left"]["without consent"], owed["left"]["without licence"], owed["left"]["models in use"]) == (
        1,
        5,
        1,
    )
    assert (owed["web"]["without consent"], owed["web"]["not stated"]) == (0, "licence, supplier")
    assert [one["declared interest"][:4] for one in rows(report, "interests")] == ["=the"]
    images = {(one["source"], one["model"]): one["images"] for one in rows(report, "dependents")}
    assert images == {("studio", "face@1"): 8, ("web", "face@1"): 4, ("left", "gate@1"): 5}
    counted = {(one["source"], one["kind"]): one for one in rows(report, "counts")}
    assert [counted["studio", "image"][column] for column in ("registered", "erased", "in the catalogue")] == [8, 4, 4]


def test_models_are_reported_with_what_the_log_says_of_them(audit: Ask, story: Story) -> None:
    report = audit("models", *story.trust)
    standing = {one["model"]: (one["status"], one["last said in the log"]) for one in rows(report, "models")}
    assert standing == {"face@1": ("tainted", "tainted"), "gate@1": ("clean", None)}
    assert len(rows(report, "taints")) == 2
    assert {one["from"] for one in rows(report, "lineage")} == {"snapshot-face", "snapshot-gate"}


def test_a_person_sees_what_is_held_and_which_models_used_it(audit: Ask, story: Story) -> None:
    report = audit("subject", subject(2))
    assert facts(report, "Images and what was made of them") == {"Images": 4}
    assert [(one["model"], one["images of yours"]) for one in rows(report, "models")] == [("face@1", 4)]
    assert {one["kind"] for one in rows(report, "artifacts")} == {"image", "derivative", "shard-row", "embedding"}
    assert [one["what"] for one in rows(audit("subject", subject(4)), "consents")] == ["given"]
    assert str(subject(2)) not in json.dumps(report)
    gone = audit("subject", subject(1))
    assert facts(gone, "Images and what was made of them") == {"Images": 0}
    assert notes(gone, "Refused at registration") == "for every purpose"
    assert notes(report, "Refused at registration") == "No."


def test_a_reference_is_read_from_stdin_and_a_wrong_one_is_not_repeated(
    audit: Ask, story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{subject(2)}\n"))
    assert facts(audit("subject", "-"), "Images and what was made of them") == {"Images": 4}
    assert main(["audit", "subject", "Jane Doe"]) == Exit.USAGE
    shown = capsys.readouterr()
    assert "expected a subject_ref" in shown.err
    assert "Jane" not in shown.err + shown.out


def test_a_period_is_counted(audit: Ask, story: Story) -> None:
    report = audit("period", START.date(), START.date().replace(day=START.day + 2), *story.trust)
    kinds = {one["type"].split(".")[2]: one["requests"] for one in rows(report, "requests")}
    assert kinds["deletion"] == kinds["order"] == 1
    assert {(one["class"], one["artifacts"]) for one in rows(report, "scopes")} == {("people", 16), ("order", 16)}
    assert {(one["provision"], one["result"]): one["requests"] for one in rows(report, "results")} == {
        ("data", "complete"): 2
    }
    assert {one["what"]: one["models"] for one in rows(report, "models")} == {"tainted": 2}
    empty = audit("period", "2020-01-01", "2020-02-01", *story.trust)
    assert not any(one["rows"] for section in empty["sections"] for one in section["tables"])
    audit("period", "2020-02-01", "2020-01-01", code=Exit.USAGE)


def test_every_form_is_written_whole_or_not_at_all(audit: Ask, story: Story, tmp_path: Path) -> None:
    out = tmp_path / "reports"
    made = audit("sources", *story.trust, "--out", out)["files"]
    assert {"sources.html", "sources.json", "sources-debt.csv", "sources-sources.csv"} <= set(made)
    assert sorted(one.name for one in out.iterdir()) == sorted(made)
    assert {(out / name).stat().st_mode & 0o777 for name in made} == {0o600}
    page = (out / "sources.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert "Data debt" in page
    written = list(csv.reader((out / "sources-interests.csv").read_text().splitlines()))
    assert written[1][2] == "'=the approver holds shares of the supplier"  # no formula for a spreadsheet
    assert json.loads((out / "sources.json").read_text())["kind"] == "sources"
    audit("sources", *story.trust, "--out", out, code=Exit.USAGE)  # nothing is overwritten
    only = audit("models", *story.trust, "--out", tmp_path / "one", "--format", "html")["files"]
    assert only == ["models.html"]


def test_a_full_disk_leaves_nothing_behind_and_is_said(
    audit: Ask, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def full(number: int) -> None:
        if len(list((tmp_path / "full").iterdir())) > 2:
            raise OSError(errno.ENOSPC, "full")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    assert (
        main(["audit", "models", "--trust", str(story.folder / "trust.json"), "--out", str(tmp_path / "full")])
        == Exit.USAGE
    )
    assert "No space left" in capsys.readouterr().err
    assert list((tmp_path / "full").iterdir()) == []


def test_a_log_that_does_not_verify_gives_no_report(audit: Ask, story: Story, deployment: Deployment) -> None:
    for path in (deployment.settings.data / "log").rglob("*"):
        if path.is_file() and "entries" in path.parts:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    for command in (["order", story.order], ["sources"], ["models"], ["period", "2026-01-01", "2027-01-01"]):
        assert audit(*command, *story.trust, code=Exit.NEGATIVE) is None


def test_what_is_no_order_or_not_there_is_bad_input(audit: Ask, story: Story) -> None:
    audit("order", story.person, *story.trust, code=Exit.USAGE)
    audit("order", "00000000-0000-4000-8000-000000000000", *story.trust, code=Exit.USAGE)


def test_a_page_escapes_what_others_wrote() -> None:
    table = Table("t", ("<b>",), [("<script>alert(1)</script>",)])
    report = document.Report("x", "<i>", "A & B", START, None, [Section("s", [("<u>", "&")], [table], ["<p>"])])
    page = document.as_html(report).decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert "A &amp; B" in page


def test_printed_for_people_it_is_readable(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "order", story.order, *map(str, story.trust)]) == Exit.OK
    shown = capsys.readouterr().out
    assert "Provisions and their clocks" in shown
    assert "face@1" in shown
