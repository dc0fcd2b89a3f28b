# SPDX-License-Identifier: Apache-2.0
"""One drafting round: context and root in, packed trees out."""

from collections.abc import Callable

from torch import Tensor

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.beam_search import Beams, beam_search
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.graft_copies import Texts


def propose_trees(
    drafter: DrafterInterface,
    embedding: Tensor | Callable[[Tensor], Tensor],  # [V, H]
    context: Tensor,  # [B, H]
    root_tokens: Tensor,  # [B]
    beam_limit: Tensor,  # [B] int64
    config: DraftingConfig,
    rank: Callable[[Beams], Tensor] | None = None,
    beam_steps: int | None = None,
    texts: tuple[Texts, Tensor] | None = None,
) -> DraftTree:
    """Beam-search from the roots and pack the beams.

    A request's tree may use fewer beams than are searched, its best ones. A single beam makes a chain, which is a tree
    too: there is no second code path.

    Args:
        drafter: The drafter.
        embedding: What `drafter.token_inputs` made from the target's embedding, or a function from ids to its rows.
        context: Target's hidden state (after its final norm) at the last accepted token.
        root_tokens: The token that the target sampled there.
        beam_limit: The largest number of beams in each request's tree, at least 1; 1 where logits depend on the order
            of earlier tokens.
        config: Beam width and length, node slots, renormalisation.
        rank: Log-probabilities [B, T, W] that rank the beams instead of the drafter's; see `DraftTree.from_beams`.
        beam_steps: Drafts fewer tokens on each beam than the config says; with 0 the drafter does not run, and trees
            have copies alone.
        texts: What the requests have said so far, and the row of each [B] int64: trees also get copies of it. None,
            and with the config's `prompt_lookup` off or a single beam: the drafter's beams alone.
    """
    beams = beam_search(
        drafter,
        embedding,
        context,
        root_tokens,
        beam_width=config.beam_width,
        beam_length=config.beam_length if beam_steps is None else beam_steps,
        logits_top_k=config.logits_top_k,
    )
    if texts is not None and config.copies_text:
        beams = beams.with_copies(*texts, config.max_depth, beam_limit)
    return DraftTree.from_beams(beams, config.num_speculative_tokens, beam_limit, None if rank is None else rank(beams))
