# SPDX-License-Identifier: Apache-2.0
"""Messages for wrong options: one sentence, before an engine is built, from `LLM(...)` and `vllm serve`."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.checkpoint.locate import DrafterNotFoundError, resolve_drafter
from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.frontend import error_hook
from redrafter_vllm.integration.frontend.detection import is_redrafter
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.utils.messages import did_you_mean, shown
from tests.paths import ASSET as TARGET

DRAFTER = TARGET / "redrafter"
SCHEDULE = "num_speculative_tokens_per_batch_size"


@pytest.fixture(autouse=True)
def nothing_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFTER_CHECKPOINT", raising=False)
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "registry"))


def refuse(options: Any, kind: type[Exception], target: Path = TARGET, **engine: Any) -> str:
    """The message of the error that vLLM's configuration raises; one sentence, of the documented type."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    with pytest.raises(kind) as error:
        EngineArgs(model=str(target), max_model_len=64, speculative_config=options, **engine).create_engine_config()
    message = str(error.value)
    assert message.endswith((".", "?")) and "\n" not in message and len(message) < 900
    return message


@pytest.mark.parametrize("model", ["", " \t", 5, True, ["a"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("given", [{}, {"method": "redrafter"}], ids=["bare", "method"])
def test_a_model_that_is_not_a_name(model: object, given: dict[str, Any]) -> None:
    message = refuse({**given, "model": model}, DrafterNotFoundError)
    assert message == f"The drafter's model must be the word 'redrafter', a directory or a hub id, not {model!r}."


@pytest.mark.parametrize("model", ["redraftr", "Redrafter", "re-drafter", "REDRAFTER", " redrafter"])
@pytest.mark.parametrize("given", [{}, {"method": "redrafter"}], ids=["bare", "method"])
def test_a_misspelt_word(model: str, given: dict[str, Any]) -> None:
    message = refuse({**given, "model": model}, DrafterNotFoundError)
    assert f"{model!r} is not a directory" in message and "did you mean the word 'redrafter'?" in message


@pytest.mark.parametrize("model", ["/no/such/place", "./missing", "~/missing", "x" * 5000, "a\0b", "~no-such-user/x"])
def test_a_path_that_does_not_exist(model: str) -> None:
    for given in ({"method": "redrafter"}, {}) if model[0] in "/.~" else ({"method": "redrafter"},):
        message = refuse({**given, "model": model}, DrafterNotFoundError)
        assert message.startswith(f"The drafter checkpoint {shown(model)} is no")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "redraftr"}, "Unknown method 'redraftr' in the speculative config (did you mean 'redrafter'?)"),
        ({"method": "Re-Drafter"}, "Unknown method 'Re-Drafter' in the speculative config (did you mean 'redrafter'?)"),
        ({"method": "recurrent_drafter"}, "ReDrafter's is 'redrafter'"),
        ({"metod": "redrafter"}, "Unknown ReDrafter option 'metod' in the speculative config (did you mean 'method'?)"),
        ({"method": "redrafter", "modle": "x"}, "'modle' in the speculative config (did you mean 'model'?)"),
        ({"method": "redrafter", "beam_widht": 4}, "(did you mean 'beam_width'?)"),
        ({"method": "redrafter", "beam-widht": 4}, "(did you mean 'beam_width'?)"),
        ({"method": "redrafter", "BeamWidth": 4}, "(did you mean 'beam_width'?)"),
        ({"method": "redrafter", "num_speculative_token": 4}, "(did you mean 'num_speculative_tokens'?)"),
        (
            {"method": "redrafter", "temperature": 4},
            "Unknown ReDrafter option 'temperature' in the speculative config;",
        ),
        ({"method": "redrafter", 5: 4}, "Unknown ReDrafter option '5' in the speculative config;"),
        ({"beam_width": 4}, 'names no method; add "method": "redrafter".'),
        ([1], "The speculative config must be an object of options"),
        ("redrafter", "not 'redrafter'."),
        ({"method": "redrafter", "beam_width": 4.0}, "beam_width must be an integer, not 4.0."),
        ({"method": "redrafter", "beam_width": "4"}, "beam_width must be an integer, not '4'."),
        ({"method": "redrafter", "beam_width": " "}, "beam_width must be an integer, not ' '."),
        ({"method": "redrafter", "beam_width": [4]}, "beam_width must be an integer, not [4]."),
        ({"method": "redrafter", "beam_length": ""}, "beam_length must be an integer, not ''."),
        ({"method": "redrafter", "num_speculative_tokens": [1]}, "num_speculative_tokens must be an integer, not [1]."),
        ({"method": "redrafter", "logits_top_k": "all"}, "logits_top_k must be an integer, not 'all'."),
        ({"method": "redrafter", "logits_top_k": "x" * 500}, "xxx...xxx"),
        ({"method": "redrafter", "beam_width": 10**5000}, "beam_width=an integer of 16610 bits is out of range"),
        ({"method": "redrafter", "drafter_quantization": ["int8"]}, "drafter_quantization=['int8'] is unknown"),
        ({"method": "redrafter", "drafter_quantization": ""}, "drafter_quantization='' is unknown"),
        ({"method": "redrafter", "project_embedding": "true"}, "must be true or false, not 'true'."),
        ({"method": "redrafter", "beam_length_with_root": None, "beam_width": 0}, "beam_width=0 is out of range"),
    ],
)
def test_options(options: Any, sentence: str) -> None:
    assert sentence in refuse(options, OptionError)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ([], "must be a list of [first batch, last batch, nodes]"),
        ("1-4:16", "not '1-4:16'."),
        (7, "not 7."),
        ([[1, 4]], "[1, 4] is no such range of integers."),
        ([[1, 4, 2.5]], "[1, 4, 2.5] is no such range of integers."),
        ([[1, 4, True]], "[1, 4, True] is no such range of integers."),
        ([["1", 4, 2]], "['1', 4, 2] is no such range of integers."),
        ([[1, 4, 17]], "[1, 4, 17] asks for 17 nodes, but there are 16 slots; give 0 to 16"),
        ([[1, 4, -1]], "[1, 4, -1] asks for -1 nodes"),
        ([[0, 4, 1]], "[0, 4, 1] is no range of batch sizes"),
        ([[4, 1, 1]], "[4, 1, 1] is no range of batch sizes"),
        ([[5, 8, 1], [9, 9, 2]], "nothing of batches of fewer than 5 requests; let its first range start at 1."),
        ([[4, 8, 2], [1, 4, 3]], "the ranges 1 to 4 and 4 to 8 overlap"),
    ],
)
def test_schedules(schedule: Any, sentence: str) -> None:
    assert sentence in refuse({"method": "redrafter", SCHEDULE: schedule}, OptionError)


def test_slots_of_a_schedule_are_those_of_the_engine() -> None:
    from vllm.engine.arg_utils import EngineArgs

    few = {"method": "redrafter", "num_speculative_tokens": 6, SCHEDULE: [[1, 4, 7]]}
    assert "[1, 4, 7] asks for 7 nodes, but there are 6 slots" in refuse(few, OptionError)
    # In vLLM a gap has the budget of the range before it.
    gap = {**few, SCHEDULE: [[1, 4, 6], (9, 16, 0)]}
    config = EngineArgs(model=str(TARGET), max_model_len=64, speculative_config=gap).create_engine_config()
    assert config.speculative_config.num_speculative_tokens_per_batch_size == [(1, 4, 6), (9, 16, 0)]


def damaged(tmp_path: Path, config: str | None, weights: bool = True) -> Path:
    place = tmp_path / "damaged"
    place.mkdir()
    if weights:
        shutil.copy(DRAFTER / "model.safetensors", place)
    if config is not None:
        (place / "config.json").write_text(config)
    return place


@pytest.mark.parametrize("given", [{}, {"method": "redrafter"}], ids=["bare", "method"])
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "has no config.json"),
        ("", "is not readable JSON"),
        ('{"model_type": "recurrent_dra', "is not readable JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", "describes no drafter"),
        ('{"exit_dim": 8, "num_draft_layers": 1}', "describes no drafter"),
        ('{"model_type": "recurrent_drafting_draftr"}', "describes no drafter"),
        ('{"model_type": "recurrent_drafting_drafter"}', "lacks vocab_size"),
    ],
)
def test_damaged_drafters(tmp_path: Path, config: str | None, sentence: str, given: dict[str, Any]) -> None:
    place = damaged(tmp_path, config)
    message = refuse({**given, "model": str(place)}, CheckpointError)
    assert sentence in message and str(place) in message


def test_damaged_weights_are_seen_before_the_engine(tmp_path: Path) -> None:
    place = damaged(tmp_path, (DRAFTER / "config.json").read_text(), weights=False)
    assert "holds no model.safetensors" in refuse({"model": str(place)}, CheckpointError)
    (place / "model.safetensors").write_bytes((DRAFTER / "model.safetensors").read_bytes()[:1000])
    assert "cannot be read as safetensors" in refuse({"model": str(place)}, CheckpointError)


def test_other_checkpoints_are_left_to_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    mistral = tmp_path / "mistral"
    mistral.mkdir()
    (mistral / "params.json").write_text("{}")
    speculators = damaged(tmp_path, '{"speculators_model_type": "eagle3", "architectures": ["x"]}')
    weights = tmp_path / "model.gguf"
    weights.write_text("")
    for model in (TARGET, mistral, speculators, weights, "s3://bucket/eagle", "org/eagle", "ngram", "[ngram]"):
        assert not is_redrafter({"model": str(model), "num_speculative_tokens": 3})
    for options in ({"method": "eagle", "model": "/missing"}, {"method": 5}, {"num_speculative_tokens": 3}):
        assert not is_redrafter(options)


def test_a_target_is_not_its_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refuse({"method": "redrafter", "model": str(TARGET)}, CheckpointError)
    assert "describes no drafter: its model_type is 'llama'" in message
    assert "give the drafter's own directory, or the word 'redrafter'" in message

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        assert repo_id == "org/other" and allow_patterns == ["config.json"], "weights were about to be downloaded"
        return str(TARGET)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(DrafterNotFoundError, match=r"'org/llama' is the target, not its drafter"):
        resolve_drafter("org/llama", "org/llama")
    with pytest.raises(DrafterNotFoundError, match=r"'org/other' on the hub is no drafter"):
        resolve_drafter("org/other", "org/llama")


def test_broken_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    words = f"is a link to {tmp_path / 'gone'}, which does not exist"
    for options in ({"model": str(link)}, {"method": "redrafter", "model": str(link)}):
        assert f"The drafter checkpoint '{link}' {words}" in refuse(options, DrafterNotFoundError)
    monkeypatch.chdir(tmp_path)
    assert f"'link' {words}" in refuse({"model": "link"}, DrafterNotFoundError)
    # A broken link to a drafter beside the target is an error: no other drafter is used instead.
    target = tmp_path / "target"
    target.mkdir()
    shutil.copy(TARGET / "config.json", target)
    (target / "redrafter").symlink_to(tmp_path / "gone")
    shutil.copytree(DRAFTER, tmp_path / "registry" / "target")
    assert f"{target / 'redrafter'} {words}" in refuse({"method": "redrafter"}, DrafterNotFoundError, target)
    (target / "redrafter").unlink()
    assert resolve_drafter("redrafter", str(target)) == tmp_path / "registry" / "target"
    monkeypatch.setenv("REDRAFTER_HOME", str(link))
    assert f"{link} {words}" in refuse({"method": "redrafter"}, DrafterNotFoundError, target)
    monkeypatch.setenv("REDRAFTER_CHECKPOINT", str(link))
    assert f"does not hold a drafter (it {words})" in refuse({"method": "redrafter"}, DrafterNotFoundError)


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    options = {"method": "redrafter"}
    message = refuse({**options, "model": str(file)}, DrafterNotFoundError)
    assert f"'{file}' is a file, not a directory" in message
    for given, why in ((str(file), "it is a file"), (" ", "it is not a directory"), ("y" * 999, "File name too long")):
        monkeypatch.setenv("REDRAFTER_CHECKPOINT", given)
        assert why in refuse(options, DrafterNotFoundError)
    monkeypatch.delenv("REDRAFTER_CHECKPOINT")
    empty = tmp_path / "registry" / "target"
    empty.mkdir(parents=True)
    target = tmp_path / "target"
    target.mkdir()
    shutil.copy(TARGET / "config.json", target)
    assert f"{empty} (holds no config.json)" in refuse(options, DrafterNotFoundError, target)


def test_engine_options() -> None:
    message = refuse({"method": "redrafter"}, UnsupportedTargetError, attention_backend="CPU_ATTN")
    assert "trees need their own attention backend, but CPU_ATTN was chosen" in message


def test_nearest_names() -> None:
    known = ["beam_width", "beam_length", "method"]
    assert did_you_mean("beam_lenght", known) == " (did you mean 'beam_length'?)"
    assert did_you_mean("beam-width", known) == " (did you mean 'beam_width'?)"
    assert did_you_mean("temperature", known) == did_you_mean(5, known) == did_you_mean("", known) == ""


@pytest.mark.process
def test_vllm_serve_ends_with_the_message(tmp_path: Path) -> None:
    options = ["--max-model-len", "64", "--speculative-model", str(tmp_path / "missing")]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(TARGET), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr + ended.stdout
    last = ended.stderr.rstrip().splitlines()[-1]
    assert re.fullmatch(r"Error: The drafter checkpoint '.*missing' is not a directory: .*; check the path\.", last)


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for every error that is not ours."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    error_hook.end_in_one_sentence()
    error_hook.end_in_one_sentence()

    def end(error: Exception, level: int) -> list[str]:
        monkeypatch.setattr(logging.getLogger("vllm"), "level", level)
        logging.getLogger("vllm").manager._clear_cache()
        try:
            raise error
        except Exception:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return capsys.readouterr().err.splitlines()

    ours = DrafterNotFoundError("One sentence\n on two lines.")
    assert end(ours, logging.INFO) == ["Error: One sentence on two lines."]
    shown_too = end(ours, logging.DEBUG)
    assert shown_too[0].startswith("Traceback") and shown_too[-1] == "Error: One sentence on two lines."
    theirs = end(ValueError("vLLM's own"), logging.INFO)
    assert theirs[0].startswith("Traceback") and theirs[-1] == "ValueError: vLLM's own"
