# SPDX-License-Identifier: Apache-2.0
"""Beam search of arXiv 2403.09919, section 3.2, in plain torch: fixed shapes, no host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.grow_beams.reference import BeamHistory, grow_beams


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


class BeamStep(NamedTuple):
    """The best W continuations of W beams, best first."""

    scores: Tensor  # [B, W] fp32, log-probability of the whole beam
    parents: Tensor  # [B, W] int64, the beam that each one continues
    tokens: Tensor  # [B, W] int64, column of the logits, or the target's id for it
    log_probs: Tensor  # [B, W] fp32, of that token alone


def beam_step(
    logits: Tensor,  # [B, W, V]
    scores: Tensor | None,  # [B, W] fp32
    logits_top_k: int | None = None,
    id_offsets: Tensor | None = None,  # [V]
) -> BeamStep:
    """Scores and ranks the W·V continuations of W beams; V must be at least W.

    `scores` None: all beams are the root alone, so that only one is live, or all would draft the same tokens.

    Within a beam the order is that of its logits, equal ones by ascending column: log-probabilities keep that order,
    except that rounding makes neighbours equal, differently on each device. Between beams the order is that of the
    total, equal ones by beam, then by the order within the beam. `logits_top_k` (at least W): `beam_search`.
    `id_offsets`: what a target's id is above its column.
    """
    beam_width = logits.shape[1]
    logits_BWV = logits.float()
    # The best W of all W·V continuations are among the best W of each beam.
    candidate_BWW = top_k_stable(logits_BWV, beam_width)[1]
    if logits_top_k is not None:
        logits_BWV = _only_top(logits_BWV, logits_top_k)
    step = rank_continuations(scores, candidate_BWW, logits_BWV.log_softmax(-1).gather(-1, candidate_BWW))
    return step if id_offsets is None else step._replace(tokens=step.tokens + id_offsets[step.tokens])


def rank_continuations(scores: Tensor | None, tokens: Tensor, log_probs: Tensor) -> BeamStep:
    """The best W of W·W continuations: W of each beam, its best first, `tokens` and `log_probs` [B, W, W]."""
    beam_width = log_probs.shape[1]
    if scores is None:
        scores = log_probs.new_full(log_probs.shape[:2], -torch.inf)
        scores[:, 0] = 0.0
    total_BWW = scores.unsqueeze(-1) + log_probs
    score_BW, chosen_BW = top_k_stable(total_BWW.flatten(1), beam_width)
    return BeamStep(
        scores=score_BW,
        parents=chosen_BW // beam_width,
        tokens=tokens.flatten(1).gather(1, chosen_BW),
        log_probs=log_probs.flatten(1).gather(1, chosen_BW),
    )


# Logits, scores, logits_top_k and id_offsets, as `beam_step` takes them.
RankStep = Callable[[Tensor, Tensor | None, int | None, Tensor | None], BeamStep]


@torch.no_grad()
def beam_search(
    drafter: Drafter,
    embedding: Tensor | Callable[[Tensor], Tensor],
    context: Tensor,
    root_tokens: Tensor,
    *,
    beam_width: int,
    beam_length: int,
    logits_top_k: int | None = None,
    step: RankStep = beam_step,
    grow: Callable[[BeamHistory, Tensor, Tensor, Tensor], BeamHistory] = grow_beams,
) -> Beams:
    """Drafts `beam_length` tokens on each of `beam_width` beams.

    embedding: the target's [V, H], or a function from token ids to embeddings; context: the target's last hidden
    state [B, H]; root_tokens: the tokens it has sampled, [B], not counted in `beam_length`. B may be 0.

    A trimmed drafter proposes from its draft vocabulary; the beams hold the target's ids either way. Scores are
    log-probabilities over all that the drafter can propose, in fp32. `logits_top_k` is for parity with Apple's
    implementation, which uses 50: it renormalises over each beam's highest logits (ties of the last included) and
    forgoes the split of the first linear layer, because sums in another order would move large logits by more than
    the parity asked for. Equal scores go to the better beam, then to the lower token id, on any device. `step` ranks
    the continuations and `grow` makes the new beams: `beam_step` and `grow_beams`, or kernels of their signatures.

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
        chosen = step(logits_BWV, score_BW, logits_top_k, drafter.id_offsets)
        score_BW, last_BW = chosen.scores, chosen.tokens
        history = grow(history._replace(state=state_BWH), chosen.parents, last_BW, chosen.log_probs)
    return Beams(history.tokens, history.log_probs)


def top_k_stable(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of `values` [..., n] in descending order, and their indices; equal ones by ascending index.

    `torch.topk` leaves to the device which of several equal values it takes, and in which order.
    """
    top, index = values.topk(k, dim=-1)
    lowest = top[..., -1:]
    place = torch.arange(k, device=values.device)
    num_above = (top > lowest).sum(-1, keepdim=True)
    # Of the values equal to the lowest one taken, take those that come first.
    num_ties = (values == lowest).cumsum(-1, dtype=torch.int32)
    wanted_tie = (place - num_above + 1).clamp(min=0).int()
    tie_index = torch.searchsorted(num_ties, wanted_tie).clamp(max=values.shape[-1] - 1)
    index = torch.where(place < num_above, index, tie_index).sort(dim=-1).values
    top, order = values.gather(-1, index).sort(dim=-1, descending=True, stable=True)
    return top, index.gather(-1, order)


def _only_top(logits: Tensor, top_k: int) -> Tensor:
    lowest_kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest_kept, -torch.inf)


def _check(
    drafter: Drafter,
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
