# SPDX-License-Identifier: Apache-2.0
"""The model card of a drafter: metadata for the hub, sizes of the weights beside it, results added later."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint.card import (
    CardTarget,
    add_results,
    card_metadata,
    check_card_place,
    describe_target,
    markdown_table,
    write_card,
)
from redrafter_vllm.checkpoint.convert import main as convert
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.checkpoint.places import drafter_folder
from redrafter_vllm.utils.paths import PlaceError
from tests.models import save_random_llama
from tests.oracles import random_drafter

LICENSED = "---\nlicense: mit\nbase_model: acme/small\nbase_model_relation: quantized\n---\n# Small\n"


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    random_drafter(exit_dim=7, num_draft_layers=1, draft_vocab_size=None).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def test_what_the_hub_and_a_reader_learn(drafter: Path, tmp_path: Path) -> None:
    target = CardTarget("chat-7b", "acme/chat-7b", {"license": "apache-2.0"}, "0123abcd")
    write_card(drafter, target, origin="Made by hand.", sections={"Data": "Some."})
    card = ModelCard.load(drafter / "README.md")
    metadata = card.data.to_dict()
    assert metadata == {
        "base_model": "acme/chat-7b",
        "library_name": "vllm",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "redrafter", "vllm"],
    }
    # By hand, of vocabulary 11, hidden size 6 and exit_dim 7: projection 7·12+7, one block 7·7+7, output 11·7, RNN
    # 6·6+6 and 6·6.
    assert "| parameters | 302 |" in card.text and "residual blocks: 1" in card.text
    assert "| fingerprint of its weights | `0123abcd` |" in card.text and "hidden size 6" in card.text
    size = (drafter / "model.safetensors").stat().st_size
    assert f"| weights | {size / 10**6:.1f} MB, float32 |" in card.text
    assert "all 11 tokens" in card.text and "vllm serve acme/chat-7b --speculative-model DIR" in card.text
    assert "Made by hand." in card.text and "\n## Data\n\nSome.\n" in card.text and "\n## Limits\n" in card.text
    assert str(tmp_path) not in str(card)


def test_an_unknown_target_is_not_made_up(drafter: Path) -> None:
    write_card(drafter, None)
    assert not {"base_model", "license"} & card_metadata(drafter).keys()
    assert "| target | unknown, hidden size 6 |" in (drafter / "README.md").read_text()


def test_loading_ignores_the_card(drafter: Path) -> None:
    before = check_checkpoint(drafter), Drafter.from_pretrained(drafter).state_dict().keys()
    write_card(drafter, None)
    (drafter / "README.md").write_bytes(b"---\n\xff: [\n---\n")
    assert (check_checkpoint(drafter), Drafter.from_pretrained(drafter).state_dict().keys()) == before
    assert card_metadata(drafter) == {}


def test_targets_are_named_without_their_path(tmp_path: Path) -> None:
    save_random_llama(tmp_path / "models" / "small")
    target = tmp_path / "models" / "small"
    assert describe_target(str(target)) == CardTarget("small", "small", on_hub=False)
    (target / "README.md").write_text(LICENSED)
    assert describe_target(f"{target}/", "ab") == CardTarget("small", "acme/small", {"license": "mit"}, "ab")
    # A fine-tuned model is another one than that which it was trained from.
    (target / "README.md").write_text(LICENSED.replace("quantized", "finetune"))
    assert describe_target(str(target)).base_model == "small"
    for broken in ("---\nlicense: [mit\n---\n", "---\n- a\n---\n", "no metadata", "---\nlicense: {a: 1}\n---\n"):
        (target / "README.md").write_text(broken)
        assert describe_target(str(target)) == CardTarget("small", "small", on_hub=False)


def test_commands_name_what_can_be_served(drafter: Path, tmp_path: Path) -> None:
    """The name of a folder is found nowhere else: the reader puts its place there."""
    card = drafter / "README.md"
    write_card(drafter, CardTarget("small", "small", on_hub=False))
    assert "this folder as DIR and small's folder as TARGET" in card.read_text()
    assert "vllm serve TARGET --speculative-model DIR" in card.read_text()
    assert "redrafter evaluate --target TARGET --drafter DIR" in card.read_text()
    write_card(drafter, CardTarget("small", "acme/small"))
    assert "for vLLM, and this folder as DIR:" in card.read_text()
    assert "redrafter evaluate --target acme/small --drafter DIR" in card.read_text()
    write_card(drafter, None)
    assert "this folder as DIR and the target's folder as TARGET" in card.read_text()


def test_results_are_replaced_by_those_of_the_same_kind(drafter: Path) -> None:
    write_card(drafter, None)
    card = drafter / "README.md"
    card.write_text(card.read_text().replace("## Limits", "My own words.\n\n## Limits"))
    before, limits = card.read_text().split("## Limits")
    add_results(drafter, "mt-bench", "first \\1")
    add_results(drafter, "spec-bench", "second")
    text = card.read_text()
    assert text.startswith(f"{before}## Results\n\n") and text.count("\n## Results\n") == 1
    assert text.endswith(f"\n\n## Limits{limits}")
    assert text.index("first \\1") < text.index("second") < text.index("## Limits")
    add_results(drafter, "mt-bench", "third")
    assert card.read_text() == text.replace("first \\1", "third")


def test_results_without_a_card(drafter: Path) -> None:
    add_results(drafter, "mt-bench", "first")
    text = (drafter / "README.md").read_text()
    assert "## Limits" in text and "## Results" in text and "first" in text
    (drafter / "README.md").write_text("My own card.\n")
    add_results(drafter, "mt-bench", "first")
    text = (drafter / "README.md").read_text()
    assert text.startswith("My own card.\n\n## Results\n\n") and text.endswith("-->\n") and "first" in text


def test_the_card_of_a_target_is_not_touched(drafter: Path, tmp_path: Path) -> None:
    check_card_place(drafter)
    save_random_llama(tmp_path / "target")
    for folder in (tmp_path / "target", tmp_path / "nowhere"):
        with pytest.raises(PlaceError, match="no card to write results to"):
            check_card_place(folder)


def test_cells_cannot_break_a_table() -> None:
    assert markdown_table(("a", "b"), [("x|y\nz", 1)]) == "| a | b |\n| --- | ---: |\n| x\\|y z | 1 |"


def test_a_converted_drafter_says_so(drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert([str(drafter), str(tmp_path / "one")]) == 0
    text = (tmp_path / "one" / "README.md").read_text()
    assert "Converted from drafter." in text and "target | unknown" in text
    (drafter / "README.md").write_text(LICENSED)
    assert convert([str(drafter), str(tmp_path / "two")]) == 0
    metadata = card_metadata(tmp_path / "two")
    assert (metadata["base_model"], metadata["license"]) == ("acme/small", "mit")
    assert "vllm serve acme/small" in (tmp_path / "two" / "README.md").read_text()


def test_a_card_of_the_users_own_stays(drafter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert([str(drafter), str(out)]) == 0
    (out / "README.md").write_text("My notes.")
    with drafter_folder(out, replace=True) as made:
        Drafter.from_pretrained(drafter).save_pretrained(made)
        write_card(made, None)
    assert (out / "README.md").read_text() == "My notes."
    write_card(out, None, origin="First.")
    assert (out / "README.md").read_text() == "My notes."
    (out / "README.md").unlink()
    for origin in ("First.", "Second."):
        write_card(out, None, origin=origin)
        assert origin in (out / "README.md").read_text()
