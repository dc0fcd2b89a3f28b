# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import torch

from redrafter_vllm import Drafter, DrafterConfig
from tests.oracles import next_log_probs, random_drafter

SHAPES = [
    {"exit_dim": 12, "num_draft_layers": 2, "rnn": True},
    {"exit_dim": 12, "num_draft_layers": 1, "rnn": False},
    {"exit_dim": 12, "num_draft_layers": 0, "rnn": True},
    {"exit_dim": 7, "num_draft_layers": 2, "rnn": False},
    {"exit_dim": 7, "num_draft_layers": 0, "rnn": True},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_follow_the_definition(shape: dict) -> None:
    drafter = random_drafter(**shape).double()
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    context = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    sequences = [(4,), (4, 0), (4, 7, 10)]

    share = drafter.context_share(context)
    state = drafter.initial_state(context)
    for step in range(3):
        tokens = torch.tensor([sequence[step] if step < len(sequence) else 0 for sequence in sequences])
        state = drafter.next_state(state, embedding[tokens])
        log_probs = drafter.logits(share, state).log_softmax(-1)
        for row, sequence in enumerate(sequences):
            if step == len(sequence) - 1:
                expected = next_log_probs(drafter.state_dict(), embedding, context[row], sequence)
                torch.testing.assert_close(log_probs[row], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("leading", [(3,), (0,), (2, 5), (3, 4)])
def test_context_share_changes_nothing(shape: dict, leading: tuple[int, ...]) -> None:
    drafter = random_drafter(**shape).double()
    context, state = torch.randn(*leading, 6).double(), torch.randn(*leading, 6).double()
    split = drafter.logits(drafter.context_share(context), state)
    torch.testing.assert_close(split, drafter(context, state))
    assert split.shape == (*leading, 11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_share_serves_all_beams(shape: dict) -> None:
    drafter = random_drafter(**shape).double()
    context, state = torch.randn(3, 6).double(), torch.randn(3, 4, 6).double()
    logits = drafter.logits(drafter.context_share(context), state)
    for beam in range(4):
        torch.testing.assert_close(logits[:, beam], drafter(context, state[:, beam]))
    torch.testing.assert_close(logits, drafter(context, state))


def test_gradients_reach_every_parameter() -> None:
    for shape in SHAPES:
        drafter = random_drafter(**shape)
        state = drafter.next_state(torch.randn(2, 6), torch.randn(2, 6))
        drafter.logits(drafter.context_share(torch.randn(2, 6)), state).square().sum().backward()
        assert all(parameter.grad is not None for parameter in drafter.parameters())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", -1),
        ("exit_dim", 1.5),
        ("num_draft_layers", -1),
        ("rnn", 1),
        ("exit_dim", True),
    ],
)
def test_config_is_checked(key: str, value: object) -> None:
    fields: dict = {"vocab_size": 11, "hidden_size": 6, "exit_dim": 12, "num_draft_layers": 2, "rnn": True}
    with pytest.raises(ValueError, match=key):
        DrafterConfig(**fields | {key: value})


@pytest.mark.process
def test_importing_the_package_imports_neither_vllm_nor_torch() -> None:
    script = (
        "import sys, redrafter_vllm; assert not {'vllm', 'torch'} & set(sys.modules); "
        "redrafter_vllm.DraftTree, redrafter_vllm.Drafter; assert 'vllm' not in sys.modules; "
        "assert redrafter_vllm.__version__"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_public_name() -> None:
    import redrafter_vllm

    assert redrafter_vllm.Drafter is Drafter
    with pytest.raises(AttributeError, match="Draughter"):
        redrafter_vllm.Draughter  # noqa: B018
