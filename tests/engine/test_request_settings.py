# SPDX-License-Identifier: Apache-2.0
"""Requests with their own, smaller drafting settings or without drafting: the same tokens, and less work."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from redrafter_vllm.integration.worker import speculator as speculator_module
from redrafter_vllm.integration.worker.sampler import TreeSampler
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, runner, scheduler, tokens
from tests.engine.scripted import run_both
from tests.models import VOCAB

# The scheduler assigns slots to drafts, or to placeholders for them.
SCHEDULING = [{"async_scheduling": False}, {"async_scheduling": True}]
OFF: dict[str, Any] = {"enabled": False}
SETTINGS: list[dict[str, Any] | str | None] = [
    None,
    OFF,
    {"num_speculative_tokens": 1},
    {"num_speculative_tokens": 5},
    {"beam_width": 1},
    {"beam_width": 2},
    {"enabled": False, "beam_width": 2, "num_speculative_tokens": 3},
    {},
    '{"beam_width": 2, "num_speculative_tokens": 5}',
]
# Maximal number of nodes, with four beams of four tokens in sixteen slots.
MAX_NODES = [16, 0, 1, 5, 4, 8, 0, 16, 5]


def requests(settings: list[dict[str, Any] | str | None], **options: Any) -> list[Any]:
    return [
        params(
            temperature=0.8 * (index % 3 == 2),
            seed=index,
            ignore_eos=True,
            extra_args=None if own is None else {"redrafter": own},
            **{"max_tokens": 40, **options},
        )
        for index, own in enumerate(settings)
    ]


@contextmanager
def verified(llm: Any) -> Iterator[list[tuple[str, int, int]]]:
    """Yields a list of request, its slots from the scheduler and its nodes, for every request of every verification."""
    seen: list[tuple[str, int, int]] = []
    verify = TreeSampler.__call__

    def record(self: TreeSampler, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = verify(self, logits, input_batch, *args, **kwargs)
        slots = input_batch.num_draft_tokens_per_req.tolist()
        seen.extend(zip(input_batch.req_ids, slots, output.num_nodes[1].tolist(), strict=True))
        return output

    with patch.object(TreeSampler, "__call__", record):
        yield seen


def position(request_id: str, outputs: list[Any]) -> int:
    return next(i for i, out in enumerate(outputs) if request_id.split("-")[0] == out.request_id)


@pytest.mark.parametrize("options", SCHEDULING, ids=str)
def test_mixed_in_one_batch(make_engine: MakeEngine, random_target: Path, options: dict[str, Any]) -> None:
    """Opted-out, limited and ordinary requests side by side, with drafts that are accepted."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, **options)
    assert type(scheduler(tree)).__name__ == (
        "RedrafterAsyncScheduler" if options["async_scheduling"] else "RedrafterScheduler"
    )
    prompts = random_prompts(len(SETTINGS), VOCAB, seed=4)
    with verified(tree) as seen:
        expected, outputs = run_both(plain, tree, prompts, requests(SETTINGS), seed=1)
    assert tokens(outputs) == tokens(expected)
    slots = [0] * len(SETTINGS)
    for request_id, num_slots, num_nodes in seen:
        index = position(request_id, outputs)
        slots[index] = max(slots[index], num_slots)
        assert num_nodes <= num_slots
    # The scheduler reserved no more rows than a request wants.
    assert slots == MAX_NODES


def test_own_trees_keep_to_the_limits(make_engine: MakeEngine, random_target: Path) -> None:
    """Trees drawn by the drafter: a limit of beams bounds the number of leaves."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(len(SETTINGS), VOCAB, seed=5)
    leaves = [0] * len(SETTINGS)
    propose = speculator_module.RedrafterSpeculator.propose

    def look(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = propose(self, input_batch, *args, **kwargs)
        for request_id, row in zip(input_batch.req_ids, input_batch.idx_mapping.tolist(), strict=True):
            count = int(self.rows.num_nodes[row])
            parents = self.rows.parents[row, :count].tolist()
            index = int(request_id.split("-")[0]) - first
            leaves[index] = max(leaves[index], count - len({parent for parent in parents if parent >= 0}))
            assert count <= MAX_NODES[index]
        return result

    first = next_request_number(tree)
    with patch.object(speculator_module.RedrafterSpeculator, "propose", look):
        outputs = generate(tree, prompts, requests(SETTINGS))
    assert tokens(outputs) == tokens(generate(plain, prompts, requests(SETTINGS)))
    # Beams that were dropped on the way are leaves, too, unless the request limits its beams.
    assert min(leaves[0], leaves[7]) > 4
    assert leaves[4] == 1 and leaves[5] == 2 and leaves[1] == leaves[6] == 0


def next_request_number(llm: Any) -> int:
    (output,) = generate(llm, [[5, 6]], params(max_tokens=1))
    return int(output.request_id) + 1


def test_a_batch_that_wants_no_drafts_draws_none(make_engine: MakeEngine, random_target: Path) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(4, VOCAB, seed=6)
    with (
        patch.object(speculator_module, "propose_trees", side_effect=AssertionError("drew a tree")),
        verified(tree) as seen,
    ):
        outputs = generate(tree, prompts, requests([OFF] * 4))
    assert seen == []
    assert tokens(outputs) == tokens(generate(plain, prompts, requests([OFF] * 4)))
    # Rows are reused: the next requests in them draft again.
    with verified(tree) as seen:
        generate(tree, prompts, requests([None] * 4))
    assert seen and runner(tree).speculator.drafts_wanted.any()


@pytest.mark.parametrize("options", SCHEDULING, ids=str)
def test_preempted_requests_keep_their_settings(
    make_engine: MakeEngine, random_target: Path, options: dict[str, Any]
) -> None:
    small = {"num_gpu_blocks_override": 26, "block_size": 16, "max_model_len": 256}
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, **small, **options)
    settings = [None, OFF, {"num_speculative_tokens": 2}, {"beam_width": 1}] * 2
    prompts = [prompt[:40] for prompt in random_prompts(len(settings), VOCAB, longest=90)]
    preempted = []
    preempt = type(scheduler(tree))._preempt_request

    def count(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    with patch.object(type(scheduler(tree)), "_preempt_request", count), verified(tree) as seen:
        expected, outputs = run_both(plain, tree, prompts, requests(settings, max_tokens=70))
    assert preempted
    assert tokens(outputs) == tokens(expected)
    most = [16, 0, 2, 4] * 2
    for request_id, num_slots, num_nodes in seen:
        # vLLM pads a resumed request with slots without nodes.
        assert num_slots <= most[position(request_id, outputs)] or num_nodes == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (False, "'redrafter' must be an object"),
        ('{"enabled": false', "'redrafter' must be an object .* or one as a JSON string, not '{\"enabled\": false'"),
        ("null", "'redrafter' must be an object"),
        ('{"beam_width": 5}', "beam_width=5 .* this engine takes 1 to 4"),
        ({"enable": False}, "Unknown setting 'enable' in 'redrafter' of the request; known are enabled, beam_width"),
        ({"enabled": 0}, "'enabled' in 'redrafter' of the request must be true or false, not 0"),
        ({"beam_width": 5}, "beam_width=5 .* this engine takes 1 to 4"),
        ({"beam_width": 0}, "beam_width=0 .* 'enabled': false for no drafts"),
        ({"num_speculative_tokens": 17}, "this engine takes 1 to 16"),
        ({"num_speculative_tokens": 2.0}, "'num_speculative_tokens' .* must be an integer, not 2.0"),
        ({"beam_width": True}, "must be an integer, not True"),
    ],
)
def test_errors_come_before_the_engine(make_engine: MakeEngine, random_target: Path, given: Any, message: str) -> None:
    from vllm.exceptions import VLLMValidationError

    tree = make_engine(random_target, TREE)
    with pytest.raises(VLLMValidationError, match=message):
        generate(tree, [[5, 6, 7]], params(extra_args={"redrafter": given}))
    assert scheduler(tree).get_num_unfinished_requests() == 0


KINDS = pytest.mark.parametrize(
    ("place", "body"),
    [
        ("completion.protocol:CompletionRequest", {"prompt": "x"}),
        ("chat_completion.protocol:ChatCompletionRequest", {"messages": [{"role": "user", "content": "x"}]}),
        ("responses.protocol:ResponsesRequest", {"input": "x"}),
    ],
)


def kind_of_request(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"vllm.entrypoints.openai.{module}"), name)


@KINDS
def test_the_body_of_every_kind_of_request(
    make_engine: MakeEngine, random_target: Path, place: str, body: dict[str, Any]
) -> None:
    make_engine(random_target, TREE)
    kind = kind_of_request(place)
    settings = {"enabled": False, "beam_width": 2}
    given = kind.model_validate({**body, "model": "m", "redrafter": settings, "vllm_xargs": {"other": 1}})
    assert given.to_sampling_params(5, {}).extra_args == {"other": 1, "redrafter": settings}
    assert not kind.model_validate({**body, "model": "m"}).to_sampling_params(5, {}).extra_args


@KINDS
def test_vllms_own_field_of_every_kind_of_request(
    make_engine: MakeEngine, random_target: Path, place: str, body: dict[str, Any]
) -> None:
    """It takes a JSON string; an object only with patch 06 of docs/design/upstream."""
    make_engine(random_target, TREE)
    kind = kind_of_request(place)
    settings = {"enabled": False, "beam_width": 2}
    takes_objects = "Any" in str(kind.model_fields["vllm_xargs"].annotation)
    for own in (json.dumps(settings), settings) if takes_objects else (json.dumps(settings),):
        given = kind.model_validate({**body, "model": "m", "vllm_xargs": {"redrafter": own}})
        assert given.to_sampling_params(5, {}).extra_args == {"redrafter": own}


def test_plain_engines_do_not_read_the_settings(make_engine: MakeEngine, random_target: Path) -> None:
    plain = make_engine(random_target)
    expected = generate(plain, [[5, 6, 7]], params(temperature=0.0))
    outputs = generate(plain, [[5, 6, 7]], params(temperature=0.0, extra_args={"redrafter": {"nonsense": 1}}))
    assert tokens(outputs) == tokens(expected)


def test_row_limits() -> None:
    """The device applies a limit independently of the scheduler: five nodes cut to two, to none, to five."""
    from redrafter_vllm.drafting.buffers import DraftRows, RoundBuffers
    from redrafter_vllm.drafting.tree import DraftTree
    from redrafter_vllm.ops.draft_round import RoundSource

    device = torch.device("cpu")
    rows, buffers = DraftRows(4, 6, device), RoundBuffers(4, 6, 2, torch.float32, device)
    for row, limit in ((3, 2), (0, 0), (2, 6)):
        rows.open(row, beam_limit=2, node_limit=limit)
    index, shape = torch.tensor([3, 0, 2]), (3, 6)
    tree = DraftTree(
        tokens=torch.arange(18).view(shape),
        parents=torch.tensor([[-1, -1, 0, 0, 2, -1]] * 3),
        depths=torch.tensor([[1, 1, 2, 2, 3, 0]] * 3),
        log_probs=torch.zeros(shape),
        beams=torch.zeros(shape, dtype=torch.long),
        num_nodes=torch.tensor([5, 5, 5]),
    )
    for num_sampled, node_budget, kept in (([1, 1, 1], 6, [2, 0, 5]), ([1, 1, 0], 1, [1, 0, 0])):
        last_sampled = torch.zeros(4, 1, dtype=torch.int64)
        limits = rows.beam_limit, rows.node_limit
        source = RoundSource(
            torch.zeros(3, 2), torch.arange(3), None, index, last_sampled, torch.tensor(num_sampled), *limits
        )
        buffers.fill(3, source, node_budget, 3, rows.padding_row)
        inputs = buffers.first(3)
        rows.write(inputs.rows, tree, inputs.node_budget, buffers.draft_tokens[:3])
        assert rows.num_nodes[index].tolist() == kept
