# SPDX-License-Identifier: Apache-2.0
"""How to install what is missing, for messages.

The two packages of this repository are on no package index yet, so they are named as folders of a clone.
"""

import shlex


def install_plugin(extra: str = "") -> str:
    """How to install redrafter-vllm, with what its `extra` adds."""
    return _from_clone(".", extra)


def install_training(extra: str = "") -> str:
    """How to install redrafter-training, with what its `extra` adds."""
    return _from_clone("./training", extra)


def install_vllm() -> str:
    """How to install vLLM, which comes with the plugin on a GPU and with more than a package without one."""
    return f"{install_plugin('cuda')} on an NVIDIA GPU, or make setup without one"


def _from_clone(folder: str, extra: str) -> str:
    return f"in a clone of the repository, pip install {shlex.quote(f'{folder}[{extra}]' if extra else folder)}"
