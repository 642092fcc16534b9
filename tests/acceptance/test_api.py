"""What a product backend without a Kafka client does: it signs, hands in over HTTP, follows, and has its proofs checked
offline; on real servers and workers. And the API keeps to its own OpenAPI document, whatever it is asked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from expunge.api.tokens import Scope
from expunge.client import Drawn
from expunge.domain import dsse, lineage, request, trust
from expunge.domain.request import ENVELOPE_TYPE, Regulation, SubjectRef
from expunge.domain.words import Grade
from expunge.readside import trusted
from tests.acceptance.served import AUDIENCE, KEY, SOURCE, Served, until

pytestmark = [pytest.mark.thirdparty, pytest.mark.timeout(600)]

MODEL: Final = "face@1"
EXAMPLES: Final = 8
"""Of each operation, besides what covers its parameters' limits."""


def signed(subject_ref: SubjectRef) -> tuple[str, bytes]:
    """A deletion as its publisher signs it: id and envelope."""
    drawn = Drawn.now()
    asked = request.DeletionRequested(
        id=drawn.id, audience=AUDIENCE, issued_at=drawn.issued_at, expires_at=drawn.expires_at, nonce=drawn.nonce,
        subject_ref=subject_ref, regulation=Regulation.GDPR, received_at=drawn.issued_at,
    )  # fmt: skip
    return drawn.id, dsse.sign(request.dump_request(asked), request.PAYLOAD_TYPE, KEY)


def expunge(*arguments: str | Path) -> str:
    """A command as an outsider runs it, without any deployment's settings."""
    command = [sys.executable, "-m", "expunge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(served: Served, key: str) -> None:
    """A model that has one image in its training set, and whose weights are in a store."""
    (served.folder / "models" / "face").mkdir()
    (served.folder / "models" / "face" / "1.npz").write_bytes(b"weights" * 100)
    events: tuple[lineage.Lineage, ...] = (
        lineage.SnapshotCommitted(
            snapshot="all-1", purpose="training", grade=Grade.DECLARED,
            members_by_key=(lineage.SourceKeys(source=SOURCE, keys=(key,)),),
        ),
        lineage.ModelRegistered(
            model=MODEL, weights_digest="ab" * 32, purpose="training", trained_on=("all-1",),
            weights=lineage.WeightsLocation(store="models", unit="face", locator="1.npz"),
            code_digest="cd" * 32, params_digest="ef" * 32, created_at=Drawn.now().issued_at,
        ),
    )  # fmt: skip
    for event, table in zip(events, ("snapshot", "model"), strict=True):
        with served.client() as client:
            client.lineage(event)
        until(lambda name=table: served.rows(f"select count(*) from {name}") == [(1,)], f"no {table}")  # type: ignore[misc] # bound now


def met(served: Served, token: str, path: str, name: str) -> list[str]:
    """What a walk over the pages of a list meets, one item at a time."""
    found: list[str] = []
    page = served.read(token, f"{path}?limit=1")
    while page["next"] is not None:
        found += [one[name] for one in page["items"]]
        page = served.read(token, f"{path}?limit=1&cursor={page['next']}")
    return found + [one[name] for one in page["items"]]


def test_a_request_handed_in_over_http_is_followed_to_proofs_that_verify_offline(
    served: Served, tmp_path: Path
) -> None:
    learnt, plain = SubjectRef("k1.http-a-person-in-a-model"), SubjectRef("k1.http-a-person-in-no-model")
    batch = served.batch(learnt, plain)
    digest = batch["images"][1]["digest"]
    with served.client() as client:
        client.lineage(lineage.parse_lineage(json.dumps(batch).encode()))
    served.until_known(learnt, plain)
    trained(served, batch["images"][0]["key"])
    token = served.token(*Scope)
    assert served.read(token, f"/models/{MODEL}")["clean"] is True

    handed = [signed(one) for one in (learnt, plain)]
    for request_id, envelope in handed:
        for _ in range(2):
            status, headers, body = served.ask(
                token, "/requests", envelope, Content_Type=ENVELOPE_TYPE, Idempotency_Key=request_id
            )
            assert (status, headers.get("location")) == (202, f"/requests/{request_id}"), body
        other = served.ask(token, "/requests", envelope + b" ", Content_Type=ENVELOPE_TYPE, Idempotency_Key=request_id)
        assert (other[0], json.loads(other[2])["type"]) == (422, "urn:expunge:problem:key-reused")
    served.until_certified(*(one for one, _ in handed))

    (first, _), (second, _) = handed
    until(lambda: served.read(token, f"/requests/{second}")["final"], "it was not completed")
    standing = served.read(token, f"/requests/{second}")
    assert (standing["state"], standing["results"]["data"]) == ("completed", "complete")
    assert served.read(token, f"/requests/{first}")["state"] == "data-certified"  # its model waits for a trainer
    model = served.read(token, f"/models/{MODEL}")
    assert (model["clean"], model["taints"][0]["path"], model["taints"][0]["images"]) == (False, [MODEL], 1)
    assert [one for one in met(served, token, "/requests", "request") if one in {first, second}] == [first, second]
    assert met(served, token, "/models", "model") == [MODEL]

    policy = tmp_path / "trust.json"
    policy.write_bytes(trust.dump(asyncio.run(trusted(served.embedded.deployment))))
    bundle, receipt = tmp_path / "bundle.zip", tmp_path / "receipt.json"
    path = f"/requests/{second}/certificates/data"
    status, headers, data = served.proof(token, path)
    assert status == 200
    bundle.write_bytes(data)
    spared = served.ask(token, path, None, If_None_Match=headers["etag"])
    assert (spared[0], spared[2]) == (304, b"")
    wanted = json.dumps({"image": digest}).encode()
    status, _, data = served.proof(token, f"/requests/{second}/receipts", wanted, Content_Type="application/json")
    assert status == 200, data
    receipt.write_bytes(data)
    assert "NOT" not in expunge("verify", bundle, "--trust", policy)
    assert "NOT" not in expunge("verify", receipt, "--trust", policy, "--sweep", bundle)
    bent = bytearray(bundle.read_bytes())
    bent[len(bent) // 3] ^= 1
    (tmp_path / "bent.zip").write_bytes(bent)
    with pytest.raises(AssertionError):
        expunge("verify", tmp_path / "bent.zip", "--trust", policy)


def test_the_api_keeps_to_its_document_whatever_it_is_asked(served: Served, tmp_path: Path) -> None:
    """Schemathesis: every operation, with values that fit, values at the limits, and values that do not fit. One check is
    left out, that all that fits is taken: no generator draws a signature that verifies or a cursor that was handed out."""
    pytest.importorskip("schemathesis")
    somebody = SubjectRef("k1.http-a-person-asked-about")
    with served.client() as client:
        client.lineage(lineage.parse_lineage(json.dumps(served.batch(somebody)).encode()))
        client.flush()
        served.until_known(somebody)
        request_id = client.delete(somebody, regulation=Regulation.GDPR)
    served.until_certified(request_id)
    there = {"path.request_id": request_id, "path.provision": "data", "path.tree": 0, "path.leaf": 0}
    given = "".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in there.items())
    (tmp_path / "schemathesis.toml").write_text(f"[parameters]\n{given}", encoding="ascii")
    token = served.token(*Scope, publisher=None)
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
        f"{served.url}/openapi.json", "--header", f"Authorization: Bearer {token}", "--phases", "examples,coverage,fuzzing",
        "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure",
        "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    paths = served.read(token, "/openapi.json")["paths"]
    assert f"Tested: {sum(map(len, paths.values()))}\n" in done.stdout, done.stdout[-2000:]
