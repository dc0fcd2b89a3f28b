# SPDX-License-Identifier: Apache-2.0
"""Penalties and bad words on trees, checked inside the step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from redrafter_vllm.drafting.buffers import DraftRows
from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError
from redrafter_vllm.integration.worker import history
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, generate, params, random_prompts, runner
from tests.models import VOCAB
from tests.no_sync import forbid_host_sync


def test_paths_are_followed_without_reading_back(make_engine: MakeEngine, random_target: Path) -> None:
    tree = make_engine(random_target, TREE)
    calls: set[str] = set()

    def checked(name: str) -> Any:
        original = getattr(history, name)

        def run(*args: Any) -> None:
            calls.add(name)
            with forbid_host_sync():
                original(*args)

        return patch.object(history, name, run)

    sampling = [params(temperature=0.0, ignore_eos=True, max_tokens=8, presence_penalty=0.5 * i) for i in range(3)]
    sampling[0].bad_words, sampling[0]._bad_words_token_ids = ["given by its ids"], [[5, 6], [7]]
    with checked("penalise"), checked("forbid_bad_words"):
        generate(tree, random_prompts(3, VOCAB), sampling)
    assert calls == {"penalise", "forbid_bad_words"}


def test_a_sampler_with_other_processors_is_named(make_engine: MakeEngine, random_target: Path) -> None:
    """As a later vLLM may have: another processor before the penalties, or states with other attributes."""
    bias, penalties, bad_words = runner(make_engine(random_target)).sampler.logits_processors
    rows = DraftRows(2, 4, torch.device("cpu"))
    with pytest.raises(InterfaceChangedError, match="BadWordsState"):
        history.follow_paths(SimpleNamespace(logits_processors=[bias, bad_words, penalties]), rows)
    with pytest.raises(InterfaceChangedError, match="first processors are"):
        history.follow_paths(SimpleNamespace(logits_processors=[bias, penalties]), rows)
    bare = object.__new__(type(penalties))
    with pytest.raises(InterfaceChangedError, match="use_penalty"):
        history.follow_paths(SimpleNamespace(logits_processors=[bias, bare, bad_words]), rows)
