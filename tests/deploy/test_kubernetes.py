# SPDX-License-Identifier: Apache-2.0
"""The manifests: by Kubernetes' own schemas and those of custom resources, and what one says of another."""

import shlex
from copy import deepcopy
from typing import Any

import pytest
import yaml

from tests.deploy.custom_resources import POD_MONITOR, RAY_JOB, Schema
from tests.deploy.tools import DEPLOY

VERSION = "1.33"


def documents(name: str) -> dict[str, Any]:
    """The manifests of a file by their kind."""
    text = (DEPLOY / "kubernetes" / name).read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


SERVING = documents("serving.yaml")
JOB = documents("training.yaml")["RayJob"]
MONITOR = documents("podmonitor.yaml")["PodMonitor"]
COPY = documents("copy.yaml")["Pod"]
TEMPLATE = SERVING["Deployment"]["spec"]["template"]
CLUSTER = JOB["spec"]["rayClusterSpec"]


def validate(document: dict[str, Any]) -> None:
    """Unknown fields and wrong types are errors."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: `make setup`")
    validator.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("kind", SERVING)
def test_serving_fits_the_schema(kind: str) -> None:
    validate(SERVING[kind])


@pytest.mark.parametrize("pod", [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]], ids=["head", "worker"])
def test_pods_of_the_training_fit_the_schema(pod: dict[str, Any]) -> None:
    """KubeRay's own fields are not in Kubernetes' schema; those of its pods are."""
    validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod["template"]})


def test_the_pod_for_copying_writes_where_the_server_reads() -> None:
    validate(COPY)
    served, copied = TEMPLATE["spec"], COPY["spec"]
    assert copied["volumes"] == [volume for volume in served["volumes"] if "persistentVolumeClaim" in volume]
    (container,) = copied["containers"]
    (mount,) = container["volumeMounts"]
    assert mount in served["containers"][0]["volumeMounts"]
    # docs/deployment.md applies the first document alone before this pod, and copies to the model's folder.
    assert next(iter(SERVING)) == "PersistentVolumeClaim"
    assert served["containers"][0]["args"][0].startswith(f"{mount['mountPath']}/")


def failures(document: dict[str, Any], schema: Schema) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: `make setup`")
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_custom_resources_fit_their_schemas() -> None:
    assert failures(JOB, RAY_JOB) == failures(MONITOR, POD_MONITOR) == []


@pytest.mark.parametrize(
    ("document", "schema", "place", "right"),
    [
        (JOB, RAY_JOB, ("spec",), "shutdownAfterJobFinishes"),
        (JOB, RAY_JOB, ("spec", "rayClusterSpec"), "rayVersion"),
        (JOB, RAY_JOB, ("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas"),
        (MONITOR, POD_MONITOR, ("spec", "podMetricsEndpoints", 0), "interval"),
        (MONITOR, POD_MONITOR, ("metadata",), "labels"),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_is_found(
    document: dict[str, Any], schema: Schema, place: tuple[str | int, ...], right: str
) -> None:
    changed = deepcopy(document)
    part: Any = changed
    for step in place:
        part = part[step]
    part[f"{right}s"] = part.pop(right)
    assert any(f"'{right}s' was unexpected" in failure for failure in failures(changed, schema))
    part[right] = part.pop(f"{right}s")
    part[right] = [part[right]]  # of another type
    assert failures(changed, schema)


def test_a_misspelt_field_is_found() -> None:
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSecond": 5}
    container = {"name": "vllm", "image": "image", "readinessProbe": probe}
    with pytest.raises(Exception, match="periodSecond"):
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}})


def test_the_service_and_the_monitor_select_the_pods() -> None:
    labels = TEMPLATE["metadata"]["labels"]
    monitor = MONITOR["spec"]
    selections = (
        SERVING["Deployment"]["spec"]["selector"]["matchLabels"],
        SERVING["Service"]["spec"]["selector"],
        monitor["selector"]["matchLabels"],
    )
    assert all(selection and selection.items() <= labels.items() for selection in selections)

    (container,) = TEMPLATE["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = [container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    asked += [SERVING["Service"]["spec"]["ports"][0]["targetPort"], monitor["podMetricsEndpoints"][0]["port"]]
    assert set(asked) <= ports.keys()
    assert TEMPLATE["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
    # vLLM ends requests in flight within this time, before the pod is killed.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    limit = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    assert limit > 0 and pause + limit < TEMPLATE["spec"]["terminationGracePeriodSeconds"]


def test_claims_and_mounts_exist() -> None:
    claim = SERVING["PersistentVolumeClaim"]["metadata"]["name"]
    for template in (TEMPLATE, CLUSTER["headGroupSpec"]["template"], CLUSTER["workerGroupSpecs"][0]["template"]):
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            v["name"] for v in template["spec"]["volumes"]
        }
    assert TEMPLATE["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim


def test_training_takes_the_job_s_options() -> None:
    """The training's parser accepts them, and they ask for as many workers as the cluster has GPUs."""
    from redrafter_training.cli import parse

    command = shlex.split(JOB["spec"]["entrypoint"])
    assert command[:2] == ["redrafter", "train"]
    job = parse(command[2:])[0]
    (group,) = CLUSTER["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert job.num_workers == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert job.ray_address == "auto"
    mounted = {mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
    for place in (job.target, job.data, job.out, job.run_dir):
        assert any(str(place).startswith(f"{folder}/") for folder in mounted)
