# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from redrafter_training.cli import attribute_help, parse
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import RECIPES, Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from tests.paths import ROOT

GIVEN = ["--target", "t", "--data", "stdlib"]


def test_defaults_are_the_standard_recipe() -> None:
    job, config, recipe, _ = parse(GIVEN)
    assert job == Job("t", "stdlib")
    assert config == RECIPES["standard"]
    assert recipe == "standard"


def test_a_mistake_is_one_sentence_without_the_usage_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*GIVEN, "--batch-size", "0"])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: batch_size and chunk must be at least 1, got 0 and 128 (see --help)\n"
    with pytest.raises(SystemExit):
        parse(["--target", "t"])
    assert capsys.readouterr().err == "error: the following arguments are required: data (see --help)\n"


def test_folders_that_would_not_be_read_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*GIVEN, "--responses.folders", "[answers]", "--response-fraction", "0"])
    assert "with a response_fraction of 0 they are not used" in capsys.readouterr().err


def test_flags_override_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("recipe: long\nlearning_rate: 0.5\nseed: 4\nresponses: {count: 9}\nnum_workers: [1, 3]\n")
    job, config, recipe, keys = parse([*GIVEN, "--config", str(file), "--seed", "7", "--responses.min-prompt", "3"])
    assert recipe == "long"
    assert job.workers == (1, 3)
    responses = replace(RECIPES["long"].responses, count=9, min_prompt=3)
    assert config == replace(RECIPES["long"], learning_rate=0.5, seed=7, responses=responses)
    file.write_text(keys)
    assert parse(["--config", str(file)])[:3] == (job, config, recipe)


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    """A drafter of one layer, where the recipe has two."""
    Drafter(DrafterConfig(40, 16, exit_dim=24, num_draft_layers=1)).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def test_a_drafter_to_start_from_keeps_its_shape(drafter: Path, tmp_path: Path) -> None:
    start = [*GIVEN, "--init-from", str(drafter)]
    job, config, recipe, keys = parse(start)
    assert (config.exit_dim, config.num_draft_layers, config.rnn, config.draft_vocab_size) == (24, 1, True, None)
    assert parse([*start, "--exit-dim", "24", "--num-draft-layers", "1"])[1] == config
    # What the run's folder keeps says so, too, and is that run again.
    (tmp_path / "config.yaml").write_text(keys)
    assert parse(["--config", str(tmp_path / "config.yaml")])[:3] == (job, config, recipe)


def test_residual_blocks_are_added_to_a_drafter_to_start_from(drafter: Path, tmp_path: Path) -> None:
    job, config, recipe, keys = parse([*GIVEN, "--init-from", str(drafter), "--num-draft-layers", "3"])
    assert (config.exit_dim, config.num_draft_layers) == (24, 3)
    (tmp_path / "config.yaml").write_text(keys)
    assert parse(["--config", str(tmp_path / "config.yaml")])[:3] == (job, config, recipe)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num-draft-layers", "0"], "has 1 and keeps its shape; residual blocks can be added, but not removed"),
        (["--exit-dim", "32"], "exit_dim is 32"),
        (["--rnn", "false"], "rnn is False"),
        (["--draft-vocab-size", "8"], "draft_vocab_size is 8, but the drafter in"),
    ],
)
def test_another_shape_than_that_of_the_drafter_to_start_from(
    drafter: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*GIVEN, "--init-from", str(drafter), *given])
    assert message in capsys.readouterr().err


def test_a_shape_in_a_file_of_keys(drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys.yaml").write_text(f"init_from: {drafter}\nexit_dim: 32\n")
    with pytest.raises(SystemExit):
        parse([*GIVEN, "--config", str(tmp_path / "keys.yaml")])
    assert "exit_dim is 32" in capsys.readouterr().err


def test_a_folder_to_start_from_without_a_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*GIVEN, "--init-from", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


def test_drafts_longer_than_serving_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([*GIVEN, "--beam-length", "32"])[1].beam_length == 32
    with pytest.raises(SystemExit):
        parse([*GIVEN, "--beam-length", "33"])
    assert "beam_length must be at most 32, as serving drafts no more, got 33" in capsys.readouterr().err


def test_keys_of_templates_and_data_sets() -> None:
    kwargs = '{"enable_thinking": false}'
    given = ["--chat-template-kwargs", kwargs, "--data-config", "small", "--data-split", "train_sft"]
    job = parse([*GIVEN, *given, "--held-out-split", "test_sft", "--trust-remote-code"])[0]
    assert job.chat_template_kwargs == {"enable_thinking": False} and job.trust_remote_code
    assert job.choices == {
        "data_config": "small",
        "data_split": "train_sft",
        "held_out_split": "test_sft",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert Job("t", "stdlib").choices == {}  # as earlier versions' checkpoints have it


@pytest.mark.parametrize("holder", [Job, DistillConfig, Budget, ResponseConfig, LossConfig])
def test_every_key_is_explained(holder: type) -> None:
    hints = get_type_hints(holder)
    flags = {entry.name for entry in fields(holder) if not is_dataclass(hints[entry.name])}
    assert flags == attribute_help(holder).keys()


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--num-workers", "--dry-run", "--init-from", "--max-steps", "--beam-length", "--responses.count"):
        assert flag in shown


@pytest.mark.parametrize("name", ["vicuna-7b", "vicuna-7b-published"])
def test_shipped_recipes_are_valid(name: str) -> None:
    file = ROOT / "training" / "redrafter_training" / "recipes" / f"{name}.yaml"
    job, config, _, _ = parse(["--config", str(file)])
    assert job.target == "lmsys/vicuna-7b-v1.3"
    assert (config.beam_length, config.num_draft_layers, config.window, config.batch_size) == (5, 2, 2048, 128)
    published = LossConfig(label_share=1.0, labels="data", temperature=1.5, target_temperature=0.2)
    assert (config.loss == published) == (name == "vicuna-7b-published")


def test_stored_keys_repeat_the_run_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what was about that start: to start over, and to replace what is there."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "t").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ["--out", "o", "--hidden-cache", "../c", "--responses.folders", "[answers]"]
    job, _, _, keys = parse([*GIVEN, *arguments, "--resume", "false", "--overwrite"])
    assert not job.resume
    assert job.overwrite
    (tmp_path / "config.yaml").write_text(keys)
    monkeypatch.chdir(tmp_path)
    again, config, _, _ = parse(["--config", "config.yaml"])
    here = tmp_path / "here"
    assert (again.target, again.data) == (str(here / "t"), "stdlib")
    assert (again.out, again.run_dir, again.hidden_cache) == (here / "o", None, here / ".." / "c")
    assert config.responses.folders == (str(here / "answers"),)
    assert again.resume
    assert not again.overwrite
