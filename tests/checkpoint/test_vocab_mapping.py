# SPDX-License-Identifier: Apache-2.0
"""A trimmed drafter is the full one whose other logits are −inf before the softmax."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redrafter_vllm import Drafter, DrafterConfig, beam_search
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint
from redrafter_vllm.checkpoint.conversion import convert
from tests.no_sync import forbid_host_sync
from tests.oracles import Path as TokenPath
from tests.oracles import next_log_probs, random_drafter

KEPT = [0, 2, 3, 7, 8, 10]
SHAPES = [
    {},
    {"rnn": False},
    {"exit_dim": 7, "num_draft_layers": 1},
    {"num_draft_layers": 0},
    {"exit_dim": 7, "num_draft_layers": 0},
]


def trimmed(full: Drafter, kept: list[int]) -> Drafter:
    """`full` with only the rows `kept` of its output layer."""
    drafter = Drafter(DrafterConfig(**{**vars(full.config), "draft_vocab_size": len(kept)}))
    drafter.set_draft_tokens(torch.tensor(kept))
    tensors = full.state_dict()
    output = f"lm_head.{full.config.num_draft_layers}.weight"
    tensors[output] = tensors[output][kept]
    drafter.load_state_dict(tensors | {"d2t": drafter.d2t})
    return drafter


def slow_beams(
    full: Drafter, embedding: Tensor, context: Tensor, root: int, width: int, length: int, kept: list[int]
) -> list[tuple[TokenPath, list[float]]]:
    """Beam search with Python lists over the full drafter, every token outside `kept` at −inf."""
    beams: list[tuple[TokenPath, list[float]]] = [((), [])]
    for _ in range(length):
        grown = []
        for tokens, log_probs in beams:
            full_log_probs = torch.tensor(next_log_probs(full.state_dict(), embedding, context, (root, *tokens)))
            masked = torch.full_like(full_log_probs, -torch.inf)
            masked[kept] = full_log_probs[kept]
            for token, log_prob in enumerate(masked.log_softmax(0).tolist()):
                grown.append(((*tokens, token), [*log_probs, log_prob]))
        beams = sorted(grown, key=lambda beam: -sum(beam[1]))[:width]
    return beams


def inputs(batch: int, vocab: int = 11, hidden: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn(vocab, hidden, generator=generator)
    return (
        embedding,
        torch.randn(batch, hidden, generator=generator),
        torch.randint(vocab, (batch,), generator=generator),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kept", [KEPT, [4], list(range(11)), [9, 10]], ids=str)
def test_against_the_full_drafter_with_masked_logits(shape: dict, kept: list[int]) -> None:
    full = random_drafter(seed=1, **shape)
    drafter = trimmed(full, kept)
    embedding, context, roots = inputs(3)
    width = min(4, len(kept))
    beams = beam_search(drafter, embedding, context, roots, beam_width=width, beam_length=3)
    assert set(beams.tokens.flatten().tolist()) <= set(kept)
    for row in range(3):
        expected = slow_beams(full, embedding, context[row], int(roots[row]), width, 3, kept)
        assert beams.paths()[row].tolist() == [list(tokens) for tokens, _ in expected]
        torch.testing.assert_close(
            beams.log_probs[row, -1], torch.tensor([sum(log_probs) for _, log_probs in expected]), atol=1e-4, rtol=0
        )


def test_top_k_renormalises_inside_the_draft_vocabulary() -> None:
    full = random_drafter(seed=2)
    embedding, context, roots = inputs(1)
    beams = beam_search(trimmed(full, KEPT), embedding, context, roots, beam_width=2, beam_length=1, logits_top_k=3)
    log_probs = next_log_probs(full.state_dict(), embedding, context[0], (int(roots[0]),))
    best = sorted(KEPT, key=lambda token: -log_probs[token])
    assert beams.tokens[0, 0].tolist() == best[:2]
    expected = torch.tensor([log_probs[token] for token in best[:3]]).log_softmax(0)[:2]
    torch.testing.assert_close(beams.log_probs[0, 0], expected, atol=1e-5, rtol=0)


def test_more_beams_than_draft_tokens() -> None:
    drafter = trimmed(random_drafter(), KEPT)
    with pytest.raises(ValueError, match="beam_width is 7 but the drafter's draft vocabulary has only 6"):
        beam_search(drafter, *inputs(1), beam_width=7, beam_length=2)


def test_no_host_synchronisation() -> None:
    drafter = trimmed(random_drafter(), KEPT)
    embedding, context, roots = inputs(3)
    with forbid_host_sync():
        beam_search(drafter, embedding, context, roots, beam_width=4, beam_length=3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_are_what_the_output_layer_sees(shape: dict) -> None:
    drafter = random_drafter(**shape).double()
    context, state = torch.randn(3, 6).double(), torch.randn(3, 4, 6).double()
    caught: list[Tensor] = []
    drafter.output.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    drafter(context, state)
    torch.testing.assert_close(drafter.features(drafter.context_share(context), state), caught[0])


@pytest.mark.parametrize("size", [0, 12, True, "6", 2.0])
def test_impossible_size(size: object) -> None:
    with pytest.raises(ValueError, match="draft_vocab_size must be null or an integer from 1 to vocab_size 11"):
        random_drafter(draft_vocab_size=size)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "do not fit draft_vocab_size 3"),
        ([0, 4, 4], "draft ids 1 and 2 map to 4 and 4"),
        ([5, 4, 6], "draft ids 0 and 1 map to 5 and 4"),
        ([0, 1, 11], "draft id 2 maps to target id 11"),
        ([-1, 0, 1], "draft id 0 maps to target id -1"),
    ],
)
def test_impossible_draft_tokens(ids: list[int], message: str) -> None:
    drafter = random_drafter(draft_vocab_size=3)
    with pytest.raises(ValueError, match=message):
        drafter.set_draft_tokens(torch.tensor(ids))
    assert drafter.draft_tokens is not None
    assert drafter.draft_tokens.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="draft_vocab_size None"):
        random_drafter().set_draft_tokens(torch.tensor(ids))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trimmed(random_drafter(), KEPT).to(torch.bfloat16).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def test_stored_as_eagle3_stores_it(saved: Path) -> None:
    """`d2t` holds offsets: the target id is the draft id plus the offset there."""
    config = json.loads((saved / "config.json").read_text())
    assert (config["draft_vocab_size"], config["vocab_size"], config["dtype"]) == (6, 11, "bfloat16")
    tensors = load_file(saved / "model.safetensors")
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["d2t"].tolist() == [0, 1, 1, 4, 4, 5]
    assert list(tensors["lm_head.2.weight"].shape) == [6, 12]


def test_full_drafters_are_stored_as_before(tmp_path: Path) -> None:
    random_drafter().save_pretrained(tmp_path)
    assert "draft_vocab_size" not in json.loads((tmp_path / "config.json").read_text())
    assert "d2t" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("stored", [torch.int32, torch.int64])
def test_round_trip(saved: Path, stored: torch.dtype) -> None:
    edit(saved, lambda tensors: tensors.update(d2t=tensors["d2t"].to(stored)))
    drafter = Drafter.from_pretrained(saved, dtype=torch.float32)
    assert drafter.config.draft_vocab_size == 6
    assert drafter.draft_tokens is not None
    assert drafter.draft_tokens.tolist() == KEPT
    assert drafter.to(torch.bfloat16).d2t.dtype == torch.int64


def edit(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))


def refused(directory: Path, *words: str) -> None:
    for read in (checkpoint.check_checkpoint, Drafter.from_pretrained):
        with pytest.raises(errors.DraftVocabularyError) as caught:
            read(directory)
        assert all(word in str(caught.value) for word in (*words, str(directory)))
        assert "\n" not in str(caught.value)


def test_map_is_missing(saved: Path) -> None:
    edit(saved, lambda tensors: tensors.pop("d2t"))
    refused(saved, "draft_vocab_size 6", "no tensor d2t")


def test_map_without_a_size(saved: Path) -> None:
    random_drafter().save_pretrained(saved)
    edit(saved, lambda tensors: tensors.update(d2t=torch.zeros(6, dtype=torch.int64)))
    refused(saved, "holds the draft vocabulary's map d2t", "no draft_vocab_size")


def test_map_of_the_wrong_type(saved: Path) -> None:
    edit(saved, lambda tensors: tensors.update(d2t=tensors["d2t"].float()))
    refused(saved, "d2t", "stored as F32", "I64")


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1)])
def test_map_of_the_wrong_length(saved: Path, shape: tuple[int, ...]) -> None:
    edit(saved, lambda tensors: tensors.update(d2t=torch.zeros(shape, dtype=torch.int64)))
    refused(saved, "d2t", str(list(shape)), "draft_vocab_size is 6")


def test_output_layer_of_the_wrong_size(saved: Path) -> None:
    edit(saved, lambda tensors: tensors.update({"lm_head.2.weight": torch.zeros(11, 12)}))
    with pytest.raises(errors.TensorShapeError, match=r"lm_head\.2\.weight .* \[11, 12\] .* \[6, 12\]"):
        checkpoint.check_checkpoint(saved)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 1, 1, 4, 3, 5], "draft ids 3 and 4 map to 7 and 7"),
        ([3, 0, 1, 4, 4, 5], "draft ids 0 and 1 map to 3 and 1"),
        ([0, 1, 1, 4, 4, 6], "draft id 5 maps to target id 11, outside a vocabulary of 11"),
        ([-1, 1, 1, 4, 4, 5], "draft id 0 maps to target id -1"),
    ],
)
def test_map_is_invalid(saved: Path, offsets: list[int], words: str) -> None:
    edit(saved, lambda tensors: tensors.update(d2t=torch.tensor(offsets)))
    with pytest.raises(errors.DraftVocabularyError, match=words):
        Drafter.from_pretrained(saved)


@pytest.mark.parametrize("size", [12, 0, "6"])
def test_impossible_size_in_the_config(saved: Path, size: object) -> None:
    edit_config(saved, draft_vocab_size=size)
    with pytest.raises(errors.CheckpointConfigError, match="draft_vocab_size"):
        checkpoint.check_checkpoint(saved)


def test_null_size_is_no_size(tmp_path: Path) -> None:
    random_drafter().save_pretrained(tmp_path)
    edit_config(tmp_path, draft_vocab_size=None)
    assert Drafter.from_pretrained(tmp_path).draft_tokens is None


@pytest.mark.parametrize("prefix", ["", "redrafter_"])
def test_inside_a_target(saved: Path, tmp_path: Path, prefix: str) -> None:
    block = {f"{prefix}num_draft_layers": 2, f"{prefix}draft_vocab_size": 6}
    target = {"model_type": "llama", "vocab_size": 11, "hidden_size": 6, "redrafter": block}
    (saved / "config.json").write_text(json.dumps(target))
    tensors = load_file(saved / "model.safetensors")
    save_file({f"drafter.{name}": tensor for name, tensor in tensors.items()}, saved / "model.safetensors")
    convert(saved, tmp_path / "converted")
    drafter = Drafter.from_pretrained(tmp_path / "converted")
    assert drafter.draft_tokens is not None
    assert drafter.draft_tokens.tolist() == KEPT


def test_pickled_maps_are_checked_too(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    for offsets, words in (
        (None, "no tensor d2t"),
        (torch.zeros(6), "stored as torch.float32"),
        (torch.zeros(5, dtype=torch.int64), r"\[5\]"),
        (torch.tensor([0, 1, 1, 4, 3, 5]), "draft ids 3 and 4"),
    ):
        torch.save({k: v for k, v in (tensors | {"d2t": offsets}).items() if v is not None}, saved / "model.pt")
        with pytest.raises(errors.DraftVocabularyError, match=words):
            convert(saved, tmp_path / "converted", allow_pickle=True)
    torch.save(tensors, saved / "model.pt")
    assert convert(saved, tmp_path / "converted", allow_pickle=True).draft_vocab_size == 6
