# SPDX-License-Identifier: Apache-2.0
"""Mistakes of users give a message of one sentence, and nothing is written."""

import json
from pathlib import Path

import pytest

from redrafter_training.__main__ import main
from redrafter_training.cli import parse
from tests.oracles import random_drafter
from tests.training.small_command import ASSET, copy_target, small_command, write_data

KEYS = {
    "responses: 512\n": "responses holds keys",
    "responses: null\n": "responses holds keys",
    "responses: [1]\n": "responses holds keys",
    "loss: 3\n": "loss holds keys",
    "max_seconds: null\n": "max_seconds must not be null",
    "batch_size: null\n": "batch_size must not be null",
    "resume: null\n": "resume must not be null",
    "seed: null\n": "seed must not be null",
    "num_workers: null\n": "num_workers must not be null",
    "device: null\n": "device must not be null",
    "recipe: null\n": "recipe must not be null",
    "responses: {count: null}\n": "responses.count must not be null",
    "responses: {temperatures: null}\n": "responses.temperatures must not be null",
    "loss: {label_share: null}\n": "loss.label_share must not be null",
    "dry_run: 3\n": "dry_run must be true or false",
    "overwrite: always\n": "overwrite must be true or false",
    "batch_size: 1.5\n": "batch_size",
    "learning_rate: quick\n": "learning_rate",
    "learning_rate: .inf\n": "learning_rate",
    "learning_rate: .nan\n": "learning_rate",
    "weight_decay: .nan\n": "weight_decay",
    "weight_decay: -1\n": "weight_decay",
    "loss: {temperature: .inf}\n": "temperature must be positive and finite",
    "responses: {temperatures: [.nan]}\n": "temperatures must be given, finite",
    "seed: 99999999999999999999\n": "seed must be in",
    "exit_dim: 1000000000000\n": "exit_dim must be at most",
    "exit_dim: 0\n": "exit_dim must be at least 1",
    "num_draft_layers: 1000000000\n": "num_draft_layers must be in",
    "batch_size: 1000000000000\n": "batch_size must be at most",
    "window: 1000000000001\nbeam_length: 1000000000000\n": "beam_length must be at most",
    "responses: {count: 1000000000000}\n": "count must be at most",
    "a: &a [*a]\n": "nests too deeply",
    "- 1\n": "Unexpected config",
    "": "Unexpected config",
    "data: [\n": "Problems parsing config",
    "learning_rat: 1\n": "learning_rat",
    "data: ''\n": "data: a path is empty",
    "out: ~nobody-of-that-name/x\n": "no home folder",
    f"chat_template: {'v' * 5000}\n": "File name too long",
}


@pytest.mark.parametrize("text", KEYS)
def test_invalid_keys(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse(["--target", "t", "--data", "d", "--config", str(file)])
    assert caught.value.code == 2
    assert KEYS[text] in capsys.readouterr().err.rpartition("error: ")[2]


def test_keys_in_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.yaml"
    file.write_bytes("data: é.json\n".encode("latin-1"))
    with pytest.raises(SystemExit):
        parse(["--target", "t", "--config", str(file)])
    assert "cannot be read as UTF-8 text" in capsys.readouterr().err


def test_impossible_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "llama"')
    (home / "empty").mkdir()
    data = write_data(tmp_path / "data.json")
    (tmp_path / "nested.json").write_text("[" * 100_000)
    (tmp_path / "number.json").write_text("9" * 10_000)
    (tmp_path / "file").write_text("mine")
    damaged = copy_target(home / "damaged")
    with (damaged / "model.safetensors").open("r+b") as weights:
        weights.truncate(1000)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    for arguments, told in (
        (small_command("/no/such/model", data, out), "the target folder /no/such/model does not exist"),
        (small_command("~nobody-of-that-name/m", data, out), "no home folder"),
        (small_command(home, data, out), "cannot be loaded"),
        (small_command(home / "empty", data, out), "has no config.json"),
        (small_command(data, data, out), "does not exist"),
        (small_command(damaged, data, out, "--run-dir", str(home / "t")), "cannot be loaded"),
        (small_command(ASSET, tmp_path / "none.json", out), "no such file"),
        (small_command(ASSET, tmp_path / "nested.json", out, "--run-dir", str(home / "r")), "nested.json: JSON that"),
        (small_command(ASSET, tmp_path / "number.json", out, "--run-dir", str(home / "s")), "number.json: JSON that"),
        (small_command(ASSET, data, tmp_path / "file"), "is a file"),
        (small_command(ASSET, data, tmp_path / "file" / "x"), "is a file"),
        (small_command(ASSET, data, out, "--run-dir", str(data / "x")), "is a file"),
        (small_command(ASSET, data, out, "--hidden-cache", str(data)), "is a file"),
        (small_command(ASSET, data, out, "--init-from", str(home / "empty")), "config.json"),
        (small_command(ASSET, data, ASSET), "something else than a drafter"),
    ):
        try:
            code = main(arguments)
        except SystemExit as exit_:
            code = exit_.code  # type: ignore[assignment]
        assert code in (1, 2), arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert told in error, (arguments, error)
    left = [path for path in tmp_path.rglob("*") if path not in before and not path.is_relative_to(home)]
    assert left == []


def test_home_folder_in_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places = {key: f"~/{key}" for key in ("target", "data", "chat_template", "out", "run_dir", "init_from")}
    random_drafter().save_pretrained(tmp_path / "init_from")
    file = tmp_path / "keys.yaml"
    file.write_text("".join(f"{key}: {place}\n" for key, place in (places | {"hidden_cache": "~/c"}).items()))
    job, config, _, _ = parse(["--config", str(file), "--responses.folders", "[~/answers]"])
    assert {key: str(getattr(job, key)) for key in places} == {key: str(tmp_path / key) for key in places}
    assert job.hidden_cache == tmp_path / "c"
    assert config.responses.folders == (str(tmp_path / "answers"),)


def test_a_dry_run_reports_mistakes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data.json")
    assert main(small_command(ASSET, data, ASSET, "--dry-run")) == 1
    assert "something else than a drafter" in capsys.readouterr().err
    assert json.loads((ASSET / "config.json").read_text())["model_type"] == "llama"
