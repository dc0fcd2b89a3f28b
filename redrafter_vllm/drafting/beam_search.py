# SPDX-License-Identifier: Apache-2.0
"""Beam search over a drafter, arXiv 2403.09919, section 3.2: fixed shapes, no host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.graft_copies import Texts, graft_copies
from redrafter_vllm.ops.grow_beams import BeamHistory, grow_beams


@dataclass(frozen=True)
class Beams:
    """The beams that one drafting round kept at each of its T steps, best first; the root token is part of none."""

    tokens: Tensor  # [B, T, W] int64, the last token of each beam
    parents: Tensor  # [B, T, W] int64, the beam of the step before that each one continues; any at the first step
    log_probs: Tensor  # [B, T, W] fp32, of all of the beam's tokens given the root; −inf where there is no beam

    def __post_init__(self) -> None:
        shapes = [list(tensor.shape) for tensor in (self.tokens, self.parents, self.log_probs)]
        if len(shapes[0]) != 3 or any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                "tokens, parents and log_probs must have one shape [B, T, W], not {}, {} and {}".format(*shapes)
            )

    def paths(self) -> Tensor:
        """All tokens of the last step's beams, the candidates of arXiv 2403.09919: [B, W, T] int64."""
        beam_BW = torch.arange(self.tokens.shape[2], device=self.tokens.device).expand_as(self.tokens[:, 0])
        path: list[Tensor] = []
        for tokens_BW, parents_BW in zip(self.tokens.unbind(1)[::-1], self.parents.unbind(1)[::-1], strict=True):
            path.insert(0, tokens_BW.gather(1, beam_BW))
            beam_BW = parents_BW.gather(1, beam_BW)
        return torch.stack(path, -1)

    def with_copies(self, texts: Texts, rows: Tensor, length: int, beam_limit: Tensor | None = None) -> Self:
        """These beams and one more, W + 1, of `length` steps, which copies each request's text: see `ops.graft_copies`.

        `rows` [B] int64 are the requests' rows of `texts`; `beam_limit` [B] int64 leaves copies out where it is W or
        below.
        """
        return type(self)(*graft_copies(self.tokens, self.parents, self.log_probs, texts, rows, length, beam_limit))


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
    """Drafts `beam_length` tokens on each of `beam_width` beams, and keeps the beams of all steps.

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
        beam_length: T, tokens drafted on each; with 0 the drafter does not run.
        logits_top_k: Renormalises over each beam's highest logits, ties of the last included, as Apple's
            implementation does with 50. The first linear layer is then not split, because sums in another order would
            move large logits by more than parity with it allows.

    Raises ValueError for impossible shapes, lengths or widths.
    """
    _check(drafter, embedding, context, root_tokens, beam_width, beam_length, logits_top_k)
    shape = root_tokens.shape[0], beam_length, beam_width
    history = BeamHistory(
        scores=context.new_empty(shape, dtype=torch.float32),
        parents=context.new_empty(shape, dtype=torch.int64),
        tokens=context.new_empty(shape, dtype=torch.int64),
    )
    if beam_length == 0:
        return Beams(history.tokens, history.parents, history.scores)
    dtype = drafter.dtype
    context_BH = context.to(dtype)
    share_BS = drafter.context_share(context_BH)

    # At first all beams are the root, for which one state is enough; from then on there are W.
    last_BW = root_tokens.long().unsqueeze(1)
    state_BWH = drafter.initial_state(context_BH).unsqueeze(1)
    score_BW = None
    for step in range(beam_length):
        if isinstance(embedding, Tensor):
            state_BWH = drafter.advance(state_BWH, last_BW, embedding)
        else:
            state_BWH = drafter.next_state(state_BWH, embedding(last_BW).to(dtype))
        if logits_top_k is None:
            logits_BWV = drafter.logits(share_BS, state_BWH)
        else:
            logits_BWV = drafter(context_BH, state_BWH)
        chosen = drafter.beam_step(logits_BWV.expand(-1, beam_width, -1), score_BW, logits_top_k)
        score_BW, last_BW = chosen.scores, chosen.tokens
        state_BWH = grow_beams(history, chosen, state_BWH, step)
    return Beams(history.tokens, history.parents, history.scores)


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
    if beam_width < 1 or beam_length < 0:
        raise ValueError(f"beam_width must be at least 1 and beam_length 0, not {beam_width} and {beam_length}")
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
