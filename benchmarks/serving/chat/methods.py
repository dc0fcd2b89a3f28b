# SPDX-License-Identifier: Apache-2.0
"""The ways to decode that are compared, and the engines that they run on."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.assets import BUILD
from redrafter_vllm.bench.engine import Job
from redrafter_vllm.bench.kinds import EngineKind, as_users_run_it, plain, with_redrafter
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.trees import tree_name

PLAIN, LOOKUP, SUFFIX = "vLLM as installed", "prompt lookup", "suffix decoding"
PEERS = {"lookup": LOOKUP, "suffix": SUFFIX}  # by the words of the command line
DTYPES = ("bfloat16", "float32", "float16")
LOOKUP_TOKENS = 4
UNDEFINED_LOGITS = "vLLM's CPU build leaves its logits undefined there"
STEP_TOKENS = 4096  # computed at most in one step, unless one prompt has more


@dataclass(frozen=True)
class Method:
    """A way to decode."""

    name: str
    kind: EngineKind
    tree: DraftingConfig | None = None  # ReDrafter's
    package: str | None = None  # that vLLM needs for it
    learns: bool = False  # an engine drafts from the responses of earlier requests
    greedy_alone: str | None = None  # why its figures at a temperature would say nothing

    @property
    def missing(self) -> str | None:
        """Why there can be no engine; None if there can."""
        if self.package is None or importlib.util.find_spec(self.package.replace("-", "_")) is not None:
            return None
        return f"the package {self.package}, which vLLM needs for it, is not installed"


@dataclass(frozen=True)
class Serving:
    """What all engines have in common."""

    target: Path
    drafter: Path
    window: int  # maximum tokens of a prompt with its response
    trees: tuple[DraftingConfig, ...]
    batch: int = 8  # requests at a time
    dtype: str = "bfloat16"
    device: str = "cpu"
    eager: bool = False
    lookup: tuple[int, int] = (2, 4)  # shortest and longest n-gram that prompt lookup searches for
    logs: Path = BUILD / "chat"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if not 1 <= self.lookup[0] <= self.lookup[1]:
            raise ValueError(f"prompt lookup needs 1 <= shortest <= longest n-gram, not {list(self.lookup)}")

    def plain(self) -> Method:
        """vLLM without this project."""
        return Method(PLAIN, as_users_run_it(has_gpu=self.device != "cpu"))

    def plain_on_our_runner(self) -> Method:
        """vLLM without drafts on the runner that ReDrafter uses."""
        kind = plain()
        return Method(kind.name, kind)

    def peers(self, words: Sequence[str]) -> list[Method]:
        """vLLM's own ways to draft without a drafter, on vLLM as installed.

        On a CPU greedily alone: there vLLM 0.32 divides their logits by memory that was never written instead of the
        temperature, as the kernel that repeats it for draft tokens does not copy its result back.
        """
        installed = self.plain().kind
        greedy_alone = UNDEFINED_LOGITS if self.device == "cpu" else None
        lookup = {
            "method": "ngram",
            "num_speculative_tokens": LOOKUP_TOKENS,
            "prompt_lookup_min": self.lookup[0],
            "prompt_lookup_max": self.lookup[1],
        }
        found = {
            "lookup": Method(
                f"{LOOKUP}, {LOOKUP_TOKENS} tokens", replace(installed, speculative=lookup), greedy_alone=greedy_alone
            ),
            "suffix": Method(
                SUFFIX,
                replace(installed, speculative={"method": "suffix"}),
                package="arctic-inference",
                learns=True,
                greedy_alone=greedy_alone,
            ),
        }
        return [found[word] for word in words]

    def redrafters(self) -> list[Method]:
        """One for each tree."""
        return [
            Method(f"ReDrafter, served, {tree_name(tree)}", with_redrafter(self.speculative(tree)), tree)
            for tree in self.trees
        ]

    def speculative(self, tree: DraftingConfig) -> dict[str, Any]:
        """vLLM's speculative config."""
        given = {name: value for name, value in asdict(tree).items() if value is not None}
        return {"method": "redrafter", "model": str(self.drafter), **given}

    @property
    def max_model_len(self) -> int:
        """The window, and two trees behind it where the target has room: vLLM cuts drafts that exceed the length."""
        from redrafter_training.target.properties import read_facts

        rows = 1 + max((tree.num_speculative_tokens for tree in self.trees), default=0)
        longest = read_facts(str(self.target)).longest
        wanted = self.window + 2 * rows
        return wanted if math.isinf(longest) else min(wanted, int(longest))

    def job(self, method: Method, prompts: list[list[int]], max_tokens: int) -> Job:
        """The engine of a method; it warms up with the first two prompts."""
        from benchmarks.models.cache import kv_cache_bytes

        length = self.max_model_len
        engine: dict[str, Any] = {
            "dtype": self.dtype,
            "max_model_len": length,
            "max_num_seqs": self.batch,
            "max_num_batched_tokens": max(STEP_TOKENS, length),
            "enforce_eager": self.eager,
            "kv_cache_memory_bytes": kv_cache_bytes(str(self.target), self.batch, length, self.dtype),
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
            # Of the target's generation config only the end tokens count, which every pass names.
            "generation_config": "vllm",
            "seed": 0,
        }
        if method.kind.env.get("VLLM_USE_V2_MODEL_RUNNER") == "0":
            # Runner V1 ends the engine on a CPU when it computes a part of a prompt that has a seed: it sets the offset
            # of the request's generator back, which a CPU's does not have.
            engine["enable_chunked_prefill"] = False
        name = f"{method.name}, batch {self.batch}"
        return Job(name, str(self.target), method.kind.speculative, engine, prompts, max_tokens, method.kind.env)

    def log(self, method: Method) -> Path:
        stem = "".join(letter if letter.isalnum() else "-" for letter in method.name.lower())
        return self.logs / f"{stem}-batch-{self.batch}.log"


@dataclass(frozen=True)
class Outcome:
    """What an engine emitted for some prompts, in their order."""

    tokens: list[list[int]]
    steps: list[list[int]]  # tokens of each step by request, the prompt's step first
    seconds: float

    @classmethod
    def of(cls, passes: Sequence[dict[str, Any]]) -> "Outcome":
        """The passes' results (see `benchmarks.engines.generate.run`), one after the other."""
        return cls(
            [tokens for result in passes for tokens in result["tokens"]],
            [steps for result in passes for steps in result["steps"]],
            sum(result["seconds"] for result in passes),
        )

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds
