# SPDX-License-Identifier: Apache-2.0
"""What a step and a round have to do, and for how long: hand-worked sizes of Vicuna-7B, the roofline's bytes."""

from dataclasses import replace

import pytest

from benchmarks.models.roofline import Layout, Workload, round_reads
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.gpu import Gpu
from redrafter_vllm.predict.shapes import SHAPES, published_drafter
from redrafter_vllm.predict.work import Work, drafting_round, seconds, target_step, weights

VICUNA = SHAPES["vicuna-7b"]
NUMBERS = 6_738_415_616 - 32_000 * 4096  # its parameters without the input embedding
ENDLESS = 1e12
# Reads 10^12 bytes a second, computes in no time, launches and schedules for nothing.
READER = Gpu(1, ENDLESS, 80, 450, "test", 1, 1, 0, 0, 0)


def test_a_step_that_waits_for_memory_takes_its_bytes_over_the_bandwidth() -> None:
    assert weights(VICUNA) == NUMBERS
    step = target_step(VICUNA, rows=1, requests=1, context=0)
    assert seconds(step, READER) == pytest.approx(2 * NUMBERS / 1e12)
    half = replace(READER, bandwidth_share=0.5)
    assert seconds(step, half) == pytest.approx(2 * 2 * NUMBERS / 1e12)


def test_the_cache_is_read_once_for_each_request() -> None:
    # Keys and values of 32 layers, 32 heads of 128 numbers, 2 bytes each: 524,288 bytes a token.
    without = seconds(target_step(VICUNA, 10, 10, 0), READER)
    assert seconds(target_step(VICUNA, 10, 10, 1000), READER) - without == pytest.approx(10 * 1000 * 524_288 / 1e12)
    # More rows of the same requests read no more of it.
    assert seconds(target_step(VICUNA, 50, 10, 1000), READER) == pytest.approx(
        seconds(target_step(VICUNA, 10, 10, 1000), READER)
    )


def test_grouped_queries_and_tied_embeddings_read_less() -> None:
    llama = SHAPES["llama-3-8b"]  # 8 of 32 heads have keys and values
    context = target_step(llama, 1, 1, 1000).bytes - target_step(llama, 1, 1, 0).bytes
    assert context == 1000 * 524_288 / 4
    tied = SHAPES["smollm2-1b"]
    assert weights(tied) == tied.num_parameters


def test_a_step_that_computes_takes_its_operations_over_the_arithmetic() -> None:
    computer = replace(READER, bandwidth_tb_s=ENDLESS, tflops=100)
    assert seconds(target_step(VICUNA, 1000, 1000, 0), computer) == pytest.approx(1000 * 2 * NUMBERS / 100e12)
    # Attention: a product with the keys and one with the values, for each of 32 · 128 numbers of a query, in 32 layers.
    attention = 1000 * 4 * 4096 * 500 * 32
    with_context = seconds(target_step(VICUNA, 1000, 1000, 500), computer)
    assert with_context == pytest.approx((1000 * 2 * NUMBERS + attention) / 100e12)


def test_launches() -> None:
    launcher = replace(READER, bandwidth_tb_s=ENDLESS, launch_us=2)
    assert seconds(target_step(VICUNA, 1, 1, 0), launcher) == pytest.approx((32 * 10 + 5) * 2e-6, rel=1e-3)
    trees = target_step(VICUNA, 17, 1, 0, has_trees=True)
    assert trees.kernels - target_step(VICUNA, 17, 1, 0).kernels == 2 * 32


def test_several_gpus_share_the_weights_and_exchange_hidden_states() -> None:
    step = target_step(VICUNA, rows=3, requests=3, context=100, parallel=4)
    alone = target_step(VICUNA, rows=3, requests=3, context=100)
    assert (step.bytes, step.operations) == (alone.bytes / 4, alone.operations / 4)
    # 32 layers exchange twice, then the embedding and the logits: 66 times; 65 tensors are 3 rows of 4,096 numbers.
    gpu = replace(READER, all_reduce_us=10, link_gb_s=100)
    exchange = 66 * 10e-6 + 2 * 3 / 4 * (65 * 3 * 4096 * 2) / 100e9
    assert seconds(step, gpu, 4) - seconds(step, gpu) == pytest.approx(exchange)


@pytest.mark.parametrize(
    "config",
    [
        published_drafter(VICUNA),
        DrafterConfig(32_000, 4096, 2048, 1),  # with an input projection
        DrafterConfig(32_000, 4096, 8192, 0),  # the output layer is the first
        DrafterConfig(32_000, 4096, 8192, 2, rnn=False),
        DrafterConfig(32_000, 4096, 8192, 2, draft_vocab_size=8000),
    ],
    ids=str,
)
def test_a_round_reads_what_the_roofline_counts(config: DrafterConfig) -> None:
    drafting = DraftingConfig(4, 5)
    counted = round_reads(config, Workload(drafting), Layout())
    expected = counted.total - counted.parts["embedding rows"]  # single rows, which are left out here
    assert drafting_round(config, drafting, 1).bytes == expected
    assert drafting_round(config, drafting, 64).bytes == expected  # requests share what is read


def test_the_operations_of_a_round() -> None:
    # Without ResBlocks: W and U of 4 x 4 with a bias of 4, and 10 logits from 4 + 4 numbers, of which half is context.
    config = DrafterConfig(10, 4, 8, 0)
    per_beam, context = 4 * 4 + 4 * 4 + 4 + 10 * 4, 10 * 4
    beams = 1 + 2 * 3  # the root, then 3 beams twice
    found = drafting_round(config, DraftingConfig(3, 3), 5)
    assert found.operations == 2 * 5 * (beams * per_beam + context)


def test_several_gpus_share_the_drafters_output_layer_alone() -> None:
    config, drafting = published_drafter(VICUNA), DraftingConfig(4, 4)
    alone, shared = drafting_round(config, drafting, 1), drafting_round(config, drafting, 1, parallel=4)
    head = 2 * 32_000 * 8192  # bytes
    assert alone.bytes - shared.bytes == 4 * head * 3 / 4


def test_work_adds_up() -> None:
    assert Work(1, 2, 3, 4, 5) + Work(10, 20, 30, 40, 50) == Work(11, 22, 33, 44, 55)
