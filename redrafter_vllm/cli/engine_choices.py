# SPDX-License-Identifier: Apache-2.0
"""What an engine would choose for a target and its drafter, by vLLM's own configuration and the start's measurement."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redrafter_vllm.utils.findings import Finding, Level


def of_engine(target: str, drafter: str | None) -> Iterator[Finding]:
    """Type and trees, whether these adapt and from which estimate, and the type of the drafter's weights.

    Nothing is served: the configuration is built, with vLLM's defaults, and drafter weights are timed as a start does.
    """
    from redrafter_vllm.adaptive.stored import stored_calibration
    from redrafter_vllm.chat.own_engine import start_failure
    from redrafter_vllm.checkpoint.locate import WORD

    if find_spec("vllm") is None:  # which is a finding of its own
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # the findings say what matters
    from vllm import EngineArgs

    speculative = {"method": WORD, "model": drafter or WORD}
    try:
        config = EngineArgs(model=target, speculative_config=speculative).create_engine_config()
    except Exception as error:  # of vLLM, of pydantic, and ours
        yield Finding(Level.PROBLEM, "engine", f"would not start: {start_failure(error)}")
        return
    drafting = config.speculative_config.drafting
    shape = f"{drafting.beam_width} beams of {drafting.beam_length}, at most {drafting.num_speculative_tokens} nodes"
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    yield Finding(Level.OK, "engine", f"{dtype} on {config.device_config.device_type}, {shape}")
    folder = Path(config.speculative_config.checkpoint)
    yield _adaptive(config, stored_calibration(folder) is not None)
    yield _weights(config, folder, dtype)


def _adaptive(config: Any, is_calibrated: bool) -> Finding:
    from redrafter_vllm.integration.worker.adaptive_report import why_not_on_cpu, why_nowhere

    on_cpu = config.device_config.device_type == "cpu"
    reason = (why_not_on_cpu if on_cpu else why_nowhere)(config, None)
    if reason is None and not on_cpu and not config.compilation_config.cudagraph_mode.has_full_cudagraphs():
        reason = "that needs full CUDA graphs"
    if reason is not None:
        return Finding(Level.NOTE, "adaptive trees", f"no: {reason}")
    if is_calibrated:
        return Finding(Level.OK, "adaptive trees", "yes, from the calibration in the drafter's training.json")
    says = "yes, from the drafter's probabilities as they are, until steps have corrected them"
    return Finding(Level.OK, "adaptive trees", f"{says}: it has no calibration")


def _weights(config: Any, folder: Path, dtype: str) -> Finding:
    from redrafter_vllm.integration.worker.weight_choice import with_faster_weights

    chosen = with_faster_weights(str(folder), config.speculative_config.drafting, config).drafter_quantization
    if chosen == "int8":
        return Finding(Level.OK, "drafter weights", "in INT8, measured here to be faster")
    if chosen == "none":
        return Finding(Level.OK, "drafter weights", f"in {dtype}: INT8, measured here, is not faster")
    return Finding(Level.OK, "drafter weights", f"in {dtype}: INT8 is tried with bfloat16 on a CPU, if trees adapt")
