# SPDX-License-Identifier: Apache-2.0
"""Options of response generation."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from redrafter_training.config.job import absolute_place, expand_places
from redrafter_training.config.recipe import ResponseSettings

# Arguments of the engine that change its speed and memory, not its output.
NEUTRAL = frozenset(
    {
        "enable_chunked_prefill",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "tensor_parallel_size",
    }
)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The target, and how vLLM runs it.

    Attributes:
        target: folder or hub name of the target.
        trust_remote_code: run the code that the target's or tokenizer's repository brings along.
        device: cpu, cuda, or auto for cuda where there is one.
        target_dtype: what the target computes in; auto is bfloat16 on cuda and the checkpoint's type on a CPU.
        engine: further arguments of vLLM's `LLM`, as JSON; each worker uses tensor_parallel_size GPUs.
    """

    target: str
    trust_remote_code: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    target_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def output_options(self) -> dict[str, Any]:
        """The engine's arguments that may change its output."""
        return {key: value for key, value in self.engine.items() if key not in NEUTRAL}


@dataclass(frozen=True, kw_only=True)
class PromptJob(EngineSettings):
    """Options of `redrafter invent`: prompts that the target writes itself.

    Attributes:
        target: folder or hub name of the target, a chat model.
        out: file for the prompts, one JSON object per line; give it to `redrafter respond` as --data.
        count: prompts to keep.
        temperature: sampling temperature; lower ones invent the same prompts again and again.
        max_prompt: maximum number of tokens of a prompt; longer ones are left out.
        openings: `general`, or a file with the first words of a prompt on each line, used in turn: the target then
            invents other kinds of prompts than by itself. An empty line leaves the beginning to the target.
        opening_share: the part of the prompts that begin with a line of `openings`; the target begins the others.
        seed: of all sampling.
        chat_template: `vicuna`, or a file of Jinja source (default: the tokenizer's own).
        chat_template_kwargs: variables for the chat template, as JSON.
        trust_remote_code: run the code that the target's or tokenizer's repository brings along.
        device: cpu, cuda, or auto for cuda where there is one.
        target_dtype: what the target computes in; auto is bfloat16 on cuda and the checkpoint's type on a CPU.
        engine: further arguments of vLLM's `LLM`, as JSON.
    """

    out: Path
    count: int = 1024
    temperature: float = 1.0
    max_prompt: int = 160
    openings: str | None = None
    opening_share: float = 1.0
    seed: int = 0
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expand_places(self, "target", "out", "chat_template", "openings")
        if not 0.01 <= self.opening_share <= 1:
            raise ValueError(f"opening_share must be between 0.01 and 1, got {self.opening_share}")
        if min(self.count, self.max_prompt) < 1:
            raise ValueError(f"count and max_prompt must be at least 1, got {self.count} and {self.max_prompt}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {self.temperature}")

    def identity(self) -> dict[str, Any]:
        """What must be the same for prompts of an earlier start to be kept."""
        keys = ("temperature", "max_prompt", "seed", "chat_template_kwargs", "target_dtype")
        return {
            "target": absolute_place(self.target),
            "chat_template": self.chat_template and absolute_place(self.chat_template),
            **{key: getattr(self, key) for key in keys},
            "engine": self.output_options,
        }


@dataclass(frozen=True, kw_only=True)
class ResponseJob(ResponseSettings, EngineSettings):
    """Options of `redrafter respond`: responses of the target to the prompts of some data.

    Attributes:
        target: folder or hub name of the target.
        data: as for training: `stdlib`, a folder of Python files, conversations, or a data set on the hub.
        data_config: configuration ("subset") of a data set.
        data_split: split of a data set to take prompts from (default: the only one, or train).
        held_out_split: split of the data set to take held-out prompts from (default: a part of data_split).
        out: folder for the responses; give it to the training as --data.
        chat_template: `vicuna`, or a file of Jinja source (default: the tokenizer's own).
        chat_template_kwargs: variables for the chat template, as JSON: {"enable_thinking": false} for instance.
        duplicates: drop answers one of several conversations in which the user says the same, keep all of them.
        evaluation_prompts: drop leaves out conversations with prompts of MT-Bench and Spec-Bench, which drafters are
            measured on; keep answers them, too, and the training leaves them out unless it is told the same.
        count: texts to generate for training; one for every twenty is added, from held-out prompts (default: 3072
            from source code, one per record from anything else, which is also the maximum).
        window: maximum number of tokens of a text, prompt and responses together; the --window to train with.
        seed: of the choice of prompts and of all sampling.
        shard_size: texts per file; a worker that dies loses at most these.
        num_workers: engines to generate with; above 1 they are Ray workers.
        ray_address: cluster to use (auto: the one this machine belongs to); uses Ray for one worker, too.
        max_failures: how often Ray may restart each worker.
        trust_remote_code: run the code that the target's or tokenizer's repository brings along.
        device: cpu, cuda, or auto for cuda where there is one.
        target_dtype: what the target computes in; auto is bfloat16 on cuda and the checkpoint's type on a CPU.
        engine: further arguments of vLLM's `LLM`, as JSON; each worker uses tensor_parallel_size GPUs.
    """

    data: str
    out: Path
    data_config: str | None = None
    data_split: str | None = None
    held_out_split: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    duplicates: Literal["drop", "keep"] = "drop"
    evaluation_prompts: Literal["drop", "keep"] = "drop"
    count: int | None = None
    window: int = 256
    seed: int = 0
    shard_size: int = 512
    num_workers: int = 1
    ray_address: str | None = None
    max_failures: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_places(self, "target", "data", "out", "chat_template")
        if min(self.shard_size, self.num_workers) < 1 or self.max_failures < 0:
            raise ValueError("shard_size and num_workers must be at least 1, max_failures not negative")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.max_prompt >= self.window - 1:
            raise ValueError(f"need max_prompt < window - 1, got {self.max_prompt} and {self.window}")

    @property
    def on_ray(self) -> bool:
        return self.num_workers > 1 or self.ray_address is not None

    @property
    def gpus_per_worker(self) -> int:
        return int(self.engine.get("tensor_parallel_size", 1))

    def absolute(self) -> "ResponseJob":
        """The same for a process that runs in another folder."""
        return replace(
            self,
            target=absolute_place(self.target),
            data=absolute_place(self.data),
            out=self.out.absolute(),
            chat_template=self.chat_template and absolute_place(self.chat_template),
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same for finished shards to be kept."""
        absolute = self.absolute()
        return {
            "target": absolute.target,
            "data": absolute.data,
            "chat_template": absolute.chat_template,
            **{
                key: value
                for key in ("data_config", "data_split", "held_out_split", "chat_template_kwargs")
                if (value := getattr(self, key))
            },
            "duplicates": self.duplicates,
            **({} if self.evaluation_prompts == "drop" else {"evaluation_prompts": self.evaluation_prompts}),
            "count": self.count,
            "window": self.window,
            "temperatures": list(self.temperatures),
            "min_prompt": self.min_prompt,
            "max_prompt": self.max_prompt,
            "seed": self.seed,
            "longest_repeat": self.longest_repeat,
            "shard_size": self.shard_size,
            "target_dtype": self.target_dtype,
            "engine": self.output_options,
        }
