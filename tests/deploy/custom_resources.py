# SPDX-License-Identifier: Apache-2.0
"""What the manifests use of two custom resources, as JSON schemas: the fields, their types, and no other field.

Names and types are those of KubeRay 1.4 (`ray.io/v1`, RayJob) and of the Prometheus operator 0.93
(`monitoring.coreos.com/v1`, PodMonitor), read in their custom resource definitions. A manifest that begins to use
another field needs it here. Pods have a schema of Kubernetes.
"""

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_OR_NO: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}  # by name
POD: Schema = {"type": "object"}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhd]))+$"}


def closed(fields: dict[str, Schema], required: Sequence[str] = ()) -> Schema:
    """An object with these fields alone."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def several(items: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": items, "minItems": 1}


def resource(api: str, kind: str, spec: Schema) -> Schema:
    """A whole manifest."""
    fields = {
        "apiVersion": {"const": api},
        "kind": {"const": kind},
        "metadata": closed({"name": TEXT, "labels": TEXTS}, ["name"]),
        "spec": spec,
    }
    return closed(fields, list(fields))


HEAD = closed({"rayStartParams": TEXTS, "template": POD}, ["template"])
WORKERS = closed(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": POD,
    },
    ["groupName", "minReplicas", "maxReplicas", "template"],
)
CLUSTER = closed({"rayVersion": TEXT, "headGroupSpec": HEAD, "workerGroupSpecs": several(WORKERS)}, ["headGroupSpec"])
RAY_JOB = resource(
    "ray.io/v1",
    "RayJob",
    closed(
        {
            "entrypoint": TEXT,
            "backoffLimit": COUNT,
            "shutdownAfterJobFinishes": YES_OR_NO,
            "ttlSecondsAfterFinished": COUNT,
            "rayClusterSpec": CLUSTER,
        },
        ["entrypoint", "rayClusterSpec"],
    ),
)
POD_MONITOR = resource(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    closed(
        {
            "selector": closed({"matchLabels": TEXTS}, ["matchLabels"]),
            "podMetricsEndpoints": several(closed({"port": TEXT, "path": TEXT, "interval": DURATION}, ["port"])),
        },
        ["selector", "podMetricsEndpoints"],
    ),
)
