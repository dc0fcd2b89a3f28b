# SPDX-License-Identifier: Apache-2.0
"""Drafting on ranks that split the vocabulary, against the whole drafter on one rank."""

import pytest
import torch
from torch import Tensor

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.drafting.beam_search import Beams, beam_search
from redrafter_vllm.model.drafter import Drafter, DrafterBase
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.model.sharded import ShardedBeamStep, ShardedDrafter, ShardedEmbedding, shard_drafter
from tests.parallel.ranks import ThreadGroup, on_ranks

VOCAB, HIDDEN, WIDTH, LENGTH = 43, 12, 4, 3


def random_drafter(*, exit_dim: int = 2 * HIDDEN, layers: int = 1, draft_vocab: int | None = None) -> Drafter:
    torch.manual_seed(layers)
    drafter = Drafter(DrafterConfig(VOCAB, HIDDEN, exit_dim, layers, draft_vocab_size=draft_vocab))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if draft_vocab is not None:
        drafter.set_draft_tokens(torch.randperm(VOCAB)[:draft_vocab].sort().values)
    return drafter.eval()


def inputs(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(1)  # a separate one: ranks are threads
    embedding = torch.randn(VOCAB, HIDDEN, generator=seeded)
    return embedding, torch.randn(batch, HIDDEN, generator=seeded), torch.randint(VOCAB, (batch,), generator=seeded)


def search_on(
    group: ThreadGroup,
    drafter: Drafter,
    embedding: Tensor,
    context: Tensor,
    roots: Tensor,
    logits_top_k: int | None = None,
    pack: bool = False,
) -> Beams:
    own: DrafterBase = shard_drafter(drafter, group)
    if pack:
        own = PackedDrafter(own, project_embedding=True)
    # The embedding's rows are split at other ids than the output layer's, as vLLM pads its vocabulary.
    per_rank = -(-VOCAB // group.world_size) + 2
    first = group.rank_in_group * per_rank
    rows = own.token_inputs(embedding[first : first + per_rank])
    sharded = ShardedDrafter(own, drafter.config, group)
    return beam_search(
        sharded,
        ShardedEmbedding(rows, first, group),
        context,
        roots,
        beam_width=WIDTH,
        beam_length=LENGTH,
        logits_top_k=logits_top_k,
    )


def search(drafter: Drafter, *args: Tensor, logits_top_k: int | None = None) -> Beams:
    return beam_search(drafter, *args, beam_width=WIDTH, beam_length=LENGTH, logits_top_k=logits_top_k)


def assert_same(beams: list[Beams], whole: Beams) -> None:
    for rank in beams:
        assert torch.equal(rank.tokens, whole.tokens)
        torch.testing.assert_close(rank.log_probs, whole.log_probs, atol=2e-6, rtol=1e-6)
        assert torch.equal(rank.log_probs, beams[0].log_probs)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "drafter",
    [
        random_drafter(),
        random_drafter(layers=0),
        random_drafter(exit_dim=10, layers=2),
        random_drafter(draft_vocab=17),
        random_drafter(draft_vocab=5),  # with 2 or 3 ranks, one has fewer tokens than there are beams
    ],
    ids=["one-block", "no-block", "projected", "trimmed", "few"],
)
def test_candidates_are_those_of_the_whole_drafter(drafter: Drafter, size: int) -> None:
    assert_same(on_ranks(size, lambda group: search_on(group, drafter, *inputs())), search(drafter, *inputs()))


@pytest.mark.parametrize("layers", [0, 1])
def test_a_packed_drafter_and_a_projected_embedding_are_split_alike(layers: int) -> None:
    drafter = random_drafter(layers=layers)
    assert_same(on_ranks(2, lambda group: search_on(group, drafter, *inputs(), pack=True)), search(drafter, *inputs()))


@pytest.mark.parametrize("top_k", [4, 9, 30])
@pytest.mark.parametrize("draft_vocab", [None, 17])
def test_renormalisation_is_over_the_best_logits_of_all_ranks(top_k: int, draft_vocab: int | None) -> None:
    drafter = random_drafter(draft_vocab=draft_vocab)
    assert_same(
        on_ranks(2, lambda group: search_on(group, drafter, *inputs(), logits_top_k=top_k)),
        search(drafter, *inputs(), logits_top_k=top_k),
    )


@pytest.mark.parametrize("logits_top_k", [None, 6])
def test_every_logit_occurs_on_both_ranks(logits_top_k: int | None) -> None:
    drafter = random_drafter(draft_vocab=40)
    with torch.no_grad():
        rows = drafter.output.weight[:10].repeat_interleave(2, 0)
        drafter.output.weight.copy_(torch.cat((rows, rows)))
    whole = search(drafter, *inputs(), logits_top_k=logits_top_k)
    assert_same(on_ranks(2, lambda group: search_on(group, drafter, *inputs(), logits_top_k=logits_top_k)), whole)


def test_equal_logits_go_to_the_lower_id_across_ranks() -> None:
    own_logits = [torch.tensor([2.0, 5, 1, 5]), torch.tensor([5.0, 2, 5, 5])]
    dead = torch.full((3,), -torch.inf)

    def step(group: ThreadGroup) -> list[list[int]]:
        rank = group.rank_in_group
        logits = own_logits[rank].expand(1, 4, -1)
        ids = 4 * rank + torch.arange(4)
        return ShardedBeamStep(ids, group)(logits, torch.cat((torch.zeros(1), dead))[None]).tokens.tolist()

    assert on_ranks(2, step) == [[[1, 3, 4, 6]]] * 2


def test_hand_worked_step_of_two_ranks() -> None:
    """One beam of two is live, with logits log 1, 2, 3 on rank 0 and log 3, 4 on rank 1: ids 10 to 14, sum 13."""
    own_logits = [torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 4])]
    own_ids = [torch.tensor([10, 11, 12]), torch.tensor([13, 14])]

    def step(group: ThreadGroup) -> list[list]:
        rank = group.rank_in_group
        logits = own_logits[rank].log().expand(1, 2, -1)
        found = ShardedBeamStep(own_ids[rank], group)(logits, torch.tensor([[0.0, -torch.inf]]))
        return [found.tokens.tolist(), found.parents.tolist(), found.scores.exp().tolist()]

    for tokens, parents, probabilities in on_ranks(2, step):
        assert tokens == [[14, 12]]
        assert parents == [[0, 0]]
        assert probabilities[0] == pytest.approx([4 / 13, 3 / 13])


def test_all_ranks_draw_the_same_beams_where_their_arithmetic_differs() -> None:
    drafter = random_drafter()
    embedding, context, roots = inputs()

    def search_with_noise(group: ThreadGroup) -> Beams:
        noise = 0.3 * group.rank_in_group
        return search_on(group, drafter, embedding, context + noise, roots)

    first, second = on_ranks(2, search_with_noise)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.log_probs, second.log_probs)


def test_only_candidates_and_embeddings_are_exchanged() -> None:
    """Per step: [B, W, H] of embeddings are summed, and per beam W logits, W ids and a sum gathered, 4 bytes each."""
    batch, drafter = 5, random_drafter()

    def sent(group: ThreadGroup) -> list[int]:
        search_on(group, drafter, *inputs(batch))
        return group.sent_bytes

    first, later = batch * HIDDEN * 4, batch * WIDTH * HIDDEN * 4  # the root's embedding, and those of the beams
    candidates = batch * WIDTH * (2 * WIDTH + 1) * 4
    assert on_ranks(2, sent) == [[first, candidates, *[later, candidates] * (LENGTH - 1)]] * 2


def test_embeddings_of_other_ranks_rows() -> None:
    table = torch.randn(7, 3)
    table[0] = torch.inf  # multiplied by zero it would still change another rank's rows
    ids = torch.tensor([[0, 3, 6], [4, 2, 5]])

    def look_up(group: ThreadGroup) -> Tensor:
        first = 4 * group.rank_in_group
        return ShardedEmbedding(table[first : first + 4], first, group)(ids)

    for found in on_ranks(2, look_up):
        assert torch.equal(found, table[ids])


def test_more_ranks_than_draft_tokens_are_refused() -> None:
    drafter = random_drafter(draft_vocab=2)
    with pytest.raises(ValueError, match="proposes from 2 tokens cannot be split among 3 ranks"):
        on_ranks(3, lambda group: shard_drafter(drafter, group))


def test_a_rank_takes_another_drafter_into_its_memory() -> None:
    """Weights and the ids of its tokens: afterwards the ranks draft like the other drafter on one rank."""
    old, new = random_drafter(draft_vocab=11), random_drafter(layers=1, draft_vocab=11)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    new.set_draft_tokens(torch.arange(4, 37, 3))
    args = inputs()

    def replaced(group: ThreadGroup) -> Beams:
        served, fresh = (
            ShardedDrafter(PackedDrafter(shard_drafter(drafter, group), project_embedding=True), drafter.config, group)
            for drafter in (old, new)
        )
        rows = args[0][22 * group.rank_in_group :][:22]
        table = served.token_inputs(rows)
        before = {name: tensor.data_ptr() for name, tensor in served.tensors().items()}
        assert "target_ids" in before
        served.adopt(fresh)
        assert {name: tensor.data_ptr() for name, tensor in served.tensors().items()} == before
        whole = ShardedEmbedding(served.token_inputs(rows, out=table), 22 * group.rank_in_group, group)
        return beam_search(served, whole, *args[1:], beam_width=WIDTH, beam_length=LENGTH)

    assert_same(on_ranks(2, replaced), search(new, *args))
