# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` accepts the options of the images, the compose file and the manifest; no engine is started."""

import json
import re

import pytest
import yaml

from redrafter_vllm.integration.versions import installed_before
from redrafter_vllm.plugin import register
from tests.deploy.test_kubernetes import TEMPLATE
from tests.deploy.tools import DEPLOY

COMPOSE = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]["serving"]["command"]


def of_the_cpu_image() -> list[str]:
    text = (DEPLOY / "Dockerfile.cpu").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    arguments: list[str] = json.loads(command)
    return arguments


OPTIONS = {
    "image": of_the_cpu_image(),
    "compose": [re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", word) for word in COMPOSE],
    "kubernetes": TEMPLATE["spec"]["containers"][0]["args"],
}


@pytest.mark.slow  # imports vLLM
@pytest.mark.parametrize("place", OPTIONS)
def test_vllm_accepts_them(place: str) -> None:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if installed_before("0.33"):
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    else:
        from vllm.entrypoints.common.cli_args import make_arg_parser

    register()
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(OPTIONS[place])
    # The image has its drafter in a folder of this name.
    assert parsed.spec_model == {"image": "drafter"}.get(place, "redrafter")
