"""The story, in the seven points that the README tells. Everything in it happens on real servers and real files.

1. real PostgreSQL and Kafka, and one process per worker, on loopback
2. 400 photographs of 40 people from two sources are registered
3. models are trained on them, vectors indexed, the snapshot committed
4. one person withdraws consent for training, another asks for deletion: data, then models
5. a regulator orders a source erased, two people approve
6. an erased photo comes back and is refused; certificates are verified offline; the log is replayed
7. the bundles stay, with the commands to look further
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final
from uuid import UUID

from rich.table import Table

from expunge.client import Publisher
from expunge.demo import faces
from expunge.demo.product import SOURCES, TRAINING, Product, tell
from expunge.demo.proofs import Proofs
from expunge.demo.stage import Stage
from expunge.demo.trainer import Made, Studio
from expunge.domain import events, statement, trust, verification
from expunge.domain.dsse import SEED_BYTES, SigningKey
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.request import Authority, BySource, OrderProvision, Regulation, RequestId
from expunge.domain.trust import TrustedKey
from expunge.domain.words import ModelStatus, Provision, Remedy, Role
from expunge.embedded.kafka import DEFAULT_VERSION as KAFKA_VERSION
from expunge.pipeline import WORKERS
from expunge.readside import Reader, reader, replay_into
from expunge.trainer import Trainer
from expunge.verify import write_bundle
from expunge.wiring.up import Embedded, register_key

AUDIENCE: Final = "expunge:demo"
ISSUER: Final = "Pretend Product (demo)"
REFERENCE: Final = "Order 2026-0117 (fictional)"
CERTIFICATE_SECONDS: Final = 60.0
MODEL_SECONDS: Final = 60.0
RECONCILE_SECONDS: Final = 60.0
REGISTER_SECONDS: Final = 60.0


@dataclass(slots=True)
class Told:
    """What the last screen shows (mutable)."""

    requests: dict[str, RequestId] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    bundles: list[dict[str, Any]] = field(default_factory=list)
    affected: list[str] = field(default_factory=list)
    replay: dict[str, Any] = field(default_factory=dict)


def tell_story(output: Path, *, keep: Path | None, as_json: bool) -> bool:
    """Run it; whether everything held. Whatever happens, every process started here is stopped before it returns."""
    stage = Stage(as_json)
    started = time.monotonic()
    told = Told()
    with _interruptible(), ExitStack() as cleanup:
        root = _root(keep, cleanup)
        embedded = Embedded(root, audience=AUDIENCE, issuer=ISSUER)
        cleanup.callback(_stop, embedded, stage)
        _opening(stage)
        _Story(stage, embedded, output, told, cleanup).tell()
        seconds = time.monotonic() - started
        _closing(stage, told, output, seconds)
    if as_json:
        sys.stdout.write(json.dumps(_document(stage, told, output, seconds)) + "\n")
    return stage.held


class _Story:
    """The acts, in order; each uses what those before it left."""

    def __init__(self, stage: Stage, embedded: Embedded, output: Path, told: Told, cleanup: ExitStack) -> None:
        self._stage = stage
        self._embedded = embedded
        self._output = output
        self._told = told
        self._cleanup = cleanup
        self._photos = faces.photos()
        self._key = _new_key()
        self._approvers = (_new_key(), _new_key())
        self._product: Product
        self._publisher: Publisher
        self._proofs: Proofs
        self._studio: Studio

    def tell(self) -> None:
        stage = self._stage
        with stage.act(1, "Real servers and workers on loopback"):
            self._servers()
        with stage.act(2, "400 photographs of 40 people, from two sources"):
            self._register()
        with stage.act(3, "Models trained on them, vectors indexed, snapshot committed"):
            self._train()
        with stage.act(4, "One person withdraws consent for training, another asks for deletion"):
            self._people()
        with stage.act(5, "A regulator orders partner-2014 erased"):
            self._order()
        with stage.act(6, "It stays deleted, and outsiders can check"):
            self._check_everything()

    # 1

    def _servers(self) -> None:
        embedded, stage = self._embedded, self._stage
        stage.doing("starting PostgreSQL and Kafka")
        embedded.start_servers()
        self._product = Product(embedded.directory / "product", embedded.postgres.create_database("product"))
        embedded.use_stores(self._product.stores)
        for role, name, key in (
            (Role.PUBLISHER, "product", self._key),
            (Role.APPROVER, "counsel", self._approvers[0]),
            (Role.APPROVER, "data protection officer", self._approvers[1]),
        ):
            public = key.public
            register_key(
                embedded.settings.database, role=role.value, name=name, public=public.raw, key_id=public.key_id
            )
        stage.doing("starting workers")
        embedded.start_workers()
        self._proofs = self._cleanup.enter_context(Proofs(embedded.settings.kafka, self._still_running))
        self._publisher = self._as(self._key, "product")
        self._studio = Studio(self._product, self._publisher)
        stage.say(
            f"PostgreSQL {_postgres_version(embedded)} with pgvector; Apache Kafka {KAFKA_VERSION} (KRaft);"
            f" {len(WORKERS)} workers"
        )

    def _as(self, key: SigningKey, name: str) -> Publisher:
        return self._cleanup.enter_context(Publisher(self._embedded.settings.kafka, key, AUDIENCE, name))

    def _still_running(self) -> None:
        if ended := self._embedded.ended():
            raise Retryable(f"worker {ended[0]} ended; see {self._embedded.directory / 'logs'}")

    # 2

    def _register(self) -> None:
        stage = self._stage
        tell(self._publisher, SOURCES)
        stage.doing("writing photos, thumbnails and training shards")
        told = self._product.keep(self._photos)
        tell(self._publisher, told)
        stage.doing("waiting for the catalogue")
        images, artifacts = self._registered([one.batch_id for one in told])
        groups = sum(len(photo.people) > 1 for photo in self._photos)
        partner = sum(photo.source == "partner-2014" for photo in self._photos)
        stage.check(
            holds=images == len(self._photos),
            text=f"{images} photos registered ({groups} of them group photos), {artifacts} artifacts",
        )
        stage.say("each kept for account and training: photo, thumbnail; for training alone: shard row")
        stage.say(f"licensed-studio: {images - partner} photos, explicit consent")
        stage.say(f"partner-2014: {partner} photos, no consent record, declared: {SOURCES[1].declared_interests[0]}")

    def _registered(self, batches: Sequence[str]) -> tuple[int, int]:
        """Wait until these batches are in the catalogue; images and artifacts."""

        def found() -> tuple[int, int] | None:
            done = {one.batch_id: one for one in self._proofs.of(events.Registered) if one.batch_id in batches}
            if len(done) < len(batches):
                return None
            return sum(one.images for one in done.values()), sum(one.artifacts for one in done.values())

        return self._proofs.until(found, "the photos to be registered", REGISTER_SECONDS)

    # 3

    def _train(self) -> None:
        stage = self._stage
        stage.doing("training eigenfaces, fisherfaces and an identifier")
        made = self._studio.first()
        self._told.made.append(made)
        stage.say(_in_words(made))
        stage.doing("indexing vectors in FAISS and pgvector")
        told = self._product.index(self._photos, made.face.embed)
        tell(self._publisher, told)
        _, vectors = self._registered([one.batch_id for one in told])
        stage.check(holds=vectors == 2 * len(self._photos), text=f"{vectors} vectors registered: FAISS and pgvector")
        stage.doing("waiting for the models to be registered")
        models = self._until_models(lambda found: len(found) == 3 and set(found.values()) == {ModelStatus.CLEAN})  # noqa: PLR2004
        stage.check(
            holds=bool(models), text="face@1, doorbell@1 (fine-tuned from it) and age@1 (evaluated on it): clean"
        )

    # 4

    def _people(self) -> None:
        stage, product, told = self._stage, self._product, self._told
        asked = time.monotonic()
        told.requests["withdrawal"] = self._publisher.withdraw(
            product.subject(faces.WITHDRAWS), (TRAINING,), regulation=Regulation.GDPR
        )
        told.requests["deletion"] = self._publisher.delete(product.subject(faces.DELETED), regulation=Regulation.GDPR)
        self._publisher.flush()
        for name in ("withdrawal", "deletion"):
            stage.doing(f"waiting for the data certificate of the {name}")
            issued = self._certified(told.requests[name], Provision.DATA)
            told.seconds[name] = time.monotonic() - asked
            stage.check(
                holds=issued.result == "complete", text=f"{name}: data certificate after {told.seconds[name]:.1f} s"
            )
        self._look(
            faces.WITHDRAWS, {"photo", "thumbnail"}, "withdrew: photos stay for the account, rows and vectors are gone"
        )
        self._look(faces.DELETED, set(), "deleted: nothing left, group photo included")
        self._look(faces.BYSTANDER, None, "the third person's own photos, rows and vectors are untouched")
        self._tainted("face@1", "doorbell@1")
        age = self._model("age@1")
        stage.check(
            holds=age["status"] == ModelStatus.CLEAN and bool(age["metric_void"]),
            text=f"age@1 stays {age['status']}, its metric is void",
        )
        self._retrain(["withdrawal", "deletion"])

    def _look(self, person: int, stays: set[str] | None, text: str) -> None:
        """Look for a person's things in the product's own files and tables. `stays`: None for everything."""
        mine = [photo for photo in self._photos if person == photo.person]
        found = [self._product.holds(photo) for photo in (mine[0], mine[-1])]
        holds = all(there == (stays is None or name in stays) for one in found for name, there in one.items())
        self._stage.check(holds=holds, text=f"person {person} {text}" if stays is not None else text)

    def _certified(self, request: RequestId, provision: Provision) -> events.CertificateIssued:
        def found() -> events.CertificateIssued | None:
            self._refused([request])
            issued = self._proofs.of(events.CertificateIssued)
            return next((one for one in issued if (one.request_id, one.provision) == (request, provision)), None)

        return self._proofs.until(found, f"a {provision.value} certificate", CERTIFICATE_SECONDS)

    def _refused(self, requests: Sequence[str]) -> None:
        for one in self._proofs.of(events.RequestRejected):
            if one.request_id in requests:
                raise Rejected(one.code, f"expected the request to be accepted, it was rejected: {one.code}")
        for dead in self._proofs.of(events.DeadLettered):
            raise Rejected(dead.reason, f"expected no dead letter, got one from {dead.topic}: {dead.reason}")

    def _tainted(self, *names: str) -> None:
        for name in names:
            model = self._model(name)
            open_taints = [one for one in model["taints"] if one["resolution"] is None]
            paths = {" <- ".join(one["path"]) for one in open_taints}
            images = sum(one["images"] for one in open_taints)
            self._stage.check(
                holds=bool(open_taints),
                text=f"{name} is {model['status']}: {images} photos, path {', '.join(sorted(paths))}",
            )

    def _retrain(self, names: Sequence[str]) -> None:
        """The one job that waits, its answer, and the models certificates that follow."""
        stage, told = self._stage, self._told
        trainer = Trainer(self._embedded.settings.database, "demo-trainer")
        job = trainer.take()
        if job is None:
            raise Rejected("no-job", "expected a retraining job in the queue, there is none")
        stage.check(
            holds=trainer.take() is None,
            text=f"one coalesced retraining job: {', '.join(job.models)} without {len(job.exclusion)} photos",
        )
        stage.doing("training without them")
        made = self._studio.answer(job)
        before = told.made[-1]
        told.made.append(made)
        stage.say(f"before: {_in_words(before)}")
        stage.say(f"after:  {_in_words(made)}")
        for name in names:
            stage.doing(f"waiting for the models certificate of the {name}")
            issued = self._certified(told.requests[name], Provision.MODELS)
            stage.check(holds=issued.result == "complete", text=f"{name}: models certificate")
        left = [model for model in job.models if self._product.has_weights(model)]
        stage.check(holds=not left, text=f"the files of {', '.join(job.models)} are destroyed")
        number = made.measured.model.partition("@")[2]
        for name in (f"face@{number}", f"doorbell@{number}"):
            gate = self._gate(name)
            stage.check(holds=gate["clean"], text=f"{name} is clean at log size {gate['log_size']}")

    # 5

    def _order(self) -> None:
        stage, told = self._stage, self._told
        now = datetime.now(UTC).replace(microsecond=0)
        request = told.requests["order"] = self._publisher.order(
            BySource(source="partner-2014"),
            authority=Authority.REGULATOR,
            reference=REFERENCE,
            provisions=(
                OrderProvision(number=1, covers=Provision.DATA, deadline=now + timedelta(days=30)),
                OrderProvision(
                    number=2, covers=Provision.MODELS, deadline=now + timedelta(days=90), remedy=Remedy.RETRAIN
                ),
            ),
        )
        self._publisher.flush()
        stage.doing("waiting for the scope to be sealed")
        awaited = self._proofs.until(lambda: self._awaited(request), "the sealed scope", CERTIFICATE_SECONDS)
        stage.say(f"scope {awaited.scope_root[:16]}… sealed: {awaited.images} photos, waits for two approvals")
        for key, name in zip(self._approvers, ("counsel", "data protection officer"), strict=True):
            approver = self._as(key, name.replace(" ", "-"))
            approver.approve(request, awaited.scope_root)
            approver.flush()
            stage.say(f"{name} approves exactly that scope")
        asked = time.monotonic()
        stage.doing("waiting for the data certificate of the order")
        issued = self._certified(request, Provision.DATA)
        told.seconds["order"] = time.monotonic() - asked
        stage.check(
            holds=issued.result == "complete",
            text=f"order: data certificate {told.seconds['order']:.1f} s after approval",
        )
        left = [photo for photo in self._photos if photo.source == "partner-2014"]
        things = {name for photo in (left[0], left[-1]) for name, there in self._product.holds(photo).items() if there}
        stage.check(holds=not things, text="partner-2014: photos, thumbnails, shard rows and vectors are gone")
        self._tainted(*(f"{name}@2" for name in ("face", "doorbell")))
        told.affected = sorted(
            {one.model for one in self._proofs.of(events.ModelTainted) if one.sweep_id == issued.sweep_id}
        )
        stage.say(f"models affected by the order: {', '.join(told.affected)}")
        self._retrain(["order"])

    def _awaited(self, request: str) -> events.ApprovalAwaited | None:
        self._refused([request])
        return next((one for one in self._proofs.of(events.ApprovalAwaited) if one.request_id == request), None)

    # 6

    def _check_everything(self) -> None:
        self._upload_again()
        self._verify()
        self._replay()

    def _upload_again(self) -> None:
        photo = next(photo for photo in self._photos if photo.person == faces.DELETED)
        upload = self._product.upload(photo, "holiday-2026")
        tell(self._publisher, [upload])

        def answered() -> events.RegistrationRefused | events.Registered | None:
            for one in self._proofs.seen:
                if isinstance(one, events.RegistrationRefused | events.Registered) and one.batch_id == upload.batch_id:
                    return one
            return None

        answer = self._proofs.until(answered, "an answer about the upload", REGISTER_SECONDS)
        refused = isinstance(answer, events.RegistrationRefused)
        why = ", ".join(answer.codes) if isinstance(answer, events.RegistrationRefused) else "taken"
        self._stage.check(holds=refused, text=f"an erased photo, uploaded again under another name: refused ({why})")

    def _verify(self) -> None:
        stage, told = self._stage, self._told
        self._output.mkdir(parents=True, exist_ok=True)
        for old in self._output.glob("*.zip"):
            old.unlink()
        policy = self._output / "trust.json"
        policy.write_bytes(trust.dump(self._policy()))
        stage.doing("waiting for the order to be counted again")
        self._proofs.until(self._reconciled, "a reconciliation after the order", RECONCILE_SECONDS)
        paths = []
        for name, request in told.requests.items():
            for provision in Provision:
                files = self._certificate(request, provision)
                paths.append(self._output / f"{name}-{provision.value}.zip")
                write_bundle(files, paths[-1])
        stage.doing("verifying offline")
        reports = _verified(paths, policy)
        for path, report in zip(paths, reports, strict=True):
            told.bundles.append(report)
            last = report["steps"][-1]
            stage.check(
                holds=report["ok"],
                text=f"{path.name}: {last['number']} steps hold"
                if report["ok"]
                else f"{path.name}: step {last['number']}, {last['name']}: {last['detail']}",
            )
        tampered = self._embedded.directory / "tampered.zip"
        files = self._certificate(told.requests["deletion"], Provision.DATA)
        write_bundle(_one_byte_flipped(files), tampered)
        (report,) = _verified([tampered], policy)
        stage.check(holds=not report["ok"], text=f"the same with one byte flipped: fails at {report['where']}")

    def _reconciled(self) -> bool | None:
        """Whether the order's bundle has the reconciliation that its policy asks for; None while it is not there yet."""
        try:
            files = self._certificate(self._told.requests["order"], Provision.DATA)
        except Retryable:  # its checkpoint is not published yet
            return None
        report = verification.verify(files, self._policy())
        return None if report.where == "reconciliation" and "not there yet" in report.steps[-1].detail else True

    def _policy(self) -> trust.Trust:
        """What an auditor pins: keys by role, and the approvers'."""
        since = statement.instant(datetime.now(UTC) - timedelta(days=1))
        approvers = [
            TrustedKey(role=Role.APPROVER, name=name, public=key.public.to_base64(), valid_from=since)
            for key, name in zip(self._approvers, ("counsel", "data protection officer"), strict=True)
        ]
        return self._embedded.deployment.signers.trust(approvers)

    def _replay(self) -> None:
        self._stage.doing("replaying the log into an empty database")
        into = self._embedded.postgres.create_database("replayed")
        found = asyncio.run(replay_into(self._embedded.deployment, into, self._policy(), compare=True))
        self._told.replay = found
        self._stage.check(
            holds=found["equal"],
            text=f"{found['entries']} log entries replayed into an empty database: public and sealed state are equal"
            if found["equal"]
            else f"replay differs: {found['differences']}",
        )

    # asking

    def _ask(self, question: Callable[[Reader], Any]) -> Any:  # noqa: ANN401 - whatever the question answers
        async def ask() -> Any:  # noqa: ANN401 - as above
            async with reader(self._embedded.deployment) as opened:
                return await question(opened)

        return asyncio.run(ask())

    def _model(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask(lambda opened: opened.model(name))
        return found

    def _gate(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask(lambda opened: opened.gate(name))
        return found

    def _certificate(self, request: RequestId, provision: Provision) -> dict[str, bytes]:
        files: dict[str, bytes] = self._ask(lambda opened: opened.certificate(UUID(request), provision))
        return files

    def _until_models(self, holds: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Wait for what no event tells: that models are registered."""

        def found() -> dict[str, str] | None:
            models = {one["model"]: one["status"] for one in self._ask(lambda opened: opened.models())}
            return models if holds(models) else None

        return self._proofs.until(found, "the models to be registered", MODEL_SECONDS)


def _verified(paths: Sequence[Path], policy: Path) -> list[dict[str, Any]]:
    """What `expunge verify` says of each bundle, run as anyone would run it: no server, no network, its own process."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("EXPUNGE_")}
    ran = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "expunge", "verify", *map(str, paths), "--trust", str(policy), "--json"],
        env=bare, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    reports = [json.loads(line) for line in ran.stdout.splitlines()]
    if len(reports) != len(paths) or (ran.returncode == 0) != all(one["ok"] for one in reports):
        raise Rejected("verify-failed", f"expected a report per bundle, got exit code {ran.returncode}: {ran.stderr}")
    return reports


def _one_byte_flipped(files: dict[str, bytes]) -> dict[str, bytes]:
    name = "sweep/statements.jsonl"
    middle = len(files[name]) // 2
    changed = bytearray(files[name])
    changed[middle] ^= 1
    return {**files, name: bytes(changed)}


def _new_key() -> SigningKey:
    return SigningKey.from_seed(os.urandom(SEED_BYTES))


def _in_words(made: Made) -> str:
    one = made.measured
    return (
        f"{one.model}: {one.photos} photos of {one.people} people, identifies {one.accuracy:.1%}, "
        f"verification AUC {one.verification:.3f} on 10 people it never saw"
    )


def _postgres_version(embedded: Embedded) -> str:
    import psycopg

    with psycopg.connect(embedded.settings.database) as connection:
        return str(connection.execute("show server_version").fetchone()[0])  # type: ignore[index] # always a row


def _root(keep: Path | None, cleanup: ExitStack) -> Path:
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise Rejected("not-empty", "expected an empty or absent directory to keep the demo's deployment in")
        return keep.resolve()
    root = Path(tempfile.mkdtemp(prefix="expunge-demo-"))
    cleanup.callback(shutil.rmtree, root, ignore_errors=True)
    return root


def _stop(embedded: Embedded, stage: Stage) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
    stage.console.print("\n[dim]stopping workers and servers[/dim]")
    embedded.stop()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is taken as Ctrl-C is."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The first and the last screen


def _opening(stage: Stage) -> None:
    stage.console.print("[bold]Expunge: what happens when people, and a regulator, ask[/bold]")
    stage.console.print(faces.CREDIT)
    stage.console.print("Sources, requests and the order are fictional; servers, files, models and proofs are real.")


def _closing(stage: Stage, told: Told, output: Path, seconds: float) -> None:
    console = stage.console
    console.print(f"\n[bold]{'Everything held' if stage.held else 'NOT everything held'} in {seconds:.0f} s[/bold]")
    console.print("  ".join(f"act {act.number}: {act.seconds:.1f} s" for act in stage.acts))
    models = Table("model", "photos", "people", "identifies", "AUC, never seen", box=None, pad_edge=False)
    for made in told.made:
        one = made.measured
        models.add_row(one.model, str(one.photos), str(one.people), f"{one.accuracy:.1%}", f"{one.verification:.3f}")
    console.print(models)
    proofs = Table("certificate", "result", "verified absent", "level", "retained", "models", box=None, pad_edge=False)
    for name, report in zip(_names(told), told.bundles, strict=True):
        proofs.add_row(name, *_proven(report))
    console.print(proofs)
    if told.bundles:
        uncovered = list(
            dict.fromkeys(text for one in told.bundles for text in (one["summary"] or {}).get("not_covered", ()))
        )
        console.print(f"not covered: {'; '.join(uncovered)}", soft_wrap=True)
    if told.affected:
        console.print(
            f"models affected by the order: {', '.join(told.affected)}; each was replaced, its file destroyed"
        )
    console.print(f"\n[bold]Bundles are in {output}/[/bold]. Look further:")
    console.print(f"  expunge verify {output}/deletion-data.zip --trust {output}/trust.json", soft_wrap=True)
    console.print(f"  expunge verify {output}/*.zip --trust {output}/trust.json --json", soft_wrap=True)
    console.print(f"  unzip -p {output}/order-models.zip README.txt        how to check it with public tools only")
    console.print(
        "  expunge demo --keep DIR                              keeps the evidence log, stores and workers' logs"
    )
    console.print("  expunge up                                           a deployment of your own; expunge --help")


def _names(told: Told) -> list[str]:
    return [f"{name}-{provision.value}" for name in told.requests for provision in Provision][: len(told.bundles)]


def _proven(report: dict[str, Any]) -> tuple[str, str, str, str, str]:
    found = report["summary"]
    if found is None:
        return "does not verify", "", "", "", ""
    absent = sum(one["absent"] for one in found["stores"])
    levels = sorted({one["level"] for one in found["stores"] if one["level"] is not None})
    retained = ", ".join(f"{count} for {purposes}" for purposes, count in found["retained"].items())
    models = ", ".join(f"{one['model']} {one['resolution']}" for one in found["models"])
    return found["result"], f"{absent} artifacts", ", ".join(f"L{one}" for one in levels), retained, models


def _document(stage: Stage, told: Told, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "held": stage.held,
        "seconds": round(seconds, 1),
        "acts": [{"number": one.number, "title": one.title, "seconds": round(one.seconds, 1)} for one in stage.acts],
        "requests": told.requests,
        "certificate_seconds": {name: round(one, 1) for name, one in told.seconds.items()},
        "models": [asdict(made.measured) for made in told.made],
        "affected_by_order": told.affected,
        "bundles": [
            {"file": str(output / f"{name}.zip"), "ok": one["ok"], "result": (one["summary"] or {}).get("result")}
            for name, one in zip(_names(told), told.bundles, strict=True)
        ],
        "replay": told.replay,
    }
