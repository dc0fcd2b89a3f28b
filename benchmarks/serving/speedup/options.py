# SPDX-License-Identifier: Apache-2.0
"""Options of the comparison, and the engines that they need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm.v1.spec_decode.dynamic.utils import (
    build_dynamic_sd_schedule_lookup,
    validate_and_normalize_dynamic_sd_schedule,
)

from benchmarks import cli
from benchmarks.assets import BUILD
from benchmarks.models.cache import kv_cache_bytes
from benchmarks.models.roofline import DTYPE_BYTES
from benchmarks.record import RESULTS
from benchmarks.serving.speedup.engine import Turn
from redrafter_vllm.bench.engine import START_SECONDS
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import QUANTIZATIONS, DraftingConfig
from redrafter_vllm.predict.shapes import find_shape
from redrafter_vllm.predict.trees import tree_list, tree_name

MODULE = "benchmarks.serving.speedup"
# vLLM refuses to start unless this fraction of the GPU is free, and several engines run at once. How much each takes
# depends on `kv_cache_memory_bytes` alone.
GPU_PART = 0.3

Schedule = tuple[tuple[int, int, int], ...]  # first batch, last batch, nodes


@dataclass(frozen=True)
class Options:
    """Options of the comparison.

    Only the first way to draft is measured at all batch sizes, the others at one, unless `all_ways`.
    """

    target: Path
    drafter: Path
    drafting: Mapping[str, DraftingConfig]
    drafters: Mapping[str, Path] = field(default_factory=dict)  # for ways to draft that have another one
    schedule: Schedule = ()
    dtype: str = "bfloat16"
    prompts: int = 8
    chat: str | None = None  # where chat prompts come from; None takes held-out source files
    prompt_tokens: int = 128
    new_tokens: int = 64
    batches: tuple[int, ...] = (1,)
    rounds: int = 5
    all_ways: bool = False
    device: str = "cpu"
    eager: bool = False
    start_seconds: float = START_SECONDS
    out: Path = RESULTS
    logs: Path = BUILD / "speedup"

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be positive, not {list(self.batches)}")
        if self.new_tokens < 2:
            raise ValueError(f"new_tokens must be at least 2, not {self.new_tokens}: the first comes with the prompt")
        if self.schedule:
            validate_and_normalize_dynamic_sd_schedule(list(self.schedule))

    def turn(self, batch: int) -> Turn:
        """A turn of full batches, at least `prompts` prompts."""
        return Turn(prompts=batch * -(-self.prompts // batch), batch=batch)

    def nodes(self, batch: int, drafting: DraftingConfig) -> int:
        """Draft tokens of each request in a batch of this size."""
        if not self.schedule:
            return drafting.num_speculative_tokens
        lookup = build_dynamic_sd_schedule_lookup(list(self.schedule), batch, drafting.num_speculative_tokens)
        return lookup[batch]

    @property
    def max_model_len(self) -> int:
        """Prompt, new tokens, and two trees beyond them.

        vLLM cuts drafts that would exceed the length, and with asynchronous scheduling it counts those in flight as
        computed. A step with fewer rows than 1 + nodes fits no CUDA graph.
        """
        rows = 1 + max(each.num_speculative_tokens for each in self.drafting.values())
        return self.prompt_tokens + self.new_tokens + 2 * rows

    @property
    def kv_cache_bytes(self) -> int:
        """Enough for all requests of the largest batch to run at once to their end, and 8 pages more."""
        return kv_cache_bytes(str(self.target), max(self.batches), self.max_model_len, self.dtype)

    def capture_sizes(self, drafting: DraftingConfig | None) -> list[int]:
        """Sizes of CUDA graphs, in tokens: for the measured batches, smaller ones (as requests end) and prompts.

        With drafts a request of a step has 1 + nodes tokens; a request of a drafting round counts as one. Where trees
        adapt a step has any number of tokens up to that. For prompts the largest size is vLLM's own for a plain engine,
        twice the largest batch.
        """
        ends = (last for _, last, _ in self.schedule)
        counts = {count for count in (1, 2, 4, *self.batches, *ends) if count <= max(self.batches)}
        sizes = counts | {2 * max(self.batches)}
        if drafting is not None:
            sizes |= {count * (1 + self.nodes(count, drafting)) for count in counts}
            if drafting.adaptive is not False and not self.schedule:
                part = max(1, (1 + drafting.num_speculative_tokens) // 4)
                sizes |= {
                    count * rows for count in counts for rows in range(2, 2 + drafting.num_speculative_tokens, part)
                }
        return sorted(sizes)

    def engine(self, drafting: DraftingConfig | None) -> dict[str, Any]:
        """Engine options; those of plain vLLM if `drafting` is None."""
        options = {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": max(self.batches),
            "enforce_eager": self.eager,
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "gpu_memory_utilization": GPU_PART,
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
        }
        if self.device != "cpu" and not self.eager:
            # vLLM's default is several dozen sizes, most of which are never used here.
            options["compilation_config"] = {"cudagraph_capture_sizes": self.capture_sizes(drafting)}
        return options

    def drafter_of(self, way: str) -> Path:
        return self.drafters.get(way, self.drafter)

    def speculative(self, way: str) -> dict[str, Any]:
        """vLLM's speculative config."""
        given = {name: value for name, value in asdict(self.drafting[way]).items() if value is not None}
        if self.schedule:
            # All ways to draft share the schedule; one with fewer node slots has the smaller number.
            slots = self.drafting[way].num_speculative_tokens
            given["num_speculative_tokens_per_batch_size"] = [
                [first, last, min(nodes, slots)] for first, last, nodes in self.schedule
            ]
        return {"method": "redrafter", "model": str(self.drafter_of(way)), **given}


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(
        MODULE,
        "LLM.generate with ReDrafter against vLLM as installed. benchmarks.models.inflate makes large targets.",
    )
    cli.add_target(parser)
    cli.add_drafter(parser)
    cli.add_beams(parser)
    parser.add_argument("--nodes", type=int, default=0, help="node slots of the draft tree (0: as serving chooses)")
    parser.add_argument(
        "--schedule",
        type=json.loads,
        default=[],
        metavar="JSON",
        help="vLLM's num_speculative_tokens_per_batch_size, for instance [[1, 4, 16], [5, 16, 7], [17, 64, 0]]",
    )
    parser.add_argument("--drafter-quantization", choices=QUANTIZATIONS, help="8-bit weights of the drafter")
    parser.add_argument("--project-embedding", action="store_true", help="precompute W·E as a table")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="bfloat16", help="of weights and cache")
    parser.add_argument(
        "--trees",
        type=tree_list,
        default=(),
        metavar="TREES",
        help="instead of one tree several ways to draft, BEAMSxLENGTH or BEAMSxLENGTH:NODES, in one argument; + behind "
        "one: with copies of the text, ~ at its end: adaptive",
    )
    cli.add_prompts(parser, prompts=8, new_tokens=64)
    parser.add_argument(
        "--chat",
        help="mt-bench, spec-bench, or a file of their form: first turns of these instead, over all categories",
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, help="longest prompt; longer chat prompts are left out"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="requests at a time; one row per number")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda; decides on the compared engines and the record's name"
    )
    parser.add_argument(
        "--eager", action="store_true", help="keep vLLM from compiling the model and capturing CUDA graphs"
    )
    cli.add_out(parser)
    args = parser.parse_args(argv)
    try:
        levers = {
            "drafter_quantization": args.drafter_quantization,
            "project_embedding": args.project_embedding,
        }
        drafting = DraftingConfig(args.beam_width, args.beam_length, args.nodes, **levers)
        find_shape(str(args.target))  # an error here, as the cache's size comes from it
        return Options(
            target=args.target,
            drafter=resolve_drafter(args.drafter, str(args.target)),
            drafting={tree_name(tree): replace(tree, **levers) for tree in args.trees} or {"ReDrafter": drafting},
            schedule=tuple(map(tuple, args.schedule)),
            dtype=args.dtype,
            prompts=args.prompts,
            chat=args.chat,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            batches=tuple(args.batch),
            rounds=args.rounds,
            device=args.device,
            eager=args.eager,
            out=args.out,
        )
    except (TypeError, ValueError) as error:
        parser.error(str(error))
