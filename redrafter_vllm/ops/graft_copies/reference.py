# SPDX-License-Identifier: Apache-2.0
"""Plain-torch prompt lookup beside a beam search: a copied continuation becomes one more beam of every step.

Text repeats itself: answers quote their question, code its names, lists their form. A drafter without memory of the
text cannot know what comes then, and a look at the text can (prompt lookup, as vLLM's `ngram`). In one tree each finds
what the other one misses.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

SHORTEST, LONGEST = 2, 32  # tokens that have to be the same before a copy, and as many as are compared


class Texts(NamedTuple):
    """The texts of the requests, by persistent row, each up to its root."""

    tokens: Tensor  # [R, L]
    lengths: Tensor  # [R]


def graft_copies(
    tokens: Tensor,
    parents: Tensor,
    log_probs: Tensor,
    texts: Texts,
    rows: Tensor,
    length: int,
    beam_limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The beams of a search, and a copied continuation of up to `length` tokens as beam W of every step.

    The copy is what followed the latest of the places where most of the last tokens, at most LONGEST, occurred before;
    there is none where fewer than SHORTEST did. A copy that runs into the text's end goes on with its own tokens.
    Where a beam says the same as the copy, the copy stands for both, with the higher probability of the two; beams that
    continue that one then continue the copy, and their probabilities rise by the same factor.

    A copy behind m equal tokens is taken to be right with probability 1 − 1/m, which is near what was counted on one
    target's answers (docs/dev/log.md). One that was right lies behind one more equal token: so d copied tokens are all
    right with probability (m − 1) / (m − 1 + d).

    Args:
        tokens, parents, log_probs: [B, S, W] as in `Beams`; S may be 0.
        texts: Of R rows.
        rows: [B] int64, each request's row; one that is R or above has no text.
        length: L, at least S. A copy costs no beam step, so it may be longer than the beams.
        beam_limit: [B] int64. A request whose trees may have no more than W beams gets no copy, as that is one more.

    Returns:
        The three with shape [B, L, W + 1]. Where there is no beam or copy, the log-probability is −inf: a beam that is
        the copy, all beams of the steps from S on, and the copy where the text has none.
    """
    steps, width = tokens.shape[1:]
    copies, matched = copied_tokens(texts, rows, length)
    has_copy = matched >= SHORTEST
    if beam_limit is not None:
        has_copy &= beam_limit > width
    beam_W = torch.arange(width, device=tokens.device)
    more = (0, 0, 0, length - steps)
    tokens, log_probs = pad(tokens, more), pad(log_probs, more, value=-torch.inf)
    parents = torch.cat([parents, beam_W.expand(len(rows), length - steps, width)], 1)
    # The beam that is the copy so far, and by how much the beams of the step before have been raised.
    same_B, raised_BW = torch.full_like(rows, -1), torch.zeros_like(log_probs[:, 0])
    grafted_tokens, grafted_parents, grafted_log_probs = [], [], []
    for step in range(length):
        copy_B = copies[:, step].masked_fill(~has_copy, 0)
        log_prob_B = torch.log((matched - 1) / (matched + step)).to(log_probs.dtype)
        token_BW, parent_BW, own_BW = tokens[:, step], parents[:, step], log_probs[:, step]
        score_BW = own_BW + (raised_BW.gather(1, parent_BW) if step else 0)
        exists_BW = own_BW != -torch.inf
        below_copy_BW = exists_BW & (parent_BW == same_B[:, None]) if step else exists_BW
        is_copy_BW = below_copy_BW & (token_BW == copy_B[:, None]) & has_copy[:, None]
        log_prob_B = torch.fmax(log_prob_B, score_BW.masked_fill(~is_copy_BW, -torch.inf).amax(1))
        raised_BW = torch.where(exists_BW, torch.where(is_copy_BW, log_prob_B[:, None], score_BW) - own_BW, 0)
        same_B = torch.where(is_copy_BW.any(1), (is_copy_BW * beam_W).amax(1), -1)
        if step:
            parent_BW = torch.where(below_copy_BW, width, parent_BW)
        score_BW = score_BW.masked_fill(is_copy_BW, -torch.inf)
        grafted_tokens.append(torch.cat([token_BW, copy_B[:, None]], 1))
        grafted_parents.append(torch.cat([parent_BW, torch.full_like(copy_B, width)[:, None]], 1))
        grafted_log_probs.append(torch.cat([score_BW, log_prob_B.where(has_copy, -torch.inf)[:, None]], 1))
    return torch.stack(grafted_tokens, 1), torch.stack(grafted_parents, 1), torch.stack(grafted_log_probs, 1)


def copied_tokens(texts: Texts, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What followed the last tokens of each text before, [B, count] int64, and how many tokens were equal, [B] int64.

    A text without two equal tokens in succession at any place before has token 0 throughout and 0 or 1 equal tokens.
    """
    num_rows = texts.tokens.shape[0]
    row_B = rows.clamp(max=num_rows - 1)
    length_B = texts.lengths[row_B].long() * (rows < num_rows)
    # The longest text is known on the host where the tensors are; on a GPU the kernel runs.
    longest = max(1, int(length_B.max())) if len(rows) else 1
    text_BL = texts.tokens[row_B, :longest].long()
    place_L = torch.arange(longest, device=rows.device)
    end_B1 = length_B[:, None] - 1
    is_equal_BL = place_L < end_B1
    matched_BL = torch.zeros_like(text_BL)
    for back in range(min(LONGEST, longest)):
        if back >= SHORTEST and not is_equal_BL.any():
            break
        last_B1 = text_BL.gather(1, (end_B1 - back).clamp(min=0))
        is_equal_BL[:, back:] &= text_BL[:, : longest - back] == last_B1
        is_equal_BL[:, :back] = False
        matched_BL += is_equal_BL
    # The most equal tokens, and of those places the last one.
    best_B1 = (matched_BL * longest + place_L).argmax(1, keepdim=True)
    matched_B = matched_BL.gather(1, best_B1)[:, 0]
    period_B1 = (end_B1 - best_B1).clamp(min=1)
    source_BT = best_B1 + 1 + torch.arange(count, device=rows.device) % period_B1
    copies_BT = text_BL.gather(1, source_BT.clamp(max=longest - 1))
    return copies_BT.masked_fill((matched_B < SHORTEST)[:, None], 0), matched_B
