# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from redrafter_training.config.recipe import LossConfig
from redrafter_training.target.model import TargetModel, TargetOutputs
from redrafter_training.trainer.loss import hidden_distance, num_positions, unrolled_features, unrolled_loss
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter

SHARP = 60.0


def cyclic_outputs(tokens: Tensor) -> TargetOutputs:
    """A target that predicts the cycle 0, 1, 2 with near certainty."""
    logits = SHARP * torch.nn.functional.one_hot((tokens + 1) % 3, 3).float()
    return TargetOutputs(torch.zeros(*tokens.shape, 3), logits, logits.argmax(-1))


def successor_drafter() -> Drafter:
    """Without an RNN, its state is the sum of the inputs' one-hot embeddings; each votes for its successor."""
    drafter = Drafter(DrafterConfig(vocab_size=3, hidden_size=3, exit_dim=6, num_draft_layers=0, rnn=False))
    votes = SHARP * torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    drafter.load_state_dict({"lm_head.0.weight": torch.cat([torch.zeros(3, 3), votes], dim=1)})
    return drafter


def test_hand_worked_alignment() -> None:
    """Depth 1 has one vote, for the right token; depth 2 two, one of them right; depth 3 one for each token.

    So the divergences from a certain target are 0, log 2 and log 3. A shift by one, of inputs or of labels, gives about
    `SHARP` instead of 0 at depth 1.
    """
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2, 0]])
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    sums = unrolled_loss(successor_drafter(), torch.eye(3), cyclic_outputs(tokens), tokens, loss_mask, 3, 0, 4)
    assert sums.count.tolist() == [4, 4, 4]
    torch.testing.assert_close(sums.loss / sums.count, torch.tensor([0.0, math.log(2), math.log(3)]))
    assert sums.agreements[0] == 4


@pytest.mark.parametrize(("labels", "last_row"), [("target", 1), ("data", 0)])
def test_hand_worked_labels(labels: Literal["target", "data"], last_row: int) -> None:
    """The text is what the target would generate, so both kinds of label give the same loss where there is a label.

    The deepest draft token of the last position is after the window: the target predicts it, and the text lacks it. The
    token after the loss mask is no label either.
    """
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2, 0]])
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    config = LossConfig(label_share=1.0, labels=labels)
    arguments = (successor_drafter(), torch.eye(3), cyclic_outputs(tokens), tokens)
    sums = unrolled_loss(*arguments, loss_mask, 3, 0, 4, config=config)
    expected = torch.tensor([0.0, 4 * math.log(2), (3 + last_row) * math.log(3)])
    torch.testing.assert_close(sums.loss, expected)
    assert sums.count.tolist() == [4, 4, 4]

    loss_mask[0, 5:] = False
    sums = unrolled_loss(*arguments, loss_mask, 3, 0, 4, config=config)
    expected = torch.tensor([0.0, (2 + last_row) * math.log(2), (1 + last_row) * math.log(3)])
    torch.testing.assert_close(sums.loss, expected)
    assert sums.count.tolist() == [4, 3, 2]


def test_trimmed_drafter_learns_the_target_restricted_to_its_tokens() -> None:
    """Tokens 1 and 2 of three are in the draft vocabulary; the target gives them 0.1 and 0.3, i.e. 1/4 and 3/4."""
    drafter = Drafter(
        DrafterConfig(vocab_size=3, hidden_size=3, exit_dim=6, num_draft_layers=0, rnn=False, draft_vocab_size=2)
    )
    drafter.set_draft_tokens(torch.tensor([1, 2]))
    with torch.no_grad():
        drafter.output.weight.zero_()
    tokens = torch.tensor([[0, 1, 2, 0, 1]])
    logits = torch.tensor([0.6, 0.1, 0.3]).log().expand(1, 5, 3)
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    outputs = TargetOutputs(torch.zeros(1, 5, 3), logits[..., 1:], logits.argmax(-1))
    sums = unrolled_loss(drafter, torch.eye(3), outputs, tokens, loss_mask, 1, 0, 4)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    torch.testing.assert_close(sums.loss, torch.tensor([4 * divergence]))
    # The target's top-1 token is outside the draft vocabulary: no agreement, and no label.
    assert sums.agreements.tolist() == [0]
    label_loss = unrolled_loss(
        drafter, torch.eye(3), outputs, tokens, loss_mask, 1, 0, 4, config=LossConfig(label_share=1.0)
    )
    assert label_loss.loss.tolist() == [0.0]
    # The text's tokens at these rows are 2, 0, 1 and, past the window, none; each costs log 2 where it can be drafted.
    data = unrolled_loss(
        drafter, torch.eye(3), outputs, tokens, loss_mask, 1, 0, 4, config=LossConfig(label_share=1.0, labels="data")
    )
    torch.testing.assert_close(data.loss, torch.tensor([2 * math.log(2)]))


def slow_loss(
    params: dict[str, Tensor],
    embedding: Tensor,
    outputs: TargetOutputs,
    tokens: Tensor,
    loss_mask: Tensor,
    depths: int,
    target_temperature: float,
) -> Tensor:
    """Position by position, from the paper's formulas: [T] sums."""
    total = [torch.zeros(()) for _ in range(depths)]
    for b in range(tokens.shape[0]):
        for p in range(tokens.shape[1] - depths):
            state = torch.zeros(embedding.shape[1])
            for t in range(1, depths + 1):
                token = int(tokens[b, p + t])
                state = silu(
                    params["rnn_w.weight"] @ embedding[token] + params["rnn_u.weight"] @ state + params["rnn_u.bias"]
                )
                x = torch.cat([outputs.hidden[b, p], state])
                x = x + silu(params["lm_head.0.linear.weight"] @ x + params["lm_head.0.linear.bias"])
                log_q = torch.log_softmax(params["lm_head.1.weight"] @ x, 0)
                log_p = torch.log_softmax(outputs.logits[b, p + t] / target_temperature, 0)
                if loss_mask[b, p + t]:
                    total[t - 1] = total[t - 1] + sum(log_p[v].exp() * (log_p[v] - log_q[v]) for v in range(len(log_p)))
    return torch.stack(total)


@pytest.mark.parametrize(("chunk", "target_temperature"), [(1, 1.0), (3, 1.0), (5, 1.0), (3, 0.3), (3, 2.0)])
def test_equals_a_slow_loop_in_value_and_gradient(chunk: int, target_temperature: float) -> None:
    torch.manual_seed(0)
    batch, length, hidden, vocab, depths = 2, 8, 3, 5, 3
    drafter = Drafter(DrafterConfig(vocab_size=vocab, hidden_size=hidden, exit_dim=6, num_draft_layers=1))
    embedding = torch.randn(vocab, hidden)
    tokens = torch.randint(vocab, (batch, length))
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    loss_mask[1, 5:] = False
    states, logits = torch.randn(batch, length, hidden), 2 * torch.randn(batch, length, vocab)
    outputs = TargetOutputs(states, logits, logits.argmax(-1))
    weights = torch.tensor([0.5, 0.3, 0.2])

    params = {name: p.detach().clone().requires_grad_() for name, p in drafter.named_parameters()}
    expected = slow_loss(params, embedding, outputs, tokens, loss_mask, depths, target_temperature)
    config = LossConfig(target_temperature=target_temperature)
    (expected * weights).sum().backward()

    positions = num_positions(length, depths)
    assert positions == 5
    kl = torch.zeros(depths)
    count = torch.zeros(depths)
    for first in range(0, positions, chunk):
        last = min(first + chunk, positions)
        sums = unrolled_loss(
            drafter, embedding, outputs, tokens, loss_mask, depths, first, last, depth_scale=weights, config=config
        )
        sums.total.backward()
        kl += sums.loss
        count += sums.count
    torch.testing.assert_close(kl, expected.detach())
    assert count.tolist() == [5 + 4, 5 + 3, 5 + 2]
    for name, parameter in drafter.named_parameters():
        torch.testing.assert_close(parameter.grad, params[name].grad, msg=name)


def test_hand_worked_distance_of_hidden_states() -> None:
    """Smooth L1 of differences in units of the state's root mean square: d²/2 below 1, d − 1/2 above."""
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 7.0], [2.0, 2.0]]])  # the roots mean square of the last two: 5 and 2
    features = torch.tensor([[[[1.0, 2.0], [8.0, 2.0]]]])  # depth 1 of the contexts 0 and 1
    terms = torch.tensor([[[True, True]]])
    # (0, −5/5) gives (0 + 1/2) / 2, (6/2, 0) gives (5/2 + 0) / 2.
    assert hidden_distance(features, hidden, terms, 0, 2).tolist() == pytest.approx([0.25 + 1.25])
    terms[..., 1] = False
    assert hidden_distance(features, hidden, terms, 0, 2).tolist() == pytest.approx([0.25])


def test_the_distance_is_added_to_the_loss() -> None:
    """A drafter without layers whose output layer takes its state: the distance is that of the states themselves."""
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2, 0]])
    loss_mask = torch.ones_like(tokens, dtype=torch.bool)
    drafter = Drafter(DrafterConfig(vocab_size=3, hidden_size=3, exit_dim=3, num_draft_layers=0, rnn=False))
    outputs = cyclic_outputs(tokens)
    outputs = replace(outputs, hidden=torch.randn(outputs.hidden.shape, generator=torch.Generator().manual_seed(0)))
    arguments = (drafter, torch.eye(3), outputs, tokens, loss_mask, 3, 0, 4)
    scale = torch.tensor([0.5, 0.25, 0.125])
    plain = unrolled_loss(*arguments, depth_scale=scale)
    both = unrolled_loss(*arguments, depth_scale=scale, config=LossConfig(hidden_weight=2.0))
    features = unrolled_features(drafter, torch.eye(3), outputs.hidden, tokens, 3, 0, 4)
    distance = hidden_distance(features, outputs.hidden, torch.ones(3, 1, 4, dtype=torch.bool), 0, 4)
    torch.testing.assert_close(both.loss - plain.loss, 2 * distance)
    torch.testing.assert_close(both.total - plain.total, 2 * (scale * distance).sum())
    assert both.total.requires_grad and (distance > 0).all()


def test_padding_has_no_influence() -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2, 0]])
    loss_mask = torch.tensor([[True] * 4 + [False] * 3])
    first = unrolled_loss(successor_drafter(), torch.eye(3), cyclic_outputs(tokens), tokens, loss_mask, 2, 0, 5)
    other = tokens.clone()
    other[0, 4:] = 2
    second = unrolled_loss(successor_drafter(), torch.eye(3), cyclic_outputs(other), other, loss_mask, 2, 0, 5)
    assert first.count.tolist() == [3, 2]
    torch.testing.assert_close(first.loss, second.loss)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (0, 5), (2, 2)])
def test_positions_outside_the_window(first: int, last: int) -> None:
    tokens = torch.zeros(1, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="do not fit"):
        unrolled_loss(successor_drafter(), torch.eye(3), cyclic_outputs(tokens), tokens, tokens == 0, 3, first, last)


def test_signals_are_what_the_lm_head_sees(tiny_target: TargetModel) -> None:
    tokens = torch.randint(40, (2, 9))
    outputs = tiny_target.outputs(tokens)
    torch.testing.assert_close(outputs.hidden @ tiny_target.head_weight.T, outputs.logits)
    torch.testing.assert_close(outputs.hidden, tiny_target.model.base_model(tokens).last_hidden_state)
