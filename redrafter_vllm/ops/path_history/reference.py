# SPDX-License-Identifier: Apache-2.0
"""Plain-torch penalties and bad words whose earlier tokens are a row's own ancestors in the draft tree."""

from typing import NamedTuple

import torch
from torch import Tensor


class Paths(NamedTuple):
    """The tokens between the committed text and each logits row: those on the path from the root to the row's node."""

    tokens: Tensor  # [B, N] drafted
    parents: Tensor  # [B, N] node, less than its child, −1 under the root
    req_of_row: Tensor  # [R] batch index
    local_of_row: Tensor  # [R] 0 for the root's row, 1 + node for a node's
    max_depth: int  # T, no node is deeper

    def rows(self, rows: slice) -> "Paths":
        """The same trees, some of the rows."""
        return self._replace(req_of_row=self.req_of_row[rows], local_of_row=self.local_of_row[rows])


class Penalties(NamedTuple):
    """Penalties of S request slots, and the tokens of their prompts and outputs."""

    repetition: Tensor  # [S] fp32, 1 has no effect
    frequency: Tensor  # [S] fp32, 0 has no effect
    presence: Tensor  # [S] fp32, 0 has no effect
    prompt_mask: Tensor  # [S, ⌈V / 32⌉] int32: bit v % 32 of word v // 32 says that v is in the prompt
    output_counts: Tensor  # [S, V] int32


class BadWords(NamedTuple):
    """Forbidden sequences of S request slots, and their committed text."""

    tokens: Tensor  # [S, *] int32, all words of a slot in a row
    offsets: Tensor  # [S, 1 + *] int32, where each word starts; the next one's start is its end
    num_words: Tensor  # [S] int32
    text: Tensor  # [S, *] int32, prompt and output
    prompt_len: Tensor  # [S] int32
    total_len: Tensor  # [S] int32, of prompt and output


def path_tokens(paths: Paths) -> Tensor:
    """[R, T] tokens from each row's node up to the root, the node's first; −1 beyond."""
    node_R = paths.local_of_row.long() - 1
    columns = []
    for _ in range(paths.max_depth):
        is_node_R = node_R >= 0
        at = paths.req_of_row, node_R.clamp(min=0)
        columns.append(torch.where(is_node_R, paths.tokens[at].long(), -1))
        node_R = torch.where(is_node_R, paths.parents[at].long(), -1)
    return torch.stack(columns, dim=1)


def penalise(
    logits: Tensor,  # [R, V] fp32
    paths: Paths,
    slot_of_row: Tensor,  # [R]
    penalties: Penalties,
) -> None:
    """Repetition, frequency and presence penalties, in place.

    A token is "written" when it is in the slot's output or on the row's path, and "read" when it is in the prompt.
    Repetition divides positive logits of tokens read or written and multiplies the others; frequency subtracts once for
    each time a token was written, presence once.
    """
    slot_R = slot_of_row.long()
    path_RT = path_tokens(paths)
    counts_RV = penalties.output_counts[slot_R]
    counts_RV.scatter_add_(1, path_RT.clamp(min=0), (path_RT >= 0).to(counts_RV.dtype))
    written_RV = counts_RV > 0
    token_V = torch.arange(logits.shape[1], device=logits.device)
    read_RV = ((penalties.prompt_mask[slot_R][:, token_V // 32] >> (token_V % 32)) & 1).bool()

    repetition_R1, frequency_R1, presence_R1 = (x[slot_R][:, None] for x in penalties[:3])
    scale_RV = torch.where(read_RV | written_RV, repetition_R1, 1.0)
    out_RV = logits * torch.where(logits > 0, 1.0 / scale_RV, scale_RV)
    out_RV -= frequency_R1 * counts_RV
    out_RV -= presence_R1 * written_RV
    used_R1 = (repetition_R1 != 1.0) | (frequency_R1 != 0.0) | (presence_R1 != 0.0)
    logits.copy_(torch.where(used_R1, out_RV, logits))


def forbid_bad_words(
    logits: Tensor,  # [R, V] fp32
    paths: Paths,
    slot_of_row: Tensor,  # [R]
    words: BadWords,
    max_words: int,
    max_length: int,
) -> None:
    """Set the logit of a bad word's last token to −inf where the output and the path end with the word's other tokens.

    Args:
        logits: Changed in place.
        paths: Paths of the rows.
        slot_of_row: Request slot of each row.
        words: Words of every slot.
        max_words: No slot of these rows has more words.
        max_length: None of their words has more tokens.
    """
    slot_R = slot_of_row.long()
    word_K, back_J = (torch.arange(size, device=logits.device) for size in (max_words, max(max_length - 1, 1)))
    history_RJ = _history(paths, slot_R, words, back_J)

    exists_RK = word_K < words.num_words[slot_R][:, None]
    start_RK, end_RK = (words.offsets[slot_R][:, word_K + shift].long() for shift in (0, 1))
    prefix_RK = torch.where(exists_RK, end_RK - start_RK - 1, 0)
    last_RK = torch.where(exists_RK, end_RK - 1, 0)
    place_RKJ = last_RK[..., None] - 1 - back_J
    wanted_RKJ = words.tokens[slot_R[:, None, None], place_RKJ.clamp(min=0)]
    equal_RKJ = (wanted_RKJ == history_RJ[:, None]) | (back_J >= prefix_RK[..., None])
    match_RK = exists_RK & equal_RKJ.all(dim=-1)

    token_RK = torch.where(exists_RK, words.tokens[slot_R[:, None], last_RK], 0).long()
    ceiling_RK = torch.where(match_RK, -torch.inf, torch.inf).to(logits.dtype)
    logits.scatter_reduce_(1, token_RK, ceiling_RK, "amin")


def _history(paths: Paths, slot_R: Tensor, words: BadWords, back_J: Tensor) -> Tensor:
    """[R, J] the last tokens of path and output, last first; −1 before the output."""
    path_RT = path_tokens(paths)
    depth_R1 = (path_RT >= 0).sum(dim=1, keepdim=True)
    total_R1, prompt_R1 = words.total_len[slot_R][:, None], words.prompt_len[slot_R][:, None]
    place_RJ = total_R1 - 1 - (back_J - depth_R1)
    written_RJ = words.text[slot_R[:, None], place_RJ.clamp(0, words.text.shape[1] - 1)]
    written_RJ = torch.where(place_RJ >= prompt_R1, written_RJ.long(), -1)
    drafted_RJ = path_RT[:, back_J.clamp(max=paths.max_depth - 1)]
    return torch.where(back_J < depth_R1, drafted_RJ, written_RJ)
