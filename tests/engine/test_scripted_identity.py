# SPDX-License-Identifier: Apache-2.0
"""Identity with plain vLLM under random trees around the true continuation: long paths through scattered nodes."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, tokens
from tests.engine.scripted import scripted_trees
from tests.models import VOCAB

DEEP = {**TREE, "beam_width": 8, "beam_length": 6, "num_speculative_tokens": 24}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("block_size", [16, 128])
def test_scattered_paths(
    make_engine: MakeEngine, random_target: Path, sampling: dict[str, Any], block_size: int
) -> None:
    plain = make_engine(random_target)
    tree = make_engine(random_target, DEEP, block_size=block_size, disable_log_stats=False)
    prompts = random_prompts(16, VOCAB, longest=300)
    each = [params(seed=index, ignore_eos=True, max_tokens=48, **sampling) for index in range(len(prompts))]
    expected = tokens(generate(plain, prompts, each))
    truths = {tuple(prompt): [*prompt, *out[0]] for prompt, out in zip(prompts, expected, strict=True)}
    with scripted_trees(tree, truths) as drawn:
        outputs = generate(tree, prompts, each)
    assert tokens(outputs) == expected
    emitted = sum(len(out[0]) for out in expected)
    # About half of the trees contain part of the truth: without any acceptance nothing would have been tested.
    assert len(drawn) < 0.7 * emitted
