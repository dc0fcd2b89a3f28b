# SPDX-License-Identifier: Apache-2.0
"""Beam search over a drafter, arXiv 2403.09919, section 3.2: fixed shapes, no host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.grow_beams import BeamHistory, grow_beams


@dataclass(frozen=True)
class Beams:
    """The candidates of one drafting round, best beam first; the root token is not part of a beam."""

    tokens: Tensor  # [B, W, T] int64
    token_log_probs: Tensor  # [B, W, T] fp32, each given the root and the beam's earlier tokens

    def __post_init__(self) -> None:
        if self.tokens.dim() != 3 or self.tokens.shape != self.token_log_probs.shape:
            raise ValueError(
                "tokens and token_log_probs must have one shape [B, W, T], not "
                f"{list(self.tokens.shape)} and {list(self.token_log_probs.shape)}"
            )


@torch.no_grad()
def beam_search(
    drafter: DrafterInterface,
    embedding: Tensor | Callable[[Tensor], Tensor],
    context: Tensor,
    root_tokens: Tensor,
    *,
    beam_width: int,
    beam_length: int,
    logits_top_k: int | None = None,
) -> Beams:
    """Drafts `beam_length` tokens on each of `beam_width` beams.

    A trimmed drafter proposes from its draft vocabulary; the beams hold the target's ids either way. Scores are
    log-probabilities over all that the drafter can propose, in fp32. Equal scores go to the better beam, then to the
    lower token id, on any device.

    Args:
        drafter: Any kind of drafter.
        embedding: What the drafter takes of each token, [V, H], or a function from token ids to such rows: the
            target's embedding, or what `drafter.token_inputs` made from it.
        context: The target's last hidden state, [B, H]; B may be 0.
        root_tokens: The tokens that the target has sampled, [B], not counted in `beam_length`.
        beam_width: W, beams kept at every step.
        beam_length: T, tokens drafted on each.
        logits_top_k: Renormalises over each beam's highest logits, ties of the last included, as Apple's
            implementation does with 50. The first linear layer is then not split, because sums in another order would
            move large logits by more than parity with it allows.

    Raises ValueError for impossible shapes, lengths or widths.
    """
    _check(drafter, embedding, context, root_tokens, beam_width, beam_length, logits_top_k)
    dtype = drafter.dtype
    context_BH = context.to(dtype)
    share_BS = drafter.context_share(context_BH)

    batch = root_tokens.shape[0]
    last_BW = root_tokens.long().unsqueeze(1).expand(batch, beam_width)
    score_BW = None
    history = BeamHistory(
        last_BW.new_empty((batch, beam_width, 0)),
        context_BH.new_empty((batch, beam_width, 0), dtype=torch.float32),
        drafter.initial_state(context_BH).unsqueeze(1).expand(batch, beam_width, -1),
    )
    for _ in range(beam_length):
        if isinstance(embedding, Tensor):
            state_BWH = drafter.advance(history.state, last_BW, embedding)
        else:
            state_BWH = drafter.next_state(history.state, embedding(last_BW).to(dtype))
        if logits_top_k is None:
            logits_BWV = drafter.logits(share_BS, state_BWH)
        else:
            logits_BWV = drafter(context_BH, state_BWH)
        chosen = drafter.beam_step(logits_BWV, score_BW, logits_top_k)
        score_BW, last_BW = chosen.scores, chosen.tokens
        history = grow_beams(history._replace(state=state_BWH), chosen.parents, last_BW, chosen.log_probs)
    return Beams(history.tokens, history.log_probs)


def _check(
    drafter: DrafterInterface,
    embedding: Tensor | Callable[[Tensor], Tensor],
    context: Tensor,
    root_tokens: Tensor,
    beam_width: int,
    beam_length: int,
    logits_top_k: int | None,
) -> None:
    hidden, vocab = drafter.config.hidden_size, drafter.config.vocab_size
    if beam_width < 1 or beam_length < 1:
        raise ValueError(f"beam_width and beam_length must be at least 1, not {beam_width} and {beam_length}")
    if beam_width > drafter.config.output_size:
        trimmed = "" if drafter.config.draft_vocab_size is None else "draft "
        raise ValueError(
            f"beam_width is {beam_width} but the drafter's {trimmed}vocabulary has only {drafter.config.output_size} "
            "tokens"
        )
    if logits_top_k is not None and logits_top_k < beam_width:
        raise ValueError(f"logits_top_k is {logits_top_k}: it must be at least beam_width, which is {beam_width}")
    if root_tokens.dim() != 1 or tuple(context.shape) != (root_tokens.shape[0], hidden):
        raise ValueError(
            f"context must be [B, {hidden}] and root_tokens [B], not {list(context.shape)} and "
            f"{list(root_tokens.shape)}"
        )
    if isinstance(embedding, Tensor) and (
        embedding.dim() != 2 or embedding.shape[1] != hidden or embedding.shape[0] < vocab
    ):
        raise ValueError(f"embedding must be [V, {hidden}] with V at least {vocab}, not {list(embedding.shape)}")
