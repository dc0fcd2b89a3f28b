# SPDX-License-Identifier: Apache-2.0
"""Drafting on several ranks that share the vocabulary: each holds a slice of the output layer and of the embedding.

The other layers are on every rank. At each beam step a rank computes the logits of its own tokens and sends, for each
beam, its W best of them and its part of the softmax's sum. All ranks continue from the same gathered numbers, so they
draft bit-identical trees even where their own arithmetic differs.
"""

from dataclasses import replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter, DrafterBase
from redrafter_vllm.ops.beam_step.reference import BeamStep, rank_continuations, top_k_stable


class RankGroup(Protocol):
    """The ranks that share the vocabulary, as vLLM's `GroupCoordinator` names them."""

    rank_in_group: int
    world_size: int

    def all_gather(self, input_: Tensor, dim: int = -1) -> Tensor:
        """The ranks' tensors side by side, in the order of ranks."""

    def all_reduce(self, input_: Tensor) -> Tensor:
        """The sum of the ranks' tensors; may overwrite `input_`."""


class ShardedDrafter:
    """A `DrafterInterface` whose logits are those of this rank's tokens; its `beam_step` exchanges the best of them.

    `own` is the result of `shard_drafter`, packed or not; `config` is that of the whole drafter.
    """

    def __init__(self, own: DrafterBase, config: DrafterConfig, group: RankGroup) -> None:
        self.own = own
        self.config = config
        target_ids = own.draft_tokens
        assert target_ids is not None
        self._beam_step = ShardedBeamStep(target_ids, group)

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    def tensors(self) -> dict[str, Tensor]:
        return self.own.tensors() | {"target_ids": self._beam_step.target_ids}

    def adopt(self, other: Self) -> None:
        self.own.adopt(other.own)
        self._beam_step.target_ids.copy_(other._beam_step.target_ids)

    def beam_step(self, logits: Tensor, scores: Tensor | None, logits_top_k: int | None = None) -> BeamStep:
        return self._beam_step(logits, scores, logits_top_k)

    def initial_state(self, context: Tensor) -> Tensor:
        return self.own.initial_state(context)

    def token_inputs(self, embedding: Tensor, out: Tensor | None = None) -> Tensor:
        return self.own.token_inputs(embedding, out)

    def next_state(self, state: Tensor, token_embedding: Tensor) -> Tensor:
        return self.own.next_state(state, token_embedding)

    def advance(self, state: Tensor, tokens: Tensor, inputs: Tensor) -> Tensor:
        return self.own.advance(state, tokens, inputs)

    def context_share(self, context: Tensor) -> Tensor:
        return self.own.context_share(context)

    def logits(self, share: Tensor, state: Tensor) -> Tensor:
        return self.own.logits(share, state)

    def __call__(self, context: Tensor, state: Tensor) -> Tensor:
        return self.own(context, state)


class ShardedBeamStep:
    """`ops.beam_step` over logits of which each rank has those of its own tokens.

    The order is the reference's, ties included, because ranks hold ascending slices of the vocabulary.
    Log-probabilities differ from the reference's by rounding, because the softmax's sum is added up by ranks.
    """

    def __init__(self, target_ids: Tensor, group: RankGroup) -> None:
        """`target_ids` [columns of the logits]: the target's ids of this rank's tokens."""
        self.target_ids = target_ids.to(torch.int32)
        self.group = group

    def __call__(
        self,
        logits: Tensor,  # [B, W, V of this rank]
        scores: Tensor | None,  # [B, W] fp32
        logits_top_k: int | None = None,
    ) -> BeamStep:
        """As `beam_step`, with the target's ids instead of columns."""
        beam_width = logits.shape[1]
        logits_BWV = logits.float()
        own_BWK, column_BWK = top_k_stable(logits_BWV, min(beam_width, logits.shape[-1]))
        highest_BW1 = own_BWK[..., :1]
        if logits_top_k is not None:
            logits_BWV = logits_BWV.masked_fill(logits_BWV < self._lowest_kept(logits_BWV, logits_top_k), -torch.inf)
        sum_BW1 = (logits_BWV - highest_BW1).exp().sum(-1, keepdim=True)
        missing = beam_width - own_BWK.shape[-1]
        value_BRW, id_BRW, sum_BR1 = self._gather(
            pad(own_BWK, (0, missing), value=-torch.inf), pad(self.target_ids[column_BWK], (0, missing)), sum_BW1
        )

        value_BWW, best_BWW = top_k_stable(value_BRW.flatten(2), beam_width)
        sum_BW = (sum_BR1 * (value_BRW[..., :1] - value_BWW[..., None, :1]).exp()).sum((-2, -1))
        step_BWW = value_BWW - value_BWW[..., :1] - sum_BW.log()[..., None]
        return rank_continuations(scores, id_BRW.flatten(2).gather(-1, best_BWW).long(), step_BWW)

    def _lowest_kept(self, logits: Tensor, top_k: int) -> Tensor:  # [B, W, 1]
        """The `top_k`-th highest logit of all ranks."""
        own = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values
        highest = self.group.all_gather(pad(own, (0, top_k - own.shape[-1]), value=-torch.inf).contiguous(), dim=-1)
        return highest.topk(top_k, dim=-1).values[..., -1:]

    def _gather(self, values: Tensor, ids: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values and ids [B, W, W] and sums [B, W, 1] of every rank, [B, W, ranks, ·], in one message."""
        width = values.shape[-1]
        own = torch.cat((values, ids.view(torch.float32), sums), -1)
        every = self.group.all_gather(own, dim=-1).unflatten(-1, (self.group.world_size, 2 * width + 1))
        return every[..., :width], every[..., width:-1].view(torch.int32), every[..., -1:]


class ShardedEmbedding:
    """Embeddings by token id, of which each rank holds consecutive rows."""

    def __init__(self, rows: Tensor, first_id: int, group: RankGroup) -> None:
        self.rows = rows  # [V of this rank, H]
        self.first_id = first_id
        self.group = group

    def __call__(self, ids: Tensor) -> Tensor:
        """The embeddings of `ids`, any shape, [..., H]: exact, as all ranks but one add zeros."""
        local = ids - self.first_id
        owned = (local >= 0) & (local < self.rows.shape[0])
        rows = embedding(torch.where(owned, local, 0), self.rows)
        return self.group.all_reduce(rows.masked_fill(~owned.unsqueeze(-1), 0))


def shard_drafter(drafter: Drafter, group: RankGroup) -> Drafter:
    """This rank's part of `drafter`: a drafter whose draft vocabulary is the rank's slice of the whole one.

    Slices are consecutive, ascending and as even as possible in multiples of 64 rows, which kernels need. Parameters
    other than the output layer's are shared with `drafter`.

    Raises ValueError where there are fewer tokens than ranks.
    """
    total, size = drafter.config.output_size, group.world_size
    if total < size:
        raise ValueError(f"a drafter that proposes from {total} tokens cannot be split among {size} ranks")
    unit = 64 if total >= 64 * size else 1
    bounds = [rank * total // size // unit * unit for rank in range(size)] + [total]
    start, end = bounds[group.rank_in_group : group.rank_in_group + 2]
    config = replace(drafter.config, draft_vocab_size=end - start)
    columns = torch.arange(start, end, device=drafter.output.weight.device)
    with torch.device("meta"):
        own = Drafter(config)
    tensors = drafter.state_dict()
    name = f"lm_head.{config.num_draft_layers}.weight"
    # A copy, so that the memory of the whole layer can be freed.
    tensors[name] = tensors[name][start:end].clone()
    tensors["d2t"] = drafter.target_ids(columns) - torch.arange(end - start, device=columns.device)
    own.load_state_dict(tensors, assign=True)
    return own.eval()
