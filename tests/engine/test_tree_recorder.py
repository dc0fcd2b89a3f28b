# SPDX-License-Identifier: Apache-2.0
"""Trees recorded from an engine spell the tokens that it emitted, and recording changes none of them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from redrafter_vllm.integration.worker.tree_recorder import RecordedTree, TreeRecording
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, runner, tokens

TEXTS = ("def test_read(self):\n    with open(", "import os\n\n\nclass ", "for key, value in ")


def recording_of(llm: Any) -> TreeRecording:
    """The methods that vLLM adds to a worker's class, on an object that has what they need of a worker."""
    recording = TreeRecording()
    recording.model_runner = runner(llm)
    return recording


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_spell_the_tokens(make_engine: MakeEngine, asset: Path, temperature: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(asset)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    llm = make_engine(asset, TREE)
    sampling = [params(max_tokens=24, temperature=temperature, seed=index) for index in range(len(prompts))]
    expected = tokens(generate(llm, prompts, sampling))
    recording = recording_of(llm)
    assert recording.stop_tree_recording() == []
    recording.start_tree_recording()
    outputs = generate(llm, prompts, sampling)
    trees = recording.stop_tree_recording()
    assert "propose" not in vars(runner(llm).speculator)
    assert tokens(outputs) == expected
    accepted = 0
    for output in outputs:
        # The engine's ids: `7-<random>`.
        own = [tree for tree in trees if tree["request"].split("-")[0] == output.request_id]
        accepted += follow(own, list(output.outputs[0].token_ids))
    assert accepted > len(outputs)


def test_trees_are_read_while_they_are_recorded(make_engine: MakeEngine, asset: Path) -> None:
    """Each is read once, and none is lost between two reads."""
    prompt = AutoTokenizer.from_pretrained(asset).encode(TEXTS[0])
    llm = make_engine(asset, TREE)
    recording = recording_of(llm)
    assert recording.read_tree_recording() == []
    recording.start_tree_recording()
    llm.llm_engine.add_request("watched", {"prompt_token_ids": prompt}, params(max_tokens=24, temperature=0.0))
    parts, outputs = list[list[RecordedTree]](), list[Any]()
    while llm.llm_engine.has_unfinished_requests():
        outputs += llm.llm_engine.step()
        parts.append(recording.read_tree_recording())
    trees = [tree for part in [*parts, recording.stop_tree_recording()] for tree in part]
    assert sum(bool(part) for part in parts) > 3
    assert follow(trees, list(outputs[-1].outputs[0].token_ids)) > 1
    assert recording.read_tree_recording() == []


def follow(trees: list[RecordedTree], emitted: list[int]) -> int:
    """Walks through the emitted tokens, tree by tree; the number of accepted drafts."""
    place, accepted = -1, 0  # place of the last token so far, the root of the next tree
    for tree in trees:
        if not tree["emitted"]:
            continue  # a part of the prompt
        assert place < len(emitted) - 1, "a tree behind the end"
        above = -1
        for node in tree["path"]:
            assert tree["parents"][node] == above
            assert emitted[place + 1 : place + 2] in ([tree["tokens"][node]], [])
            above, place = node, place + 1
        children = [tree["tokens"][node] for node, parent in enumerate(tree["parents"]) if parent == above]
        assert not set(emitted[place + 1 : place + 2]) & set(children), "the walk stopped above an accepted node"
        assert tree["emitted"] == len(tree["path"]) + 1
        place += 1
        accepted += len(tree["path"])
    assert place >= len(emitted) - 1
    return accepted


def test_an_engine_without_drafts(make_engine: MakeEngine, asset: Path) -> None:
    with pytest.raises(ValueError, match="does not draft with ReDrafter"):
        recording_of(make_engine(asset)).start_tree_recording()
