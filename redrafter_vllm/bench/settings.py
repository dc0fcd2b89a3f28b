# SPDX-License-Identifier: Apache-2.0
"""What a run of `redrafter bench` measures, checked before any engine starts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from redrafter_vllm.bench import memory
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.load import Load, Ramp, limits, most_at_a_time, name_of
from redrafter_vllm.bench.prompts import RANDOM

MODES = ("offline", "serve")
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
STEP_TOKENS = 4096  # computed at most in one step where prompts may not be cut


class SettingsError(ValueError):
    """Settings that contradict each other or the machine; the message is one sentence."""


@dataclass(frozen=True)
class Settings:
    """A benchmark. `options` are further ones of vLLM's command line, for all engines."""

    mode: str
    target: str
    configurations: tuple[Configuration, ...]  # the first is the one that the others are compared with
    data: str = "mt-bench"
    concurrency: tuple[Load, ...] = CONCURRENCY
    requests: int = 16  # of a turn, at least; never fewer than run at a time
    prompt_tokens: int = 512
    max_tokens: int = 128
    rounds: int = 5
    temperature: float = 0.0
    ignore_eos: bool = False
    one_at_a_time: bool = False
    port: int | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("requests", "prompt_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if not self.concurrency or any(most_at_a_time([load]) < 1 for load in self.concurrency):
            raise SettingsError(f"--concurrency must be positive, not {' '.join(map(str, self.concurrency))}")
        ramp = next((load for load in self.concurrency if isinstance(load, Ramp)), None)
        if ramp is not None and self.mode != "offline":
            raise SettingsError(
                f"--concurrency {ramp} needs offline: vllm bench serve keeps to one number of requests at a time"
            )
        if self.max_tokens < 2:
            raise SettingsError(
                f"--max-tokens must be at least 2, not {self.max_tokens}: the first has no step behind it"
            )
        if self.temperature < 0:
            raise SettingsError(f"--temperature must be at least 0, not {self.temperature}")
        if len(self.configurations) < 2:
            raise SettingsError("there is nothing to compare plain vLLM with: give a --config, or leave ReDrafter in")
        if self.port is not None and not 0 < self.port <= 65536 - len(self.configurations):
            raise SettingsError(f"--port {self.port} is no port, or leaves too few behind it")
        if self.port is not None and self.mode != "serve":
            raise SettingsError("--port is for servers: leave it out, or choose serve")

    def requests_at(self, load: Load) -> int:
        """Requests of a turn."""
        return len(limits(load, self.requests))

    @property
    def ignores_eos(self) -> bool:
        """Whether every request has all its new tokens. What follows on random tokens may end at once."""
        return self.ignore_eos or self.data == RANDOM

    @property
    def most_at_a_time(self) -> int:
        """Requests that run at a time under the highest load."""
        return most_at_a_time(self.concurrency)

    @property
    def prompts(self) -> int:
        """Prompts of the largest turn."""
        return max(map(self.requests_at, self.concurrency))

    def described(self) -> dict[str, Any]:
        """What another run must have in common with this one to continue it: all but the number of rounds."""
        return {
            "mode": self.mode,
            "target": self.target,
            "configurations": {one.name: one.speculative for one in self.configurations},
            "data": self.data,
            "concurrency": [name_of(load) for load in self.concurrency],
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": self.ignore_eos,
            "options": list(self.options),
        }


@dataclass(frozen=True)
class Plan:
    """How the engines of a benchmark fit into this machine."""

    settings: Settings
    folder: Path  # of the target's files
    gpus: tuple[memory.Gpu, ...]

    @property
    def has_gpu(self) -> bool:
        return bool(self.gpus)

    @cached_property
    def config(self) -> Any:
        """transformers' configuration of the target's text model."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder).get_text_config()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(f"the configuration of {self.settings.target} cannot be read: {reason}") from None

    @property
    def max_model_len(self) -> int:
        """Prompt, new tokens, and two steps' drafts beyond them where the target has room.

        vLLM cuts drafts that would exceed the length, and with asynchronous scheduling counts those in flight.
        """
        settings = self.settings
        rows = 1 + max(one.slots for one in settings.configurations)
        longest = getattr(self.config, "max_position_embeddings", None) or 1 << 30
        needed = settings.prompt_tokens + settings.max_tokens
        if needed > longest:
            raise SettingsError(
                f"{settings.target} has {longest} positions, and {needed} are needed: give a smaller --prompt-tokens "
                "or --max-tokens"
            )
        return int(min(longest, needed + 2 * rows))

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the engines' type, as far as it is known here."""
        dtype = str(self.option("--dtype") or getattr(self.config, "dtype", None) or "")
        return 4 if dtype.endswith("float32") else 2

    def option(self, *names: str) -> str | None:
        """The value that the user gave to an option of vLLM."""
        found = None
        words = list(self.settings.options)
        for index, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name in names:
                found = value if equals else next(iter(words[index + 1 : index + 2]), None)
        return found

    @property
    def cache(self) -> int:
        """Bytes of an engine's key-value cache."""
        if given := self.option("--kv-cache-memory-bytes"):
            return int(given) if given.isdecimal() else 0
        return memory.cache_bytes(self.config, self.settings.most_at_a_time, self.max_model_len, self.itemsize)

    @property
    def bytes_each(self) -> int:
        """Of an engine, about. A target stored in 16 bits and run in float32 takes twice its files' size."""
        stored = 4 if str(getattr(self.config, "dtype", "")).endswith("float32") else 2
        weights = memory.weight_bytes(self.folder) * self.itemsize / stored
        return int(weights) + self.cache + memory.OVERHEAD[self.settings.mode]

    @property
    def free(self) -> int:
        """Bytes free for engines; over the GPUs of one, as many of the first as it uses."""
        if not self.gpus:
            import psutil

            return int(psutil.virtual_memory().available)
        sizes = (self.option("--tensor-parallel-size", "-tp"), self.option("--pipeline-parallel-size", "-pp"))
        number = 1
        for size in sizes:
            number *= int(size) if size and size.isdecimal() else 1
        return sum(gpu.free for gpu in self.gpus[:number])

    @cached_property
    def together(self) -> bool:
        """Whether all engines run side by side.

        Raises:
            RoomError: Not even one has room.
        """
        fits = memory.fits_together(len(self.settings.configurations), self.bytes_each, self.free)
        return fits and not self.settings.one_at_a_time

    def engine_options(self, configuration: Configuration) -> list[str]:
        """On vLLM's command line; the user's own stand last and win."""
        settings = self.settings
        given = [
            *("--max-model-len", str(self.max_model_len)),
            *("--max-num-seqs", str(settings.most_at_a_time)),
            *("--kv-cache-memory-bytes", str(self.cache)),
            # Servers would take top-p and penalties from the target, which requests to an engine do not have.
            *("--generation-config", "vllm"),
            *("--seed", "0"),
        ]
        if self.gpus and self.together:
            # vLLM refuses to start unless this fraction of the GPU is free. What an engine takes depends on the cache.
            given += ["--gpu-memory-utilization", f"{int(90 / len(settings.configurations)) / 100:.2f}"]
        if configuration.env.get("VLLM_USE_V2_MODEL_RUNNER") == "0" and settings.temperature:
            # Runner V1 ends the engine on a CPU when it computes a part of a prompt that has a seed.
            given += [
                "--no-enable-chunked-prefill",
                "--max-num-batched-tokens",
                str(max(STEP_TOKENS, self.max_model_len)),
            ]
        return [*given, *settings.options]


def target_folder(target: str) -> Path:
    """Where the target's files are: the folder itself, or its snapshot in the cache of Hugging Face.

    Raises:
        SettingsError: Neither.
    """
    path = Path(target)
    if path.is_dir():
        return path
    if path.exists() or target.startswith((".", "/", "~")) or target.count("/") != 1:
        raise SettingsError(f"{target} is no folder of a model, and no hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(target, local_files_only=True))
    except (OSError, ValueError):
        raise SettingsError(
            f"{target} is no folder, and not in the cache of Hugging Face: download it first, with hf download {target}"
        ) from None


def check_ports(first: int, number: int) -> None:
    """Raises SettingsError unless so many ports from `first` on are free."""
    from redrafter_vllm.utils.local_server import is_free

    for port in range(first, first + number):
        if not is_free(port):
            raise SettingsError(f"port {port} is in use: give another --port, or none to let free ones be chosen")
