# SPDX-License-Identifier: Apache-2.0
"""Entry point of the vLLM plugin (`vllm.general_plugins`), loaded in every process of vLLM."""

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Add the method `redrafter` to vLLM; engines with another method run as without the plugin. Idempotent."""
    import vllm

    from redrafter_vllm.integration.patches import front, install
    from redrafter_vllm.integration.versions import UnsupportedVllmError, check_vllm_version

    try:
        check_vllm_version(vllm.__version__)
    except UnsupportedVllmError as error:
        logger.warning("%s", error)
        front.install_refusal(str(error))
        return
    install.install_recognition()
