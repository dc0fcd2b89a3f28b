# SPDX-License-Identifier: Apache-2.0
"""What an engine would choose for a target and its drafter, by vLLM's own configuration for this machine."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redrafter_vllm.utils.findings import Finding, Level

CALIBRATED = "from the calibration in the drafter's training.json"
UNCALIBRATED = "from the drafter's probabilities, until steps have corrected them: it has no calibration"
MEASURED = "in INT8 or bfloat16, whichever the start of an engine measures to be faster; its log says which"
NOT_MEASURED = "INT8 is an option, and chosen by itself only in bfloat16 on a CPU where trees adapt"


def of_engine(target: str, drafter: str | None) -> Iterator[Finding]:
    """Type and trees, whether these adapt and from which estimate, and the type of the drafter's weights.

    The configuration is built with vLLM's defaults; no weights are loaded.
    """
    from redrafter_vllm.adaptive.stored import stored_calibration
    from redrafter_vllm.chat.own_engine import start_failure
    from redrafter_vllm.checkpoint.locate import WORD

    if find_spec("vllm") is None:  # which is a finding of its own
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # the findings say what matters
    from vllm.engine.arg_utils import EngineArgs

    speculative = {"method": WORD, "model": drafter or WORD}
    try:
        config = EngineArgs(model=target, speculative_config=speculative).create_engine_config()
    except Exception as error:  # of vLLM, of pydantic, and ours
        yield Finding(Level.PROBLEM, "engine", f"would not start: {start_failure(error)}")
        return
    drafting, device = config.speculative_config.drafting, config.device_config.device_type
    shape = f"{drafting.beam_width} beams of {drafting.beam_length}, at most {drafting.num_speculative_tokens} nodes"
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    yield Finding(Level.OK, "engine", f"{dtype} on {device}, {shape}")
    reason = _why_fixed(config, device)
    if reason is None:
        is_calibrated = stored_calibration(Path(config.speculative_config.checkpoint)) is not None
        yield Finding(Level.OK, "adaptive trees", f"yes, {CALIBRATED if is_calibrated else UNCALIBRATED}")
    else:
        yield Finding(Level.NOTE, "adaptive trees", f"no: {reason}")
    measured = reason is None and device == "cpu" and dtype == "bfloat16"
    yield Finding(Level.OK, "drafter weights", MEASURED if measured else f"in {dtype}: {NOT_MEASURED}")


def _why_fixed(config: Any, device: str) -> str | None:
    """Why trees do not adapt; None where they do."""
    from redrafter_vllm.integration.worker.adaptive_report import why_not_on_cpu, why_nowhere

    if device == "cpu":
        return why_not_on_cpu(config, None)
    if config.compilation_config.cudagraph_mode.has_full_cudagraphs():
        return why_nowhere(config, None)
    return "that needs full CUDA graphs"
