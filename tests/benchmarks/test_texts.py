# SPDX-License-Identifier: Apache-2.0
"""The prompts that acceptance is measured on: a number of source files, or chat prompts."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import cli
from benchmarks.assets import load_target
from benchmarks.serving import drafter_levers
from benchmarks.serving.structured_output import CHAT_GRAMMARS, GRAMMARS, Options, make_prompts
from benchmarks.serving.texts import Prompts, add_prompts, parsed_prompts
from tests.models import save_random_drafter, save_random_llama
from tests.paths import ASSET
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer(CHATML)
LINES = [
    {"category": "tea", "turns": ["Which?", "Sure?"]},
    {"category": "tea", "turns": ["Why?"]},
    {"category": "cake", "turns": ["H" * 400, "Never asked."]},
]


def parsed(*argv: str) -> Prompts:
    parser = cli.make_parser("benchmarks.example", "")
    add_prompts(parser, prompts=64, new_tokens=128)
    return parsed_prompts(parser.parse_args(argv), parser)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """The folder of a random chat model."""
    save_random_llama(tmp_path / "chat", vocab_size=len(TOKENIZER), bos_token_id=0, eos_token_id=1)
    TOKENIZER.save_pretrained(tmp_path / "chat")
    save_random_drafter(tmp_path / "chat" / "redrafter", vocab_size=len(TOKENIZER))
    return tmp_path / "chat"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return file


def test_a_number_is_of_source_files_and_a_name_of_chat_prompts(questions: Path) -> None:
    assert parsed() == Prompts(64, 128, 2)
    assert parsed("--prompts", "7", "--new-tokens", "9") == Prompts(7, 9, 2)
    assert parsed("--prompts", "mt-bench", "--questions", "0") == Prompts("mt-bench", 128, 0)
    assert parsed("--prompts", str(questions)).source == str(questions)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompts", "mt-bensh"], "mt-bensh is neither mt-bench nor spec-bench nor a readable file"),
        (["--prompts", "0"], "prompts must be at least 1, not 0"),
        (["--questions", "-1"], "questions must be at least 0, not -1"),
        (["--new-tokens", "1"], "new_tokens must be at least 2, not 1"),
    ],
)
def test_impossible_prompts_end_with_a_message(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert message in capsys.readouterr().err


def test_records_of_other_prompts_have_other_names() -> None:
    assert Prompts(64, 8).record_name("levers") == "levers"
    assert Prompts("spec-bench", 8).record_name("levers") == "levers-spec-bench"
    assert Prompts("some/where/mine.jsonl", 8).record_name("levers") == "levers-mine"
    assert Prompts(64, 8).described == {"prompts": 64, "new_tokens": 8}
    assert Prompts("mt-bench", 8, 2).described == {"prompts": "mt-bench", "new_tokens": 8, "questions": 2}


def test_chat_texts_are_greedy_answers_to_all_turns(
    chat: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target(chat)
    texts = Prompts(str(questions), 8, questions=1).texts(target, TOKENIZER, window=300)
    assert "2 turns do not fit into 300 tokens" in capsys.readouterr().err
    assert len(texts) == 2  # both turns of the first question of tea; the first of cake is too long
    model = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    for text, start in texts:
        continued = text[:start]
        for _ in range(len(text) - start):
            best = model(continued[None]).logits[0, -1].argmax()
            continued = torch.cat([continued, best[None]])
        assert torch.equal(text, continued)
        assert len(text) == start + 8 or int(text[-1]) == 1
    asked = TOKENIZER.decode(texts[1][0][: texts[1][1]])
    assert asked.startswith("<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n")
    assert asked.endswith("<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n")


def test_the_targets_own_length_limits_the_window(chat: Path, questions: Path) -> None:
    target = load_target(chat)
    target.model.config.max_position_embeddings = 40
    with pytest.raises(ValueError, match=r"no prompt of .* fits into 40 tokens with an answer of 30"):
        Prompts(str(questions), 30).texts(target, TOKENIZER, window=300)


def test_without_a_chat_template_there_are_no_chat_texts(questions: Path) -> None:
    with pytest.raises(ValueError, match="chat template"):
        Prompts(str(questions), 8).texts(load_target(ASSET), AutoTokenizer.from_pretrained(ASSET), window=300)


def test_levers_are_measured_on_chat_prompts(chat: Path, questions: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    said = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "All of them, and more."}]
    data.write_text(
        "".join(json.dumps({"messages": [{**said[0], "content": f"Which {n}?"}, said[1]]}) + "\n" for n in range(40))
    )
    command = ["--target", str(chat), "--prompts", str(questions), "--new-tokens", "8", "--out", str(tmp_path / "out")]
    assert drafter_levers.main([*command, "--data", str(data), "--draft-vocab-size", "16"]) == 0
    (file,) = (tmp_path / "out").glob("drafter-levers-questions_*.json")
    report = json.loads(file.read_text())
    assert (report["prompts"], report["questions"], report["new_tokens"]) == (str(questions), 2, 8)
    # Three first turns and two second ones; the long ones fit here.
    assert report["results"][0]["tokens"] <= 5 * 7
    assert [row["draft_tokens"] for row in report["results"]] == [len(TOKENIZER), 16] * 3


def test_a_question_asks_for_the_form_of_its_answer(chat: Path, questions: Path) -> None:
    options = Options(chat, chat / "redrafter", Prompts(str(questions), 8, questions=1))
    assert options.grammars is CHAT_GRAMMARS and CHAT_GRAMMARS.keys() == GRAMMARS.keys()
    prompts = [TOKENIZER.decode(ids) for ids in make_prompts(options, "In one word.")]
    assert prompts[0] == "<|im_start|>user\nWhich?\n\nIn one word.<|im_end|>\n<|im_start|>assistant\n"
    assert len(prompts) == 2


def test_source_files_are_continued_as_they_are() -> None:
    options = Options(ASSET, ASSET / "redrafter", Prompts(2, 8))
    assert options.grammars is GRAMMARS
    assert len(make_prompts(options, "never asked")) == 2
