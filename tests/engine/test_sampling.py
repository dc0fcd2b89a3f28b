# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter, mixed within one batch: the tokens of plain vLLM, with accepted drafts."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, tokens
from tests.engine.scripted import run_both
from tests.engine.watch import watched
from tests.models import VOCAB

GREEDY: dict[str, Any] = {"temperature": 0.0}
WARM: dict[str, Any] = {"temperature": 0.8}

# By parameter: the rest of the request, and the parameter itself, which must change plain vLLM's tokens.
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "temperature": (GREEDY, {"temperature": 0.9}),
    "top_k": (WARM, {"top_k": 5}),
    "top_p": (WARM, {"top_p": 0.5}),
    "min_p": (WARM, {"min_p": 0.1}),
    "seed": (WARM, {"seed": 4321}),
    "logit_bias": (GREEDY, {"logit_bias": {11: 6.0, 17: -100.0}}),
    "logit_bias sampled": (WARM, {"logit_bias": {11: 6.0, 17: -100.0}}),
    "allowed_token_ids": (GREEDY, {"allowed_token_ids": list(range(5, 45))}),
    "allowed_token_ids sampled": (WARM, {"allowed_token_ids": list(range(5, 45))}),
    "bad_words": (GREEDY, {"bad_words": [[2, 3], [9], [14, 15, 16]]}),
    "bad_words sampled": (WARM, {"bad_words": [[2, 3], [9], [14, 15, 16]]}),
    "presence_penalty": (GREEDY, {"presence_penalty": 1.5}),
    "presence_penalty sampled": (WARM, {"presence_penalty": -1.0}),
    "frequency_penalty": (GREEDY, {"frequency_penalty": 0.8}),
    "frequency_penalty sampled": (WARM, {"frequency_penalty": 1.5}),
    "repetition_penalty": (GREEDY, {"repetition_penalty": 1.4}),
    "repetition_penalty sampled": (WARM, {"repetition_penalty": 0.8}),
    "min_tokens": ({**GREEDY, "stop_token_ids": list(range(3, 120))}, {"min_tokens": 20}),
    "stop_token_ids": (GREEDY, {"stop_token_ids": list(range(3, 40))}),
    "repetition_detection": ({**GREEDY, "frequency_penalty": -2.0}, {"repetition_detection": 2}),
    "all at once": (
        {**WARM, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.2,
            "logit_bias": {21: 3.0},
            "bad_words": [[1], [4, 5]],
            "min_tokens": 8,
        },
    ),
}


def sampling(options: dict[str, Any], out: list[int], index: int) -> Any:
    """Bad words are given as indices into `out`, the request's tokens without them, so that they have an effect."""
    from vllm.sampling_params import RepetitionDetectionParams

    options = {"seed": 100 + index, "ignore_eos": True, "max_tokens": 40, **options}
    words = [[out[at] for at in word if at < len(out)] for word in options.pop("bad_words", [])]
    if size := options.pop("repetition_detection", None):
        options["repetition_detection"] = RepetitionDetectionParams(max_pattern_size=size, min_count=3)
    own = params(**options)
    if words:
        own.bad_words = ["given by their ids"]
        own._bad_words_token_ids = words
    return own


@pytest.mark.parametrize("seed", range(2))
def test_mixed_within_one_batch(make_engine: MakeEngine, random_target: Path, seed: int) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(len(PARAMETERS), VOCAB, seed=seed)
    without = [sampling(rest, [], index) for index, (rest, _) in enumerate(PARAMETERS.values())]
    before = [outs[0] for outs in tokens(generate(plain, prompts, without))]
    each = [sampling({**rest, **own}, before[index], index) for index, (rest, own) in enumerate(PARAMETERS.values())]
    with watched() as watch:
        expected, outputs = run_both(plain, tree, prompts, each, seed)
    for name, old, wanted, output, drafting in zip(
        PARAMETERS, before, expected, outputs, watch.in_order(outputs), strict=True
    ):
        own, theirs = output.outputs[0], wanted.outputs[0]
        assert list(own.token_ids) == list(theirs.token_ids), name
        assert (own.finish_reason, own.stop_reason) == (theirs.finish_reason, theirs.stop_reason), name
        assert list(theirs.token_ids) != old, f"{name} has no effect here"
        if len(own.token_ids) > 8:
            assert drafting.accepted > 0 and drafting.branching > 0, name
