"""ops/kubernetes: good by the schemas of Kubernetes, the same workers and mounts as everywhere else, scaling within bounds."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from expunge.domain.topics import TOPICS
from expunge.pipeline import WORKERS
from expunge.settings import PREFIX, Settings
from expunge.wiring.up import API
from tests.guards.sources import ROOT
from tests.guards.test_compose import mounts

HERE = ROOT / "ops" / "kubernetes"
VERSION = "1.30"
OF_KEDA = {"keda.sh/v1alpha1"}
SETS = sorted({*WORKERS, "canary"})
"""Run with a name and a volume per replica; the read API, which keeps nothing, as a Deployment."""
RUN = sorted({*SETS, API})


def run(name: str) -> dict[str, Any]:
    """The pod of a worker, the canary or the read API."""
    found: dict[str, Any] = of("Deployment" if name == API else "StatefulSet")[name]["spec"]["template"]
    return found


def arguments(name: str) -> list[str]:
    return {"canary": ["canary", "run"], API: ["serve-api"]}.get(name, ["worker", name])


@cache
def resources() -> list[tuple[str, dict[str, Any]]]:
    """Every document of the files that the kustomization names, with its file."""
    named = yaml.safe_load((HERE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [(name, one) for name in named for one in yaml.safe_load_all((HERE / name).read_text(encoding="utf-8"))]


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for _, one in resources() if one["kind"] == kind}


def test_every_file_is_in_the_kustomization() -> None:
    named = yaml.safe_load((HERE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert sorted(named) == sorted(path.name for path in HERE.glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize(
    "place", range(len(resources())), ids=lambda place: f"{resources()[place][0]}:{resources()[place][1]['kind']}"
)
def test_a_document_is_good_by_its_schema(place: int) -> None:
    _, one = resources()[place]
    if one["apiVersion"] in OF_KEDA:
        check_scaled_object(one)
    else:
        kubernetes_validate.validate(one, VERSION, strict=True)


def test_the_schema_check_sees_a_wrong_field() -> None:
    broken = {**of("StatefulSet")["purge"], "spec": {"replicaz": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)
    with pytest.raises(AssertionError):
        check_scaled_object({**of("ScaledObject")["purge"], "spec": {"scaleTarget": {}}})


def check_scaled_object(one: dict[str, Any]) -> None:
    """What KEDA's CRD asks of a ScaledObject, of the fields that are used here (keda.sh/docs/2.17)."""
    spec = one["spec"]
    known = {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "advanced",
        "triggers",
    }
    assert spec.keys() <= known
    assert spec["scaleTargetRef"].keys() == {"apiVersion", "kind", "name"}
    for name in ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"):
        assert isinstance(spec[name], int)
    asked = {
        "prometheus": {"serverAddress", "query", "threshold"},
        "kafka": {"bootstrapServers", "consumerGroup", "topic", "lagThreshold"},
    }
    for trigger in spec["triggers"]:
        assert asked[trigger["type"]] <= trigger["metadata"].keys()
        assert all(isinstance(text, str) for text in trigger["metadata"].values()), "KEDA takes strings"


def test_what_runs_in_compose_has_a_set_or_deployment_a_service_and_a_budget() -> None:
    assert sorted(of("StatefulSet")) == SETS
    assert sorted(of("Deployment")) == [API]
    assert sorted(of("PodDisruptionBudget")) == RUN
    assert sorted(of("Service")) == sorted([*RUN, f"{API}-metrics"])
    for name in RUN:
        labels = run(name)["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == name
        for selector in (
            of("Service")[name]["spec"]["selector"],
            of("PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"],
        ):
            assert selector == labels


@pytest.mark.parametrize("name", RUN)
def test_a_pod_runs_its_worker_with_no_rights_to_spare(name: str) -> None:
    pod = run(name)["spec"]
    (one,) = pod["containers"]
    assert one["args"][:2] == arguments(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert one["resources"]["limits"]["memory"]
    assert one["readinessProbe"]["httpGet"]["path"] == ("/livez" if name == "canary" else "/readyz")
    assert one["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert one["lifecycle"]["preStop"]
    assert pod["terminationGracePeriodSeconds"] >= 5 + 20, "preStop, then what Compose gives"


@pytest.mark.parametrize("name", RUN)
def test_a_pod_mounts_what_compose_mounts(name: str) -> None:
    (one,) = run(name)["spec"]["containers"]
    mounted = {place["mountPath"]: not place.get("readOnly", False) for place in one["volumeMounts"]}
    theirs = {target: writable for target, (_, writable) in mounts(name).items() if target != "/data/public"}
    for target in ("/tmp", "/run/secrets", "/data/workers"):  # noqa: S108 - a mount
        mounted.pop(target, None)
        theirs.pop(target, None)
    assert mounted == theirs


def test_metrics_are_asked_of_every_replica_and_the_api_by_the_gateway_alone() -> None:
    for name in SETS:
        assert of("Service")[name]["spec"]["clusterIP"] == "None"
    metrics, asked = of("Service")[f"{API}-metrics"]["spec"], of("Service")[API]["spec"]
    assert metrics["clusterIP"] == "None"
    assert metrics["selector"] == asked["selector"]
    assert "clusterIP" not in asked
    (port,) = asked["ports"]
    (rule,) = of("NetworkPolicy")[API]["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port["port"]] == [8080]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]


def test_scaling_is_capped_at_the_partitions_and_ignores_what_is_stuck() -> None:
    for name, one in of("ScaledObject").items():
        (topic,) = WORKERS[name].consumes
        assert one["spec"]["scaleTargetRef"]["name"] == name
        assert one["spec"]["maxReplicaCount"] == topic.partitions
        (kafka,) = (trigger["metadata"] for trigger in one["spec"]["triggers"] if trigger["type"] == "kafka")
        assert kafka["topic"] == topic.name in TOPICS
        assert kafka["consumerGroup"] == f"expunge-{name}"
        assert kafka["excludePersistentLag"] == "true"
        assert kafka["allowIdleConsumers"] == "false"
        assert "expunge_oldest_open_request_seconds" in str(one["spec"]["triggers"])
    assert set(of("ScaledObject")) == {name for name, worker in WORKERS.items() if worker.consumes} - {"coordinate"}


def test_traffic_is_denied_but_for_what_is_named() -> None:
    policies = of("NetworkPolicy")
    assert policies["deny-all"]["spec"].keys() == {"podSelector", "policyTypes"}
    ((expression,),) = (policies["stores"]["spec"]["podSelector"]["matchExpressions"],)
    assert set(expression["values"]) == {"purge", "invalidate", "retrain", "rescan"}


def test_settings_are_settings_and_secrets_are_not_among_them() -> None:
    kustomization = yaml.safe_load((HERE / "kustomization.yaml").read_text(encoding="utf-8"))
    (generated,) = kustomization["configMapGenerator"]
    names = {one.partition("=")[0] for one in generated["literals"]}
    assert names <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert "EXPUNGE_DATABASE" not in names


def test_sizes_are_documented() -> None:
    text = Path(ROOT / "ops" / "SIZING.md").read_text(encoding="utf-8")
    for name in WORKERS:
        assert re.search(rf"^\| {name} \|", text, flags=re.MULTILINE), name
