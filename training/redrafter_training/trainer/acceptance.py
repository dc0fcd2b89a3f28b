# SPDX-License-Identifier: Apache-2.0
"""Tokens per step that a drafter reaches, without a serving engine: `python -m redrafter_training.evaluate --target DIR`.

Exact verification emits what the target emits anyway. So the target's text is generated first, and the steps that
decoding with drafts would have needed for it are counted afterwards: at every position the beams are drawn, packed
into a tree and followed along the text.

One JSON line per number of beams, and one with `redrafter{i}_kl` and `redrafter{i}_top{k}` by depth i.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from redrafter_training.data.python_corpus import load_corpus, split, unseen_prompts
from redrafter_training.data.windows import Windows, cut_windows, encode_files
from redrafter_training.responses.transformers_engine import continue_prompts
from redrafter_training.target.model import TargetModel
from redrafter_training.target.properties import read_facts
from redrafter_training.trainer.metrics import depth_figures
from redrafter_training.utils.command import run_command
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import MAX_BEAM_LENGTH, MAX_BEAM_WIDTH
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.beam_search import beam_search
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.paths import user_path, user_place

WINDOW = 256  # tokens of the held-out text that figures by depth are measured on at once


@dataclass(frozen=True)
class Drafting:
    """The shape of one drafting round."""

    beam_width: int = 4
    beam_length: int = 4
    max_nodes: int = 16

    def __post_init__(self) -> None:
        if min(self.beam_width, self.beam_length, self.max_nodes) < 1:
            raise ValueError(f"beam_width, beam_length and max_nodes must be at least 1, got {self}")
        if self.beam_width > MAX_BEAM_WIDTH or self.beam_length > MAX_BEAM_LENGTH:
            raise ValueError(
                f"beam_width must be at most {MAX_BEAM_WIDTH} and beam_length at most {MAX_BEAM_LENGTH}, as in "
                f"serving, got {self.beam_width} and {self.beam_length}"
            )


@dataclass(frozen=True)
class Acceptance:
    """What drafting saved on some texts."""

    tokens_per_step: float  # emitted tokens / verification steps; 1 without drafts
    acceptance_by_depth: tuple[float, ...]  # fraction of steps in which a draft of depth 1..T was accepted
    steps: int
    tokens: int


def accepted_depths(tree: DraftTree, future: Tensor) -> Tensor:
    """How many of `future` [B, T], the tokens after the root, lie on a path of the tree. [B]"""
    on_path = torch.zeros_like(tree.tokens, dtype=torch.bool)
    for node in range(tree.tokens.shape[1]):
        parent, depth = tree.parents[:, node], tree.depths[:, node]
        inside = (node < tree.num_nodes) & (depth <= future.shape[1])
        expected = future.gather(1, (depth - 1).clamp(0, future.shape[1] - 1)[:, None])[:, 0]
        reached = (parent < 0) | on_path.gather(1, parent.clamp(min=0)[:, None])[:, 0]
        on_path[:, node] = inside & reached & (tree.tokens[:, node] == expected)
    return (tree.depths * on_path).amax(dim=1)


@torch.inference_mode()
def accepted_everywhere(target: TargetModel, drafter: Drafter, text: Tensor, start: int, drafting: Drafting) -> Tensor:
    """Accepted drafts if a step had context p, for every p from `start - 1` with its root p + 1 inside the text."""
    hidden = target.outputs(text[None]).hidden[0]
    context = hidden[start - 1 : -1]
    roots = text[start:]
    beams = beam_search(
        drafter,
        target.embedding,
        context,
        roots,
        beam_width=drafting.beam_width,
        beam_length=drafting.beam_length,
    )
    # Past the end of the text nothing can be accepted: no token has id -1.
    padded = torch.cat([text[start + 1 :], text.new_full((drafting.beam_length,), -1)])
    future = padded.unfold(0, drafting.beam_length, 1)[: len(roots)]
    return accepted_depths(DraftTree.from_beams(beams, drafting.max_nodes), future)


def count_steps(accepted: Sequence[int]) -> list[int]:
    """The accepted counts of the steps actually made, one after the other; `accepted[i]` is that of root i.

    The first root comes from the prompt's own forward pass. A step verifies a root's drafts, emits the accepted ones
    and one more token, the next root.
    """
    made, root = [], 0
    while root < len(accepted) - 1:
        made.append(accepted[root])
        root += accepted[root] + 1
    return made


def measure(
    target: TargetModel, drafter: Drafter, texts: Sequence[tuple[Tensor, int]], drafting: Drafting
) -> Acceptance:
    """Acceptance over `texts`: each a prompt with its continuation [n] and the prompt's length.

    Raises:
        ValueError: no text has a continuation of at least two tokens.
    """
    made: list[int] = []
    emitted = 0
    for text, start in texts:
        if len(text) - start < 2:
            continue
        steps = count_steps(accepted_everywhere(target, drafter, text, start, drafting).tolist())
        made += steps
        emitted += len(text) - start - 1
    if not made:
        raise ValueError("no text to measure on")
    depths = range(1, drafting.beam_length + 1)
    by_depth = tuple(sum(a >= d for a in made) / len(made) for d in depths)
    return Acceptance(emitted / len(made), by_depth, len(made), emitted)


def held_out_texts(
    target: TargetModel,
    tokenizer: AutoTokenizer,
    *,
    prompts: int,
    new_tokens: int,
    seed: int,
    temperature: float = 0.0,
    corpus: Path | None = None,
    longest: float = math.inf,
) -> list[tuple[Tensor, int]]:
    """The target's continuations of at most so many prompts from files that no training has seen.

    Of a prompt that leaves less than `new_tokens` of the `longest` text that the target takes, the end is taken.
    """
    training, held_out = split(load_corpus(corpus))
    unseen = unseen_prompts(training, held_out, prompts, seed=seed, max_chars=600)
    encoded = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in unseen]
    if math.isfinite(longest):
        encoded = [prompt[-int(longest - new_tokens) :] for prompt in encoded]
    torch.manual_seed(seed)
    texts = continue_prompts(target, encoded, new_tokens, temperature=temperature)
    return [(text, len(prompt)) for text, prompt in zip(texts, encoded, strict=True)]


def held_out_windows(
    tokenizer: AutoTokenizer, count: int, *, length: int = WINDOW, corpus: Path | None = None
) -> Windows:
    """At most `count` windows of the files that no training has seen, the same ones every time."""
    files = encode_files(split(load_corpus(corpus))[1], tokenizer)
    return Windows.full(cut_windows(files, length, tokenizer.bos_token_id, torch.Generator().manual_seed(0))[:count])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m redrafter_training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=user_place, required=True, help="folder or hub name of the target")
    parser.add_argument("--drafter", type=user_place, help="the drafter's folder (default: where serving finds it)")
    parser.add_argument("--beam-width", type=int, nargs="+", default=[1, 2, 4, 8], help="one row of figures each")
    parser.add_argument("--beam-length", type=int, default=4, help="drafted tokens per beam, the root not counted")
    parser.add_argument("--max-nodes", type=int, help="nodes per tree (default: all that the beams hold)")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--windows", type=int, default=32, help="windows of held-out text for the figures by depth")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--corpus", type=user_path, help="folder of Python files (default: the standard library)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the target brings along")
    args = parser.parse_args(argv)
    trusted = {"trust_remote_code": args.trust_remote_code}
    try:
        facts = read_facts(args.target, **trusted)
        facts.check_length(args.new_tokens + 1, "--new-tokens and a prompt")
        drafting = [Drafting(w, args.beam_length, args.max_nodes or w * args.beam_length) for w in args.beam_width]
    except ValueError as problem:
        parser.error(str(problem))
    target = TargetModel(AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32, **trusted))
    drafter = Drafter.from_pretrained(resolve_drafter(args.drafter, args.target))
    tokenizer = AutoTokenizer.from_pretrained(args.target, **trusted)
    texts = held_out_texts(
        target,
        tokenizer,
        prompts=args.prompts,
        new_tokens=args.new_tokens,
        seed=args.seed,
        temperature=args.temperature,
        corpus=args.corpus,
        longest=facts.longest,
    )
    for shape in drafting:
        print(strict_json.dumps(asdict(shape) | asdict(measure(target, drafter, texts, shape))))
    length = int(min(WINDOW, facts.longest))
    windows = held_out_windows(tokenizer, args.windows, length=length, corpus=args.corpus)
    print(strict_json.dumps(depth_figures(drafter, target, windows, args.beam_length).named()))


def _main(_: object) -> int:
    main()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(_main, lambda: "interrupted: nothing is stored"))
