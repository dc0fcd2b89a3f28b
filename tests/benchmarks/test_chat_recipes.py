# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training.chat_recipes import ALL_RECIPES, Options, main, parse_args
from redrafter_training.cli import parse, parse_keys
from redrafter_training.config.pipeline import Pipeline
from redrafter_training.config.recipe import Budget, LossConfig
from redrafter_training.pipeline import recipe_file, section_arguments
from tests.models import save_random_llama
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

OURS, PUBLISHED, PUBLISHED_WITH_HEAD = ALL_RECIPES


def test_ours_is_the_shipped_recipe() -> None:
    keys = parse_keys(Pipeline, "x", "y", ["--config", str(recipe_file("smollm2-135m-instruct")), "--out", "o"])
    shipped = parse(section_arguments(keys, "t")["train"])[1]
    ours = Options(Path("t"), Path("d"), Path("r"), steps=7, batch_size=2).config(OURS, 3, 576)
    # A folder of responses as data has no other responses beside it; `exit_dim` is the target's hidden size in both.
    assert ours == replace(shipped, budget=Budget(7), seed=3, exit_dim=576, response_fraction=0.0)


def test_the_published_recipe_differs_in_text_loss_and_output_layer() -> None:
    options = Options(Path("t"), Path("d"), Path("r"))
    ours, published, with_head = (options.config(recipe, 1, 576) for recipe in ALL_RECIPES)
    assert with_head == replace(ours, loss=LossConfig(label_share=1.0, labels="data"), depth_decay=1.0)
    assert published == replace(with_head, target_head=False)
    assert published.drafter_width(576) == ours.drafter_width(576) == 576
    assert [recipe.data_answers for recipe in ALL_RECIPES] == [False, True, True]
    assert [recipe.key for recipe in ALL_RECIPES] == ["ours", "published", "published-targets-head"]


def test_only_sets_of_the_package_are_cut_to_some_questions() -> None:
    options = parse_args(["--target", "t", "--data", "d", "--responses", "r", "--prompts", "mt-bench", "own.jsonl"])
    assert options.prompts == ("mt-bench", "own.jsonl")
    assert [options.measured(source).questions for source in options.prompts] == [3, 0]


@pytest.mark.slow
def test_a_small_measurement_that_is_continued(tmp_path: Path) -> None:
    target = save_random_llama(tmp_path / "target", initializer_range=0.05)
    byte_tokenizer(CHATML).save_pretrained(target)
    for name, answer in (("data", "It is"), ("responses", "aaaa bbbb")):
        lines = [
            {"messages": [{"role": "user", "content": f"Which is {n}?"}, {"role": "assistant", "content": answer * 9}]}
            for n in range(40)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "Which?"}))
    paths = [f"--{name}={tmp_path / name}" for name in ("target", "work", "out")]
    paths += [f"--{name}={tmp_path / name}.jsonl" for name in ("data", "responses")]
    sizes = ["--steps", "3", "--window", "128", "--draft-vocab-size", "32", "--new-tokens", "12"]
    command = [*paths, *sizes, "--prompts", str(tmp_path / "asked.jsonl"), "--all-seeds", "0", "1"]
    assert main([*command, "--seeds", "1"]) == 0
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert len(stamps) == 3
    assert main([*command, "--seeds", "0", "1"]) == 0
    (file,) = (tmp_path / "out").glob("chat-recipes_*.json")
    results = json.loads(file.read_text())["results"]
    assert [(result["group"], result["seed"], result["steps"]) for result in results] == [
        (recipe.group, seed, 3) for seed in (0, 1) for recipe in ALL_RECIPES
    ]
    assert len({result["parameters"] for result in results}) == 1
    # Prompts are held out by their content, so that all recipes are trained on the same ones.
    assert len({(result["data"]["training"], result["data"]["held_out"]) for result in results}) == 1
    # The finished trainings of the first command were not repeated.
    assert all((tmp_path / "work" / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
