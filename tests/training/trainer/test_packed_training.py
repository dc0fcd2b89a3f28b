# SPDX-License-Identifier: Apache-2.0
"""A packed row gives the loss and gradients of its documents alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from redrafter_training.config.recipe import Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.data.batches import collate, conversation_batches, held_out_rows
from redrafter_training.data.packing import arrange
from redrafter_training.data.tokenize import Example
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.run.feed import packed_window
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.target.model import TargetModel
from redrafter_training.target.packed_attention import by_mask, by_positions
from redrafter_training.target.packing_probe import show_borders
from redrafter_training.trainer.loop import Hooks, build_drafter, distill
from redrafter_training.trainer.loss import unrolled_loss
from redrafter_training.trainer.metrics import depth_figures
from redrafter_training.trainer.state import read_state
from redrafter_vllm.model.drafter import Drafter

pytestmark = pytest.mark.usefixtures("one_thread")

T = 3


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "initializer_range": 0.5,
}


class LlamaWithMask(LlamaForCausalLM):
    """Makes the mask of one document if it gets none, as models from the hub may do."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: object) -> object:  # type: ignore[override]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return super().forward(input_ids=input_ids, attention_mask=mask, **options)  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    ),
    "own mask": lambda: LlamaWithMask(LlamaConfig(**SIZES)),
}


def make_target(name: str, attention: str = "sdpa") -> TargetModel:
    torch.manual_seed(3)
    model = MODELS[name]()
    model.set_attn_implementation(attention)
    return TargetModel(model)


def documents(lengths: tuple[int, ...], seed: int = 0) -> list[Example]:
    """Random tokens; the first third is the prompt, and one later token has no loss."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, length in enumerate(lengths):
        loss = torch.arange(length) >= max(1, length // 3)
        loss[length // 2 + 1] = False
        made.append(Example(str(number), torch.randint(3, 40, (length,), generator=generator).int(), loss))
    return made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_logits_are_those_of_the_documents_alone(name: str, attention: str) -> None:
    target = make_target(name, attention)
    assert show_borders(target)
    assert target.borders is (by_mask if name == "own mask" else by_positions)
    rows = [documents((7, 1 + 6, 9)), documents((12, 5), seed=1), documents((20,), seed=2)]
    batch = arrange(rows, 26)
    # The mask of `by_mask` would replace a sliding window.
    for way in [by_positions] if name == "mistral" else {by_mask, target.borders}:
        target.borders = way
        logits = target.outputs(batch.tokens, batch.positions).logits
        for row, examples in enumerate(rows):
            begin = 0
            for example in examples:
                alone = target.outputs(example.tokens[None].long()).logits[0]
                torch.testing.assert_close(logits[row, begin : begin + len(example)], alone, rtol=1e-4, atol=1e-4)
                begin += len(example)
    if name == "own mask":
        target.borders = by_positions
        leaky = target.outputs(batch.tokens, batch.positions).logits[0, 7:14]
        alone = target.outputs(rows[0][1].tokens[None].long()).logits[0]
        assert (leaky - alone).abs().max() > 0.1


def sum_over_terms(
    drafter: Drafter, target: TargetModel, examples: list[Example], last_at_end: bool
) -> tuple[Tensor, list[int]]:
    """Half divergence, half cross-entropy of the text, term by term, each document alone; and the number of terms."""
    total, counts = torch.zeros(()), [0] * T
    for number, example in enumerate(examples):
        tokens = example.tokens.long()
        outputs = target.outputs(tokens[None])
        # Positions whose unrolling would leave the row are skipped at every depth.
        positions = len(tokens) - T if last_at_end and number == len(examples) - 1 else len(tokens) - 1
        for p in range(positions):
            share = drafter.context_share(outputs.hidden[0, p])
            state = drafter.initial_state(outputs.hidden[0, p])
            for t in range(1, T + 1):
                if p + t + 1 >= len(tokens):
                    break
                state = drafter.next_state(state, target.embedding[tokens[p + t]])
                if not example.loss_mask[p + t + 1]:
                    continue
                log_q = drafter.logits(share, state).log_softmax(-1)
                log_p = outputs.logits[0, p + t].log_softmax(-1)
                term = 0.5 * (log_p.exp() * (log_p - log_q)).sum() - 0.5 * log_q[tokens[p + t + 1]]
                total = total + 0.5**t * term
                counts[t - 1] += 1
    return total, counts


@pytest.mark.parametrize("room", [0, T], ids=["full row", "padding"])
def test_packed_loss_and_gradient_are_the_sums_over_documents(room: int) -> None:
    target = make_target("llama")
    drafter = build_drafter(target, DistillConfig(Budget(1), beam_length=T))
    examples = documents((7, 3, 11))
    expected, counts = sum_over_terms(drafter, target, examples, last_at_end=room == 0)
    drafter.zero_grad()
    expected.backward()
    gradients = [p.grad.clone() for p in drafter.parameters() if p.grad is not None]

    batch = arrange([examples], 21 + room)
    scale = 0.5 ** torch.arange(1, T + 1)
    drafter.zero_grad()
    total, seen = torch.zeros(()), torch.zeros(T)
    for first, last in ((0, 9), (9, 18 + room)):
        sums = unrolled_loss(
            drafter,
            target.embedding,
            target.outputs(batch.tokens, batch.positions),
            batch.tokens,
            batch.loss_mask,
            T,
            first,
            last,
            depth_scale=scale,
            config=LossConfig(label_share=0.5, labels="data"),
            doc_ids=batch.doc_ids,
        )
        sums.total.backward()
        total, seen = total + sums.total.detach(), seen + sums.count
    assert seen.tolist() == counts
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip((p for p in drafter.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_last_token_of_an_answer_is_a_label() -> None:
    # Tokens 5 6 | 7 8 and padding; 7 and 8 are labels. From the context of 5, the drafter learns 7 after 6, and 8 after
    # 6 and 7.
    windows = collate([Example("", torch.tensor([5, 6, 7, 8]).int(), torch.tensor([False, False, True, True]))], 8)
    target = make_target("llama")
    drafter = build_drafter(target, DistillConfig(Budget(1), beam_length=2))
    sums = unrolled_loss(
        drafter,
        target.embedding,
        target.outputs(windows.tokens, windows.positions),
        windows.tokens,
        windows.loss_mask,
        2,
        0,
        6,
        config=LossConfig(label_share=1.0, labels="data"),
        doc_ids=windows.doc_ids,
    )
    hidden = target.outputs(windows.tokens).hidden[0]
    expected = []
    for context, fed, label in ((0, [6], 7), (1, [7], 8), (0, [6, 7], 8)):
        state = drafter.initial_state(hidden[context])
        for token in fed:
            state = drafter.next_state(state, target.embedding[token])
        logits = drafter.logits(drafter.context_share(hidden[context]), state)
        expected.append(-logits.log_softmax(-1)[label].item())
    assert sums.count.tolist() == [2, 1]
    assert sums.loss.tolist() == pytest.approx([expected[0] + expected[1], expected[2]], rel=1e-5)


def test_packed_metrics_are_those_of_rows_of_one() -> None:
    target = make_target("llama")
    drafter = build_drafter(target, DistillConfig(Budget(1), beam_length=T))
    examples = documents((7, 3, 11, 8, 5, 12, 6))
    alone = depth_figures(drafter, target, collate(examples, 16), T)
    # Rows with padding at the end: a full row skips the last positions, as full rows of one document do.
    packed = depth_figures(drafter, target, arrange([examples[:3], examples[3:5], examples[5:]], 24), T, chunk=5)
    assert packed.positions == alone.positions
    assert packed.divergence == pytest.approx(alone.divergence, rel=1e-4)
    assert packed.top == alone.top
    held_out = held_out_rows(examples, T + 1, 24)
    assert len(held_out) < len(examples)
    assert len(held_out_rows(examples, T + 1, None)) == len(examples)


CONFIG = DistillConfig(
    Budget(8), beam_length=T, window=24, chunk=7, responses=ResponseConfig(max_prompt=8, min_prompt=2)
)


def packed_batches(seed: int = 0) -> Iterator[Windows]:
    return conversation_batches(
        documents((7, 3, 11, 8, 5, 12, 6, 9, 10)),
        documents((8, 9, 4), seed=1),
        batch_size=4,
        response_fraction=0.25,
        min_length=T + 1,
        seed=seed,
        window=24,
    )


def test_packed_batches() -> None:
    batches = list(islice(packed_batches(), 6))
    assert all(batch.tokens.shape == (4, 24) for batch in batches)
    for batch, again, other in zip(batches, packed_batches(), packed_batches(1), strict=False):
        assert torch.equal(batch.tokens, again.tokens)
        assert not torch.equal(batch.tokens, other.tokens)
    # The answers' 21 tokens fill one row, which every batch has; conversations of 71 tokens fill three of 24 or four.
    answers = torch.cat([example.tokens for example in documents((8, 9, 4), seed=1)]).tolist()
    assert all(sorted(batch.tokens[3].tolist()) == sorted([*answers, 0, 0, 0]) for batch in batches)


def test_shares_hold_all_terms() -> None:
    batch = next(packed_batches())
    for depth in range(1, T + 1):
        counts = [batch.share(rank, 3).terms(depth, 0, 24 - T).sum() for rank in range(3)]
        assert sum(counts) == batch.terms(depth, 0, 24 - T).sum() > 0


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Windows]:
        yield from islice(packed_batches(), 6)
        raise KeyboardInterrupt

    weights = []
    for name in ("whole", "cut"):
        context = LocalContext(tmp_path / name)
        for batches in [packed_batches()] if name == "whole" else [interrupted(), packed_batches()]:
            target = make_target("llama")
            drafter = build_drafter(target, CONFIG)
            hooks = Hooks(checkpoint_every=4)
            try:
                distill(drafter, target, batches, CONFIG, context=context, hooks=hooks, quiet=True)
            except KeyboardInterrupt:
                assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["step-00000004"]
        state = read_state(tmp_path / name / "step-00000008")
        weights.append(torch.cat([tensor.flatten() for tensor in state["drafter"].values()]))
    assert torch.equal(*weights)


def test_rows_are_packed_where_wanted_and_heeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = FeedSettings("data", None, CONFIG, tmp_path, 1)
    unwanted = replace(wanted, config=replace(CONFIG, packing=False))
    assert packed_window(wanted, make_target("llama"), LocalContext()) == 24
    assert packed_window(unwanted, make_target("llama"), LocalContext()) is None
    assert capsys.readouterr().out == ""
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.5)
    torch.manual_seed(0)
    mamba = TargetModel(MambaForCausalLM(config))
    assert packed_window(wanted, mamba, LocalContext()) is None
    assert "MambaForCausalLM" in capsys.readouterr().out
    # With a cache the hidden states of each document were computed alone.
    assert packed_window(replace(wanted, hidden_cache=True), mamba, LocalContext()) == 24
