# SPDX-License-Identifier: Apache-2.0
"""Options beyond a target's limits are an error before any work is done."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from redrafter_training import evaluate
from redrafter_training.__main__ import main
from redrafter_training.run.evaluation import EVALUATED_TOKENS, fitting
from redrafter_training.target.properties import TargetFactsError, beyond_embedding, facts_of, read_facts
from tests.models import save_random_llama
from tests.paths import ASSET
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

SIZES = "--max-steps 2 --window 96 --batch-size 2 --evaluate-windows 2 --exit-dim 64 --evaluate false --device cpu"
NO_ANSWERS = "--response-fraction 0"


def facts(family: str, **described: Any) -> float:
    return facts_of("some/model", AutoConfig.for_model(family, **described)).longest


@pytest.mark.parametrize(
    ("family", "described", "longest"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        ("gpt2", {"n_positions": 48}, 48),
        ("mpt", {"max_seq_len": 32}, 32),
        ("bloom", {}, math.inf),
        # Linear and dynamic scaling state the positions before scaling, the others those after it.
        ("llama", {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ("llama", {"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        (
            "llama",
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
            128,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 128,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
            },
            128,
        ),
        ("gemma3_text", {"max_position_embeddings": 96}, 96),
    ],
)
def test_longest_text(family: str, described: dict[str, Any], longest: float) -> None:
    assert facts(family, **described) == longest


def test_rows_of_the_embedding() -> None:
    assert read_facts(str(ASSET)).vocab_size == 2048
    tokenizer = byte_tokenizer()
    assert beyond_embedding([5, 260], None, tokenizer) is None
    assert beyond_embedding([5, 260], 261, tokenizer) is None
    last = tokenizer.convert_ids_to_tokens(260)
    assert beyond_embedding([5, 260], 260, tokenizer) == (
        f"{last!r} is token 260, and the target's embedding has 260 rows"
    )


def test_a_target_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TargetFactsError, match=r"the target .*nowhere cannot be loaded: "):
        read_facts(str(tmp_path / "nowhere"))


def test_a_target_with_its_own_code(tmp_path: Path) -> None:
    config = json.loads((ASSET / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    )
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(TargetFactsError, match=r"its repository has model code, which --trust-remote-code runs"):
        read_facts(str(tmp_path))
    assert read_facts(str(tmp_path), trust_remote_code=True).vocab_size == 2048


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    turns = [
        [{"role": "user", "content": f"question {n}?"}, {"role": "assistant", "content": f"The answer is {n}."}]
        for n in range(12)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    return path


def asset_with(folder: Path, **special: Any) -> Path:
    """The small target with a tokenizer of other special tokens; the model is unchanged."""
    shutil.copytree(ASSET, folder, ignore=shutil.ignore_patterns("redrafter*", "tokenizer_config.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ASSET / "tokenizer.json"), **special)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_window_beyond_the_targets_positions(
    conversations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--target {ASSET} --data {conversations} --chat-template vicuna --out {tmp_path / 'out'} {NO_ANSWERS}"
    for further in ("--window 2049", "--window 2049 --dry-run"):
        try:
            code = main([*given.split(), *further.split()])
        except TargetFactsError as problem:
            code, message = 1, str(problem)
        else:
            message = capsys.readouterr().err
        assert code == 1
        assert f"{ASSET} takes texts of at most 2048 tokens, --window asks for 2049" in message
    assert not (tmp_path / "out").exists()


def test_more_new_tokens_than_the_target_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--target", str(ASSET), "--new-tokens", "2048"])
    assert "--new-tokens and a prompt asks for 2049" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--target", str(ASSET), "--beam-length", "33"])
    assert "beam_length at most 32, as in serving" in capsys.readouterr().err


def test_prompts_of_the_measure_fit_the_target() -> None:
    short, long = torch.arange(10), torch.arange(200)
    assert fitting([short, long], math.inf) == ([short, long], EVALUATED_TOKENS)
    assert fitting([short, long], 200) == ([short], EVALUATED_TOKENS)
    (cut,), new_tokens = fitting([long], 60)
    assert (cut.tolist(), new_tokens) == (list(range(170, 200)), 30)  # its end, and as much again


def test_tokens_added_and_the_model_not_resized(
    conversations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    target = asset_with(tmp_path / "target", **special)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    given = f"--target {target} --data {conversations} --out {tmp_path / 'out'} {SIZES} {NO_ANSWERS}".split()
    assert main([*given, "--chat-template", str(tmp_path / "chatml.jinja")]) == 1
    message = capsys.readouterr().err
    assert "'<|im_start|>' is token 2048, and the target's embedding has 2048 rows" in message
    assert "Resize and train the target, or give another --chat-template" in message
    # Another template works, and so does all data without the token.
    with conversations.open("a") as file:
        messages = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "That is a token."}]
        file.write("\n" + json.dumps({"messages": messages}))
    assert main([*given, "--chat-template", "vicuna"]) == 0
    assert "1  skipped: token without a row in the target's embedding" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tokenizer_without_eos(conversations: Path, corpus_root: Path, tmp_path: Path) -> None:
    target = asset_with(tmp_path / "target", bos_token="<s>")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (target / "generation_config.json").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(target).eos_token_id is None
    answers = "--response-fraction 0.5 --responses.count 8 --responses.max-prompt 20"
    given = f"--target {target} --out {tmp_path / 'out'} {SIZES} {answers}".split()
    # Texts have no end token, and so do the target's responses.
    assert main([*given, "--data", str(corpus_root), "--evaluate", "true"]) == 0
    (tmp_path / "headings.jinja").write_text(
        "{% for m in messages %}{{ '## ' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '## assistant\n' }}{% endif %}"
    )
    of_conversations = ["--data", str(conversations), "--chat-template", str(tmp_path / "headings.jinja")]
    assert main([*given, *of_conversations, "--run-dir", str(tmp_path / "run"), "--overwrite"]) == 0


def test_the_tokenizers_eos_ends_the_targets_responses(tmp_path: Path) -> None:
    # Chat models often have the end of a turn as EOS only in the tokenizer. This target generates only that token.
    from redrafter_training.config.job import Job
    from redrafter_training.responses.engine import continue_prompts
    from redrafter_training.responses.transformers_engine import TransformersEngine
    from redrafter_training.target.loading import load_target

    tokenizer = byte_tokenizer(CHATML)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    save_random_llama(tmp_path, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1)
    job = Job(str(tmp_path), "stdlib", device="cpu")
    target = load_target(job, torch.device("cpu"), tokenizer=tokenizer)
    with torch.no_grad():
        target.model.lm_head.weight[4] = target.outputs(torch.tensor([[0, 9]])).hidden[0, 1] * 1e3
    (text,) = continue_prompts(TransformersEngine(target), [torch.tensor([0, 9])], 5)
    assert text.tolist() == [0, 9, 4]
