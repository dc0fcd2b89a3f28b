# SPDX-License-Identifier: Apache-2.0
"""`redrafter inspect`: facts, trees and their texts on the committed pair and on hand-made steps."""

import json
import math
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.roofline import Layout, Workload, round_reads
from redrafter_vllm.checkpoint import locate
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.cli.inspect import main
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.inspection.artist import Artist
from redrafter_vllm.inspection.as_html import trees_page
from redrafter_vllm.inspection.as_text import trees_text
from redrafter_vllm.inspection.facts import bytes_per_round
from redrafter_vllm.inspection.trees import Choice, Drawing, Node, Step
from tests.browser import WIDTH, measured, needs_browser, visible_text
from tests.models import save_random_drafter
from tests.paths import ROOT

TARGET = ROOT / "tests" / "assets" / "stdlib-llama"
DRAFTER = TARGET / "redrafter"
PROMPT = "def test_read(self):\n    with open("

END = Choice(" end", 0.5)
STEPS = [
    Step(
        "a<b",
        Choice(" x", 0.8),
        (
            Node(" x", -1, 0.5, 0.45, 0.8, Choice("\n", 0.6), True),
            Node(" y", -1, 0.25, 0.2, 0.1, Choice(" w", 1.0), False),
            Node("\n", 0, 0.5, 0.2, 0.6, END, True),
            Node(" z", 0, 0.1, 0.05, 0.01, Choice(" y", 0.3), False),
        ),
        " end",
    ),
    Step(" end", Choice(" fin", 0.7), (Node(" q", -1, None, 0.9, 0.123, END, False),), None),
]
DRAWING = Drawing(STEPS, "calibrated, slope 0.80")

TEXT = """\
step 1: 2 accepted  drafter  survival  target  says then
'a<b'                                          ' x' 80%
├─ ' x' ✓               50%     45.0%     80%  '\\n' 60%
│  ├─ '\\n' ✓            50%     20.0%     60%  ' end' 50%
│  └─ ' z'              10%      5.0%      1%  ' y' 30%
└─ ' y'                 25%     20.0%     10%  ' w' 100%
the target goes on with ' end'

step 2: 0 accepted  drafter  survival  target  says then
' end'                                         ' fin' 70%
└─ ' q'                copy     90.0%     12%  ' end' 50%
the end

drafter    the drafter's probability for the token after the one above it, or that it is copied from the text
survival   that it and all above it are accepted, as serving expects at first: calibrated, slope 0.80
target     the target's probability for the token after the one above it
says then  what the target says after the token, and how probable it finds that
1.50 tokens per step in 2 steps
"""


def test_text_by_hand() -> None:
    assert trees_text(DRAWING, colour=False) == TEXT
    coloured = trees_text(DRAWING, colour=True)
    assert "├─ \033[1;32m' x' ✓\033[0m               50%" in coloured
    assert coloured.replace("\033[1;32m", "").replace("\033[0m", "") == TEXT


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
    page.feed(trees_page("<why>", {"drafter": "a & b"}, DRAWING))
    assert page.open == [] and page.of("h1") == ["<why>"] and page.of("td") == ["drafter", "a & b"]
    assert page.of("token root") == ["a<b", " end"]
    assert page.of("token") == [" x", "↵", " z", " y", " q"]
    assert page.of("mark") == [" x", "\n"]
    # The first of each kind is the legend's.
    assert page.of("drafter") == ["drafter", "50%", "50%", "10%", "25%", "copy"]
    assert page.of("survival") == ["survival", "45.0%", "20.0%", "5.0%", "20.0%", "90.0%"]
    assert page.of("target") == ["target", "80%", "60%", "1%", "10%", "12%"]
    says = ["→  x 80%", "→ ↵ 60%", "→  end 50%", "→  y 30%", "→  w 100%", "→  fin 70%", "→  end 50%"]
    assert page.of("says") == ["→ token", *says]
    assert any("calibrated, slope 0.80" in text for text in page.of("dd"))
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
    return Artist(str(TARGET), DRAFTER, DraftingConfig(3, 4, prompt_lookup=False))


def spelt(steps: Sequence[Step]) -> list[str]:
    """The answer, from the roots and the accepted drafts."""
    texts = [text for step in steps for text in (step.root, *(node.text for node in step.nodes if node.accepted))]
    return texts if steps[-1].next_root is None else [*texts, steps[-1].next_root]


def generated(prompt: list[int], count: int) -> list[str]:
    """The answer that transformers generates."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0, len(prompt) :]
    return [tokenizer.decode([token]) for token in answer.tolist()]


def test_the_steps_spell_the_targets_answer(artist: Artist) -> None:
    """Roots and accepted drafts are what the target generates by itself, and every tree is one."""
    prompt = artist.encode(PROMPT, chat=False)
    drawing = artist.draw(prompt, 24)
    steps = drawing.steps
    answer = generated(prompt, 24)
    assert spelt(steps) == answer
    assert [step.next_root for step in steps[:-1]] == [step.root for step in steps[1:]]
    assert drawing.tokens_per_step == (len(answer) - 1) / len(steps) > 1.3
    for step in steps:
        assert 4 <= len(step.nodes) <= 12
        assert all(-1 <= node.parent < index for index, node in enumerate(step.nodes))
        assert sum(step.nodes[child].drafter or 0.0 for child in step.children(-1)) <= 1 + 1e-5


def copy_of(step: Step) -> list[str]:
    """The tokens that a step's tree copies from the text."""
    path: list[str] = []
    last = -1
    for index, node in enumerate(step.nodes):
        if node.drafter is None:
            assert node.parent == last  # one chain from the root on
            path, last = [*path, node.text], index
    return path


def expected_copy(text: Sequence[str], count: int) -> list[str]:
    """What followed the latest of the places where most of the last tokens, 2 to 32, were the same."""
    end, most, place = len(text) - 1, 2, None
    for other in range(end):
        same = 0
        while same < 32 and same <= other and text[other - same] == text[end - same]:
            same += 1
        if same >= most:
            most, place = same, other
    return [] if place is None else [text[place + 1 + step % (end - place)] for step in range(count)]


def test_trees_have_copies_of_the_text_as_in_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a text that says everything three times."""
    artist = Artist(str(TARGET), DRAFTER, DraftingConfig(3, 4))
    prompt = 3 * artist.encode(PROMPT, chat=False)
    assert spelt(artist.draw(prompt, 24).steps) == generated(prompt, 24)
    monkeypatch.setattr(artist, "_text", str)  # so that steps hold token ids
    text, accepted = list(map(str, prompt)), 0
    for step in artist.draw(prompt, 24).steps:
        text.append(step.root)
        copy = copy_of(step)
        assert copy == expected_copy(text, len(copy))
        text += [node.text for node in step.nodes if node.accepted]
        accepted += sum(node.accepted for node in step.nodes if node.drafter is None)
    assert accepted > 3


def test_what_the_target_says_at_every_node(artist: Artist, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a pass over each node's whole text, without a cache."""
    monkeypatch.setattr(artist, "_text", str)  # so that steps hold token ids
    text = artist.encode(PROMPT, chat=False)
    rejected = 0
    for step in artist.draw(text, 9).steps:
        text = [*text, int(step.root)]
        for index, node in enumerate(step.nodes):
            path: list[int] = []
            while index >= 0:
                path.insert(0, int(step.nodes[index].text))
                index = step.nodes[index].parent
            with torch.inference_mode():
                before, after = artist.model(torch.tensor([text + path])).logits[0, -2:].softmax(-1)
            assert node.target == pytest.approx(float(before[path[-1]]), abs=1e-5)
            assert (node.says.text, node.says.probability) == (
                str(int(after.argmax())),
                pytest.approx(float(after.max()), abs=1e-5),
            )
            rejected += not node.accepted
        text += [int(node.text) for node in step.nodes if node.accepted]
    assert rejected > 20


def expected_survival(step: Step, index: int, slope: float, intercepts: tuple[float, ...]) -> float:
    """The product of the odds' logistic over the path, from the probabilities that are shown."""
    if index < 0:
        return 1.0
    node, depth, above = step.nodes[index], 0, step.nodes[index].parent
    while above >= 0:
        depth, above = depth + 1, step.nodes[above].parent
    assert node.drafter is not None
    odds = max(min(math.log(node.drafter / max(1 - node.drafter, 1e-9)), 10), -10)
    own = 1 / (1 + math.exp(-(slope * odds + intercepts[min(depth, len(intercepts) - 1)])))
    return own * expected_survival(step, node.parent, slope, intercepts)


@pytest.mark.parametrize("stored", [None, (0.5, (-0.2, -0.9))], ids=str)
def test_survival_is_as_calibrated(stored: tuple[float, tuple[float, ...]] | None, tmp_path: Path) -> None:
    drafter = Path(shutil.copytree(DRAFTER, tmp_path / "drafter"))
    if stored is not None:
        calibration = {"slope": stored[0], "intercepts": list(stored[1])}
        (drafter / "training.json").write_text(json.dumps({"calibration": calibration}))
    artist = Artist(str(TARGET), drafter, DraftingConfig(3, 4, prompt_lookup=False))
    drawing = artist.draw(artist.encode(PROMPT, chat=False), 9)
    assert drawing.calibration == (
        "the drafter's probability of the whole path, as its training has stored no calibration"
        if stored is None
        else "calibrated by the drafter's training (log-odds times 0.50, plus -0.20, -0.90 by depth)"
    )
    for step in drawing.steps:
        for index, node in enumerate(step.nodes):
            wanted = expected_survival(step, index, *(stored or (1.0, (0.0,))))
            assert node.survival == pytest.approx(wanted, abs=1e-3)


# Of each node: its bar's width in rem, its token's colour, and the texts of its figures in the order of the legend.
NODES = """[...document.querySelectorAll("li")].map(node => [
  node.querySelector(".bar").getBoundingClientRect().width
    / parseFloat(getComputedStyle(document.documentElement).fontSize),
  getComputedStyle(node.querySelector(".token")).backgroundColor,
  ...["drafter", "survival", "target"].map(name => node.querySelector("." + name).innerText)])"""
ACCEPTED, REFUSED = "rgb(191, 232, 200)", "rgb(238, 241, 246)"


@needs_browser
@pytest.mark.process
def test_the_page_in_a_browser(artist: Artist, tmp_path: Path) -> None:
    """What a reader sees of the trees is what was drawn: bars as long as survival, accepted tokens green."""
    drawing = artist.draw(artist.encode(PROMPT, chat=False), 9)
    page = tmp_path / "trees.html"
    page.write_text(trees_page(PROMPT, {"hidden size": "256"}, drawing), encoding="utf-8")
    nodes = [node for step in drawing.steps for node in _depth_first(step, -1)]
    found = measured(page, NODES)
    assert len(found) == len(nodes) > 10
    for node, (width, colour, drafter, survival, target) in zip(nodes, found, strict=True):
        assert width == pytest.approx(4 * node.survival, abs=0.02)
        assert colour == (ACCEPTED if node.accepted else REFUSED)
        assert drafter == ("copy" if node.drafter is None else f"{node.drafter:.0%}")
        assert (survival, target) == (f"{node.survival:.1%}", f"{node.target:.0%}")
    text = visible_text(page)
    assert drawing.rate in text and "hidden size\t256" in text
    assert all(f"Step {number}: {step.accepted} accepted" in text for number, step in enumerate(drawing.steps, 1))
    width = measured(page, "document.documentElement.scrollWidth")
    assert width <= WIDTH, "wide trees scroll within their column"


def _depth_first(step: Step, parent: int) -> list[Node]:
    return [node for index in step.children(parent) for node in (step.nodes[index], *_depth_first(step, index))]


def test_an_answer_ends_with_its_end_token(artist: Artist, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = artist.encode(PROMPT, chat=False)
    text = artist.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
    answer = text[len(prompt) :]
    last = next(place for place in range(6, 24) if answer[place] not in answer[:place])
    monkeypatch.setattr(artist.model.generation_config, "eos_token_id", [answer[last]])
    steps = artist.draw(prompt, 24).steps
    assert sum(step.accepted + (step.next_root is not None) for step in steps) == last
    monkeypatch.setattr(artist.model.generation_config, "eos_token_id", answer[0])
    with pytest.raises(ValueError, match="ends its answer before the second token"):
        artist.draw(prompt, 24)


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
    [
        ["--tree", "x"],
        ["--html", "x"],
        ["--html", "x", "--target", "y"],
        ["--tree", "x", "--target", "y", "--max-tokens", "1"],
    ],
    ids=" ".join,
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(DRAFTER), *arguments])


def test_the_word_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["redrafter"])
    assert "add --target MODEL" in capsys.readouterr().err
    assert main(["redrafter", "--target", str(TARGET)]) == 0
    shown = capsys.readouterr().out
    assert str(DRAFTER) in shown and "hidden size  256 in both" in shown and shown.endswith("0 problems\n")


def test_a_drafter_of_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(locate, "_download", lambda repo_id: {"org/drafter": DRAFTER}[repo_id])
    assert main(["org/drafter"]) == 0
    assert "exit_dim 512" in capsys.readouterr().out


def test_what_is_no_drafter_or_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    save_random_drafter(tmp_path / "other")
    assert main([str(tmp_path / "other"), "--tree", PROMPT, "--target", str(TARGET)]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM hidden size" in shown and "step 1" not in shown
    given = ["--tree", PROMPT, "--target", str(TARGET), "--html", str(tmp_path)]
    assert main([str(DRAFTER), *given]) == 1
    assert "is a folder" in capsys.readouterr().err
    assert main([str(DRAFTER), "--beam-width", "0"]) == 1
    assert "beam_width" in capsys.readouterr().err
