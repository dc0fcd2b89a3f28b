# SPDX-License-Identifier: Apache-2.0
"""When the patches are installed: a few when the plugin loads, all others in processes that use the method.

A process uses it when a user asks for the method, or when a configuration of it arrives from another process. For that
the configuration is pickled so that unpickling it installs the patches.
"""

import copyreg
import logging
from typing import Any

from redrafter_vllm.integration.patches import front


def install_recognition() -> None:
    """What every process needs to recognise the method; without it vLLM stays as it is."""
    front.install_recognition(install_all)


def install_all() -> None:
    """Every patch. Idempotent.

    Raises:
        InterfaceChangedError: vLLM has changed where a patch is installed.
    """
    # Imported here: they load most of vLLM, and every process of vLLM loads the plugin.
    from redrafter_vllm.integration.patches import api, attention, metrics, products, runner
    from redrafter_vllm.integration.speculative_config import RedrafterSpeculativeConfig

    runner.install()
    attention.install()
    front.install()
    api.install()
    metrics.install()
    products.install()
    copyreg.pickle(RedrafterSpeculativeConfig, _pickled)
    logging.getLogger("vllm.config.scheduler").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for vLLM's warning that our scheduler is not its own, and might switch asynchronous scheduling off.

    It does not: it derives from `AsyncScheduler` where vLLM would take that.
    """
    from redrafter_vllm.integration.frontend.own_classes import SCHEDULER

    return not ("custom scheduler class" in str(record.msg) and SCHEDULER in (record.args or ()))


def _pickled(config: Any) -> tuple[Any, ...]:
    _, arguments, *state = config.__reduce_ex__(2)
    return (_arrive, arguments, *state)


def _arrive(cls: Any) -> Any:
    """An empty configuration that unpickling fills, in a process that has the patches."""
    install_all()
    return cls.__new__(cls)
