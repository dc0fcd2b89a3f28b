# SPDX-License-Identifier: Apache-2.0
"""The stand-ins for vLLM's sampling kernels give the interpreted kernels' bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redrafter_cpu.standins import gumbel
from tests.tools.cpu_support.interpreted import assert_same_bits, both_ways, needs_interpreter, vllm_gpu

pytestmark = needs_interpreter

REQUESTS = 7
# Rows, vocabulary: either side of the kernels' blocks.
SIZES = [(1, 5), (3, 512), (4, 1024), (5, 1025), (2, 9001), (3, 49_152)]


def logits_of(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 4
    logits[:, ::7] = -float("inf")
    logits[:, 3] = logits[:, 4]  # a tie
    return logits


def mapping(rows: int) -> torch.Tensor:
    return torch.tensor([(3 * i + 1) % REQUESTS for i in range(rows)])


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_temperature(rows: int, vocab: int) -> None:
    module = vllm_gpu("sample.gumbel")
    temperatures = torch.tensor([0.0, 1.0, 0.3, 0.9, 1.7, 1e-4, 0.0])
    ours, theirs = both_ways(
        module, "_temperature_kernel", module.apply_temperature, logits_of(rows, vocab), mapping(rows), temperatures
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
@pytest.mark.parametrize("fp64", [False, True])
@pytest.mark.parametrize("drafting", [False, True])
def test_gumbel_sample(rows: int, vocab: int, fp64: bool, drafting: bool) -> None:
    module = vllm_gpu("sample.gumbel")
    idx = mapping(rows)
    idx[-1] = -1  # no request: greedy
    temperatures = torch.tensor([0.0, 1.0, 0.3, 0.9, 0.0, 1e-4, 2.0])
    seeds = torch.tensor([0, -1, 2**63 - 1, -(2**63), 17, 1 << 32, 42])
    positions = torch.tensor([0, 1, 2**31, 77, 12345][:rows])
    arguments = (logits_of(rows, vocab), idx, temperatures, seeds, positions)
    ours, theirs = both_ways(
        module, "_gumbel_sample_kernel", module.gumbel_sample, *arguments, not drafting, drafting, use_fp64=fp64
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gumbel_sample_caches_logits(per_token: bool, dtype: torch.dtype) -> None:
    """Triton's interpreter cannot run this branch (it refuses the mask), so the expected cache is written by hand."""
    module = vllm_gpu("sample.gumbel")
    logits, cache = logits_of(3, 600).to(dtype), torch.full((REQUESTS, 4, 640), -777.0, dtype=dtype)
    expected = cache.clone()
    expected[2, 1 if per_token else 2, :600] = logits[0]
    expected[5, 3 if per_token else 2, :600] = logits[2]
    idx, temperatures, seeds = torch.tensor([2, -1, 5]), torch.full((REQUESTS,), 0.8), torch.arange(REQUESTS)
    rest = torch.tensor([3, 4, 5]), True, True
    column = torch.tensor([1, 0, 3]) if per_token else torch.tensor(2)
    sampled = module.gumbel_sample(logits, idx, temperatures, seeds, *rest, logits_cache=cache, logits_cache_col=column)
    assert_same_bits(cache, expected)
    if hasattr(module, "spec_step_seed"):  # vLLM 0.33
        seeds[2] += (1 if per_token else 2) * 2**32
        seeds[5] += (3 if per_token else 2) * 2**32
    assert_same_bits(sampled, module.gumbel_sample(logits, idx, temperatures, seeds, *rest))


def test_the_greatest_noise_has_equal_bits() -> None:
    """The noise itself: of a row of equal logits, in the block that has the winner."""
    module = vllm_gpu("sample.gumbel")
    rows, vocab, blocks = 4, 5000, 5
    for fp64 in (False, True):
        argmax = torch.full((rows, blocks), -777)
        maximum = torch.full((rows, blocks), float("nan"), dtype=torch.float64 if fp64 else torch.float32)
        outputs = []
        for kernel in (module._gumbel_sample_kernel, module._gumbel_sample_kernel.kernel):
            local_argmax, local_max, logits = argmax.clone(), maximum.clone(), torch.zeros(rows, vocab)
            kernel[(rows, blocks)](
                *(local_argmax, blocks, local_max, blocks, None, 0, 0, None, None, 0, logits, vocab),
                *(torch.arange(rows), torch.arange(rows), torch.arange(rows), torch.ones(rows), vocab),
                BLOCK_SIZE=1024,
                IS_DRAFTING=False,
                APPLY_TEMPERATURE=True,
                USE_FP64=fp64,
                PER_TOKEN_COL=False,
            )
            winner = local_max.argmax(1, keepdim=True)
            outputs.append((local_max.gather(1, winner), local_argmax.gather(1, winner)))
        assert_same_bits(*outputs)


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0, 60.0, 1e6])
@pytest.mark.parametrize("mean", [0.0, -1e4, 3e7])
def test_tokens_without_a_logarithm_lose_nothing(spread: float, mean: float) -> None:
    """Against the noise of all tokens, for logits that differ by nothing up to far more than any noise."""
    rng = np.random.default_rng(0)
    rows, vocab = 100, 20_000
    logits = rng.normal(mean, spread, (rows, vocab)).astype(np.float32)
    for row in range(rows):
        logits[row, rng.integers(vocab, size=row)] = -np.inf
    stream = rng.integers(2**63, size=rows), np.arange(rows)
    scores = logits + gumbel._noise32(gumbel._hash32(*stream, vocab, domain=0))
    tokens, values = gumbel._noised_argmax(logits, np.arange(rows), np.ones(rows, dtype=np.float32), *stream)
    assert np.array_equal(tokens, scores.argmax(1)) and np.array_equal(values, scores.max(1))


@pytest.mark.parametrize("top", [np.inf, -np.inf])
def test_rows_without_a_finite_greatest_logit(top: float) -> None:
    logits = np.full((1, 3000), -np.inf, dtype=np.float32)
    logits[0, 7] = logits[0, 2000] = top
    one = np.ones(1, dtype=np.float32)
    tokens, values = gumbel._noised_argmax(logits, np.array([0]), one, np.array([1]), np.array([2]))
    assert tokens.tolist() == [7 if top > 0 else 0] and values.tolist() == [top]


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_min_p(rows: int, vocab: int) -> None:
    module = vllm_gpu("sample.min_p")
    min_p = torch.tensor([0.0, 0.1, 1.0, 1e-6, 0.37, 0.0, 0.5])
    ours, theirs = both_ways(module, "_min_p_kernel", module.apply_min_p, logits_of(rows, vocab), mapping(rows), min_p)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_penalties(rows: int, vocab: int) -> None:
    module = vllm_gpu("sample.penalties")
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 3, (REQUESTS, vocab), generator=generator, dtype=torch.int32)
    packed = torch.randint(-(2**31), 2**31 - 1, (REQUESTS, -(-vocab // 32)), generator=generator, dtype=torch.int32)
    ours, theirs = both_ways(
        module,
        "_penalties_kernel",
        module.apply_penalties,
        logits_of(rows, vocab),
        torch.full((rows,), 4),  # one request, a chain of drafts
        torch.randint(0, vocab, (rows,), generator=generator, dtype=torch.int32),
        torch.arange(rows, dtype=torch.int32),
        torch.tensor([1.0, 1.0, 1.0, 1.0, 1.3, 0.7, 1.0]),
        torch.tensor([0.0, 0.4, 0.0, 0.0, -0.3, 0.0, 0.1]),
        torch.tensor([0.0, 0.0, 0.6, 0.0, 0.7, 0.0, -0.2]),
        packed,
        counts,
    )
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("request_row", range(REQUESTS))
def test_penalties_each_alone(request_row: int) -> None:
    module = vllm_gpu("sample.penalties")
    counts = torch.arange(REQUESTS * 100, dtype=torch.int32).reshape(REQUESTS, 100) % 4
    ours, theirs = both_ways(
        module,
        "_penalties_kernel",
        module.apply_penalties,
        logits_of(1, 100),
        torch.tensor([request_row]),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([1.0, 1.0, 1.0, 1.0, 1.3, 0.7, 1.0]),
        torch.tensor([0.0, 0.4, 0.0, 0.0, -0.3, 0.0, 0.1]),
        torch.tensor([0.0, 0.0, 0.6, 0.0, 0.7, 0.0, -0.2]),
        torch.full((REQUESTS, 4), 0x0F0F0F0F, dtype=torch.int32),
        counts,
    )
    assert_same_bits(ours, theirs)


def test_bincount() -> None:
    module = vllm_gpu("sample.penalties")
    tokens = torch.arange(REQUESTS * 3000, dtype=torch.int32).reshape(REQUESTS, 3000) * 7 % 500
    prompt = torch.tensor([1, 1024, 1500, 3000, 2047, 33, 5], dtype=torch.int32)
    prefill = torch.tensor([1, 1024, 2900, 3000, 2049, 33, 1030], dtype=torch.int32)
    ours, theirs = both_ways(
        module,
        "_bincount_kernel",
        module.bincount,
        torch.arange(REQUESTS),
        tokens,
        prompt,
        prefill,
        poisoned_int(REQUESTS, 16),
        poisoned_int(REQUESTS, 500),
        3000,
    )
    assert_same_bits(ours, theirs)


def poisoned_int(*shape: int) -> torch.Tensor:
    return torch.full(shape, -777, dtype=torch.int32)


@pytest.mark.parametrize("check_all_masked", [False, True])
def test_logit_bias(check_all_masked: bool) -> None:
    module = vllm_gpu("sample.logit_bias")
    vocab, width = 700, 6
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, vocab, (REQUESTS, width), generator=generator, dtype=torch.int32) for _ in range(3)]
    ids[2][3] = ids[0][3]  # request 3 may only emit its stop tokens: all is masked
    as_int = torch.tensor
    ours, theirs = both_ways(
        module,
        "_bias_kernel",
        module.apply_logit_bias,
        logits_of(REQUESTS, vocab),
        torch.arange(REQUESTS),
        torch.arange(REQUESTS) * 3,
        as_int([0, 3, 0, 6, 0, 1, 2], dtype=torch.int32),
        ids[0],
        as_int([0, 0, 6, 0, 1, 2, 0], dtype=torch.int32),
        ids[1],
        torch.randn(REQUESTS, width, generator=generator),
        as_int([0, 99, 7, 99, 13, 99, 18], dtype=torch.int32),
        as_int([0, 6, 3, 6, 2, 0, 4], dtype=torch.int32),
        as_int([0, 1, 1, 1, 0, 1, 0], dtype=torch.int32),
        ids[2],
        check_all_masked,
    )
    assert_same_bits(ours, theirs)


def test_bad_words() -> None:
    module = vllm_gpu("sample.bad_words")
    # Request 1 has generated 7, 8 after the prompt 1, 2; its drafts are 9 and 8.
    history = torch.zeros(2, 12, dtype=torch.int32)
    history[1, :4] = torch.tensor([1, 2, 7, 8])
    words = [[5], [8, 6], [7, 8, 3], [9, 4], [8, 9, 8, 2], [1, 2, 7, 8, 0], [2, 7, 8, 11]]
    flat_words = [token for word in words for token in word]
    offsets = np.cumsum([0] + [len(word) for word in words])
    tokens, bounds = torch.zeros(2, 64, dtype=torch.int32), torch.zeros(2, 16, dtype=torch.int32)
    tokens[1, : len(flat_words)] = torch.tensor(flat_words)
    bounds[1, : len(offsets)] = torch.from_numpy(offsets)
    ours, theirs = both_ways(
        module,
        "_bad_words_kernel",
        module.apply_bad_words,
        torch.zeros(4, 20),
        torch.tensor([0, 1, 1, 1]),
        tokens,
        bounds,
        torch.tensor([0, len(words)], dtype=torch.int32),
        history,
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([3, 4], dtype=torch.int32),
        torch.tensor([0, 8, 9, 8], dtype=torch.int32),
        torch.tensor([0, 0, 1, 2], dtype=torch.int32),
        len(words),
    )
    assert_same_bits(ours, theirs)
    masked = [row.isinf().nonzero().flatten().tolist() for row in ours[0][0]]
    assert masked == [[], [3, 5, 6], [4, 5], [2, 5, 6]]


@pytest.mark.parametrize("vocab", [31, 8192, 8200])
def test_grammar_bitmask(vocab: int) -> None:
    """Triton's interpreter cannot run this kernel (it refuses the mask), so the expectation is a plain loop."""
    module = vllm_gpu("structured_outputs")
    generator = torch.Generator().manual_seed(3)
    masks = torch.randint(-(2**31), 2**31 - 1, (3, -(-vocab // 32)), generator=generator, dtype=torch.int32)
    stride = 5
    indices = torch.tensor([0 * stride + 1, 2 * stride, 2 * stride + 3], dtype=torch.int32)  # the last is not active
    bounds = torch.tensor([0, 2, 3, 5], dtype=torch.int32)
    logits, expected = torch.zeros(5, vocab), torch.zeros(5, vocab)
    module._apply_grammar_bitmask_kernel[(3, -(-vocab // 8192))](
        *(logits, vocab, indices, bounds, masks, masks.stride(0), vocab), MASK_STRIDE=stride, BLOCK_SIZE=8192
    )
    for row, words in ((1, masks[0].tolist()), (3, masks[1].tolist())):
        for token in range(vocab):
            if not (words[token // 32] >> (token % 32)) & 1:
                expected[row, token] = -float("inf")
    assert_same_bits(logits, expected)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_logprobs(rows: int, vocab: int, dtype: torch.dtype) -> None:
    module = vllm_gpu("sample.logprob")
    logits = logits_of(rows, vocab).to(dtype)
    logits[0] = -float("inf")  # a row without any probability
    ids = torch.arange(rows * 3).reshape(rows, 3) * 11 % vocab
    ours, theirs = both_ways(module, "_topk_log_softmax_kernel", module.compute_token_logprobs, logits, ids)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(("rows", "vocab"), SIZES)
def test_ranks(rows: int, vocab: int) -> None:
    module = vllm_gpu("sample.logprob")
    sampled = torch.arange(rows) * 7 % vocab  # multiples of seven are -inf

    def ranks(logits: torch.Tensor) -> torch.Tensor:
        return module.compute_topk_scores(logits, 3, sampled).selected_token_ranks

    ours, theirs = both_ways(module, "_ranks_kernel", ranks, logits_of(rows, vocab))
    assert_same_bits(ours, theirs)
