# SPDX-License-Identifier: Apache-2.0
"""`redrafter inspect`: facts, trees and their texts on the committed pair and on hand-made steps."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.roofline import Layout, Workload, round_reads
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.cli.inspect import main
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.inspection.as_html import trees_page
from redrafter_vllm.inspection.as_text import trees_text
from redrafter_vllm.inspection.facts import bytes_per_round
from redrafter_vllm.inspection.trees import Artist, Node, Step, tokens_per_step
from tests.models import save_random_drafter
from tests.paths import ROOT

TARGET = ROOT / "tests" / "assets" / "stdlib-llama"
DRAFTER = TARGET / "redrafter"
PROMPT = "def test_read(self):\n    with open("

STEPS = [
    Step(
        "a<b",
        (
            Node(" x", -1, 0.5, 0.5, True),
            Node(" y", -1, 0.25, 0.25, False),
            Node("\n", 0, 0.5, 0.25, True),
            Node(" z", 0, 0.1, 0.05, False),
        ),
        " end",
    ),
    Step(" end", (Node(" q", -1, 0.9, 0.9, False),), None),
]


def test_text_by_hand() -> None:
    assert trees_text(STEPS, colour=False) == (
        "step 1: 2 accepted\n'a<b'\n├─ ' x' 50% ✓\n│  ├─ '\\n' 50% ✓\n│  └─ ' z' 10%\n└─ ' y' 25%\n"
        "the target goes on with ' end'\n\nstep 2: 0 accepted\n' end'\n└─ ' q' 90%\nthe end\n\n"
        "1.50 tokens per step in 2 steps\n"
    )
    assert "\033[1;32m' x' 50% ✓\033[0m" in trees_text(STEPS, colour=True)


class Page(HTMLParser):
    """The texts of a page by the class of their element, and whether elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append((tag, dict(attrs).get("class") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1][1] if self.open else "", data))

    def of(self, kind: str) -> list[str]:
        return [text for own, text in self.texts if own == kind]


def test_page_by_hand() -> None:
    page = Page()
    page.feed(trees_page("<why>", {"drafter": "a & b"}, STEPS))
    assert page.open == [] and page.of("h1") == ["<why>"] and page.of("td") == ["drafter", "a & b"]
    assert page.of("token root") == ["a<b", " end"]
    assert page.of("token") == [" x", "↵", " z", " y", " q"]
    assert page.of("mark") == [" x", "\n"]
    assert page.of("figure")[1] == "50%, path 25.0%"
    assert page.of("h2")[:2] == ["Step 1: 2 accepted, then ' end'", "Step 2: 0 accepted, the end"]


def test_bytes_of_a_round_by_hand() -> None:
    """input_proj 12 x 8 and a bias, head 10 x 12, U and W 4 x 4 and a bias; 12 x 4 and the first bias once a round."""
    config = DrafterConfig(vocab_size=20, hidden_size=4, exit_dim=12, num_draft_layers=0, draft_vocab_size=10)
    numbers = 12 * 8 + 12 + 10 * 12 + 2 * 16 + 4
    assert bytes_per_round(config, 3, 2) == 2 * (3 * numbers - 2 * (12 * 4 + 12))


@pytest.mark.parametrize("shape", [(48, 2), (30, 1), (48, 0)], ids=str)
def test_bytes_of_a_round_are_those_of_the_roofline(shape: tuple[int, int]) -> None:
    config = DrafterConfig(60, 24, *shape, draft_vocab_size=29)
    reads = round_reads(config, Workload(DraftingConfig(3, 4)), Layout()).parts
    assert bytes_per_round(config, 4, 2) == sum(reads.values()) - reads["embedding rows"]


@pytest.fixture(scope="module")
def artist() -> Artist:
    return Artist(str(TARGET), DRAFTER, DraftingConfig(3, 4))


def test_the_steps_spell_the_targets_answer(artist: Artist) -> None:
    """Roots and accepted drafts are what the target generates by itself, and every tree is one."""
    prompt = artist.encode(PROMPT, chat=False)
    steps = artist.draw(prompt, 24)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    spelt = [text for step in steps for text in (step.root, *(node.text for node in step.nodes if node.accepted))]
    assert [step.next_root for step in steps[:-1]] == [step.root for step in steps[1:]]
    last = [] if steps[-1].next_root is None else [steps[-1].next_root]
    assert spelt + last == [tokenizer.decode([token]) for token in answer.tolist()]
    assert tokens_per_step(steps) == (len(answer) - 1) / len(steps) > 1.3
    for step in steps:
        assert 4 <= len(step.nodes) <= 12
        for index, node in enumerate(step.nodes):
            assert -1 <= node.parent < index and 0 < node.reached <= node.probability + 1e-6 <= 1 + 2e-6
        assert sum(step.nodes[child].probability for child in step.children(-1)) <= 1 + 1e-5


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "trees.html"
    arguments = ["--target", str(TARGET), "--max-tokens", "8", "--html", str(page), "--beam-width", "2"]
    assert main([str(DRAFTER), "--tree", PROMPT, *arguments]) == 0
    shown = capsys.readouterr().out
    assert "draft vocabulary" in shown and "tokens per step, held-out text" in shown and "step 1: " in shown
    assert "2 beams of 4" in shown
    text = page.read_text()
    assert "def test_read(self)" in text and "step" in text.lower()
    page.write_text("mine")
    assert main([str(DRAFTER), "--tree", PROMPT, *arguments]) == 1
    assert "exists already" in capsys.readouterr().err and page.read_text() == "mine"
    assert main([str(DRAFTER), "--tree", PROMPT, *arguments, "--overwrite"]) == 0
    assert page.read_text() == text


def test_facts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DRAFTER)]) == 0
    assert "step 1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--tree", "x"], ["--target", "x"], ["--html", "x"], ["--tree", "x", "--target", "y", "--max-tokens", "1"]],
    ids=" ".join,
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(DRAFTER), *arguments])


def test_what_is_no_drafter_or_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    save_random_drafter(tmp_path / "other")
    assert main([str(tmp_path / "other"), "--tree", PROMPT, "--target", str(TARGET)]) == 1
    assert "hidden size" in capsys.readouterr().err
    given = ["--tree", PROMPT, "--target", str(TARGET), "--html", str(tmp_path)]
    assert main([str(DRAFTER), *given]) == 1
    assert "is a folder" in capsys.readouterr().err
    assert main([str(DRAFTER), "--beam-width", "0"]) == 1
    assert "beam_width" in capsys.readouterr().err
