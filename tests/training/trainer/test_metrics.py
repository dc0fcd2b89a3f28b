# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.data.windows import Windows
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.loop import build_drafter
from redrafter_training.trainer.metrics import depth_figures


def test_equals_position_by_position(tiny_target: TargetModel) -> None:
    drafter = build_drafter(tiny_target, DistillConfig(Budget(1)))
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randint(40, (3, 11))
    loss_mask = torch.arange(11) < torch.tensor([[11], [7], [2]])
    loss, hits, count = [0.0] * 2, [[0] * 5 for _ in range(2)], [0, 0]
    for row, ok in zip(tokens, loss_mask, strict=True):
        outputs = tiny_target.outputs(row[None])
        for p in range(11 - 2):
            context, state = outputs.hidden[0, p], torch.zeros(16)
            for t in (1, 2):
                with torch.no_grad():
                    state = drafter.next_state(state, tiny_target.embedding[row[p + t]])
                    q = drafter(context, state).softmax(-1)
                if not ok[p + t]:
                    continue
                p_true = outputs.logits[0, p + t].softmax(-1)
                loss[t - 1] += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p_true, q, strict=True))
                rank = sorted(range(40), key=lambda v: -float(q[v])).index(int(p_true.argmax()))
                for k in range(rank, 5):
                    hits[t - 1][k] += 1
                count[t - 1] += 1
    figures = depth_figures(drafter, tiny_target, Windows(tokens, loss_mask), 2, batch_size=2, chunk=4)
    assert figures.positions == count[0]
    assert figures.divergence == pytest.approx([total / n for total, n in zip(loss, count, strict=True)], rel=1e-4)
    for top, hit, n in zip(figures.top, hits, count, strict=True):
        assert top == pytest.approx([h / n for h in hit])
    named = figures.named()
    assert named["redrafter2_kl"] == figures.divergence[1]
    assert named["redrafter1_top3"] == figures.top[0][2]
    first, second = figures.top[0][0], figures.top[1][0]
    assert named["chain_estimate"] == pytest.approx(first + first * second)
    assert len(named) == 2 * 6 + 1


def test_trimmed_vocabulary_is_compared_over_its_tokens_and_ranked_over_all(tiny_target: TargetModel) -> None:
    kept = torch.arange(3, 39, 3)
    drafter = build_drafter(tiny_target, DistillConfig(Budget(1), draft_vocab_size=12), kept)
    tokens = torch.randint(40, (1, 8))
    outputs = tiny_target.outputs(tokens)
    loss, hits = 0.0, [0] * 5
    for p in range(7):
        with torch.no_grad():
            state = drafter.next_state(torch.zeros(16), tiny_target.embedding[tokens[0, p + 1]])
            q = drafter(outputs.hidden[0, p], state).softmax(-1)
        among = outputs.logits[0, p + 1][kept].softmax(-1)
        loss += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(among, q, strict=True))
        ranked = [int(kept[d]) for d in sorted(range(12), key=lambda d: -float(q[d]))]
        for k in range(5):
            hits[k] += int(outputs.logits[0, p + 1].argmax()) in ranked[: k + 1]
    figures = depth_figures(drafter, tiny_target, Windows.full(tokens), 1)
    assert figures.divergence[0] == pytest.approx(loss / 7, rel=1e-4)
    assert figures.top[0] == pytest.approx([h / 7 for h in hits])


def test_shares_add_up(tiny_target: TargetModel) -> None:
    drafter = build_drafter(tiny_target, DistillConfig(Budget(1)))
    windows = Windows(torch.randint(40, (3, 12)), torch.arange(12) < torch.tensor([[12], [5], [9]]))
    caught: list[torch.Tensor] = []

    def remember(sums: torch.Tensor) -> torch.Tensor:
        caught.append(sums)
        return sums

    for rank in range(4):  # the fourth has no row
        depth_figures(drafter, tiny_target, windows.share(rank, 4), 3, total=remember)
    depth_figures(drafter, tiny_target, windows, 3, total=remember)
    torch.testing.assert_close(sum(caught[:4]), caught[4])
