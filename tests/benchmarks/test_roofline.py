# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from benchmarks.models.roofline import (
    Layout,
    Workload,
    baseline_round,
    compare,
    kept_bytes,
    main,
    round_reads,
    target_step,
)
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.beam_search import beam_search
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.packed import Linear, PackedDrafter
from redrafter_vllm.predict.shapes import SHAPES, LlamaShape, ShapeError, find_shape, published_drafter
from tests.paths import ASSET

# Vocabulary 10, hidden 4, one ResBlock of 8: W 16, U 16 and its bias 4, L 64 and its bias 8, head 80 numbers.
SMALL = DrafterConfig(10, 4, 8, 1)
TWO_BEAMS_OF_THREE = Workload(DraftingConfig(2, 3))
# Embedding rows: the root's, and two beams' at two more steps; 4 numbers each, of 2 bytes.
ROWS = 5 * 4 * 2


def test_the_baseline_reads_the_whole_drafter_at_every_step() -> None:
    assert baseline_round(SMALL, TWO_BEAMS_OF_THREE).total == 3 * (16 + 16 + 4 + 64 + 8 + 80) * 2 + ROWS


def test_the_context_half_is_read_once() -> None:
    reads = round_reads(SMALL, TWO_BEAMS_OF_THREE, Layout())
    assert reads.parts == {
        "context half, once": (32 + 8) * 2,
        "rest of the residual blocks": 3 * 32 * 2,
        "recurrence": 3 * 36 * 2,
        "head": 3 * 80 * 2,
        "embedding rows": ROWS,
    }


def test_a_projection_is_the_first_linear_layer() -> None:
    # Projection 8 -> 6 (48 and 6), one ResBlock of 6 (36 and 6), a head of 7 draft tokens (42), no recurrence.
    config = DrafterConfig(10, 4, 6, 1, rnn=False, draft_vocab_size=7)
    reads = round_reads(config, TWO_BEAMS_OF_THREE, Layout())
    assert reads.parts == {
        "context half, once": (24 + 6) * 2,
        "rest of the residual blocks": 3 * (24 + 36 + 6) * 2,
        "recurrence": 0,
        "head": 3 * 42 * 2,
        "embedding rows": ROWS,
    }


def test_without_residual_blocks_the_head_is_the_first_linear_layer() -> None:
    reads = round_reads(DrafterConfig(10, 4, 8, 0, rnn=False), TWO_BEAMS_OF_THREE, Layout())
    assert reads.parts["context half, once"] == 40 * 2
    assert reads.parts["head"] == 3 * 40 * 2
    assert reads.parts["rest of the residual blocks"] == 0


def test_8_bit_weights_have_a_scale_per_row_and_unrounded_biases() -> None:
    reads = round_reads(SMALL, TWO_BEAMS_OF_THREE, Layout(byte_weights=True))
    assert reads.parts == {
        "context half, once": 32 + 8 * 2 + 8 * 2,
        "rest of the residual blocks": 3 * (32 + 8 * 2),
        "recurrence": 3 * (16 + 4 * 2 + 16 + 4 * 2 + 4 * 2),
        "head": 3 * (80 + 10 * 2),
        "embedding rows": ROWS,
    }


def test_a_table_of_the_embedding_saves_w_at_every_step_and_costs_another_embedding() -> None:
    table = Layout(project_embedding=True)
    reads = round_reads(SMALL, TWO_BEAMS_OF_THREE, table)
    assert reads.parts["recurrence"] == 3 * (16 + 4) * 2
    assert reads.total == round_reads(SMALL, TWO_BEAMS_OF_THREE, Layout()).total - 3 * 16 * 2
    assert kept_bytes(SMALL, TWO_BEAMS_OF_THREE, Layout()) == (16 + 16 + 4 + 64 + 8 + 80) * 2
    assert kept_bytes(SMALL, TWO_BEAMS_OF_THREE, table) == (16 + 16 + 4 + 64 + 8 + 80 + 10 * 4) * 2
    adding = DrafterConfig(10, 4, 8, 1, rnn=False)  # s + E needs no W
    assert round_reads(adding, TWO_BEAMS_OF_THREE, table) == round_reads(adding, TWO_BEAMS_OF_THREE, Layout())
    assert kept_bytes(adding, TWO_BEAMS_OF_THREE, table) == (64 + 8 + 80) * 2


def test_the_bytes_are_those_that_a_packed_drafter_multiplies_with() -> None:
    """Compared with the products of one real round, without activations."""
    for config in (SMALL, DrafterConfig(10, 4, 6, 2, draft_vocab_size=7), DrafterConfig(10, 4, 8, 0)):
        for project in (False, True):
            numbers = 0

            def counting(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
                def read(x: torch.Tensor) -> torch.Tensor:
                    nonlocal numbers
                    numbers += weight.numel() + (0 if bias is None else bias.numel())
                    return torch.nn.functional.linear(x, weight, bias)

                return read

            drafter = PackedDrafter(Drafter(config), counting, project_embedding=project)
            inputs = drafter.token_inputs(torch.randn(10, 4))
            beam_search(drafter, inputs, torch.randn(1, 4), torch.tensor([3]), beam_width=2, beam_length=3)
            reads = round_reads(config, TWO_BEAMS_OF_THREE, Layout(project_embedding=project))
            assert reads.total - reads.parts["embedding rows"] == 2 * numbers


def test_a_batch_shares_weights_but_not_rows() -> None:
    batch = Workload(DraftingConfig(2, 3), batch=7)
    assert (
        round_reads(SMALL, batch, Layout()).total - round_reads(SMALL, TWO_BEAMS_OF_THREE, Layout()).total == 6 * ROWS
    )


def test_a_target_step() -> None:
    # Two layers of: q 8x4, k and v 4x4, o 4x8, three MLP matrices 4x5, two norms of 4; final norm 4, head 10x4.
    shape = LlamaShape(10, 4, 5, 2, 4, 2, 2)
    work = Workload(DraftingConfig(2, 3), batch=3, context=100)
    reads = target_step(shape, work, 6)
    assert reads.parts == {
        "weights": (2 * (32 + 16 + 16 + 32 + 60 + 8) + 4 + 40) * 2,
        "embedding rows": 3 * 7 * 4 * 2,
        # 107 tokens of 2 layers, keys and values, 2 heads of 2.
        "cache": 3 * 107 * 2 * 2 * 4 * 2,
    }
    tied = LlamaShape(10, 4, 5, 2, 4, 2, 2, tie_word_embeddings=True)
    assert target_step(tied, work, 6).parts["weights"] == reads.parts["weights"]


def test_vicuna_with_a_trimmed_vocabulary_reads_less_than_half() -> None:
    """Computed by hand, in millions of numbers: at every step half of the first ResBlock 33.55,
    the second 67.11 + 0.01, recurrence 33.55 + 0.004, head of 8,000 tokens 65.54; once the other half, 33.55 + 0.01."""
    shape = SHAPES["vicuna-7b"]
    work = Workload(DraftingConfig(4, 5))
    lines = {line.name: line for line in compare(shape, published_drafter(shape), work, 8000)}
    trimmed = lines["and 8,000 draft tokens"]
    assert trimmed.round_bytes.total / 1e6 == pytest.approx(2 * (5 * 199.77 + 33.56) + 0.14, rel=1e-3)
    assert trimmed.part_of_baseline < 0.5
    assert lines["whole drafter at every step"].round_bytes.total / 1e6 == pytest.approx(5 * 859.9, rel=1e-3)
    # W is 4096² of those 199.77 million numbers; the table is 32,000 rows of 4096.
    projected = lines["and W·E as a table"]
    assert projected.round_bytes.total / 1e6 == pytest.approx(2 * (5 * 182.99 + 33.56) + 0.14, rel=1e-3)
    assert (projected.kept - trimmed.kept) / 1e6 == pytest.approx(2 * 131.072)
    fp8 = lines["and FP8 or INT8 weights"]
    assert fp8.round_bytes.total / 1e6 == pytest.approx(5 * 182.99 + 33.56 + 0.14, rel=2e-3)
    assert trimmed.seconds == pytest.approx(trimmed.round_bytes.total / 3.35e12)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report" / "roofline.json"
    command = ["--target", str(ASSET), "--drafter", str(ASSET / "redrafter"), "--draft-vocab-size", "500"]
    assert main([*command, "--json", str(file)]) == 0
    assert "and 500 draft tokens" in capsys.readouterr().out
    stored = json.loads(file.read_text())
    assert stored["drafting_rounds"][0]["way"] == "whole drafter at every step"
    assert stored["drafter"]["exit_dim"] == 512
    assert stored["workload"]["drafting"]["num_speculative_tokens"] == 16
    assert main(["--target", "vicuna-7b"]) == 0
    assert main(["--target", "vicuna-7b", "--drafter", str(ASSET / "redrafter")]) == 1
    assert "other sizes" in capsys.readouterr().err
    assert main(["--target", "vicuna-7b", "--batch", "0"]) == 1


def test_shapes_by_name_or_file(tmp_path: Path) -> None:
    assert find_shape(str(ASSET)) == LlamaShape(2048, 256, 704, 4, 4, 2, 64, True)
    # As Hugging Face writes Llama 1: no key-value heads, no size of a head.
    old = {"model_type": "llama", "vocab_size": 8, "hidden_size": 12, "intermediate_size": 9, "num_hidden_layers": 1}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(old | {"num_attention_heads": 3}))
    assert find_shape(str(tmp_path)) == LlamaShape(8, 12, 9, 1, 3, 3, 4)
    file.write_text(json.dumps(old))
    with pytest.raises(ShapeError, match="lacks num_attention_heads"):
        find_shape(str(file))
    file.write_text(json.dumps(old | {"num_attention_heads": 3, "num_key_value_heads": 2}))
    with pytest.raises(ShapeError, match="evenly"):
        find_shape(str(file))
