# SPDX-License-Identifier: Apache-2.0
"""Sampling without seeds keeps the target's distribution, at every position of a step.

Each emitted token is mapped to a number that is uniform on [0, 1) if, and only if, it was drawn from the target's own
conditional distribution: the mass of all more probable tokens plus a random part of the token's mass. (Tokens are
ordered by probability because wrong acceptance rules favour probable tokens.) The oracle is a transformers forward pass
over the finished sequences. A chi-square test over 20 equal bins follows, separately for each position in the step.

Where trees adapt, the nodes of a step are another thing that may go wrong: a budget that depended on what the target
draws in the same step would select tokens by their value.

Power: with the acceptance rule `min(1, p/q)` instead of the walk, and with budgets that look at the draw, the same test
rejects with a fifth of the tokens; the last two tests repeat that.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import AutoModelForCausalLM

from redrafter_vllm.integration.worker import sampler as sampler_module
from redrafter_vllm.integration.worker import speculator as speculator_module
from redrafter_vllm.ops.tree_verify import Walk
from tests.engine.budgets import peeking_budgets, random_budgets
from tests.engine.conftest import MakeEngine
from tests.engine.generation import cpu_only, params
from tests.models import save_random_drafter, save_random_llama

NARROW_VOCAB = 6
PROMPT = [3, 5, 4]
LENGTH = 120
BINS = 10
# With four positions per step the probability of a false alarm is 4e-4, and the run is seeded.
REJECT_BELOW = 1e-4
SPECULATIVE = {"method": "redrafter", "beam_width": 6, "beam_length": 3, "num_speculative_tokens": 18}
MAX_POSITION = 3  # the last beam's token, and the target's own behind it
DEEP = 2  # from this position on tokens are tested together where trees adapt, which reach the last one rarely
ADAPTIVE = {**SPECULATIVE, "adaptive": True}
SIZE = {"max_num_seqs": 64, "max_num_batched_tokens": 1024}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("narrow") / "target"
    save_random_llama(path, vocab_size=NARROW_VOCAB, initializer_range=0.12)
    save_random_drafter(path / "redrafter", vocab_size=NARROW_VOCAB)
    return path


def sample_sequences(llm: Any, count: int, *, is_seeded: bool = False) -> tuple[Tensor, np.ndarray]:
    """`count` sampled sequences [count, LENGTH] and, for each token, its position in the step that emitted it."""
    engine = llm.llm_engine
    for index in range(count):
        seed = {"seed": index} if is_seeded else {}
        sampling = params(temperature=1.0, ignore_eos=True, max_tokens=LENGTH, **seed)
        engine.add_request(str(index), {"prompt_token_ids": PROMPT}, sampling)
    tokens = np.zeros((count, LENGTH), dtype=np.int64)
    positions = np.full((count, LENGTH), -1)
    while engine.has_unfinished_requests():
        for output in engine.step():
            index, emitted = int(output.request_id), output.outputs[0].token_ids
            known = int((positions[index] >= 0).sum())
            positions[index, known : len(emitted)] = np.arange(len(emitted) - known)
            tokens[index, : len(emitted)] = emitted
    return torch.from_numpy(tokens), positions


def uniform_values(target: Path, tokens: Tensor, rng: np.random.Generator) -> np.ndarray:
    """The uniform number of every token in its conditional distribution, [sequences, LENGTH]."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    prompt = torch.tensor(PROMPT).expand(tokens.shape[0], -1)
    with torch.no_grad():
        logits = torch.cat([model(part).logits for part in torch.cat((prompt, tokens), dim=1).split(64)])
    probs = torch.softmax(logits[:, len(PROMPT) - 1 : -1].double(), dim=-1)
    own = probs.gather(-1, tokens[:, :, None])
    more_probable = (probs * (probs > own)).sum(-1)
    return more_probable.numpy() + own[:, :, 0].numpy() * rng.random(tokens.shape)


def p_values(values: np.ndarray, positions: np.ndarray, last: int = MAX_POSITION) -> dict[int, tuple[int, float]]:
    """Number of tokens and p-value per position in the step, for all positions from `last` on together."""
    results = {}
    for position in range(last + 1):
        chosen = values[np.minimum(positions, last) == position]
        counts, _ = np.histogram(chosen, bins=BINS, range=(0.0, 1.0))
        assert counts.sum() > 20 * BINS
        results[position] = (len(chosen), float(chisquare(counts).pvalue))
    return results


def test_every_position_follows_the_target(make_engine: MakeEngine, narrow: Path) -> None:
    llm = make_engine(narrow, SPECULATIVE, **SIZE)
    tokens, positions = sample_sequences(llm, 880)
    assert tokens.numel() >= 100_000
    results = p_values(uniform_values(narrow, tokens, np.random.default_rng(0)), positions)
    print("tokens and p-value by position in the step:", results)
    assert min(p for _, p in results.values()) > REJECT_BELOW


@cpu_only
def test_every_position_follows_the_target_with_budgets_that_change(make_engine: MakeEngine, narrow: Path) -> None:
    """Any budget and any number of beam steps, in every step others."""
    llm = make_engine(narrow, ADAPTIVE, **SIZE)
    with random_budgets(0) as chosen:
        tokens, positions = sample_sequences(llm, 880)
    assert len(set(chosen)) > 100 and 0 in chosen
    results = p_values(uniform_values(narrow, tokens, np.random.default_rng(0)), positions, DEEP)
    print("any budgets, tokens and p-value by position in the step:", results)
    assert min(p for _, p in results.values()) > REJECT_BELOW


@cpu_only
def test_budgets_that_look_at_the_draw_are_rejected(make_engine: MakeEngine, narrow: Path) -> None:
    """A node is left out where the draw below it will be one of the probable tokens, so that the next step emits it.

    The draw is truly known: vLLM draws from a request's seed and the position in the text, so the same requests in a
    run with other budgets show it. For the same reason such a budget cannot change the text itself, only which tokens
    stand at which position of a step; an engine with new noise in every step would emit another distribution.
    """
    llm = make_engine(narrow, ADAPTIVE, **SIZE)
    with random_budgets(1):
        draws, positions = sample_sequences(llm, 176, is_seeded=True)
    values = uniform_values(narrow, draws, np.random.default_rng(0))
    assert min(p for _, p in p_values(values, positions, DEEP).values()) > REJECT_BELOW

    with peeking_budgets(draws.numpy(), values < 0.5, len(PROMPT)) as left_out:
        tokens, positions = sample_sequences(llm, 176, is_seeded=True)
    assert len(left_out) > 1000
    values = uniform_values(narrow, tokens, np.random.default_rng(0))
    results = p_values(values, positions, DEEP)
    print("with budgets that look at the draw:", results)
    assert min(p for _, p in results.values()) < 1e-12
    # As rounding differs with the rows of a step, a few sequences may take another way.
    assert (tokens == draws).all(1).float().mean() > 0.95
    assert chisquare(np.histogram(values, bins=BINS, range=(0.0, 1.0))[0]).pvalue > REJECT_BELOW


@contextmanager
def ratio_acceptance() -> Iterator[None]:
    """Accept a draft with probability min(1, p/q), as if beams were samples of the drafter's distribution q."""
    rng = np.random.default_rng(1)
    kept: dict[str, Any] = defaultdict(lambda: None)
    propose_trees = speculator_module.propose_trees
    sample_rows = sampler_module.TreeSampler._sample

    def draw(*args: Any) -> Any:
        kept["tree"] = tree = propose_trees(*args)
        return tree

    def rows(self: Any, logits: Tensor, batch: Any, *args: Any) -> Any:
        kept["probs"], kept["roots"] = torch.softmax(logits.float(), -1), batch.idx_mapping.tolist()
        return sample_rows(self, logits, batch, *args)

    def walk(sampled: Tensor, layout: Any, drafts: Any, max_depth: int) -> Walk:
        num_reqs, num_nodes = drafts.tokens.shape
        result = Walk(
            torch.zeros(num_reqs, num_nodes + 1, dtype=torch.long),
            torch.full((num_reqs, max_depth), -1),
            torch.ones(num_reqs, dtype=torch.int32),
            torch.zeros(num_reqs, dtype=torch.long),
        )
        log_probs = kept["log_probs"][torch.tensor(kept["roots"])]
        for b in range(num_reqs):
            first, node, depth = int(layout.first_row[b]), -1, 0
            while True:
                children = ((drafts.parents[b] == node) & drafts.valid[b]).nonzero()[:, 0].tolist()
                for child in children:
                    q = float(log_probs[b, child].exp() / (log_probs[b, node].exp() if node >= 0 else 1.0))
                    if rng.random() < kept["probs"][first + node + 1, drafts.tokens[b, child]] / q:
                        result.emitted[b, depth], result.path[b, depth] = drafts.tokens[b, child], child
                        node, depth = child, depth + 1
                        result.leaf[b] = node + 1
                        break
                else:
                    result.emitted[b, depth] = sampled[first + node + 1]
                    result.num_emitted[b] = depth + 1
                    break
        return result

    def write(self: Any, rows_B: Tensor, tree: Any, *args: Any) -> None:
        if kept["log_probs"] is None:
            kept["log_probs"] = torch.zeros(self.tokens.shape)
        kept["log_probs"][rows_B] = tree.log_probs
        original_write(self, rows_B, tree, *args)

    original_write = speculator_module.DraftRows.write
    with (
        patch.object(speculator_module, "propose_trees", draw),
        patch.object(speculator_module.DraftRows, "write", write),
        patch.object(sampler_module.TreeSampler, "_sample", rows),
        patch.object(sampler_module, "walk_drafts", walk),
    ):
        yield


def test_ratio_acceptance_is_rejected(make_engine: MakeEngine, narrow: Path) -> None:
    llm = make_engine(narrow, SPECULATIVE, **SIZE)
    with ratio_acceptance():
        tokens, positions = sample_sequences(llm, 176)
    results = p_values(uniform_values(narrow, tokens, np.random.default_rng(0)), positions)
    print("with min(1, p/q):", results)
    assert min(p for _, p in results.values()) < 1e-12
