# SPDX-License-Identifier: Apache-2.0
"""Loading of the target's weights, on one device or several, optionally quantised, after a check that they fit."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from redrafter_training.config.job import Job
from redrafter_training.target.model import TargetModel
from redrafter_training.target.precision import has_bf16_products
from redrafter_training.target.properties import end_tokens, load_config
from redrafter_training.utils.memory import free_memory, readable, stored_bits, weight_bytes
from redrafter_vllm.utils.messages import sentence

HEADROOM = 0.95  # fraction of a GPU's free memory for layers; the rest is for activations


class TargetLoadError(ValueError):
    """A target that cannot be loaded with these options."""


def load_target(
    job: Job,
    device: torch.device,
    devices: Sequence[torch.device] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    training_bytes: int = 0,
) -> TargetModel:
    """The job's target with its embedding on `device`.

    Args:
        devices: all that this process may use, `device` first; default: the first `job.target_gpus` GPUs.
        tokenizer: the target's; its EOS ends responses too, as it does in serving.
        training_bytes: memory to keep free for the drafter's training on the first of several GPUs.

    Raises:
        TargetLoadError: it is damaged or does not fit, a library is missing, or there are too few GPUs.
    """
    chosen = list(devices or visible_devices(job, device))
    check_target_options(job)
    check_fits(job, chosen)
    arguments: dict[str, Any] = {"dtype": target_dtype(job, device), "trust_remote_code": job.trust_remote_code}
    if job.target_quantization != "none":
        _require("bitsandbytes", "a quantised target")
        arguments["quantization_config"] = quantization(job.target_quantization, target_dtype(job, device))
    if len(chosen) > 1:
        _require("accelerate", "a target on several GPUs")
        arguments |= {"device_map": "auto", "max_memory": memory_shares(chosen, training_bytes)}
    elif job.target_quantization != "none":
        _require("accelerate", "a quantised target")
        arguments["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(job.target, **arguments)
    except Exception as problem:  # of any type: damaged files, types that a device lacks
        raise TargetLoadError(f"the target {job.target} cannot be loaded: {sentence(problem)}") from problem
    if tokenizer is not None:
        model.generation_config.eos_token_id = end_tokens(model.generation_config, tokenizer)
    return TargetModel(model if "device_map" in arguments else model.to(device))


def target_dtype(job: Job, device: torch.device) -> torch.dtype:
    """The dtype in which the job's target computes on `device`."""
    if job.target_dtype != "auto":
        return getattr(torch, job.target_dtype)
    if device.type != "cpu":
        return torch.bfloat16
    stored = load_config(job.target, trust_remote_code=job.trust_remote_code).get_text_config().dtype
    return torch.bfloat16 if stored == torch.bfloat16 and has_bf16_products(device) else torch.float32


def quantization(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The configuration for `--target-quantization`; matrix products are in `dtype`."""
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def visible_devices(job: Job, device: torch.device) -> list[torch.device]:
    """The devices for the target's layers where the context has not assigned any.

    Raises:
        TargetLoadError: there are fewer than `job.target_gpus` GPUs.
    """
    if job.target_gpus == 1:
        return [device]
    found = torch.cuda.device_count() if device.type == "cuda" else 0
    if found < job.target_gpus:
        raise TargetLoadError(f"--target-gpus is {job.target_gpus}, and this machine has {found}")
    return [torch.device("cuda", number) for number in range(job.target_gpus)]


def check_target_options(job: Job) -> None:
    """Raises TargetLoadError for the quantisation of a target that is stored quantised."""
    if job.target_quantization == "none":
        return
    if bits := stored_bits(model_without_weights(job.target, trust_remote_code=job.trust_remote_code).config):
        raise TargetLoadError(f"{job.target} is already stored quantised to {bits} bits: omit --target-quantization")


def check_fits(job: Job, devices: Sequence[torch.device]) -> None:
    """Raises TargetLoadError when the target's weights are larger than the free memory of `devices` together.

    On the CPU each process of a machine holds a copy, and all copies must fit.
    """
    free = [free_memory(device) for device in devices]
    if any(size is None for size in free):
        return
    available = sum(size for size in free if size is not None)
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if devices[0].type == "cpu" else 1
    dtype = target_dtype(job, devices[0])
    needed = target_bytes(job, dtype) * copies
    if needed <= available:
        return
    several = f" in each of {copies} processes, {readable(needed)} together," if copies > 1 else ""
    kind = str(dtype).removeprefix("torch.") if job.target_quantization == "none" else job.target_quantization
    raise TargetLoadError(
        f"the target {job.target} needs {readable(needed / copies)} for its weights in {kind}{several} and "
        f"{' and '.join(map(str, devices))} {'has' if len(devices) == 1 else 'have'} {readable(available)} free: "
        + "; ".join(remedies(job, devices))
    )


def remedies(job: Job, devices: Sequence[torch.device]) -> list[str]:
    """What the user can change to make the target fit."""
    ways = []
    if target_dtype(job, devices[0]) == torch.float32:
        ways.append("halve it with --target-dtype bfloat16")
    if job.target_quantization != "4bit":
        ways.append(
            f"quantise it with --target-quantization {'8bit or 4bit' if job.target_quantization == 'none' else '4bit'}"
        )
    if devices[0].type == "cuda":
        ways.append(f"spread it over more GPUs with --target-gpus {2 * len(devices)}")
    elif job.workers[1] > 1:
        ways.append("use fewer workers per machine")
    ways.append("compute a --hidden-cache where it fits, and train from that with --evaluate false")
    return ways


def model_without_weights(target: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The target's model with parameters on the meta device, from its configuration."""
    config = load_config(target, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def target_bytes(job: Job, dtype: torch.dtype) -> int:
    """Bytes of the target's weights in memory, from their shapes."""
    target = model_without_weights(job.target, trust_remote_code=job.trust_remote_code)
    return weight_bytes(target, dtype.itemsize, job.target_quantization)


def memory_shares(devices: Sequence[torch.device], training_bytes: int) -> dict[int, int]:
    """Maximum bytes of the target on each GPU; the first one keeps `training_bytes` free."""
    shares = {}
    for number, device in enumerate(devices):
        free = free_memory(device) or 0
        shares[device.index or 0] = max(0, int(free * HEADROOM) - (0 if number else training_bytes))
    return shares


def _require(library: str, purpose: str) -> None:
    if find_spec(library) is None:
        raise TargetLoadError(f"{purpose} needs {library}: pip install {library}")
